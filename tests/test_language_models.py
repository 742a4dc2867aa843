"""Decoder backbones: what is read of them, adapters beside their weights, and one model spread over processes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, Result, make_language_model, run_ranks

import prefcli
from prefcli import encoders
from prefcli.compute import devices
from prefcli.data.synthetic import Demo
from prefcli.encoders import adapters
from prefcli.errors import InputError, ModelError, PrefcliError
from prefcli.models import architectures, neural, tokens, weights
from prefcli.models.architectures import CrossEncoder, Siamese
from prefcli.models.packing import Packing, Template
from prefcli.options import TrainOptions
from prefcli.reporting import SILENT
from prefcli.storage import runs
from prefcli.training import loop
from prefcli.training.fit_neural import NeuralFitter

LORA = {"text": "raw", "max_length": 96, "lr": 3e-3, "lora_rank": 4, "limit": 96, "eval_every": 4}
"""Of runs here; with the architecture cross-encoder unless it is said otherwise."""


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def lora_run(llama: Path, demo_files: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters that others only read."""
    folder = tmp_path_factory.mktemp("lora")
    prefcli.train(
        demo_files.train, encoder=str(llama), architecture="cross-encoder", output=folder / "run",
        workspace=folder / "w", **LORA,
    )  # fmt: skip
    return folder / "run"


def probabilities(run: Path, demo_files: Demo, **how: Any) -> np.ndarray:
    import pandas as pd

    return prefcli.load(run, **how).predict(pd.read_csv(demo_files.test))


# What is read


def test_a_language_model_is_recognised_by_its_attention(
    language_model: Path, bert_folder: Path, deberta_folder: Path
) -> None:
    for folder, causal in ((language_model, True), (bert_folder, False), (deberta_folder, False)):
        encoder = encoders.make_encoder(encoders.ResolvedModel(folder, ""), 0, seed=0)
        assert architectures.is_causal(encoder) is causal
        options = TrainOptions(encoder=str(folder), text="raw", max_length=64)
        model = neural.build(options, encoder, encoders.load_tokenizer(folder), 64, devices.place("cpu", "fp32"))
        assert model.module.pooling == ("last" if causal else "mean")


@pytest.mark.parametrize("architecture", [Siamese, CrossEncoder])
@pytest.mark.parametrize("pooled", ["last", "mean"])
def test_neither_the_side_of_padding_nor_its_id_changes_the_logits(
    language_model: Path, architecture: Any, pooled: str
) -> None:
    encoder = encoders.make_encoder(encoders.ResolvedModel(language_model, ""), 0, seed=0)
    torch.manual_seed(1)
    module = architecture(encoder, "interaction", pooled).eval()
    ends = encoder.config.pad_token_id
    texts = [[7, 9, 30, ends, 41, 5, 8], [12, 11, 80], [101, ends, ends], [60, 61, 62, 63, 64]]
    spans = torch.tensor([[(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 2)], [(0, 0), (0, 2), (2, 3)], [(0, 2), (2, 4), (4, 5)]])  # fmt: skip  # noqa: E501

    def logits(pad: int, *, left: bool, width: int) -> torch.Tensor:
        ids, mask = torch.full((4, width), pad), torch.zeros(4, width, dtype=torch.long)
        for row, text in enumerate(texts):
            place = slice(width - len(text), width) if left else slice(0, len(text))
            ids[row, place], mask[row, place] = torch.tensor(text), 1
        with torch.inference_mode():
            return module(input_ids=ids, attention_mask=mask, spans=spans)

    expected = logits(0, left=False, width=7)
    for pad in (0, ends, 333):
        for left in (False, True):
            for width in (7, 12):
                assert torch.allclose(logits(pad, left=left, width=width), expected, atol=1e-6, rtol=0)
    assert expected.std(dim=0).min() > 1e-3  # it does look at the texts


def test_the_last_token_of_a_span_stands_for_it() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    spans = torch.tensor([[1, 2], [1, 1]])
    chosen = architectures.span_mask(spans, mask)
    assert chosen.tolist() == [[False, False, True, False], [False] * 4]
    assert architectures.last_token_pool(hidden, chosen).tolist() == [hidden[0, 2].tolist(), [0.0, 0.0, 0.0]]
    assert architectures.last_token_pool(hidden, mask).tolist() == [hidden[0, 3].tolist(), hidden[1, 1].tolist()]
    assert architectures.mean_pool(hidden, mask)[0].tolist() == hidden[0, 1:].mean(dim=0).tolist()


def test_the_template_in_words_reads_as_a_text_and_fits_the_budget(language_model: Path) -> None:
    tokenizer = encoders.load_tokenizer(language_model)
    packing = Packing.from_tokenizer(tokenizer, 90, "head", "words")
    fields = [tokens.Field(np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32), np.array([0]))
              for text in ("clear", "precise answer", "vague")]  # fmt: skip
    ids = packing.pack(fields).ids
    text = tokenizer.decode(ids, skip_special_tokens=True).lower()
    assert [word for word in text.replace(":", " ").split() if word] == (
        "question clear answer a precise answer answer b vague which answer is better".split()
    )
    begins = tokenizer.bos_token_id is not None
    assert bool(ids[0] == tokenizer.bos_token_id) is begins
    assert (ids == tokenizer.bos_token_id).sum() == begins
    long = [tokens.Field(np.tile(field.ids, 100), field.turns) for field in fields]
    cut = packing.pack(long)
    assert len(cut.ids) == 90
    suffix = packing.template.both.suffix
    assert cut.ids[-len(suffix) :].tolist() == list(suffix)
    assert min(stop - start for start, stop in cut.spans) >= 10


def test_the_template_is_a_choice(bert_folder: Path, llama: Path) -> None:
    bert, tokenizer = encoders.load_tokenizer(bert_folder), encoders.load_tokenizer(llama)
    words, special = (Template.from_tokenizer(bert, kind).both for kind in ("words", "tokens"))
    assert words.overhead > special.overhead == 4
    assert Template.from_tokenizer(tokenizer, "tokens").both.prefixes == ((tokenizer.bos_token_id,),) * 3


def test_a_length_without_room_for_the_answers_is_refused(
    llama: Path, demo_files: Demo, cli: Callable[..., Result]
) -> None:
    done = cli("train", demo_files.train, "--encoder", llama, "--text", "raw", "--max-length", "16")
    assert done.code == 2
    assert "--max-length 16 leaves no room" in done.err
    least = int(done.err.split("Use --max-length ")[1].split()[0])
    assert cli("train", demo_files.train, "--encoder", llama, "--text", "raw", "--limit", 30, "--max-length", least).code == 0  # fmt: skip  # noqa: E501


# Adapters


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["siamese", "cross-encoder"])
def test_adapters_train_resume_reload_and_merge_to_the_same_predictions(
    language_model: Path, architecture: str, demo_files: Demo, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    options = {**LORA, "encoder": str(language_model), "architecture": architecture, "checkpoint_every": 2}
    prefcli.train(demo_files.train, output="whole", **options)

    class Stop(Exception):
        pass

    def stop(state: loop.TrainState) -> None:
        if state.steps == 3:
            raise Stop

    patched = pytest.MonkeyPatch()
    patched.setattr(NeuralFitter, "_first_steps", lambda self, spec: stop)
    with pytest.raises(Stop):
        prefcli.train(demo_files.train, output="cut", **options)
    patched.undo()
    made = prefcli.train(resume="cut")
    assert made.validation is not None
    name = neural.WEIGHTS
    assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()

    found = probabilities(Path("cut"), demo_files)
    assert np.array_equal(found, probabilities(Path("whole"), demo_files))
    assert found.std(axis=0).max() > 1e-3
    done = cli("export", "cut", "--merged", "merged", "--json")
    assert done.code == 0, done.err
    assert done.json()["adapters"] is True
    assert prefcli.export("cut", merged="again").parameters == done.json()["parameters"]
    with pytest.raises(InputError, match="one thing"):
        prefcli.export("cut")  # type: ignore[call-overload]
    assert np.abs(probabilities(Path("merged"), demo_files) - found).max() < 1e-5
    assert Path("merged", name).stat().st_size > 5 * Path("cut", name).stat().st_size


def test_only_the_adapters_and_the_head_are_trained_and_saved(lora_run: Path, llama: Path) -> None:
    kept = weights.load(lora_run / neural.WEIGHTS)
    assert {name.split(".")[0] for name in kept} == {"encoder", "classifier"}
    assert all(".lora_" in name for name in kept if name.startswith("encoder."))
    assert sum(".lora_B" in name for name in kept) == 14  # seven linear layers in each of two blocks
    assert any(bool(tensor.any()) for name, tensor in kept.items() if ".lora_B" in name)  # they begin as zeros
    config = json.loads((lora_run / "config.json").read_text())
    assert config["base"] == {"encoder": str(llama.absolute()), "identity": encoders.fingerprint(llama)}
    assert "LoRA of rank 4, alpha 8, in 14 layers" in config["resolved"]["attention"]
    assert "q_proj" in config["resolved"]["attention"]


@pytest.mark.slow
def test_the_encoder_of_adapters_may_move_but_not_change(
    llama: Path, demo_files: Demo, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    here = Path(shutil.copytree(llama, "here"))
    prefcli.train(demo_files.train, encoder="here", architecture="cross-encoder", output="run", **LORA)
    before = probabilities(Path("run"), demo_files)
    here.rename("there")
    done = cli("predict", demo_files.test, "--model", "run")
    assert done.code == 1
    assert "--encoder DIR" in done.err
    assert not Path("preds.csv").exists()
    assert cli("predict", demo_files.test, "--model", "run", "--encoder", "there").code == 0
    assert np.array_equal(probabilities(Path("run"), demo_files, encoder="there"), before)
    other = make_language_model(tmp_path / "other", "llama")
    state = encoders.make_encoder(encoders.ResolvedModel(other, ""), 0, seed=0)
    with torch.no_grad():
        state.layers[0].mlp.up_proj.weight[0, 0] += 1
    state.save_pretrained(other)
    done = cli("predict", demo_files.test, "--model", "run", "--encoder", other, "--force")
    assert done.code == 1
    assert "belong to another encoder" in done.err


@pytest.mark.slow
def test_a_run_of_adapters_does_not_ask_the_hub_for_what_its_files_name(
    llama: Path, demo_files: Demo, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    prefcli.train(demo_files.train, encoder=str(llama), architecture="cross-encoder", output="run", **LORA)
    config = json.loads(Path("run/config.json").read_text())
    config["base"]["encoder"] = "someone/elses-model"
    Path("run/config.json").write_text(json.dumps(config))
    Path("run/SHA256SUMS").unlink()
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **how: asked.append(name))
    done = cli("predict", demo_files.test, "--model", "run")
    assert done.code == 1
    assert "not in the hub's local cache" in done.err
    assert "--encoder owner/name" in done.err
    assert not asked
    assert cli("predict", demo_files.test, "--model", "run", "--encoder", "someone/elses-model").code == 1
    assert set(asked) == {"someone/elses-model"}  # the user named it


def test_peft_loads_the_adapters_of_a_run(lora_run: Path, llama: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(llama), lora_run)
    ours = neural.load(lora_run, devices.place("cpu", "fp32")).module.encoder
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        expected = ours(input_ids=ids).last_hidden_state
        assert torch.allclose(theirs.eval()(input_ids=ids).last_hidden_state, expected, atol=1e-6)
        adapters.remove(ours)
        assert not torch.allclose(ours(input_ids=ids).last_hidden_state, expected, atol=1e-4)
    with pytest.raises(ValueError, match="model_type"):  # not an encoder with most of its weights at random
        AutoModel.from_pretrained(lora_run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_transformers_loads_the_encoder_of_a_run(
    kind: str, bert_folder: Path, deberta_folder: Path, demo_files: Demo
) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = bert_folder if kind == "bert" else deberta_folder
    prefcli.train(demo_files.train, encoder=str(folder), text="raw", max_length=64, limit=60, output="run", lr=1e-3)
    ours = neural.load(Path("run"), devices.place("cpu", "fp32"))
    theirs, loading = AutoModel.from_pretrained("run", output_loading_info=True)
    assert not loading["missing_keys"]
    assert sorted(loading["unexpected_keys"]) == ["classifier.bias", "classifier.weight"]
    inputs = AutoTokenizer.from_pretrained("run")("clear words", return_tensors="pt")
    with torch.inference_mode():
        assert torch.allclose(
            theirs.eval()(**inputs).last_hidden_state, ours.module.encoder(**inputs).last_hidden_state, atol=1e-5
        )
    again = prefcli.train(demo_files.train, encoder="run", text="raw", max_length=64, limit=60, output="second")
    assert again.validation is not None  # a run is an encoder to start another from


def test_adapters_have_their_own_default_learning_rate() -> None:
    assert TrainOptions(encoder="x", lora_rank=4).learning_rate == 2e-4
    assert TrainOptions(encoder="x", lora_rank=4, lr=1e-3).learning_rate == 1e-3
    assert TrainOptions(encoder="x").learning_rate == 2e-5


def test_a_quantized_run_is_used_and_merged_without_a_gpu(
    lora_run: Path, demo_files: Demo, cli: Callable[..., Result]
) -> None:
    shutil.copytree(lora_run, "few")
    config = json.loads(Path("few/config.json").read_text())
    config["options"]["quantize"] = "4bit"
    Path("few/config.json").write_text(json.dumps(config))
    Path("few/SHA256SUMS").unlink()
    assert np.array_equal(probabilities(Path("few"), demo_files), probabilities(lora_run, demo_files))
    assert cli("export", "few", "--merged", "whole").code == 0
    assert json.loads(Path("whole/config.json").read_text())["options"]["quantize"] == "none"


@pytest.mark.slow
def test_a_merged_run_describes_its_own_training_not_its_encoders(demo_files: Demo, bert_folder: Path) -> None:
    plain = {"text": "raw", "max_length": 64, "lr": 1e-3}
    prefcli.train(demo_files.train, encoder=str(bert_folder), output="first", limit=60, **plain)
    prefcli.train(demo_files.train, encoder="first", output="second", limit=90, lora_rank=2, **plain)
    prefcli.export("second", merged="third")
    second, third = (json.loads(Path(at, "config.json").read_text()) for at in ("second", "third"))
    assert third["data"] == second["data"]
    assert third["data"]["train_battles"] > 60


@pytest.mark.parametrize("kind", ["bloom", "mpt", "xglm"])
def test_language_models_without_is_causal_are_recognised_by_their_family(kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        assert architectures.is_causal(AutoModel.from_config(AutoConfig.for_model(kind)))


def test_an_encoder_decoder_model_is_refused(demo_files: Demo, bert_folder: Path, cli: Callable[..., Result]) -> None:
    from transformers import T5Config, T5Model

    folder = Path(shutil.copytree(bert_folder, "t5"))
    T5Model(T5Config(vocab_size=600, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(folder)
    done = cli("train", demo_files.train, "--encoder", "t5", "--text", "raw", "--max-length", 64, "--output", "run")
    assert done.code == 2
    assert "an encoder-decoder model" in done.err
    assert not Path("run").exists()


def test_a_run_keeps_what_auto_was_resolved_to(
    lora_run: Path, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = probabilities(lora_run, demo_files)
    resolved = json.loads((lora_run / "config.json").read_text())["resolved"]
    assert (resolved["pooling"], resolved["template"]) == ("last", "words")
    monkeypatch.setattr(neural, "is_causal", lambda encoder: False)  # as another release might have it
    assert np.array_equal(probabilities(lora_run, demo_files), before)


@pytest.mark.slow
def test_an_encoder_that_no_run_needs_is_refused(demo_files: Demo, lora_run: Path, cli: Callable[..., Result]) -> None:
    prefcli.train(demo_files.train, recipe="fast", output="fast")
    done = cli("predict", demo_files.test, "--model", "fast", "--encoder", "elsewhere")
    assert done.code == 2
    assert "none of the runs is one" in done.err
    assert cli("export", lora_run, "--onnx", "out", "--encoder", "elsewhere").code == 2


@pytest.mark.slow
def test_force_replaces_runs_and_nothing_else(
    lora_run: Path, llama: Path, demo_files: Demo, cli: Callable[..., Result]
) -> None:
    precious = Path(shutil.copytree(llama, "precious"))  # it has a config.json, too
    prefcli.train(demo_files.train, encoder=str(llama), folds=2, output="folds", **LORA)
    for command in (
        ("export", lora_run, "--merged", precious, "--force"),
        ("train", demo_files.train, "--recipe", "fast", "--output", precious, "--force"),
        ("export", "folds/fold-1", "--merged", "folds", "--force"),
        ("export", "folds", "--merged", "folds/fold-1", "--force"),
    ):
        done = cli(*command)
        assert done.code == 2, command
    assert (precious / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    assert Path("folds/fold-2/model.safetensors").exists()


@pytest.mark.slow
def test_adapters_of_folds_become_one_model(llama: Path, demo_files: Demo, cli: Callable[..., Result]) -> None:
    prefcli.train(demo_files.train, encoder=str(llama), architecture="cross-encoder", folds=2, output="run", **LORA)
    assert cli("export", "run", "--merged", "one").code == 0
    place = devices.place("cpu", "fp32")
    folds = [neural.load(Path("run", f"fold-{number}"), place).module for number in (1, 2)]
    one = neural.load(Path("one"), place).module
    for fold in folds:
        adapters.add_to_weights(fold.encoder)
        adapters.remove(fold.encoder)
    first, second, found = ({k: v.detach() for k, v in m.state_dict().items()} for m in (*folds, one))
    assert first.keys() == found.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6), name
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert not Path("one", "validation.parquet").exists()  # every battle was learnt by one of the folds
    trained_on = {key for number in (1, 2) for key in runs.training_prompts(Path("run", f"fold-{number}")).tolist()}
    assert set(runs.training_prompts(Path("one")).tolist()) == trained_on
    card = Path("one", "README.md").read_text()
    assert "# `one`" in card
    assert "No battle was held out, so there is no honest figure" in card
    assert "2 folds of run, averaged" in card
    assert "96 battles of `train.csv`" in card
    assert np.allclose(probabilities(Path("one"), demo_files).sum(axis=1), 1)


@pytest.mark.slow
def test_folds_with_all_weights_trained_become_one_model(
    demo_files: Demo, bert_folder: Path, cli: Callable[..., Result]
) -> None:
    prefcli.train(
        demo_files.train, encoder=str(bert_folder), text="raw", max_length=64, folds=2, output="run", limit=80
    )
    assert cli("export", "run", "--merged", "one").code == 0
    states = [weights.load(Path(at) / neural.WEIGHTS) for at in ("run/fold-1", "run/fold-2", "one")]
    for name, tensor in states[2].items():
        assert torch.allclose(tensor, (states[0][name] + states[1][name]) / 2, atol=1e-6), name


@pytest.mark.slow
def test_adapters_are_merged_before_they_are_exported_to_onnx(
    demo_files: Demo, bert_folder: Path, cli: Callable[..., Result]
) -> None:
    prefcli.train(demo_files.train, encoder=str(bert_folder), output="run", **{**LORA, "max_length": 64})
    done = cli("export", "run", "--onnx", "small")
    assert done.code == 2
    assert "--merged DIR" in done.err
    assert cli("export", "run", "--merged", "whole").code == 0
    assert cli("export", "whole", "--onnx", "small").code == 0
    assert np.abs(probabilities(Path("small"), demo_files) - probabilities(Path("run"), demo_files)).max() < 1e-4


@pytest.mark.slow
def test_the_cost_of_adapters_is_estimated(llama: Path, demo_files: Demo) -> None:
    found = prefcli.estimate(demo_files.train, encoder=str(llama), architecture="cross-encoder", **LORA)
    assert found.pieces == 6
    assert found.seconds > 0
    assert not Path(".prefcli/runs").exists()


def test_the_card_describes_adapters(lora_run: Path) -> None:
    card = (lora_run / "README.md").read_text()
    assert "LoRA of rank 4, alpha 8, in 14 layers" in card


@pytest.mark.slow
def test_what_cannot_be_merged_is_refused(demo_files: Demo, lora_run: Path, cli: Callable[..., Result]) -> None:
    prefcli.train(demo_files.train, recipe="fast", output="fast")
    prefcli.train(demo_files.train, encoder="tiny", text="raw", max_length=64, limit=40, output="tiny")
    for run in ("fast", "tiny"):
        done = cli("export", run, "--merged", "out")
        assert done.code == 2
        assert "nothing to merge" in done.err
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_text("precious")
    assert cli("export", lora_run, "--merged", "mine").code == 2
    done = cli("export", lora_run, "--merged", "mine", "--force")
    assert done.code == 2
    assert Path("mine", "notes.txt").read_text() == "precious"
    assert cli("export", lora_run).code == 2
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
    ],
)
def test_the_targets_of_adapters_are_a_choice(llama: Path, wanted: str, found: set[str]) -> None:
    encoder = encoders.make_encoder(encoders.ResolvedModel(llama, ""), 0, seed=0)
    assert {name.rsplit(".", 1)[-1] for name in adapters.targets(encoder, wanted)} == found


def test_unknown_targets_are_refused_and_the_known_ones_listed(llama: Path) -> None:
    encoder = encoders.make_encoder(encoders.ResolvedModel(llama, ""), 0, seed=0)
    with pytest.raises(InputError) as caught:
        adapters.targets(encoder, "q_proj,query")
    assert "'query'" in caught.value.what
    assert "gate_proj" in str(caught.value.hint)


@pytest.mark.slow
def test_adapters_work_for_encoders_too(bert_folder: Path, deberta_folder: Path, demo_files: Demo) -> None:
    for folder in (bert_folder, deberta_folder):
        name = folder.name
        made = prefcli.train(demo_files.train, encoder=str(folder), output=name, **{**LORA, "max_length": 64})
        assert made.validation is not None
        kept = weights.load(Path(name) / neural.WEIGHTS)
        assert not any("pooler" in key for key in kept)  # nobody uses what it gives
        assert np.isfinite(probabilities(Path(name), demo_files)).all()


def test_impossible_combinations_are_refused(llama: Path, demo_files: Demo, cli: Callable[..., Result]) -> None:
    train = ("train", demo_files.train, "--text", "raw", "--max-length", 96)
    for flags, words in (
        (("--encoder", "tiny", "--lora-rank", 4), "nothing to adapt"),
        (("--encoder", llama, "--quantize", "4bit"), "quantized weights cannot be trained"),
        (("--encoder", llama, "--quantize", "8bit", "--lora-rank", 4), "needs a CUDA GPU"),
        (("--encoder", llama, "--shard"), "torchrun"),
        (("--architecture", "features", "--lora-rank", 4), "not used by --architecture features"),
        (("--encoder", llama, "--lora-alpha", 8, "--lora-targets", "all"), "--lora-alpha, --lora-targets: not used"),
        (("--encoder", llama, "--quantize", "8bit", "--lora-rank", 4, "--shard"), "exclude each other"),
    ):
        done = cli(*train, *flags)
        assert (done.code, words in done.err) == (2, True), done.err


def test_without_peft_the_hint_says_how_to_install_it(
    llama: Path, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PrefcliError) as caught:
        prefcli.train(demo_files.train, encoder=str(llama), **LORA)
    assert str(caught.value.hint).endswith("Install: pip install peft")
    assert not isinstance(caught.value, ModelError)


def test_quantized_weights_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = encoders.FrozenWeights(torch.float16, "8bit", torch.device("cuda"))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(PrefcliError, match="bitsandbytes"):
            frozen.quantization_arguments()
    find = importlib.util.find_spec
    there = lambda name, *more: object() if name == "bitsandbytes" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", there)
    asked = frozen.quantization_arguments()
    assert asked["quantization_config"].load_in_8bit
    assert asked["device_map"] == {"": torch.device("cuda")}


def test_four_bit_weights_use_the_settings_of_qlora() -> None:
    pytest.importorskip("bitsandbytes")
    frozen = encoders.FrozenWeights(torch.bfloat16, "4bit", torch.device("cuda"))
    asked = frozen.quantization_arguments()["quantization_config"]
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type) == (True, "nf4")
    assert asked.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_loss(llama: Path, demo_files: Demo) -> None:
    logs = []
    for name, recompute in (("kept", False), ("again", True)):
        prefcli.train(
            demo_files.train, encoder=str(llama), architecture="cross-encoder", output=name,
            gradient_checkpointing=recompute, **LORA,
        )  # fmt: skip
        logs.append([json.loads(line).get("loss") for line in Path(name, "metrics.jsonl").read_text().splitlines()])
    assert logs[0] == pytest.approx(logs[1], abs=1e-6)


def test_frozen_weights_may_be_bf16(llama: Path, demo_files: Demo) -> None:
    """As on a GPU, where only what is learnt needs float32."""
    options = TrainOptions(encoder=str(llama), architecture="cross-encoder", precision="bf16", **LORA)
    frozen = encoders.FrozenWeights(torch.bfloat16, "none", torch.device("cpu"))
    encoder = encoders.make_encoder(encoders.ResolvedModel(llama, ""), 0, seed=0, frozen=frozen)
    place = devices.place("cpu", "bf16")
    torch.manual_seed(options.seed)
    model = neural.build(options, encoder, encoders.load_tokenizer(llama), 96, place)
    widths = {p.dtype for p in model.module.parameters() if p.requires_grad}
    assert widths == {torch.float32}
    assert {p.dtype for p in model.module.parameters() if not p.requires_grad} == {torch.bfloat16}
    from prefcli.readers import open_battles

    battles = tokens.tokenise(model.tokenizer, (b for b, _ in open_battles(demo_files.train).batches())).take(
        np.arange(32)
    )
    fitted = loop.fit(
        loop.FitSpec(
            model=model, train=battles, targets=np.eye(3, dtype=np.float32)[battles.labels], validation=battles,
            options=replace(options, eval_every=0), folder=Path("run"), reporter=SILENT,
        )
    )  # fmt: skip
    assert fitted.logits is not None
    assert np.isfinite(fitted.logits).all()


# Several processes


@pytest.mark.slow
@pytest.mark.network
def test_a_model_sharded_over_two_processes_trains_and_resumes_as_in_one(
    llama: Path, demo_files: Demo, cli: Callable[..., Result]
) -> None:
    arguments = [
        "train", demo_files.train, "--encoder", llama, "--architecture", "cross-encoder", "--text", "raw",
        "--max-length", 64, "--lr", 1e-2, "--limit", 64, "--epochs", 2, "--micro-batch", 3, "--eval-every", 2,
        "--checkpoint-every", 3, "--log-every", 1, "--keep-checkpoints",
    ]  # fmt: skip
    kinds: dict[str, list[object]] = {
        "all-weights": [],
        "adapters": ["--lora-rank", 4],
        "reward": ["--architecture", "reward", "--tie", "prompt", "--lr", 1e-3],
    }
    trained = run_ranks(*([*arguments, *flags, "--shard", "--output", f"{kind}-2"] for kind, flags in kinds.items()))
    assert [rank.code for rank in trained] == [0, 0], trained
    whole = {kind: Path(f"{kind}-2", neural.WEIGHTS).read_bytes() for kind in kinds}
    for kind, flags in kinds.items():
        done = cli(*arguments, *flags, "--output", f"{kind}-1")
        assert done.code == 0, done.err
        runs = Path(f"{kind}-1"), Path(f"{kind}-2")
        logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
        for name in ("loss", "grad_norm", "validation_log_loss"):
            one, two = ([line[name] for line in log if name in line] for log in logs)
            assert len(one) >= 4
            assert two == pytest.approx(one, abs=1e-4), (kind, name)
        # One validation at least keeps no weights: after it, FSDP's modules list gathered parameters.
        validations = [line["validation_log_loss"] for line in logs[0] if "validation_log_loss" in line]
        worse = [loss > min(validations[:number]) for number, loss in enumerate(validations) if number]
        assert any(worse[:-1]) or kind != "all-weights"
        one, two = (weights.load(run / neural.WEIGHTS) for run in runs)
        assert one.keys() == two.keys()
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
        one, two = (probabilities(run, demo_files) for run in runs)
        assert np.abs(one - two).max() < 1e-4
        checkpoints = sorted(Path(f"{kind}-2", "checkpoints").glob("step-*"))
        for later in checkpoints[len(checkpoints) // 2 :]:
            shutil.rmtree(later)
        Path(f"{kind}-2", "SHA256SUMS").unlink()

    # A checkpoint holds the full state: one that two processes left continues in two.
    resumed = run_ranks(*(["train", "--resume", f"{kind}-2"] for kind in kinds))
    assert [rank.code for rank in resumed] == [0, 0], resumed
    assert resumed[0].err.count("resumed at step") == 3
    for kind in kinds:
        assert Path(f"{kind}-2", neural.WEIGHTS).read_bytes() == whole[kind]


def test_language_models_get_bf16_by_default_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    chosen, asked = devices.Placement(gpu, "fp16", "by itself"), devices.Placement(gpu, "fp16", devices.AS_ASKED)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert devices.for_language_models(chosen).precision == "bf16"
    assert devices.for_language_models(asked) is asked
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert devices.for_language_models(chosen) is chosen  # a T4 only emulates it

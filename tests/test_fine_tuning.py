"""Options of fine-tuning: pooling, heads, dropout, new top layers, learning rates by layer, label smoothing."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_language_model
from safetensors.torch import load_file

import prefcli
from prefcli import encoders
from prefcli.compute import devices
from prefcli.data.synthetic import Demo
from prefcli.encoders import layers
from prefcli.errors import InputError, ModelError
from prefcli.models import architectures, neural, weights
from prefcli.models.architectures import CrossEncoder, Siamese
from prefcli.options import TrainOptions, resolve
from prefcli.outcomes import TIE
from prefcli.training import loop
from prefcli.training.fit_neural import NeuralFitter

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 30}
XLM = {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "n_words": 30, "max_position_embeddings": 32}
DISTILBERT = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "vocab_size": 30}
DEBERTA = {**SMALL, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}


def an_encoder(family: str, shape: dict[str, Any], **how: Any) -> torch.nn.Module:
    return encoders.from_config({"model_type": family, "pad_token_id": 0, **shape}, **how)


# Pooling and heads


def test_pooling_takes_the_first_token_or_weighs_the_tokens_of_a_span_wherever_padding_is() -> None:
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])  # padded on the left, and on the right
    first = architectures.first_token_pool(hidden, mask)
    assert first.tolist() == [[3, 4, 5], [12, 13, 14]]
    pool = architectures.AttentionPool(3)
    assert torch.allclose(pool(hidden, mask), architectures.mean_pool(hidden, mask)), "it begins as the mean"
    with torch.no_grad():
        pool.weight.copy_(torch.tensor([0.1, -0.2, 0.3]))
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(hidden, mask).detach().numpy()
    for row, tokens in ((0, [1, 2, 3]), (1, [0, 1])):
        vectors = hidden[row, tokens].double().numpy()
        scores = np.exp(vectors @ [0.1, -0.2, 0.3])
        np.testing.assert_allclose(found[row], scores @ vectors / scores.sum(), rtol=1e-5)
    nothing = torch.zeros_like(mask)  # an empty answer
    assert not architectures.first_token_pool(hidden, nothing).any()
    assert not pool(hidden, nothing).any()


@pytest.mark.parametrize("architecture", [Siamese, CrossEncoder])
@pytest.mark.parametrize("pooling", ["cls", "attention"])
def test_padding_on_the_left_changes_no_logits(architecture: Any, pooling: str) -> None:
    torch.manual_seed(1)
    encoder = an_encoder("llama", {**SMALL, "num_key_value_heads": 2})  # reads positions from the mask
    module = architecture(encoder, pooling=pooling, head="mlp").eval()
    if module.attention_pool is not None:
        torch.nn.init.normal_(module.attention_pool.weight)
    ids = torch.randint(5, 30, (2, 9))
    mask = torch.ones_like(ids)
    spans = torch.tensor([[[1, 3], [4, 6], [7, 9]], [[0, 2], [2, 2], [5, 8]]])
    if architecture is Siamese:
        spans = spans[:, :2]
    padded, padded_mask = (torch.nn.functional.pad(tensor, (3, 0)) for tensor in (ids, mask))
    plain = module(input_ids=ids, attention_mask=mask, spans=spans)
    left = module(input_ids=padded, attention_mask=padded_mask, spans=spans)
    assert torch.allclose(plain, left, atol=1e-5)
    assert plain.std() > 1e-3


def test_two_layers_are_computed_as_by_hand() -> None:
    head = architectures.TwoLayerHead(2, 4)
    state = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    inputs = np.linspace(-2, 2, 16).reshape(2, 8)
    inner = inputs @ state["dense.weight"].T + state["dense.bias"]
    gelu = inner * [[(1 + torch.erf(torch.tensor(x / 2**0.5))).item() / 2 for x in row] for row in inner]
    expected = gelu @ state["out_proj.weight"].T + state["out_proj.bias"]
    np.testing.assert_allclose(head(torch.tensor(inputs).float()).detach().numpy(), expected, atol=1e-5)


def test_a_first_token_that_has_read_nothing_is_refused(tmp_path: Path, bert_folder: Path) -> None:
    def build(folder: Path, tokenizer: Any = None) -> None:
        options = TrainOptions(encoder=str(folder), pooling="cls", max_length=64)
        encoder = encoders.make_encoder(encoders.ResolvedModel(folder, ""), 0, seed=0)
        tokenizer = tokenizer or encoders.load_tokenizer(folder)
        neural.build(options, encoder, tokenizer, 64, devices.place("cpu", "fp32"))

    with pytest.raises(InputError, match="--pooling cls does not suit this encoder: its first token has read no other"):
        build(make_language_model(tmp_path / "llama", "llama"))
    build(bert_folder)
    tokenizer = encoders.load_tokenizer(bert_folder)
    backend = tokenizer.backend_tokenizer
    from tokenizers import processors

    end = ("[SEP]", backend.token_to_id("[SEP]"))
    backend.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[end]
    )
    with pytest.raises(InputError, match="its tokenizer begins no text with a special token"):
        build(bert_folder, tokenizer)


# Layers


@pytest.mark.parametrize(
    ("family", "shape", "layer", "lowest"),
    [
        ("bert", SMALL, r"encoder\.layer\.(\d)\.", r"embeddings\."),
        ("deberta-v2", DEBERTA, r"encoder\.layer\.(\d)\.", r"(embeddings\.|encoder\.rel_embeddings)"),
        ("modernbert", {**SMALL, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
         r"layers\.(\d)\.", r"embeddings\."),
        ("distilbert", DISTILBERT, r"transformer\.layer\.(\d)\.", r"embeddings\."),
        ("gpt2", GPT2, r"h\.(\d)\.", r"w[tp]e\."),
        ("llama", {**SMALL, "num_key_value_heads": 2}, r"layers\.(\d)\.", r"embed_tokens\."),
        ("xlm", XLM, r"(?:attentions|layer_norm1|ffns|layer_norm2)\.(\d)\.", r"(position_embeddings|embeddings|layer_norm_emb)\."),  # noqa: E501
    ],
)  # fmt: skip
def test_the_depth_of_every_parameter_is_found(family: str, shape: dict[str, Any], layer: str, lowest: str) -> None:
    encoder = an_encoder(family, shape)
    found = layers.depths(encoder)
    for name, parameter in encoder.named_parameters():
        number = re.match(layer, name)
        expected = 3 - int(number[1]) if number else 4 if re.match(lowest, name) else 0
        assert found[parameter] == expected, name


def test_layers_that_cannot_be_told_apart_are_refused() -> None:
    albert = an_encoder("albert", {**SMALL, "embedding_size": 8})
    with pytest.raises(InputError, match=r"--layer-decay: .* this encoder \(albert\) cannot be distinguished"):
        layers.depths(albert)
    with pytest.raises(InputError, match="--reinit-layers is 4, and the encoder has 3 layers"):
        layers.reinitialise(an_encoder("bert", SMALL), 4, seed=0, reward=False)


@pytest.mark.parametrize("reward", [False, True])
def test_a_step_moves_each_layer_by_its_own_learning_rate(reward: bool) -> None:
    """The first step of AdamW moves a weight by its learning rate, whatever the gradient."""
    encoder = an_encoder("bert", SMALL, reward=reward)
    module: Any = neural.reward.Reward(encoder, neural.reward.Tie(0.3)) if reward else Siamese(encoder)
    options = TrainOptions(lr=0.1, layer_decay=0.5, architecture="reward" if reward else "siamese", weight_decay=0.0)
    optimizer = loop.make_optimizer(module, options)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-2)
    loop.update(module, optimizer, loop.make_scaler(devices.place("cpu", "fp32")), 0.1, 0.0)
    rates = {"embeddings": 0.1 / 16, "layer.0": 0.1 / 8, "layer.1": 0.1 / 4, "layer.2": 0.1 / 2}
    for name, parameter in module.named_parameters():
        rate = next((rate for part, rate in rates.items() if f".{part}." in name), 0.1)
        moved = before[name] - parameter.detach()
        assert torch.allclose(moved, torch.full_like(moved, rate), rtol=1e-3), name


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_new_layers_are_as_the_family_initialises_them_and_the_others_stay(family: str) -> None:
    encoder = an_encoder(family, SMALL if family == "bert" else GPT2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(5.0)
    layers.reinitialise(encoder, 2, seed=0, reward=False)
    top = re.compile(r"(?:layer|h)\.[12]\.")
    for name, parameter in encoder.named_parameters():
        if not top.search(name):
            assert (parameter == 5).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.ndim < 2:
            assert (parameter == 1).all(), name
        else:  # GPT-2 scales the projections into the residual stream by the number of all its layers
            scale = (2 * 3) ** -0.5 if family == "gpt2" and "c_proj" in name else 1.0
            assert parameter.std().item() == pytest.approx(0.02 * scale, rel=0.25), name
    # Another seed draws others.
    first = torch.cat([p.flatten() for p in encoder.parameters()])
    layers.reinitialise(encoder, 2, seed=1, reward=False)
    assert not torch.equal(first, torch.cat([p.flatten() for p in encoder.parameters()]))


# Dropout


def test_dropout_replaces_the_probabilities_of_the_encoder(bert_folder: Path, tmp_path: Path) -> None:
    located = encoders.ResolvedModel(bert_folder, "")
    for dropout, expected in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        encoder = encoders.make_encoder(located, 0, seed=0, dropout=dropout)
        found = {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}
        assert found == {expected}
    tiny = encoders.make_encoder(encoders.ResolvedModel(None, ""), 300, seed=0, dropout=0.2)
    assert {module.p for module in tiny.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}
    llama = make_language_model(tmp_path / "llama", "llama")
    encoder = encoders.make_encoder(encoders.ResolvedModel(llama, ""), 0, seed=0, dropout=0.2)
    assert {m.attention_dropout for m in encoder.modules() if hasattr(m, "attention_dropout")} == {0.2}
    (tmp_path / "mamba").mkdir()
    an_encoder("mamba", {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 30}).save_pretrained(
        tmp_path / "mamba"
    )
    with pytest.raises(ModelError, match="--dropout: encoders of the family mamba have no dropout"):
        encoders.make_encoder(encoders.ResolvedModel(tmp_path / "mamba", ""), 0, seed=0, dropout=0.1)


# Whole runs


ALL = {
    "pooling": "attention", "head": "mlp", "dropout": 0.2, "reinit_layers": 1, "layer_decay": 0.4,
}  # fmt: skip
RUN = {"limit": 60, "max_length": 32, "lr": 1e-3, "validation": 0.3, "text": "raw", "checkpoint_every": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo, bert_folder: Path) -> Path:
    """A run with all of them; beside it lies what was said in training."""
    from prefcli.cli.main import run

    folder = tmp_path_factory.mktemp("fine-tuning")
    options = {**RUN, **ALL, "encoder": bert_folder, "output": folder / "run"}
    flags = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), value)]
    with (folder / "said").open("w") as stream, contextlib.redirect_stderr(stream):
        assert run([str(part) for part in ("--workspace", folder / "w", "train", demo_files.train, *flags)]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_says_what_was_changed_and_transformers_finds_its_encoder(
    run: Path,
) -> None:
    from transformers import AutoModel

    encoder, loading = AutoModel.from_pretrained(run, output_loading_info=True)
    assert not loading["missing_keys"]
    assert {name.partition(".")[0] for name in loading["unexpected_keys"]} == {"classifier", "attention_pool"}
    saved = load_file(run / "model.safetensors")
    assert {name: tuple(saved[name].shape) for name in saved if name.startswith(weights.HEAD_PREFIXES)} == {
        "attention_pool.weight": (32,),
        "classifier.dense.weight": (32, 64),
        "classifier.dense.bias": (32,),
        "classifier.out_proj.weight": (3, 32),
        "classifier.out_proj.bias": (3,),
    }
    assert saved["attention_pool.weight"].any(), "it was trained"
    assert encoder.config.hidden_dropout_prob == 0.2
    rows = [{"prompt": "river", "response_a": "clear step", "response_b": "vague wrong"}]
    assert prefcli.load(run).predict(rows).shape == (1, 3)
    said = (run.parent / "said").read_text()
    assert "top 1 of 2 layers drawn at random; dropout 0.2; learning rate 0.001 of the head to 6.4e-05 of" in said
    assert "attention pooling" in said
    settings = "attention pooling, two-layer head, top layers drawn at random: 1, dropout 0.2, layer decay 0.4."
    assert f"- Fine-tuning: {settings}\n" in (run / "README.md").read_text()


@pytest.mark.slow
def test_stopped_at_any_step_it_resumes_to_the_same_bytes(
    run: Path, demo_files: Demo, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(state: loop.TrainState) -> None:
        if state.steps == 2:
            raise Stop

    options = {**RUN, **ALL, "encoder": str(bert_folder)}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(NeuralFitter, "_first_steps", lambda self, spec: stop)
        prefcli.train(demo_files.train, output="cut", workspace=run.parent / "w", **options)
    prefcli.train(resume="cut", workspace=run.parent / "w")
    assert Path("cut", neural.WEIGHTS).read_bytes() == (run / neural.WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_reward_run_with_new_layers_stays_transformers_classifier(demo_files: Demo, bert_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    options = {**RUN, "dropout": 0.0, "reinit_layers": 1, "layer_decay": 0.5, "architecture": "reward", "max_steps": 1}
    prefcli.train(demo_files.train, output="run", encoder=str(bert_folder), **options)
    _, loading = AutoModelForSequenceClassification.from_pretrained("run", output_loading_info=True)
    assert not any(loading.values())
    config = json.loads(Path("run", "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "reward", "head": "mlp"}, "--head: changes nothing for --architecture reward: transformers'"),
        ({"lora_rank": 4, "layer_decay": 0.9}, "--layer-decay and --lora-rank exclude each other: the encoder's"),
        ({"lora_rank": 4, "reinit_layers": 1}, "--reinit-layers and --lora-rank exclude each other: new layers"),
        ({"pretrain": 4, "reinit_layers": 1}, "--reinit-layers and --pretrain exclude each other"),
        ({"encoder": "tiny", "reinit_layers": 1}, "--reinit-layers: the encoder tiny has random weights anyway"),
        ({"architecture": "features", "dropout": 0.0}, "--dropout: not used by --architecture features"),
        ({"layer_decay": 0.0}, "--layer-decay is 0.0, it must be above 0"),
        ({"dropout": 1.0}, "--dropout is 1.0, at most 0.9 is allowed"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given)


# Label smoothing


def test_label_smoothing_spreads_over_the_outcomes_that_occur() -> None:
    """From soft labels, too; without ties among the training battles it is that of two outcomes."""
    logits = torch.tensor([[1.0, -0.5, -2.0], [0.2, 0.1, -1.0]])
    log_p = logits.double().log_softmax(-1).numpy()
    options = TrainOptions(label_smoothing=0.2)
    soft = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    found = loop.loss_of(logits, torch.tensor(soft).float(), options)
    assert float(found) == pytest.approx(-((0.8 * soft + 0.2 / 3) * log_p).sum(), abs=1e-5)
    decided = np.array([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0]])
    found = loop.loss_of(logits, torch.tensor(decided).float(), options, ties=False)
    assert TIE == 2
    assert float(found) == pytest.approx(-((0.8 * decided + [0.1, 0.1, 0.0]) * log_p).sum(), abs=1e-5)

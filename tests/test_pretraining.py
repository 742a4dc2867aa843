"""``--pretrain``: masked language modelling on the training battles' text, exact when resumed, never held-out text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Result, make_language_model

import prefcli
from prefcli import encoders
from prefcli.compute import devices
from prefcli.compute.distributed import World
from prefcli.data import synthetic
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.models import neural
from prefcli.models.tokens import TokenisedBattles, tokenise
from prefcli.options import TrainOptions
from prefcli.readers import open_battles
from prefcli.reporting import SILENT
from prefcli.training import loop, pretraining

OPTIONS = TrainOptions(max_length=64, batch_size=8, pretrain=3, pretrain_lr=1e-3, log_every=1, precision="fp32")
QUICK = {
    "limit": 60,
    "max_length": 32,
    "batch_size": 8,
    "max_steps": 6,
    "log_every": 1,
    "checkpoint_every": 4,
    "text": "raw",
}


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Path:
    """A folder as save_pretrained writes a masked language model, head included; its tokenizer has a mask token."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("masked")
    words = " ".join((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))
    tokenizer = encoders.train_tokenizer([words] * 3, mask=True)
    tokenizer.save_pretrained(folder)
    config = BertConfig.from_pretrained(bert_folder, vocab_size=len(tokenizer))
    torch.manual_seed(5)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def headless_folder(tmp_path_factory: pytest.TempPathFactory, masked_folder: Path) -> Path:
    """The same encoder without a head."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("headless")
    encoders.load_tokenizer(masked_folder).save_pretrained(folder)
    BertModel.from_pretrained(masked_folder, add_pooling_layer=False).save_pretrained(folder)
    return folder


def tokenised(folder: Path, demo_files: Demo) -> TokenisedBattles:
    tokenizer = encoders.load_tokenizer(folder)
    return tokenise(tokenizer, (batch for batch, _ in open_battles(demo_files.train).batches()))


def a_spec(run: Path, folder: Path, battles: TokenisedBattles, options: TrainOptions = OPTIONS) -> loop.FitSpec:
    located = encoders.locate(str(folder))
    tokenizer = encoders.make_tokenizer(located, [])
    encoder = encoders.make_encoder(located, len(tokenizer), seed=options.seed)
    torch.manual_seed(options.seed)
    model = neural.build(options, encoder, tokenizer, options.max_length, devices.place("cpu", options.precision))
    rows = np.arange(40)
    targets = np.eye(3, dtype=np.float32)[battles.labels[:40]]
    return loop.FitSpec(model, battles.take(rows), targets, None, options, run, SILENT)


def masked_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["masked_lm_loss"] for line in lines if "masked_lm_loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_the_losses_equal_those_of_transformers_own_class_in_plain_torch(
    tmp_path: Path, demo_files: Demo, headless_folder: Path, deberta_folder: Path, family: str
) -> None:
    """Three steps by hand, of prefcli only the masked sequences; dropout apart, whose draws differ."""
    from transformers import AutoModelForMaskedLM

    folder = headless_folder if family == "bert" else deberta_folder
    spec = a_spec(tmp_path, folder, tokenised(folder, demo_files))
    work = pretraining._Pretraining(spec, encoders.locate(str(folder)))
    steps = [work._prepare(step)[1] for step in range(3)]
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).train()
    for module in (model, work.module):
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
    optimizer = torch.optim.AdamW([
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ])  # fmt: skip
    expected = []
    for step, [masked] in enumerate(steps):
        inputs = {name: value for name, value in masked.inputs.items() if name != "spans"}
        loss = model(**inputs, labels=masked.labels).loss
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (3 - step) / 3
        optimizer.step()
    work.run(None)
    assert masked_losses(tmp_path) == pytest.approx(expected, abs=2e-5)
    trained = work.encoder.state_dict()
    for name, tensor in model.base_model.state_dict().items():
        assert torch.allclose(trained[name], tensor, atol=2e-4), name


def test_a_seventh_of_the_tokens_is_masked_but_no_special_one_and_no_padding(
    tmp_path: Path, demo_files: Demo, masked_folder: Path
) -> None:
    spec = a_spec(tmp_path, masked_folder, tokenised(masked_folder, demo_files), replace(OPTIONS, batch_size=40))
    work = pretraining._Pretraining(spec, encoders.locate(str(masked_folder)))
    tokenizer, share, kinds, total = spec.model.tokenizer, [], np.zeros(3), 0
    for step in range(40):
        _, passes = work._prepare(step)
        for each in passes:
            plain = torch.where(each.labels == pretraining.NOT_MASKED, each.inputs["input_ids"], each.labels)
            special = torch.isin(plain, torch.tensor(tokenizer.all_special_ids))
            assert bool((special | (each.inputs["attention_mask"] == 1)).all())
            chosen = each.labels != pretraining.NOT_MASKED
            assert not bool((chosen & special).any())
            share.append(float(chosen.sum() / (~special).sum()))
            ids, labels = each.inputs["input_ids"][chosen], each.labels[chosen]
            is_mask, is_kept = ids == tokenizer.mask_token_id, ids == labels
            kinds += [int(is_mask.sum()), int((~is_mask & ~is_kept).sum()), int(is_kept.sum())]
            total += len(ids)
    assert np.mean(share) == pytest.approx(0.15, abs=0.01)
    assert kinds / total == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    again, other = work._prepare(3)[1][0].inputs["input_ids"], work._prepare(4)[1][0].inputs["input_ids"]
    assert torch.equal(again, work._prepare(3)[1][0].inputs["input_ids"])
    assert not torch.equal(again, other)


@pytest.mark.slow
def test_the_loss_falls_and_the_fit_starts_from_the_pretrained_encoder_bit_for_bit(
    demo_files: Demo, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    fit, pretrain = loop.fit, pretraining.pretrain

    def copy(spec: loop.FitSpec) -> None:
        states.append({name: tensor.clone() for name, tensor in spec.model.module.state_dict().items()})

    def watched_pretrain(spec: loop.FitSpec, *arguments: Any) -> float:
        copy(spec)
        rate = pretrain(spec, *arguments)
        copy(spec)
        assert all(parameter.grad is None for parameter in spec.model.module.parameters())
        return rate

    def watched_fit(spec: loop.FitSpec) -> loop.LoopResult:
        copy(spec)
        return fit(spec)

    monkeypatch.setattr(pretraining, "pretrain", watched_pretrain)
    monkeypatch.setattr(loop, "fit", watched_fit)
    flags = (
        "--encoder",
        "tiny",
        "--max-length",
        "32",
        "--max-steps",
        "1",
        "--pretrain",
        "20",
        "--log-every",
        "5",
        "--limit",
        "80",
    )
    result = cli("train", demo_files.train, *flags, "--text", "raw", "--output", "run")
    assert result.code == 0, result.err
    before, after, start = states
    assert all(torch.equal(after[name], start[name]) for name in start)
    assert all(torch.equal(before[name], after[name]) for name in ("classifier.weight", "classifier.bias"))
    embeddings = "encoder.embeddings.word_embeddings.weight"
    assert not torch.equal(before[embeddings], after[embeddings])
    losses = masked_losses(Path("run"))
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.3
    said = f"pre-trained for 20 steps: loss of masked tokens {losses[0]:.4f} -> {losses[-1]:.4f}"
    assert said in result.err
    assert "20 steps of 16 battles by masked language modelling" in Path("run", "README.md").read_text()
    config = json.loads(Path("run", "config.json").read_text())
    assert (config["options"]["pretrain"], config["resolved"]["pretrain_lr"]) == (20, 1e-3)
    steps = [json.loads(line)["step"] for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    assert steps[:5] == [-15, -10, -5, 0, 1]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_training_that_is_killed_during_or_after_pretraining_ends_in_the_same_bytes(
    demo_files: Demo, masked_folder: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a checkpoint of the pre-training, in the fit's first step, and after the fit's first checkpoint."""
    options: dict[str, Any] = {"encoder": str(masked_folder), "pretrain": 6, "validation": 0.2, **QUICK}
    prefcli.train(demo_files.train, output="whole", **options)
    write = loop.MetricsLog.write
    for stop, message in (
        (-1, "resumed at step 4 of 6 of the pre-training"),
        (1, "resumed at step 6 of 6 of the pre-training"),
        (5, "resumed at step 4 of 6\n"),
    ):
        run = Path(f"stopped-{stop}")

        def kill(log: loop.MetricsLog, stop: int = stop, **record: Any) -> None:
            if record["step"] == stop:
                raise Killed
            write(log, **record)

        monkeypatch.setattr(loop.MetricsLog, "write", kill)
        with pytest.raises(Killed):
            prefcli.train(demo_files.train, output=run, **options)
        monkeypatch.setattr(loop.MetricsLog, "write", write)
        resumed = cli("train", "--resume", run)
        assert resumed.code == 0, resumed.err
        assert message in resumed.err
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (run / name).read_bytes() == Path("whole", name).read_bytes(), (stop, name)
        assert not (run / "checkpoints").exists()


@pytest.mark.slow
def test_each_fold_reads_its_training_battles_only(
    demo_files: Demo, masked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[tuple[int, ...]]] = []
    prepare = neural.NeuralModel.prepare
    in_pretraining = False

    def watched(model: Any, battles: TokenisedBattles, rows: Any, orders: Any) -> Any:
        if in_pretraining:
            read[-1] += [tuple(battles.columns[0][row].tolist()) for row in rows]
        return prepare(model, battles, rows, orders)

    pretrain = pretraining.pretrain

    def watched_pretrain(*arguments: Any) -> float:
        nonlocal in_pretraining
        read.append([])
        in_pretraining = True
        rate = pretrain(*arguments)
        in_pretraining = False
        return rate

    monkeypatch.setattr(neural.NeuralModel, "prepare", watched)
    monkeypatch.setattr(pretraining, "pretrain", watched_pretrain)
    options: dict[str, Any] = {"encoder": str(masked_folder), "pretrain": 6, "folds": 2, **QUICK, "max_steps": 1}
    prefcli.train(demo_files.train, output="run", **options)
    tokenizer = encoders.load_tokenizer(masked_folder)
    battles = next(b for b, _ in open_battles(demo_files.train).batches()).to_pylist()
    ids_of = {
        row["id"]: tuple(tokenizer("\n".join(row["prompt"]), add_special_tokens=False)["input_ids"]) for row in battles
    }
    held_out = []
    for fold in ("fold-1", "fold-2"):
        names = pq.read_table(Path("run", fold, "validation.parquet"))["id"].to_pylist()
        held_out.append({ids_of[name] for name in names})
    assert [set(prompts) for prompts in read] == held_out[::-1]
    assert not held_out[0] & held_out[1]


def test_the_head_is_read_from_the_files_or_said_to_be_new(headless_folder: Path, masked_folder: Path) -> None:
    from transformers import BertForMaskedLM

    notes: list[str] = []
    reporter: Any = SimpleNamespace(note=notes.append)
    for folder in (headless_folder, masked_folder):
        located = encoders.locate(str(folder))
        encoder = encoders.make_encoder(located, 0, seed=0)
        model = encoders.masked_language_model(encoder, located, seed=0, reporter=reporter)
        assert model.base_model is encoder
        assert model.get_output_embeddings().weight is encoder.get_input_embeddings().weight
    expected = BertForMaskedLM.from_pretrained(masked_folder).cls.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.cls.state_dict().items())
    new, read = notes
    assert new.startswith("the masked language model's head is new: cls.predictions.bias, ")
    assert new.endswith("drawn at random")
    assert read == "the encoder's folder holds a masked language model: its head (cls) is read"


def test_what_cannot_be_pretrained_is_refused_with_what_can_be_done(
    tmp_path: Path, demo_files: Demo, bert_folder: Path, cli: Callable[..., Result]
) -> None:
    decoder = make_language_model(tmp_path / "lm", "llama")
    result = cli("train", demo_files.train, "--encoder", decoder, "--pretrain", "5", "--text", "raw")
    assert result.code == 2
    assert f"--pretrain: transformers has no masked language model for {decoder} (llama)" in result.err
    assert "Leave --pretrain out, or choose an encoder with one: BERT" in result.err
    for flags, message in (
        (("--lora-rank", "4"), "--pretrain trains all weights of the encoder, --lora-rank none of them: leave one out"),
        (("--architecture", "reward"), "--pretrain is for --architecture siamese and cross-encoder"),
        (("--architecture", "features"), "--pretrain: not used by --architecture features"),
        (("--shard",), "--pretrain runs in one process, --shard in several: leave one out"),
    ):
        refused = cli("train", demo_files.train, "--encoder", bert_folder, "--pretrain", "5", *flags)
        assert refused.code == 2
        assert message in refused.err
    alone = cli("train", demo_files.train, "--encoder", bert_folder, "--pretrain-lr", "1e-4")
    assert "--pretrain-lr is not used without --pretrain N" in alone.err
    located = encoders.locate(str(bert_folder))
    tokenizer = encoders.load_tokenizer(bert_folder)
    with pytest.raises(InputError, match="torchrun started several"):
        pretraining.check(located, "bert", tokenizer, World(0, 2))
    with pytest.raises(InputError, match="the tokenizer of bert has no mask token"):
        pretraining.check(located, "bert", tokenizer, World())


@pytest.mark.slow
def test_an_estimate_includes_it(demo_files: Demo, cli: Callable[..., Result]) -> None:
    flags = (
        "--encoder",
        "tiny",
        "--max-length",
        "32",
        "--batch-size",
        "4",
        "--max-steps",
        "6",
        "--pretrain",
        "2000",
        "--json",
    )
    estimate = cli("train", demo_files.train, *flags, "--estimate").json()
    assert estimate["estimate"]["parts"]["pre-training"] > 10 * estimate["estimate"]["parts"]["training"]

"""The loop: equal to a hand-written one, exact when resumed, careful with overflow, and alike on several ranks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Result, run_ranks, start_process
from torch.distributed.elastic.multiprocessing import errors

from prefcli import encoders
from prefcli.compute import devices, distributed
from prefcli.compute.distributed import World
from prefcli.data.synthetic import Demo
from prefcli.errors import Interrupted, PrefcliError
from prefcli.models import neural, tokens
from prefcli.models import weights as model_weights
from prefcli.models.tokens import TokenisedBattles, tokenise
from prefcli.options import TrainOptions
from prefcli.prediction import inference
from prefcli.readers import open_battles
from prefcli.reporting import SILENT
from prefcli.training import checkpoints, loop

OPTIONS = TrainOptions(
    encoder="tiny", max_length=64, batch_size=8, lr=1e-3, checkpoint_every=4, eval_every=5, log_every=1
)


@pytest.fixture(scope="module")
def battles(demo_files: Demo, bert_folder: Path) -> TokenisedBattles:
    tokenizer = encoders.load_tokenizer(bert_folder)
    return tokenise(tokenizer, (batch for batch, _ in open_battles(demo_files.train).batches()))


def a_spec(
    folder: Path, battles: TokenisedBattles, bert_folder: Path, options: TrainOptions = OPTIONS, **more: Any
) -> loop.FitSpec:
    placement = devices.place("cpu", options.precision)
    located = encoders.locate(str(bert_folder))
    tokenizer = encoders.make_tokenizer(located, [])
    encoder = encoders.make_encoder(located, len(tokenizer), seed=options.seed)
    torch.manual_seed(options.seed)
    model = neural.build(options, encoder, tokenizer, options.max_length, placement)
    rows = np.arange(len(battles))
    return loop.FitSpec(
        model=model, train=battles.take(rows[:100]), targets=np.eye(3, dtype=np.float32)[battles.labels[:100]],
        validation=battles.take(rows[100:160]), options=options, folder=folder, reporter=SILENT, **more,
    )  # fmt: skip


class Recorder:
    """A reporter that remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        pass

    track = SILENT.track


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder) if "loss" in record]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_first_losses_equal_a_hand_written_loop(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, demo_files: Demo
) -> None:
    """The baseline's training in plain torch and transformers; of prefcli only the order of the battles."""
    from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

    # Faster layers draw other dropout; that they change nothing else has tests of its own.
    options = replace(OPTIONS, epochs=1, warmup=0.2, weight_decay=0.0, seed=3, fast_attention=False)
    loop.fit(a_spec(tmp_path, battles, bert_folder, options))

    texts = next(b for b, _ in open_battles(demo_files.train).batches()).to_pylist()[:100]
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    encoder = AutoModel.from_pretrained(bert_folder).train()
    torch.manual_seed(3)
    head = torch.nn.Linear(2 * encoder.config.hidden_size, 3)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.2 * 13), 13)
    torch.manual_seed(4)
    order = np.random.default_rng([3, 0]).permutation(100)
    expected = []
    for start in range(0, 80, 8):
        rows = [texts[i] for i in order[start : start + 8]]
        rows.sort(key=lambda r: -max(len(tokenizer("\n".join(r["prompt"]), "\n".join(r[k]), truncation=True, max_length=64)["input_ids"]) for k in ("response_a", "response_b")))  # fmt: skip  # noqa: E501
        pooled = []
        sequences = [("\n".join(r["prompt"]), "\n".join(r[k])) for k in ("response_a", "response_b") for r in rows]
        inputs = tokenizer(sequences, truncation="longest_first", max_length=64, padding=True, return_tensors="pt")
        hidden = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits = head(torch.cat(pooled.chunk(2), dim=-1))
        loss = torch.nn.CrossEntropyLoss()(logits, torch.tensor([r["label"] for r in rows]).long())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        expected.append(loss.item())
    assert losses(tmp_path)[:10] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["bert", "deberta"])
@pytest.mark.parametrize("architecture", ["siamese", "cross-encoder"])
def test_fast_attention_gives_the_losses_of_transformers_own(
    tmp_path: Path, demo_files: Demo, bert_folder: Path, deberta_folder: Path, encoder: str, architecture: str
) -> None:
    """The first 20 steps, dropout apart: its draws differ by intention."""
    folder = bert_folder if encoder == "bert" else deberta_folder
    tokenizer = encoders.load_tokenizer(folder)
    battles = tokenise(tokenizer, (batch for batch, _ in open_battles(demo_files.train).batches()))
    curves = []
    for fast in (True, False):
        options = replace(OPTIONS, fast_attention=fast, architecture=architecture, epochs=2, eval_every=0)
        spec = a_spec(tmp_path / str(fast), battles, folder, options)
        for module in spec.model.module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert ("fast attention" in spec.model.attention) == (fast and encoder == "deberta")
        fitted = loop.fit(spec)
        assert fitted.logits is not None
        curves.append([*losses(tmp_path / str(fast))[:20], *fitted.logits.ravel().tolist()])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        loop.fit(a_spec(tmp_path / str(number), battles, bert_folder, replace(OPTIONS, seed=seed)))
        digests.append(weights(tmp_path / str(number)))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 4, 5, 9, 13, 17])
def test_a_stopped_training_resumes_to_the_same_bytes(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, stop: int
) -> None:
    """Stopped before the first checkpoint, at one, at a validation, between, and in the second epoch."""

    class Killed(Exception):
        pass

    def kill(state: loop.TrainState) -> None:
        if state.steps == stop:
            raise Killed

    options = replace(OPTIONS, epochs=2, log_every=3)
    loop.fit(a_spec(tmp_path / "whole", battles, bert_folder, options))
    with pytest.raises(Killed):
        loop.fit(a_spec(tmp_path / "stopped", battles, bert_folder, options, on_step_end=kill))
    resumed = loop.fit(a_spec(tmp_path / "stopped", battles, bert_folder, options, resume=True))
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert resumed.state.steps == 26
    # A finished training that is resumed does nothing and says the same.
    again = loop.fit(a_spec(tmp_path / "stopped", battles, bert_folder, options, resume=True))
    assert again.state == resumed.state
    assert np.array_equal(again.logits, resumed.logits)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_prints_how_to_continue(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, number: int
) -> None:
    def interrupt(state: loop.TrainState) -> None:
        if state.steps == 5:  # noticed with the next step
            os.kill(os.getpid(), number)

    loop.fit(a_spec(tmp_path / "whole", battles, bert_folder))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        loop.fit(a_spec(tmp_path / "stopped", battles, bert_folder, on_step_end=interrupt))
    assert stopped.value.exit_code == 128 + number
    assert "--resume" in stopped.value.hint
    assert signal.getsignal(number) == before
    assert checkpoints.existing(tmp_path / "stopped" / "checkpoints")[-1].name == "step-00000006"
    loop.fit(a_spec(tmp_path / "stopped", battles, bert_folder, resume=True))
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_only_the_last_two_checkpoints_stay_and_a_damaged_one_is_skipped(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    def stop(state: loop.TrainState) -> None:
        if state.steps == 12:
            raise KeyboardInterrupt

    loop.fit(a_spec(tmp_path / "whole", battles, bert_folder))
    with pytest.raises(KeyboardInterrupt):
        loop.fit(a_spec(tmp_path / "run", battles, bert_folder, on_step_end=stop))
    kept = checkpoints.existing(tmp_path / "run" / "checkpoints")
    assert [p.name for p in kept] == ["step-00000004", "step-00000008"]
    optimizer = kept[-1] / "optimizer.safetensors"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    warnings: list[str] = []
    held = checkpoints.load_latest(tmp_path / "run" / "checkpoints", warnings.append)
    assert held is not None
    assert held.state["position"]["steps"] == 4
    assert "optimizer.safetensors" in warnings[0]
    loop.fit(a_spec(tmp_path / "run", battles, bert_folder, resume=True))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    loop.fit(a_spec(tmp_path, battles, bert_folder))
    for path in checkpoints.existing(tmp_path / "checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.raises(PrefcliError, match="all checkpoints are damaged"):
        loop.fit(a_spec(tmp_path, battles, bert_folder, resume=True))


def test_damaged_kept_weights_are_refused_before_training_continues(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    def stop(state: loop.TrainState) -> None:
        if state.steps == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fit(a_spec(tmp_path, battles, bert_folder, on_step_end=stop))
    kept = tmp_path / "model.safetensors"
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(content)
    with pytest.raises(PrefcliError, match="weights kept so far are damaged"):
        loop.fit(a_spec(tmp_path, battles, bert_folder, resume=True, on_step_end=stop))


def test_kept_weights_and_their_logits_agree_wherever_keeping_is_interrupted(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefcli.storage import files

    spec = a_spec(tmp_path, battles, bert_folder)
    first, second = np.full((2, 4, 3), 1.0), np.full((2, 4, 3), 2.0)
    loop._keep(spec, first)
    with torch.no_grad():
        spec.model.module.classifier.weight += 1
    replace_, calls = os.replace, []

    def dies(source: Any, target: Any) -> None:
        calls.append(target)
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt  # what is said of both weights lies there, the new weights do not
        replace_(source, target)

    monkeypatch.setattr(files.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        loop._keep(spec, second)
    monkeypatch.undo()
    assert len(calls) == 2
    assert np.array_equal(loop.kept_logits(tmp_path), first)
    loop._keep(spec, second)
    assert np.array_equal(loop.kept_logits(tmp_path), second)


def test_an_overflow_skips_exactly_that_step(tmp_path: Path, battles: TokenisedBattles, bert_folder: Path) -> None:
    """On the float16 path: weights and schedule untouched, the scale halved, the step counted."""
    options = replace(OPTIONS, precision="fp16", eval_every=0)
    spec = a_spec(tmp_path, battles, bert_folder, options)
    module = spec.model.module
    weight = module.classifier.weight
    inject = {"now": False}
    weight.register_hook(lambda gradient: gradient * math.inf if inject["now"] else gradient)
    seen: list[torch.Tensor] = []

    def watch(state: loop.TrainState) -> None:
        seen.append(torch.cat([p.detach().flatten() for p in module.parameters()]).clone())
        inject["now"] = state.steps == 3  # the fourth step overflows
        if state.steps == 6:
            raise KeyboardInterrupt

    spec.on_step_end = watch
    with pytest.raises(KeyboardInterrupt):
        loop.fit(spec)
    lines = records(tmp_path)
    assert [r["skipped"] for r in lines] == [False, False, False, True, False, False]
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[3], seen[4])
    assert lines[4]["scale"] == lines[3]["scale"] / 2
    assert lines[4]["lr"] == lines[3]["lr"]
    assert lines[5]["lr"] < lines[4]["lr"]


@pytest.mark.slow
def test_fp16_trains_to_about_the_same_loss(tmp_path: Path, battles: TokenisedBattles, bert_folder: Path) -> None:
    for precision in ("fp32", "fp16", "bf16"):
        options = replace(OPTIONS, precision=precision)
        fitted = loop.fit(a_spec(tmp_path / precision, battles, bert_folder, options))
        assert fitted.state.skipped <= 2
    assert losses(tmp_path / "fp16") == pytest.approx(losses(tmp_path / "fp32"), abs=0.02)
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), abs=0.05)


@pytest.mark.parametrize(
    ("isa_limit", "precision"), [(None, "bf16"), ("AVX512_CORE_AMX", "bf16"), ("AVX512_CORE", "fp32")]
)
def test_auto_is_bf16_on_a_cpu_whose_amx_onednn_may_use(
    isa_limit: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : avx512f amx_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa_limit or "DEFAULT")
    assert devices.place("cpu").precision == precision


def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    spec = a_spec(tmp_path, battles, bert_folder)
    spec.model.module.classifier.bias.data.fill_(math.nan)
    with pytest.raises(PrefcliError, match="no longer a number at step 1") as stopped:
        loop.fit(spec)
    assert "--lr" in stopped.value.hint


def test_a_checkpoint_never_holds_weights_that_are_no_numbers(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    spec = a_spec(tmp_path, battles, bert_folder, replace(OPTIONS, log_every=10, eval_every=0))
    broken = {"now": False}
    spec.model.module.classifier.weight.register_hook(lambda g: g * math.nan if broken["now"] else g)

    def break_step_8(state: loop.TrainState) -> None:
        broken["now"] = state.steps == 7

    spec.on_step_end = break_step_8
    with pytest.raises(PrefcliError, match="no longer a number at step 8"):
        loop.fit(spec)
    assert [path.name for path in checkpoints.existing(tmp_path / "checkpoints")] == ["step-00000004"]


def break_validation_from(spec: loop.FitSpec, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the validation after a step on, one battle's logits in the swapped order overflow."""
    compute, state = spec.model.compute, {"steps": 0}

    def overflowing(prepared: Any) -> Any:
        logits = compute(prepared)
        if state["steps"] >= step - 1 and 7 in prepared.rows:
            logits[len(prepared.rows) + int(np.flatnonzero(prepared.rows == 7)[0])] = math.nan
        return logits

    monkeypatch.setattr(spec.model, "compute", overflowing)
    spec.on_step_end = lambda reached: state.update(steps=reached.steps)


def test_a_validation_without_numbers_names_the_battle_and_ends_with_the_kept_weights(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.fit(a_spec(tmp_path / "plain", battles, bert_folder, replace(OPTIONS, max_steps=5)))
    recorder = Recorder()
    spec = a_spec(tmp_path / "broken", battles, bert_folder, validation_ids=[f"vote-{n}" for n in range(60)])
    spec.reporter = recorder
    break_validation_from(spec, 10, monkeypatch)
    result = loop.fit(spec)
    assert any("logits of 1 validation battle are not finite numbers (the first is battle vote-7)" in w
               and "the weights kept at step 5" in w for w in recorder.warnings)  # fmt: skip
    assert (result.state.steps, result.state.best_step, result.state.finished) == (10, 5, True)
    assert np.isfinite(result.logits).all()
    assert np.isfinite(result.swapped).all()
    assert plain.logits.shape == result.logits.shape
    module = spec.model.module
    model_weights.load_state_dict(module, model_weights.load(tmp_path / "broken" / "model.safetensors"))
    monkeypatch.undo()
    both = loop.predict_shared(spec, spec.validation, both_orders=True)
    assert np.allclose(both[0], result.logits, atol=1e-6)
    assert np.allclose(both[1][:, [1, 0, 2]], result.swapped, atol=1e-6)


def test_without_kept_weights_a_validation_without_numbers_is_an_error(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = a_spec(tmp_path, battles, bert_folder)
    break_validation_from(spec, 5, monkeypatch)
    with pytest.raises(PrefcliError, match=r"step 5.*battle number 8\), and no weights have been kept") as refused:
        loop.fit(spec)
    assert "--precision fp32" in refused.value.hint


def test_without_ties_the_validation_loss_is_that_of_two_outcomes(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    decided = battles.take(np.flatnonzero(battles.labels < 2))
    spec = a_spec(tmp_path, decided, bert_folder, replace(OPTIONS, max_steps=5), unseen=(2,))
    result = loop.fit(spec)
    a, b, tie = np.exp(result.logits - np.logaddexp.reduce(result.logits, axis=1, keepdims=True)).T
    assert tie == pytest.approx(0.01)
    expected = -np.log(np.where(spec.validation.labels == 0, a, b) / (a + b)).mean()
    assert records(tmp_path)[-1]["validation_log_loss"] == pytest.approx(expected)


@pytest.mark.slow
def test_endless_overflow_stops_the_training(tmp_path: Path, battles: TokenisedBattles, bert_folder: Path) -> None:
    spec = a_spec(tmp_path, battles, bert_folder, replace(OPTIONS, precision="fp16", epochs=3))
    spec.model.module.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(PrefcliError, match="overflowed in 20 steps in a row"):
        loop.fit(spec)


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    for at_most in (0, 1, 3):
        spec = a_spec(tmp_path / str(at_most), battles, bert_folder, replace(OPTIONS, micro_batch=at_most))
        for part in spec.model.module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        loop.fit(spec)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "0"), abs=1e-5)
    assert losses(tmp_path / "3") == pytest.approx(losses(tmp_path / "0"), abs=1e-5)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, battles: TokenisedBattles, bert_folder: Path) -> None:
    for name, options in (("off", OPTIONS), ("on", replace(OPTIONS, gradient_checkpointing=True))):
        loop.fit(a_spec(tmp_path / name, battles, bert_folder, options))
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), abs=1e-5)


@pytest.mark.slow
def test_the_kept_weights_are_those_of_the_best_validation(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    spec = a_spec(tmp_path, battles, bert_folder, replace(OPTIONS, epochs=3))

    def spoil(state: loop.TrainState) -> None:
        if state.steps > 15:  # what is learnt after this is worse than what was learnt before
            spec.model.module.classifier.bias.data += torch.tensor([3.0, -3.0, 0.0])

    spec.on_step_end = spoil
    fitted = loop.fit(spec)
    validations = {r["step"]: r["validation_log_loss"] for r in records(tmp_path) if "validation_log_loss" in r}
    best = min(validations, key=lambda step: validations[step])
    assert fitted.state.best_step == best
    assert best != max(validations)  # or this test would show nothing

    model_weights.load_state_dict(spec.model.module, model_weights.load(tmp_path / "model.safetensors"))
    assert np.allclose(loop.predict_shared(spec, spec.validation)[0], fitted.logits, atol=1e-6)


@pytest.mark.slow
def test_a_log_line_is_the_mean_since_the_line_before_and_validations_have_one(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    for every in (1, 4):
        loop.fit(a_spec(tmp_path / str(every), battles, bert_folder, replace(OPTIONS, log_every=every)))
    each, lines = losses(tmp_path / "1"), records(tmp_path / "4")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [4, 5, 8, 10, 12, 13]
    expected = [np.mean(each[before:step]) for before, step in zip([0, *steps], steps, strict=False)]
    assert losses(tmp_path / "4") == pytest.approx(expected, abs=1e-6)
    assert weights(tmp_path / "4") == weights(tmp_path / "1")


@pytest.mark.slow
def test_max_steps_ends_the_training_and_its_schedule(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    result = loop.fit(a_spec(tmp_path, battles, bert_folder, replace(OPTIONS, epochs=3, max_steps=18)))
    assert result.state.steps == 18
    assert result.logits is not None
    rates = [record["lr"] for record in records(tmp_path) if "lr" in record]
    assert rates == pytest.approx([1e-3 * (18 - step) / 18 for step in range(18)])


@pytest.mark.slow
def test_the_progress_bar_ends_where_the_training_does(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    spec = a_spec(tmp_path, battles, bert_folder, replace(OPTIONS, epochs=2, max_steps=18))  # 13 batches an epoch
    expected = len(spec.train) + 5 * OPTIONS.batch_size
    assert spec.battles_until(spec.total_steps) == expected == loop.fit(spec).state.battles


def test_max_time_ends_the_training_with_a_validation(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path
) -> None:
    options = replace(OPTIONS, epochs=100_000, max_time=0.02, eval_every=0, log_every=1000)
    result = loop.fit(a_spec(tmp_path, battles, bert_folder, options))
    assert result.state.finished
    assert result.state.elapsed > 1.2
    assert records(tmp_path)[-1]["validation_log_loss"] == pytest.approx(result.state.best, abs=0.5)
    assert records(tmp_path)[-2]["step"] == records(tmp_path)[-1]["step"] == result.state.steps
    assert checkpoints.existing(tmp_path / "checkpoints")[-1].name == f"step-{result.state.steps:08d}"


@pytest.mark.slow
def test_patience_stops_early(tmp_path: Path, battles: TokenisedBattles, bert_folder: Path) -> None:
    options = replace(OPTIONS, epochs=50, lr=0.05, eval_every=0, patience=2)
    fitted = loop.fit(a_spec(tmp_path, battles, bert_folder, options))
    assert fitted.state.stale == 2
    assert fitted.state.epoch < 50


def test_the_schedule_rises_then_falls_to_zero() -> None:
    rates = [loop.learning_rate(step, 10, 1.0, 0.2) for step in range(11)]
    assert rates == pytest.approx([0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])
    assert loop.learning_rate(0, 10, 1.0, 0.0) == 1.0


def test_biases_and_norms_do_not_decay(battles: TokenisedBattles, bert_folder: Path, tmp_path: Path) -> None:
    spec = a_spec(tmp_path, battles, bert_folder)
    optimizer = loop.make_optimizer(spec.model.module, OPTIONS)
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in spec.model.module.named_parameters():
        assert (id(parameter) in free) == ("bias" in name or "LayerNorm" in name), name


@pytest.mark.parametrize("architecture", ["siamese", "cross-encoder"])
def test_swap_shows_both_orders_with_swapped_labels(
    battles: TokenisedBattles, bert_folder: Path, tmp_path: Path, architecture: str
) -> None:
    """The step's loss is that of twice as many battles, the added ones with answers and labels exchanged."""
    options = replace(OPTIONS, swap=True, architecture=architecture)
    spec = a_spec(tmp_path, battles, bert_folder, options)
    prompt, a, b = battles.columns
    doubled = TokenisedBattles(
        tuple(tokens.Ragged.concatenate(pair) for pair in ((prompt, prompt), (a, b), (b, a))),
        labels=np.concatenate([battles.labels, np.array([1, 0, 2])[battles.labels]]),
    )
    n = len(battles)
    plain = a_spec(tmp_path, battles, bert_folder, replace(options, swap=False))
    plain.train, plain.targets = doubled, np.eye(3, dtype=np.float32)[doubled.labels]
    plain.lengths = plain.model.lengths(doubled)
    gradients = []
    for one, rows in ((spec, np.arange(8)), (plain, np.concatenate([np.arange(8), n + np.arange(8)]))):
        module = one.model.module
        for layer in module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        optimizer = loop.make_optimizer(module, OPTIONS)
        scaler = loop.make_scaler(one.model.placement)
        loss = loop.forward_backward(one, module, optimizer, scaler, rows, one.prepare(rows))
        loop.update(module, optimizer, scaler, 0.0, OPTIONS.clip)
        gradients.append(
            (float(loss), torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        )
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-6)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-6)


@pytest.mark.parametrize("loss_input", ["softmax", "log-softmax"])
def test_the_loss_inputs_of_the_ablation_match_cross_entropy(loss_input: str) -> None:
    logits, labels = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    targets = torch.nn.functional.one_hot(labels, 3).float()
    found = loop.loss_of(logits, targets, replace(OPTIONS, loss_input=loss_input))
    plain = torch.nn.CrossEntropyLoss(reduction="sum")
    expected = plain(logits.softmax(-1), labels) if loss_input == "softmax" else plain(logits, labels)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


# Several processes


@pytest.mark.parametrize(("ranks", "rows"), [(2, 32), (3, 64), (8, 61), (4, 3)])
def test_processes_share_a_batch_so_that_each_has_about_as_many_tokens(
    tmp_path: Path, battles: TokenisedBattles, bert_folder: Path, ranks: int, rows: int
) -> None:
    spec = a_spec(tmp_path, battles, bert_folder, world=World(0, ranks))
    spec.lengths = np.random.default_rng(ranks).lognormal(5, 1, len(spec.train)).astype(np.int64)
    batch = np.random.default_rng(1).permutation(len(spec.train))[:rows]
    shares = [spec.share(batch, rank) for rank in range(ranks)]
    assert sorted(np.concatenate(shares[:rows])) == sorted(batch)
    assert all(list(share) == list(batch[:1]) for share in shares[rows:])  # they take part with weight 0
    tokens_of = [spec.lengths[share].sum() for share in shares[:rows]]
    assert max(tokens_of) - min(tokens_of) <= spec.lengths[batch].max()
    at_random = [spec.lengths[batch[rank::ranks]].sum() for rank in range(min(ranks, rows))]
    assert max(tokens_of) <= max(at_random)
    assert list(a_spec(tmp_path, battles, bert_folder).share(batch, 0)) == list(batch)  # alone: the order of the epoch


def test_a_small_file_is_predicted_by_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [pa.record_batch({"id": [str(10 * group + row) for row in range(10)]}) for group in range(3)]
    stage, predicted = SimpleNamespace(batches=lambda: iter(groups)), {}

    def predict(member: Any, batch: pa.RecordBatch, **options: Any) -> Any:
        return np.stack([np.array(batch["id"].to_pylist(), dtype=float)] * 3, axis=1)

    monkeypatch.setattr(inference, "predict_batch", predict)
    for total in (25, 7):
        for rank in range(4):
            monkeypatch.setattr(World, "gather", lambda self, value: [value])
            own = inference.stream(["a run"], [stage], total, world=World(rank, 4))
            predicted[rank] = [number for ids, [numbers] in own for number in numbers[:, 0]]
        # Of these three row groups; a rank alone sees only its own part, so it asks for more.
        parts = [predicted[rank][: total * (rank + 1) // 4 - total * rank // 4] for rank in range(4)]
        assert [number for part in parts for number in part] == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:40595: Connection reset by peer. This is", True),
        ("Timed out waiting 1800000ms for recv operation to complete (gloo)", True),
        ("NCCL error in: ProcessGroupNCCL.cpp:328, unhandled cuda error: out of memory", False),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_the_loss_of_another_process_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, message: str, lost: bool
) -> None:
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *arguments, **options: None)
    with pytest.raises(RuntimeError if not lost else PrefcliError) as raised, distributed.process_group(World(0, 2)):
        raise RuntimeError(message)
    if lost:
        reason = message.removeprefix("[gloo/transport/tcp/pair.cc:537] ")
        assert raised.value.what == f"another of the 2 processes ended or cannot be reached ({reason})"
        assert "Call the same command again" in raised.value.hint


def test_two_processes_on_one_gpu_are_not_taken_for_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *arguments, **options: None)
    message = (
        "NCCL error in: NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1a000"
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(PrefcliError, match="more processes than the 1 GPU") as raised,
        distributed.process_group(World(0, 2)),
    ):
        raise torch.distributed.DistBackendError(message)
    assert "--nproc-per-node" in raised.value.hint


def test_torchrun_reports_the_error_of_any_process(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    done = cli("train", "only-on-the-first-machine.csv")
    assert (done.code, done.out, done.err) == (2, "", "")
    failure = errors.ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(tmp_path / "error.json"))
    report = str(errors.ChildFailedError("prefcli", {1: failure}))
    assert "rank      : 1" in report
    assert re.search(r"traceback : no such file\n +in only-on-the-first-machine\.csv\n", report)


# Whole processes


@pytest.fixture(scope="module")
def small_run(demo_files: Demo, bert_folder: Path) -> list[str]:
    return [
        str(demo_files.train), "--encoder", str(bert_folder), "--text", "raw", "--max-length", "64", "--lr", "1e-3",
        "--checkpoint-every", "3", "--eval-every", "5", "--log-every", "1", "--output",
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_the_command_resumes_to_the_same_bytes(
    tmp_path: Path, small_run: list[str], cli: Callable[..., Result]
) -> None:
    assert cli("train", *small_run, "whole").code == 0
    process = start_process(({}, ["train", *small_run, "killed"]), output=tmp_path / "killed-output")
    log = tmp_path / "killed" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 5) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = cli("train", "--resume", "killed")
    assert resumed.code == 0, resumed.err
    assert "resumed at step" in resumed.err
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.network
def test_two_ranks_train_predict_and_rank_what_one_does(
    tmp_path: Path, small_run: list[str], demo_files: Demo, bert_folder: Path, deberta_folder: Path,
    cli: Callable[..., Result],
) -> None:  # fmt: skip
    # Without dropout: its random numbers differ between ranks, as they must.
    shutil.copytree(bert_folder, tmp_path / "still")
    config = json.loads((tmp_path / "still" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "still" / "config.json").write_text(json.dumps(config))
    train = [
        "train",
        "--keep-checkpoints",
        *("still" if argument == str(bert_folder) else argument for argument in small_run),
    ]
    predict = ["predict", demo_files.test, "--model", "two", "--output"]
    rows = [{"prompt": f"Question {i}?", "responses": ["Clear step.", f"Vague {i}.", "Sun."]} for i in range(70)]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rank = ["rank", "answers.jsonl", "--model", "two", "--output"]
    as_on_kaggle = [
        "train", demo_files.train, "--encoder", deberta_folder, "--precision", "fp16", "--micro-batch", 4,
        "--gradient-checkpointing", "--max-length", 64, "--limit", 60, "--quiet", "--output", "kaggle",
    ]  # fmt: skip
    main, other = run_ranks([*train, "two"], [*predict, "two.csv"], [*rank, "two.jsonl"], as_on_kaggle)
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert main.out.count("60 battles") == 1
    assert other.out == ""  # one process reports
    for name in ("model.safetensors", "README.md"):
        assert Path("kaggle", name).is_file()
    assert not Path("kaggle/unfinished").exists()

    for arguments in ([*train, "one"], [*predict, "one.csv"], [*rank, "one.jsonl"]):
        done = cli(*arguments)
        assert done.code == 0, done.err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    one, two = (pq.read_table(tmp_path / name / "validation.parquet").to_pandas() for name in ("one", "two"))
    assert list(one["id"]) == list(two["id"])
    assert np.allclose(one.iloc[:, 1:5], two.iloc[:, 1:5], atol=1e-5)
    one, two = (pd.read_csv(f"{name}.csv", index_col="id") for name in ("one", "two"))
    assert list(one.index) == list(two.index)
    assert np.allclose(one, two, atol=1e-6)
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()
    assert len(Path("one.jsonl").read_text().splitlines()) == len(rows)

    # What two processes began, one ends.
    *_, last = sorted(Path("two", "checkpoints").iterdir())
    shutil.rmtree(last)
    Path("two", "SHA256SUMS").unlink()
    resumed = cli("train", "--resume", "two")
    assert resumed.code == 0, resumed.err
    assert "resumed at step" in resumed.err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.network
def test_a_killed_rank_ends_the_command_and_leaves_a_checkpoint(tmp_path: Path, small_run: list[str]) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "prefcli", "train", *small_run, "run", "--epochs", "40",
        ],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        log = tmp_path / "run" / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= 8) and process.poll() is None:
            time.sleep(0.05)
        ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(timeout=60) == 1
        assert time.monotonic() - killed < 30
    finally:
        process.kill()
    assert checkpoints.load_latest(tmp_path / "run" / "checkpoints") is not None

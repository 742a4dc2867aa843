"""What needs a CUDA GPU: no waiting between log lines, float16 with a loss scale, resuming. Skipped without one."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from prefcli import encoders
from prefcli.compute import devices
from prefcli.data.synthetic import Demo
from prefcli.models import neural
from prefcli.models.tokens import tokenise
from prefcli.options import TrainOptions
from prefcli.readers import open_battles
from prefcli.reporting import SILENT
from prefcli.training import loop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

OPTIONS = TrainOptions(max_length=64, batch_size=4, lr=1e-3, epochs=2, log_every=10, checkpoint_every=1000)


def spec_of(folder: Path, demo: Demo, encoder_folder: Path, options: TrainOptions) -> loop.FitSpec:
    tokenizer = encoders.load_tokenizer(encoder_folder)
    battles = tokenise(tokenizer, (batch for batch, _ in open_battles(demo.train).batches()))
    encoder = encoders.make_encoder(encoders.locate(str(encoder_folder)), len(tokenizer), seed=0)
    placement = devices.place("cuda", options.precision)
    model = neural.build(options, encoder, tokenizer, options.max_length, placement)
    rows = np.arange(120)
    return loop.FitSpec(
        model=model, train=battles.take(rows), targets=np.eye(3, dtype=np.float32)[battles.labels[rows]],
        validation=None, options=options, folder=folder, reporter=SILENT,
    )  # fmt: skip


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("encoder", ["bert", "deberta"])
def test_prefcli_waits_for_the_gpu_only_to_write_a_log_line(
    tmp_path: Path, demo_files: Demo, bert_folder: Path, deberta_folder: Path, encoder: str, precision: str
) -> None:
    """transformers itself waits once a pass for BERT, to see whether its attention mask masks anything."""
    library = str(Path(transformers.__file__).parent)
    folder = bert_folder if encoder == "bert" else deberta_folder
    spec = spec_of(tmp_path, demo_files, folder, replace(OPTIONS, precision=precision))
    waits: dict[int, list[str]] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

        def count(state: loop.TrainState) -> None:
            places = (f"{w.filename}:{w.lineno}" for w in caught if "synchron" in str(w.message))
            waits[state.steps] = [place for place in places if not place.startswith(library)]
            caught.clear()

        spec.on_step_end = count
        try:
            loop.fit(spec)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    between = {step: places for step, places in waits.items() if step > 1 and step % 10 and step not in (30, 60)}
    assert len(between) >= 50
    assert {step: places for step, places in between.items() if places} == {}
    assert waits[10]


def test_logging_seldom_changes_no_weight_and_logs_the_mean(
    tmp_path: Path, demo_files: Demo, bert_folder: Path
) -> None:
    for every in (1, 10):
        options = replace(OPTIONS, precision="fp16", log_every=every)
        loop.fit(spec_of(tmp_path / str(every), demo_files, bert_folder, options))
    each, means = records(tmp_path / "1"), records(tmp_path / "10")
    assert [record["step"] for record in means] == [10, 20, 30, 40, 50, 60]
    for record in means:
        mean = np.mean([r["loss"] for r in each if record["step"] - 10 < r["step"] <= record["step"]])
        assert record["loss"] == pytest.approx(mean, rel=1e-4)
        assert record["lr"] == each[int(record["step"]) - 1]["lr"]


def test_an_overflow_in_float16_is_skipped_and_the_schedule_waits(
    tmp_path: Path, demo_files: Demo, bert_folder: Path
) -> None:
    spec = spec_of(tmp_path, demo_files, bert_folder, replace(OPTIONS, precision="fp16"))
    overflow = {"now": False}
    spec.model.module.classifier.weight.register_hook(lambda g: g * math.inf if overflow["now"] else g)

    def inject(state: loop.TrainState) -> None:
        overflow["now"] = state.steps == 13

    spec.on_step_end = inject
    state = loop.fit(spec).state
    logged = records(tmp_path)
    skipped = [record["skipped"] for record in logged]
    assert skipped[1] >= 1
    assert state.skipped == sum(skipped)
    assert state.optimizer_steps == state.steps - state.skipped
    rate = loop.learning_rate(19 - int(skipped[0] + skipped[1]), 60, OPTIONS.learning_rate, 0.0)
    assert logged[1]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_stopped_training_resumes_to_the_same_weights(
    tmp_path: Path, demo_files: Demo, bert_folder: Path, precision: str
) -> None:
    options = replace(OPTIONS, precision=precision, checkpoint_every=7)

    def stop(state: loop.TrainState) -> None:
        if state.steps == 25:
            raise KeyboardInterrupt

    loop.fit(spec_of(tmp_path / "whole", demo_files, bert_folder, options))
    spec = spec_of(tmp_path / "stopped", demo_files, bert_folder, options)
    spec.on_step_end = stop
    with pytest.raises(KeyboardInterrupt):
        loop.fit(spec)
    spec = spec_of(tmp_path / "stopped", demo_files, bert_folder, options)
    spec.resume = True
    loop.fit(spec)
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert resumed == whole
    assert [r["loss"] for r in records(tmp_path / "stopped")] == [r["loss"] for r in records(tmp_path / "whole")]

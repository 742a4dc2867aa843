"""What `--estimate` measures and prints, and that it leaves nothing but caches."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Result, battle, run_ranks, write_csv
from numpy.typing import NDArray

import prefcli
from prefcli.compute.distributed import World
from prefcli.data.selection import take
from prefcli.data.synthetic import Demo
from prefcli.pipeline import estimate
from prefcli.training import loop

CLI = Callable[..., Result]
TINY = ("--encoder", "tiny", "--text", "raw", "--max-length", 64, "--batch-size", 8)


def left(root: Path = Path()) -> set[str]:
    """The files besides cached stages."""
    return {p.as_posix() for p in root.rglob("*") if p.is_file() and "stages" not in p.parts}


# How a sample stands for all battles


class Clock:
    """Replaces the time module: time passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds_per_token", [0.1, 1e-3, 1e-7])
def test_a_sample_of_battles_costs_as_much_per_battle_as_all_of_them(
    monkeypatch: pytest.MonkeyPatch, seconds_per_token: float
) -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 3000).clip(max=512).astype(np.int64)  # cut at 512 tokens
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)

    def predict(rows: NDArray[np.intp]) -> None:
        clock.now += seconds_per_token * float(lengths[rows].sum())

    seconds, timed = estimate._time_all(lambda rows: rows, predict, lengths, World())
    assert seconds == pytest.approx(seconds_per_token * lengths.sum(), rel=0.05)
    assert timed == 3000 or clock.now >= estimate.MIN_SECONDS


@pytest.mark.parametrize(("count", "size"), [(1, 8), (7, 7), (9, 8), (100, 40), (5000, 160)])
def test_a_sample_is_sorted_and_spread_over_all_lengths(count: int, size: int) -> None:
    lengths = np.random.default_rng(0).permutation(count)
    rows = estimate._spread(np.argsort(lengths), size)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == min(size, count)
    assert lengths[rows].mean() == pytest.approx(lengths.mean(), abs=0.03 * count)


def test_the_bytes_of_a_battle_are_those_of_all_its_turns() -> None:
    column = pa.array([["ab", "é"], None, [], ["x"]], pa.list_(pa.string()))
    batch = pa.RecordBatch.from_arrays([column] * 3, names=["prompt", "response_a", "response_b"])
    assert estimate._text_bytes(batch).tolist() == [12, 0, 0, 3]
    assert estimate._text_bytes(batch.slice(2)).tolist() == [0, 3]


def test_rows_are_taken_from_whichever_batch_holds_them() -> None:
    batches = [pa.RecordBatch.from_pydict({"number": list(range(i, i + 3))}) for i in (0, 3, 6, 9)]
    taken = take(iter(batches), np.array([1, 2, 6, 11]), 12)
    assert taken.column("number").to_pylist() == [1, 2, 6, 11]


@pytest.mark.slow
def test_a_training_takes_as_long_as_its_battles_at_the_rate_of_the_sample(
    monkeypatch: pytest.MonkeyPatch, demo_files: Demo
) -> None:
    specs: list[loop.FitSpec] = []

    def fit(spec: loop.FitSpec) -> SimpleNamespace:
        specs.append(spec)
        return SimpleNamespace(battles_per_second=1e6)

    monkeypatch.setattr(loop, "fit", fit)
    options = {"encoder": "tiny", "text": "raw", "max_length": 64, "batch_size": 8, "epochs": 3}
    found = prefcli.estimate(demo_files.train, **options)
    assert found.parts["training"] == pytest.approx(3 * 216 / 1e6)  # 24 of 240 battles are held out
    warm_up, sample = specs
    assert len(warm_up.train) == 8
    assert warm_up.lengths.min() >= np.quantile(sample.lengths, 0.9)  # the longest ones
    assert (len(sample.train), sample.options.epochs, sample.validation) == (20 * 8, 1, None)
    limited = prefcli.estimate(demo_files.train, **options, max_steps=10)
    assert (limited.pieces, limited.parts["training"]) == (10, pytest.approx(80 / 1e6))
    monkeypatch.setattr(loop, "fit", lambda spec: SimpleNamespace(battles_per_second=0.1))
    assert prefcli.estimate(demo_files.train, **options, max_time=5).parts["training"] == 300


# The commands


@pytest.mark.slow
def test_an_estimate_of_a_training_counts_its_steps_and_leaves_only_caches(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, *TINY, "--epochs", 3, "--estimate", "--json")
    assert done.code == 0, done.err
    found = done.json()["estimate"]
    assert found["pieces"] == 27 * 3  # 216 of 240 battles, 8 a step
    assert 6 <= found["timed"] <= 27
    low, high = found["interval"]
    assert 0 < low < found["seconds"] < high
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()))
    assert {"around", "training", "validation", "writing"} == set(found["parts"])
    assert found["memory_mb"] > 100
    assert found["cuda_mb"] is None
    assert found["kept_seconds"] > 0
    assert left() == set()
    again = cli("train", demo_files.train, *TINY, "--estimate", "--json").json()["estimate"]
    assert again["kept_seconds"] == 0.0
    assert again["pieces"] == 27


@pytest.mark.slow
def test_an_estimate_changes_nothing_about_the_training_that_follows(cli: CLI, demo_files: Demo) -> None:
    flags = (*TINY, "--limit", 80)
    assert cli("train", demo_files.train, *flags, "-o", "one", "--workspace", "w1").code == 0
    assert cli("train", demo_files.train, *flags, "--workspace", "w2", "--estimate").code == 0
    assert cli("train", demo_files.train, *flags, "-o", "two", "--workspace", "w2").code == 0
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_estimate_prints_time_range_and_memory(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, *TINY, "--limit", 60, "--estimate")
    assert done.code == 0, done.err
    for words in (" in all, probably ", "MB of memory at the peak", "loading and the like"):
        assert words in done.out
    assert "timing " in done.err
    assert "validation log loss" not in done.err  # a few steps have no meaningful score


@pytest.mark.slow
def test_folds_epochs_and_validations_count(cli: CLI, demo_files: Demo) -> None:
    found = cli("train", demo_files.train, *TINY, "--folds", 3, "--estimate", "--json").json()["estimate"]
    assert found["pieces"] == 3 * 20  # 160 battles a fold
    nothing = cli("train", demo_files.train, *TINY, "--validation", 0, "--estimate", "--json").json()["estimate"]
    assert nothing["parts"]["validation"] == 0.0


def test_features_are_estimated_from_smaller_fits(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, "--recipe", "fast", "--estimate", "--json")
    assert done.code == 0, done.err
    found = done.json()["estimate"]
    assert {"around", "measuring", "boosting"} == set(found["parts"])
    assert found["parts"]["boosting"] > 0
    assert (found["pieces"], found["timed"]) == (216, 108)
    assert left() == set()


def test_rounds_take_longer_by_what_their_growth_between_the_numbers_says() -> None:
    growth = estimate._round_growth
    assert growth(900, 1_800) == pytest.approx(2**0.8)
    assert growth(10_000, 40_000) == pytest.approx(4**0.6)
    assert growth(10_000, 900_000) == pytest.approx(growth(10_000, 50_000) * 18**1.15)
    assert growth(60_000, 60_000) == 1


@pytest.mark.slow
def test_prediction_is_estimated_from_a_sample_and_writes_nothing(cli: CLI, demo_files: Demo) -> None:
    assert cli("train", demo_files.train, *TINY, "--limit", 60, "-o", "run", "--workspace", "w").code == 0
    before = left()
    done = cli("predict", demo_files.test, "-m", "run", "--estimate", "--json", "--swap-average",
               "--calibrate", demo_files.train)  # fmt: skip
    assert done.code == 0, done.err
    found = done.json()["estimate"]
    assert found["pieces"] == 60
    assert found["parts"]["predicting"] > 0
    # 240 battles to calibrate on, 60 to predict.
    assert found["parts"]["calibrating"] == pytest.approx(4 * found["parts"]["predicting"])
    assert left() == before
    few = cli("predict", demo_files.test, "-m", "run", "--estimate", "--json", "--limit", 3).json()["estimate"]
    assert (few["pieces"], few["timed"]) == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(*TINY, "--validation", 0), ("--recipe", "fast", "--validation", 0)])
def test_three_battles_are_enough_for_an_estimate(cli: CLI, tmp_path: Path, flags: tuple[object, ...]) -> None:
    file = write_csv(tmp_path / "few.csv", [battle(i, i % 3) for i in range(3)])
    done = cli("train", file, *flags, "--estimate", "--json")
    assert done.code == 0, done.err
    assert done.json()["estimate"]["seconds"] > 0


def test_what_training_would_refuse_is_refused_the_same_way(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", "nowhere.csv", "--recipe", "fast", "--estimate")
    assert (done.code, "nowhere.csv" in done.err) == (2, True)
    done = cli("train", "--resume", "run", "--estimate")
    assert (done.code, "cannot be combined with --resume" in done.err) == (2, True)
    done = cli("predict", demo_files.test, "-m", "nowhere", "--estimate")
    assert (done.code, "no run at" in done.err) == (2, True)
    done = cli("predict", "-", "-o", "-", "--estimate")
    assert (done.code, "--estimate" in done.err) == (2, True)
    assert left() == set()


@pytest.mark.slow
def test_python_gives_the_same_estimate(demo_files: Demo) -> None:
    found = prefcli.estimate(demo_files.train, encoder="tiny", text="raw", max_length=32, limit=60)
    assert found.interval[0] < found.seconds < found.interval[1]
    assert left() == set()


@pytest.mark.network
@pytest.mark.slow
def test_several_processes_estimate_together(demo_files: Demo) -> None:
    main, other = run_ranks(("train", demo_files.train, *TINY, "--limit", 80, "--estimate", "--json", "--quiet"))
    assert (main.code, other.code) == (0, 0), main.err + other.err
    found = main.json()["estimate"]
    assert found["processes"] == 2
    assert found["pieces"] == 9
    assert other.out == ""
    assert left() == set()


@pytest.mark.slow
def test_an_interrupted_estimate_leaves_only_caches(
    demo_files: Demo, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    step = torch.optim.AdamW.step

    def interrupted_step(optimizer: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(optimizer, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted_step)
    done = cli("train", demo_files.train, *TINY, "--estimate")
    assert done.code == 130, done.err
    assert "nothing but caches is left" in done.err
    assert left() == set()

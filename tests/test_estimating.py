"""What `--estimate` says, how it says it, and that it leaves nothing but caches."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, battle, run_ranks, write_csv

import prefcli
from prefcli import estimating
from prefcli.data.synthetic import Demo

CLI = Callable[..., Result]
TINY = ("--encoder", "tiny", "--text", "raw", "--max-length", 64, "--batch-size", 8)


def left(root: Path = Path()) -> set[str]:
    """What there is besides the caches of stages."""
    return {p.as_posix() for p in root.rglob("*") if p.is_file() and "stages" not in p.parts}


# The arithmetic


def test_steps_that_cost_what_they_do_are_scaled_up_exactly_and_with_little_doubt() -> None:
    work = np.array([10.0, 30.0, 20.0, 25.0])
    part = estimating.scaled(0.5 * work, work, 8500.0)
    assert part.seconds == pytest.approx(4250.0)
    assert part.doubt == pytest.approx(estimating.LEAST_DOUBT * 4250.0)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Steps whose cost is their work and noise, like those of a training; the truth is their sum."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        work = random.uniform(5, 15, 500)
        seconds = 0.1 * work + random.normal(0, 0.3, 500)
        sample = random.permutation(500)[:12]
        part = estimating.scaled(seconds[sample], work[sample], float(work.sum()))
        hits += abs(part.seconds - seconds.sum()) <= part.doubt
    assert 0.92 <= hits / 400 <= 1.0


def test_all_of_the_work_timed_leaves_only_the_least_doubt() -> None:
    part = estimating.scaled([1.0, 3.0], [1.0, 1.0], 2.0)
    assert part.seconds == pytest.approx(4.0)
    assert part.doubt == pytest.approx(estimating.LEAST_DOUBT * 4.0)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_every_beginning_of_the_order_is_spread_evenly(count: int) -> None:
    order = estimating.spread_order(count)
    assert sorted(order.tolist()) == list(range(count))
    for some in range(4, count, 7):
        assert abs(order[:some].mean() / (count - 1) - 0.5) < 0.13


def test_memory_that_grows_by_less_and_less_is_followed_to_its_end() -> None:
    sizes = [1800 - 1000 * 0.97**step for step in range(41)]
    assert sizes[-1] + estimating.growth(sizes, 500) == pytest.approx(1800, rel=0.01)
    assert estimating.growth([100.0] * 30, 500) == 0.0
    assert estimating.growth(sizes, 41) == 0.0
    straight = [float(step) for step in range(41)]
    assert 0 < estimating.growth(straight, 10_000) < 100  # growth that does not slow down is not believed for ever


def test_the_bytes_of_a_battle_are_those_of_all_its_turns() -> None:
    import pyarrow as pa

    column = pa.array([["ab", None, "é"], None, [], ["x"]], pa.list_(pa.string()))
    batch = pa.RecordBatch.from_arrays([column] * 3, names=["prompt", "response_a", "response_b"])
    assert estimating._text_bytes(batch).tolist() == [12, 0, 0, 3]
    assert estimating._text_bytes(batch.slice(2)).tolist() == [0, 3]


# The commands


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


def test_an_estimate_changes_nothing_about_the_training_that_follows(cli: CLI, demo_files: Demo) -> None:
    flags = (*TINY, "--limit", 80)
    assert cli("train", demo_files.train, *flags, "-o", "one", "--workspace", "w1").code == 0
    assert cli("train", demo_files.train, *flags, "--workspace", "w2", "--estimate").code == 0
    assert cli("train", demo_files.train, *flags, "-o", "two", "--workspace", "w2").code == 0
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()


def test_an_estimate_says_time_interval_and_memory_in_words(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, *TINY, "--limit", 60, "--estimate")
    assert done.code == 0, done.err
    for words in (" in all, 95 % interval ", "MB of memory at the peak", "loading, scoring and the like"):
        assert words in done.out
    assert "timing " in done.err
    assert "validation log loss" not in done.err  # of a few steps nothing is said


def test_folds_epochs_and_validations_count(cli: CLI, demo_files: Demo) -> None:
    found = cli("train", demo_files.train, *TINY, "--folds", 3, "--estimate", "--json").json()["estimate"]
    assert found["pieces"] == pytest.approx(3 * 20, abs=3)  # 160 battles a fold
    nothing = cli("train", demo_files.train, *TINY, "--validation", 0, "--estimate", "--json").json()["estimate"]
    assert nothing["parts"]["validation"] == 0.0


def test_features_are_estimated_from_smaller_fits(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, "--recipe", "fast", "--estimate", "--json")
    assert done.code == 0, done.err
    found = done.json()["estimate"]
    assert {"around", "measuring", "boosting", "writing"} == set(found["parts"])
    assert found["parts"]["boosting"] > 0
    assert (found["pieces"], found["timed"]) == (216, 108)
    assert left() == set()


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


def test_python_gives_the_same_estimate(demo_files: Demo) -> None:
    found = prefcli.estimate(demo_files.train, encoder="tiny", text="raw", max_length=32, limit=60)
    assert found.interval[0] < found.seconds < found.interval[1]
    assert left() == set()


def test_several_processes_estimate_together(demo_files: Demo) -> None:
    main, other = run_ranks(("train", demo_files.train, *TINY, "--limit", 80, "--estimate", "--json", "--quiet"))
    assert (main.code, other.code) == (0, 0), main.err + other.err
    found = main.json()["estimate"]
    assert found["processes"] == 2
    assert found["pieces"] == 9
    assert other.out == ""
    assert left() == set()


def test_an_interrupted_estimate_leaves_only_caches(demo_files: Demo, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "many.csv", [battle(i, i % 3, response_a=["word " * 100]) for i in range(300)])
    child = subprocess.Popen(
        [sys.executable, "-m", "prefcli", "train", str(file), "--encoder", "tiny", "--text", "raw", "--epochs", "9",
         "--batch-size", "32", "--estimate"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("timing"):
            break
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    said = child.stderr.read()
    assert child.wait(60) == 130
    assert "nothing but caches is left" in said
    assert left() == {"many.csv"}

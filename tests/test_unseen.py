"""Outcomes that training never saw get a stated probability, everywhere, and two outcomes are scored as two."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result, battle, write_csv
from sklearn.metrics import log_loss

import prefcli
from prefcli import metrics
from prefcli.data.tables import read_probabilities
from prefcli.errors import ModelError
from prefcli.options import TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.pipeline.predict import describe_unseen
from prefcli.storage import runs

Cli = Callable[..., Result]
FEATURES = {"architecture": "features", "validation": 0.25}


@pytest.mark.parametrize("unseen", [c for size in (1, 2) for c in itertools.combinations(range(3), size)])
def test_an_unseen_outcome_gets_one_percent_and_the_others_keep_their_ratios(unseen: tuple[int, ...]) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 50, 3)) * 5
    logits[..., list(unseen)] = -1e9  # as far as training drives them
    smoothed = metrics.softmax(metrics.with_unseen(logits, unseen))
    seen = [outcome for outcome in range(3) if outcome not in unseen]
    odds = np.exp(logits[..., seen])
    assert smoothed[..., list(unseen)] == pytest.approx(0.01)
    expected = odds / odds.sum(axis=-1, keepdims=True) * (1 - 0.01 * len(unseen))
    assert smoothed[..., seen] == pytest.approx(expected)
    assert metrics.with_unseen(logits, ()) is logits


def test_a_battle_in_both_orders_shows_a_win_of_either() -> None:
    assert metrics.unseen_outcomes([3, 0, 0], both_orders=False) == (1, 2)
    assert metrics.unseen_outcomes([3, 0, 0], both_orders=True) == (2,)
    assert metrics.unseen_outcomes([0, 0, 3], both_orders=True) == (0, 1)
    assert metrics.unseen_outcomes([3, 1, 1e-9], both_orders=True) == (2,), "soft labels of a model without ties"
    assert metrics.unseen_outcomes([3, 1, 0.5], both_orders=False) == ()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Votes without ties: the longer answer wins in nine of ten."""
    random, rows = np.random.default_rng(0), []
    for number in range(240):
        sizes = random.integers(1, 20, size=2)
        winner = int(sizes[1] > sizes[0]) ^ int(random.random() < 0.1)
        a, b = (["word " * int(size)] for size in sizes)
        rows.append(battle(number, winner, response_a=a, response_b=b))
    return write_csv(tmp_path_factory.mktemp("pairs") / "pairs.csv", rows)


def test_a_run_of_two_outcomes_says_so_and_is_scored_as_two(cli: Cli, pairs: Path) -> None:
    done = cli("train", pairs, "--architecture", "features", "--validation", 0.25, "--output", "run", "--json")
    assert done.code == 0, done.err
    result = done.json()
    trained_on = sum(result["outcomes"])
    assert (result["unseen"], result["outcomes"][2]) == (["tie"], 0)
    assert f"no ties among the {trained_on:.0f} training battles: a tie gets probability 0.01" in done.err
    assert json.loads(Path("run/config.json").read_text())["data"]["outcomes"] == result["outcomes"]
    assert f"There were no ties among the {trained_on:.0f} training battles" in Path("run/README.md").read_text()

    held_out = pq.read_table("run/validation.parquet").to_pandas()
    a, b, tie = held_out[list(WINNER_COLUMNS)].to_numpy().T
    assert tie == pytest.approx(0.01)
    assert result["validation"]["outcomes"] == 2
    assert result["validation"]["uniform_log_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert result["validation"]["log_loss"] == pytest.approx(log_loss(held_out["label"], b / (a + b)))

    done = cli("predict", pairs, "--model", "run", "--output", "preds.csv", "--json")
    assert done.json()["unseen"] == [["tie"]]
    assert "run: no ties among the" in done.err
    probabilities = read_probabilities(Path("preds.csv"))[1]
    assert probabilities[:, 2] == pytest.approx(0.01), "whatever the temperature"
    assert np.ptp(probabilities[:, 0]) > 0.5


def test_calibrating_a_run_without_ties_on_votes_with_ties_finds_their_share(pairs: Path, tmp_path: Path) -> None:
    """A third of other battles are ties, whatever the answers: the known answer is a third."""
    prefcli.train(pairs, output="run", **FEATURES)
    random, rows = np.random.default_rng(1), []
    for number in range(600):
        sizes = random.integers(1, 20, size=2)
        winner = 2 if random.random() < 1 / 3 else int(sizes[1] > sizes[0]) ^ int(random.random() < 0.1)
        a, b = (["word " * int(size)] for size in sizes)
        rows.append(battle(1000 + number, winner, prompt=[f"other {number}"], response_a=a, response_b=b))
    sample, test = write_csv(tmp_path / "sample.csv", rows[:300]), write_csv(tmp_path / "test.csv", rows[300:])
    plain = prefcli.predict(test, "plain.csv", models=["run"])
    refitted = prefcli.predict(test, "refitted.csv", models=["run"], calibrate=sample)
    assert plain.tie_shift == 0
    assert "bound" not in refitted.calibration
    probabilities = read_probabilities(Path("refitted.csv"))[1]
    ties = sum(row["winner_tie"] for row in rows[:300]) / 300
    assert probabilities[:, 2].mean() == pytest.approx(ties, abs=0.02)
    labels = [int(np.argmax([row[name] for name in WINNER_COLUMNS])) for row in rows]
    shares = [2 / 3 * 0.9, 2 / 3 * 0.1, 1 / 3]
    best = -sum(share * np.log(share) for share in shares)
    assert log_loss(labels[300:], probabilities, labels=[0, 1, 2]) < best + 0.1
    plain_loss = log_loss(labels[300:], read_probabilities(Path("plain.csv"))[1], labels=[0, 1, 2])
    assert plain_loss < 2.5, "a tie costs ln 100, not ln 1e12"

    unlike = prefcli.predict(test, "pairs.csv", models=["run"], calibrate=write_csv(
        tmp_path / "decided.csv", [row for row in rows[:300] if not row["winner_tie"]]
    ))  # fmt: skip
    assert "none of these battles are ties, so the share of ties is kept" in unlike.calibration
    assert read_probabilities(Path("pairs.csv"))[1][:, 2] == pytest.approx(0.01)


def test_a_fold_without_an_outcome_is_named_and_smoothed(cli: Cli, tmp_path: Path) -> None:
    """All ties have one prompt, so one fold is trained on none."""
    rows = [battle(i, winner=i % 2) for i in range(30)] + [battle(100 + i, 2, prompt=["same"]) for i in range(10)]
    file = write_csv(tmp_path / "votes.csv", rows)
    done = cli("train", file, "--architecture", "features", "--folds", 2, "--output", "run", "--json")
    assert done.code == 0, done.err
    assert done.json()["unseen"] == []
    assert done.json()["validation"]["outcomes"] == 3
    (fold,) = [n for n in (1, 2) if runs.unseen_outcomes(runs.read_config(Path(f"run/fold-{n}"))) == (2,)]
    assert f"fold-{fold}: no ties among the" in done.err
    assert runs.unseen_outcomes(runs.read_config(Path("run"))) == (), "other folds have seen ties"
    assert "There were no" not in Path("run/README.md").read_text()
    assert runs.read_validation(Path(f"run/fold-{fold}")).probabilities(swap_average=False)[:, 2] == pytest.approx(0.01)
    probabilities = [prefcli.load(f"run{part}").predict("x", "y", "z").tie for part in ("/fold-1", "/fold-2", "")]
    assert probabilities[fold - 1] == pytest.approx(0.01)
    assert probabilities[2] == pytest.approx(np.mean(probabilities[:2]))
    assert f"run/fold-{fold}: no ties" in cli("predict", file, "--model", "run", "--output", "p.csv").err


def test_what_all_folds_never_saw_is_said_once(tmp_path: Path) -> None:
    for name, outcomes in (("run", (6, 6, 0)), ("run/fold-1", (4, 2, 0)), ("run/fold-2", (2, 4, 0))):
        options = TrainOptions(folds=2 if name == "run" else 0)
        runs.write_config(tmp_path / name, options, {"data": {"outcomes": outcomes, "train_battles": 6}})
    reporter = Mock()
    assert describe_unseen([tmp_path / "run"], ["run"], reporter) == (("tie",),)
    reporter.note.assert_called_once_with("run: no ties among the 12 training battles: a tie gets probability 0.01")


def test_a_run_of_an_earlier_release_predicts_as_before_and_warns(cli: Cli, pairs: Path) -> None:
    prefcli.train(pairs, output="run", **FEATURES)
    config = json.loads(Path("run/config.json").read_text())
    del config["data"]["outcomes"]
    Path("run/config.json").write_text(json.dumps(config))
    runs.seal(Path("run"), trained=True)
    done = cli("predict", pairs, "--model", "run", "--output", "preds.csv", "--no-calibration")
    assert done.code == 0, done.err
    assert "trained without ties by an earlier release" in done.err
    assert read_probabilities(Path("preds.csv"))[1][:, 2].max() < 1e-6
    config["data"]["outcomes"] = [1, "many", 0]
    Path("run/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config.json is damaged"):
        runs.read_config(Path("run"))


def test_a_number_of_rounds_at_its_maximum_is_said(cli: Cli, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefcli.models import features
    from prefcli.models.features import booster

    monkeypatch.setattr(booster, "MAX_ROUNDS", 3)
    monkeypatch.setattr(features, "MAX_ROUNDS", 3)
    done = cli("train", pairs, "--architecture", "features", "--output", "run")
    assert done.code == 0, done.err
    assert "the best number of rounds was the largest that is tried, 3" in done.err

"""``score`` on files: any layout of labels, two or three outcomes, prompts, ids, and what makes a score too good."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, battle, write_csv
from sklearn.metrics import log_loss

from prefcli import metrics, pipeline
from prefcli.battles import Source
from prefcli.errors import InputError, ModelError
from prefcli.options import TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.pipeline.ablate import evaluate
from prefcli.readers import open_battles
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]


def write_predictions(path: Path, ids: list[str], seed: int = 0) -> np.ndarray:
    probabilities = np.random.default_rng(seed).dirichlet([2, 2, 1], size=len(ids))
    rows = [f"{i},{a!r},{b!r},{c!r}" for i, (a, b, c) in zip(ids, probabilities.tolist(), strict=True)]
    path.write_text("\n".join([f"id,{','.join(WINNER_COLUMNS)}", *rows]) + "\n")
    return probabilities


def write_pairs(path: Path, n: int = 60) -> np.ndarray:
    """Chosen and rejected answers without ids, three to a prompt; the labels."""
    rows = [{"prompt": f"Q{i // 3}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (batch, _), *_ = open_battles(path).batches()
    return np.array(batch.column("label").to_pylist())


def test_chosen_and_rejected_answers_are_scored_as_two_outcomes(cli: CLI, tmp_path: Path) -> None:
    labels = write_pairs(tmp_path / "pairs.jsonl", 24)
    probabilities = write_predictions(tmp_path / "preds.csv", [str(i) for i in range(1, 25)])
    done = cli("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl")
    assert "24 battles of 8 prompts; no ties among the labels: scored as two outcomes, p_A / (p_A + p_B)" in done.out
    assert "no interval: 8 prompts, 20 are needed" in done.out
    result = cli("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl", "--json").json()
    p_b = probabilities[:, 1] / probabilities[:, :2].sum(axis=1)
    assert result["log_loss"] == pytest.approx(log_loss(labels, p_b), abs=1e-12)
    assert (result["outcomes"], result["log_loss_ci"], result["prompts"]) == (2, None, 8)
    assert result["uniform_log_loss"] == pytest.approx(np.log(2))
    three = cli("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl", "--outcomes", 3, "--json").json()
    assert three["log_loss"] == pytest.approx(log_loss(labels, probabilities, labels=[0, 1, 2]), abs=1e-12)


def test_ties_cannot_be_scored_as_two_outcomes(cli: CLI, tmp_path: Path) -> None:
    labels = write_csv(tmp_path / "labels.csv", [battle(i, i % 3) for i in range(40)])
    write_predictions(tmp_path / "preds.csv", [str(i) for i in range(40)])
    refused = cli("score", tmp_path / "preds.csv", labels, "--outcomes", 2)
    assert refused.code == 2
    assert "there are ties among the labels" in refused.err
    assert cli("score", tmp_path / "preds.csv", labels, "--json").json()["outcomes"] == 3


def test_the_interval_resamples_the_prompts_of_the_labels(tmp_path: Path) -> None:
    rows = [battle(i, i % 3, prompt=[f"Question {i % 25}"]) for i in range(300)]
    labels = write_csv(tmp_path / "labels.csv", rows)
    probabilities = write_predictions(tmp_path / "preds.csv", [str(i) for i in range(300)])
    result = pipeline.score(tmp_path / "preds.csv", labels)
    expected = metrics.score(probabilities, np.arange(300) % 3, groups=np.arange(300) % 25)
    assert result.prompts == 25
    assert result.log_loss_ci == pytest.approx(expected.log_loss_ci, rel=0.15)
    without = write_csv(tmp_path / "outcomes.csv", rows, ["id", *WINNER_COLUMNS])
    plain = pipeline.score(tmp_path / "preds.csv", without)
    assert (plain.prompts, plain.log_loss) == (None, result.log_loss)


def test_labels_take_the_options_of_battles(cli: CLI, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("nr,question,left,right,winner\nx,Q?,a,b,model_a\ny,R?,c,d,tie\n")
    write_predictions(tmp_path / "preds.csv", ["x", "y"])
    columns = ["--columns", "id=nr,prompt=question,response_a=left,response_b=right"]
    done = cli("score", tmp_path / "preds.csv", tmp_path / "labels.csv", *columns, "--json")
    assert done.code == 0, done.err
    assert (done.json()["n"], done.json()["prompts"]) == (2, 2)
    assert cli("score", tmp_path / "preds.csv", tmp_path / "labels.csv").code == 2


def test_battles_without_an_outcome_are_counted_and_not_scored(cli: CLI, tmp_path: Path) -> None:
    labels = write_csv(tmp_path / "labels.csv", [battle(i, i % 3 if i < 30 else None) for i in range(35)])
    probabilities = write_predictions(tmp_path / "preds.csv", [str(i) for i in range(35)])
    done = cli("score", tmp_path / "preds.csv", labels, "--json")
    assert "5 battles of" in done.err
    assert "without an outcome: not scored" in done.err
    assert (done.json()["n"], done.json()["unlabelled"]) == (30, 5)
    assert done.json()["log_loss"] == pytest.approx(metrics.log_loss(probabilities[:30], np.arange(30) % 3))
    with pytest.raises(InputError, match="no battle has an outcome"):
        pipeline.score(tmp_path / "preds.csv", write_csv(tmp_path / "none.csv", [battle(i, None) for i in range(35)]))


def test_a_join_by_row_numbers_is_said_unless_the_predictions_are_of_this_file(cli: CLI, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 60)
    write_predictions(tmp_path / "preds.csv", [str(i) for i in range(1, 61)])
    command = ("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl")
    assert "joined by the numbers of its rows" in cli(*command).err
    Workspace(".prefcli").record_predictions(tmp_path / "preds.csv", [], files.sha256(tmp_path / "pairs.jsonl"))
    assert "joined by" not in cli(*command).err


def test_battles_that_the_run_was_trained_on_are_counted(cli: CLI, tmp_path: Path) -> None:
    labels = write_csv(tmp_path / "labels.csv", [battle(i, i % 3, prompt=[f"Q{i}"]) for i in range(40)])
    write_predictions(tmp_path / "preds.csv", [str(i) for i in range(40)])
    command = ("score", tmp_path / "preds.csv", labels)
    assert cli(*command, "--json").json()["trained_on"] is None
    (batch, _), *_ = open_battles(Source((labels,))).batches()
    keys = batch.column("prompt_key").to_numpy()
    for name, seen in (("first", keys[:10]), ("second", keys[5:15])):
        runs.write_config(tmp_path / name, TrainOptions(), {})
        runs.write_training_prompts(tmp_path / name, np.append(seen, 12345))
    Workspace(".prefcli").record_predictions(tmp_path / "preds.csv", [tmp_path / "first", tmp_path / "second"])
    done = cli(*command, "--json")
    assert done.json()["trained_on"] == 15
    assert "15 of 40 battles have a prompt that the predicting runs were trained on" in done.err


SHARES = np.array([0.5, 0.3, 0.2])


def test_intervals_of_the_ablation_cover_the_truth_as_often_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seeds hold out the same 40 prompts with three battles each, which all have one outcome, drawn from SHARES.

    A model's expected loss is known, for it predicts the same for every battle.
    """
    guesses = {s: np.roll([0.6, 0.3, 0.1], i) for i, s in enumerate(("logits", "softmax", "log-softmax"))}
    truth = {name: float(-(SHARES * np.log(guess)).sum()) for name, guess in guesses.items()}
    random = np.random.default_rng(0)
    labels = np.zeros(120, dtype=np.int64)
    keys = np.repeat(np.arange(40), 3)

    def read_validation(run: Path) -> runs.HeldOut:
        guess = guesses[run.name.split("-", 2)[2].rsplit("-", 1)[0]]
        return runs.HeldOut([""] * 120, keys, np.log(np.tile(guess, (120, 1))), labels)

    monkeypatch.setattr(runs, "read_validation", read_validation)
    monkeypatch.setattr(metrics, "DIFFERENCE_ROUNDS", 150)
    hits, by_battle = np.zeros(2), 0
    for _ in range(60):
        labels[:] = np.repeat(random.choice(3, size=40, p=SHARES), 3)
        ablation = evaluate(tmp_path, "tiny", 0, 3)
        first, _, other, *_ = ablation.rows
        assert first.interval is not None
        assert other.difference_interval is not None
        (low, high), (low_difference, high_difference) = first.interval, other.difference_interval
        hits += (
            low <= truth["logits"] <= high,
            low_difference <= truth["softmax"] - truth["logits"] <= high_difference,
        )
        losses = np.tile(metrics.losses(np.tile(guesses["logits"], (120, 1)), labels), 3)
        low, high = metrics.bootstrap_interval(losses) or (0, 0)
        by_battle += low <= truth["logits"] <= high
    assert (ablation.battles, ablation.prompts) == (360, 40)
    assert (hits >= 53).all()
    assert by_battle <= 40, "resampling battles, as if seeds made new ones"


def test_an_ablation_of_runs_with_different_held_out_battles_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_validation(run: Path) -> runs.HeldOut:
        ids = ["1", "3" if "softmax" in run.name else "2"]
        return runs.HeldOut(ids, np.arange(2), np.zeros((2, 3)), np.array([0, 1]))

    monkeypatch.setattr(runs, "read_validation", read_validation)
    with pytest.raises(ModelError, match="held out different battles"):
        evaluate(tmp_path, "tiny", 0, 1)


def test_an_error_that_is_not_of_the_labels_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("something else")

    header = "id,winner_model_a,winner_model_b,winner_tie\n"
    (tmp_path / "a.csv").write_text(f"{header}1,1,0,0\n")
    monkeypatch.setattr("prefcli.metrics._of_battles", broken)
    with pytest.raises(ValueError, match="something else"):
        pipeline.score(tmp_path / "a.csv", tmp_path / "a.csv")

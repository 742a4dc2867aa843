"""A run knows which prompts it was trained on, and a prediction says how many of its battles have one of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import Result, battle, write_csv

import prefcli
from prefcli.battles import prompt_key
from prefcli.errors import ModelError
from prefcli.options import TrainOptions
from prefcli.storage import files, runs
from prefcli.storage.workspace import MAX_RECORDED, Workspace

Cli = Callable[..., Result]


def make_run(folder: Path, folds: int = 0) -> Path:
    """The beginning of a run: what names its members."""
    runs.write_config(folder, TrainOptions(architecture="features", folds=folds), {})
    for number in range(1, folds + 1):
        make_run(folder / f"fold-{number}")
    return folder


def test_prompts_are_kept_sorted_once_each_and_compactly(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert runs.training_prompts(run) is None, "a run of an earlier release does not know"
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=50_000)
    runs.write_training_prompts(run, np.concatenate([keys, keys[:1000]]))
    assert np.array_equal(runs.training_prompts(run), sorted(set(keys.tolist())))
    # Sorted random integers of 64 bits, 50,000 of them: 8 bytes each, less what the order saves.
    assert (run / runs.TRAINING_PROMPTS).stat().st_size < 7 * 50_000
    (run / runs.TRAINING_PROMPTS).write_bytes(b"PAR1 damaged")
    with pytest.raises(ModelError, match="training_prompts.parquet cannot be read"):
        runs.training_prompts(run)


def test_a_run_of_folds_was_trained_on_the_prompts_of_all_folds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", folds=2)
    runs.write_training_prompts(run / "fold-1", np.array([5, 3, 9]))
    assert runs.training_prompts(run) is None, "one fold is not known"
    runs.write_training_prompts(run / "fold-2", np.array([9, -7]))
    assert runs.training_prompts(run).tolist() == [-7, 3, 5, 9]
    assert runs.training_prompts(run / "fold-1").tolist() == [3, 5, 9]


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [battle(i, winner=i % 3, prompt=[f"question {i // 2}"]) for i in range(40)]
    return write_csv(tmp_path_factory.mktemp("votes") / "votes.csv", rows)


def test_a_prediction_counts_the_battles_whose_prompt_the_run_was_trained_on(cli: Cli, votes: Path) -> None:
    assert cli("train", votes, "--architecture", "features", "--output", "run", "--validation", 0.25).code == 0
    held_out = set(pq.read_table("run/validation.parquet")["id"].to_pylist())
    table = pd.read_csv(votes, dtype={"id": str})
    trained = {prompt_key(json.loads(prompt)) for prompt in table[~table["id"].isin(held_out)]["prompt"]}
    assert set(runs.training_prompts(Path("run")).tolist()) == trained
    assert runs.TRAINING_PROMPTS in files.read_checksums(Path("run"))

    done = cli("predict", votes, "--model", "run", "--output", "all.csv", "--json")
    assert done.json()["trained_on"] == [40 - len(held_out)]
    assert f"{40 - len(held_out)} of 40 battles have a prompt that run was trained on" in done.err
    limited = cli("predict", votes, "--model", "run", "--output", "few.csv", "--limit", 10, "--json")
    assert limited.json()["trained_on"] == [sum(name not in held_out for name in table["id"][:10])]
    assert Workspace(".prefcli").runs_of_predictions(Path("all.csv")) == [Path("run").resolve()]

    table[table["id"].isin(held_out)].to_csv("unseen.csv", index=False)
    done = cli("predict", "unseen.csv", "--model", "run", "--output", "unseen-preds.csv", "--json")
    assert done.json()["trained_on"] == [0]
    assert "trained on" not in done.err

    (Path("run") / runs.TRAINING_PROMPTS).unlink()
    assert "training_prompts.parquet is gone" in cli("predict", votes, "--model", "run", "--output", "damaged.csv").err
    runs.seal(Path("run"), trained=True)
    done = cli("predict", votes, "--model", "run", "--output", "old.csv", "--json")
    assert done.json()["trained_on"] == [None], "a run of an earlier release: nothing is claimed"
    assert "trained on" not in done.err


def test_each_fold_knows_its_own_prompts_and_the_mean_over_folds_has_seen_all(votes: Path) -> None:
    prefcli.train(votes, output="folds", architecture="features", folds=3)
    for number in (1, 2, 3):
        fold = Path("folds", f"fold-{number}")
        held_out = runs.read_validation(fold)
        assert not np.isin(held_out.keys, runs.training_prompts(fold)).any(), "out of fold is legitimate"
        (unseen,) = prefcli.predict(votes, f"{number}.csv", models=[fold]).trained_on
        assert unseen == 40 - len(held_out.ids)
    both = prefcli.predict(votes, "both.csv", models=["folds", "folds/fold-1"])
    assert both.trained_on[0] == 40
    assert Workspace(".prefcli").runs_of_predictions(Path("both.csv")) == [
        Path("folds").resolve(), Path("folds/fold-1").resolve()
    ]  # fmt: skip


def test_the_record_of_predictions_goes_by_content_and_is_bounded(workspace: Workspace, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    output = tmp_path / "preds.csv"
    for number in range(MAX_RECORDED + 3):
        output.write_text(str(number))
        workspace.record_predictions(output, [run])
    copy = shutil.copy(output, tmp_path / "renamed.csv")
    assert workspace.runs_of_predictions(Path(copy)) == [run]
    records = {path.stem for path in (workspace.root / "predictions").iterdir()}
    assert len(records) == MAX_RECORDED
    assert hashlib.sha256(b"0").hexdigest() not in records
    output.write_text("edited")
    assert workspace.runs_of_predictions(output) == []
    shutil.rmtree(run)
    assert workspace.runs_of_predictions(Path(copy)) == []

"""Ids: those of the file are unique in every verb, and those that are invented never join two files by themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, battle, write_csv

from prefcli.errors import InputError
from prefcli.options import TrainOptions
from prefcli.pipeline.train import find_data
from prefcli.readers import open_battles
from prefcli.reporting import SILENT
from prefcli.storage import files
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]
FAST = ("--architecture", "features", "--text", "raw")


def write_pairs(path: Path, order: range, **more: Callable[[int], Any]) -> Path:
    """Chosen and rejected answers without ids."""
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"Yes {i}. " * (i + 1), "rejected": "No. " * (i % 7)}
        | {name: value(i) for name, value in more.items()}
        for i in order
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("verb", [["eda"], ["preprocess"], ["train", "--recipe", "fast"], ["predict"], ["ablate"]])
def test_every_verb_refuses_an_id_that_occurs_twice(cli: CLI, tmp_path: Path, verb: list[str]) -> None:
    path = write_csv(tmp_path / "votes.csv", [battle(1), battle(2), battle(1)])
    run = [] if verb != ["predict"] else ["--model", _run(cli, tmp_path)]
    for _ in range(2):  # from the file, and from the cache
        refused = cli(verb[0], path, *verb[1:], *run)
        assert refused.code == 2
        assert "id '1' occurs twice, in rows 1 and 3" in refused.err


def _run(cli: CLI, tmp_path: Path) -> Path:
    path = write_csv(tmp_path / "train.csv", [battle(i, i % 3) for i in range(30)])
    done = cli("train", path, *FAST, "--validation", 0, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("columns", "invented"),
    [({}, 6), ({"id": lambda i: f"x{i}"}, 0), ({"prompt_id": lambda i: f"p{i // 2}"}, 3)],
    ids=["none", "ids", "repeated"],
)
def test_invented_ids_are_counted(tmp_path: Path, columns: dict[str, Any], invented: int) -> None:
    battles = open_battles(write_pairs(tmp_path / "pairs.jsonl", range(6), **columns))
    assert sum(counts.invented_ids for _, counts in battles.batches()) == invented


def test_soft_labels_join_battles_without_ids_only_with_predictions_of_the_same_file(cli: CLI, tmp_path: Path) -> None:
    pairs, workspace = write_pairs(tmp_path / "pairs.jsonl", range(30)), Workspace(".prefcli")
    assert cli("predict", pairs, "--model", _run(cli, tmp_path), "--output", "teacher.csv").code == 0
    shutil.copytree(tmp_path / "run", "self-trained")
    config = json.loads(Path("self-trained/config.json").read_text())
    config["data"]["source_sha256"] = files.sha256(pairs)
    Path("self-trained/config.json").write_text(json.dumps(config))
    for run in (tmp_path / "run", "self-trained"):
        shutil.copy("teacher.csv", Path(run, "validation.parquet"))

    def join(soft_labels: Path | str) -> None:
        find_data(pairs, workspace, TrainOptions(architecture="features", soft_labels=str(soft_labels)), SILENT)

    join("teacher.csv")
    join("self-trained/validation.parquet")
    Path("edited.csv").write_text(Path("teacher.csv").read_text() + "\n")
    Path("other.csv").write_text("id,winner_model_a,winner_model_b,winner_tie\n1,0.5,0.3,0.2\n")
    workspace.record_predictions(Path("other.csv"), [], files.sha256(Path("teacher.csv")))
    for other in ("edited.csv", "other.csv", tmp_path / "run" / "validation.parquet"):
        with pytest.raises(InputError, match="soft labels are joined by id, and the battles have no ids"):
            join(other)

"""Several sources in one training: how they are read, fitted, kept in a run, and chosen at prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, battle, write_csv

from prefcli import groups
from prefcli.battles import BATTLE_SCHEMA, Source
from prefcli.errors import InputError
from prefcli.pipeline.stages import preprocess_stage, read_stage
from prefcli.storage.workspace import Workspace


def sources_of(source: Source, workspace: Workspace) -> list[str]:
    return [str(name) for name in read_stage(source, workspace).table(["source"])["source"].to_pylist()]


def write_pairs(path: Path, count: int, *, first: int = 1) -> Path:
    """Chosen and rejected answers, which cannot be ties."""
    rows = [{"prompt": f"pair {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_of_several_files_is_a_source_and_one_file_is_read_as_before(tmp_path: Path, workspace: Workspace) -> None:
    one = write_csv(tmp_path / "judge.csv", [battle(1), battle(2)])
    other = write_csv(tmp_path / "people.v2.csv", [battle(3)])
    both = read_stage(Source((one, other)), workspace)
    assert both.table(["source"])["source"].to_pylist() == ["judge", "judge", "people.v2"]
    assert preprocess_stage(both, workspace, "raw").table(["source"])["source"].to_pylist()[-1] == "people.v2"
    alone = read_stage(one, workspace)
    assert alone.table().schema.remove_metadata() == BATTLE_SCHEMA.remove_metadata()
    assert not {"source", "by"} & alone.metadata["options"].keys()


def test_files_of_one_name_in_two_folders_are_two_sources() -> None:
    assert Source((Path("a/votes.csv"), Path("b/votes.csv.gz"))).file_sources == ("votes.csv", "votes.csv.gz")
    assert Source((Path("a/votes.csv"), Path("b/votes.csv"))).file_sources == ("a/votes.csv", "b/votes.csv")
    assert Source((Path("a.csv"), Path("b.csv")), source="who").file_sources == ()


def test_a_column_says_whose_votes_battles_are_and_an_empty_cell_is_a_source_too(
    tmp_path: Path, workspace: Workspace
) -> None:
    rows = [{**battle(i), "who": name} for i, name in enumerate(["judge", "", " people "])]
    path = write_csv(tmp_path / "votes.csv", rows, columns=list(rows[0]))
    assert sources_of(Source.of(path, source="who"), workspace) == ["judge", "(no source)", "people"]
    two = write_csv(tmp_path / "more.csv", [{**battle(9), "who": "judge"}], columns=list(rows[0]))
    assert sources_of(Source((path, two), source="who"), workspace)[-1] == "judge"  # the column, not the files
    with pytest.raises(InputError, match="(?s)missing column whom.*Did you mean who"):
        read_stage(Source.of(path, source="whom"), workspace)


def test_files_of_different_layouts_are_read_together(tmp_path: Path, workspace: Workspace) -> None:
    votes = write_csv(tmp_path / "votes.csv", [battle(i, winner=i % 3) for i in range(6)])
    soft = [{"prompt": "p", "response_a": "a", "response_b": "b", "p_a": 0.2, "p_b": 0.3, "p_tie": 0.5}]
    (tmp_path / "soft.jsonl").write_text("".join(json.dumps({**row, "id": "s1"}) + "\n" for row in soft))
    stage = read_stage(Source((votes, write_pairs(tmp_path / "pairs.jsonl", 3), tmp_path / "soft.jsonl")), workspace)
    table = stage.table()
    assert table["source"].to_pylist() == ["votes"] * 6 + ["pairs"] * 3 + ["soft"]
    assert table["label"].to_pylist()[:6] == [0, 1, 2, 0, 1, 2]
    assert 2 not in table["label"].to_pylist()[6:9]
    assert table["p_tie"].to_pylist() == [None] * 9 + [0.5]
    assert len(set(table["id"].to_pylist())) == 10
    assert stage.metadata["counts"]["invented_ids"] == 3
    assert stage.metadata["options"]["chosen"] is False  # votes say which answer is A


def test_battles_are_grouped_by_their_source(tmp_path: Path, workspace: Workspace, cli: Callable[..., Result]) -> None:
    one = write_csv(tmp_path / "judge.csv", [battle(i, winner=i % 3) for i in range(6)])
    other = write_csv(tmp_path / "people.csv", [battle(i, winner=0) for i in range(6, 9)])
    (batch, *_) = read_stage(Source((one, other), by="source"), workspace).batches()
    assert groups.of(batch, "source").to_pylist() == ["judge"] * 6
    result = cli("eda", one, other, "--by", "source", "--json")
    assert [(group["name"], group["battles"]) for group in result.json()["by"]] == [("judge", 6), ("people", 3)]
    assert cli("eda", one, "--by", "source").code == 2  # one file is one source
    labels = write_csv(
        tmp_path / "labels.csv", [{**battle(i, winner=i % 2), "who": "xy"[i % 2]} for i in range(4)],
        columns=[*battle(1), "who"],
    )  # fmt: skip
    preds = write_csv(
        tmp_path / "preds.csv",
        [{"id": i, "winner_model_a": 0.5, "winner_model_b": 0.25, "winner_tie": 0.25} for i in range(4)],
        columns=["id", "winner_model_a", "winner_model_b", "winner_tie"],
    )
    scores: Any = cli("score", preds, labels, "--source", "who", "--by", "source", "--json").json()["by"]
    assert {group["group"]: round(group["log_loss"], 4) for group in scores["groups"]} == {"x": 0.6931, "y": 1.3863}

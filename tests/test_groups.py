"""Groups of battles: columns of any layout, and what is computed from the battles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import battle, write_csv

from prefcli import groups, readers
from prefcli.battles import Source
from prefcli.errors import InputError
from prefcli.pipeline.stages import read_stage
from prefcli.storage.workspace import Workspace


def groups_of(path: Path | list[Path], by: str, **reading: Any) -> list[str | None]:
    file = readers.open_battles(Source.of(path, by=by, **reading))
    return [name for batch, _ in file.batches() for name in batch.column("group").to_pylist()]


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_column_gives_each_battle_its_group_and_an_empty_cell_none(tmp_path: Path) -> None:
    rows = [{**battle(1), "lang": "en"}, {**battle(2), "lang": " "}, {**battle(3), "lang": "日本語"}]
    path = write_csv(tmp_path / "train.csv", rows, columns=list(rows[0]))
    assert groups_of(path, "lang") == ["en", None, "日本語"]


def test_paths_numbers_and_lists_name_groups_as_json_spells_them(tmp_path: Path) -> None:
    answers = {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a"}
    values: list[Any] = [True, 7, 0.5, ["x", "y"], None, "plain"]
    path = write_json_lines(tmp_path / "votes.jsonl", [{**answers, "meta": {"tag": value}} for value in values])
    assert groups_of(path, "meta.tag") == ["true", "7", "0.5", '["x", "y"]', None, "plain"]


def test_rows_that_are_left_out_or_give_several_battles_keep_their_own_groups(tmp_path: Path) -> None:
    votes = [
        {"prompt": "p", "response_a": "a", "response_b": "b", "vote": v, "g": v + "!"} for v in ("l", "skipped", "r")
    ]
    path = write_json_lines(tmp_path / "votes.jsonl", votes)
    assert groups_of(path, "g", outcome="vote: l=a, r=b, skipped=skip") == ["l!", "r!"]
    lists = [
        {"prompt": "p", "answers": [{"text": t, "score": i} for i, t in enumerate(texts)], "g": len(texts)}
        for texts in ("a", "abc", "de")
    ]
    path = write_json_lines(tmp_path / "lists.jsonl", lists)
    assert groups_of(path, "g", each="answers: text=text, score=score") == ["3", "3", "3", "2"]
    pairs = [{"prompt": "p", "chosen": f"c{i}", "rejected": f"r{i}", "subset": f"s{i}"} for i in range(3)]
    assert groups_of(write_json_lines(tmp_path / "pairs.jsonl", pairs), "subset") == ["s0", "s1", "s2"]


def test_computed_groups_are_those_of_the_texts_and_models(tmp_path: Path) -> None:
    rows = [
        battle(1, prompt=["Hello"], response_a=["x" * 251], response_b=[""], model_a="z", model_b="a"),
        battle(2, prompt=["Привет", "ещё"], response_a=["x" * 250, "b"], response_b=[None], model_a="a", model_b="z"),
        battle(3, prompt=["東京です"] * 7, response_a=["x" * 1000] * 7, response_b=["b"]),
        battle(4, prompt=["123"]),
    ]
    path = write_csv(tmp_path / "train.csv", rows)
    assert groups_of(path, "script") == ["Latin", "Cyrillic", "Kana", "no letters"]
    assert groups_of(path, "turns") == ["1", "2", "5 or more", "1"]
    assert groups_of(path, "length") == ["251 to 500", "251 to 500", "over 4,000", "up to 250"]
    assert groups_of(path, "models")[:2] == ["a vs z", "a vs z"]


def test_a_column_comes_before_a_computed_group_of_its_name_and_this_is_said(tmp_path: Path, cli: Any) -> None:
    rows = [{**battle(i), "length": str(i % 2)} for i in range(4)]
    path = write_csv(tmp_path / "train.csv", rows, columns=list(rows[0]))
    assert groups_of(path, "length") == ["0", "1", "0", "1"]
    assert groups.describe("length", is_column=True) == (
        "grouped by the file's column length, not characters of the longer answer"
    )
    assert groups.describe("turns", is_column=False) == "grouped by turns: turns of the prompt"


def test_an_unknown_column_is_refused_with_what_there_is(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [{**battle(1), "language": "en"}], columns=[*battle(1), "language"])
    with pytest.raises(InputError, match="(?s)missing column langage; found .*Did you mean language") as raised:
        groups_of(path, "langage")
    assert raised.value.where == str(path)
    with pytest.raises(InputError, match="Did you mean script"):
        groups_of(path, "scripts")
    with pytest.raises(InputError, match="(?s)--by takes a column.*script, length, turns, models"):
        groups_of(path, "nothing_like_it")


def test_one_file_with_the_column_and_one_without_are_refused(tmp_path: Path) -> None:
    one = write_csv(tmp_path / "one.csv", [{**battle(1), "turns": "x"}], columns=[*battle(1), "turns"])
    other = write_csv(tmp_path / "other.csv", [battle(2)])
    with pytest.raises(InputError, match="column turns is in one file and not in the other"):
        groups_of([one, other], "turns")


def test_stages_are_cached_for_each_grouping_and_battles_without_one_are_not_read_again(
    tmp_path: Path, workspace: Workspace
) -> None:
    rows = [{**battle(i), "lang": "en" if i % 2 else "de"} for i in range(4)]
    path = write_csv(tmp_path / "train.csv", rows, columns=list(rows[0]))
    plain = read_stage(path, workspace)
    by_lang, by_turns = (read_stage(Source.of(path, by=by), workspace) for by in ("lang", "turns"))
    assert len({plain.fingerprint, by_lang.fingerprint, by_turns.fingerprint}) == 3
    assert "group" not in plain.table().column_names
    again = read_stage(Source.of(path, by="lang"), workspace)
    assert again.reused
    (batch,) = again.batches()
    assert groups.of(batch, "lang").to_pylist() == ["de", "en", "de", "en"]
    assert groups.of(batch, "turns").to_pylist() == ["1"] * 4  # not the column that was asked for under another name
    with pytest.raises(InputError, match="battles have no groups by 'subset'"):
        groups.of(batch, "subset")


def test_groups_do_not_change_how_a_file_is_read() -> None:
    source = Source.of("train.csv", by="lang")
    assert source.reading == {}
    assert not source.is_described


def test_groups_come_by_size_and_bins_in_their_natural_order() -> None:
    assert groups.in_order({"b": 1, "a": 1, "c": 5}, "lang") == ["c", "a", "b"]
    assert groups.in_order({"over 4,000": 9, "up to 250": 1}, "length") == ["up to 250", "over 4,000"]
    assert groups.in_order({"1": 9, "5 or more": 2, "0": 3}, "turns") == ["0", "1", "5 or more"]
    assert groups.in_order({"7": 9, "20": 10}, "length") == ["20", "7"]  # the file's own column of the name


def test_tables_in_memory_have_groups_too() -> None:
    table = pa.table({"prompt": ["p"], "response_a": ["a"], "response_b": ["b"], "winner": ["tie"], "k": [3]})
    assert readers.battles_from(table, Source((), by="k")).column("group").to_pylist() == ["3"]

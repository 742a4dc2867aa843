"""Battles with problems are found, each with its reason, and written with ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import Result, battle, write_csv
from sklearn.linear_model import LogisticRegression

from prefcli import pipeline
from prefcli.battles import make_batch
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.exploration import effects, near, trouble
from prefcli.exploration.measures import MARKUP, measure_all
from prefcli.pipeline import eda_problems
from prefcli.storage import runs
from prefcli.storage.workspace import Workspace
from prefcli.training import experiment

CLI = Callable[..., Result]
WORDS = "river stone light garden window paper silver morning letter quiet".split()


def text(seed: int, length: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


def batches_of(rows: list[dict[str, Any]]) -> Callable[[], Iterator[pa.RecordBatch]]:
    """Battles in two batches; a row has id, prompt, a, b, label."""

    def column(name: str) -> pa.Array:
        return pa.array([[row[name]] for row in rows], pa.list_(pa.string()))

    batch = make_batch({
        "id": pa.array([row["id"] for row in rows]), "prompt": column("prompt"), "response_a": column("a"),
        "response_b": column("b"), "label": pa.array([row["label"] for row in rows], pa.int8()),
    })  # fmt: skip
    half = len(rows) // 2
    return lambda: iter([batch.slice(0, half), batch.slice(half)])


def row(name: str, prompt: str, a: str, b: str, label: int | None = 0) -> dict[str, Any]:
    return {"id": name, "prompt": prompt, "a": a, "b": b, "label": label}


def found(*arguments: Any) -> set[tuple[str, str, str | None]]:
    problems, counted = trouble.find_problems(*arguments)
    assert sum(counted.counts.values()) == len(problems)
    return {(problem.id, problem.problem, problem.other_id) for problem in problems}


def test_repeated_and_contradictory_battles_are_found_in_either_order_of_the_answers() -> None:
    p, q, a, b = (text(seed) for seed in range(4))
    rows = [row("first", p, a, b, 0), row("same", p, a, b, 0), row("swapped", p, b, a, 1), row("opposite", p, b, a, 0),
            row("tie", p, a, b, 2), row("other", q, a, b, 1), row("unlabelled", q, a, b, None)]  # fmt: skip
    duplicates = {(name, "duplicate", "first") for name in ("same", "swapped", "opposite", "tie")}
    duplicates.add(("unlabelled", "duplicate", "other"))
    contradictory = {(name, "contradictory", "opposite") for name in ("first", "same", "swapped")}
    contradictory.add(("opposite", "contradictory", "first"))
    assert found(batches_of(rows)) == duplicates | contradictory
    reasons = {problem.id: problem.reason for problem in trouble.find_problems(batches_of(rows))[0]}
    assert reasons["unlabelled"] == "same prompt and answers"


def test_identical_answers_contradict_nothing() -> None:
    rows = [row("1", "p", "same", "same", 0), row("2", "p", "same", "same", 1)]
    assert found(batches_of(rows)) == {("2", "duplicate", "1")}


def jaccard(first: str, second: str) -> float:
    """By sets of substrings, not of hashes."""
    one, two = ({t[i : i + 5] for i in range(max(1, len(t) - 4))} for t in (first.lower(), second.lower()))
    return len(one & two) / len(one | two)


@pytest.mark.parametrize(("first", "second"), [
    (text(1), text(2)), (text(1), text(1) + " and more"), ("Nein", "nein"), ("", ""), ("", "abc"),
    ("鳥が空を飛ぶのを見た", "鳥が空を飛ぶのを見ました"), ("a😀b" * 9, "a😀c" * 9), ("abcdef", "abcde"),
])  # fmt: skip
def test_similarity_is_jaccards_index_of_character_5_grams(first: str, second: str) -> None:
    sets = [np.unique(near.ngrams(value)) for value in (first, second)]
    assert near.similarity(*sets) == pytest.approx(jaccard(first, second))


def changed(original: str, words: int) -> str:
    parts = original.split()
    for i in range(words):
        parts[7 * i + 3] = "unrelated"
    return " ".join(parts)


def test_near_duplicates_are_those_whose_prompt_and_answers_are_alike() -> None:
    p, a, b = text(1), text(2), text(3)
    rows = [
        row("first", p, a, b),
        row("near", changed(p, 1), a, changed(b, 1)),
        row("near-swapped", p, b, a + " or so"),
        row("other-answer", p, a, text(4)),
        row("other-prompt", text(5), a, b),
        row("far", changed(p, 8), changed(a, 8), b),
        row("empty-1", "", "", ""),
        row("empty-2", " ", "x", ""),
    ]
    assert jaccard(a, changed(a, 1)) > 0.8 > jaccard(a, changed(a, 8))
    assert found(batches_of(rows)) == {("near", "near_duplicate", "first"), ("near-swapped", "near_duplicate", "first")}


def test_nearly_all_near_duplicates_among_many_battles_are_found_and_nothing_else() -> None:
    rows = [row(f"b{i}", text(3 * i), text(3 * i + 1), text(3 * i + 2)) for i in range(200)]
    rows += [row(f"n{i}", rows[i]["prompt"], changed(rows[i]["a"], 1), rows[i]["b"]) for i in range(100)]
    names = found(batches_of(rows))
    assert names <= {(f"n{i}", "near_duplicate", f"b{i}") for i in range(100)}
    assert len(names) >= 99


def test_prompts_that_are_also_in_the_test_file_are_found_exactly_and_nearly() -> None:
    prompts = {"exact": text(1), "case": text(2).upper(), "near": changed(text(3), 1), "other": text(4)}
    rows = [row(name, prompt, "x", name) for name, prompt in prompts.items()]
    test = [row(f"t{i}", text(i), "unrelated", "texts", None) for i in (1, 2, 3, 9)]
    assert found(batches_of(rows), batches_of(test)) == {
        ("exact", "prompt_in_test", "t1"), ("case", "prompt_in_test", "t2"), ("near", "near_prompt_in_test", "t3"),
    }  # fmt: skip


def test_battles_like_very_many_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MAX_CANDIDATES", 2)
    p, a = text(1), text(2)
    rows = [row(str(i), p, a, changed(text(3), 1).replace("unrelated", f"word{i}")) for i in range(5)]
    problems, counted = trouble.find_problems(batches_of(rows))
    assert counted.not_compared == 2
    assert len(problems) == 4


def test_label_errors_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    p = np.array(
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.5, 0.45, 0.05], [0.3, 0.3, 0.4]]
    )
    # Thresholds: A (0.8 + 0.6 + 0.1) / 3 = 0.5, B (0.7 + 0.45) / 2 = 0.575, tie 0.4.
    assert trouble.confident_outcomes(labels, p).tolist() == [0, 0, 1, 1, 0, 2]
    problems = trouble.label_errors([*"abcdef"], labels, p)
    assert [problem.id for problem in problems] == ["c", "e"]
    assert problems[0].reason == "labelled A, a model that did not see it gives A 0.10, B 0.80, tie 0.10"


def test_planted_label_errors_are_named_first_by_a_good_model() -> None:
    random = np.random.default_rng(0)
    p = random.dirichlet([0.4, 0.4, 0.4], 4000)
    truth = (p.cumsum(axis=1) > random.random((4000, 1))).argmax(axis=1)
    planted = random.random(4000) < 0.05
    labels = np.where(planted, (truth + random.integers(1, 3, 4000)) % 3, truth)
    named = [int(problem.id) for problem in trouble.label_errors([*map(str, range(4000))], labels, p)]
    assert planted[named[:50]].mean() > 0.6


def test_an_outcome_that_is_no_label_is_never_suggested() -> None:
    labels = np.array([0, 1, 0, 1])
    p = np.array([[0.1, 0.1, 0.8]] * 4)
    assert set(trouble.confident_outcomes(labels, p).tolist()) <= {0, 1}


@pytest.mark.parametrize("name", ["problems.csv", "problems.jsonl", "problems.parquet"])
def test_problems_are_exported_by_file_name_and_counted(name: str, cli: CLI) -> None:
    twice = {"prompt": [text(1)], "response_a": [text(2)], "response_b": ['=1+1, "x"\n' + text(3)]}
    rows = [battle(1, 0, **twice), battle(2, 1, **twice), battle(3, 0), battle(4, 2)]
    write_csv(Path("train.csv"), rows)
    write_csv(Path("test.csv"), [battle(3)])
    done = cli("eda", "train.csv", "--test", "test.csv", "--export", name, "--json")
    assert done.code == 0, done.err
    assert done.json()["trouble"]["counts"] == {
        "prompt_in_test": 1, "near_prompt_in_test": 0, "duplicate": 1, "near_duplicate": 0, "contradictory": 2,
    }  # fmt: skip
    readers = {"csv": lambda p: pd.read_csv(p, dtype=str), "parquet": pd.read_parquet,
               "jsonl": lambda p: pd.DataFrame([json.loads(line) for line in p.read_text().splitlines()])}  # fmt: skip
    table = readers[name.partition(".")[2]](Path(name))
    assert list(table.columns) == ["id", "problem", "reason", "other_id"]
    assert table[["id", "problem", "other_id"]].to_numpy().tolist() == [
        ["3", "prompt_in_test", "3"], ["2", "duplicate", "1"], ["1", "contradictory", "2"], ["2", "contradictory", "1"],
    ]  # fmt: skip
    assert cli("eda", "train.csv", "--export", name).code == 2  # it is there
    if name == "problems.csv":
        assert "same battle, opposite outcome" in cli("eda", "train.csv", "--export", name, "--force").out


def test_a_file_without_problems_has_an_empty_export() -> None:
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        eda_problems.write_problems([], Path(name))
    assert Path("p.csv").read_text() == "id,problem,reason,other_id\n"
    assert Path("p.jsonl").read_text().strip() == ""
    assert len(pd.read_parquet("p.parquet")) == 0


def test_exports_that_cannot_be_are_refused_before_anything_is_read(cli: CLI, tmp_path: Path) -> None:
    write_csv(Path("train.csv"), [battle(1), battle(2, 1)])
    for line in ("train.csv --export p.xlsx", "train.csv --label-errors", "train.csv --export train.csv --force",
                 "- --export p.csv --label-errors"):  # fmt: skip
        arguments = line.split()
        refused = cli("eda", *arguments)
        assert refused.code == 2, arguments
        assert not (tmp_path / ".prefcli").exists()
        assert Path("train.csv").read_text().count("\n") == 3


@pytest.mark.slow
def test_label_errors_come_from_models_that_did_not_see_the_battle(
    demo_files: Demo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every probability in a reason is one of the run with folds, which is gone afterwards."""
    monkeypatch.setattr(eda_problems, "FOLDS", 2)
    held_out: list[runs.HeldOut] = []
    read = runs.read_validation
    monkeypatch.setattr(runs, "read_validation", lambda folder: held_out.append(read(folder)) or held_out[-1])
    monkeypatch.setattr(experiment, "not_better_than_prior", lambda *arguments, **more: "")  # of 120 battles, it is not
    statistics = pipeline.eda(demo_files.train, workspace, export="p.csv", label_errors=True)
    assert statistics.trouble is not None
    table = pd.read_csv("p.csv", dtype=str)
    named = table[table["problem"] == "label_error"]
    assert len(named) == statistics.trouble.counts["label_error"] > 0
    assert len(held_out[0].ids) == 240
    suspicious = trouble.label_errors(
        held_out[0].ids, held_out[0].labels, held_out[0].probabilities(swap_average=False)
    )
    assert named["id"].tolist() == [problem.id for problem in suspicious]
    assert not list(workspace.root.glob("**/booster.txt"))
    assert workspace.latest("train") is None


@pytest.mark.slow
def test_no_label_errors_are_named_where_no_model_can_tell(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eda_problems, "FOLDS", 2)
    random = np.random.default_rng(0)
    write_csv(Path("noise.csv"), [battle(i, int(random.integers(3)), prompt=[text(i, 4)]) for i in range(90)])
    done = cli("eda", "noise.csv", "--export", "p.csv", "--label-errors", "--json")
    assert done.code == 0, done.err
    assert "no label errors are named" in done.err
    assert "label_error" not in done.json()["trouble"]["counts"]


# odds


def answers_with(random: np.random.Generator, n: int, **counts: np.ndarray) -> list[dict[str, Any]]:
    """Battles whose answers have so many headings and bold words, and whose longer answer mostly wins."""
    rows = []
    for i in range(n):
        sides = []
        for side in range(2):
            parts = ["word " * int(random.integers(5, 60))]
            parts += ["\n# heading"] * int(counts["headings"][i, side]) + ["**bold** "] * int(counts["bold"][i, side])
            parts += ["\n```\n"] * int(counts["code"][i, side])
            sides.append("".join(parts))
        longer = len(sides[0]) > len(sides[1])
        rows.append(row(str(i), f"p{i}", *sides, int(longer != (random.random() < 0.7))))
    return rows


def test_a_rare_or_dependent_property_is_left_out_and_the_others_keep_their_odds() -> None:
    random = np.random.default_rng(0)
    n = 400
    headings = random.integers(0, 4, (n, 2))
    rare = np.zeros((n, 2), dtype=int)
    rare[:3, 0] = 1
    rows = answers_with(random, n, headings=headings, bold=headings, code=rare)
    stats, _, _ = measure_all(batches_of(rows)())
    by_name = {effect.what: effect for effect in effects.property_effects(stats)}
    assert by_name["code blocks"].left_out == "fewer than 10 battles differ"
    assert by_name["bold"].left_out == "the others determine it"
    assert by_name["code blocks"].odds is by_name["bold"].odds is None
    a_won = np.array([each["label"] == 0 for each in rows])
    lengths = np.log1p(stats.characters[:, 1:])
    marks = np.log1p(stats.markup[:, list(MARKUP).index("headings")])
    x = np.stack([lengths[:, 0] - lengths[:, 1], marks[:, 0] - marks[:, 1]], axis=1)
    model = LogisticRegression(C=1e9, max_iter=1000).fit(x / x.std(axis=0), a_won)
    odds = [by_name[name].odds for name in ("length", "headings")]
    assert odds == pytest.approx(np.exp(model.coef_[0]), rel=1e-3)
    said = effects.describe_left_out(list(by_name.values()))
    assert "bold (the others determine it)" in said
    assert "code blocks (fewer than 10 battles differ)" in said


def test_a_property_that_decides_every_battle_does_not_take_the_odds_of_the_others() -> None:
    random = np.random.default_rng(1)
    n = 300
    headings, bold = random.integers(0, 3, (n, 2)), np.zeros((n, 2), dtype=int)
    rows = answers_with(random, n, headings=headings, bold=bold, code=bold)
    for each in rows[:40]:
        each["b" if each["label"] == 0 else "a"] += "\n| table |"  # the loser has a table
    stats, _, _ = measure_all(batches_of(rows)())
    by_name = {effect.what: effect for effect in effects.property_effects(stats)}
    assert by_name["tables"].left_out == "it decides the outcome"
    assert by_name["length"].odds is not None
    assert by_name["headings"].odds is not None


def test_options_of_the_export_are_checked_from_python_too(demo_files: Demo, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="must end in"):
        pipeline.eda(demo_files.train, workspace, export="p.txt")
    with pytest.raises(InputError, match="needs a file"):
        pipeline.eda(demo_files.train, workspace, label_errors=True)

"""Groups of battles: columns of any layout, and what is computed from the battles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Result, battle, write_csv
from scipy import stats

from prefcli import groups, metrics, pipeline, readers
from prefcli.battles import Source
from prefcli.data import reward_bench
from prefcli.errors import InputError
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.pipeline.stages import read_stage
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]


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
        battle(4, prompt=["123"], response_a=["x" * 250], response_b=["b"]),
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
    with pytest.raises(InputError, match="(?s)a column.*--by also takes script, length, turns, models"):
        groups_of(path, "nothing_like_it")
    with pytest.raises(InputError, match="several files of votes, or named by --source"):
        groups_of(path, "source")


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


# scores by group


def write_predictions(path: Path, ids: Iterable[object], probabilities: np.ndarray) -> None:
    rows = [f"{i},{a!r},{b!r},{c!r}" for i, (a, b, c) in zip(ids, probabilities.tolist(), strict=True)]
    path.write_text("\n".join([f"id,{','.join(WINNER_COLUMNS)}", *rows]) + "\n")


def write_scored(folder: Path, groups_: list[str], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and prompts of battles that belong to the groups in turn, two to a prompt."""
    random = np.random.default_rng(7)
    labels, probabilities = random.integers(0, 3, n), random.dirichlet([1, 1, 1], n)
    prompts = np.arange(n) // 2 // len(groups_) * len(groups_) + np.arange(n) % len(groups_)
    rows = [
        {**battle(i, int(labels[i]), prompt=[f"Q{prompts[i]}"]), "lang": groups_[i % len(groups_)]} for i in range(n)
    ]
    write_csv(folder / "labels.csv", rows, list(rows[0]))
    write_predictions(folder / "preds.csv", range(n), probabilities)
    return labels, probabilities, prompts


def test_each_group_has_the_metrics_of_its_battles_alone(tmp_path: Path, cli: CLI) -> None:
    labels, probabilities, prompts = write_scored(tmp_path, ["en", "de", ""], 300)
    done = cli("score", tmp_path / "preds.csv", tmp_path / "labels.csv", "--by", "lang", "--json")
    by = done.json()["by"]
    assert (by["column"], by["ungrouped"], [group["group"] for group in by["groups"]]) == ("lang", 100, ["de", "en"])
    assert done.json()["n"] == 300  # of all battles, those without a group too
    for number, group in enumerate(reversed(by["groups"])):
        of_group = np.arange(300) % 3 == number
        expected = metrics.score(probabilities[of_group], labels[of_group], groups=prompts[of_group])
        assert group == {
            **group,
            **{name: pytest.approx(value) for name, value in vars(expected).items() if name != "log_loss_ci"},
        }
        assert group["log_loss_ci"] == pytest.approx(expected.log_loss_ci, abs=0.02)  # other random numbers
        p, y = probabilities[of_group], labels[of_group]
        per_battle = {
            "accuracy": p.argmax(1) == y,
            "brier": ((p - np.eye(3)[y]) ** 2).sum(1),
            "binary_log_loss": -(np.where(np.eye(3)[y] == 1, np.log(p), np.log1p(-p))).mean(1),
        }
        for name, values in per_battle.items():
            by_prompt = np.stack(
                [values[prompts[of_group] == prompt].mean() for prompt in np.unique(prompts[of_group])]
            )
            low, high = stats.ttest_1samp(by_prompt, 0).confidence_interval()
            assert group[f"{name}_ci"] == pytest.approx((low, high), abs=0.08 * (high - low)), name
    assert "grouped by the file's column lang" in done.err


def test_groups_of_too_few_prompts_have_no_interval_and_this_is_said(tmp_path: Path, cli: CLI) -> None:
    write_scored(tmp_path, ["en", *["de"] * 4], 100)
    done = cli("score", tmp_path / "preds.csv", tmp_path / "labels.csv", "--by", "lang")
    assert "\nno interval for 1 of 2 groups: fewer than 20 prompts, or losses alike\n" in done.out
    result = pipeline.score(tmp_path / "preds.csv", Source.of(tmp_path / "labels.csv", by="lang"))
    assert result.by is not None
    few = result.by.groups[1]
    assert (few.group, few.log_loss_ci, few.accuracy_ci) == ("en", None, None)
    assert few.log_loss_ci_reason == "no interval: 10 prompts, 20 are needed"


def test_groups_are_scored_as_the_whole_file_is(tmp_path: Path) -> None:
    """A group without ties among three outcomes is not scored as two: groups would not be comparable."""
    rows = [{**battle(i, 2 if i < 40 else i % 2), "part": "ties" if i < 40 else "none"} for i in range(80)]
    write_csv(tmp_path / "labels.csv", rows, list(rows[0]))
    write_predictions(tmp_path / "preds.csv", range(80), np.full((80, 3), 1 / 3))
    result = pipeline.score(tmp_path / "preds.csv", Source.of(tmp_path / "labels.csv", by="part"))
    assert result.by is not None
    assert {group.outcomes for group in result.by.groups} == {3}
    assert all(group.log_loss == pytest.approx(np.log(3)) for group in result.by.groups)


def test_labels_without_texts_have_groups_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "id,winner_model_a,winner_model_b,winner_tie,lang\n1,1,0,0,en\n2,0,1,0,de\n3,0,0,1,en\n"
    )
    write_predictions(tmp_path / "preds.csv", [1, 2, 3], np.full((3, 3), 1 / 3))
    result = pipeline.score(tmp_path / "preds.csv", Source.of(tmp_path / "labels.csv", by="lang"))
    assert result.by is not None
    assert [(group.group, group.n, group.prompts) for group in result.by.groups] == [("en", 2, None), ("de", 1, None)]
    by_tie = pipeline.score(tmp_path / "preds.csv", Source.of(tmp_path / "labels.csv", by="winner_tie")).by
    assert by_tie is not None
    assert [(group.group, group.n) for group in by_tie.groups] == [("0", 2), ("1", 1)]
    assert str(by_tie.groups[1].prior_log_loss) == "0.0"
    with pytest.raises(InputError, match="there are no texts to group by length"):
        pipeline.score(tmp_path / "preds.csv", Source.of(tmp_path / "labels.csv", by="length"))


def test_an_empty_column_is_no_grouping(tmp_path: Path) -> None:
    write_scored(tmp_path, [""], 6)
    with pytest.raises(InputError, match="no battle is in a group: lang is empty"):
        pipeline.score(tmp_path / "preds.csv", Source.of(tmp_path / "labels.csv", by="lang"))


def test_several_files_have_the_same_groups_side_by_side(tmp_path: Path, cli: CLI) -> None:
    labels, probabilities, _ = write_scored(tmp_path, ["en", "de"], 100)
    write_predictions(tmp_path / "other.csv", range(100), probabilities[:, ::-1])
    files = [tmp_path / "preds.csv", tmp_path / "other.csv", tmp_path / "labels.csv", "--by", "lang"]
    result = cli("score", *files, "--json").json()
    for name, values in (("preds.csv", probabilities), ("other.csv", probabilities[:, ::-1])):
        by = {group["group"]: group["log_loss"] for group in result["scores"][name]["by"]["groups"]}
        assert by["en"] == pytest.approx(metrics.log_loss(values[::2], labels[::2]))
    assert "Log loss by lang" in cli("score", *files).out


PAIRS = 25


def write_reward_bench(folder: Path, subsets: Sequence[str], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Pairs of each subset; for each of its pairs the credit that its prediction deserves: 1, 0, or 1/2."""
    rows = [
        {
            "prompt": f"Q{i} of {subset}?",
            "chosen": f"Yes {i}.",
            "rejected": f"No {i}.",
            "subset": subset,
            "id": f"{subset}{i}",
        }
        for subset in subsets
        for i in range(PAIRS)
    ]
    path = write_json_lines(folder / "pairs.jsonl", rows)
    labels = np.concatenate([batch.column("label").to_numpy() for batch, _ in readers.open_battles(path).batches()])
    credit = random.choice([1.0, 0.0, 0.5], p=[0.6, 0.3, 0.1], size=len(rows))
    of_chosen = 0.5 + 0.3 * (credit - 0.5) * 2
    p_a = np.where(labels == 0, of_chosen, 1 - of_chosen)
    write_predictions(folder / "preds.csv", [row["id"] for row in rows], np.stack([p_a, 1 - p_a, 0 * p_a], axis=1))
    return {subset: credit[i * PAIRS : (i + 1) * PAIRS] for i, subset in enumerate(subsets)}


def test_reward_benchs_average_weighs_subsets_within_sections_and_sections_alike(tmp_path: Path, cli: CLI) -> None:
    subsets = sorted(reward_bench.SUBSETS)
    credit = write_reward_bench(tmp_path, subsets, np.random.default_rng(8))
    by = cli("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl", "--by", "subset", "--json").json()["by"]
    assert {group["group"]: group["accuracy"] for group in by["groups"]} == pytest.approx(
        {subset: values.mean() for subset, values in credit.items()}
    )
    # the numbers of examples that RewardBench publishes for each section: 358, 456, 740, 1,968 with PRM as code
    sizes = {section: sum(weights.values()) for section, weights in reward_bench.SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    expected = {
        section: sum(weight * credit[subset].mean() for subset, weight in weights.items()) / sizes[section]
        for section, weights in reward_bench.SECTIONS.items()
    }
    found = by["reward_bench"]
    assert {section["section"]: section["accuracy"] for section in found["sections"]} == pytest.approx(expected)
    assert found["average"] == pytest.approx(np.mean(list(expected.values())))
    variance = sum(
        (weight / sizes[section] / 4) ** 2 * credit[subset].var() / (PAIRS - 1)
        for section, weights in reward_bench.SECTIONS.items()
        for subset, weight in weights.items()
    )
    low, high = found["ci"]
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)
    assert found["missing"] == []


def test_an_incomplete_reward_bench_has_no_average_and_says_so(tmp_path: Path, cli: CLI) -> None:
    write_reward_bench(tmp_path, ["donotanswer", "hep-python", "mt-bench-hard"], np.random.default_rng(9))
    command = ("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl", "--by", "subset")
    found = cli(*command, "--json").json()["by"]["reward_bench"]
    assert (found["average"], [s["section"] for s in found["sections"]]) == (None, ["Chat Hard", "Safety", "Reasoning"])
    shown = cli(*command).out
    assert "not comparable with the leaderboard: 20 of its subsets are missing" in shown
    assert "Reasoning" in shown
    plain = cli("score", tmp_path / "preds.csv", tmp_path / "pairs.jsonl", "--by", "length", "--json").json()
    assert plain["by"]["reward_bench"] is None

"""Several files of predictions: paired differences against scipy's test and by simulation; files that do not fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, battle, write_csv
from scipy import stats
from sklearn.metrics import log_loss

from prefcli import metrics, pipeline
from prefcli.battles import Source
from prefcli.data import joining
from prefcli.outcomes import WINNER_COLUMNS

CLI = Callable[..., Result]


def repeated_prompts(random: np.random.Generator, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each battle's prompt (1 to 4 battles of each), and an effect that the battles of a prompt share."""
    groups = np.repeat(np.arange(prompts), random.integers(1, 5, prompts))
    return groups, random.normal(size=prompts)[groups]


def test_a_difference_has_the_interval_and_p_value_of_students_paired_test() -> None:
    random = np.random.default_rng(1)
    a = random.normal(0.0, 1, 400)
    b = a + random.normal(0.08, 0.5, 400)
    difference = metrics.compare(a, b)
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval()
    assert difference.difference == pytest.approx((a - b).mean(), abs=1e-12)
    assert difference.ci == pytest.approx((low, high), abs=0.004)
    assert difference.p == pytest.approx(expected.pvalue, abs=0.006)
    assert 0.001 < expected.pvalue < 0.2


@pytest.mark.parametrize("shift", [0.0, 0.055, 0.06, 0.065, 0.07, 0.3])
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_out_zero(shift: float) -> None:
    random = np.random.default_rng(2)
    a = random.normal(0, 1, 30)
    a -= a.mean()
    difference = metrics.compare(a + shift * 6, np.zeros(30))
    assert difference.ci is not None
    assert difference.p is not None
    assert (difference.p < 0.05) == (difference.ci[0] > 0)


def test_swapping_the_two_models_negates_the_difference_and_keeps_p() -> None:
    random = np.random.default_rng(3)
    a, b = random.exponential(size=(2, 200))
    one_way, other_way = metrics.compare(a, b), metrics.compare(b, a)
    assert one_way.ci is not None
    assert other_way.ci is not None
    assert one_way.difference == -other_way.difference
    assert one_way.ci == pytest.approx((-other_way.ci[1], -other_way.ci[0]))
    assert one_way.p == pytest.approx(other_way.p)


def test_false_alarms_are_5_percent_and_intervals_cover_when_prompts_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "DIFFERENCE_ROUNDS", 300)
    random = np.random.default_rng(4)
    alarms, naive = [], []
    for seed in range(300):
        groups, shared = repeated_prompts(random, 60)
        a = shared + random.normal(size=len(groups))
        difference = metrics.compare(a, np.zeros(len(a)), groups, seed=seed)
        assert difference.ci is not None
        assert difference.prompts == 60
        alarms.append(not difference.ci[0] <= 0 <= difference.ci[1])
        naive.append((metrics.compare(a, np.zeros(len(a)), seed=seed).p or 1) < 0.05)
    assert 0.03 <= np.mean(alarms) <= 0.075  # 300 data sets: 5 % within 2 standard errors
    assert np.mean(naive) > 0.1  # battles resampled one by one, the test would not hold its level


def test_too_few_prompts_and_equal_predictions_have_no_p_value() -> None:
    values = np.random.default_rng(5).normal(size=100)
    few = metrics.compare(values, values * 2, np.repeat(np.arange(10), 10))
    assert (few.ci, few.p, few.prompts) == (None, None, 10)
    assert few.reason == "no interval: 10 prompts, 20 are needed"
    same = metrics.compare(values, values)
    assert (same.difference, same.ci, same.p) == (0.0, None, None)
    assert same.reason == metrics.SAME_DIFFERENCE


@pytest.mark.parametrize(
    ("a", "b", "groups", "message"),
    [
        (np.zeros(3), np.zeros(2), None, "same battles"),
        (np.zeros(0), np.zeros(0), None, "n >= 1"),
        (np.zeros(2), np.zeros(2), np.zeros(3, dtype=np.int64), "one group per battle"),
        (np.array([0, np.nan]), np.zeros(2), None, "battle 1 has a loss that is not finite"),
    ],
)
def test_losses_that_do_not_fit_together_are_refused(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.compare(a, b, groups)


def test_holms_p_values_are_those_of_the_definition() -> None:
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert metrics.holm([]) == []


def test_the_best_of_many_needs_only_its_own_differences() -> None:
    """The p-values of the bootstrap have a floor of 0.0002, which must not keep the best of 30 from being named."""
    names = [f"m{i:02}" for i in range(30)]
    losses = {name: float(i) for i, name in enumerate(names)}
    differences = [
        metrics.NamedDifference(-1.0, (-2.0, -0.5), 0.0002 if a == "m00" else 0.9, 100, 50, "", a, b)
        for a, b in itertools.combinations(names, 2)
    ]
    assert metrics.best(losses, differences) == "m00"
    unknown = dataclasses.replace(differences[3], ci=None, p=None, reason="no interval")
    assert metrics.best(losses, [*differences[:3], unknown, *differences[4:]]) is None


def write_files(folder: Path, n: int = 200) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels with two battles a prompt, and predictions: ``good``, ``same`` (nearly as good) and ``bad``."""
    random = np.random.default_rng(6)
    labels = random.integers(0, 3, n)
    folder.mkdir(exist_ok=True)
    rows = [battle(i, int(labels[i]), prompt=[f"Q{i // 2}"]) for i in range(n)]
    write_csv(folder / "labels.csv", [{**row, "lang": "en" if i % 4 else "de"} for i, row in enumerate(rows)],
              [*battle(), "lang"])  # fmt: skip
    logits = 1.0 * np.eye(3)[labels] + random.normal(size=(n, 3))
    models = {"good": logits, "same": logits + random.normal(0, 0.02, (n, 3)), "bad": logits * -0.5}
    probabilities = {name: metrics.softmax(values) for name, values in models.items()}
    for name, values in probabilities.items():
        write_predictions(folder / f"{name}.csv", range(n), values)
    return labels, probabilities


def write_predictions(path: Path, ids: Iterable[object], probabilities: np.ndarray) -> None:
    rows = [f"{i},{a!r},{b!r},{c!r}" for i, (a, b, c) in zip(ids, probabilities.tolist(), strict=True)]
    path.write_text("\n".join([f"id,{','.join(WINNER_COLUMNS)}", *rows]) + "\n")


def test_several_files_are_scored_side_by_side_with_paired_differences(cli: CLI, tmp_path: Path) -> None:
    labels, probabilities = write_files(tmp_path)
    files = [tmp_path / f"{name}.csv" for name in probabilities]
    result = cli("score", *files, tmp_path / "labels.csv", "--json").json()
    assert list(result["scores"]) == ["good.csv", "same.csv", "bad.csv"]
    for name, values in probabilities.items():
        assert result["scores"][f"{name}.csv"]["log_loss"] == pytest.approx(log_loss(labels, values, labels=[0, 1, 2]))
    pairs = [(found["a"], found["b"]) for found in result["differences"]]
    assert pairs == [("good.csv", "same.csv"), ("good.csv", "bad.csv"), ("same.csv", "bad.csv")]
    losses = {name: metrics.losses(values, labels) for name, values in probabilities.items()}
    by_prompt = (losses["good"] - losses["bad"]).reshape(-1, 2).mean(axis=1)  # prompts of two battles each
    low, high = stats.ttest_1samp(by_prompt, 0).confidence_interval()
    found = result["differences"][1]
    assert found["difference"] == pytest.approx(by_prompt.mean())
    assert found["ci"] == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found["p"] < 0.001
    assert set(found) >= {"a", "b", "difference", "ci", "p"}
    alone = cli("score", files[0], tmp_path / "labels.csv", "--json").json()
    assert alone == {**result["scores"]["good.csv"], "log_loss_ci": pytest.approx(alone["log_loss_ci"])}
    assert "scores" not in alone
    assert "by" not in alone


def test_the_best_is_marked_only_where_it_is_told_apart_from_every_other(cli: CLI, tmp_path: Path) -> None:
    write_files(tmp_path)
    good, same, bad, labels = (tmp_path / f"{name}.csv" for name in ("good", "same", "bad", "labels"))
    two = cli("score", good, bad, labels)
    assert "best: good.csv; p against every other file is below 0.05\n" in two.out
    assert [line.split()[-1] == "best" for line in two.out.splitlines() if line.startswith(("good", "bad"))][:2] == [
        True,
        False,
    ]
    three = cli("score", good, same, bad, labels)
    assert "none is marked best" in three.out
    assert "Holm" in three.out
    assert "best" not in three.out.split("Differences")[0]
    equal = tmp_path / "equal.csv"
    equal.write_bytes(good.read_bytes())
    identical = cli("score", good, equal, labels)
    assert metrics.SAME_DIFFERENCE in identical.out
    assert cli("score", good, equal, labels, "--json").json()["best"] is None


def test_files_of_different_battles_are_scored_on_the_common_ones_and_this_is_said(cli: CLI, tmp_path: Path) -> None:
    labels, probabilities = write_files(tmp_path)
    write_predictions(
        tmp_path / "part.csv", [*range(50, 200), "x"], np.vstack([probabilities["bad"][50:], [[1, 0, 0]]])
    )
    done = cli("score", tmp_path / "good.csv", tmp_path / "part.csv", tmp_path / "labels.csv", "--json")
    assert done.json()["scores"]["good.csv"]["n"] == 150
    expected = metrics.log_loss(probabilities["good"][50:], labels[50:])
    assert done.json()["scores"]["good.csv"]["log_loss"] == pytest.approx(expected)
    assert f"scored on the 150 battles that all files have: {tmp_path}/part.csv lacks 50 of 200 battles" in done.err
    assert f"no label for 1 of 151 predictions of {tmp_path}/part.csv" in done.err
    write_predictions(tmp_path / "rest.csv", range(50), probabilities["bad"][:50])
    nothing = cli("score", tmp_path / "rest.csv", tmp_path / "part.csv", tmp_path / "labels.csv")
    assert (nothing.code, "no battle is in all files" in nothing.err) == (2, True)


def test_files_of_the_same_name_are_told_apart_by_their_folders(cli: CLI, tmp_path: Path) -> None:
    write_files(tmp_path / "one")
    write_files(tmp_path / "two")
    one, two = tmp_path / "one/good.csv", tmp_path / "two/good.csv"
    result = cli("score", one, two, tmp_path / "one/labels.csv", "--json").json()
    assert list(result["scores"]) == [str(one), str(two)]
    twice = cli("score", one, tmp_path / "two/../one/good.csv", tmp_path / "one/labels.csv")
    assert (twice.code, "is named twice" in twice.err) == (2, True)


def test_labels_named_before_predictions_are_taken_for_labels_and_this_is_said(cli: CLI, tmp_path: Path) -> None:
    write_files(tmp_path)
    good, bad, labels = (tmp_path / f"{name}.csv" for name in ("good", "bad", "labels"))
    for given in ([labels, good], [labels, good, bad], [good, labels, bad]):
        in_order = [path for path in given if path != labels]
        done, expected = cli("score", *given, "--json"), cli("score", *in_order, labels, "--json")
        assert done.json() == expected.json()
        taken = f"{in_order[-1]} holds probabilities and {labels} does not: taking {labels} for the labels"
        assert (taken in done.err, taken in expected.err) == (True, False)
    page = cli("score", labels, good, "--report", tmp_path / "page.html")
    assert (page.code, "Predictions in good.csv" in (tmp_path / "page.html").read_text()) == (0, True)
    none = cli("score", good, bad)
    assert "there are no labels" in none.err


def test_ids_of_another_column_are_recognised_and_the_option_is_given(cli: CLI, tmp_path: Path) -> None:
    _, probabilities = write_files(tmp_path)
    rows = [{**battle(i, i % 3), "question_id": f"q{i:03}"} for i in range(200)]
    labels = write_csv(tmp_path / "votes.csv", rows, [*battle(), "question_id"])
    write_predictions(tmp_path / "preds.csv", [f"q{i:03}" for i in range(200)], probabilities["good"])
    done = cli("score", tmp_path / "preds.csv", labels)
    command = f"score {tmp_path}/preds.csv {labels} --columns id=question_id"
    assert done.err.splitlines()[-1].strip() == f"Type: prefcli {command}"
    assert "no prediction has an id of" in done.err
    assert "'q000', 'q001', 'q002' ... against '0', '1', '2' ..." in done.err
    assert cli(*command.split(), "--json").json()["n"] == 200
    write_predictions(tmp_path / "other.csv", [f"z{i}" for i in range(200)], probabilities["good"])
    assert "is it the file that was?" in cli("score", tmp_path / "other.csv", labels).err


def test_files_of_more_rows_than_memory_holds_give_the_same_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    files = [tmp_path / "good.csv", tmp_path / "bad.csv"]
    labels = Source.of(tmp_path / "labels.csv", by="lang")
    in_memory = pipeline.compare_scores(files, labels)
    monkeypatch.setattr(joining, "IN_MEMORY_ROWS", 30)
    on_disk = pipeline.compare_scores(files, labels)
    assert on_disk.differences[0].difference == pytest.approx(in_memory.differences[0].difference)
    assert on_disk.differences[0].ci == pytest.approx(in_memory.differences[0].ci, abs=0.02)
    of_groups = [result.scores["bad.csv"].by for result in (in_memory, on_disk)]
    assert of_groups[0] is not None
    assert of_groups[1] is not None
    assert [g.log_loss for g in of_groups[0].groups] == pytest.approx([g.log_loss for g in of_groups[1].groups])

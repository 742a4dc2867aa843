"""An LLM judge against people: joined, compared with scikit-learn's figures, and corrected as PPI++ prescribes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Result, battle, write_csv
from sklearn.metrics import cohen_kappa_score

import prefcli
from prefcli import bootstrap
from prefcli.battles import Source
from prefcli.errors import InputError
from prefcli.exploration import judges

CLI = Callable[..., Result]
Row = dict[str, Any]


def make_rows(labels: np.ndarray, **fields: Callable[[int], Any]) -> list[Row]:
    """Battles with their own texts; answers of A are longer in every second."""
    rows = []
    for i, label in enumerate(labels.tolist()):
        texts = {"response_a": [f"answer {i}" + " more" * (i % 2)], "response_b": [f"reply {i}, too"]}
        rows.append({**battle(i, label, prompt=[f"Q{i // 2}"], **texts), **{k: v(i) for k, v in fields.items()}})
    return rows


def swapped(row: Row) -> Row:
    sides = {"model_a": "model_b", "response_a": "response_b", "winner_model_a": "winner_model_b"}
    return {**row, **{a: row[b] for a, b in sides.items()}, **{b: row[a] for a, b in sides.items()}}


def correlated(n: int, seed: int = 0, same: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    people = random.integers(0, 3, n)
    return people, np.where(random.random(n) < same, people, random.integers(0, 3, n))


def compare(people: Path, judge: Path, **options: Any) -> judges.JudgeComparison:
    found = prefcli.compare_judges(people, judge=judge, **options).judge
    assert found is not None
    return found


def test_agreement_and_kappa_are_scikit_learns_and_their_intervals_cover_two_standard_errors(tmp_path: Path) -> None:
    y, f = correlated(300)
    people, judge = (write_csv(tmp_path / name, make_rows(labels)) for name, labels in (("p.csv", y), ("j.csv", f)))
    found = compare(people, judge)
    assert (found.joined_by, found.joined_votes, found.swapped) == ("id", 300, 0)
    assert found.agreement.value == pytest.approx((y == f).mean())
    assert found.kappa.value == pytest.approx(cohen_kappa_score(y, f))
    both = (y < 2) & (f < 2)
    assert found.decided_agreement.value == pytest.approx((y == f)[both].mean())
    assert np.array(found.confusion).sum() == pytest.approx(300)
    # the delta method's standard error of kappa (J. L. Fleiss, J. Cohen, B. S. Everitt, 1969), battles independent
    table = np.array(found.confusion) / 300
    rows, columns = table.sum(1), table.sum(0)
    agree, chance = table.trace(), rows @ columns
    kappa = (agree - chance) / (1 - chance)
    sums = columns[:, None] + rows[None, :]
    on = (np.diag(table) * (1 - np.diag(sums) * (1 - kappa)) ** 2).sum()
    off = (1 - kappa) ** 2 * ((table * sums**2).sum() - (np.diag(table) * np.diag(sums) ** 2).sum())
    error = np.sqrt((on + off - (kappa - chance * (1 - kappa)) ** 2) / 300) / (1 - chance)
    low, high = found.kappa.ci or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_without_shared_ids_battles_are_joined_by_content_and_swapped_back(tmp_path: Path) -> None:
    y, f = correlated(200, 1)
    people = write_csv(tmp_path / "people.csv", make_rows(y))
    rows = [swapped(row) if i % 3 == 0 else row for i, row in enumerate(make_rows(f))]
    order = np.random.default_rng(2).permutation(200)[:150]
    judge = write_csv(tmp_path / "judge.csv", [{**rows[i], "id": f"j{i}"} for i in order])
    found = compare(people, judge)
    assert (found.joined_by, found.joined_votes, found.joined_verdicts) == ("content", 150, 150)
    assert found.swapped == (order % 3 == 0).sum()
    assert found.kappa.value == pytest.approx(cohen_kappa_score(y[order], f[order]))


def test_a_swapped_battle_of_the_same_id_is_swapped_back_too(tmp_path: Path) -> None:
    y, f = correlated(60, 3)
    people = write_csv(tmp_path / "people.csv", make_rows(y))
    judge = write_csv(tmp_path / "judge.csv", [swapped(row) for row in make_rows(f)])
    found = compare(people, judge)
    assert (found.joined_by, found.swapped) == ("id", 60)
    assert found.agreement.value == pytest.approx((y == f).mean())


def test_ids_of_other_battles_are_not_joined(tmp_path: Path) -> None:
    """Row numbers are ids in many files: equal ones do not make the same battle."""
    y, f = correlated(80, 4)
    people = write_csv(tmp_path / "people.csv", make_rows(y))
    moved = [{**row, "id": str((i + 2) % 80)} for i, row in enumerate(make_rows(f))]
    by_content = compare(people, write_csv(tmp_path / "moved.csv", moved))
    assert (by_content.joined_by, by_content.joined_votes) == ("content", 80)
    assert by_content.agreement.value == pytest.approx((y == f).mean())
    some = [{**row, "prompt": ["other"]} if i < 10 else row for i, row in enumerate(make_rows(f))]
    by_id = compare(people, write_csv(tmp_path / "some.csv", some))
    assert (by_id.joined_by, by_id.joined_votes, by_id.other_battles) == ("id", 70, 10)
    assert "Ids that are in both files but of different battles, not joined: 10." in by_id.cautions
    edited = [{**row, "response_a": ["edited"]} if i < 5 else row for i, row in enumerate(make_rows(f))]
    edited[0] = swapped(edited[0])  # only the models say so
    edited[1] |= {"model_a": "another"}  # of other models, other answers are another battle
    with_edited = compare(people, write_csv(tmp_path / "edited.csv", edited))
    assert (with_edited.joined_votes, with_edited.edited_answers, with_edited.other_battles) == (79, 4, 1)
    assert with_edited.agreement.value == pytest.approx(np.delete(y == f, 1).mean())
    other = write_csv(tmp_path / "other.csv", [{**row, "prompt": [f"other {i}"]} for i, row in enumerate(moved)])
    with pytest.raises(InputError, match="no battle has an outcome in both files"):
        compare(people, other)


def test_each_vote_counts_once_however_many_verdicts_there_are(tmp_path: Path, cli: CLI) -> None:
    """The judge saw every battle in both orders: consistent where its verdict is the same."""
    y, f = correlated(90, 5)
    people = write_csv(tmp_path / "people.csv", make_rows(y))
    second = np.where(np.arange(90) % 3 == 0, 1 - np.minimum(f, 1), f)  # another verdict in the other order
    rows = [{**row, "id": f"x{i}"} for i, row in enumerate(make_rows(f))]
    rows += [{**swapped(row), "id": f"y{i}"} for i, row in enumerate(make_rows(second))]
    judge = write_csv(tmp_path / "judge.csv", rows)
    found = compare(people, judge)
    assert np.array(found.confusion).sum() == pytest.approx(90)
    assert found.agreement.value == pytest.approx(np.mean([y == f, y == second]))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(np.tile(y, 2), np.concatenate([f, second])))
    assert found.consistency is not None
    assert found.consistency.value == pytest.approx((f == second).mean())
    shown = cli("eda", people, "--judge", judge, "--report", "page.html").out
    assert "the judge, in both orders" in shown
    assert "the judge, in both orders" in Path("page.html").read_text(encoding="utf-8")
    assert max(map(len, shown.split("Agreement\n")[1].split("\n\n")[0].splitlines())) <= 80


def test_biases_are_those_of_each_files_own_order(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    y = random.integers(0, 3, 400)
    rows = make_rows(y)
    longer_is_a = np.array([len(row["response_a"][0]) > len(row["response_b"][0]) for row in rows])
    shown_swapped = random.random(400) < 0.5
    # the judge takes what it is shown first with 70 %, and no ties
    first = random.random(400) < 0.7
    f = np.where(first ^ shown_swapped, 0, 1)
    verdicts = [swapped(row) if s else row for row, s in zip(make_rows(f), shown_swapped, strict=True)]
    people = write_csv(tmp_path / "people.csv", rows)
    judge = write_csv(tmp_path / "judge.csv", verdicts)
    position, length = compare(people, judge).biases
    decided = y < 2
    assert position.people.value == pytest.approx((y[decided] == 0).mean())
    assert position.judge.value == pytest.approx(first.mean())
    assert position.difference.value == pytest.approx(first.mean() - (y[decided] == 0).mean())
    assert position.difference.ci is not None
    assert position.difference.ci[0] > 0
    assert length.judge.value == pytest.approx(((f == 0) == longer_is_a).mean())
    assert length.people.value == pytest.approx(((y == 0) == longer_is_a)[decided].mean())


def ppi_by_hand(y: np.ndarray, f: np.ndarray, rest: np.ndarray) -> tuple[float, float, float]:
    """PPI++'s mean, its weight and its standard error, from the paper's formulas."""
    n, others = len(y), len(rest)
    weight = np.cov(y, f, ddof=0)[0, 1] / ((1 + n / others) * np.var(np.concatenate([f, rest]), ddof=1))
    weight = min(max(weight, 0), 1)
    error = np.sqrt(weight**2 * rest.var() / others + (y - weight * f).var() / n)
    return weight * rest.mean() + y.mean() - weight * f.mean(), weight, error


def test_corrected_win_rates_are_those_of_ppi_calculated_by_hand(tmp_path: Path) -> None:
    y, f = correlated(500, 7)
    models = {"model_a": lambda i: "x" if i % 2 else "y", "model_b": lambda i: "y" if i % 2 else "x"}
    rows = [{**row, "prompt": [f"own {i}"]} for i, row in enumerate(make_rows(f, **models))]
    known = np.random.default_rng(8).permutation(500)[:120]
    labelled = [{**row, "prompt": [f"own {i}"]} for i, row in enumerate(make_rows(y, **models))]
    people = write_csv(tmp_path / "people.csv", [labelled[i] for i in known])
    found = compare(people, write_csv(tmp_path / "judge.csv", rows), judge_model="x")
    of_x = np.where(np.arange(500) % 2 == 1, 0, 1)  # the side on which x stands
    score_y, score_f = ((labels == of_x) + 0.5 * (labels == 2) for labels in (y, f))
    rest = np.setdiff1d(np.arange(500), known)
    value, weight, error = ppi_by_hand(score_y[known], score_f[known], score_f[rest])
    rate = next(rate for rate in found.win_rates if rate.model == "x")
    assert (rate.battles, rate.people_battles) == (500, 120)
    assert (rate.corrected, rate.weight) == (pytest.approx(value), pytest.approx(weight))
    assert rate.people == pytest.approx(score_y[known].mean())
    assert rate.judge == pytest.approx(score_f.mean())
    assert rate.ci is not None
    assert (rate.ci[1] - rate.ci[0]) / 2 == pytest.approx(1.96 * error, rel=0.03)  # Student's t, and n - 1
    assert found.self_preference == rate
    assert rate.preference.value == pytest.approx((score_f - score_y)[known].mean())
    other = next(rate for rate in found.win_rates if rate.model == "y")
    assert rate.corrected + other.corrected == pytest.approx(1)


def test_corrected_win_rates_equal_figures_of_the_library_ppi_python() -> None:
    """ppi_mean_pointestimate and ppi_mean_ci(alpha=0.05) of ppi-python 0.2.3 on the same numbers."""
    random = np.random.default_rng(11)
    y = random.integers(0, 3, 60) / 2
    f = np.clip(y + random.integers(-1, 2, 60) / 2, 0, 1)
    rest = random.integers(0, 3, 300) / 2
    value, weight = judges.power_tuned_mean(y, f, rest)
    assert value == pytest.approx(0.575, abs=1e-12)
    assert weight == pytest.approx(0.42590139418774436, abs=1e-12)
    known = np.concatenate([np.ones(60, dtype=bool), np.zeros(300, dtype=bool)])
    everything = np.where(known, np.concatenate([y, rest]), np.nan)
    rate = judges._corrected("x", everything, np.concatenate([f, rest]), np.arange(360))
    assert rate.ci is not None
    wider = bootstrap.expanded_quantile(bootstrap.Z95, 60) / bootstrap.Z95  # by Student's t, and n - 1
    half_width = (rate.ci[1] - rate.ci[0]) / 2
    assert half_width == pytest.approx((0.66240528 - 0.48759472) / 2 * wider, rel=1e-4)
    twice = judges._corrected("x", np.repeat(everything, 2), np.repeat([*f, *rest], 2), np.repeat(np.arange(360), 2))
    assert twice.ci is not None  # as many prompts say as much, however often each is judged
    assert (twice.ci[1] - twice.ci[0]) / 2 == pytest.approx(half_width, rel=1e-3)


def test_without_other_battles_the_corrected_rate_is_the_peoples() -> None:
    y, f = np.array([1.0, 0.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.5, 0.0])
    assert judges.power_tuned_mean(y, f, np.array([])) == (y.mean(), 0.0)
    assert judges.power_tuned_mean(y, np.ones(4), np.ones(9)) == (y.mean(), 0.0)


def test_corrected_win_rates_of_a_biased_judge_cover_the_truth() -> None:
    """Prompts of one to three battles; the judge gives its own model half of the lost battles."""
    random = np.random.default_rng(12)
    covered, naive = [], []
    for _ in range(150):
        prompts = np.repeat(np.arange(400), random.integers(1, 4, 400))
        strength = random.normal(0, 0.8, 400)[prompts]
        y = (random.random(len(prompts)) < 1 / (1 + np.exp(-strength))).astype(float)
        f = np.maximum(y, random.random(len(prompts)) < 0.5)
        known = np.isin(prompts, random.permutation(400)[:80])
        rate = judges._corrected("x", np.where(known, y, np.nan), f, prompts)
        assert rate.ci is not None
        covered.append(rate.ci[0] <= 0.5 <= rate.ci[1])
        naive.append(abs(rate.judge - 0.5) < 0.1)
    assert np.mean(covered) >= 0.9
    assert not any(naive)


def test_a_sample_that_is_not_like_the_rest_is_named(tmp_path: Path) -> None:
    f = np.array([0] * 60 + [1] * 60)
    people = write_csv(tmp_path / "people.csv", make_rows(f)[:40])
    judge = write_csv(tmp_path / "judge.csv", make_rows(f))
    found = compare(people, judge)
    assert "not like the judge's other ones" in found.cautions[0]
    at_random = write_csv(tmp_path / "random.csv", make_rows(f)[::3])
    assert compare(at_random, judge).cautions == ()


def test_an_unknown_judge_model_and_a_missing_judge_are_refused(tmp_path: Path, cli: CLI) -> None:
    path = write_csv(tmp_path / "people.csv", make_rows(np.arange(40) % 3))
    done = cli("eda", path, "--judge", path, "--judge-model", "lefty")
    assert (done.code, "Did you mean left?" in done.err) == (2, True)
    assert "--judge-model needs a judge" in cli("eda", path, "--judge-model", "left").err


def test_few_battles_have_figures_but_no_intervals(tmp_path: Path, cli: CLI) -> None:
    y, f = correlated(12, 13)
    people, judge = (write_csv(tmp_path / name, make_rows(labels)) for name, labels in (("p.csv", y), ("j.csv", f)))
    found = cli("eda", people, "--judge", judge, "--json").json()["judge"]
    assert found["agreement"]["ci"] is None
    assert found["agreement"]["reason"] == "no interval: 6 prompts, 20 are needed"
    assert all(rate["ci"] is None for rate in found["win_rates"])


def annotated(seed: int = 14) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """40 battles judged by ann, bob and cyd, some in the other order; the votes in the first order, ``[40, 3]``."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, 40)
    votes = np.where(random.random((40, 3)) < [0.9, 0.7, 0.4], truth[:, None], random.integers(0, 3, (40, 3)))
    rows = []
    for number, name in enumerate(("ann", "bob", "cyd")):
        of_one = make_rows(votes[:, number], who=lambda _, name=name: name)
        rows += [{**(swapped(r) if number == 1 else r), "id": f"{name}{i}"} for i, r in enumerate(of_one)]
    return rows, votes, truth


def test_annotators_agree_with_each_other_as_counted_by_hand(tmp_path: Path, cli: CLI) -> None:
    rows, votes, truth = annotated()
    path = write_csv(tmp_path / "people.csv", rows, list(rows[0]))
    judge = write_csv(tmp_path / "judge.csv", [{**row, "id": f"j{i}"} for i, row in enumerate(make_rows(truth))])
    result = cli("eda", path, "--annotator", "who", "--judge", judge, "--json").json()
    found = result["annotators"]
    assert (found["battles"], found["unnamed"]) == (40, 0)
    assert found["unanimous"] == (votes == votes[:, :1]).all(axis=1).sum()
    equal = votes[:, :, None] == votes[:, None, :]
    by_name = {annotator["name"]: annotator for annotator in found["annotators"]}
    for number, name in enumerate(("ann", "bob", "cyd")):
        expected = (equal[:, number].sum(axis=1) - 1).mean() / 2
        assert by_name[name]["agreement"]["value"] == pytest.approx(expected)
        assert by_name[name]["with_judge"]["value"] == pytest.approx((votes[:, number] == truth).mean())
    assert found["pairwise"] == pytest.approx((equal.sum(axis=(1, 2)) - 3).mean() / 6)
    least = found["contested"][0]
    assert least["agreement"] == 0.0
    counts = np.bincount(votes[int(least["id"][3:])], minlength=3)
    assert sorted(least["outcomes"]) == sorted(counts.tolist())
    shown = cli("eda", path, "--annotator", "who", "--judge", judge).out
    assert "3 annotators (who): 40 battles with several votes" in " ".join(shown.split())
    assert "Battles with the least agreement" in shown


def test_the_peoples_file_may_be_standard_input_and_the_judges_is_never_replaced(
    tmp_path: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, f = correlated(60)
    people = write_csv(tmp_path / "people.csv", make_rows(y, who=lambda i: "xy"[i % 2]), list(make_rows(y, who=str)[0]))
    judge = write_csv(tmp_path / "judge.csv", make_rows(f))

    def piped(*options: str) -> Result:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(people.read_bytes())))
        return cli("eda", "-", "--judge", judge, "--annotator", "who", *options)

    found = piped("--json").json()
    assert found["judge"]["agreement"]["value"] == pytest.approx((y == f).mean())
    assert [each["votes"] for each in found["annotators"]["annotators"]] == [30, 30]
    assert (found["by"], found["ungrouped"]) == ([], 0)
    assert "standard input has them once" in piped("--by", "length").err
    before = judge.read_bytes()
    assert cli("eda", people, "--judge", judge, "--report", judge, "--force").code == 2
    assert judge.read_bytes() == before


def test_of_very_many_annotators_those_with_most_votes_are_reported(tmp_path: Path) -> None:
    rows = make_rows(np.zeros(130, dtype=int), who=lambda i: f"w{i % 120}")
    path = write_csv(tmp_path / "people.csv", rows, list(rows[0]))
    found = prefcli.compare_judges(path, annotator="who").annotators
    assert found is not None
    assert [annotator.votes for annotator in found.annotators] == [2] * 10 + [1] * 90
    assert found.left_out == 20
    assert found.annotators[0].agreement.reason == "no battle counts"  # nobody else judged these battles


def test_a_column_without_names_is_refused(tmp_path: Path) -> None:
    rows = make_rows(np.arange(20) % 3, who=lambda _: "")
    path = write_csv(tmp_path / "people.csv", rows, list(rows[0]))
    with pytest.raises(InputError, match="nobody is named: who is empty"):
        prefcli.compare_judges(Source.of(path), annotator="who")
    with pytest.raises(InputError, match="missing column length"):  # a group of --by, not somebody who votes
        prefcli.compare_judges(Source.of(path), annotator="length")

"""The headline says what the votes say: who is preferred, how surely, and how many votes would settle it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import KAGGLE_COLUMNS, write_csv
from conftest import battle as kaggle_battle
from numpy.typing import NDArray
from test_eda import batches, battle

from prefcli import exploration
from prefcli.cli import common
from prefcli.cli.eda import show
from prefcli.exploration import headline, ratings
from prefcli.exploration.shares import clustered_share, share
from prefcli.exploration.style import StyleEffect, StyleEffects
from prefcli.outcomes import TIE, A, B
from prefcli.rendering import tables


def explore(
    wins: int, losses: int, ties: int, *, longer: bool = False, prompts: int = 10_000, first: float = 0.5
) -> exploration.Eda:
    """``koala`` against ``vole``; with ``longer`` the answer of koala is longer in each third battle."""
    rows = []
    for i, label in enumerate(np.repeat([A, B, TIE], [wins, losses, ties]).tolist()):
        koala, vole = "x" * (30 if longer and i % 3 == 0 else 20), "y" * 20
        rows.append(battle(koala, vole, label, prompt=f"p{i % prompts}"))
        if (i * 7919) % 1000 >= 1000 * first:
            other = {A: B, B: A, TIE: TIE}[label]
            rows[-1] = battle(vole, koala, other, prompt=f"p{i % prompts}", model_a="vole", model_b="koala")
    return exploration.explore(batches(rows))


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_a_preference_is_told_with_its_interval_and_the_ties() -> None:
    lead, *others = explore(300, 200, 100).headline
    assert lead.startswith("koala is preferred to vole: 60.0% (")
    assert lead.endswith("of 500 decided votes, ties 17%.")
    half_width = 1.964 * np.sqrt(1 / 300 + 1 / 200)
    low, high = (100 / (1 + np.exp(-(np.log(1.5) + sign * half_width))) for sign in (-1, 1))
    assert percentages(lead)[1:3] == pytest.approx([low, high], abs=0.11)
    assert any("more such votes would tell a preference of 52%" in sentence for sentence in others)
    assert not any("equal length" in sentence for sentence in others)


def test_two_models_without_a_clear_preference_have_no_winner() -> None:
    lead, style, *_ = explore(105, 100, 0, longer=True).headline
    assert style.startswith("At equal length there is none either: ")
    assert lead.startswith("No clear preference between koala and vole: koala has 51.2% (")


def test_a_preference_that_is_due_to_length_is_called_so() -> None:
    random = np.random.default_rng(0)
    rows = []
    for i in range(800):
        longer = random.random() < 0.75
        won = random.random() < (0.8 if longer else 0.2)
        label = int(random.choice([A, B])) if i % 5 == 0 else A if won else B
        rows.append(battle("x" * (40 if longer else 20), "y" * (20 if longer else 40), label, prompt=f"p{i}"))
    lead, style, *_ = exploration.explore(batches(rows)).headline
    assert lead.startswith("koala is preferred to vole")
    assert style.startswith("But at equal length there is no clear preference")


def test_a_preference_that_is_not_due_to_length_holds() -> None:
    style = explore(300, 200, 50, longer=True).headline[1]
    assert style.startswith("That holds at equal length: 6")


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ((12, 5, 2), "koala won 12 of 17 decided votes against vole, ties 11%; no interval: fewer than 20 battles."),
        ((40, 0, 10), "koala won 40 of 40 decided votes against vole, ties 20%; no interval: never lost."),
        ((0, 0, 30), "koala won 0 of 0 decided votes against vole, ties 100%; no interval: only ties."),
    ],
)
def test_what_the_votes_cannot_say_is_not_said(votes: tuple[int, int, int], words: str) -> None:
    assert explore(*votes).headline == (words,)


def test_few_prompts_give_no_interval() -> None:
    assert "no interval: fewer than 20 prompts" in explore(300, 200, 0, prompts=19).headline[0]


def test_a_model_that_is_always_shown_first_is_named() -> None:
    assert any("koala was shown first in 100% of them" in sentence for sentence in explore(60, 40, 0, first=1).headline)
    assert not any("shown first" in sentence for sentence in explore(60, 40, 0).headline)


def test_without_names_the_headline_is_about_position_and_length_not_about_an_assistant() -> None:
    rows = [
        battle("x" * (30 if i % 3 else 10), "y" * 20, A if i % 4 else B, f"p{i}", model_a=None, model_b=None)
        for i in range(200)
    ]
    first, longer, *_, last = exploration.explore(batches(rows)).headline
    assert first.startswith("The answer shown first won 75.0% (")
    assert first.endswith("votes favour the first position.")
    assert longer.startswith("The longer answer won ")
    assert last == "No battle names two different models, so none is ranked."
    unlabelled = exploration.explore(batches([battle(label=None)]))
    assert unlabelled.headline == ("None of 1 battle has an outcome.",)


def simulate(strengths: list[float], n: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    rows = []
    for i in range(n):
        a, b = random.choice(len(strengths), 2, replace=False)
        won = random.random() < 1 / (1 + np.exp(strengths[b] - strengths[a]))
        rows.append(battle(label=A if won else B, prompt=f"p{i}", model_a=names[a], model_b=names[b]))
    return rows


def test_of_many_models_the_leader_is_named_with_its_rank_and_probability() -> None:
    lead, next_best, *_ = exploration.explore(batches(simulate([1.5, 0.5, 0.0, -0.5], 1200))).headline
    assert re.fullmatch(
        r"ant leads 4 models: rating \d+ \(\d+ to \d+\), rank 1, the best with a probability of over 99%\.", lead
    )
    assert next_best.startswith("It is preferred to bee, the next, in ")
    lead, next_best, *_ = exploration.explore(batches(simulate([0.1, 0.0, 0.0, -0.5], 300))).headline
    assert "rank 1 to 3, the best with a probability of" in lead
    assert next_best.startswith("Its lead over ")


def test_groups_that_never_met_each_have_a_leader() -> None:
    others = [battle(label=int(i % 3 != 0), prompt=f"q{i}", model_a="yak", model_b="zebu") for i in range(90)]
    lead, *sentences = exploration.explore(batches(simulate([1, 0, 0], 300) + others)).headline
    assert lead == "The 5 models form 2 groups that never met: each has its own list."
    assert any(sentence.startswith("ant leads 3 models") for sentence in sentences)
    assert any(sentence.startswith("zebu is preferred to yak: 66.7% (") for sentence in sentences)


def test_votes_that_name_no_two_models_are_counted() -> None:
    rows = simulate([1, 0, 0], 300) + [battle(model_b=None, prompt="none")] * 7
    assert (
        "Left out, as they do not name two different models: 7 of 307 votes."
        in exploration.explore(batches(rows)).headline
    )


# How many votes


def clustered_votes(preference: float, prompts: int, each: int, correlation: float, seed: int) -> NDArray[np.bool_]:
    """Votes for the first of two models, ``[1000 data sets, prompts, each]``; correlated within a prompt."""
    random = np.random.default_rng(seed)
    total = 1 / correlation - 1
    of_prompt = random.beta(preference * total, (1 - preference) * total, size=(1000, prompts, 1))
    return random.random((1000, prompts, each)) < of_prompt


def share_that_tell(votes: NDArray[np.bool_]) -> float:
    """In what share of data sets the interval by prompt leaves out an even preference, by hand."""
    p = votes.mean(axis=(1, 2))
    residuals = (votes - p[:, None, None]).sum(axis=2)
    n = votes[0].size
    error = np.sqrt((residuals**2).sum(axis=1)) / (n * p * (1 - p))
    return float((np.abs(np.log(p / (1 - p))) > 1.96 * error).mean())


def test_the_advised_number_of_votes_has_a_power_of_80_percent_within_15_percent() -> None:
    each, correlation, preference = 4, 0.2, 0.6
    effect = 1 + (each - 1) * correlation
    prompts = headline.votes_needed(preference, effect) / each
    less, more = (
        share_that_tell(clustered_votes(preference, round(factor * prompts), each, correlation, seed=1))
        for factor in (0.85, 1.15)
    )
    assert less < 0.8 < more


def test_the_design_effect_is_that_of_repeated_prompts() -> None:
    votes = clustered_votes(0.55, 400, 5, 0.25, seed=2)[0]
    labels = np.where(votes.ravel(), A, B)
    models = np.tile([0, 1], (2000, 1))
    estimated = ratings.estimate(ratings.Votes.of(models, labels, ("x", "y"), np.repeat(np.arange(400), 5)))
    assert estimated is not None
    assert headline.design_effect(estimated, 0, 1) == pytest.approx(1 + 4 * 0.25, rel=0.15)
    independent = ratings.estimate(ratings.Votes.of(models, labels, ("x", "y")))
    assert independent is not None
    assert headline.design_effect(independent, 0, 1) == pytest.approx(1, abs=0.01)


def test_a_share_of_repeated_prompts_has_the_interval_of_fewer_cases() -> None:
    """Prompts whose votes are all equal count once each; independent votes count fully."""
    hit = np.repeat(np.arange(100) < 60, 7)
    repeated = clustered_share(hit, np.repeat(np.arange(100), 7))
    once = share(60, 100)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=2e-3)
    assert repeated.n == 700
    apart = clustered_share(hit, np.arange(700))
    assert (apart.low, apart.high) == pytest.approx((share(420, 700).low, share(420, 700).high), abs=1e-4)


# Groups and the terminal


def test_by_a_column_each_group_has_its_own_answer(cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        kaggle_battle(
            i,
            winner=A if (i % 5 != 0) == (i % 2 == 0) else B,  # in German koala wins 4 of 5, in English vole does
            model_a="koala",
            model_b="vole",
            language="de" if i % 2 == 0 else "en",
        )
        for i in range(240)
    ]
    path = write_csv(tmp_path / "votes.csv", rows, [*KAGGLE_COLUMNS, "language"])
    printed = cli("eda", path, "--by", "language", "--json").json()
    assert [group["name"] for group in printed["by"]] == ["de", "en"]
    assert [group["battles"] for group in printed["by"]] == [120, 120]
    assert printed["by"][0]["headline"][0].startswith("koala is preferred to vole: 80.0%")
    assert printed["by"][1]["headline"][0].startswith("vole is preferred to koala: 80.0%")
    assert printed["by"][1]["ratings"]["models"][0]["model"] == "vole"
    assert printed["headline"][0].startswith("No clear preference between koala and vole")
    shown = cli("eda", path, "--by", "language").out
    assert "de (120 battles)\nkoala is preferred to vole" in shown


def test_the_smaller_groups_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefcli.exploration.summary.MAX_GROUPS", 1)
    rows = [battle(prompt="one") for _ in range(3)] + [battle(prompt=["one", "two"])]
    result = exploration.explore(batches(rows), by="turns")
    assert [(group.name, group.battles) for group in result.by] == [("1", 3)]
    assert result.groups_left_out == 1


def test_battles_without_a_group_are_counted(cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = [kaggle_battle(i, language="de" if i % 4 else "") for i in range(8)]
    path = write_csv(tmp_path / "votes.csv", rows, [*KAGGLE_COLUMNS, "language"])
    assert "2 battles without a group." in cli("eda", path, "--by", "language").out


def test_pairs_that_never_met_are_in_brackets_and_unconnected_ones_empty() -> None:
    met = [("ant", "bee"), ("bee", "cat"), ("yak", "zebu")]
    rows = [
        battle(label=int(i % 3 == 0), prompt=f"{a}{i}", model_a=a, model_b=b) for a, b in met for i in range(60)
    ]  # fmt: skip
    statistics = exploration.explore(batches(rows))
    assert statistics.beats is not None
    _, cells = tables.beats(statistics.beats, 5)
    shown = {row[0].split()[1]: row[1:] for row in cells}
    names = [row[0].split()[1] for row in cells]
    assert shown["ant"][names.index("cat")] == "(80%)"
    assert shown["ant"][names.index("bee")] == "67%"
    assert shown["ant"][names.index("ant")] == shown["ant"][names.index("yak")] == ""


def test_no_figure_is_minus_zero(capsys: Any) -> None:
    common.print_table("t", ["", "x"], [["a", -0.00001]])
    assert "0.0000" in (printed := capsys.readouterr().out)
    assert "-" not in printed
    effects = StyleEffects((StyleEffect("length", -0.001, -0.2, 0.2, 30),), ())
    assert tables.style(effects)[1][0][1] == "0.00"


@pytest.mark.parametrize("details", [False, True])
def test_the_tables_fit_80_columns(details: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = simulate([1.5, 0.5, 0.0, -0.5], 300)
    for row in rows:
        row["model_a"], row["model_b"] = (f"a-model-with-quite-a-long-name-{row[k]}" for k in ("model_a", "model_b"))
    statistics = exploration.explore(batches(rows), by="script")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show(statistics, details=details)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[0].startswith("a-model-with-quite-a-long-name-ant leads 4 models")
    assert max(map(len, lines)) <= 80
    assert not any("more model" in line for line in lines)
    show(statistics, 3)
    assert "1 more model: --top 4 lists all." in capsys.readouterr().out


def test_two_models_have_no_two_tables_that_say_the_same(cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = [kaggle_battle(i, winner=i % 3, model_a="koala", model_b="vole") for i in range(40)]
    shown = cli("eda", write_csv(tmp_path / "two.csv", rows), "--all").out
    assert "Most frequent pairs" not in shown
    assert "Highest win rates" not in shown
    assert "P(row beats column)" not in shown
    assert shown.index("Ratings") < shown.index("the first answer (A) won") < shown.index("Characters")
    assert "-0.0000" not in shown
    assert "A won" not in shown.replace("(A) won", "")


def test_votes_that_would_make_a_lead_clear_are_those_of_a_z_test() -> None:
    """A gap of one standard error needs (1.96 + 0.84)^2 = 7.85 times as many votes."""
    assert headline._more(100, 0.2, 1.96 * 0.2) == "; about 680 more votes would tell, if they differ as much as that"
    assert headline._more(100, 0.001, 1.96 * 0.2) == ""  # as good as equal

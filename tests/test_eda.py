"""The numbers of `eda` are those of the file, checked by hand or against an independent source."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefcli import exploration
from prefcli.battles import make_batch
from prefcli.data import synthetic
from prefcli.exploration import measures, quality
from prefcli.exploration.models import PairCount
from prefcli.exploration.shares import share
from prefcli.outcomes import TIE, A, B

Rows = list[dict[str, Any]]


def battle(a: Any = "x", b: Any = "y", label: int | None = A, prompt: Any = "Hi?", **more: Any) -> dict[str, Any]:
    turns = {"prompt": prompt, "response_a": a, "response_b": b}
    turns = {name: value if isinstance(value, list) else [value] for name, value in turns.items()}
    return {"model_a": "koala", "model_b": "vole", "label": label, **turns, **more}


def batches(rows: Rows, size: int = 1000) -> list[pa.RecordBatch]:
    parts = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        columns: dict[str, Any] = {"id": pa.array([str(start + i) for i in range(len(part))])}
        for name, kind in (
            ("model_a", pa.string()),
            ("model_b", pa.string()),
            ("label", pa.int8()),
            *((name, pa.list_(pa.string())) for name in ("prompt", "response_a", "response_b")),
        ):
            columns[name] = pa.array([row[name] for row in part], kind)
        if "both_bad" in part[0]:
            columns["both_bad"] = pa.array([row["both_bad"] for row in part], pa.bool_())
        parts.append(make_batch(columns))
    return parts


def explore(rows: Rows, **options: Any) -> exploration.Eda:
    return exploration.explore(batches(rows), **options)


def test_outcomes_models_pairs_and_winners() -> None:
    rows = [
        battle(label=A),
        battle(label=B),
        battle(label=TIE),
        battle(label=None),
        battle(label=A, model_a="vole", model_b="koala"),
        battle(label=A, model_a="newt"),
    ]
    result = explore(rows)
    assert (result.battles, result.labelled, result.models) == (6, 5, 3)
    assert result.outcomes == (3, 1, 1)
    assert result.tie_share == pytest.approx(0.2)
    assert result.top_pairs[0] == PairCount("koala", "vole", 5)
    vole = next(model for model in result.top_winners if model.model == "vole")
    assert (vole.wins, vole.ties, vole.battles) == (2, 1, 5)
    assert vole.win_rate == pytest.approx(0.4)


def test_batches_make_no_difference() -> None:
    rows = [battle(a="a" * i, b="b" * (i % 7), label=i % 3, prompt=f"p{i % 5}") for i in range(1, 60)]
    assert exploration.explore(batches(rows)) == exploration.explore(batches(rows, size=7))


def test_models_and_outcomes_may_be_unknown() -> None:
    result = explore([battle(label=None, model_a=None, model_b=None)] * 3)
    assert (result.models, result.labelled, result.ratings, result.position) == (0, 0, None, None)
    assert result.top_pairs == result.top_winners == ()


@pytest.mark.parametrize(("hits", "n"), [(7, 10), (0, 10), (10, 10), (49, 5000)])
def test_the_interval_of_a_share_is_wilsons(hits: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    interval = share(hits, n)
    assert (interval.value, interval.n) == (hits / n, n)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_no_cases_has_the_widest_interval() -> None:
    interval = share(0, 0)
    assert (interval.low, interval.high, interval.n) == (0, 1, 0)


def test_both_bad_is_counted_where_the_source_has_it() -> None:
    assert explore([battle(label=TIE)]).both_bad is None
    rows = [battle(label=TIE, both_bad=True), battle(label=TIE, both_bad=False), battle(both_bad=None)]
    result = explore(rows)
    assert (result.ties, result.both_bad) == (2, 1)


def test_the_longer_answers_wins_are_counted() -> None:
    rows = [battle(a="x" * 30, b="y" * 10, label=A)] * 3 + [battle(a="x" * 10, b="y" * 30, label=A)]
    rows += [battle(a="x" * 30, b="y" * 10, label=TIE)]
    result = explore(rows)
    length = result.rewarded[0]
    assert length.what == "length"
    assert (length.wins.value, length.wins.n) == (0.75, 4)
    (curve,) = result.length_curve
    assert (curve.low, curve.battles) == (3.0, 5)
    assert (curve.longer_won, curve.tied, curve.shorter_won) == pytest.approx((0.6, 0.2, 0.2))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("- one\n* two\n 3. three\n4) four\n-no", {"list items": 4}),
        ("# Title\ntext\n### Part\n#no", {"headings": 2}),
        ("a\n```py\nx\n```\n", {"code blocks": 2}),
        ("**bold** and **more**, 2 ** 3", {"bold": 2}),
        ("|a|b|\n|-|-|", {"tables": 2}),
        ("", {}),
        ("Plain, 3.5 - 4", {}),
    ],
)
def test_markup_is_counted(text: str, counts: dict[str, int]) -> None:
    measured = measures.measure(batches([battle(a=text, b="y")])[0])
    expected = [counts.get(name, 0) for name in measures.MARKUP]
    assert measured.markup[0, :, 0].tolist() == expected
    assert measured.markup[0, :, 1].tolist() == [0] * len(expected)


def test_turns_are_measured_together_and_nulls_are_skipped() -> None:
    row = battle(a=["# é", None, "# b"], b=["y", "", None], prompt=["1", "2", None])
    measured = measures.measure(batches([battle(), row, battle()])[0])
    assert measured.characters[1].tolist() == [2, 6, 1]
    assert measured.nulls[1].tolist() == [1, 1, 1]
    assert measured.markup[:, list(measures.MARKUP).index("headings"), 0].tolist() == [0, 2, 0]
    assert measured.turns.tolist() == [1, 3, 1]


@pytest.mark.parametrize(
    ("prompt", "script"),
    [
        ("Hello", "Latin"),
        ("naïve café", "Latin"),
        ("Привет, world", "Cyrillic"),
        ("你好吗", "Han"),
        ("東京に行く", "Kana"),
        ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"),
        ("გამარჯობა", "other"),
        ("1 + 1 = ?", "no letters"),
        ("½ € 🙂", "no letters"),
        ("", "no letters"),
    ],
)
def test_the_script_of_a_prompt_is_that_of_most_letters(prompt: str, script: str) -> None:
    (row,) = explore([battle(prompt=prompt)]).scripts
    assert row.script == script


def test_odds_ratios_agree_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    rows = []
    for _ in range(800):
        sizes, heads = random.integers(5, 300, size=2), random.integers(0, 3, size=2)
        texts = ["x" * size + "\n# h" * head for size, head in zip(sizes, heads, strict=True)]
        pull = 0.8 * np.log(sizes[0] / sizes[1]) + 0.9 * (heads[0] - heads[1])
        rows.append(battle(*texts, label=A if random.random() < 1 / (1 + np.exp(-pull)) else B))
    x = np.array(
        [
            [
                np.log1p(len(r["response_a"][0])) - np.log1p(len(r["response_b"][0])),
                np.log1p(r["response_a"][0].count("#")) - np.log1p(r["response_b"][0].count("#")),
            ]
            for r in rows
        ]
    )
    won = np.array([r["label"] == A for r in rows])
    model = linear_model.LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(x / x.std(axis=0), won)
    effects = {effect.what: effect for effect in explore(rows).rewarded}
    odds = [effects[name].odds for name in ("length", "headings")]
    assert odds == pytest.approx(np.exp(model.coef_[0]), rel=1e-3)
    for name in ("length", "headings"):
        low, high = effects[name].odds_ci or (0, 0)
        assert 1 < low < (effects[name].odds or 0) < high


def test_a_property_that_decides_every_battle_has_no_odds() -> None:
    rows = [battle(a="x" * (20 + i), b="y", label=A) for i in range(80)]
    (length,) = explore(rows).rewarded
    assert length.wins.value == 1
    assert length.odds is None


def test_problems_of_the_data_are_counted() -> None:
    rows = [
        battle("same", "same", TIE),
        battle("same", "same", A),
        battle("x", "y", A),
        battle("y", "x", A),  # the same two answers in the other order, the other one won
        battle("x", "y", A),
        battle("x", "y", B, prompt="Other?"),
        battle("", "y", None, prompt=[None]),
        battle("x", "z", A, model_a="vole"),
    ]
    result = explore(rows)
    problems = result.problems
    assert (problems.identical_answers, problems.identical_outcomes) == (2, (1, 0, 1))
    assert problems.duplicates == 3
    assert problems.contradictory == 1
    assert problems.self_battles == 1
    assert problems.null_turns == {"prompt": 1, "response_a": 0, "response_b": 0}
    assert problems.empty == {"prompt": 1, "response_a": 1, "response_b": 0}
    assert result.agreement is not None
    assert (result.agreement.pairs, result.agreement.votes) == (1, 3)
    assert result.agreement.agree == pytest.approx(1 / 3)


def test_agreement_is_krippendorffs_alpha() -> None:
    """Krippendorff's nominal alpha computed by hand: units with votes (0 0), (1 1), (0 1)."""
    content, label = np.array([1, 1, 2, 2, 3, 3, 4]), np.array([0, 0, 1, 1, 0, 1, 2])
    votes = quality.agreement(content, label)
    assert votes is not None
    # observed: one of three units disagrees, 2 of 6 ordered pairs; expected: 1 - (3*2 + 3*2) / (6*5)
    assert votes.alpha == pytest.approx(1 - (2 / 6) / (1 - 12 / 30))
    assert votes.agree == pytest.approx(2 / 3)
    assert quality.agreement(np.arange(3), np.zeros(3, int)) is None
    assert quality.agreement(np.empty(0, int), np.empty(0, int)) is None


def test_prompts_shared_with_a_second_file_are_counted() -> None:
    rows = [battle(prompt=text) for text in ("One?", "Two?", " one? ")]
    keys = np.concatenate(
        [b.column("prompt_key").to_numpy() for b in batches([battle(prompt="ONE?"), battle(prompt="3?")])]
    )
    overlap = explore(rows, test_keys=keys).problems.overlap
    assert overlap == quality.Overlap(test_battles=2, shared_prompts=1, battles=2, test_battles_known=1)


def test_tokens_beyond_a_length_limit_are_counted() -> None:
    rows = [battle(a="x" * 4500, b="y", prompt="p" * 45), battle(a="x", b="y", prompt="p")]
    result = explore(rows, max_length=1000)
    cut = next(cut for cut in result.cuts if cut.max_length == 1000)
    # 10 + 1000 + 3 tokens for the long side: 13 too many, of 1013 + 14 + 5 + 5
    assert cut.sides_cut == pytest.approx(1 / 4)
    assert cut.battles_cut == pytest.approx(1 / 2)
    assert cut.tokens_lost == pytest.approx(13 / 1037)
    tokens = measures.measure(batches([battle(a="é" * 9, b="ab")])[0]).tokens[0]
    assert tokens.tolist() == [1, 5, 1]


# The command


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return synthetic.write(tmp_path / "demo", train=300, test=50).train


def test_the_command_prints_tables(cli: Callable[..., Any], votes: Path) -> None:
    result = cli("eda", votes, "--top", 3, "--all")
    assert result.code == 0
    for words in ("Most frequent pairs", "Most wins", "Ratings", "more length", "Characters"):
        assert words in result.out
    assert "Characters" not in cli("eda", votes).out
    assert "format kaggle" in result.err


def test_json_is_one_object_and_agrees_with_the_file(cli: Callable[..., Any], votes: Path) -> None:
    result = cli("eda", votes, "--json", "--test", votes.with_name("test.csv"))
    printed = json.loads(result.out)
    with votes.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    ties = sum(row["winner_tie"] == "1" for row in rows)
    assert printed["battles"] == len(rows)
    assert printed["ties"] == ties
    assert printed["tie_share"] == pytest.approx(ties / len(rows))
    assert printed["models"] == len({row[side] for row in rows for side in ("model_a", "model_b")})
    assert set(printed["top_pairs"][0]) == {"model_1", "model_2", "battles"}
    assert {"model", "wins", "ties", "battles"} <= set(printed["top_winners"][0])
    assert printed["problems"]["overlap"]["test_battles"] == 50
    assert printed["ratings"]["models"][0]["rating"] > 1000


def test_the_same_file_gives_the_same_numbers(cli: Callable[..., Any], votes: Path) -> None:
    assert cli("eda", votes, "--json").out == cli("eda", votes, "--json").out


def test_the_cache_depends_on_the_format_and_the_columns(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("q,l,r,s,winner\nHi?,one,two,three,a\n", encoding="utf-8")
    first = cli("eda", path, "--json", "--columns", "prompt=q,response_a=l,response_b=r")
    second = cli("eda", path, "--json", "--columns", "prompt=q,response_a=l,response_b=s")
    assert first.code == second.code == 0
    assert first.json()["lengths"]["response_b"]["mean"] == 3
    assert second.json()["lengths"]["response_b"]["mean"] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top", "0"], "--top is 0"),
        (["--max-length", "0"], "--max-length is 0"),
        (["--format", "nonsense"], "unknown format 'nonsense'"),
        (["--columns", "prompt"], "--columns"),
        (["--test", "none.csv"], "no such file"),
    ],
)
def test_wrong_use_is_explained(cli: Callable[..., Any], votes: Path, arguments: list[str], words: str) -> None:
    result = cli("eda", votes, *arguments)
    assert result.code == 2
    assert words in result.err
    assert result.out == ""

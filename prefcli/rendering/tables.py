"""The statistics as tables of text, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefcli import metrics
from prefcli.exploration import Eda
from prefcli.exploration.headline import rank_range
from prefcli.exploration.models import ModelWins
from prefcli.exploration.quality import Agreement
from prefcli.exploration.ratings import Beats, GroupRatings, ModelRating, Ratings
from prefcli.exploration.style import StyleEffects
from prefcli.exploration.trouble import PROBLEMS, Trouble
from prefcli.outcomes import TIE

Table = tuple[list[str], list[list[str]]]
"""Column names, and rows of as many cells."""


def interval(low: float | None, high: float | None, spec: str = ".1%") -> str:
    """Both ends of an interval, written by a format specification; empty if there is none."""
    if low is None or high is None:
        return ""
    return f"{low:{spec}} – {high:{spec}}"


def bin_label(low: float, high: float, unit: str = "") -> str:
    """The values of a bin, which may have no upper end."""
    return f"{low:g} – {high:g}{unit}" if math.isfinite(high) else f"{low:g}{unit} and more"


def model_label(model: ModelRating) -> str:
    """A rated model's name, and why it has no interval."""
    return f"{model.model} ({model.no_interval})" if model.no_interval else model.model


def lengths(eda: Eda) -> Table:
    rows = [
        [name, *(f"{value:,.0f}" for value in (field.mean, field.median, field.p90, field.longest))]
        for name, field in eda.lengths.items()
    ]
    return ["", "mean", "median", "90 %", "longest"], rows


def pairs(eda: Eda) -> Table:
    return ["pair", "battles"], [[f"{pair.model_1} vs {pair.model_2}", f"{pair.battles:,}"] for pair in eda.top_pairs]


def wins(models: Sequence[ModelWins]) -> Table:
    rows = [
        [model.model, f"{model.wins:,}", f"{model.ties:,}", f"{model.battles:,}", f"{model.win_rate:.1%}",
         interval(*model.win_rate_ci)]
        for model in models
    ]  # fmt: skip
    return ["model", "wins", "ties", "battles", "win rate", "95 %"], rows


def rating_interval(model: ModelRating) -> str:
    """The interval of a rating, or why there is none."""
    return interval(model.low, model.high, ".0f") or f"none: {model.no_interval}"


def ratings(ratings: Ratings, top: int, group: int = 0) -> Table:
    """The best models of one group of models that met; the last column only with style control."""
    models = ratings.of_group(group)
    styled = any(model.styled is not None for model in models)
    rows = [
        [model.model, rank_range(model) or "-",
         f"{model.rating:.0f}", rating_interval(model), probability(model.p_first), f"{model.battles:,}",
         *([f"{model.styled:.0f}, rank {model.styled_rank}"] if styled else [])]
        for model in models[:top]
    ]  # fmt: skip
    return ["model", "rank", "rating", "95 %", "P(best)", "battles", *(["at equal style"] * styled)], rows


def probability(p: float | None) -> str:
    """A probability in percent that says neither 0 nor 1; empty if there is none."""
    if p is None:
        return ""
    return "<1%" if p < 0.01 else ">99%" if p > 0.99 else f"{p:.0%}"


def beats(beats: Beats, top: int) -> Table:
    """P(row beats column) for the best models; in brackets if they never met, empty if nothing connects them."""
    size = min(top, len(beats.models))

    def cell(i: int, j: int) -> str:
        p = beats.probability[i][j]
        text = "" if p is None else probability(p)
        return f"({text})" if text and not beats.battles[i][j] else text

    rows = [[f"{i + 1} {beats.models[i]}", *(cell(i, j) for j in range(size))] for i in range(size)]
    return ["", *map(str, range(1, size + 1))], rows


def style(style: StyleEffects) -> Table:
    rows = [
        [
            effect.what,
            metrics.signed(effect.coefficient, 2),
            interval(effect.low, effect.high, "+.2f"),
            f"{effect.battles:,}",
        ]
        for effect in style.effects
    ]  # fmt: skip
    return ["one standard deviation more", "log-odds of winning", "95 %", "battles that differ"], rows


def groups(by: Sequence[GroupRatings]) -> Table:
    rows = []
    for group in by:
        labelled = sum(group.outcomes)
        ties = f"{group.outcomes[TIE] / labelled:.1%}" if labelled else "-"
        rows.append([group.name, f"{group.battles:,}", f"{group.prompts:,}", ties, group.headline[0]])
    return ["group", "battles", "prompts", "ties", "what its votes say"], rows


def odds(eda: Eda) -> Table:
    rows = [
        [effect.what, f"{effect.odds:.2f}", interval(*effect.odds_ci, ".2f"), f"{effect.wins.n:,}"]
        for effect in eda.rewarded
        if effect.odds is not None and effect.odds_ci is not None
    ]
    return ["one standard deviation more", "odds of winning ×", "95 %", "battles that differ"], rows


def problems(eda: Eda) -> Table:
    counts = eda.problems
    a_won, b_won, tied = counts.identical_outcomes
    rows = [
        ["identical answers", f"{counts.identical_answers:,}", f"labelled A {a_won:,}, B {b_won:,}, tie {tied:,}"],
        ["repeated battles", f"{counts.duplicates:,}", "same prompt, same two answers"],
        ["contradictory", f"{counts.contradictory:,}", "same battle, both answers won"],
        ["a model against itself", f"{counts.self_battles:,}", ""],
        ["null turns", *_by_field(counts.null_turns)],
        ["empty texts", *_by_field(counts.empty)],
    ]
    if overlap := counts.overlap:
        remark = f"{overlap.test_battles_known:,} of {overlap.test_battles:,} test battles have a known prompt"
        rows.append(["prompts also in the test file", f"{overlap.shared_prompts:,}", remark])
    return ["", "battles", ""], rows


def trouble(found: Trouble) -> Table:
    return ["", "battles", ""], [[name, f"{n:,}", PROBLEMS[name]] for name, n in found.counts.items()]


def _by_field(counts: dict[str, int]) -> tuple[str, str]:
    return f"{sum(counts.values()):,}", ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def agreement(votes: Agreement) -> str:
    """How far repeated votes agree, as a sentence."""
    alpha = f" (Krippendorff's alpha {round(votes.alpha, 2) + 0.0:.2f})" if votes.alpha is not None else ""
    return (
        f"{votes.pairs:,} pairs of answers were judged more than once, {votes.votes:,} votes in all; "
        f"two votes on a pair agree in {votes.agree:.1%}{alpha}."
    )


def cuts(eda: Eda) -> Table:
    rows = [
        [f"{cut.max_length:,}", *(f"{value:.1%}" for value in (cut.sides_cut, cut.battles_cut, cut.tokens_lost))]
        for cut in eda.cuts
    ]
    return ["tokens", "answers cut", "battles touched", "tokens lost"], rows


def scripts(eda: Eda) -> Table:
    rows = [[script.script, f"{script.battles:,}", f"{script.share:.1%}"] for script in eda.scripts]
    return ["", "battles", "share"], rows

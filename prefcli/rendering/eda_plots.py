"""What the plots of ``eda --report`` show."""

from __future__ import annotations

from prefcli.errors import plural
from prefcli.exploration import Eda
from prefcli.exploration.effects import MAX_TURNS
from prefcli.exploration.models import HeadToHead
from prefcli.exploration.ratings import Beats, Ratings
from prefcli.exploration.shares import Share, share
from prefcli.rendering.plots import Axis, Bar, Cell, Dot, heat_class
from prefcli.rendering.tables import bin_label, interval, model_label

MAX_PLOTTED_RATINGS = 20
RATING_STEPS = (25, 50, 100, 200, 500, 1000, 2500, 5000, 1e9)
NEVER_MET = Cell("", "never", "never met")
SAME = Cell("", "same", "")


def outcomes(eda: Eda) -> list[Bar]:
    """Shares of the outcomes, of all battles and by the number of turns if it varies."""
    bars = [Bar.of_battles("all battles", [count / eda.labelled for count in eda.outcomes], eda.labelled)]
    if len(eda.turns) > 1:
        for row in eda.turns:
            label = "1 turn" if row.turns == 1 else f"{row.turns}{' or more' if row.turns == MAX_TURNS else ''} turns"
            bars.append(Bar.of_battles(label, (row.a_won, row.b_won, row.tied), row.battles))
    return bars


def ratings(ratings: Ratings) -> tuple[list[Dot], Axis]:
    """The best models of the largest group, with the rating at equal style as a mark, and their axis."""
    plotted = [model for model in ratings.models if model.group == ratings.models[0].group][:MAX_PLOTTED_RATINGS]
    ends = [end for model in plotted for end in (model.low, model.rating, model.high, model.styled) if end is not None]
    dots = [
        Dot(
            model_label(model),
            model.rating,
            model.rating if model.low is None else model.low,
            model.rating if model.high is None else model.high,
            f"{model.rating:.0f}",
            f"n = {model.battles:,}",
            model.styled,
        )
        for model in plotted
    ]
    return dots, Axis.around(min(ends), max(ends), RATING_STEPS, ",.0f")


def effects(eda: Eda) -> list[Dot]:
    """Win rates of the first answer, and of the answer with more of each property."""
    first = [Dot.of("the first answer (shown as A)", eda.position, ".1%")] if eda.position else []
    return first + [Dot.of(f"more {effect.what}", effect.wins, ".1%") for effect in eda.rewarded]


def by_length(eda: Eda) -> list[Bar]:
    """Outcomes by how many times longer the longer answer is."""
    return [
        Bar.of_battles(bin_label(row.low, row.high, " times"), (row.longer_won, row.tied, row.shorter_won), row.battles)
        for row in eda.length_curve
    ]


def by_closeness(eda: Eda) -> list[Dot]:
    """Shares of ties by the difference of two ratings, beside the expected ones."""
    return [
        Dot.of(bin_label(row.low, row.high, " points"), row.tied, ".0%", mark=row.expected) for row in eda.tie_closeness
    ]


def head_to_head(table: HeadToHead) -> list[list[Cell]]:
    """Win shares of row against column; coloured as far as their interval is away from even."""
    rows = []
    for i, first in enumerate(table.models):
        cells = []
        for j, second in enumerate(table.models):
            score, battles = table.score[i][j], table.battles[i][j]
            if i == j:
                cells.append(SAME)
            elif score is None:
                cells.append(NEVER_MET)
            else:
                estimate = share(score * battles, battles)
                title = (
                    f"{first} against {second}: {score:.0%} of {plural(battles, 'battle')}, ties counting half "
                    f"({interval(estimate.low, estimate.high, '.0%')})"
                )
                cells.append(Cell(f"{100 * score:.0f}", style_of(estimate), title))
        rows.append(cells)
    return rows


def beats(table: Beats) -> list[list[Cell]]:
    """Expected shares of decided votes of row against column; coloured as :func:`head_to_head`."""
    rows = []
    for i, first in enumerate(table.models):
        cells = []
        for j, second in enumerate(table.models):
            value, low, high = table.probability[i][j], table.low[i][j], table.high[i][j]
            if i == j:
                cells.append(SAME)
            elif value is None:
                cells.append(Cell("", "never", "no battles connect them"))
            else:
                known = "no interval" if low is None or high is None else interval(low, high, ".0%")
                title = f"{first} against {second}: {value:.0%} ({known}), {plural(table.battles[i][j], 'battle')}"
                within = Share(value, 0.0 if low is None else low, 1.0 if high is None else high, table.battles[i][j])
                cells.append(Cell(f"{100 * value:.0f}", style_of(within), title))
        rows.append(cells)
    return rows


def style_of(estimate: Share) -> str:
    """The class of a cell: the nearer end of its interval says how far from even it surely is."""
    if estimate.low > 0.5:
        return heat_class("a", 2 * estimate.low - 1)
    return heat_class("b", 1 - 2 * estimate.high) if estimate.high < 0.5 else "even"

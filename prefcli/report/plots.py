"""What the page's plots show: rows of dots and bars, which ``templates/plots.html`` draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prefcli.eda import Eda
from prefcli.eda.effects import MAX_TURNS
from prefcli.eda.ratings import Ratings
from prefcli.eda.shares import Share
from prefcli.report.tables import bin_label, model_label

MAX_PLOTTED_RATINGS = 20


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from ``low`` to ``high``, with labels at the ``ticks``."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> str:
        """Where a value lies, in percent of the axis; values beyond its ends lie at its ends."""
        width = self.high - self.low or 1.0  # 0 if all models are equally good
        return f"{100 * (min(max(value, self.low), self.high) - self.low) / width:.2f}%"


SHARES = Axis(0, 1, tuple((share / 100, f"{share}%") for share in (0, 25, 50, 75, 100)))


@dataclass(frozen=True)
class Dot:
    """A value with its interval. ``mark`` is a second value to compare with."""

    label: str
    value: float
    low: float
    high: float
    shown: str
    mark: float | None = None

    @staticmethod
    def of(label: str, share: Share, spec: str, mark: float | None = None) -> Dot:
        """A share, written by a format specification."""
        return Dot(label, share.value, share.low, share.high, f"{share.value:{spec}}", mark)


@dataclass(frozen=True)
class Bar:
    """Shares that sum to 1."""

    label: str
    shares: tuple[float, ...]
    battles: int

    @property
    def shown(self) -> str:
        return f"{self.battles:,}"

    def parts(self) -> Iterator[tuple[float, float]]:
        """Where each share begins, and the share."""
        start = 0.0
        for share in self.shares:
            yield start, share
            start += share


def outcomes(eda: Eda) -> list[Bar]:
    """Shares of the outcomes, of all battles and by the number of turns if it varies."""
    bars = [Bar("all", tuple(count / eda.labelled for count in eda.outcomes), eda.labelled)]
    if len(eda.turns) > 1:
        for row in eda.turns:
            label = "1 turn" if row.turns == 1 else f"{row.turns}{' or more' if row.turns == MAX_TURNS else ''} turns"
            bars.append(Bar(label, (row.a_won, row.b_won, row.tied), row.battles))
    return bars


def ratings(ratings: Ratings) -> tuple[list[Dot], Axis]:
    """The best models, and an axis with at most a few round ticks."""
    plotted = ratings.models[:MAX_PLOTTED_RATINGS]
    ends = [end for model in plotted for end in (model.low, model.rating, model.high) if end is not None]
    low, high = min(ends), max(ends)
    step = next(step for step in (25, 50, 100, 200, 500, 1000, 2500, 5000, 1e9) if (high - low) / step <= 5)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    dots = [
        Dot(
            model_label(model, ratings),
            model.rating,
            model.rating if model.low is None else model.low,
            model.rating if model.high is None else model.high,
            f"{model.rating:.0f}",
        )
        for model in plotted
    ]
    return dots, Axis(low, high, tuple((value, f"{value:,.0f}") for value in np.arange(low, high + 1, step)))


def effects(eda: Eda) -> list[Dot]:
    """Win rates of the first answer, and of the answer with more of each property."""
    first = [Dot.of("first answer (A)", eda.position, ".1%")] if eda.position else []
    return first + [Dot.of(f"more {effect.what}", effect.wins, ".1%") for effect in eda.rewarded]


def by_length(eda: Eda) -> list[Bar]:
    """Outcomes by how many times longer the longer answer is."""
    return [
        Bar(bin_label(row.low, row.high, " times"), (row.longer_won, row.tied, row.shorter_won), row.battles)
        for row in eda.length_curve
    ]


def by_closeness(eda: Eda) -> list[Dot]:
    """Shares of ties by the difference of two ratings, beside the expected ones."""
    return [Dot.of(bin_label(row.low, row.high), row.tied, ".0%", mark=row.expected) for row in eda.tie_closeness]

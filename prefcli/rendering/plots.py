"""The shapes that the pages' plots are made of: rows of dots and bars, charts and matrices (``templates/plots.html``).

Rows lie on a common :class:`Axis`. What a plot shows is chosen in :mod:`.eda_plots` and :mod:`.run_plots`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prefcli.exploration.shares import Share

HEAT_LEVELS = 5
"""Strengths of a cell's colour; ``style.css`` has a class for each."""


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, with labels at the ``ticks``."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @staticmethod
    def around(low: float, high: float, steps: Sequence[float], spec: str) -> Axis:
        """An axis that includes both values, with round ticks, at most six: a multiple of the first step that fits."""
        step = next((step for step in steps if (high - low) / step <= 5), steps[-1])
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        values = [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
        return Axis(values[0], values[-1], tuple((value, f"{value:{spec}}") for value in values))

    @staticmethod
    def until(high: float, steps: Sequence[float], spec: str) -> Axis:
        """An axis from 0 to exactly a value, with at most six round ticks."""
        step = next((step for step in steps if high / step <= 5), steps[-1])
        return Axis(0, high, tuple((value, f"{value:{spec}}") for value in np.arange(0, high + 1e-9, step).tolist()))

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1; values beyond the axis's ends lie at its ends."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def at(self, value: float) -> str:
        """The same in percent of the axis."""
        return f"{100 * self.share(value):.2f}%"

    def up(self, value: float) -> str:
        """The same of a vertical axis, counted from the top."""
        return f"{100 * (1 - self.share(value)):.2f}%"


SHARES = Axis(0, 1, tuple((share / 100, f"{share}%") for share in (0, 25, 50, 75, 100)))


@dataclass(frozen=True)
class Dot:
    """A value with its interval. ``mark`` is a second value to compare with, ``count`` says what it is the value of."""

    label: str
    value: float
    low: float
    high: float
    shown: str
    count: str = ""
    mark: float | None = None

    @staticmethod
    def of(label: str, share: Share, spec: str, mark: float | None = None) -> Dot:
        """A share, written by a format specification."""
        return Dot(label, share.value, share.low, share.high, f"{share.value:{spec}}", f"n = {share.n:,}", mark)


@dataclass(frozen=True)
class Bar:
    """Shares that sum to 1, or one share of a bar that is not filled."""

    label: str
    shares: tuple[float, ...]
    shown: str

    @staticmethod
    def of_battles(label: str, shares: Sequence[float], battles: int) -> Bar:
        """Shares of so many battles."""
        return Bar(label, tuple(shares), f"n = {battles:,}")

    def parts(self) -> Iterator[tuple[float, float]]:
        """Where each share begins, and the share."""
        start = 0.0
        for share in self.shares:
            yield start, share
            start += share


@dataclass(frozen=True)
class Line:
    """A line through points ``(x, y)``; ``style`` is its class."""

    style: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Lines, points with vertical intervals, and columns of counts along the lower edge."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...] = ()
    dots: tuple[tuple[float, float, float, float], ...] = ()
    """``(x, y, low, high)``"""
    marks: tuple[tuple[float, float], ...] = ()
    """Points of the line ``validation`` that get a dot."""
    columns: tuple[tuple[float, float, float], ...] = ()
    """``(left, right, share of the highest column)``"""
    references: tuple[tuple[str, float], ...] = ()
    """Values of y, named."""


@dataclass(frozen=True)
class Cell:
    """A cell of a matrix: its text, the class of its colour, and all that is known of it."""

    text: str
    style: str
    title: str


def heat(strength: float) -> int:
    """The level of a cell's colour for a strength from 0 to 1; 0 is none."""
    return int(np.ceil(min(max(strength, 0.0), 1.0) * HEAT_LEVELS))


def heat_class(side: str, strength: float) -> str:
    """The class of a cell in the colour of ``side`` (``a`` or ``b``)."""
    level = heat(strength)
    return f"heat-{side}-{level}" if level else "even"

"""What the plots of ``templates/plots.html`` show, and where it lies: rows of dots and bars, and their axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prefcli.eda.shares import Share


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

"""The bootstrap over prompts: intervals and p-values of anything that is a function of sums over battles. Numpy only.

Prompts are drawn with replacement, for battles of one prompt are not independent; where prompts are not known, battles
are. Intervals are percentile intervals (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3),
expanded for few prompts (T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69,
2015).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

ROUNDS = 1000
MAX_UNITS = 1 << 14
"""Of more prompts, those with like hashes are drawn together: the variance of a mean stays unbiased, and the cost does
not grow with their number."""
MIN_UNITS = 20
"""An interval needs that many prompts, or battles where prompts are not known: fewer say too little of the others."""
Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
SAME = 1e-12
"""Values that differ by less are equal but for rounding."""


class Units:
    """Sums of values over units (the battles of a prompt, or single ones), from which the bootstrap draws.

    Values may be added in parts. Memory is bounded but for 8 bytes a group, which are needed to count the groups.
    """

    def __init__(self, columns: int = 1) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._sums = np.zeros((0, 1 + columns))  # how many values a unit has, and their sums
        self._is_hashed = False
        self._groups: list[NDArray[np.int64]] = []  # keys of groups, sorted; counted only
        self._rows = 0

    def add(self, groups: NDArray[np.int64] | None, values: Array) -> None:
        """Add values, shape ``[n, columns]``; without groups each row is a unit of its own."""
        if groups is None:
            groups = np.arange(self._rows, self._rows + len(values))
        else:
            self._count(np.unique(groups))
        self._rows += len(values)
        rows = np.concatenate([np.ones((len(values), 1)), values], axis=1)
        if self._is_hashed:
            groups = _hash_units(groups)
        self._keys, self._sums = _sum_by_key(
            np.concatenate([self._keys, groups]), np.concatenate([self._sums, rows], axis=0)
        )
        if not self._is_hashed and len(self._keys) > MAX_UNITS:
            self._is_hashed = True
            self._keys, self._sums = _sum_by_key(_hash_units(self._keys), self._sums)

    def _count(self, groups: NDArray[np.int64]) -> None:
        self._groups.append(groups)
        if sum(map(len, self._groups[1:])) > len(self._groups[0]):  # merging costs no more than what was added
            self._groups = [np.unique(np.concatenate(self._groups))]

    @property
    def groups(self) -> int | None:
        """How many different groups there are; None if values were added without groups."""
        return len(np.unique(np.concatenate(self._groups))) if self._groups else None

    @property
    def rows(self) -> int:
        """How many values were added."""
        return self._rows

    @property
    def size(self) -> float:
        """How many units there are, those of unequal size as ``sum(sizes)^2 / sum(sizes^2)``.

        L. Kish, "Survey sampling", 1965.
        """
        sizes = self._sums[:, 0]
        return float(sizes.sum() ** 2 / (sizes**2).sum())

    @property
    def sums(self) -> Array:
        """For each unit the number of its values, and their sums: shape ``[units, 1 + columns]``."""
        return self._sums

    @property
    def means(self) -> Array:
        """Each unit's means, shape ``[units, columns]``."""
        return self._sums[:, 1:] / self._sums[:, :1]

    def resample(self, *, rounds: int = ROUNDS, seed: int = 0) -> Array | None:
        """What :attr:`sums` add up to in each round, shape ``[rounds, 1 + columns]``; None for too few units."""
        size = len(self._sums)
        if size < MIN_UNITS:
            return None
        random = np.random.default_rng(seed)
        parts = []
        at_once = max(1, MAX_UNITS // size)
        for begin in range(0, rounds, at_once):
            drawn = random.integers(0, size, size=(min(at_once, rounds - begin), size))
            drawn += np.arange(len(drawn))[:, None] * size
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            parts.append(times @ self._sums)
        return np.concatenate(parts)

    def interval(self, column: int = 0, *, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
        """95 % interval of a column's mean; None if there are too few units, or all have the same mean."""
        drawn = self.resample(rounds=rounds, seed=seed)
        if drawn is None or np.ptp(self.means[:, column]) < SAME:
            return None
        return percentile_interval(drawn[:, 1 + column] / drawn[:, 0], self.size)


def percentile_interval(values: Array, units: float) -> Interval:
    """The expanded 95 % interval of a statistic.

    Parameters
    ----------
    values:
        The statistic in each round.
    units:
        How many units were drawn in each, see :attr:`Units.size`.
    """
    tail = _expanded_tail(units)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def p_value(values: Array, units: float) -> float:
    """1 minus the level of the widest interval, expanded as the 95 % one is, that leaves out 0 (ibid., section 15.4).

    It is never below about 2 / (rounds + 1).
    """
    beyond = min((values <= 0).sum(), (values >= 0).sum())
    wanted = NormalDist().inv_cdf(1 - min(float(beyond + 1) / (len(values) + 1), 0.5))
    low, high = 0.0, wanted
    for _ in range(60):  # bisection: the quantile grows with z
        middle = (low + high) / 2
        low, high = (middle, high) if expanded_quantile(middle, units) < wanted else (low, middle)
    return math.erfc(low / math.sqrt(2))


def _expanded_tail(units: float) -> float:
    """Share of the bootstrap's means beyond each end of a 95 % interval: ``Phi(-t sqrt(n / (n - 1)))``.

    A percentile interval of n units is too narrow as the normal distribution is against Student's t, and because the
    bootstrap divides by n, not n - 1.
    """
    return math.erfc(expanded_quantile(Z95, units) / math.sqrt(2)) / 2


def expanded_quantile(z: float, units: float) -> float:
    """``t sqrt(n / (n - 1))`` of the t that is to n units what ``z`` is to the normal distribution.

    The quantile t is M. Abramowitz & I. Stegun's expansion (1964), 26.7.5.
    """
    degrees = max(units - 1, 1.0)
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return t * math.sqrt((degrees + 1) / degrees)


def _sum_by_key(keys: NDArray[np.int64], rows: Array) -> tuple[NDArray[np.int64], Array]:
    """The different keys, sorted, and for each the sum of its rows."""
    different, position = np.unique(keys, return_inverse=True)
    return different, np.stack([np.bincount(position, weights=column) for column in rows.T], axis=1)


def _hash_units(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group's unit, of about :data:`MAX_UNITS`; multiplicative hashing.

    D. E. Knuth, "The Art of Computer Programming", volume 3, section 6.4, with the constant of 64-bit words.
    """
    mixed = groups.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(MAX_UNITS)).astype(np.int64)

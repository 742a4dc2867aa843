"""The models: how often they met and won, win shares between them, and how ties depend on their ratings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from prefcli.exploration.davidson import PairwiseCounts, probabilities
from prefcli.exploration.measures import IntArray
from prefcli.exploration.ratings import ELO_PER_LOG_ODDS, Ratings
from prefcli.exploration.shares import Share, share
from prefcli.outcomes import TIE, A, B

RATING_GAPS = (0, 25, 50, 100, 200, 400, np.inf)
"""Bins of the difference between two ratings, in points."""
MAX_HEAD_TO_HEAD = 20
"""Models in the head-to-head table."""
MIN_BATTLES_FOR_RATE = 30
"""A model needs that many battles to be ranked by win rate."""


@dataclass(frozen=True)
class PairCount:
    """How often two models met, whichever was A."""

    model_1: str
    model_2: str
    battles: int


@dataclass(frozen=True)
class ModelWins:
    """How often a model won. ``win_rate`` is wins per battle, ties not counted as wins."""

    model: str
    wins: int
    ties: int
    battles: int
    win_rate: float
    win_rate_ci: tuple[float, float]


@dataclass(frozen=True)
class ClosenessBin:
    """Battles between models whose ratings are ``low`` to ``high`` points apart."""

    low: float
    high: float
    tied: Share
    expected: float
    """Share of ties that the fitted model expects there."""


@dataclass(frozen=True)
class HeadToHead:
    """Win shares between the models with most battles, best rated first.

    ``score[i][j]`` is the share of battles that i won against j, ties counting half; None where they never met.
    """

    models: tuple[str, ...]
    score: tuple[tuple[float | None, ...], ...]
    battles: tuple[tuple[int, ...], ...]


def top_pairs(models: IntArray, names: tuple[str, ...], top: int) -> tuple[PairCount, ...]:
    """The pairs of models that met most often.

    Parameters
    ----------
    models:
        Positions in ``names`` of the models A and B, -1 where unknown; shape ``[n, 2]``.
    """
    known = np.sort(models[(models >= 0).all(axis=1)], axis=1)
    codes, counts = np.unique(known[:, 0] * len(names) + known[:, 1], return_counts=True)
    pairs = []
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        pair = names[code // len(names)], names[code % len(names)]
        pairs.append(PairCount(min(pair), max(pair), count))
    return tuple(sorted(pairs, key=lambda pair: (-pair.battles, pair.model_1, pair.model_2))[:top])


def model_wins(models: IntArray, label: IntArray, names: tuple[str, ...]) -> list[ModelWins]:
    """Wins of every model that has battles with an outcome; ``models`` as for :func:`top_pairs`."""
    counts = np.zeros((3, len(names)), dtype=np.int64)
    for side, won in ((models[:, 0], A), (models[:, 1], B)):
        for row, mask in enumerate((label == won, label == TIE, label >= 0)):
            counts[row] += np.bincount(side[mask & (side >= 0)], minlength=len(names))
    results = []
    for name, (wins, ties, battles) in zip(names, counts.T.tolist(), strict=True):
        if battles:
            rate = share(wins, battles)
            results.append(ModelWins(name, wins, ties, battles, rate.value, (rate.low, rate.high)))
    return results


def tie_closeness(pairwise: PairwiseCounts, ratings: Ratings) -> tuple[ClosenessBin, ...]:
    """Share of ties by how close the two ratings are, beside what Davidson's model expects."""
    rating_of = {model.model: model.rating for model in ratings.models}
    rating = np.array([rating_of.get(name, np.nan) for name in pairwise.models])
    gap = np.abs(rating[pairwise.first] - rating[pairwise.second])
    expected = probabilities(gap / ELO_PER_LOG_ODDS, ratings.tie_parameter)[:, TIE]
    bins = []
    for low, high in itertools.pairwise(RATING_GAPS):
        inside = (gap >= low) & (gap < high)
        battles = pairwise.battles[inside]
        n = int(battles.sum())
        if n:
            mean = float((expected[inside] * battles).sum() / n)
            bins.append(ClosenessBin(low, high, share(int(pairwise.counts[inside, TIE].sum()), n), mean))
    return tuple(bins)


def head_to_head(pairwise: PairwiseCounts, ratings: Ratings) -> HeadToHead:
    """Win shares between the :data:`MAX_HEAD_TO_HEAD` models with most battles."""
    busiest = sorted(ratings.models, key=lambda model: (-model.battles, model.model))[:MAX_HEAD_TO_HEAD]
    names = [model.model for model in sorted(busiest, key=lambda model: (-model.rating, model.model))]
    row_of = {pairwise.models.index(name): row for row, name in enumerate(names)}
    size = len(names)
    wins, battles = np.zeros((size, size)), np.zeros((size, size), dtype=np.int64)
    for first, second, counts in zip(pairwise.first.tolist(), pairwise.second.tolist(), pairwise.counts, strict=True):
        if first in row_of and second in row_of:
            i, j = row_of[first], row_of[second]
            wins[i, j], wins[j, i] = counts[A] + counts[TIE] / 2, counts[B] + counts[TIE] / 2
            battles[i, j] = battles[j, i] = int(counts.sum())
    score = tuple(
        tuple(wins[i, j] / battles[i, j] if battles[i, j] else None for j in range(size)) for i in range(size)
    )
    return HeadToHead(tuple(names), score, tuple(map(tuple, battles.tolist())))

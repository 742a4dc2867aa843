"""Splits into training and validation battles or folds: grouped by prompt, stratified by outcome, reproducible.

A prompt on both sides of a split would make every measurement on it too good. Sides with different shares of A, B and
ties would have different priors. Numpy only; which battles are split is decided in :mod:`prefcli.data.selection`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefcli.outcomes import OUTCOMES

VERSION = 2
"""Of the rule. Runs record it: one that is resumed is split by the rule that it was begun with."""

SIZE_WEIGHT = 1.1
"""How much a part's size counts beside its shares of the outcomes; just above 1, so that single battles are spread
evenly."""
MAX_MOVES = 100
MAX_GROUPS_TO_MOVE = 10_000
"""Of more groups there are enough small ones to balance the parts as they are assigned."""


def assign_parts(
    groups: NDArray[np.int64],
    labels: NDArray[np.int64],
    shares: Sequence[float],
    seed: int,
    *,
    version: int = VERSION,
) -> NDArray[np.int64]:
    """Assign battles to parts of given shares without dividing a group.

    Groups are assigned in order of size, the largest first, in random order within a size. Each goes to the part where
    it leaves the least imbalance: the squared distance of every part's size and outcomes from its share of what is
    assigned so far. A group that is larger than a part should be by then therefore goes to a larger one, and the small
    groups fill what is lacking. Last, single groups are moved while that helps. Every part gets a group if there are
    enough. On groups of random sizes, sizes and outcomes of the parts are closer to the wanted ones, on average, than
    those of scikit-learn's ``StratifiedGroupKFold``, which serves equal shares only.

    Parameters
    ----------
    groups:
        Group of each battle, shape ``[n]`` (:func:`prefcli.battles.prompt_key`).
    labels:
        Outcome of each battle, shape ``[n]``; -1 for unknown.
    shares:
        Wanted share of each part, summing to 1.
    seed:
        Of the random order.
    version:
        1 is the rule of runs that do not record a version.

    Returns
    -------
    Part of each battle, shape ``[n]``, values ``0 .. len(shares) - 1``.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    count = int(group_of.max()) + 1 if len(group_of) else 0
    classes = len(OUTCOMES) + 1  # the last is for unknown outcomes
    counts = np.zeros((count, classes), dtype=np.int64)  # battles of each outcome in each group
    np.add.at(counts, (group_of, np.where(labels < 0, classes - 1, labels)), 1)

    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    if version == 1:
        return _assign_to_lacking(counts, order, shares)[group_of]
    return _assign_to_least_imbalance(counts, order, np.asarray(shares))[group_of]


def _assign_to_least_imbalance(
    counts: NDArray[np.int64], order: NDArray[np.int64], shares: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The part of each group. The imbalance is ``sum(offsets ** 2 / shares)``, offsets being a part's vector minus its
    share of all vectors."""
    sizes, totals = counts.sum(axis=1, keepdims=True), counts.sum(axis=0)
    battles = max(int(totals.sum()), 1)
    # A group as a vector: by how many battles of each outcome it differs from its share of all, and its size.
    composition = (counts - sizes * totals / battles) / np.sqrt(np.maximum(totals, 1))
    vectors = np.concatenate([composition, sizes * np.sqrt(SIZE_WEIGHT / battles)], axis=1)
    squares = (vectors**2).sum(axis=1)
    parts = range(len(shares))
    share_of = shares.tolist()
    offsets = [[0.0] * vectors.shape[1] for _ in parts]
    part_of_group = np.empty(len(counts), dtype=np.int64)
    empty = set(parts)
    rows, square_of = vectors.tolist(), squares.tolist()
    for remaining, group in zip(range(len(order), 0, -1), order.tolist(), strict=True):
        row, square = rows[group], square_of[group]
        best, least = 0, np.inf
        for part in empty if remaining <= len(empty) else parts:
            share = share_of[part]
            product = sum(x * y for x, y in zip(offsets[part], row, strict=True))
            increase = (2 * product + (1 - 2 * share) * square) / share
            if increase < least - 1e-12:
                best, least = part, increase
        part_of_group[group] = best
        empty.discard(best)
        for part in parts:
            factor = (part == best) - share_of[part]
            offsets[part] = [x + factor * y for x, y in zip(offsets[part], row, strict=True)]
    if len(order) <= MAX_GROUPS_TO_MOVE:
        _move_groups(part_of_group, vectors, squares, np.array(offsets), shares)
    return part_of_group


def _move_groups(
    part_of_group: NDArray[np.int64],
    vectors: NDArray[np.float64],
    squares: NDArray[np.float64],
    offsets: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> None:
    """Move the group that lessens the imbalance most, again and again; no part becomes empty."""
    rows = np.arange(len(vectors))
    for _ in range(MAX_MOVES if len(rows) else 0):
        products = 2 * vectors @ offsets.T
        leaving = (squares - products[rows, part_of_group]) / shares[part_of_group]
        change = leaving[:, None] + (squares[:, None] + products) / shares
        change[rows, part_of_group] = 0
        change[np.bincount(part_of_group, minlength=len(shares))[part_of_group] == 1] = 0
        group, part = divmod(int(change.argmin()), len(shares))
        if change[group, part] > -1e-9:
            break
        offsets[part_of_group[group]] -= vectors[group]
        offsets[part] += vectors[group]
        part_of_group[group] = part


def _assign_to_lacking(
    counts: NDArray[np.int64], order: NDArray[np.int64], shares: Sequence[float]
) -> NDArray[np.int64]:
    """Version 1: each group goes to the part that lacks most of the group's outcomes, even if it lacks less of them."""
    totals = counts.sum(axis=0)
    lacking = [[share * float(total) for total in totals] for share in shares]  # battles of each outcome, by part
    part_of_group = np.empty(len(counts), dtype=np.int64)
    rows = counts.tolist()
    for group in order.tolist():
        row = rows[group]
        best, best_gain = 0, -np.inf
        for part, lacks in enumerate(lacking):
            # How much of this group's outcomes the part lacks, as a share of what it should get in total.
            gain = sum(n * lacks[outcome] / (shares[part] * totals[outcome]) for outcome, n in enumerate(row) if n)
            if gain > best_gain:
                best, best_gain = part, gain
        part_of_group[group] = best
        for outcome, n in enumerate(row):
            lacking[best][outcome] -= n
    return part_of_group


def split_validation(
    groups: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int, *, version: int = VERSION
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the training and of the validation battles, each ascending; validation is about ``share``."""
    if share <= 0:
        return np.arange(len(groups)), np.empty(0, dtype=np.intp)
    part = assign_parts(groups, labels, (1 - share, share), seed, version=version)
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def split_folds(
    groups: NDArray[np.int64], labels: NDArray[np.int64], folds: int, seed: int, *, version: int = VERSION
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """``folds`` pairs of (training, held-out) positions; every battle is held out exactly once."""
    part = assign_parts(groups, labels, [1 / folds] * folds, seed, version=version)
    return [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(folds)]

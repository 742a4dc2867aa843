"""Splits into training and validation battles or folds: grouped by prompt, stratified by outcome, reproducible.

A prompt on both sides of a split would make every measurement on it too good. Sides with different shares of A, B and
ties would have different priors. Numpy only; which battles are split is decided in :mod:`prefcli.data.selection`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefcli.outcomes import OUTCOMES


def assign_parts(
    groups: NDArray[np.int64], labels: NDArray[np.int64], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Assign battles to parts of given shares without dividing a group.

    Groups are assigned in order of size, the largest first, in random order within a size. Each goes to the part that
    lacks most of the group's outcomes: the greedy rule of scikit-learn's ``StratifiedGroupKFold``, but for arbitrary
    shares and in time linear in the number of groups.

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

    totals = counts.sum(axis=0)
    lacking = [[share * float(total) for total in totals] for share in shares]  # battles of each outcome, by part
    part_of_group = np.empty(count, dtype=np.int64)
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
    return part_of_group[group_of]


def split_validation(
    groups: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the training and of the validation battles, each ascending; validation is about ``share``."""
    if share <= 0:
        return np.arange(len(groups)), np.empty(0, dtype=np.intp)
    part = assign_parts(groups, labels, (1 - share, share), seed)
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def split_folds(
    groups: NDArray[np.int64], labels: NDArray[np.int64], folds: int, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """``folds`` pairs of (training, held-out) positions; every battle is held out exactly once."""
    part = assign_parts(groups, labels, [1 / folds] * folds, seed)
    return [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(folds)]

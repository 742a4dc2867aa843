"""Log loss and other metrics of predictions. Numpy only.

The one place where probabilities are checked (:func:`find_improper`) and scored (:func:`score`). Arrays of
probabilities have shape ``[n, 3]`` in the order A, B, tie; labels have shape ``[n]`` with values 0, 1, 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.outcomes import OUTCOMES

Array = NDArray[np.float64]
Labels = NDArray[np.integer]

SUM_TOLERANCE = 1e-6
"""How far a row's sum may be from 1 (the competition grader's tolerance)."""

CLIP = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [CLIP, 1] before the logarithm, as scikit-learn's ``log_loss`` does."""

CALIBRATION_BINS = 15
BOOTSTRAP_ROUNDS = 1000
INTERVAL_LEVEL = 0.95
BOOTSTRAP_MAX_UNITS = 20_000


@dataclass(frozen=True)
class Score:
    """What ``prefcli score`` reports. Log losses are in nats; lower is better, except for accuracy."""

    n: int
    log_loss: float
    log_loss_ci: tuple[float, float]
    binary_log_loss: float
    accuracy: float
    brier: float
    ece: float
    prior_log_loss: float
    uniform_log_loss: float
    clipped: int
    """Battles whose true outcome was given a probability below :data:`CLIP` (each costs 36 nats)."""


def find_improper(probabilities: Array) -> NDArray[np.intp]:
    """Row numbers whose three values are not probabilities.

    A row is proper when its values are finite, within [0, 1], and sum to 1 within :data:`SUM_TOLERANCE`.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        in_range = ((probabilities >= 0) & (probabilities <= 1)).all(axis=1)  # false for NaN
        sums_to_one = np.abs(probabilities.sum(axis=1) - 1) <= SUM_TOLERANCE
    return np.flatnonzero(~(in_range & sums_to_one))


def softmax(logits: Array) -> Array:
    """Row-wise softmax in float64: the one place where logits become probabilities."""
    logits = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def losses(probabilities: Array, labels: Labels) -> Array:
    """Log loss of each battle, ``-log p[true outcome]``; shape ``[n]``, in nats."""
    return -np.log(np.clip(_of_labels(probabilities, labels), CLIP, 1))


def _of_labels(probabilities: Array, labels: Labels) -> Array:
    """The probability given to each battle's true outcome."""
    return np.asarray(probabilities[np.arange(len(labels)), labels])


def log_loss(probabilities: Array, labels: Labels) -> float:
    """Multiclass log loss: the mean of :func:`losses`. Equal to scikit-learn's with ``labels=[0, 1, 2]``."""
    return float(losses(probabilities, labels).mean())


def binary_log_loss(probabilities: Array, labels: Labels) -> float:
    """The binary form, ``-1/N sum(y log p + (1 - y) log(1 - p))``, N running over battles *and* outcomes.

    Each battle counts as three yes/no predictions (A? B? tie?).
    """
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    targets = one_hot(labels)
    return float(-(targets * np.log(clipped) + (1 - targets) * np.log1p(-clipped)).mean())


def accuracy(probabilities: Array, labels: Labels) -> float:
    """Share of battles whose most probable outcome is the true one; of equals the first, in the order A, B, tie."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def brier(probabilities: Array, labels: Labels) -> float:
    """Multiclass Brier score, mean over battles of the squared distance to the one-hot label (0 to 2).

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).
    """
    return float(((probabilities - one_hot(labels)) ** 2).sum(axis=1).mean())


def _calibration_gaps(probabilities: Array, labels: Labels) -> NDArray[Any]:
    """For each bin of the largest probability, correct predictions minus the sum of their confidences.

    Their absolute sum over n is the top-label expected calibration error with bins ``(k/15, (k+1)/15]``; Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return np.bincount(bin_of, weights=correct - confidence, minlength=CALIBRATION_BINS)


def prior_log_loss(labels: Labels) -> float:
    """Log loss of always predicting these labels' own frequencies: the entropy of the outcomes."""
    return _entropy(np.bincount(labels, minlength=len(OUTCOMES)))


def _entropy(counts: NDArray[Any]) -> float:
    shares = counts / counts.sum()
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def one_hot(labels: Labels) -> Array:
    """Labels ``[n]`` as float64 rows ``[n, 3]`` with a single 1."""
    return np.eye(len(OUTCOMES))[labels]


def bootstrap_interval(
    values: Array, *, groups: NDArray[np.int64] | None = None, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of ``values``.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. More than
    :data:`BOOTSTRAP_MAX_UNITS` values are first summed in that many random groups of equal size, which are then
    resampled: the variance of the mean stays unbiased, and the cost does not grow with n.

    Parameters
    ----------
    values:
        Shape ``[n]``, n >= 1. For the difference of two models: each battle's difference (a paired bootstrap).
    groups:
        Shape ``[n]``; values of one group are resampled together. Battles about the same prompt are not independent:
        where prompts recur, an interval that ignores it is too narrow.
    rounds, seed:
        Of the bootstrap.
    """
    units = _BootstrapUnits(seed)
    if groups is None:
        units.add(values)
    else:
        _, group_of = np.unique(groups, return_inverse=True)
        units.add(np.bincount(group_of, weights=values), np.bincount(group_of))
    return units.interval(rounds)


class _BootstrapUnits:
    """Sums of values and how many values each has, from which the bootstrap draws.

    They may be added in parts: memory does not grow with their number, because many are summed up in random groups.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._parts: list[Array] = []
        self._groups = np.zeros((2, BOOTSTRAP_MAX_UNITS))
        self._grouped = 0

    def add(self, sums: NDArray[Any], sizes: NDArray[np.int64] | None = None) -> None:
        """Add units; without ``sizes`` each is a single value."""
        self._parts.append(np.stack([sums, np.ones(len(sums)) if sizes is None else sizes]))
        if self._grouped + sum(part.shape[1] for part in self._parts) > BOOTSTRAP_MAX_UNITS:
            for part in self._parts:
                group = (self._grouped + self._random.permutation(part.shape[1])) % BOOTSTRAP_MAX_UNITS
                self._groups += [np.bincount(group, weights=row, minlength=BOOTSTRAP_MAX_UNITS) for row in part]
                self._grouped += part.shape[1]
            self._parts.clear()

    def interval(self, rounds: int = BOOTSTRAP_ROUNDS) -> tuple[float, float]:
        """95 % percentile interval of the mean."""
        sums, sizes = np.concatenate(self._parts, axis=1) if self._parts else self._groups
        means = np.empty(rounds)
        for i in range(rounds):
            drawn = self._random.integers(0, len(sums), size=len(sums))
            means[i] = sums[drawn].sum() / sizes[drawn].sum()
        low, high = np.quantile(means, [(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2])
        return float(low), float(high)


def _sums(probabilities: Array, labels: Labels) -> Array:
    """What :func:`_score` needs of some battles; adds up.

    Sums of log loss, binary log loss, correct predictions and Brier score; clipped battles; outcomes; calibration gaps.
    """
    n = len(labels)
    means = [metric(probabilities, labels) for metric in (binary_log_loss, accuracy, brier)]
    clipped = (_of_labels(probabilities, labels) < CLIP).sum()
    return np.concatenate(
        [
            [losses(probabilities, labels).sum(), *(n * mean for mean in means), clipped],
            np.bincount(labels, minlength=len(OUTCOMES)),
            _calibration_gaps(probabilities, labels),
        ]
    )


def score(probabilities: Array, labels: Labels, *, groups: NDArray[np.int64] | None = None, seed: int = 0) -> Score:
    """Every metric of some predictions.

    Parameters
    ----------
    probabilities:
        Shape ``[n, 3]``, n >= 1, each row proper (see :func:`find_improper`).
    labels:
        Shape ``[n]``, values 0, 1, 2.
    groups:
        Shape ``[n]``, the prompt of each battle where it is known; see :func:`bootstrap_interval`.
    seed:
        Of the bootstrap.

    Raises
    ------
    ValueError
        If the shapes do not fit, there are no rows, or rows are not probabilities.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(OUTCOMES)) or len(labels) == 0:
        raise ValueError(
            f"probabilities {probabilities.shape} and labels {labels.shape}: expected [n, 3] and [n], n >= 1"
        )
    if len(improper := find_improper(probabilities)):
        raise ValueError(f"row {improper[0]} is not a probability distribution: {probabilities[improper[0]]}")
    interval = bootstrap_interval(losses(probabilities, labels), groups=groups, seed=seed)
    return _score(_sums(probabilities, labels), interval)


def score_stream(parts: Iterable[tuple[Array, Labels]], *, seed: int = 0) -> Score:
    """Every metric of predictions that come in parts, each as :func:`score` takes them; memory does not grow.

    Raises
    ------
    ValueError
        If there is no battle.
    """
    total: Array | None = None
    units = _BootstrapUnits(seed)
    for probabilities, labels in parts:
        if len(labels):
            sums = _sums(probabilities, labels)
            total = sums if total is None else total + sums
            units.add(losses(probabilities, labels))
    if total is None:
        raise ValueError("no battles to score")
    return _score(total, units.interval())


def _score(sums: Array, interval: tuple[float, float]) -> Score:
    means, clipped, outcomes, gaps = np.split(sums, [4, 5, 5 + len(OUTCOMES)])
    n = int(outcomes.sum())
    log_loss, binary_log_loss, accuracy, brier = (means / n).tolist()
    return Score(
        n=n,
        log_loss=log_loss,
        log_loss_ci=interval,
        binary_log_loss=binary_log_loss,
        accuracy=accuracy,
        brier=brier,
        ece=float(np.abs(gaps).sum() / n),
        prior_log_loss=_entropy(outcomes),
        uniform_log_loss=float(np.log(len(OUTCOMES))),
        clipped=int(clipped[0]),
    )

"""Log loss and other metrics of predictions. Numpy only.

The one place where probabilities are checked (:func:`find_improper`) and scored (:func:`score`). Arrays of
probabilities have shape ``[n, 3]`` in the order A, B, tie; labels have shape ``[n]`` with values 0, 1, 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
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
        proper = (
            np.isfinite(probabilities).all(axis=1)
            & (probabilities >= 0).all(axis=1)
            & (probabilities <= 1).all(axis=1)
            & (np.abs(probabilities.sum(axis=1) - 1) <= SUM_TOLERANCE)
        )
    return np.flatnonzero(~proper)


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


def expected_calibration_error(probabilities: Array, labels: Labels, bins: int = CALIBRATION_BINS) -> float:
    """Top-label expected calibration error over equal-width bins.

    ``sum_b (n_b / n) |accuracy_b - confidence_b|`` with bins ``(k/bins, (k+1)/bins]`` of the largest probability;
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    return float(np.abs(_calibration_gaps(probabilities, labels, bins)).sum() / len(labels))


def _calibration_gaps(probabilities: Array, labels: Labels, bins: int) -> Array:
    """For each bin the number of correct predictions minus the sum of their confidences."""
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return np.bincount(bin_of, weights=correct - confidence, minlength=bins).astype(np.float64)


def prior_log_loss(labels: Labels) -> float:
    """Log loss of always predicting these labels' own frequencies: the entropy of the outcomes."""
    return _entropy(np.bincount(labels, minlength=len(OUTCOMES)))


def _entropy(counts: NDArray[np.integer]) -> float:
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
    values = np.asarray(values, dtype=np.float64)
    units = _BootstrapUnits(seed)
    if groups is None:
        units.add(values)
    else:
        _, group_of = np.unique(groups, return_inverse=True)
        units.add(np.bincount(group_of, weights=values), np.bincount(group_of))
    return units.interval(rounds)


class _BootstrapUnits:
    """What is resampled: sums of values and how many values each has. Many are summed up in random groups.

    Values may come in parts: memory does not grow with their number.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._parts: list[tuple[NDArray[Any], Array]] = []
        self._sums = np.zeros(BOOTSTRAP_MAX_UNITS)
        self._sizes = np.zeros(BOOTSTRAP_MAX_UNITS)
        self._count = 0

    def add(self, sums: NDArray[Any], sizes: NDArray[Any] | None = None) -> None:
        """Add units; without ``sizes`` each is a single value."""
        self._parts.append((sums, np.ones(len(sums)) if sizes is None else sizes.astype(np.float64)))
        if self._count + sum(len(part) for part, _ in self._parts) > BOOTSTRAP_MAX_UNITS:
            for part in self._parts:
                self._add_to_groups(*part)
            self._parts.clear()

    def _add_to_groups(self, sums: NDArray[Any], sizes: Array) -> None:
        group = (self._count + self._random.permutation(len(sums))) % BOOTSTRAP_MAX_UNITS
        self._sums += np.bincount(group, weights=sums, minlength=BOOTSTRAP_MAX_UNITS)
        self._sizes += np.bincount(group, weights=sizes, minlength=BOOTSTRAP_MAX_UNITS)
        self._count += len(sums)

    def interval(self, rounds: int = BOOTSTRAP_ROUNDS) -> tuple[float, float]:
        """95 % percentile interval of the mean."""
        sums, sizes = self._sums, self._sizes
        if self._parts:
            sums, sizes = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        n = len(sums)
        means = np.empty(rounds)
        for i in range(rounds):
            drawn = self._random.integers(0, n, size=n)
            means[i] = sums[drawn].sum() / sizes[drawn].sum()
        tail = (1 - INTERVAL_LEVEL) / 2
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)


@dataclass(frozen=True)
class _Sums:
    """Sums over battles from which all metrics except the interval are computed; adds up with ``+``."""

    log_loss: float
    binary_log_loss: float
    correct: float
    brier: float
    gaps: Array
    outcomes: NDArray[np.int64]
    clipped: int

    @staticmethod
    def of(probabilities: Array, labels: Labels) -> _Sums:
        n = len(labels)
        return _Sums(
            log_loss=float(losses(probabilities, labels).sum()),
            binary_log_loss=binary_log_loss(probabilities, labels) * n,
            correct=accuracy(probabilities, labels) * n,
            brier=brier(probabilities, labels) * n,
            gaps=_calibration_gaps(probabilities, labels, CALIBRATION_BINS),
            outcomes=np.bincount(labels, minlength=len(OUTCOMES)).astype(np.int64),
            clipped=int((_of_labels(probabilities, labels) < CLIP).sum()),
        )

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


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
    if groups is None:
        return score_stream([(probabilities, labels)], seed=seed)
    interval = bootstrap_interval(losses(probabilities, labels), groups=groups, seed=seed)
    return _score(_Sums.of(probabilities, labels), interval)


def score_stream(parts: Iterable[tuple[Array, Labels]], *, seed: int = 0) -> Score:
    """Every metric of predictions that come in parts, each as :func:`score` takes them; memory does not grow.

    Raises
    ------
    ValueError
        If there is no battle.
    """
    total: _Sums | None = None
    units = _BootstrapUnits(seed)
    for probabilities, labels in parts:
        if len(labels):
            sums = _Sums.of(probabilities, labels)
            total = sums if total is None else total + sums
            units.add(losses(probabilities, labels))
    if total is None:
        raise ValueError("no battles to score")
    return _score(total, units.interval())


def _score(sums: _Sums, interval: tuple[float, float]) -> Score:
    n = int(sums.outcomes.sum())
    return Score(
        n=n,
        log_loss=sums.log_loss / n,
        log_loss_ci=interval,
        binary_log_loss=sums.binary_log_loss / n,
        accuracy=sums.correct / n,
        brier=sums.brier / n,
        ece=float(np.abs(sums.gaps).sum() / n),
        prior_log_loss=_entropy(sums.outcomes),
        uniform_log_loss=float(np.log(len(OUTCOMES))),
        clipped=sums.clipped,
    )

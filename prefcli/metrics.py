"""Log loss and other metrics of predictions. Numpy only.

The one place where probabilities are checked (:func:`find_improper`) and scored (:func:`score`). Arrays of
probabilities have shape ``[n, 3]`` in the order A, B, tie; labels have shape ``[n]`` with values 0, 1, 2.

Where the votes know no ties, predictions are scored as two outcomes: the probabilities given that there is no tie
(:func:`two_outcome`), against the prior and the uniform guess of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcli.outcomes import OUTCOMES, SWAPPED, TIE

Array = NDArray[np.float64]
Labels = NDArray[np.integer]

SUM_TOLERANCE = 1e-6
"""How far a row's sum may be from 1 (the competition grader's tolerance)."""

CLIP = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [CLIP, 1] before the logarithm, as scikit-learn's ``log_loss`` does."""

CALIBRATION_BINS = 15
BOOTSTRAP_ROUNDS = 1000
DIFFERENCE_ROUNDS = 10_000
"""Of the bootstrap behind a p-value: near 0.05 it then varies by 0.003."""
Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
BOOTSTRAP_MAX_UNITS = 1 << 14
MIN_UNITS = 20
"""An interval needs that many prompts, or battles where prompts are not known: fewer say too little of the others."""
MIN_BATTLES_WITHOUT_TIE = 30
"""When none of that many battles is a tie, the votes know no ties."""

TWO_OUTCOMES = "no ties among the labels: scored as two outcomes, p_A / (p_A + p_B)"

NO_VARIATION = "no interval: all battles have the same loss"
SAME_DIFFERENCE = "no interval: the losses differ by the same amount in every battle"

Interval = tuple[float, float]


class NoBattlesError(ValueError):
    """There is no battle to score."""


@dataclass(frozen=True)
class Score:
    """What ``prefcli score`` reports. Log losses are in nats; lower is better, except for accuracy."""

    n: int
    prompts: int | None
    """How many different prompts the battles have; None where prompts are not known."""
    outcomes: int
    """3, or 2 where there are no ties: then all metrics are of :func:`two_outcome` probabilities."""
    log_loss: float
    log_loss_ci: Interval | None
    """95 % interval; None where there are too few prompts or battles for one."""
    log_loss_ci_reason: str
    """Why there is no interval; else empty."""
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


UNSEEN_PROBABILITY = 0.01
"""Of an outcome that none of a model's training battles had: they say nothing about how often it happens."""
MIN_MASS = 1e-3
"""Training battles, soft labels counted by their share, with fewer of an outcome have not seen it."""


def unseen_outcomes(mass: ArrayLike, *, both_orders: bool) -> tuple[int, ...]:
    """The outcomes that training never saw.

    Parameters
    ----------
    mass:
        How many training battles had each outcome, shape ``[3]``.
    both_orders:
        Whether every battle was shown in both orders: then a win of A is one of B too.
    """
    counts = np.asarray(mass, dtype=np.float64)
    if both_orders:
        counts = counts + counts[list(SWAPPED)]
    return tuple(np.flatnonzero(counts < MIN_MASS).tolist())


def with_unseen(logits: Array, unseen: Sequence[int]) -> Array:
    """Logits whose softmax gives each of the ``unseen`` outcomes :data:`UNSEEN_PROBABILITY`; the others share the rest.

    A model drives the logit of an outcome that it never sees to minus infinity, as far as the number of steps goes.
    """
    if not unseen:
        return logits
    logits = np.array(logits, dtype=np.float64)
    seen = [outcome for outcome in range(len(OUTCOMES)) if outcome not in unseen]
    odds = UNSEEN_PROBABILITY / (1 - UNSEEN_PROBABILITY * len(unseen))
    logits[..., list(unseen)] = np.logaddexp.reduce(logits[..., seen], axis=-1, keepdims=True) + np.log(odds)
    return logits


def validation_outcomes(labels: Labels, unseen: Sequence[int]) -> int:
    """How many outcomes a run is validated on: 2 if it saw no ties in training and none is held out, else 3."""
    return 2 if TIE in unseen and not (labels == TIE).any() else 3


def held_out_probabilities(logits: Array, labels: Labels, unseen: Sequence[int]) -> Array:
    """What a run is scored by on its held-out battles: two outcomes' probabilities if that is what it knows."""
    probabilities = softmax(logits)
    return two_outcome(probabilities) if validation_outcomes(labels, unseen) == 2 else probabilities


def find_non_finite(logits: Array) -> NDArray[np.intp]:
    """Row numbers of battles with a logit that is not a finite number; shape of ``logits`` is ``[..., n, 3]``."""
    finite = np.isfinite(logits).all(axis=-1)
    return np.flatnonzero(~finite.reshape(-1, finite.shape[-1]).all(axis=0))


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
    targets = one_hot(labels, probabilities.shape[1])
    return float(-(targets * np.log(clipped) + (1 - targets) * np.log1p(-clipped)).mean())


def accuracy(probabilities: Array, labels: Labels) -> float:
    """Share of battles whose most probable outcome is the true one; of k equally probable ones each counts as 1/k."""
    return float(_correct(probabilities, labels).mean())


def _correct(probabilities: Array, labels: Labels) -> Array:
    """1 where the true outcome is the most probable one, 1/k where it is one of k equally probable ones, else 0."""
    is_largest = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray(_of_labels(is_largest, labels) / is_largest.sum(axis=1))


def brier(probabilities: Array, labels: Labels) -> float:
    """Multiclass Brier score, mean over battles of the squared distance to the one-hot label (0 to 2).

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).
    """
    return float(((probabilities - one_hot(labels, probabilities.shape[1])) ** 2).sum(axis=1).mean())


def _calibration_gaps(probabilities: Array, labels: Labels) -> NDArray[Any]:
    """For each bin of the largest probability, correct predictions minus the sum of their confidences.

    Their absolute sum over n is the top-label expected calibration error with bins ``(k/15, (k+1)/15]``; Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017.
    """
    confidence = probabilities.max(axis=1)
    correct = _correct(probabilities, labels)
    bin_of = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return np.bincount(bin_of, weights=correct - confidence, minlength=CALIBRATION_BINS)


def prior_log_loss(labels: Labels) -> float:
    """Log loss of always predicting these labels' own frequencies: the entropy of the outcomes."""
    return _entropy(np.bincount(labels, minlength=len(OUTCOMES)))


def _entropy(counts: NDArray[Any]) -> float:
    shares = counts / counts.sum()
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def one_hot(labels: Labels, outcomes: int = len(OUTCOMES)) -> Array:
    """Labels ``[n]`` as float64 rows ``[n, outcomes]`` with a single 1."""
    return np.eye(outcomes)[labels]


def two_outcome(probabilities: Array) -> Array:
    """Probabilities given that there is no tie: ``p_A / (p_A + p_B)``, ``p_B / (p_A + p_B)`` and 0; shape ``[n, 3]``.

    Where a tie is the only possible outcome, A and B get 1/2 each.
    """
    decided = np.asarray(probabilities, dtype=np.float64)[:, :TIE]
    total = decided.sum(axis=1, keepdims=True)
    conditional = np.divide(decided, total, out=np.full_like(decided, 0.5), where=total > 0)
    return np.concatenate([conditional, np.zeros_like(total)], axis=1)


def count_outcomes(labels: Labels) -> int:
    """2 if none of at least :data:`MIN_BATTLES_WITHOUT_TIE` labels is a tie, else 3; unknown labels are -1."""
    return _count_outcomes(np.bincount(labels[labels >= 0], minlength=len(OUTCOMES)))


def _count_outcomes(counts: NDArray[Any]) -> int:
    return 2 if not counts[TIE] and counts.sum() >= MIN_BATTLES_WITHOUT_TIE else 3


def bootstrap_interval(
    values: Array, *, groups: NDArray[np.int64] | None = None, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0
) -> Interval | None:
    """95 % bootstrap interval of the mean of ``values``; None for fewer than :data:`MIN_UNITS` groups, or equal means.

    The percentile interval (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3), expanded for
    few groups (T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015).
    Of more than :data:`BOOTSTRAP_MAX_UNITS` groups, those with like hashes are resampled together: the variance of the
    mean stays unbiased, and the cost does not grow with n.

    Parameters
    ----------
    values:
        Shape ``[n]``, n >= 1. For the difference of two models: each battle's difference (a paired bootstrap).
    groups:
        Shape ``[n]``; values of one group are resampled together. Battles about the same prompt are not independent,
        nor are the results of several models on one battle: an interval that ignores it is too narrow.
    rounds, seed:
        Of the bootstrap.
    """
    units = _BootstrapUnits(1)
    units.add(groups, values[:, None])
    return units.interval(rounds=rounds, seed=seed)


class _BootstrapUnits:
    """Sums of values over units (the battles of a prompt, or single ones), from which the bootstrap draws.

    Values may be added in parts. Memory is bounded but for 8 bytes a group, which are needed to count the groups.
    """

    def __init__(self, columns: int) -> None:
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
        if not self._is_hashed and len(self._keys) > BOOTSTRAP_MAX_UNITS:
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
    def effective(self) -> float:
        """Units of unequal size count as ``sum(sizes)^2 / sum(sizes^2)`` (L. Kish, "Survey sampling", 1965)."""
        sizes = self._sums[:, 0]
        return float(sizes.sum() ** 2 / (sizes**2).sum())

    def means(self, column: int = 0, *, rounds: int, seed: int) -> Array | None:
        """The bootstrap's means of a column, shape ``[rounds]``; None if there are too few units, or all are equal."""
        sizes, sums = self._sums[:, 0], self._sums[:, 1 + column]
        if len(sums) < MIN_UNITS or np.ptp(sums / sizes) < 1e-12:
            return None
        random = np.random.default_rng(seed)
        parts = []
        at_once = max(1, BOOTSTRAP_MAX_UNITS // len(sums))
        for begin in range(0, rounds, at_once):
            drawn = random.integers(0, len(sums), size=(min(at_once, rounds - begin), len(sums)))
            parts.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
        return np.concatenate(parts)

    def interval(self, column: int = 0, *, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> Interval | None:
        """95 % interval of a column's mean; None if there are too few units, or all have the same mean."""
        means = self.means(column, rounds=rounds, seed=seed)
        return None if means is None else _percentile_interval(means, self.effective)


def _percentile_interval(means: Array, units: float) -> Interval:
    tail = _expanded_tail(units)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much a mean loss of one model is above another's on the same battles; negative where the first is better."""

    difference: float
    ci: Interval | None
    """95 % interval; None where there are too few prompts or battles for one."""
    p: float | None
    """Two-sided p-value of no difference; None where there is no interval. Below 0.05 where the interval is off 0."""
    n: int
    prompts: int | None
    """How many different prompts the battles have; None where prompts are not known."""
    reason: str
    """Why there is no interval; else empty."""


def compare(losses_a: Array, losses_b: Array, groups: NDArray[np.int64] | None = None, *, seed: int = 0) -> Difference:
    """The paired difference of two models' mean losses, with its bootstrap interval and p-value.

    Prompts are resampled as in :func:`bootstrap_interval`, and the p-value is the level at which that interval ends at
    0 (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, section 15.4). Of R =
    :data:`DIFFERENCE_ROUNDS` rounds none gives less than about 2 / (R + 1).

    Parameters
    ----------
    losses_a, losses_b:
        Each battle's loss by the first and by the second model, shape ``[n]``, n >= 1. Any other metric that is a mean
        over battles will do.
    groups:
        Shape ``[n]``, the prompt of each battle where it is known.
    seed:
        Of the bootstrap.

    Raises
    ------
    ValueError
        If the shapes differ, there are no battles, or a loss is not finite.
    """
    losses_a, losses_b = np.asarray(losses_a, dtype=np.float64), np.asarray(losses_b, dtype=np.float64)
    if losses_a.ndim != 1 or losses_a.shape != losses_b.shape or not len(losses_a):
        raise ValueError(f"losses {losses_a.shape} and {losses_b.shape}: expected [n] of the same battles, n >= 1")
    if groups is not None and np.shape(groups) != losses_a.shape:
        raise ValueError(f"groups {np.shape(groups)} and losses {losses_a.shape}: expected one group per battle")
    differences = losses_a - losses_b
    if not np.isfinite(differences).all():
        raise ValueError(f"battle {np.flatnonzero(~np.isfinite(differences))[0]} has a loss that is not finite")
    units = _BootstrapUnits(1)
    units.add(groups, differences[:, None])
    means = units.means(rounds=DIFFERENCE_ROUNDS, seed=seed)
    n, mean = len(differences), float(differences.mean())
    if means is None:
        reason = too_few_units(n, units.groups) or SAME_DIFFERENCE
        return Difference(mean, None, None, n, units.groups, reason)
    p = _p_value(means, units.effective)
    return Difference(mean, _percentile_interval(means, units.effective), p, n, units.groups, "")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many there are.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors), 1)
    return [float(p) for p in adjusted]


def _sum_by_key(keys: NDArray[np.int64], rows: Array) -> tuple[NDArray[np.int64], Array]:
    """The different keys, sorted, and for each the sum of its rows."""
    different, position = np.unique(keys, return_inverse=True)
    return different, np.stack([np.bincount(position, weights=column) for column in rows.T], axis=1)


def _hash_units(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group's unit, of about :data:`BOOTSTRAP_MAX_UNITS`; multiplicative hashing.

    D. E. Knuth, "The Art of Computer Programming", volume 3, section 6.4, with the constant of 64-bit words.
    """
    mixed = groups.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(BOOTSTRAP_MAX_UNITS)).astype(np.int64)


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


def _p_value(means: Array, units: float) -> float:
    """1 minus the level of the widest expanded percentile interval of the bootstrap's means that leaves out 0."""
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    wanted = NormalDist().inv_cdf(1 - min(float(beyond + 1) / (len(means) + 1), 0.5))
    low, high = 0.0, wanted
    for _ in range(60):  # bisection: the quantile grows with z
        middle = (low + high) / 2
        low, high = (middle, high) if expanded_quantile(middle, units) < wanted else (low, middle)
    return math.erfc(low / math.sqrt(2))


def too_few_units(n: int, prompts: int | None) -> str:
    """Why battles have no interval; empty if they have one."""
    if prompts is None or prompts == n:
        return "" if n >= MIN_UNITS else f"no interval: {plural(n, 'battle')}, {MIN_UNITS} are needed"
    return "" if prompts >= MIN_UNITS else f"no interval: {plural(prompts, 'prompt')}, {MIN_UNITS} are needed"


def describe_interval(interval: Interval | None, reason: str) -> str:
    """A 95 % interval in words, or why there is none."""
    return reason if interval is None else "95 % interval {:.4f} to {:.4f}".format(*interval)


def describe_battles(n: int, prompts: int | None, what: str = "battle", *, outcomes: int = 3) -> str:
    """How many battles of how many prompts: ``300 held-out battles of 12 prompts``; says if they have two outcomes."""
    of_prompts = "" if prompts is None else f" of {plural(prompts, 'prompt')}"
    return f"{plural(n, what)}{of_prompts}{f'; {TWO_OUTCOMES}' if outcomes == 2 else ''}"


def plural(n: int, what: str) -> str:
    """A count and its noun: ``1 prompt``, ``1,200 prompts``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _sums(probabilities: Array, labels: Labels) -> Array:
    """What :class:`_Totals` needs of some battles, with a column for each outcome that is scored; adds up.

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


class _Totals:
    """Adds up battles scored as three outcomes and, until the first tie, as two: only the end shows which it is."""

    def __init__(self) -> None:
        self._sums: dict[int, Array | float] = dict.fromkeys((2, 3), 0.0)
        self._units = _BootstrapUnits(2)
        self.has_tie = False

    def add(self, probabilities: Array, labels: Labels, groups: NDArray[np.int64] | None) -> None:
        self.has_tie |= bool((labels == TIE).any())
        battle_losses = np.zeros((len(labels), 2))
        for outcomes in (3,) if self.has_tie else (2, 3):
            scored = probabilities if outcomes == 3 else two_outcome(probabilities)[:, :2]
            self._sums[outcomes] = self._sums[outcomes] + _sums(scored, labels)
            battle_losses[:, outcomes - 2] = losses(scored, labels)
        self._units.add(groups, battle_losses)

    def score(self, outcomes: int | None, seed: int) -> Score:
        """The metrics of two or three outcomes; None decides by :func:`count_outcomes`."""
        counts = np.split(np.asarray(self._sums[3]), [5, 5 + len(OUTCOMES)])[1]
        outcomes = _count_outcomes(counts) if outcomes is None else outcomes
        means, clipped, _, gaps = np.split(np.asarray(self._sums[outcomes]), [4, 5, 5 + len(OUTCOMES)])
        n = int(counts.sum())
        log_loss, binary_log_loss, accuracy, brier = (means / n).tolist()
        interval = self._units.interval(outcomes - 2, seed=seed)
        return Score(
            n=n,
            prompts=self._units.groups,
            outcomes=outcomes,
            log_loss=log_loss,
            log_loss_ci=interval,
            log_loss_ci_reason="" if interval else too_few_units(n, self._units.groups) or NO_VARIATION,
            binary_log_loss=binary_log_loss,
            accuracy=accuracy,
            brier=brier,
            ece=float(np.abs(gaps).sum() / n),
            prior_log_loss=_entropy(counts),
            uniform_log_loss=math.log(outcomes),
            clipped=int(clipped[0]),
        )


def score(
    probabilities: Array,
    labels: Labels,
    *,
    groups: NDArray[np.int64] | None = None,
    outcomes: int | None = None,
    seed: int = 0,
) -> Score:
    """Every metric of some predictions.

    Parameters
    ----------
    probabilities:
        Shape ``[n, 3]``, n >= 1, each row proper (see :func:`find_improper`).
    labels:
        Shape ``[n]``, values 0, 1, 2.
    groups:
        Shape ``[n]``, the prompt of each battle where it is known; see :func:`bootstrap_interval`.
    outcomes:
        2 or 3; None decides by :func:`count_outcomes`.
    seed:
        Of the bootstrap.

    Raises
    ------
    ValueError
        If the shapes do not fit, there are no rows, rows are not probabilities, or one of two outcomes is a tie.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(OUTCOMES)) or len(labels) == 0:
        raise ValueError(
            f"probabilities {probabilities.shape} and labels {labels.shape}: expected [n, 3] and [n], n >= 1"
        )
    if groups is not None and np.shape(groups) != labels.shape:
        raise ValueError(f"groups {np.shape(groups)} and labels {labels.shape}: expected one group per battle")
    if len(improper := find_improper(probabilities)):
        raise ValueError(f"row {improper[0]} is not a probability distribution: {probabilities[improper[0]]}")
    return score_stream([(probabilities, labels, groups)], outcomes=outcomes, seed=seed)


Part = tuple[Array, Labels, NDArray[np.int64] | None]
"""Probabilities ``[n, 3]``, labels ``[n]``, and the prompts' keys ``[n]`` where they are known."""


def score_stream(parts: Iterable[Part], *, outcomes: int | None = None, seed: int = 0) -> Score:
    """Every metric of predictions that come in parts, each as :func:`score` takes them.

    Memory does not grow, but for 8 bytes a prompt.

    Raises
    ------
    ValueError
        If there is no battle, or one of two outcomes is a tie.
    """
    if outcomes not in (None, 2, 3):
        raise ValueError(f"outcomes must be 2 or 3, not {outcomes}")
    totals: _Totals | None = None
    for probabilities, labels, groups in parts:
        if len(labels):
            totals = totals or _Totals()
            totals.add(probabilities, labels, groups)
            if totals.has_tie and outcomes == 2:
                raise ValueError("there are ties among the labels: they cannot be scored as two outcomes")
    if totals is None:
        raise NoBattlesError("no battles to score")
    return totals.score(outcomes, seed)

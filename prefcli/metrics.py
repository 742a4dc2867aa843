"""Log loss and other metrics of predictions. Numpy only.

The one place where probabilities are checked (:func:`find_improper`) and scored (:func:`score`). Arrays of
probabilities have shape ``[n, 3]`` in the order A, B, tie; labels have shape ``[n]`` with values 0, 1, 2.

Where the votes know no ties, predictions are scored as two outcomes: the probabilities given that there is no tie
(:func:`two_outcome`), against the prior and the uniform guess of two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcli import bootstrap
from prefcli.bootstrap import MIN_UNITS, Interval
from prefcli.errors import plural as plural
from prefcli.outcomes import OUTCOMES, SWAPPED, TIE

Array = NDArray[np.float64]
Labels = NDArray[np.integer]

SUM_TOLERANCE = 1e-6
"""How far a row's sum may be from 1 (the competition grader's tolerance)."""

CLIP = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [CLIP, 1] before the logarithm, as scikit-learn's ``log_loss`` does."""

CALIBRATION_BINS = 15
MIN_BATTLES_WITHOUT_TIE = 30
"""When none of that many battles is a tie, the votes know no ties."""

TWO_OUTCOMES = "no ties among the labels: scored as two outcomes, p_A / (p_A + p_B)"

NO_VARIATION = "no interval: all battles have the same loss"
SAME_DIFFERENCE = "no interval: the losses differ by the same amount in every battle"

SIGNIFICANT = 0.05
"""P-values below it are."""
DIFFERENCE_ROUNDS = 10_000
"""Of the bootstrap behind a p-value: near 0.05 it then varies by 0.003."""


class NoBattlesError(ValueError):
    """There is no battle to score."""


@dataclass(frozen=True, repr=False)
class Score:
    """Every metric of some predictions. Log losses are in nats; lower is better, except for accuracy."""

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

    def __repr__(self) -> str:
        ends = self.log_loss_ci
        interval = "no interval" if ends is None else "95 % {:.4f} to {:.4f}".format(*ends)
        others = ("prior_log_loss", "accuracy", "brier", "ece")
        figures = ", ".join(f"{name}={getattr(self, name):.4f}" for name in others)
        name = type(self).__name__
        return f"{name}(log_loss={self.log_loss:.4f} ({interval}), {figures}, n={self.n}, outcomes={self.outcomes})"


@dataclass(frozen=True, repr=False)
class GroupScore(Score):
    """The metrics of a group of battles.

    The calibration error has no interval: it is never negative, and resampling adds noise to every bin.
    """

    group: str
    binary_log_loss_ci: Interval | None
    """95 % interval; None where the log loss has none, or all battles have the same value."""
    accuracy_ci: Interval | None
    brier_ci: Interval | None


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
    return float(-(shares * np.log(shares)).sum()) + 0.0  # never -0.0


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
    values: Array, *, groups: NDArray[np.int64] | None = None, rounds: int = bootstrap.ROUNDS, seed: int = 0
) -> Interval | None:
    """95 % bootstrap interval of the mean of ``values``; None for fewer than ``MIN_UNITS`` groups, or equal means.

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
    units = bootstrap.Units()
    units.add(groups, values[:, None])
    return units.interval(rounds=rounds, seed=seed)


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
    units = bootstrap.Units()
    units.add(groups, differences[:, None])
    return _difference(units, units.resample(rounds=DIFFERENCE_ROUNDS, seed=seed), np.ones(1))


def _difference(units: bootstrap.Units, drawn: Array | None, weights: Array) -> Difference:
    """The difference that is the weighted sum of the units' columns, from what the bootstrap drew of them."""
    total = units.sums.sum(axis=0)
    mean = float(total[1:] @ weights / total[0])
    if drawn is None or np.ptp(units.means @ weights) < bootstrap.SAME:
        reason = too_few_units(units.rows, units.groups) or SAME_DIFFERENCE
        return Difference(mean, None, None, units.rows, units.groups, reason)
    means = drawn[:, 1:] @ weights / drawn[:, 0]
    interval, p = bootstrap.percentile_interval(means, units.size), bootstrap.p_value(means, units.size)
    return Difference(mean, interval, p, units.rows, units.groups, "")


@dataclass(frozen=True)
class NamedDifference(Difference):
    """The mean loss of model ``a`` minus that of ``b``. Its p-value is not adjusted for the number of models."""

    a: str
    b: str


def best(log_losses: Mapping[str, float], differences: Sequence[NamedDifference]) -> str | None:
    """The model of the lowest log loss, if its difference from each of the others is significant; else None.

    Parameters
    ----------
    log_losses:
        Of at least two models.
    differences:
        Of every two of them. Their p-values are adjusted by :func:`holm`, and compared with :data:`SIGNIFICANT`.
    """
    lowest = min(log_losses, key=lambda name: log_losses[name])
    p_values = [1.0 if each.p is None else each.p for each in differences if lowest in (each.a, each.b)]
    return lowest if max(holm(p_values)) < SIGNIFICANT else None


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many there are.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors), 1)
    return [float(p) for p in adjusted]


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


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; one that is rounded to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def signed_interval(ends: Interval) -> str:
    """Both ends of an interval of a difference."""
    return " to ".join(map(signed, ends))


METRICS = ("log_loss", "binary_log_loss", "accuracy", "brier")
"""Those that are means over battles."""


def _of_battles(probabilities: Array, labels: Labels) -> Array:
    """Each battle's :data:`METRICS`, shape ``[n, 4]``, with a column of probabilities for each outcome scored."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    targets = one_hot(labels, probabilities.shape[1])
    binary = -(targets * np.log(clipped) + (1 - targets) * np.log1p(-clipped)).mean(axis=1)
    squares = ((probabilities - targets) ** 2).sum(axis=1)
    return np.stack([losses(probabilities, labels), binary, _correct(probabilities, labels), squares], axis=1)


class Tally:
    """Adds up battles that come in parts, with the predictions of one model or of several.

    They are scored as three outcomes and, until the first tie, as two: only the end shows which it is. Memory does not
    grow, but for 8 bytes a prompt.

    Parameters
    ----------
    models:
        How many models there are.
    intervals:
        Which of :data:`METRICS` get an interval.
    """

    def __init__(self, models: int = 1, intervals: Sequence[str] = METRICS[:1]) -> None:
        self._models = models
        self._intervals = tuple(intervals)
        self._of_interest = [METRICS.index(name) for name in intervals]
        self._sums = np.zeros((models, 2, len(METRICS) + 1 + CALIBRATION_BINS))
        self._counts = np.zeros(len(OUTCOMES), dtype=np.int64)
        self._units = bootstrap.Units(models * 2 * len(intervals))

    def add(self, probabilities: Array, labels: Labels, groups: NDArray[np.int64] | None) -> None:
        """Add battles: ``[models, n, 3]``, ``[n]``, and the keys ``[n]`` of their prompts where they are known."""
        if not len(labels):
            return
        self._counts += np.bincount(labels, minlength=len(OUTCOMES))
        columns = np.zeros((len(labels), self._models, 2, len(self._intervals)))
        for model, of_model in enumerate(probabilities):
            for outcomes in (3,) if self.has_tie else (2, 3):
                scored = of_model if outcomes == 3 else two_outcome(of_model)[:, :2]
                values = _of_battles(scored, labels)
                clipped = (_of_labels(scored, labels) < CLIP).sum()
                sums = [values.sum(axis=0), [clipped], _calibration_gaps(scored, labels)]
                self._sums[model, outcomes - 2] += np.concatenate(sums)
                columns[:, model, outcomes - 2] = values[:, self._of_interest]
        self._units.add(groups, columns.reshape(len(labels), -1))

    @property
    def n(self) -> int:
        """How many battles were added."""
        return int(self._counts.sum())

    @property
    def has_tie(self) -> bool:
        """Whether one of them is a tie."""
        return bool(self._counts[TIE])

    @property
    def outcomes(self) -> int:
        """How many outcomes there are, by :func:`count_outcomes`."""
        return _count_outcomes(self._counts)

    def scores(self, outcomes: int, *, seed: int = 0) -> list[Score]:
        """Each model's metrics."""
        intervals = self._all_intervals(outcomes, seed)
        return [self._score(model, outcomes, of_model) for model, of_model in enumerate(intervals)]

    def group_scores(self, group: str, outcomes: int, *, seed: int = 0) -> list[GroupScore]:
        """Each model's metrics, every one with its interval."""
        scores = []
        for model, intervals in enumerate(self._all_intervals(outcomes, seed)):
            scores.append(
                GroupScore(
                    **vars(self._score(model, outcomes, intervals)),
                    group=group,
                    binary_log_loss_ci=intervals["binary_log_loss"],
                    accuracy_ci=intervals["accuracy"],
                    brier_ci=intervals["brier"],
                )
            )
        return scores

    def differences(self, outcomes: int, *, seed: int = 0) -> dict[tuple[int, int], Difference]:
        """The paired difference of every two models' log losses, by their positions; see :func:`compare`."""
        drawn = self._units.resample(rounds=DIFFERENCE_ROUNDS, seed=seed)
        differences = {}
        for a, b in itertools.combinations(range(self._models), 2):
            weights = np.zeros(self._units.sums.shape[1] - 1)
            weights[self._column(a, outcomes)], weights[self._column(b, outcomes)] = 1, -1
            differences[a, b] = _difference(self._units, drawn, weights)
        return differences

    def drawn(self, model: int, name: str, outcomes: int, *, seed: int = 0) -> tuple[float, Array | None, float]:
        """A model's metric; its value in each round of the bootstrap, if there are enough prompts; their number."""
        column = 1 + self._column(model, outcomes, name)
        total, drawn = self._units.sums.sum(axis=0), self._units.resample(seed=seed)
        values = None if drawn is None else drawn[:, column] / drawn[:, 0]
        return float(total[column] / total[0]), values, self._units.size

    def _column(self, model: int, outcomes: int, name: str = METRICS[0]) -> int:
        return (model * 2 + outcomes - 2) * len(self._intervals) + self._intervals.index(name)

    def _all_intervals(self, outcomes: int, seed: int) -> list[dict[str, Interval | None]]:
        """For each model the intervals of the metrics that get one; None for too few prompts, or if all are alike."""
        drawn, means = self._units.resample(seed=seed), self._units.means
        intervals = []
        for model in range(self._models):
            columns = {name: self._column(model, outcomes, name) for name in self._intervals}
            intervals.append(
                {
                    name: None
                    if drawn is None or np.ptp(means[:, column]) < bootstrap.SAME
                    else bootstrap.percentile_interval(drawn[:, 1 + column] / drawn[:, 0], self._units.size)
                    for name, column in columns.items()
                }
            )
        return intervals

    def _score(self, model: int, outcomes: int, intervals: Mapping[str, Interval | None]) -> Score:
        means, clipped, gaps = np.split(self._sums[model, outcomes - 2], [len(METRICS), len(METRICS) + 1])
        log_loss, binary_log_loss, accuracy, brier = (means / self.n).tolist()
        interval = intervals[METRICS[0]]
        return Score(
            n=self.n,
            prompts=self._units.groups,
            outcomes=outcomes,
            log_loss=log_loss,
            log_loss_ci=interval,
            log_loss_ci_reason="" if interval else too_few_units(self.n, self._units.groups) or NO_VARIATION,
            binary_log_loss=binary_log_loss,
            accuracy=accuracy,
            brier=brier,
            ece=float(np.abs(gaps).sum() / self.n),
            prior_log_loss=_entropy(self._counts),
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
    tally = Tally()
    for probabilities, labels, groups in parts:
        tally.add(probabilities[None], labels, groups)
        if tally.has_tie and outcomes == 2:
            raise ValueError("there are ties among the labels: they cannot be scored as two outcomes")
    if not tally.n:
        raise NoBattlesError("no battles to score")
    return tally.scores(outcomes or tally.outcomes, seed=seed)[0]

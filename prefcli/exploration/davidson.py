"""The Bradley-Terry model with ties: its maximum likelihood fit and the robust covariance of that fit.

The model is Davidson's: with strengths ``s`` in log-odds, and ``nu`` for how common ties are,

    P(i wins) : P(j wins) : P(tie)  =  exp(d / 2) : exp(-d / 2) : nu,   d = s_i - s_j + z b

R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", Journal
of the American Statistical Association 65 (1970). Without ties it is the model of Bradley and Terry (1952).
Covariates ``z`` of a battle, as the difference of the two answers' lengths, have coefficients ``b``.

Parameters are maximum likelihood but for a weak normal prior around 0 (:data:`PRIOR_PRECISION`, a standard deviation
of 5,493 points). It moves a rating of a few hundred battles by less than a thousandth in log-odds, makes the sum of
the strengths 0 within every group of models that battles connect, and keeps those finite that have no maximum
likelihood (L. R. Ford, "Solution of a ranking problem from binary comparisons", 1957).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.outcomes import OUTCOMES, TIE, A, B

Array = NDArray[np.float64]
Codes = NDArray[np.integer]

PRIOR_PRECISION = 1e-3
MAX_ITERATIONS = 100
MAX_STEP = 2.0
"""Newton steps are shortened to this many log-odds, because they overshoot far from the optimum."""
CLUSTER_CELLS = 1 << 19
"""Scores are summed by prompt in blocks of this many numbers, which stay in the processor's cache."""


@dataclass(frozen=True)
class PairwiseCounts:
    """Outcomes of pairs of models. A pair may have several rows: one per battle where battles have covariates."""

    models: tuple[str, ...]  # names, [m]
    first: NDArray[np.intp]  # [p], positions in `models`
    second: NDArray[np.intp]  # [p]
    counts: Array  # [p, 3], how often the first won, the second won, and they tied; may be fractions

    @property
    def battles(self) -> Array:
        """Battles per row; shape ``[p]``."""
        return np.asarray(self.counts.sum(axis=1))

    def per_model(self, of_first: Array, of_second: Array) -> Array:
        """Sums over each model's rows of a value per row, as seen by the first and by the second; shape ``[m]``."""
        size = len(self.models)
        return np.asarray(np.bincount(self.first, of_first, size) + np.bincount(self.second, of_second, size))


@dataclass(frozen=True)
class DavidsonFit:
    """The parameters, and what the votes say about them."""

    strengths: Array  # [..., m], in log-odds
    log_nu: Array  # [...], -inf without ties
    coefficients: Array  # [..., k], of the covariates
    information: Array  # [..., m + 1 + k, m + 1 + k], negative Hessian of the log-likelihood, without the prior
    converged: bool


def count_pairs(model_a: Codes, model_b: Codes, labels: Codes, names: Sequence[str]) -> PairwiseCounts:
    """Count the outcomes of battles per unordered pair of models.

    Parameters
    ----------
    model_a, model_b:
        Positions in ``names``, -1 where unknown; shape ``[n]``.
    labels:
        0, 1, 2 for A, B, tie, -1 where unknown; shape ``[n]``. A model's battles against itself are left out.
    names:
        Names of the models.
    """
    known = (model_a >= 0) & (model_b >= 0) & (labels >= 0) & (model_a != model_b)
    a, b, outcome = (values[known].astype(np.int64) for values in (model_a, model_b, labels))
    outcome = np.where((a > b) & (outcome != TIE), A + B - outcome, outcome)
    pairs, pair = np.unique(np.minimum(a, b) * len(names) + np.maximum(a, b), return_inverse=True)
    counts = np.bincount(pair * len(OUTCOMES) + outcome, minlength=len(pairs) * len(OUTCOMES))
    first, second = np.divmod(pairs, max(len(names), 1))
    return PairwiseCounts(tuple(names), first, second, counts.reshape(-1, len(OUTCOMES)).astype(np.float64))


def closure(edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Which nodes a path leads to. Importing ``scipy.sparse.csgraph`` would add 0.2 s to every call."""
    for _ in range(len(edges).bit_length()):
        edges = np.minimum(edges @ edges + edges, 1)
    return edges


def connectivity(pairs: PairwiseCounts, battles: Array) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Each model's group (connected by battles, 0 has most), and whether it is in the group's main component.

    Strengths have a maximum likelihood within a strongly connected component of the directed graph of who won or tied
    against whom, and no finite distance beyond it (Ford 1957). The main component is the one with most battles.
    """
    size = len(pairs.models)
    reach = np.eye(size, dtype=np.float32)
    reach[pairs.first, pairs.second] = pairs.counts[:, [A, TIE]].any(axis=1)
    reach[pairs.second, pairs.first] = pairs.counts[:, [B, TIE]].any(axis=1)
    connected, reach = closure(np.maximum(reach, reach.T)), closure(reach)
    _, groups = np.unique(connected.argmax(axis=1), return_inverse=True)
    by_size = np.argsort(-np.bincount(groups, battles), kind="stable")
    groups = np.argsort(by_size)[groups]
    component = np.minimum(reach, reach.T).argmax(axis=1)
    component_battles = np.bincount(component, battles, size)
    main = np.zeros(size, dtype=bool)
    for group in range(len(by_size)):
        inside = np.flatnonzero(groups == group)
        largest = component[inside][component_battles[component[inside]].argmax()]
        main[inside] = component[inside] == largest
    return groups, main


def fit(
    pairwise: PairwiseCounts,
    counts: Array | None = None,
    *,
    covariates: Array | None = None,
    start: tuple[Array, Array] | None = None,
    tolerance: float = 1e-6,
) -> DavidsonFit:
    """Fit Davidson's model by Newton's method: the log-likelihood is concave in all parameters.

    Parameters
    ----------
    pairwise:
        Outcomes of pairs of models, in whole numbers or fractions (soft labels).
    counts:
        Counts to fit instead of ``pairwise.counts``; any number of sets at once, shape ``[..., p, 3]``.
    covariates:
        Of each row, first model minus second; shape ``[p, k]``.
    start:
        Strengths ``[..., m]`` and ``log nu`` ``[...]`` to begin with.
    tolerance:
        Stop when no parameter moves by more. Newton steps shrink quadratically, so the error is about its square.
    """
    counts = pairwise.counts if counts is None else counts
    seen = _Seen.of(counts.reshape(-1, *counts.shape[-2:]))
    covariates = _no_covariates(pairwise) if covariates is None else covariates
    size = len(pairwise.models)
    ties = bool(pairwise.counts[:, TIE].any())
    x = np.zeros((len(seen.total), size + 1 + covariates.shape[1]))
    if start is not None:
        x[:, :size], x[:, size] = start[0], start[1] if ties else 0
    converged = False
    for _ in range(MAX_ITERATIONS):
        gradient, information = _derivatives(x, seen, pairwise, covariates, ties)
        gradient -= PRIOR_PRECISION * x
        step = np.linalg.solve(information + PRIOR_PRECISION * np.eye(x.shape[1]), gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1, keepdims=True, initial=0)
        x += step * np.minimum(1, MAX_STEP / np.maximum(longest, MAX_STEP))
        converged = longest.max(initial=0) < tolerance
        if converged:
            break
    shape = counts.shape[:-2]
    x = x.reshape(*shape, x.shape[1])
    log_nu = x[..., size] if ties else np.full(shape, -np.inf)
    information = information.reshape(*shape, *information.shape[1:])
    return DavidsonFit(x[..., :size], log_nu, x[..., size + 1 :], information, bool(converged))


def probabilities(difference: Array, nu: Array | float) -> Array:
    """Probabilities of first, second and tie at a difference of strengths; shape ``[..., 3]``."""
    first = np.exp(np.clip(np.asarray(difference, dtype=np.float64) / 2, -300, 300))
    second = 1 / first
    total = first + second + nu
    return np.stack([first / total, second / total, nu / total], axis=-1)


def sandwich(pairwise: PairwiseCounts, fitted: DavidsonFit, clusters: Codes, covariates: Array | None = None) -> Array:
    """Covariance of a fit that holds when battles of one cluster (prompt) depend on each other in any way.

    ``H^-1 (sum over clusters of g g') H^-1 * C / (C - 1)``, with the gradient ``g`` of each cluster's log-likelihood
    and the information ``H``, for strengths, ``log nu`` and coefficients (K.-Y. Liang and S. L. Zeger, "Longitudinal
    data analysis using generalized linear models", Biometrika 73, 1986).

    Parameters
    ----------
    pairwise:
        Rows, each of one cluster.
    fitted:
        The fit to these rows or to their sums.
    clusters:
        Each row's cluster, in ascending order; shape ``[p]``.
    covariates:
        As in the fit.
    """
    inverse = inverse_information(fitted)
    meat = np.zeros_like(inverse)
    total = 0
    for scores in _cluster_scores(pairwise, fitted, clusters, covariates):
        meat += scores.T @ scores
        total += len(scores)
    return np.asarray(inverse @ meat @ inverse * (total / max(total - 1, 1)))


def inverse_information(fitted: DavidsonFit) -> Array:
    """Inverse of a single fit's information, with the prior's; it is the covariance if battles are independent."""
    return np.asarray(np.linalg.inv(fitted.information + PRIOR_PRECISION * np.eye(len(fitted.information))))


def _cluster_scores(
    pairwise: PairwiseCounts, fitted: DavidsonFit, clusters: Codes, covariates: Array | None
) -> Iterator[Array]:
    """The gradients of blocks of clusters, ``[clusters of the block, m + 1 + k]``."""
    first, second = pairwise.first, pairwise.second
    covariates = _no_covariates(pairwise) if covariates is None else covariates
    seen = _Seen.of(pairwise.counts)
    difference = fitted.strengths[first] - fitted.strengths[second] + covariates @ fitted.coefficients
    lead, tie, _ = _expected(difference, np.exp(fitted.log_nu))
    pull = seen.lead - seen.total * lead
    tied = seen.tied - seen.total * tie
    size = len(pairwise.models)
    width = size + 1 + covariates.shape[1]
    begins = np.flatnonzero(np.concatenate([[True], clusters[1:] != clusters[:-1]]))
    step = max(1, CLUSTER_CELLS // width)
    for begin in range(0, len(begins), step):
        starts = begins[begin : begin + step]
        end = begins[begin + step] if begin + step < len(begins) else len(first)
        rows = slice(starts[0], end)
        cluster = np.repeat(np.arange(len(starts)), np.diff(starts, append=end)) * width
        sums = np.bincount(cluster + first[rows], pull[rows], len(starts) * width)
        sums -= np.bincount(cluster + second[rows], pull[rows], len(starts) * width)
        scores = np.asarray(sums, np.float64).reshape(-1, width)
        scores[:, size] = np.add.reduceat(tied[rows], starts - starts[0])
        scores[:, size + 1 :] = np.add.reduceat(pull[rows, None] * covariates[rows], starts - starts[0])
        yield scores


@dataclass(frozen=True)
class _Seen:
    """What the fit matches, per row: wins of the first minus those of the second, halved; ties; battles."""

    lead: Array
    tied: Array
    total: Array

    @staticmethod
    def of(counts: Array) -> _Seen:
        won, lost, tied = (np.ascontiguousarray(counts[..., outcome]) for outcome in (A, B, TIE))
        return _Seen((won - lost) / 2, tied, won + lost + tied)


def _expected(difference: Array, nu: Array | float) -> tuple[Array, Array, Array]:
    """Half of P(first) - P(second), P(tie), and the variance of the first of them as a statistic of one battle."""
    first = np.exp(np.clip(difference / 2, -300, 300))
    second = 1 / first
    total = first + second + nu
    lead = (first - second) / (2 * total)
    tie = nu / total
    return lead, tie, (1 - tie) / 4 - lead**2


def _no_covariates(pairwise: PairwiseCounts) -> Array:
    return np.empty((len(pairwise.first), 0))


def _derivatives(x: Array, seen: _Seen, pairwise: PairwiseCounts, covariates: Array, ties: bool) -> tuple[Array, Array]:
    """Gradient ``[r, m + 1 + k]`` of the log-likelihood and its negative Hessian, for r sets of parameters."""
    first, second = pairwise.first, pairwise.second
    rounds, size = x.shape[0], len(pairwise.models)
    nu = np.exp(x[:, size, None]) if ties else 0.0
    difference = x[:, first] - x[:, second]
    if covariates.shape[1]:
        difference += x[:, size + 1 :] @ covariates.T
    lead, tie, variance = _expected(difference, nu)
    pull = seen.lead - seen.total * lead
    spread = seen.total * variance
    mixed = -seen.total * lead * tie
    offset = np.arange(rounds)[:, None] * size
    of_first, of_second = (offset + first).ravel(), (offset + second).ravel()

    def balance(values: Array) -> Array:
        """Sums over each model's rows, those where it is the second subtracted; ``[r, m]``."""
        flat = values.ravel()
        sums = np.bincount(of_first, flat, rounds * size) - np.bincount(of_second, flat, rounds * size)
        return np.asarray(sums.reshape(rounds, size))

    pairs = np.bincount(of_first * size + np.tile(second, rounds), spread.ravel(), rounds * size * size)
    square = pairs.reshape(rounds, size, size)
    square = square + square.swapaxes(1, 2)
    gradient = np.empty_like(x)
    gradient[:, :size] = balance(pull)
    gradient[:, size] = (seen.tied - seen.total * tie).sum(axis=1)
    gradient[:, size + 1 :] = pull @ covariates
    hessian = np.empty((rounds, x.shape[1], x.shape[1]))
    hessian[:, :size, :size] = -square
    diagonal = np.arange(size)
    hessian[:, diagonal, diagonal] += square.sum(axis=2)
    hessian[:, :size, size] = hessian[:, size, :size] = balance(mixed)
    hessian[:, size, size] = (seen.total * tie * (1 - tie)).sum(axis=1)
    hessian[:, size, size + 1 :] = hessian[:, size + 1 :, size] = mixed @ covariates
    for k, values in enumerate(covariates.T, start=size + 1):
        hessian[:, :size, k] = hessian[:, k, :size] = balance(spread * values)
        hessian[:, size + 1 :, k] = (spread * values) @ covariates
    return gradient, hessian

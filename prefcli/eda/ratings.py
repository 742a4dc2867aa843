"""How strong the models are: a Bradley-Terry model with ties, fitted to who beat whom. Numpy only.

The model is Davidson's: with strengths ``s`` in log-odds, and ``nu`` for how common ties are,

    P(i wins) : P(j wins) : P(tie)  =  exp(s_i) : exp(s_j) : nu * exp((s_i + s_j) / 2)

R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", Journal
of the American Statistical Association 65 (1970). Without ties it is the model of Bradley and Terry (1952). Battles
enter only as counts per pair of models and outcome, so that fitting costs nothing however many battles there are.

Strengths are maximum likelihood but for a weak normal prior around 0 (:data:`PRIOR_PRECISION`, a standard deviation
of 5,493 points): it moves a rating of a few hundred battles by less than a thousandth in log-odds, makes the sum of
the strengths 0, and keeps those finite that have no maximum likelihood: of a model that never lost, or of groups of
models that never met (L. R. Ford, "Solution of a ranking problem from binary comparisons", 1957). Such models are
named in :class:`Ratings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.outcomes import OUTCOMES, TIE, A, B

Array = NDArray[np.float64]

PRIOR_PRECISION = 1e-3
ELO_PER_LOG_ODDS = 400 / np.log(10)
"""400 points are odds of ten to one, as in A. E. Elo, "The Rating of Chessplayers, Past and Present" (1978)."""
ELO_CENTRE = 1000
"""The mean rating of all models."""
BOOTSTRAP_ROUNDS = 200
MOST_MODELS = 500
"""Only the models with most battles are rated: the fit solves a system of this size."""
WORK_BYTES = 8 << 20
"""Bootstrap rounds are fitted together, as many as fit here: what stays in the processor's cache is fastest."""
BOOTSTRAP_TOLERANCE = 1e-2
"""Newton's steps shrink quadratically: behind a last step this long lie errors of a hundredth of a point."""
MAX_STEPS = 100
LONGEST_STEP = 2.0
"""Newton steps are shortened to this many log-odds: far from the optimum they overshoot."""


@dataclass(frozen=True)
class Meetings:
    """Who met whom how often, and how it ended.

    Attributes
    ----------
    models:
        Names, shape ``[m]``.
    first, second:
        Positions in ``models`` of the pairs that met, each unordered pair once; shape ``[p]``.
    counts:
        How often the first won, the second won, and they tied; shape ``[p, 3]``.
    """

    models: tuple[str, ...]
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    counts: Array


@dataclass(frozen=True)
class Fit:
    """Strengths in log-odds ``[..., m]``, summing to 0, and the logarithm of ``nu`` ``[...]`` (-inf without ties)."""

    strengths: Array
    log_nu: Array


@dataclass(frozen=True)
class ModelRating:
    """A model's rating in points, with its bootstrap interval."""

    model: str
    rating: float
    low: float
    high: float
    battles: int
    group: int
    """Which of the groups of models that met, directly or through others; ratings compare within a group only."""
    one_sided: bool
    """Whether it never lost or never won: its rating is held by the prior alone."""


@dataclass(frozen=True)
class Ratings:
    """Every model's rating, best first.

    Attributes
    ----------
    models:
        Best first.
    tie_parameter:
        Davidson's ``nu``: between equals a share ``nu / (2 + nu)`` of battles is tied.
    rounds:
        Of the bootstrap.
    groups:
        How many groups of models never met each other; 1 when all ratings compare.
    bounded:
        Whether every strength has a maximum likelihood without the prior.
    left_out:
        Models not rated: they have fewer battles than the :data:`MOST_MODELS` rated ones.
    """

    models: tuple[ModelRating, ...]
    tie_parameter: float
    rounds: int
    groups: int
    bounded: bool
    left_out: int

    def cautions(self) -> list[str]:
        """What to know before comparing these ratings, in sentences."""
        told = []
        if self.groups > 1:
            told.append(
                f"The models fall into {self.groups} groups that never met: ratings compare within a group only."
            )
        one_sided = [one.model for one in self.models if one.one_sided]
        if one_sided:
            shown = ", ".join(one_sided[:3]) + (f" and {len(one_sided) - 3} more" if len(one_sided) > 3 else "")
            told.append(f"Never lost or never won, and so rated by the prior alone: {shown}.")
        elif not self.bounded and self.groups == 1:
            told.append("Some models never lost to any of the others: the distance between them is the prior's.")
        if self.left_out:
            told.append(f"Only the {len(self.models)} models with most battles are rated, {self.left_out:,} are not.")
        return told


def tally(
    model_a: NDArray[np.integer], model_b: NDArray[np.integer], labels: NDArray[np.integer], names: Sequence[str]
) -> Meetings:
    """Battles as counts per unordered pair.

    Parameters
    ----------
    model_a, model_b:
        Positions in ``names``, -1 where unknown; shape ``[n]``.
    labels:
        0, 1, 2 for A, B, tie, -1 where unknown; shape ``[n]``. A model's battles against itself are left out.
    names:
        Of the models.
    """
    known = (model_a >= 0) & (model_b >= 0) & (labels >= 0) & (model_a != model_b)
    a, b, outcome = (values[known].astype(np.int64) for values in (model_a, model_b, labels))
    turned = a > b
    low, high = np.where(turned, b, a), np.where(turned, a, b)
    outcome = np.where(turned & (outcome != TIE), A + B - outcome, outcome)
    pairs, where = np.unique(low * len(names) + high, return_inverse=True)
    counts = np.bincount(where * len(OUTCOMES) + outcome, minlength=len(pairs) * len(OUTCOMES))
    first, second = np.divmod(pairs, max(len(names), 1))
    return Meetings(tuple(names), first, second, counts.reshape(-1, len(OUTCOMES)).astype(np.float64))


def fit(
    meetings: Meetings,
    counts: Array | None = None,
    *,
    start: Fit | None = None,
    tolerance: float = 1e-10,
    prior_precision: float = PRIOR_PRECISION,
) -> Fit:
    """Fit Davidson's model by Newton's method: the log-likelihood is concave in strengths and ``log nu``.

    Parameters
    ----------
    meetings:
        Who met whom.
    counts:
        Counts to fit instead of ``meetings.counts``; any number of sets at once, shape ``[..., p, 3]``.
    start:
        Where to begin.
    tolerance:
        Stop when no parameter moves by more.
    prior_precision:
        Of the normal prior on every strength and on ``log nu``.
    """
    counts = meetings.counts if counts is None else counts
    sets = counts.reshape(-1, *counts.shape[-2:])
    size = len(meetings.models)
    ties = bool(meetings.counts[:, TIE].any())
    x = np.zeros((len(sets), size + 1))
    if start is not None:
        x[:, :size] = start.strengths
        x[:, size] = start.log_nu if ties else 0
    for _ in range(MAX_STEPS):
        gradient, information = _derivatives(x, sets, meetings, ties)
        gradient -= prior_precision * x
        diagonal = np.arange(size + 1)
        information[:, diagonal, diagonal] += prior_precision
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1, keepdims=True, initial=0)
        x += step * np.minimum(1, LONGEST_STEP / np.maximum(longest, LONGEST_STEP))
        if longest.max(initial=0) < tolerance:
            break
    x = x.reshape(*counts.shape[:-2], size + 1)
    return Fit(x[..., :size], x[..., size] if ties else np.full(x.shape[:-1], -np.inf))


def probabilities(difference: Array, log_nu: Array | float) -> Array:
    """Probabilities of first, second and tie at a difference of strengths; shape ``[..., 3]``."""
    first = np.exp(np.clip(np.asarray(difference, dtype=np.float64) / 2, -300, 300))
    second, tie = 1 / first, np.exp(log_nu)
    total = first + second + tie
    return np.stack([first / total, second / total, tie / total], axis=-1)


def _derivatives(x: Array, counts: Array, meetings: Meetings, ties: bool) -> tuple[Array, Array]:
    """Gradient ``[r, m + 1]`` of the log-likelihood and its negative Hessian ``[r, m + 1, m + 1]``."""
    first, second = meetings.first, meetings.second
    rounds, size = x.shape[0], x.shape[1] - 1
    log_nu = x[:, size:] if ties else -np.inf
    p = probabilities(x[:, first] - x[:, second], log_nu)
    total = counts.sum(axis=2)
    # The statistics whose means are matched: +1/2 for a win of the first and -1/2 for one of the second; 1 for a tie.
    lead = (p[..., A] - p[..., B]) / 2
    pull = (counts[..., A] - counts[..., B]) / 2 - total * lead
    spread = total * ((p[..., A] + p[..., B]) / 4 - lead**2)
    mixed = -total * lead * p[..., TIE]
    square = np.zeros((rounds, size, size))

    def per_model(of_first: Array, of_second: Array) -> Array:
        """Sums of a value per pair over each model's pairs; without BLAS, whose threads are no help at this size."""
        square[:, first, second] = of_first
        square[:, second, first] = of_second
        return square.sum(axis=2)

    gradient = np.empty_like(x)
    gradient[:, :size] = per_model(pull, -pull)
    gradient[:, size] = (counts[..., TIE] - total * p[..., TIE]).sum(axis=1)
    information = np.zeros((rounds, size + 1, size + 1))
    information[:, :size, size] = information[:, size, :size] = per_model(mixed, -mixed)
    diagonal = np.arange(size)
    information[:, diagonal, diagonal] = per_model(spread, spread)
    information[:, first, second] = information[:, second, first] = -spread
    information[:, size, size] = (total * p[..., TIE] * (1 - p[..., TIE])).sum(axis=1)
    return gradient, information


def bootstrap(meetings: Meetings, centre: Fit, *, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> Array:
    """Strengths ``[rounds, m]`` refitted to battles drawn with replacement.

    Drawing n battles with replacement is drawing their counts per pair and outcome from a multinomial distribution
    (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993).
    """
    random = np.random.default_rng(seed)
    cells = meetings.counts.ravel()
    total = int(cells.sum())
    size = len(meetings.models) + 1
    together = max(1, int(WORK_BYTES // (8 * (size * size * 2 + len(cells) * 6))))
    strengths = []
    for begin in range(0, rounds, together):
        drawn = random.multinomial(total, cells / total, size=min(together, rounds - begin))
        counts = drawn.reshape(-1, *meetings.counts.shape).astype(np.float64)
        strengths.append(fit(meetings, counts, start=centre, tolerance=BOOTSTRAP_TOLERANCE).strengths)
    return np.concatenate(strengths)


def rate(meetings: Meetings, *, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> tuple[Ratings, Fit] | None:
    """Ratings with 95 % percentile bootstrap intervals, and the fit behind them; None when no two models met.

    Parameters
    ----------
    meetings:
        Who met whom; of more than :data:`MOST_MODELS` models, those with most battles are rated.
    rounds, seed:
        Of the bootstrap.
    """
    meetings, left_out = _rateable(meetings)
    if not len(meetings.counts):
        return None
    centre = fit(meetings)
    drawn = bootstrap(meetings, centre, rounds=rounds, seed=seed)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    groups, bounded = _connections(meetings)
    battles = _per_model(meetings, meetings.counts.sum(axis=1), meetings.counts.sum(axis=1))
    won = _per_model(
        meetings, meetings.counts[:, A] + meetings.counts[:, TIE], meetings.counts[:, [B, TIE]].sum(axis=1)
    )
    lost = _per_model(
        meetings, meetings.counts[:, B] + meetings.counts[:, TIE], meetings.counts[:, [A, TIE]].sum(axis=1)
    )
    rated = [
        ModelRating(
            model=meetings.models[i],
            rating=elo(centre.strengths[i]),
            low=elo(low[i]),
            high=elo(high[i]),
            battles=int(battles[i]),
            group=int(groups[i]),
            one_sided=bool(won[i] == 0 or lost[i] == 0),
        )
        for i in np.lexsort((np.array(meetings.models), -centre.strengths))
    ]
    result = Ratings(
        models=tuple(rated),
        tie_parameter=float(np.exp(centre.log_nu)),
        rounds=rounds,
        groups=len(np.unique(groups)),
        bounded=bounded,
        left_out=left_out,
    )
    return result, centre


def elo(strength: float) -> float:
    """Log-odds as points, the mean model at :data:`ELO_CENTRE`."""
    return float(ELO_CENTRE + ELO_PER_LOG_ODDS * strength)


def _per_model(meetings: Meetings, of_first: Array, of_second: Array) -> Array:
    size = len(meetings.models)
    return np.asarray(np.bincount(meetings.first, of_first, size) + np.bincount(meetings.second, of_second, size))


def _rateable(meetings: Meetings) -> tuple[Meetings, int]:
    """Only models that met another, the :data:`MOST_MODELS` with most battles; and how many of them are left out."""
    met = meetings.counts.sum(axis=1)
    battles = _per_model(meetings, met, met)
    busiest = np.lexsort((np.array(meetings.models), -battles))[: int((battles > 0).sum())]
    kept = np.sort(busiest[:MOST_MODELS])
    position = np.full(len(meetings.models), -1)
    position[kept] = np.arange(len(kept))
    inside = (position[meetings.first] >= 0) & (position[meetings.second] >= 0)
    smaller = Meetings(
        tuple(meetings.models[i] for i in kept),
        position[meetings.first[inside]],
        position[meetings.second[inside]],
        meetings.counts[inside],
    )
    return smaller, len(busiest) - len(kept)


def _connections(meetings: Meetings) -> tuple[NDArray[np.int64], bool]:
    """Each model's group (connected by battles), and whether every strength has a maximum likelihood.

    It has when, for every split of the models into two, some model of each part has won or tied against one of the
    other: when the directed graph of who held out against whom is strongly connected (Ford 1957).
    """
    size = len(meetings.models)
    held = np.eye(size, dtype=np.float32)
    counts = meetings.counts
    held[meetings.first, meetings.second] = (counts[:, A] + counts[:, TIE]) > 0
    held[meetings.second, meetings.first] = (counts[:, B] + counts[:, TIE]) > 0
    met = np.maximum(held, held.T)
    reach, joined = held, met
    for _ in range(max(1, int(np.ceil(np.log2(max(size, 2)))))):
        reach, joined = (np.minimum(matrix @ matrix, 1) for matrix in (reach, joined))
    leaders = joined.argmax(axis=1)
    _, groups = np.unique(leaders, return_inverse=True)
    mutual = (reach > 0) == (reach.T > 0)
    return groups.astype(np.int64), bool(mutual.all() and (joined > 0).all())

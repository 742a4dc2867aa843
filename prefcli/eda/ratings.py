"""How strong the models are: a Bradley-Terry model with ties, fitted to who beat whom.

The model is Davidson's: with strengths ``s`` in log-odds, and ``nu`` for how common ties are,

    P(i wins) : P(j wins) : P(tie)  =  exp(s_i) : exp(s_j) : nu * exp((s_i + s_j) / 2)

R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", Journal
of the American Statistical Association 65 (1970). Without ties it is the model of Bradley and Terry (1952). Battles
enter as counts per pair of models and outcome, so that the cost of fitting does not grow with their number.

Strengths are maximum likelihood but for a weak normal prior around 0 (:data:`PRIOR_PRECISION`, a standard deviation
of 5,493 points). It moves a rating of a few hundred battles by less than a thousandth in log-odds, makes the sum of
the strengths 0, and keeps those finite that have no maximum likelihood: of a model that never lost, or of groups of
models that never met (L. R. Ford, "Solution of a ranking problem from binary comparisons", 1957).
:meth:`Ratings.cautions` names such models.
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
MIN_BATTLES = 20
"""A model of fewer has no interval: that of one battle would be a point."""
MAX_MODELS = 500
"""Only the models with most battles are rated: the fit solves a system of this size."""
BATCH_BYTES = 8 << 20
"""Bootstrap rounds are fitted in batches of this size, which stay in the processor's cache."""
BOOTSTRAP_TOLERANCE = 1e-2
"""Newton steps shrink quadratically: after a last step of this length the error is a hundredth of a point."""
MAX_ITERATIONS = 100
MAX_STEP = 2.0
"""Newton steps are shortened to this many log-odds, because they overshoot far from the optimum."""


@dataclass(frozen=True)
class PairwiseCounts:
    """Outcomes per pair of models that met, each unordered pair once."""

    models: tuple[str, ...]  # names, [m]
    first: NDArray[np.intp]  # [p], positions in `models`
    second: NDArray[np.intp]  # [p]
    counts: Array  # [p, 3], how often the first won, the second won, and they tied

    @property
    def battles(self) -> Array:
        """Battles per pair; shape ``[p]``."""
        return np.asarray(self.counts.sum(axis=1))

    def per_model(self, of_first: Array, of_second: Array) -> Array:
        """Sums over each model's pairs of a value per pair, as seen by the first and by the second; shape ``[m]``."""
        size = len(self.models)
        return np.asarray(np.bincount(self.first, of_first, size) + np.bincount(self.second, of_second, size))


@dataclass(frozen=True)
class DavidsonFit:
    """Strengths in log-odds ``[..., m]``, summing to 0, and the logarithm of ``nu`` ``[...]`` (-inf without ties)."""

    strengths: Array
    log_nu: Array


@dataclass(frozen=True)
class ModelRating:
    """A model's rating in points, with its bootstrap interval if it has :data:`MIN_BATTLES`."""

    model: str
    rating: float
    low: float | None
    high: float | None
    battles: int
    group: int
    """Models are in one group if battles connect them, directly or through others."""
    one_sided: bool
    """Whether it never lost or never won, so that only the prior bounds its rating."""
    prompts: int = 0
    """Different prompts of its battles."""
    no_interval: str | None = None
    """Why there is no interval; None if there is one."""
    rank: int = 0
    """By rating, within its group, from 1."""
    rank_low: int | None = None
    rank_high: int | None = None
    """The ranks that the votes allow at 95 %, as in "1 to 3"; None without an interval."""
    p_first: float | None = None
    """Probability that it is the best of its group's models that have an interval."""
    styled: float | None = None
    """Rating at equal style of the two answers, with its interval; None without style control."""
    styled_low: float | None = None
    styled_high: float | None = None
    styled_rank: int | None = None


@dataclass(frozen=True)
class StyleEffect:
    """What one standard deviation more of a property adds to the log-odds of winning, between equal models."""

    what: str
    coefficient: float
    low: float
    high: float
    battles: int
    """Battles whose answers differ in it."""


@dataclass(frozen=True)
class StyleEffects:
    """The style covariates of the fit, and why others are not in it, in sentences."""

    effects: tuple[StyleEffect, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class GroupRatings:
    """The battles of one value of ``--by``: their outcomes A, B, tie, and the models' ratings in them."""

    name: str
    battles: int
    prompts: int
    outcomes: tuple[int, int, int]
    ratings: Ratings | None


@dataclass(frozen=True)
class Beats:
    """``probability[i][j]``: model i is preferred to j in that share of their decided votes, as the fit expects.

    With 95 % intervals, best rated first. None on the diagonal and where no battles connect the two; no interval
    where one of the two has none. ``battles`` counts those between the two.
    """

    models: tuple[str, ...]
    probability: tuple[tuple[float | None, ...], ...]
    low: tuple[tuple[float | None, ...], ...]
    high: tuple[tuple[float | None, ...], ...]
    battles: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Ratings:
    """Every model's rating: group by group, the one with most battles first, best first within each."""

    models: tuple[ModelRating, ...]
    tie_parameter: float
    """Davidson's ``nu``: between equals a share ``nu / (2 + nu)`` of battles is tied."""
    rounds: int
    """Of the bootstrap."""
    groups: int
    """Number of groups; ratings are comparable within a group only."""
    bounded: bool
    """Whether every strength has a maximum likelihood without the prior."""
    left_out: int
    """Models not rated: they have fewer battles than the :data:`MAX_MODELS` rated ones."""
    intervals: str = "bootstrap"
    """How the intervals were computed, in a few words."""
    style: StyleEffects | None = None

    def cautions(self) -> list[str]:
        """What to know before comparing these ratings, in sentences."""
        cautions = []
        if self.groups > 1:
            cautions.append(
                f"The models form {self.groups} groups that never met: ratings are comparable within a group only."
            )
        one_sided = [rating.model for rating in self.models if rating.one_sided]
        if one_sided:
            names = ", ".join(one_sided[:3]) + (f" and {len(one_sided) - 3} more" if len(one_sided) > 3 else "")
            cautions.append(f"Never lost or never won, and so rated by the prior alone: {names}.")
        elif not self.bounded and self.groups == 1:
            cautions.append("Some models never lost to any of the others: the prior sets the distance between them.")
        if self.left_out:
            cautions.append(
                f"Only the {len(self.models)} models with most battles are rated, {self.left_out:,} are not."
            )
        return cautions


def count_pairs(
    model_a: NDArray[np.integer], model_b: NDArray[np.integer], labels: NDArray[np.integer], names: Sequence[str]
) -> PairwiseCounts:
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


def fit(
    pairwise: PairwiseCounts,
    counts: Array | None = None,
    *,
    start: DavidsonFit | None = None,
    tolerance: float = 1e-10,
) -> DavidsonFit:
    """Fit Davidson's model by Newton's method: the log-likelihood is concave in strengths and ``log nu``.

    Parameters
    ----------
    pairwise:
        Outcomes per pair of models.
    counts:
        Counts to fit instead of ``pairwise.counts``; any number of sets at once, shape ``[..., p, 3]``.
    start:
        Where to begin.
    tolerance:
        Stop when no parameter moves by more.
    """
    counts = pairwise.counts if counts is None else counts
    sets = counts.reshape(-1, *counts.shape[-2:])
    size = len(pairwise.models)
    ties = bool(pairwise.counts[:, TIE].any())
    x = np.zeros((len(sets), size + 1))
    if start is not None:
        x[:, :size] = start.strengths
        x[:, size] = start.log_nu if ties else 0
    for _ in range(MAX_ITERATIONS):
        gradient, information = _derivatives(x, sets, pairwise, ties)
        gradient -= PRIOR_PRECISION * x
        information += PRIOR_PRECISION * np.eye(size + 1)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1, keepdims=True, initial=0)
        x += step * np.minimum(1, MAX_STEP / np.maximum(longest, MAX_STEP))
        if longest.max(initial=0) < tolerance:
            break
    x = x.reshape(*counts.shape[:-2], size + 1)
    return DavidsonFit(x[..., :size], x[..., size] if ties else np.full(x.shape[:-1], -np.inf))


def probabilities(difference: Array, nu: Array | float) -> Array:
    """Probabilities of first, second and tie at a difference of strengths; shape ``[..., 3]``."""
    first = np.exp(np.clip(np.asarray(difference, dtype=np.float64) / 2, -300, 300))
    second = 1 / first
    total = first + second + nu
    return np.stack([first / total, second / total, nu / total], axis=-1)


def _derivatives(x: Array, counts: Array, pairwise: PairwiseCounts, ties: bool) -> tuple[Array, Array]:
    """Gradient ``[r, m + 1]`` of the log-likelihood and its negative Hessian ``[r, m + 1, m + 1]``."""
    first, second = pairwise.first, pairwise.second
    rounds, size = x.shape[0], x.shape[1] - 1
    p = probabilities(x[:, first] - x[:, second], np.exp(x[:, size:]) if ties else 0.0)
    total = counts.sum(axis=2)
    # The statistics whose means are matched: +1/2 for a win of the first and -1/2 for one of the second; 1 for a tie.
    lead = (p[..., A] - p[..., B]) / 2
    pull = (counts[..., A] - counts[..., B]) / 2 - total * lead
    spread = total * ((p[..., A] + p[..., B]) / 4 - lead**2)
    mixed = -total * lead * p[..., TIE]
    square = np.zeros((rounds, size, size))

    def per_model(of_first: Array, of_second: Array) -> Array:
        """Sums over each model's pairs, for all rounds; without BLAS, whose threads slow it down at this size."""
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


def bootstrap(pairwise: PairwiseCounts, centre: DavidsonFit, *, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> Array:
    """Strengths ``[rounds, m]`` refitted to battles drawn with replacement.

    Drawing n battles with replacement is drawing their counts per pair and outcome from a multinomial distribution
    (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993).
    """
    random = np.random.default_rng(seed)
    cells = pairwise.counts.ravel()
    total = int(cells.sum())
    size = len(pairwise.models) + 1
    batch = max(1, int(BATCH_BYTES // (8 * (size * size * 2 + len(cells) * 6))))
    strengths = []
    for begin in range(0, rounds, batch):
        drawn = random.multinomial(total, cells / total, size=min(batch, rounds - begin))
        counts = drawn.reshape(-1, *pairwise.counts.shape).astype(np.float64)
        strengths.append(fit(pairwise, counts, start=centre, tolerance=BOOTSTRAP_TOLERANCE).strengths)
    return np.concatenate(strengths)


def rate(pairwise: PairwiseCounts, *, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> Ratings | None:
    """Ratings with 95 % percentile bootstrap intervals, of battles as if independent; None when no two models met.

    Parameters
    ----------
    pairwise:
        Outcomes per pair. Of more than :data:`MAX_MODELS` models, those with most battles are rated.
    rounds, seed:
        Of the bootstrap.
    """
    pairwise, left_out = _busiest(pairwise)
    if not len(pairwise.counts):
        return None
    centre = fit(pairwise)
    drawn = bootstrap(pairwise, centre, rounds=rounds, seed=seed)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    groups, bounded = _connectivity(pairwise)
    battles = pairwise.per_model(pairwise.battles, pairwise.battles)
    first_scored, second_scored = (pairwise.counts[:, [won, TIE]].sum(axis=1) for won in (A, B))
    never_lost = pairwise.per_model(second_scored, first_scored) == 0
    never_won = pairwise.per_model(first_scored, second_scored) == 0
    ratings = [
        ModelRating(
            model=pairwise.models[i],
            rating=elo(centre.strengths[i]),
            low=elo(low[i]) if battles[i] >= MIN_BATTLES else None,
            high=elo(high[i]) if battles[i] >= MIN_BATTLES else None,
            battles=int(battles[i]),
            group=int(groups[i]),
            one_sided=bool(never_lost[i] or never_won[i]),
            rank=rank,
        )
        for rank, i in enumerate(np.lexsort((np.array(pairwise.models), -centre.strengths)), start=1)
    ]
    return Ratings(
        models=tuple(ratings),
        tie_parameter=float(np.exp(centre.log_nu)),
        rounds=rounds,
        groups=len(np.unique(groups)),
        bounded=bounded,
        left_out=left_out,
    )


def elo(strength: float) -> float:
    """Log-odds as points, the mean model at :data:`ELO_CENTRE`."""
    return float(ELO_CENTRE + ELO_PER_LOG_ODDS * strength)


def _busiest(pairwise: PairwiseCounts) -> tuple[PairwiseCounts, int]:
    """Only models that met another, the :data:`MAX_MODELS` with most battles; and how many of them are left out."""
    battles = pairwise.per_model(pairwise.battles, pairwise.battles)
    ranked = np.lexsort((np.array(pairwise.models), -battles))[: int((battles > 0).sum())]
    rated = np.sort(ranked[:MAX_MODELS])
    position = np.full(len(pairwise.models), -1)
    position[rated] = np.arange(len(rated))
    first, second = position[pairwise.first], position[pairwise.second]
    inside = (first >= 0) & (second >= 0)
    models = tuple(pairwise.models[i] for i in rated)
    return PairwiseCounts(models, first[inside], second[inside], pairwise.counts[inside]), len(ranked) - len(rated)


def _connectivity(pairwise: PairwiseCounts) -> tuple[NDArray[np.intp], bool]:
    """Each model's group (connected by battles), and whether every strength has a maximum likelihood.

    It has one when, for every split of the models into two, some model of each part won or tied against one of the
    other part: when the directed graph of who won or tied against whom is strongly connected (Ford 1957). Squaring
    the matrices finds what they connect; importing ``scipy.sparse.csgraph`` would add 0.2 s to every call.
    """
    size = len(pairwise.models)
    reach = np.eye(size, dtype=np.float32)
    reach[pairwise.first, pairwise.second] = pairwise.counts[:, [A, TIE]].any(axis=1)
    reach[pairwise.second, pairwise.first] = pairwise.counts[:, [B, TIE]].any(axis=1)
    connected = np.maximum(reach, reach.T)
    for _ in range(size.bit_length()):
        reach, connected = (np.minimum(matrix @ matrix, 1) for matrix in (reach, connected))
    _, groups = np.unique(connected.argmax(axis=1), return_inverse=True)
    return groups, bool(reach.all())

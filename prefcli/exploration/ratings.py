"""How strong the models are: ratings with robust intervals, ranks, and who beats whom.

Strengths are those of :mod:`.davidson`, raw and at equal style (:mod:`.style`). Their covariance
is a sandwich estimate clustered by prompt, so that intervals hold when the battles of a prompt resemble each other. It
also gives differences, ranks and the probability that a model is the best one. Models that no chain of battles
connects form separate groups, each with a mean rating of its own: they are never ranked against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.bootstrap import MIN_UNITS, Z95, expanded_quantile
from prefcli.errors import PrefcliError
from prefcli.exploration.davidson import (
    Array,
    Codes,
    DavidsonFit,
    PairwiseCounts,
    closure,
    connectivity,
    count_pairs,
    fit,
    sandwich,
)
from prefcli.exploration.style import StyleEffects, StyleFit, fit_styled
from prefcli.metrics import plural
from prefcli.outcomes import OUTCOMES, TIE, A, B

ELO_PER_LOG_ODDS = 400 / np.log(10)
"""400 points are odds of ten to one, as in A. E. Elo, "The Rating of Chessplayers, Past and Present" (1978)."""
ELO_CENTRE = 1000
"""The mean rating of a group's models that have enough battles."""
MIN_BATTLES = 20
"""A model of fewer has no interval, nor one of fewer than :data:`MIN_PROMPTS` different prompts."""
MIN_PROMPTS = MIN_UNITS
MAX_MODELS = 500
"""Only the models with most battles are rated: the fit solves a system of this size."""
MAX_BEATS = 20
"""Models in the table of who beats whom."""
FIRST_DRAWS = 10_000
"""Draws of all strengths from their normal distribution, for the probability of being the best."""
RANK_DRAWS = 1_000
"""Of them, those for the ranges of ranks."""


@dataclass(frozen=True)
class Votes:
    """Battles between two different known models, with a known outcome; n of them."""

    models: tuple[str, ...]  # names, [m]
    first: NDArray[np.int64]  # [n], position of model A in `models`
    second: NDArray[np.int64]  # [n], of model B
    labels: NDArray[np.int64]  # [n], 0, 1, 2 for A, B, tie
    prompts: NDArray[np.int64]  # [n], equal for equal prompts, in ascending order
    style: Array | None  # [n, k], from style.style_differences

    @staticmethod
    def of(
        models: Codes, labels: Codes, names: Sequence[str], prompts: Codes | None = None, style: Array | None = None
    ) -> Votes:
        """The battles that can be rated.

        Parameters
        ----------
        models:
            Positions in ``names`` of the models A and B, -1 where unknown; shape ``[n, 2]``.
        labels:
            0, 1, 2 for A, B, tie, -1 where unknown; shape ``[n]``.
        names:
            Names of the models.
        prompts:
            Equal for equal prompts, shape ``[n]``; every battle has a prompt of its own if not given.
        style:
            Differences of style, A minus B; without them there is no style control.
        """
        of_prompt = np.arange(len(labels), dtype=np.int64) if prompts is None else prompts.astype(np.int64)
        known = np.flatnonzero((models >= 0).all(axis=1) & (labels >= 0) & (models[:, 0] != models[:, 1]))
        known = known[np.argsort(of_prompt[known], kind="stable")]
        first, second = np.ascontiguousarray(models[known].astype(np.int64).T)
        style = None if style is None else style[known]
        return Votes(tuple(names), first, second, labels[known].astype(np.int64), of_prompt[known], style)

    def where(self, mask: NDArray[np.bool_]) -> Votes:
        """Some of the battles; the models stay."""
        style = None if self.style is None else self.style[mask]
        return Votes(self.models, self.first[mask], self.second[mask], self.labels[mask], self.prompts[mask], style)

    def prompt_codes(self) -> NDArray[np.int64]:
        """Each battle's prompt as a number from 0; shape ``[n]``."""
        return np.cumsum(np.diff(self.prompts, prepend=self.prompts[:1]) != 0)

    def pairs(self) -> PairwiseCounts:
        """Counts per unordered pair of models."""
        return count_pairs(self.first, self.second, self.labels, self.models)

    def rows(self) -> PairwiseCounts:
        """A row per battle."""
        return PairwiseCounts(self.models, self.first, self.second, np.eye(len(OUTCOMES))[self.labels])


@dataclass(frozen=True)
class ModelRating:
    """A model's rating in points, with its 95 % interval if it has :data:`MIN_BATTLES` and nothing else forbids it."""

    model: str
    rating: float
    low: float | None
    high: float | None
    battles: int
    prompts: int
    """Different prompts of its battles."""
    group: int
    """Models are in one group if battles connect them, directly or through others. 0 has most battles."""
    one_sided: bool
    """Whether it never lost or never won, so that only the prior bounds its rating."""
    no_interval: str | None
    """Why there is no interval; None if there is one."""
    rank: int
    """By rating within its group, from 1; models of too few battles or prompts come last."""
    rank_low: int | None = None
    rank_high: int | None = None
    """The ranks that the votes allow at 95 %, as in "1 to 3"; None without an interval."""
    p_first: float | None = None
    """Probability that it is the best of its group's models with enough battles; None if that cannot be said."""
    styled: float | None = None
    """Rating at equal style of the two answers, with its interval; None without style control."""
    styled_low: float | None = None
    styled_high: float | None = None
    styled_rank: int | None = None


@dataclass(frozen=True)
class GroupRatings:
    """The battles of one value of ``--by``: their outcomes A, B, tie, and the models' ratings in them."""

    name: str
    battles: int
    prompts: int
    outcomes: tuple[int, int, int]
    ratings: Ratings | None
    headline: tuple[str, ...]
    """What its votes say, in sentences, the most important first."""


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
    groups: int
    """Number of groups; ratings are comparable within a group only."""
    bounded: bool
    """Whether every strength has a maximum likelihood without the prior."""
    left_out: int
    """Models not rated: they have fewer battles than the :data:`MAX_MODELS` rated ones."""
    prompts: int
    """Different prompts of the rated battles."""
    intervals: str
    """How the intervals were computed, in a few words."""
    style: StyleEffects | None
    """None where no two answers differ in style, or it is not known."""

    def of_group(self, group: int) -> tuple[ModelRating, ...]:
        """The models of one group, best first."""
        return tuple(model for model in self.models if model.group == group)

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
        elif not self.bounded:
            cautions.append("Some models never lost to any of the others: the prior sets the distance between them.")
        if self.left_out:
            cautions.append(
                f"Only the {len(self.models)} models with most battles are rated, {self.left_out:,} are not."
            )
        if self.style and self.style.left_out:
            cautions.append(f"Style control leaves out {', '.join(self.style.left_out)}.")
        return cautions


@dataclass(frozen=True)
class Estimate:
    """Strengths of m models, and all that intervals and ranks are computed from."""

    votes: Votes
    pairs: PairwiseCounts
    fitted: DavidsonFit
    strengths: Array  # [m], raw, 0 is the mean of the group's models with enough battles
    covariance: Array  # [m, m], of `strengths`
    styled: StyleFit | None  # the same, at equal style
    style: StyleEffects | None
    groups: NDArray[np.intp]  # [m], 0 has most battles
    battles: NDArray[np.int64]  # [m]
    prompts: NDArray[np.int64]  # [m], different ones
    critical: Array  # [m], standard errors in half a 95 % interval
    few: NDArray[np.bool_]  # [m], too few battles or prompts for an interval
    one_sided: NDArray[np.bool_]  # [m], never lost or never won
    no_interval: tuple[str | None, ...]  # [m], why there is no interval, None where there is one
    bounded: bool  # whether every strength has a maximum likelihood
    left_out: int

    @property
    def has_interval(self) -> NDArray[np.bool_]:
        """Whether the votes say how sure each strength is; shape ``[m]``."""
        return np.array([reason is None for reason in self.no_interval])

    def difference(self, i: int, j: int, *, styled: bool = False) -> tuple[float, float | None]:
        """How much stronger i is than j, in log-odds, and half the 95 % interval if both have one."""
        source = self.styled if styled and self.styled else self
        covariance, gap = source.covariance, float(source.strengths[i] - source.strengths[j])
        if self.no_interval[i] or self.no_interval[j]:
            return gap, None
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        return gap, float(max(self.critical[i], self.critical[j]) * np.sqrt(max(variance, 0)))


def rate(votes: Votes, *, seed: int = 0) -> Ratings | None:
    """Ratings with 95 % intervals, ranges of ranks and probabilities of being best; None when no two models met.

    Parameters
    ----------
    votes:
        Battles. Of more than :data:`MAX_MODELS` models, those with most battles are rated.
    seed:
        Of the draws for ranks and for the probability of being best.
    """
    estimated = estimate(votes)
    return None if estimated is None else summarise(estimated, seed=seed)


def estimate(votes: Votes) -> Estimate | None:
    """Fit the votes; None when no two models met. The arguments are those of :func:`rate`."""
    votes, left_out = _busiest(votes)
    if not len(votes.labels):
        return None
    pairs = votes.pairs()
    rows = votes.rows()
    fitted = fit(pairs)
    if not fitted.converged:
        raise PrefcliError("the fit of the ratings does not converge")
    covariance = sandwich(rows, fitted, votes.prompts)
    prompts, effective_prompts = _prompts_per_model(votes)
    battles = pairs.per_model(pairs.battles, pairs.battles)
    groups, main = connectivity(pairs, battles)
    only_upwards = _no_cycle(pairs)
    main &= not only_upwards
    wins, losses = pairs.per_model(*pairs.counts.T[[A, B]]), pairs.per_model(*pairs.counts.T[[B, A]])
    ties = pairs.per_model(pairs.counts[:, TIE], pairs.counts[:, TIE])
    few = (battles < MIN_BATTLES) | (prompts < MIN_PROMPTS)
    if not only_upwards:  # a tie bounds the strength, as long as the parameter of ties has a maximum
        never_lost, never_won = losses + ties == 0, wins + ties == 0
    else:
        never_lost, never_won = losses == 0, wins == 0
    reasons = [  # the first that applies is the one that counts
        (battles < MIN_BATTLES, f"fewer than {MIN_BATTLES} battles"),
        (prompts < MIN_PROMPTS, f"fewer than {MIN_PROMPTS} prompts"),
        (wins + losses == 0, "only ties"),
        (never_lost, "never lost"),
        (never_won, "never won"),
        (~main, "set by the prior"),
    ]
    styled, style = (None, None) if votes.style is None else fit_styled(rows, votes.style, votes.prompts, fitted)
    centring = _centring(groups, main & ~few)
    if styled:
        styled = StyleFit(centring @ styled.strengths, centring @ styled.covariance @ centring.T)
    return Estimate(
        votes=votes,
        pairs=pairs,
        fitted=fitted,
        strengths=centring @ fitted.strengths,
        covariance=centring @ covariance[: len(battles), : len(battles)] @ centring.T,
        styled=styled,
        style=style,
        groups=groups,
        battles=battles.astype(np.int64),
        prompts=prompts,
        critical=np.array([expanded_quantile(Z95, units) for units in effective_prompts.tolist()]),
        few=few,
        one_sided=never_lost | never_won,
        no_interval=tuple(
            next((reason for applies, reason in reasons if applies[i]), None) for i in range(len(battles))
        ),
        bounded=bool(main.all()),
        left_out=left_out,
    )


def summarise(estimated: Estimate, *, seed: int = 0) -> Ratings:
    """The ratings as a list; see :func:`rate`."""
    has_interval, critical = estimated.has_interval, estimated.critical
    rank_low, rank_high, p_first = _ranks(estimated, seed)
    order, rank = _order(estimated, estimated.strengths)
    styled = estimated.styled
    styled_rank = _order(estimated, styled.strengths)[1] if styled else rank

    def interval(strengths: Array, covariance: Array, i: int) -> tuple[float | None, float | None]:
        if not has_interval[i]:
            return None, None
        half_width = critical[i] * np.sqrt(covariance[i, i])
        return elo(strengths[i] - half_width), elo(strengths[i] + half_width)

    models = []
    for i in order.tolist():
        low, high = interval(estimated.strengths, estimated.covariance, i)
        styled_low, styled_high = interval(styled.strengths, styled.covariance, i) if styled else (None, None)
        models.append(
            ModelRating(
                model=estimated.votes.models[i],
                rating=elo(estimated.strengths[i]),
                low=low,
                high=high,
                battles=int(estimated.battles[i]),
                prompts=int(estimated.prompts[i]),
                group=int(estimated.groups[i]),
                one_sided=bool(estimated.one_sided[i]),
                no_interval=estimated.no_interval[i],
                rank=int(rank[i]),
                rank_low=int(rank_low[i]) if has_interval[i] else None,
                rank_high=int(rank_high[i]) if has_interval[i] else None,
                p_first=None if np.isnan(p_first[i]) else float(p_first[i]),
                styled=elo(styled.strengths[i]) if styled else None,
                styled_low=styled_low,
                styled_high=styled_high,
                styled_rank=int(styled_rank[i]) if styled else None,
            )
        )
    prompts = int(estimated.votes.prompt_codes()[-1]) + 1
    return Ratings(
        models=tuple(models),
        tie_parameter=float(np.exp(estimated.fitted.log_nu)),
        groups=len(np.unique(estimated.groups)),
        bounded=estimated.bounded,
        left_out=estimated.left_out,
        prompts=prompts,
        intervals=f"95 %, robust, {plural(prompts, 'prompt')}",
        style=estimated.style,
    )


def beats(estimated: Estimate) -> Beats:
    """P(A beats B) between the :data:`MAX_BEATS` best models."""
    names = np.array(estimated.votes.models)
    shown = _order(estimated, estimated.strengths)[0][:MAX_BEATS].tolist()
    met = np.zeros((len(names), len(names)), dtype=np.int64)
    met[estimated.pairs.first, estimated.pairs.second] = estimated.pairs.battles
    met += met.T

    def cell(i: int, j: int) -> tuple[float | None, float | None, float | None]:
        if i == j or estimated.groups[i] != estimated.groups[j]:
            return None, None, None
        gap, half_width = estimated.difference(i, j)
        if half_width is None:
            return logistic(gap), None, None
        return logistic(gap), logistic(gap - half_width), logistic(gap + half_width)

    cells = [[cell(i, j) for j in shown] for i in shown]
    probability, low, high = (tuple(tuple(cell[k] for cell in row) for row in cells) for k in range(3))
    battles = tuple(map(tuple, met[np.ix_(shown, shown)].tolist()))
    return Beats(tuple(names[shown].tolist()), probability, low, high, battles)


def elo(strength: float) -> float:
    """Log-odds as points, the mean model at :data:`ELO_CENTRE`."""
    return float(ELO_CENTRE + ELO_PER_LOG_ODDS * strength)


def logistic(log_odds: float) -> float:
    """Log-odds as a probability."""
    return float(1 / (1 + np.exp(-np.clip(log_odds, -700, 700))))


def _order(estimated: Estimate, strengths: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Models group by group, best first, those of too few battles last; and each model's rank in its group."""
    names = np.array(estimated.votes.models)
    order = np.lexsort((names, -strengths, estimated.few, estimated.groups))
    sizes = np.bincount(estimated.groups)
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.concatenate([np.arange(1, size + 1) for size in sizes])
    return order, rank


def _ranks(estimated: Estimate, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Lowest and highest rank of each model at 95 %, and the probability that it is the best; shapes ``[m]``.

    A model's rank is at least one more than the number of models that are significantly better. The limits of its
    differences hold for all of them together at 95 %: their largest standardised error is drawn from the normal
    distribution of the strengths (M. Mogstad, J. P. Romano, A. M. Shaikh and D. Wilhelm, "Inference for ranks with
    applications to mobility across neighbourhoods and academic achievement across countries", Review of Economic
    Studies 91, 2024). Chatbot Arena takes overlapping intervals instead.
    """
    size = len(estimated.strengths)
    low, high, first = np.ones(size, dtype=np.intp), np.ones(size, dtype=np.intp), np.full(size, np.nan)
    has_interval, random = estimated.has_interval, np.random.default_rng(seed)
    for group in range(int(estimated.groups.max()) + 1):
        enough = (estimated.groups == group) & ~estimated.few
        inside = np.flatnonzero(enough & has_interval)
        if not len(inside):
            continue
        covariance, strengths = estimated.covariance[np.ix_(inside, inside)], estimated.strengths[inside]
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
        errors = random.standard_normal((FIRST_DRAWS, len(inside)), dtype=np.float32) @ root.T
        variance = np.diag(covariance)
        of_difference = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 1e-12))
        small_sample = np.maximum.outer(*[estimated.critical[inside]] * 2) / Z95
        for k, i in enumerate(inside):
            error = of_difference[k] * small_sample[k]
            scale = (1 / of_difference[k]).astype(np.float32)
            largest = (np.abs(errors[:RANK_DRAWS, k, None] - errors[:RANK_DRAWS]) * scale).max(axis=1)
            limit = np.quantile(largest, 0.95) * error
            gap = strengths - strengths[k]
            low[i] = 1 + (gap > limit).sum()
            high[i] = enough.sum() - (gap < -limit).sum()
        if len(inside) == enough.sum():  # else one that never lost may be the best
            best = (strengths + errors).argmax(axis=1)
            first[inside] = np.bincount(best, minlength=len(inside)) / FIRST_DRAWS
    return low, high, first


def _centring(groups: NDArray[np.intp], counted: NDArray[np.bool_]) -> Array:
    """The matrix that subtracts from each strength the mean of its group's counted models, or of all if none is."""
    centring = np.eye(len(groups))
    for group in np.unique(groups):
        inside = groups == group
        mean = inside & counted if (inside & counted).any() else inside
        centring[np.ix_(inside, mean)] -= 1 / mean.sum()
    return centring


def _prompts_per_model(votes: Votes) -> tuple[NDArray[np.int64], Array]:
    """How many different prompts each model has, and how many of equal size say as much (Kish); shapes ``[m]``."""
    size = len(votes.models)
    prompt = votes.prompt_codes() * size
    cells, battles = np.unique(np.concatenate([prompt + votes.first, prompt + votes.second]), return_counts=True)
    model = cells % size
    total, square = np.bincount(model, battles, size), np.bincount(model, battles.astype(np.float64) ** 2, size)
    return np.bincount(model, minlength=size), total**2 / square


def _busiest(votes: Votes) -> tuple[Votes, int]:
    """Only models that met another, the :data:`MAX_MODELS` with most battles; and how many of them are left out."""
    size = len(votes.models)
    battles = np.bincount(votes.first, minlength=size) + np.bincount(votes.second, minlength=size)
    ranked = np.lexsort((np.array(votes.models), -battles))[: int((battles > 0).sum())]
    rated = np.sort(ranked[:MAX_MODELS])
    position = np.full(size, -1)
    position[rated] = np.arange(len(rated))
    votes = votes.where((position[votes.first] >= 0) & (position[votes.second] >= 0))
    models = tuple(votes.models[i] for i in rated)
    first, second = position[votes.first], position[votes.second]
    return Votes(models, first, second, votes.labels, votes.prompts, votes.style), len(ranked) - len(rated)


def _no_cycle(pairs: PairwiseCounts) -> bool:
    """Whether the graph of who beat whom has no cycle.

    Then the likelihood grows without end with the strengths and the parameter of ties, even if every model has ties.
    """
    size = len(pairs.models)
    wins = np.zeros((size, size), dtype=np.float32)
    wins[pairs.first, pairs.second] = pairs.counts[:, A] > 0
    wins[pairs.second, pairs.first] = pairs.counts[:, B] > 0
    return not closure(wins).diagonal().any()

"""What the votes say, in sentences: the answer first, then how sure it is, and how many votes would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prefcli.bootstrap import Z95
from prefcli.exploration.ratings import Estimate, ModelRating, Ratings, logistic
from prefcli.exploration.shares import Share
from prefcli.metrics import plural
from prefcli.outcomes import TIE, A, B

Z80 = 0.8416212335729143
"""The 80 % quantile of the standard normal distribution: the power that advice about more votes aims at."""
MIN_PREFERENCE = 0.52
"""The smallest preference of decided votes that is worth telling from an even one."""
MAX_GROUPS = 3
"""Groups of models whose leader is named."""
MAX_GROWTH = 100
"""More times as many votes are not advised: then the models are as good as equal."""
SIDE_SHARE = 0.75
"""When one of two models is the first answer in a larger share of battles, a position bias looks like a preference."""


@dataclass(frozen=True)
class Battles:
    """What a headline says of all battles, whoever answered."""

    battles: int
    outcomes: tuple[int, int, int]
    position: Share | None
    """How often the first answer won, of decided battles."""
    longer: Share | None
    """How often the longer answer won, of decided battles."""


def headline(battles: Battles, estimated: Estimate | None, ratings: Ratings | None) -> tuple[str, ...]:
    """Sentences, the most important first.

    Parameters
    ----------
    battles:
        Of all battles.
    estimated, ratings:
        The models; None if no two of them met.
    """
    labelled = sum(battles.outcomes)
    if not labelled:
        return (f"None of {plural(battles.battles, 'battle')} has an outcome.",)
    if estimated is None or ratings is None:
        return _without_models(battles)
    sentences = []
    if ratings.groups > 1:
        sentences.append(
            f"The {len(ratings.models):,} models form {ratings.groups} groups that never met: each has its own list."
        )
    for group in range(min(ratings.groups, MAX_GROUPS)):
        models = ratings.of_group(group)
        sentences += _pair(estimated, models) if len(models) == 2 else _leader(estimated, models)
    if ratings.groups > MAX_GROUPS:
        sentences.append(f"The {MAX_GROUPS} groups with most votes are named here.")
    unnamed = labelled - len(estimated.votes.labels)
    if unnamed and not ratings.left_out:
        sentences.append(f"Left out, as they do not name two different models: {unnamed:,} of {labelled:,} votes.")
    return tuple(sentences)


def votes_needed(preference: float, design_effect: float = 1.0) -> float:
    """Decided votes that tell a preference from an even one at 95 %, four times in five.

    The two-sided test of the log-odds: ``(1.96 + 0.84)^2 / (p (1 - p) logit(p)^2)``, times the design effect
    (L. Kish, "Survey sampling", 1965) because several votes on one prompt say less than as many prompts.

    Parameters
    ----------
    preference:
        True share of decided votes, not 0.5.
    design_effect:
        Variance of the share over that of as many independent votes.
    """
    log_odds = math.log(preference / (1 - preference))
    return (Z95 + Z80) ** 2 * design_effect / (preference * (1 - preference) * log_odds**2)


def design_effect(estimated: Estimate, i: int, j: int) -> float:
    """The variance of the preference between two models over that of independent votes, where only these two met."""
    decided = (estimated.votes.labels != TIE) & np.isin(estimated.votes.first, (i, j))
    p = logistic(float(estimated.strengths[i] - estimated.strengths[j]))
    covariance = estimated.covariance
    variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    return float(variance * decided.sum() * p * (1 - p))


def _pair(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[str]:
    """Two models: which one is preferred, whether that is due to style, and how many votes would tell."""
    x, y = (model.model for model in models)
    i, j = _positions(estimated, models)
    votes = estimated.votes.where(np.isin(estimated.votes.first, (i, j)))
    decided = int((votes.labels != TIE).sum())
    ties = f"ties {1 - decided / len(votes.labels):.0%}"
    gap, half_width = estimated.difference(i, j)
    if half_width is None:
        won = int(((votes.labels == A) & (votes.first == i) | (votes.labels == B) & (votes.second == i)).sum())
        reason = models[0].no_interval or models[1].no_interval
        return [f"{x} won {won:,} of {plural(decided, 'decided vote')} against {y}, {ties}; no interval: {reason}."]
    seen = f"{_interval(gap, half_width)} of {plural(decided, 'decided vote')}, {ties}"
    preferred = gap > half_width
    sentences = [
        f"{x} is preferred to {y}: {seen}."
        if preferred
        else f"No clear preference between {x} and {y}: {x} has {seen}.",
        *_styled_pair(estimated, i, j, preferred),
        _power(design_effect(estimated, i, j), decided, len(votes.labels)),
    ]
    side = float((votes.first == i).mean())
    if not 1 - SIDE_SHARE <= side <= SIDE_SHARE:
        sentences.append(f"{x} was shown first in {side:.0%} of them, so a bias for one side would look the same.")
    return sentences


def _styled_pair(estimated: Estimate, i: int, j: int, preferred: bool) -> list[str]:
    """Whether the preference for i over j holds at equal style."""
    if estimated.styled is None:
        return []
    gap, half_width = estimated.difference(i, j, styled=True)
    assert half_width is not None
    style = f"equal {_style_names(estimated)}"
    if abs(gap) <= half_width:
        words = f"But at {style} there is no clear preference" if preferred else f"At {style} there is none either"
        return [f"{words}: {_interval(gap, half_width)}."]
    if gap > 0 and preferred:
        return [f"That holds at {style}: {_interval(gap, half_width)}."]
    winner, loser = (estimated.votes.models[k] for k in ((i, j) if gap > 0 else (j, i)))
    return [f"But at {style} {winner} is preferred to {loser}: {_interval(abs(gap), half_width)}."]


def _power(effect: float, decided: int, votes: int) -> str:
    """How many more votes would tell :data:`MIN_PREFERENCE` from an even preference."""
    more = _about(votes_needed(MIN_PREFERENCE, effect) * votes / decided - votes)
    purpose = f"tell a preference of {MIN_PREFERENCE:.0%} from an even one (power 80%)"
    return f"About {more:,} more such votes would {purpose}." if more else f"These are enough votes to {purpose}."


def _leader(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[str]:
    """Many models: who leads, how surely, and whether that is due to style."""
    leader, runner_up = models[:2]
    i, j = _positions(estimated, models[:2])
    if estimated.few[i]:
        return [
            f"None of {len(models):,} models has enough votes to say who leads; "
            f"{leader.model}, rated highest, has {leader.no_interval}."
        ]
    if leader.no_interval:
        return [
            f"{leader.model} is rated highest of {len(models):,} models, "
            f"but how far it leads cannot be said: {leader.no_interval}."
        ]
    ranks = rank_range(leader)
    probability = "" if leader.p_first is None else f", the best with a probability of {_probability(leader.p_first)}"
    sentences = [
        f"{leader.model} leads {len(models):,} models: rating {leader.rating:.0f} "
        f"({leader.low:.0f} to {leader.high:.0f}), rank {ranks}{probability}."
    ]
    gap, half_width = estimated.difference(i, j)
    if half_width is not None:
        votes = f"{_interval(gap, half_width)} of decided votes"
        if gap > half_width:
            sentences.append(f"It is preferred to {runner_up.model}, the next, in {votes}.")
        else:
            more = _more(len(estimated.votes.labels), gap, half_width)
            sentences.append(f"Its lead over {runner_up.model}, the next, is not clear: preferred in {votes}{more}.")
    return sentences + _styled_leader(estimated, models)


def _more(votes: int, gap: float, half_width: float) -> str:
    """How many more votes would tell two models apart that differ as much as it seems."""
    growth = ((Z95 + Z80) * half_width / Z95 / gap) ** 2 if gap else math.inf
    if growth > MAX_GROWTH:
        return ""
    return f"; about {_about(votes * (growth - 1)):,} more votes would tell, if they differ as much as that"


def _styled_leader(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[str]:
    """Who leads at equal style, and which model's rank it changes most."""
    if estimated.styled is None:
        return []
    first = next(model for model in models if model.styled_rank == 1)
    moved = max(models, key=lambda model: abs(model.rank - (model.styled_rank or 0)))
    who = "it leads too" if first is models[0] else f"{first.model} leads"
    most = f"; {moved.model} moves most, from rank {moved.rank} to {moved.styled_rank}"
    return [f"At equal {_style_names(estimated)} {who}{most if moved.rank != moved.styled_rank else ''}."]


def _without_models(battles: Battles) -> tuple[str, ...]:
    """What position and length say, where nothing says who answered."""
    sentences = []
    if first := battles.position:
        side = "first" if first.value > 0.5 else "second"
        biased = (
            f"votes favour the {side} position" if not first.low <= 0.5 <= first.high else "no sign of a position bias"
        )
        sentences.append(f"The answer shown first won {_of_votes(first)}: {biased}.")
    if battles.longer:
        sentences.append(f"The longer answer won {_of_votes(battles.longer)}.")
    tied, labelled = battles.outcomes[TIE], sum(battles.outcomes)
    sentences.append(f"Ties are {tied / labelled:.0%} of {plural(labelled, 'vote')}.")
    sentences.append("No battle names two different models, so none is ranked.")
    return tuple(sentences)


def rank_range(model: ModelRating) -> str:
    """The ranks that the votes allow: ``1``, ``1 to 3``; empty without an interval."""
    if model.rank_low is None:
        return ""
    return f"{model.rank_low}" if model.rank_low == model.rank_high else f"{model.rank_low} to {model.rank_high}"


def _positions(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[int]:
    return [estimated.votes.models.index(model.model) for model in models]


def _style_names(estimated: Estimate) -> str:
    """The properties that are held equal: ``length``, ``markup`` or ``length and markup``."""
    names = [effect.what for effect in estimated.style.effects] if estimated.style else []
    return " and ".join(["length"] * ("length" in names) + ["markup"] * (names != ["length"]))


def _interval(gap: float, half_width: float) -> str:
    """A preference in log-odds with its interval, in percent."""
    return f"{logistic(gap):.1%} ({logistic(gap - half_width):.1%} to {logistic(gap + half_width):.1%})"


def _of_votes(share: Share) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}) of {plural(share.n, 'decided vote')}"


def _probability(p: float) -> str:
    return "over 99%" if p > 0.99 else f"{p:.0%}"


def _about(votes: float) -> int:
    """Rounded to two digits; 0 for none."""
    if votes < 1:
        return 0
    unit = 10 ** max(math.floor(math.log10(votes)) - 1, 0)
    return int(round(votes / unit) * unit)

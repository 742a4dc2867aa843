"""What the votes say, in sentences: the answer first, then how sure it is, and how many votes would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prefcli.eda.ratings import Estimate, ModelRating, Ratings, logistic
from prefcli.eda.shares import Share
from prefcli.metrics import Z95, plural
from prefcli.outcomes import TIE

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
            f"The {len(ratings.models):,} models form {ratings.groups} groups that never met, so each has its own list."
        )
    for group in range(min(ratings.groups, MAX_GROUPS)):
        sentences += _of_group(estimated, ratings, group)
    unnamed = labelled - len(estimated.votes.labels) - 0
    if unnamed and not ratings.left_out:
        sentences.append(f"{plural(unnamed, 'vote')} of {labelled:,} do not name two different models, and are left out.")
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


def _of_group(estimated: Estimate, ratings: Ratings, group: int) -> list[str]:
    models = ratings.of_group(group)
    return _pair(estimated, models) if len(models) == 2 else _leader(estimated, models)


def _pair(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[str]:
    """Two models: which one is preferred, whether that is due to style, and how many votes would tell."""
    i, j = (estimated.votes.models.index(model.model) for model in models)
    x, y = (model.model for model in models)
    votes = estimated.votes.where(np.isin(estimated.votes.first, (i, j)))
    decided, ties = int((votes.labels != TIE).sum()), int((votes.labels == TIE).sum())
    first_won = np.where(votes.first == i, votes.labels == 0, votes.labels == 1)
    share = f"{x} won {int(first_won.sum()):,} of {plural(decided, 'decided vote')}, ties {ties / (decided + ties):.0%}"
    gap, half_width = estimated.difference(i, j)
    if half_width is None:
        reason = models[0].no_interval or models[1].no_interval
        return [f"{share}: how sure that is cannot be said ({reason})."]
    seen = _interval(gap, half_width)
    if gap > half_width:
        sentences = [f"{x} is preferred to {y}: {seen} of {plural(decided, 'decided vote')}, ties {_share(ties, votes.labels)}."]
    else:
        sentences = [
            f"{x} and {y} are not told apart: {x} won {seen} of {plural(decided, 'decided vote')}, "
            f"ties {_share(ties, votes.labels)}."
        ]
    sentences += _styled_pair(estimated, i, j, gap > half_width)
    sentences += _power(estimated, i, j, decided, len(votes.labels))
    side = float((votes.first == i).mean())
    if not 1 - SIDE_SHARE <= side <= SIDE_SHARE:
        sentences.append(
            f"{x} was the first answer in {side:.0%} of these battles: a bias for one side would look like a preference."
        )
    return sentences


def _styled_pair(estimated: Estimate, i: int, j: int, preferred: bool) -> list[str]:
    if estimated.styled is None:
        return []
    names, strengths, covariance = estimated.votes.models, estimated.styled.strengths, estimated.styled.covariance
    gap = float(strengths[i] - strengths[j])
    error = math.sqrt(max(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j], 0))
    half_width = float(max(estimated.critical[i], estimated.critical[j])) * error
    seen = _interval(gap, half_width)
    style = _style_names(estimated)
    if abs(gap) <= half_width:
        return [f"{'But at' if preferred else 'At'} equal {style} they are {'' if preferred else 'also '}not told apart: {seen}."]
    if gap > 0 and preferred:
        return [f"That holds at equal {style}: {seen}."]
    winner, loser = (names[i], names[j]) if gap > 0 else (names[j], names[i])
    return [f"But at equal {style} {winner} is preferred to {loser}: {_interval(abs(gap), half_width)}."]


def _power(estimated: Estimate, i: int, j: int, decided: int, votes: int) -> list[str]:
    needed = votes_needed(MIN_PREFERENCE, design_effect(estimated, i, j)) * votes / decided
    more = _about(needed - votes)
    if more <= 0:
        return [f"So many votes are enough to tell a preference of {MIN_PREFERENCE:.0%} from an even one (power 80 %)."]
    return [
        f"About {more:,} more such votes would tell a preference of {MIN_PREFERENCE:.0%} from an even one (power 80 %)."
    ]


def _leader(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[str]:
    """Many models: who leads, how surely, and whether that is due to style."""
    leader, runner_up = models[:2]
    i, j = (estimated.votes.models.index(model.model) for model in (leader, runner_up))
    count = f"{len(models):,} models"
    if estimated.few[i]:
        return [f"No model of {count} has enough battles to say who leads: {leader.model} has {leader.no_interval}."]
    if leader.no_interval:
        return [f"{leader.model} is rated highest of {count}, but how far it leads cannot be said: {leader.no_interval}."]
    sure = [f"rank {leader.rank_low}" + (f" to {leader.rank_high}" if leader.rank_high != leader.rank_low else "")]
    if leader.p_first is not None:
        sure.insert(0, f"the best with a probability of {_probability(leader.p_first)}")
    sentences = [
        f"{leader.model} leads {count}: rating {leader.rating:.0f} ({leader.low:.0f} to {leader.high:.0f}), {', '.join(sure)}."
    ]
    gap, half_width = estimated.difference(i, j)
    if half_width is not None:
        seen = _interval(gap, half_width)
        if gap > half_width:
            sentences.append(f"It is preferred to {runner_up.model}, the next, in {seen} of decided votes.")
        else:
            sentences.append(f"It is not told apart from {runner_up.model}: preferred in {seen} of decided votes{_more(estimated, gap, half_width)}.")
    return sentences + _styled_leader(estimated, models)


def _more(estimated: Estimate, gap: float, half_width: float) -> str:
    """How many more votes would tell two models apart that differ as much as it seems."""
    votes = len(estimated.votes.labels)
    growth = ((Z95 + Z80) * half_width / Z95 / gap) ** 2 if gap else math.inf
    if growth > MAX_GROWTH:
        return ""
    return f"; about {_about(votes * (growth - 1)):,} more votes would do if that is the difference"


def _styled_leader(estimated: Estimate, models: tuple[ModelRating, ...]) -> list[str]:
    leader = models[0]
    if estimated.styled is None:
        return []
    style = _style_names(estimated)
    first = next(model for model in models if model.styled_rank == 1)
    moved = max(models, key=lambda model: abs(model.rank - (model.styled_rank or 0)))
    told = "it leads too" if first is leader else f"{first.model} leads"
    furthest = (
        f"; {moved.model} moves most, from rank {moved.rank} to {moved.styled_rank}"
        if moved.rank != moved.styled_rank
        else ""
    )
    return [f"At equal {style} {told}{furthest}."]


def _without_models(battles: Battles) -> tuple[str, ...]:
    sentences = []
    if battles.position:
        a, decided = battles.position, battles.position.n
        biased = not a.low <= 0.5 <= a.high
        side = "first" if a.value > 0.5 else "second"
        sentences.append(
            f"The first answer won {a.value:.1%} of {plural(decided, 'decided vote')} ({a.low:.1%} to {a.high:.1%}): "
            + (f"voters favour the {side} position." if biased else "no sign of a position bias.")
        )
    if battles.longer:
        share = battles.longer
        sentences.append(f"The longer answer won {share.value:.1%} ({share.low:.1%} to {share.high:.1%}).")
    tied = battles.outcomes[TIE]
    labelled = sum(battles.outcomes)
    sentences.append(f"{plural(tied, 'vote')} of {labelled:,} ({tied / labelled:.0%}) {'is a tie' if tied == 1 else 'are ties'}.")
    sentences.append("No battle names two different models, so none can be ranked.")
    return tuple(sentences)


def _style_names(estimated: Estimate) -> str:
    """The properties that are held equal: ``length``, or ``length and markup``."""
    names = [effect.what for effect in estimated.style.effects] if estimated.style else []
    if "length" not in names:
        return "markup"
    return "length and markup" if len(names) > 1 else "length"


def _interval(gap: float, half_width: float) -> str:
    """A preference in log-odds with its interval, in percent."""
    return f"{logistic(gap):.1%} ({logistic(gap - half_width):.1%} to {logistic(gap + half_width):.1%})"


def _share(part: int, labels: np.ndarray) -> str:
    return f"{part / len(labels):.0%}"


def _probability(p: float) -> str:
    return "over 99%" if p > 0.99 else f"{p:.0%}"


def _about(votes: float) -> int:
    """Rounded to two digits."""
    if votes < 1:
        return 0
    digits = 10 ** max(math.floor(math.log10(votes)) - 1, 0)
    return int(round(votes / digits) * digits)

"""What people reward: how outcomes depend on length, markup and the number of turns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.battles import outcome_counts
from prefcli.bootstrap import Z95
from prefcli.exploration.measures import MARKUP, BattleStats
from prefcli.exploration.shares import Share, clustered_share
from prefcli.outcomes import TIE, A, B

LENGTH_RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, np.inf)
"""Bins of how many times longer the longer answer is."""
MAX_TURNS = 5
MIN_DIFFERING = 10
"""A property in which fewer decided battles differ has no odds."""
MAX_CONDITION = 1e6
"""Of the columns of the regression, each of length 1: above it they are taken for dependent."""


@dataclass(frozen=True)
class LengthBin:
    """Battles whose longer answer is ``low`` to ``high`` times as long as the shorter one."""

    low: float
    high: float
    battles: int
    longer_won: float
    tied: float
    shorter_won: float


@dataclass(frozen=True)
class Effect:
    """How a difference in one property goes with winning."""

    what: str
    wins: Share
    """How often the answer with more of it won, of the decided battles in which the two differ."""
    odds: float | None
    """Odds ratio of winning for one standard deviation more of it, the other properties held equal, if estimable."""
    odds_ci: tuple[float, float] | None
    left_out: str = ""
    """Why there are no odds; else empty."""


@dataclass(frozen=True)
class TurnsBin:
    """Battles with that many turns (the last bin: that many or more)."""

    turns: int
    battles: int
    a_won: float
    b_won: float
    tied: float


def outcomes_by_length(stats: BattleStats) -> tuple[LengthBin, ...]:
    """How often the longer answer won, by how many times longer it is (characters; an empty answer counts as one)."""
    lengths = np.maximum(stats.characters[:, 1:], 1)
    ratio = lengths.max(axis=1) / lengths.min(axis=1)
    longer = np.where(lengths[:, 0] > lengths[:, 1], A, B)
    bins = []
    for low, high in itertools.pairwise(LENGTH_RATIOS):
        inside = (stats.label >= 0) & (ratio >= low) & (ratio < high) & (ratio > 1)
        n = int(inside.sum())
        if n:
            won = int((stats.label[inside] == longer[inside]).sum())
            tied = int((stats.label[inside] == TIE).sum())
            bins.append(LengthBin(low, float(high), n, won / n, tied / n, (n - won - tied) / n))
    return tuple(bins)


def longer_won(stats: BattleStats) -> Share | None:
    """How often the longer answer won, of the decided battles whose answers differ in characters; None without any."""
    difference = stats.characters[:, 1] - stats.characters[:, 2]
    counted = ((stats.label == A) | (stats.label == B)) & (difference != 0)
    if not counted.any():
        return None
    return clustered_share((stats.label[counted] == A) == (difference[counted] > 0), stats.prompt_key[counted])


def property_effects(stats: BattleStats) -> tuple[Effect, ...]:
    """Win rates and odds ratios of the answer with more length, lists, headings, code, bold or tables.

    The odds come from one logistic regression of "A won" on the standardised differences A - B of all properties
    (of logarithms: ``log(1 + count)``), on decided battles, with an intercept for the position; intervals are Wald's,
    ``exp(b +- 1.96 se)``. Properties that the battles cannot tell anything about are left out of it, the others stay.
    Chatbot Arena controls its ratings for style in this way (Li, Angelopoulos and Chiang,
    "Does style matter?", LMSYS blog 2024).
    """
    decided = (stats.label == A) | (stats.label == B)
    a_won = stats.label[decided] == A
    counts = {"length": stats.characters[decided, 1:]}
    counts |= {name: stats.markup[decided, i] for i, name in enumerate(MARKUP)}
    differences = {name: np.log1p(pair[:, 0]) - np.log1p(pair[:, 1]) for name, pair in counts.items()}
    odds_of, left_out = _joint_odds(differences, a_won)
    effects = []
    for name, values in differences.items():
        differs = values != 0
        if differs.any():
            wins = clustered_share(a_won[differs] == (values[differs] > 0), stats.prompt_key[decided][differs])
            odds, odds_ci = odds_of.get(name, (None, None))
            effects.append(Effect(name, wins, odds, odds_ci, left_out.get(name, "")))
    return tuple(effects)


def describe_left_out(effects: Sequence[Effect]) -> str:
    """Which properties have no odds and why, as a sentence; empty if all have."""
    reasons = [f"{effect.what} ({effect.left_out})" for effect in effects if effect.left_out]
    return f"Without odds: {', '.join(reasons)}." if reasons else ""


_Odds = tuple[float, tuple[float, float]]


def _joint_odds(
    differences: Mapping[str, NDArray[np.float64]], won: NDArray[np.bool_]
) -> tuple[dict[str, _Odds], dict[str, str]]:
    """Odds of all properties that one regression can tell, and why the others are left out of it.

    They are added one after the other, those first in which most battles differ.
    """
    odds: dict[str, _Odds] = {}
    left_out: dict[str, str] = {}
    for name in sorted(differences, key=lambda name: -np.count_nonzero(differences[name])):
        columns = np.stack([differences[other] for other in (*odds, name)], axis=1)
        if np.count_nonzero(columns[:, -1]) < MIN_DIFFERING:
            left_out[name] = f"fewer than {MIN_DIFFERING} battles differ"
        elif len(won) < 10 * (columns.shape[1] + 1):
            left_out[name] = "too few battles for one more"
        elif not _is_independent(columns):
            left_out[name] = "the others determine it"
        elif (ratios := _odds_ratios(columns, won)) is None:
            left_out[name] = "it decides the outcome"
        else:
            odds = dict(zip((*odds, name), ratios, strict=True))
    return odds, left_out


def _is_independent(columns: NDArray[np.float64]) -> bool:
    """Whether neither an intercept nor a sum of multiples of the others gives one of the columns."""
    x = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    return bool(np.linalg.cond(x / np.linalg.norm(x, axis=0)) < MAX_CONDITION)


def _odds_ratios(x: NDArray[np.float64], won: NDArray[np.bool_]) -> list[_Odds] | None:
    """Odds ratios per standard deviation with Wald intervals, by Newton's method; None if they are not finite.

    A. Agresti, "Categorical Data Analysis" (2013), section 5.5.
    """
    x = np.concatenate([np.ones((len(x), 1)), x / x.std(axis=0)], axis=1)
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        information = (x * (p * (1 - p))[:, None]).T @ x
        if np.linalg.cond(information) > 1e12:
            return None
        step = np.linalg.solve(information, x.T @ (won - p))
        beta += step
        if np.abs(step).max() < 1e-9:
            break
    else:
        return None
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    low, odds, high = (np.exp(beta + z * error)[1:].tolist() for z in (-Z95, 0, Z95))
    return list(zip(odds, zip(low, high, strict=True), strict=True))


def outcomes_by_turns(stats: BattleStats) -> tuple[TurnsBin, ...]:
    """Shares of the outcomes by the number of turns."""
    turns = np.clip(stats.turns, 1, MAX_TURNS)
    bins = []
    for number in range(1, MAX_TURNS + 1):
        labels = stats.label[(stats.label >= 0) & (turns == number)]
        if len(labels):
            a_won, b_won, tied = (outcome_counts(labels) / len(labels)).tolist()
            bins.append(TurnsBin(number, len(labels), a_won, b_won, tied))
    return tuple(bins)

"""What people reward: how outcomes go with length, markup, position and turns; every share with its interval."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli.battles import outcome_counts
from prefcli.eda.measures import MARKUP, Measured
from prefcli.outcomes import TIE, A, B

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
LENGTH_RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, np.inf)
"""Bins of how many times longer the longer answer is."""
MOST_TURNS = 5


@dataclass(frozen=True)
class Share:
    """A share of n cases with its 95 % interval; see :func:`share`."""

    value: float
    low: float
    high: float
    n: int


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
class Rewarded:
    """What a difference in one property does.

    Attributes
    ----------
    what:
        The property.
    wins:
        How often the answer with more of it won, of the decided battles in which the two differ.
    odds:
        Odds ratio of winning for one standard deviation more of it, the other properties (length among them) held
        equal; with its interval ``odds_ci``. None where it cannot be told.
    """

    what: str
    wins: Share
    odds: float | None
    odds_ci: tuple[float, float] | None


@dataclass(frozen=True)
class TurnsRow:
    """Battles with that many turns (the last row: that many or more)."""

    turns: int
    battles: int
    a_won: float
    b_won: float
    tied: float


def share(hits: int, n: int) -> Share:
    """A share with Wilson's score interval at 95 %.

    ``(p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)``; E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22 (1927).
    """
    if not n:
        return Share(float("nan"), 0.0, 1.0, 0)
    p = hits / n
    centre = p + Z95**2 / (2 * n)
    spread = Z95 * float(np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)))
    scale = 1 + Z95**2 / n
    return Share(p, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale), n)


def length_curve(m: Measured) -> tuple[LengthBin, ...]:
    """How often the longer answer won, by how many times longer it is (characters; an empty answer counts as one)."""
    lengths = np.maximum(m.characters[:, 1:], 1)
    ratio = lengths.max(axis=1) / lengths.min(axis=1)
    longer = np.where(lengths[:, 0] > lengths[:, 1], A, B)
    rows = []
    for low, high in itertools.pairwise(LENGTH_RATIOS):
        here = (m.label >= 0) & (ratio >= low) & (ratio < high) & (ratio > 1)
        n = int(here.sum())
        if n:
            won = int((m.label[here] == longer[here]).sum())
            tied = int((m.label[here] == TIE).sum())
            rows.append(LengthBin(low, float(high), n, won / n, tied / n, (n - won - tied) / n))
    return tuple(rows)


def rewarded(m: Measured) -> tuple[Rewarded, ...]:
    """Win rates of the answer with more length, lists, headings, code, bold, tables; and the same side by side.

    The odds come from one logistic regression of "A won" on the standardised differences A - B of all properties
    (of logarithms: ``log(1 + count)``), on decided battles, with an intercept for the position; intervals are Wald's,
    ``exp(b +- 1.96 se)``. It is how Chatbot Arena controls its ratings for style (Li, Angelopoulos and Chiang,
    "Does style matter?", LMSYS blog 2024).
    """
    decided = (m.label == A) | (m.label == B)
    a_won = m.label[decided] == A
    measures = {"length": m.characters[decided, 1:]}
    measures |= {name: m.markup[decided, i] for i, name in enumerate(MARKUP)}
    differences = {name: np.log1p(pair[:, 0]) - np.log1p(pair[:, 1]) for name, pair in measures.items()}
    varying = [name for name, values in differences.items() if len(values) and values.std() > 0]
    odds = _odds_ratios(np.stack([differences[name] for name in varying], axis=1), a_won) if varying else None
    rows = []
    for name, values in differences.items():
        differs = values != 0
        if not differs.any():
            continue
        wins = share(int((a_won[differs] == (values[differs] > 0)).sum()), int(differs.sum()))
        told = odds[varying.index(name)] if odds is not None else None
        rows.append(Rewarded(name, wins, told[0] if told else None, told[1:] if told else None))
    return tuple(rows)


def _odds_ratios(x: NDArray[np.float64], won: NDArray[np.bool_]) -> list[tuple[float, float, float]] | None:
    """Odds ratios per standard deviation with Wald intervals, by Newton's method; None if they are not finite.

    A. Agresti, "Categorical Data Analysis" (2013), section 5.5.
    """
    x = np.concatenate([np.ones((len(x), 1)), x / x.std(axis=0)], axis=1)
    if len(x) < 10 * x.shape[1] or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
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
    return [
        (float(np.exp(b)), float(np.exp(b - Z95 * e)), float(np.exp(b + Z95 * e)))
        for b, e in zip(beta[1:], error[1:], strict=True)
    ]


def by_turns(m: Measured) -> tuple[TurnsRow, ...]:
    known = m.label >= 0
    turns = np.clip(m.turns, 1, MOST_TURNS)
    rows = []
    for number in range(1, MOST_TURNS + 1):
        labels = m.label[known & (turns == number)]
        if len(labels):
            a, b, tied = (outcome_counts(labels) / len(labels)).tolist()
            rows.append(TurnsRow(number, len(labels), a, b, tied))
    return tuple(rows)

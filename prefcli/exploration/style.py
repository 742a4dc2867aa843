"""Style control: how much longer and more marked up one answer is, as covariates of the ratings' fit.

As Chatbot Arena does it (T. Li, A. Angelopoulos and W.-L. Chiang, "Does style matter? Disentangling style and substance
in Chatbot Arena", LMSYS blog 2024): each property enters as ``(a - b) / (a + b)``, scaled to a standard deviation of 1.
The mean is not subtracted, so that swapping A and B changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcli.bootstrap import Z95, expanded_quantile
from prefcli.exploration.davidson import (
    PRIOR_PRECISION,
    Array,
    DavidsonFit,
    PairwiseCounts,
    fit,
    inverse_information,
    sandwich,
)
from prefcli.exploration.measures import MARKUP, BattleStats, IntArray
from prefcli.metrics import plural
from prefcli.outcomes import A, B

STYLE = ("length", "list items", "headings", "bold")
"""The properties that are controlled for; length is in characters, the others are counts of :data:`MARKUP`."""
MIN_BATTLES_THAT_DIFFER = 20
"""A property in which fewer battles differ is not controlled for."""
MAX_PRIOR_SHARE = 0.05
"""A coefficient is left out when more than this share of what is known about it comes from the prior: then it decides
every battle in which it differs, or it cannot be distinguished from the models or the other properties."""


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
    """The style covariates of the fit, and which others are not in it, each with the reason in brackets."""

    effects: tuple[StyleEffect, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class StyleFit:
    """Strengths at equal style ``[m]`` and their covariance ``[m, m]``."""

    strengths: Array
    covariance: Array


def style_differences(stats: BattleStats) -> Array:
    """``(a - b) / (a + b)`` of each of :data:`STYLE`, 0 where neither answer has any; shape ``[n, len(STYLE)]``."""
    markup = list(MARKUP)
    columns = [stats.characters[:, 1:]] + [stats.markup[:, markup.index(name)] for name in STYLE[1:]]
    pairs = np.stack(columns, axis=1)
    total = pairs.sum(axis=2)
    return np.asarray((pairs[..., 0] - pairs[..., 1]) / np.maximum(total, 1))


def fit_styled(
    rows: PairwiseCounts, differences: Array, prompts: IntArray, start: DavidsonFit
) -> tuple[StyleFit | None, StyleEffects | None]:
    """Fit Davidson's model with style covariates.

    Parameters
    ----------
    rows:
        One row per battle.
    differences:
        From :func:`style_differences`, first model minus second; shape ``[n, len(STYLE)]``.
    prompts:
        Each battle's prompt, in ascending order.
    start:
        The fit without covariates.

    Returns
    -------
    tuple
        The fit, None when no property can be used; the effects, None when no two answers differ in any, or all battles
        are ties.
    """
    differing = (differences != 0).sum(axis=0)
    if not differing.any() or not rows.counts[:, [A, B]].any():  # nothing to explain
        return None, None
    left_out = [
        f"{name} (the answers of only {plural(count, 'battle')} differ in it)"
        for name, count in zip(STYLE, differing.tolist(), strict=True)
        if 0 < count < MIN_BATTLES_THAT_DIFFER
    ]
    used = [k for k, count in enumerate(differing) if count >= MIN_BATTLES_THAT_DIFFER]
    size = len(rows.models)
    while used:
        covariates = differences[:, used] / np.sqrt((differences[:, used] ** 2).mean(axis=0))
        fitted = fit(rows, covariates=covariates, start=(start.strengths, start.log_nu))
        prior_share = PRIOR_PRECISION * np.diag(inverse_information(fitted))[size + 1 :]
        worst = int(prior_share.argmax())
        if fitted.converged and prior_share[worst] <= MAX_PRIOR_SHARE:
            break
        left_out.append(f"{STYLE[used.pop(worst)]} (it decides every battle, or goes with the models)")
    else:
        return None, StyleEffects((), tuple(left_out))
    covariance = sandwich(rows, fitted, prompts, covariates)
    per_prompt = np.unique(prompts, return_counts=True)[1].astype(np.float64)
    critical = expanded_quantile(Z95, len(prompts) ** 2 / float((per_prompt**2).sum()))
    half_width = critical * np.sqrt(np.diag(covariance)[size + 1 :])
    effects = StyleEffects(
        tuple(
            StyleEffect(STYLE[k], float(beta), float(beta - half), float(beta + half), int(differing[k]))
            for k, beta, half in zip(used, fitted.coefficients, half_width, strict=True)
        ),
        tuple(left_out),
    )
    return StyleFit(fitted.strengths, covariance[:size, :size]), effects

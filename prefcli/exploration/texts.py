"""How long the texts are, which scripts they use, and what a length limit would cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcli.battles import TEXT_FIELDS
from prefcli.exploration.measures import BattleStats
from prefcli.groups import SCRIPT_NAMES

LENGTH_LIMITS = (256, 512, 1024, 2048, 4096)
SPECIAL_TOKENS = 3
"""[CLS] prompt [SEP] answer [SEP]"""


@dataclass(frozen=True)
class Lengths:
    """Distribution of a field's length in characters, all turns together."""

    mean: float
    median: float
    p90: float
    longest: int


@dataclass(frozen=True)
class ScriptShare:
    """Battles whose prompt is mostly written in a script."""

    script: str
    battles: int
    share: float


@dataclass(frozen=True)
class Truncation:
    """What a limit on prompt and answer together would cut, by estimated tokens."""

    max_length: int
    sides_cut: float
    """Share of (prompt, answer) pairs longer than the limit."""
    battles_cut: float
    """Share of battles with at least one such pair."""
    tokens_lost: float
    """Share of all tokens beyond the limit."""


def lengths(stats: BattleStats) -> dict[str, Lengths]:
    """Distribution of the length of prompts and answers."""
    return {
        name: Lengths(float(n.mean()), float(np.median(n)), float(np.quantile(n, 0.9)), int(n.max()))
        for name, n in zip(TEXT_FIELDS, stats.characters.T, strict=True)
    }


def scripts(stats: BattleStats) -> tuple[ScriptShare, ...]:
    """Scripts of the prompts, most frequent first."""
    counts = np.bincount(stats.script, minlength=len(SCRIPT_NAMES))
    ranked = np.argsort(-counts, kind="stable")
    return tuple(
        ScriptShare(SCRIPT_NAMES[i], int(counts[i]), float(counts[i] / len(stats.script))) for i in ranked if counts[i]
    )


def truncation(stats: BattleStats, max_length: int) -> Truncation:
    """What ``max_length`` would cut, by the tokens estimated in :mod:`prefcli.exploration.measures`."""
    sides = stats.tokens[:, 1:] + stats.tokens[:, :1] + SPECIAL_TOKENS
    excess = np.maximum(sides - max_length, 0)
    return Truncation(
        max_length,
        sides_cut=float((excess > 0).mean()),
        battles_cut=float((excess > 0).any(axis=1).mean()),
        tokens_lost=float(excess.sum() / max(sides.sum(), 1)),
    )

"""RewardBench's average: accuracy by subset, weighted within its four sections, then the mean of the sections.

N. Lambert et al., "RewardBench: Evaluating Reward Models for Language Modeling" (2024), section 4, with the sections
and weights of its repository, allenai/reward-bench, ``rewardbench/constants.py``. The fifth section of the first
leaderboard, test sets of earlier work, is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefcli import bootstrap
from prefcli.bootstrap import Array, Interval

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,  # 447 examples, weighted like those of code together
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Section -> subset -> its weight: the number of its examples."""

SUBSETS = frozenset(name for section in SECTIONS.values() for name in section)


@dataclass(frozen=True)
class Section:
    """The weighted accuracy of a section's subsets."""

    section: str
    accuracy: float
    ci: Interval | None
    """95 % interval; None if a subset has too few prompts for one."""


@dataclass(frozen=True)
class RewardBench:
    """RewardBench's averages of a file's subsets."""

    sections: tuple[Section, ...]
    """Those with at least one subset."""
    average: float | None
    """The mean of the four sections; None if one of them has no subset."""
    ci: Interval | None
    missing: tuple[str, ...]
    """Subsets that the file has not: averages that lack one are not comparable with the leaderboard's."""


@dataclass(frozen=True)
class Subset:
    """The accuracy of a subset's battles."""

    accuracy: float
    drawn: Array | None
    """In each round of the bootstrap, shape ``[rounds]``; None for too few prompts."""
    units: float
    """How many prompts were drawn, see :attr:`prefcli.bootstrap.Units.size`."""


def averages(subsets: Mapping[str, Subset]) -> RewardBench | None:
    """RewardBench's averages; None if fewer than half of the groups are its subsets.

    Equal probabilities count half, as in RewardBench. Every subset is resampled for itself: their sizes are given.
    """
    known = {name: subset for name, subset in subsets.items() if name in SUBSETS}
    if 2 * len(known) < len(subsets) or not known:
        return None
    sections, of_sections = [], []
    for name, weights in SECTIONS.items():
        if not (present := [subset for subset in weights if subset in known]):
            continue
        shares = np.array([weights[subset] for subset in present]) / sum(weights[subset] for subset in present)
        section = _weighted([known[subset] for subset in present], shares)
        of_sections.append(section)
        sections.append(Section(name, section.accuracy, _interval(section)))
    complete = len(sections) == len(SECTIONS)
    average = _weighted(of_sections, np.full(len(of_sections), 1 / len(of_sections)))
    return RewardBench(
        tuple(sections),
        average.accuracy if complete else None,
        _interval(average) if complete else None,
        tuple(subset for weights in SECTIONS.values() for subset in weights if subset not in known),
    )


def _weighted(parts: list[Subset], weights: Array) -> Subset:
    drawn = [part.drawn for part in parts if part.drawn is not None]
    return Subset(
        float(weights @ [part.accuracy for part in parts]),
        weights @ np.stack(drawn) if len(drawn) == len(parts) else None,
        sum(part.units for part in parts),
    )


def _interval(part: Subset) -> Interval | None:
    if part.drawn is None or np.ptp(part.drawn) < bootstrap.SAME:
        return None
    return bootstrap.percentile_interval(part.drawn, part.units)

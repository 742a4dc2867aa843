"""Where sources of votes contradict each other: what one rewards, another punishes.

How often each source ties is not a contradiction, a model learns that by itself (:mod:`prefcli.storage.sources`).
Compared is what follows from a battle's length, turns and language within each source. Two sources contradict each
other if the intervals of the same effect lie on different sides of 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli import groups
from prefcli.battles import FlatTurns, int_column, labels_of
from prefcli.errors import one_line
from prefcli.outcomes import TIE, A

Array = NDArray[np.float64]

MAX_ERROR = 0.01
"""Chance that any interval misses its effect: each is the wider, the more effects and sources are compared."""
MIN_PROMPTS = 30
"""Different prompts on each side of a comparison."""


@dataclass(frozen=True)
class Effect:
    """An effect in one source: a difference of shares, and its interval over prompts, 99 % for all together."""

    source: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = f"99 % interval {100 * self.low:+.0f} to {100 * self.high:+.0f}"
        return f"{one_line(self.source, 40)} {100 * self.value:+.0f} points ({ends})"


def find(batches: Iterable[pa.RecordBatch], sources: NDArray[np.object_], keys: NDArray[np.int64]) -> list[str]:
    """One sentence for every effect that is positive in a source and negative in another.

    Parameters
    ----------
    batches:
        Battles; those without an outcome do not count.
    sources, keys:
        The source of each battle, None where it has none, and the prompt key; shape ``[n]``.
    """
    measured = [_measure(batch) for batch in batches if batch.num_rows]
    labels, longer_is_a, lengths, turns, is_latin = (np.concatenate(part) for part in zip(*measured, strict=True))
    known = labels >= 0
    decided = known & (labels != TIE) & (longer_is_a != 0)
    longer_won = np.where((labels == A) == (longer_is_a > 0), 0.5, -0.5)
    median = np.median(lengths)
    comparisons: list[tuple[str, Array, NDArray[np.bool_], NDArray[np.bool_] | None]] = [
        ("wins of the longer answer beyond half", longer_won, decided, None),
        ("ties of several turns against one", labels == TIE, known, turns > 1),
        (f"ties of answers over {median:,.0f} characters against shorter ones", labels == TIE, known, lengths > median),
        ("ties of prompts in other scripts against Latin", labels == TIE, known, ~is_latin),
    ]
    counts = Counter(source for source in sources.tolist() if source is not None)
    large = [source for source, battles in counts.items() if battles >= MIN_PROMPTS]
    numbers = {source: number for number, source in enumerate(large)}
    number_of = np.array([numbers.get(source, -1) for source in sources.tolist()])
    error = MAX_ERROR / max(1, len(large) * len(comparisons))  # Bonferroni's correction
    sentences = []
    for what, values, rows, group in comparisons:
        effects = []
        for number, source in enumerate(large):
            own = np.flatnonzero(rows & (number_of == number))
            if group is None or (labels[own] == TIE).any():  # where nothing ties, nothing follows about ties
                in_group = None if group is None else group[own]
                effect = contrast(values[own].astype(np.float64), in_group, keys[own], error)
                if effect is not None:
                    effects.append(Effect(str(source), *effect))
        highest = max(effects, key=lambda effect: effect.low, default=None)
        lowest = min(effects, key=lambda effect: effect.high, default=None)
        if highest and lowest and highest.low > 0 > lowest.high:
            sentences.append(f"sources contradict each other, {what}: {highest}, {lowest}")
    return sentences


def contrast(
    values: Array, group: NDArray[np.bool_] | None, keys: NDArray[np.int64], error: float = MAX_ERROR
) -> tuple[float, float, float] | None:
    """The mean of some values, or the mean in a group minus that outside, and its interval.

    The variance is that of the prompts' sums, since battles of a prompt are not independent: a cluster-robust
    one (Liang and Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73, 1986).

    Parameters
    ----------
    values, keys:
        Of n battles, and of their prompts; shape ``[n]``.
    group:
        Whether each is in the group; None for the mean of all.
    error:
        The chance that the interval misses the effect.

    Returns
    -------
    Estimate and both ends, or None where there are too few prompts.
    """
    influence = np.zeros(len(values))
    estimate = 0.0
    for sign, rows in [(1.0, np.ones(len(values), bool))] if group is None else [(1.0, group), (-1.0, ~group)]:
        if len(np.unique(keys[rows])) < MIN_PROMPTS:
            return None
        mean = float(values[rows].mean())
        estimate += sign * mean
        influence[rows] += sign * (values[rows] - mean) / rows.sum()
    _, prompts = np.unique(keys, return_inverse=True)
    deviation = float(np.sqrt(np.square(np.bincount(prompts, weights=influence)).sum()))
    half_width = NormalDist().inv_cdf(1 - error / 2) * deviation
    return estimate, estimate - half_width, estimate + half_width


def _measure(batch: pa.RecordBatch) -> tuple[NDArray[Any], ...]:
    """Of each battle: label, sign of A's length minus B's, length of the longer answer, turns, Latin or not."""
    prompts = FlatTurns.of(batch.column("prompt"))
    a, b = (
        turns.per_battle(pc.utf8_length(turns.texts))
        for turns in (FlatTurns.of(batch.column(name)) for name in ("response_a", "response_b"))
    )
    scripts = groups.find_scripts(prompts)
    is_latin = np.isin(scripts, (groups.LATIN, groups.NO_LETTERS))
    turns = int_column(pc.list_value_length(batch.column("prompt")))
    return labels_of(pa.Table.from_batches([batch])), np.sign(a - b), np.maximum(a, b), turns, is_latin

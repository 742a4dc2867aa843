"""Numbers about battles, as plain dataclasses. What they look like is decided elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, labels_of, outcome_counts
from prefcli.outcomes import TIE, A, B


@dataclass(frozen=True)
class PairCount:
    """How often two models met, whichever was A."""

    model_1: str
    model_2: str
    battles: int


@dataclass(frozen=True)
class ModelWins:
    """How a model fared."""

    model: str
    wins: int
    ties: int
    battles: int

    @property
    def win_rate(self) -> float:
        """Wins per battle, ties not counted as wins."""
        return self.wins / self.battles


@dataclass(frozen=True)
class Lengths:
    """Distribution of a field's length in characters, all turns together."""

    mean: float
    median: float
    p90: float
    longest: int


@dataclass(frozen=True)
class Eda:
    """What ``prefcli eda`` reports."""

    battles: int
    labelled: int
    models: int
    outcomes: tuple[int, int, int]
    ties: int
    tie_share: float
    multi_turn: int
    null_turns: int
    empty_answers: int
    identical_answers: int
    prompts: int
    lengths: dict[str, Lengths]
    top_pairs: tuple[PairCount, ...]
    top_winners: tuple[ModelWins, ...]


def explore(batches: Iterable[pa.RecordBatch], top: int = 5) -> Eda:
    """Everything about a file of battles that can be counted in one pass.

    Parameters
    ----------
    batches:
        Canonical record batches.
    top:
        How many pairs and winners to list.
    """
    lengths: dict[str, list[NDArray[np.int64]]] = {name: [] for name in TEXT_FIELDS}
    names: list[pa.Table] = []
    labels: list[NDArray[np.int64]] = []
    keys: list[NDArray[np.int64]] = []
    multi_turn = null_turns = identical = 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        for name in TEXT_FIELDS:
            lengths[name].append(characters(table[name]))
        multi_turn += int(pc.sum(pc.greater(pc.list_value_length(table["prompt"]), 1)).as_py() or 0)
        null_turns += sum(int(pc.list_flatten(table[name]).null_count) for name in TEXT_FIELDS)
        identical += same_answers(table)
        names.append(table.select(["model_a", "model_b"]))
        labels.append(labels_of(table))
        keys.append(table["prompt_key"].to_numpy())
    outcome = np.concatenate(labels)
    models = pa.concat_tables(names)
    tallies = outcome_counts(outcome)
    lengths_of = {name: np.concatenate(parts) for name, parts in lengths.items()}
    known = int(tallies.sum())
    return Eda(
        battles=len(outcome),
        labelled=known,
        models=len(pc.unique(pa.chunked_array([*models["model_a"].chunks, *models["model_b"].chunks])).drop_null()),
        outcomes=(int(tallies[A]), int(tallies[B]), int(tallies[TIE])),
        ties=int(tallies[TIE]),
        tie_share=float(tallies[TIE] / known) if known else 0.0,
        multi_turn=multi_turn,
        null_turns=null_turns,
        empty_answers=int(sum((lengths_of[name] == 0).sum() for name in ("response_a", "response_b"))),
        identical_answers=identical,
        prompts=len(np.unique(np.concatenate(keys))),
        lengths={name: _distribution(values) for name, values in lengths_of.items()},
        top_pairs=_top_pairs(models, top),
        top_winners=_top_winners(models, outcome, top),
    )


def characters(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Unicode characters in each row of a ``list<string>`` column, all turns together; shape ``[n]``."""
    parts = []
    for chunk in column.chunks:
        counts = np.asarray(pc.utf8_length(chunk.flatten()).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
        ends = np.concatenate([[0], np.cumsum(np.asarray(pc.list_value_length(chunk).fill_null(0)))])
        total = np.concatenate([[0], np.cumsum(counts)])
        parts.append(total[ends[1:]] - total[ends[:-1]])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def same_answers(table: pa.Table) -> int:
    """Battles whose two answers are the same text."""
    a, b = (pc.binary_join(_without_nulls(table[name]), "\n") for name in ("response_a", "response_b"))
    return int(pc.sum(pc.equal(a, b)).as_py() or 0)


def _without_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Null turns as empty text: Arrow's join makes the whole row null otherwise."""
    chunks = [
        pa.ListArray.from_arrays(
            np.concatenate([[0], np.cumsum(np.asarray(pc.list_value_length(chunk).fill_null(0)))]).astype(np.int32),
            chunk.flatten().fill_null(""),
        )
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, type=column.type)


def _distribution(values: NDArray[np.int64]) -> Lengths:
    return Lengths(
        mean=float(values.mean()),
        median=float(np.median(values)),
        p90=float(np.quantile(values, 0.9)),
        longest=int(values.max()),
    )


def _top_pairs(models: pa.Table, top: int) -> tuple[PairCount, ...]:
    met = Counter(
        tuple(sorted(pair))
        for pair in zip(models["model_a"].to_pylist(), models["model_b"].to_pylist(), strict=True)
        if None not in pair
    )
    ranked = sorted(met.items(), key=lambda item: (-item[1], item[0]))
    return tuple(PairCount(first, second, count) for (first, second), count in ranked[:top])


def _top_winners(models: pa.Table, outcome: NDArray[np.int64], top: int) -> tuple[ModelWins, ...]:
    wins: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    battles: Counter[str] = Counter()
    for a, b, label in zip(models["model_a"].to_pylist(), models["model_b"].to_pylist(), outcome.tolist(), strict=True):
        if label < 0:
            continue
        for name, won in ((a, A), (b, B)):
            if name is None:
                continue
            battles[name] += 1
            wins[name] += label == won
            ties[name] += label == TIE
    ranked = sorted(battles, key=lambda name: (-wins[name], name))
    return tuple(ModelWins(name, wins[name], ties[name], battles[name]) for name in ranked[:top])

"""Groups of battles: by a column of the file, or by what their texts and models say.

A :class:`~prefcli.battles.Source` with ``by`` gives batches with a column ``group``, whichever of the two it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.battles import FlatTurns, int_column
from prefcli.errors import InputError, one_line

IntArray = NDArray[np.int64]

SCRIPTS = ("Latin", "Cyrillic", "Han", "Kana", "Hangul", "Arabic", "Hebrew", "Greek", "Devanagari", "Thai")
"""Unicode's names of scripts, but Kana is Hiragana and Katakana."""
SCRIPT_NAMES = (*SCRIPTS, "other", "no letters")
LATIN, HAN, KANA, NO_LETTERS = (SCRIPT_NAMES.index(name) for name in ("Latin", "Han", "Kana", "no letters"))
MAX_SCRIPT_CHARACTERS = 2000
"""A text's script is judged by this many characters at its beginning."""

COMPUTED = {
    "script": "the script of most letters of the prompt",
    "length": "characters of the longer answer",
    "turns": "turns of the prompt",
    "models": "the pair of models",
}
"""Groups of any file: name and meaning. A file's own column of the name comes first."""

LENGTH_BOUNDS = (250, 500, 1000, 2000, 4000)
"""The most characters of all bins of ``length`` but the last."""
LENGTH_NAMES = (
    f"up to {LENGTH_BOUNDS[0]}",
    *(f"{low + 1:,} to {high:,}" for low, high in itertools.pairwise(LENGTH_BOUNDS)),
    f"over {LENGTH_BOUNDS[-1]:,}",
)
MAX_TURNS = 5
TURNS_NAMES = (*map(str, range(MAX_TURNS)), f"{MAX_TURNS} or more")
_NATURAL_ORDER = {"length": LENGTH_NAMES, "turns": TURNS_NAMES}

COLUMN = "group"
"""The column of batches that were read with ``Source.by``; null where the file's cell is empty."""


def of(batch: pa.RecordBatch, by: str) -> pa.Array:
    """The name of each battle's group; null where it has none.

    Parameters
    ----------
    batch:
        Canonical battles.
    by:
        What ``Source.by`` was when they were read, or one of :data:`COMPUTED`.

    Raises
    ------
    InputError
        If it is neither.
    """
    if COLUMN in batch.schema.names and (batch.schema.field(COLUMN).metadata or {}).get(b"by") == by.encode():
        return batch.column(COLUMN)
    match by:
        case "source" if by in batch.schema.names:
            return batch.column(by)
        case "script":
            return _names(SCRIPT_NAMES, find_scripts(FlatTurns.of(batch.column("prompt"))))
        case "length":
            answers = [FlatTurns.of(batch.column(name)) for name in ("response_a", "response_b")]
            longer = np.maximum(*(turns.per_battle(pc.utf8_length(turns.texts)) for turns in answers))
            return _names(LENGTH_NAMES, np.searchsorted(LENGTH_BOUNDS, longer))
        case "turns":
            turns = int_column(pc.list_value_length(batch.column("prompt")))
            return _names(TURNS_NAMES, np.minimum(turns, MAX_TURNS))
        case "models":
            pairs = zip(*(batch.column(name).to_pylist() for name in ("model_a", "model_b")), strict=True)
            return pa.array([" vs ".join(sorted(pair)) if all(pair) else None for pair in pairs], pa.string())
    raise InputError(f"battles have no groups by {by!r}", hint=f"Groups of any file: {', '.join(COMPUTED)}.")


def with_groups(batch: pa.RecordBatch, by: str, names: pa.Array | None = None) -> pa.RecordBatch:
    """A batch with the column ``group``: of these names, else computed."""
    field = pa.field(COLUMN, pa.string(), metadata={"by": by})
    return batch.append_column(field, of(batch, by) if names is None else names)


def in_order(counts: Mapping[str, int], by: str) -> list[str]:
    """Names of groups: the bins of ``length`` and ``turns`` as they follow each other, others by their size."""
    natural = _NATURAL_ORDER.get(by, ())
    if set(counts) <= set(natural):
        return [name for name in natural if name in counts]
    return sorted(counts, key=lambda name: (-counts[name], name))


def describe(by: str, *, is_column: bool) -> str:
    """What battles are grouped by, in words."""
    if not is_column:
        return f"grouped by {by}: {COMPUTED.get(by, 'whose votes they are')}"
    own = f", not {COMPUTED[by]}" if by in COMPUTED else ""
    return f"grouped by the file's column {one_line(by, 60)}{own}"


def find_scripts(turns: FlatTurns) -> IntArray:
    """The script of most letters at the beginning of each battle's text, as a position in :data:`SCRIPT_NAMES`.

    A text with kana is Kana however many Han characters it has.
    """
    texts = turns.joined()
    scripts = np.where(int_column(pc.match_substring_regex(texts, "[A-Za-z]")) > 0, LATIN, NO_LETTERS)
    not_ascii = np.flatnonzero(int_column(pc.binary_length(texts)) > int_column(pc.utf8_length(texts)))
    beginnings = pc.utf8_slice_codeunits(texts.take(pa.array(not_ascii)), 0, MAX_SCRIPT_CHARACTERS)
    letters = pc.replace_substring_regex(beginnings, r"\PL+", "")
    total = int_column(pc.utf8_length(letters))
    counts = []
    for script in SCRIPTS:
        characters = r"\p{Hiragana}\p{Katakana}" if script == "Kana" else rf"\p{{{script}}}"
        counts.append(int_column(pc.utf8_length(pc.replace_substring_regex(letters, f"[^{characters}]+", ""))))
    counts.append(total - sum(counts))
    counts[KANA] = np.where(counts[KANA] > 0, counts[KANA] + counts[HAN] + 1, 0)
    scripts[not_ascii] = np.where(total > 0, np.argmax(counts, axis=0), NO_LETTERS)
    return scripts


def _names(names: tuple[str, ...], positions: IntArray) -> pa.Array:
    return pa.array(names).take(pa.array(positions))

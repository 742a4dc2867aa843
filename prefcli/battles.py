"""The canonical Arrow table of battles, its checks, and the files it comes from.

A battle is a prompt, two answers and perhaps an outcome. Texts are lists of turns; a turn may be null. This module
knows nothing about file formats (see :mod:`prefcli.readers`) and nothing about how text is normalised
(see :mod:`prefcli.text`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli.errors import InputError, one_line, plural
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS

TEXT_FIELDS = ("prompt", "response_a", "response_b")
TURNS = pa.list_(pa.string())

BATTLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("model_a", pa.string()),
        pa.field("model_b", pa.string()),
        pa.field("prompt", TURNS, nullable=False),
        pa.field("response_a", TURNS, nullable=False),
        pa.field("response_b", TURNS, nullable=False),
        pa.field("label", pa.int8()),
        pa.field("prompt_key", pa.int64(), nullable=False),
    ]
)
"""The canonical table. ``label`` is 0, 1, 2 for A, B, tie, null when unknown. ``prompt_key`` identifies the
prompt as it was read (see :func:`prompt_key`), so that splits by prompt stay the same whatever is done to the
text afterwards. Optional columns follow: soft labels as ``p_a, p_b, p_tie: float32``, ``both_bad: bool`` where
the file distinguishes ties between good answers from ties between bad ones (both have the label tie), and ``source``,
whose votes they are, where there are several sources."""

SOURCE = "source"
OPTIONAL_FIELDS = (
    *(pa.field(name, pa.float32()) for name in SOFT_LABEL_COLUMNS),
    pa.field("both_bad", pa.bool_()),
    pa.field(SOURCE, pa.string()),
)

TURN_SEPARATOR = "\n"

MAX_BATCH_BYTES = 2**31 - 1
"""Offsets of a batch's texts are 32-bit numbers."""

PathLike = str | Path


def user_path(path: PathLike) -> Path:
    """A path as a user writes it: ``~`` is the home folder also where no shell replaced it."""
    return Path(os.path.expanduser(path))


STANDARD_INPUT = Path("-")
"""The file name that stands for standard input."""


SHARD_NUMBER = re.compile(r"-\d{5}-of-\d{5}(?=\.|$)")
"""What the name of a file that is a part of a data set has more, as Hugging Face's `datasets` names them."""


@dataclass(frozen=True)
class Source:
    """Which files to read, and how their columns become battles. The fields are the options of the same names."""

    paths: tuple[Path, ...]
    """One or more files; ``-`` is standard input."""
    format: str | None = None
    """A layout's name; None recognises it."""
    columns: Mapping[str, str] | None = None
    """Name in the layout -> where it is in the file; an empty path means that the file has no such column."""
    outcome: str | None = None
    """Which column holds the outcome and what its values mean, such as ``vote: left=a, right=b``."""
    each: str | None = None
    """Which column holds a list of answers, and how they are compared, such as ``answers: text=text, score=score``."""
    encoding: str | None = None
    """The encoding of a text file; None is UTF-8."""
    by: str | None = None
    """What battles are grouped by: a column or a path of the files, or one of ``prefcli.groups.COMPUTED``."""
    source: str | None = None
    """Which column or path says whose votes the battles are; by default each of several files is a source."""

    def __post_init__(self) -> None:
        paths: Any = [self.paths] if isinstance(self.paths, (str, Path)) else self.paths
        if isinstance(paths, Iterator):
            paths = list(paths)
        is_table = isinstance(paths, Mapping) or hasattr(paths, "__arrow_c_stream__")  # iterated, it gives names
        if is_table or not all(isinstance(path, (str, Path)) for path in paths):
            raise InputError(
                f"a source is of files, not {type(paths).__name__}",
                hint="Pass the table itself, or prefcli.from_table(table, columns={...}).",
            )
        object.__setattr__(self, "paths", tuple(map(user_path, paths)))

    @staticmethod
    def of(source: SourceLike, /, **reading: Any) -> Source:
        """A source from one path or several; ``reading`` are its other fields."""
        if isinstance(source, Source):
            return replace(source, **reading)
        return Source(cast(Any, source), **reading)

    def like(self, other: SourceLike) -> Source:
        """Other files, read in the same way unless they say how."""
        return other if isinstance(other, Source) else replace(self, paths=Source.of(other).paths)

    @property
    def reading(self) -> dict[str, Any]:
        """How the files are read: the other fields that are given, but for the groups."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("paths", "by")}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def is_described(self) -> bool:
        """Whether it says how the files' columns become battles."""
        return any(name not in ("encoding", SOURCE) for name in self.reading)

    @property
    def file_sources(self) -> tuple[str, ...]:
        """The name of the source that each file is: its stem, or more of its path; empty unless files are sources.

        Parts of one data set, such as ``train-00000-of-00004.parquet``, are one source.
        """
        if self.source is not None:
            return ()
        wholes = [path.with_name(SHARD_NUMBER.sub("", path.name)) for path in self.paths]
        different = list(dict.fromkeys(wholes))
        if len(different) < 2:
            return ()
        unpacked = [path.with_suffix("") if path.suffix in (".gz", ".zip") else path for path in different]
        by_length = ([path.stem for path in unpacked], [path.name for path in different], list(map(str, different)))
        names = next((names for names in by_length if len(set(names)) == len(names)), by_length[-1])
        return tuple(names[different.index(whole)] for whole in wholes)

    def to_json(self) -> dict[str, object]:
        """The source as JSON, with absolute paths."""
        paths = [str(path if path == STANDARD_INPUT else path.absolute()) for path in self.paths]
        options = {name: getattr(self, name) for name in ("format", "outcome", "each", "encoding")}
        if self.source is not None:
            options[SOURCE] = self.source
        return {"paths": paths, **options, "columns": dict(self.columns) if self.columns else None}

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> Source:
        """The source that :meth:`to_json` saved."""
        options = {field.name: saved.get(field.name) for field in fields(Source) if field.name != "paths"}
        return Source(tuple(map(Path, saved["paths"])), **options)

    def __str__(self) -> str:
        return _summarise([str(path) for path in self.paths])

    @property
    def title(self) -> str:
        """The files' names without their folders."""
        return _summarise([path.name for path in self.paths])


class ArrowTable(Protocol):
    """A DataFrame (pandas or polars) or a pyarrow Table: what exports Arrow data."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


TableLike = ArrowTable | Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""A table in memory; also a ``datasets.Dataset``, rows as dictionaries, or a dictionary of columns."""
SourceLike = Source | PathLike | Iterable[PathLike] | TableLike


def describe_reading(reading: Mapping[str, Any]) -> str:
    """What :attr:`Source.reading` holds, as the command line's options."""
    texts = {
        name: ",".join(f"{known}={path}" for known, path in value.items()) if name == "columns" else value
        for name, value in reading.items()
    }
    return one_line(" ".join(f"--{name} {shlex.quote(str(text))}" for name, text in texts.items()), 200)


def _summarise(names: list[str]) -> str:
    first = "standard input" if names[0] == str(STANDARD_INPUT) else names[0]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


@dataclass(frozen=True)
class ReadCounts:
    """What was read, and what was repaired. Adds up with ``+``."""

    battles: int = 0
    labelled: int = 0
    surrogates: int = 0
    """Turns that held lone surrogates (valid JSON, not valid UTF-8), replaced by U+FFFD."""
    null_turns: int = 0
    diverged: int = 0
    """Battles whose conversations continue with different prompts; those turns were dropped."""
    dropped_parts: int = 0
    """Parts of messages that are not text, such as images."""
    invented_ids: int = 0
    """Battles whose id is not in the file: it is their row's number, or a repeated id with a number behind it."""
    skipped: int = 0
    """Rows that are no battles: entries of a log that are no votes, lists of fewer than two answers."""
    left_out_pairs: int = 0
    """Pairs of answers of long lists, over the limit for one prompt."""

    def warnings(self) -> list[str]:
        """The repairs, in words for the user."""
        repairs = (
            (self.surrogates, "turn", "held lone surrogates, which were replaced by U+FFFD"),
            (self.diverged, "battle", "with conversations whose prompts diverge; turns from there on were dropped"),
            (self.dropped_parts, "part", "of messages left out: not text (images, for example)"),
            (self.skipped, "row", "left out: no battles (no votes, or fewer than two answers)"),
            (self.left_out_pairs, "pair", "of answers left out: over the limit of pairs for one prompt"),
        )
        return [f"{plural(count, what)} {repair}" for count, what, repair in repairs if count]

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class FlatTurns:
    """A flattened column: the texts of all turns (nulls as empty texts); battle i has ``offsets[i:i + 2]`` of them."""

    texts: pa.Array
    nulls: pa.Array
    offsets: NDArray[np.int64]

    @staticmethod
    def of(column: pa.ListArray) -> FlatTurns:
        turns = column.flatten()
        offsets = np.concatenate([[0], np.cumsum(int_column(pc.list_value_length(column)))])
        return FlatTurns(turns.fill_null("") if turns.null_count else turns, turns.is_null(), offsets)

    def per_battle(self, per_turn: pa.Array) -> NDArray[np.int64]:
        """Sums over the turns of each battle."""
        return np.diff(np.concatenate([[0], np.cumsum(int_column(per_turn))])[self.offsets])

    def joined(self) -> pa.Array:
        """Each battle's turns as one text."""
        return pc.binary_join(pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), self.texts), "\n")

    def hashes(self) -> NDArray[np.int64]:
        """64-bit hashes of each battle's text, equal for equal texts within this process."""
        return np.array([hash(text) for text in self.joined().cast(pa.binary()).to_pylist()], dtype=np.int64)


def texts_of(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """Each row of a ``list<string>`` column as one text: turns separated by a newline, null and empty ones skipped."""
    return [TURN_SEPARATOR.join(turn for turn in turns if turn) if turns else "" for turns in column.to_pylist()]


def describe_battle(battles: pa.RecordBatch, *, row: int = 0, outcome: bool = True) -> str:
    """A battle in words: what was asked, what the two models said, and who won."""
    fields = {name: one_line(texts_of(battles.column(name).slice(row, 1))[0], 60) for name in TEXT_FIELDS}
    models = [battles.column(name)[row].as_py() for name in ("model_a", "model_b")]
    names = [f"{side} ({one_line(model, 30)})" if model else side for side, model in zip("AB", models, strict=True)]
    answers = ", ".join(f"{name} says {fields[f'response_{side}']!r}" for name, side in zip(names, "ab", strict=True))
    said = f"asked {fields['prompt']!r}, {answers}"
    if not outcome:
        return said
    label = battles.column("label")[row].as_py()
    return f"{said}; {'the outcome is unknown' if label is None else ('A won', 'B won', 'a tie')[label]}"


def prompt_key(turns: Sequence[str | None]) -> int:
    """A 64-bit key that is equal for equal prompts, ignoring case and white space.

    It is the BLAKE2b hash of the turns; the probability of a collision among a million prompts is about 3e-8.
    """
    text = "\x1f".join(" ".join(turn.casefold().split()) for turn in turns if turn)
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def make_batch(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """A record batch in the canonical schema, with ``prompt_key`` computed.

    Parameters
    ----------
    columns:
        Arrays for the schema's other columns. Missing ``model_*`` and ``label`` become null; soft labels and
        ``both_bad`` are optional.
    """
    keys = pa.array([prompt_key(turns or ()) for turns in columns["prompt"].to_pylist()], pa.int64())
    columns = {**columns, "prompt_key": keys}
    schema = pa.schema([*BATTLE_SCHEMA, *(field for field in OPTIONAL_FIELDS if field.name in columns)])
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(keys), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def one_batch(rows: pa.Table) -> pa.RecordBatch:
    """All rows of a table in one batch.

    Raises
    ------
    InputError
        They have more than :data:`MAX_BATCH_BYTES`: Arrow would make several batches of them.
    """
    if rows.nbytes > MAX_BATCH_BYTES:
        raise InputError(
            f"{plural(rows.num_rows, 'row')} of {rows.nbytes:,} bytes at once, more than {MAX_BATCH_BYTES:,}",
            hint="Give fewer rows at a time.",
        )
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def labels_of(battles: pa.Table) -> NDArray[np.int64]:
    """Labels as an array ``[n]``; -1 where the outcome is unknown."""
    return int_column(battles["label"], missing=-1)


def int_column(column: pa.Array | pa.ChunkedArray, missing: int = 0) -> NDArray[np.int64]:
    """A column of integers or flags as an array ``[n]``, nulls as ``missing``."""
    filled = column.cast(pa.int64()).fill_null(missing)
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def outcome_counts(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The number of battles that A won, that B won, and of ties; shape ``[3]``. Unknown outcomes (-1) do not count."""
    return np.bincount(labels[labels >= 0], minlength=len(OUTCOMES)).astype(np.int64)


def check_unique_ids(ids: Iterable[str], where: str, what: str = "battles") -> None:
    """Refuse a file in which two rows have the same id; ``what`` they are: battles or questions.

    Raises
    ------
    InputError
        Naming the id and both rows (counted from 1).
    """
    first_rows: dict[str, int] = {}
    for row, battle_id in enumerate(ids, start=1):
        if (first_row := first_rows.setdefault(battle_id, row)) != row:
            raise duplicate_id_error(battle_id, first_row, row, where, what)


def duplicate_id_error(battle_id: str, first_row: int, row: int, where: str, what: str = "battles") -> InputError:
    """The error for two rows with the same id."""
    places = "in rows" if what == "battles" else f"for {what}"  # single answers are grouped: a question is not a row
    return InputError(
        f"id {battle_id[:40]!r} occurs twice, {places} {first_row:,} and {row:,}",
        where=where,
        hint=f"Give each of the {what} its own id: results are joined by it. --columns id= ignores the column.",
    )

"""Every file format there is, read into battles. The only room that knows formats.

:func:`open_battles` looks at the columns of a file (or several), recognises the layout and returns a
:class:`BattleFile` whose ``batches()`` stream canonical record batches (see :mod:`prefcli.battles`) with memory that
does not grow with the file. :mod:`~prefcli.readers.containers` turns files into raw columns; a layout is one entry
of :data:`LAYOUTS`: which columns it needs, and how a raw batch becomes battles.

Everything wrong with a file is an :class:`~prefcli.errors.InputError` that names file, row (counted from 1, the
header not counted) and column.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefcli.battles import BATTLE_SCHEMA, ReadCounts, Source
from prefcli.errors import InputError
from prefcli.readers.arena import ARENA, MT_BENCH
from prefcli.readers.cells import Place, RawBatch, shorten, strings
from prefcli.readers.containers import Container, column_names, open_container, raw_batches, readable
from prefcli.readers.layouts import Layout
from prefcli.readers.preferences import PREFERENCES
from prefcli.readers.rows import GENERIC, KAGGLE, looks_like_turns
from prefcli.storage import files

LAYOUTS: tuple[Layout, ...] = (KAGGLE, GENERIC, MT_BENCH, ARENA, PREFERENCES)
"""Every layout; the first that fits a file's columns is it, but see :func:`_recognise`."""


@dataclass(frozen=True)
class BattleFile:
    """Recognised files of battles.

    Attributes
    ----------
    source:
        What was asked for.
    layout:
        The recognised layout.
    containers:
        The files, opened far enough to know what they are.
    columns:
        The columns that will be read: name prefcli knows -> name in the file.
    """

    source: Source
    layout: Layout
    containers: tuple[Container, ...]
    columns: Mapping[str, str]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.source.paths[0]

    @property
    def description(self) -> str:
        """How the files are read, in words: a wrong guess shall be impossible to miss."""
        how = f"format {self.layout.name}: {self.layout.summary}"
        members = [container.member for container in self.containers if container.member]
        return f"{', '.join(members)}; {how}" if members else how

    def digest(self) -> str:
        """SHA-256 of the input's content: of the file, or of the files' digests where there are several."""
        digests = [files.sha256(container.path) for container in self.containers]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def options(self) -> dict[str, object]:
        """What else determines the battles, for the cache's fingerprint."""
        chosen: dict[str, object] = {"layout": self.layout.name}
        if self.source.columns:
            chosen["columns"] = dict(self.source.columns)
        if members := [container.member for container in self.containers if container.member]:
            chosen["members"] = members
        return chosen

    def batches(self) -> Iterator[tuple[pa.RecordBatch, ReadCounts]]:
        """The battles in the files' order, a batch at a time, with what was repaired in each.

        Raises
        ------
        InputError
            On the first row that is not a battle, or if a file holds none.
        """
        names = {theirs: ours for ours, theirs in self.columns.items()}
        seen: dict[str, int] = {}
        before = 0
        for container in self.containers:
            rows = 0
            for raw in raw_batches(container, list(names)):
                if raw.num_rows:
                    with readable(container.name):
                        batch, counts = self.layout.convert(raw.renamed(names), Place(container.name, rows + 1, before))
                    yield self._identified(batch, seen), counts
                    rows += raw.num_rows
            if not rows:
                raise InputError("the file holds no battles", where=container.name, hint=_expected())
            before += rows

    def _identified(self, batch: pa.RecordBatch, seen: dict[str, int]) -> pa.RecordBatch:
        """Ids that identify: where the layout's may repeat, the second gets a number behind it."""
        if self.layout.own_ids:
            return batch
        ids = [_unused(name, seen) for name in batch.column("id").to_pylist()]
        return batch.set_column(0, batch.schema.field("id"), pa.array(ids, pa.string()))


def _unused(name: str, seen: dict[str, int]) -> str:
    """The name, with a number behind it if it was given before; ``seen`` holds names and their last number."""
    free, number = name, seen.get(name, 1)
    while free in seen:
        number += 1
        free = f"{name}-{number}"
    seen[name] = number
    seen.setdefault(free, 1)
    return free


def open_battles(
    path: Path | Source, format: str | None = None, columns: Mapping[str, str] | None = None
) -> BattleFile:
    """Recognise the layout of a file of battles, or of several.

    Parameters
    ----------
    path:
        A file, or a :class:`Source`.
    format, columns:
        For a path, as in :class:`Source`.

    Raises
    ------
    InputError
        If a file cannot be read, its columns fit no known layout, or the files do not fit together.
    """
    source = path if isinstance(path, Source) else Source((path,), format, columns)
    if not source.paths:
        raise InputError("no file to read")
    opened = tuple(open_container(one) for one in source.paths)
    found = [_present(container, source.columns or {}) for container in opened]
    layouts = [
        _recognise(container.name, names, source.format, functools.partial(raw_batches, container))
        for container, names in zip(opened, found, strict=True)
    ]
    layout = layouts[0]
    used = [
        {ours: theirs for ours, theirs in one.items() if ours in (*layout.needs, *layout.may_have)} for one in found
    ]
    for container, other, columns_used in zip(opened, layouts, used, strict=True):
        if other is not layout:
            raise InputError(
                f"{container.name} is {other.name}, {opened[0].name} is {layout.name}",
                hint="Read together, all files must have the same layout.",
            )
        if differs := sorted(set(columns_used) ^ set(used[0])):
            raise InputError(
                f"column {differs[0]} is in one file and not in the other",
                where=f"{opened[0].name}, {container.name}",
                hint="Read together, all files must have the same columns.",
            )
        if columns_used != used[0]:
            raise InputError("the files name their columns differently", where=f"{opened[0].name}, {container.name}")
    return BattleFile(source, layout, opened, used[0])


def _present(container: Container, mapping: Mapping[str, str]) -> dict[str, str]:
    """The file's columns under the names that prefcli knows: name here -> name in the file."""
    found = column_names(container)
    if missing := [theirs for theirs in mapping.values() if theirs not in found]:
        raise InputError(
            f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; found {shorten(found)}",
            where=container.name,
            hint="--columns takes KNOWN=NAME, NAME being a column of the file.",
        )
    renamed = set(mapping.values())
    plain = {name: name for name in found if name not in renamed and name not in mapping}
    return {**plain, **mapping}


def battles_from(table: Any, *, format: str | None = None, name: str = "the table") -> pa.RecordBatch:
    """Battles that are in memory already, in any layout that files may have.

    Parameters
    ----------
    table:
        A pandas DataFrame, a pyarrow Table, or a list of dictionaries.
    format:
        A layout's name; None finds out.
    name:
        What to call it in messages.

    Raises
    ------
    InputError
        If it is no table, or its rows are no battles.
    """
    raw = _raw(table, name)
    if not raw.num_rows:
        raise InputError("there are no battles", where=name, hint=_expected())
    columns = {column: column for column in raw.columns}
    layout = _recognise(name, columns, format, lambda wanted: iter([raw.only(wanted)]))
    used = [column for column in columns if column in (*layout.needs, *layout.may_have)]
    return layout.convert(raw.only(used), Place(name, 1))[0]


def _raw(table: Any, name: str) -> RawBatch:
    if isinstance(table, pa.Table):
        return RawBatch.of(pa.RecordBatch.from_pydict({c: table[c].combine_chunks() for c in table.column_names}))
    if hasattr(table, "to_dict") and hasattr(table, "columns"):  # a DataFrame, without importing pandas
        there = table.notna().to_numpy()
        cells = {
            str(column): [
                cell if known else None for cell, known in zip(table[column].tolist(), there[:, i], strict=True)
            ]
            for i, column in enumerate(table.columns)
        }
        return RawBatch(cells, len(table))
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        names = list(dict.fromkeys(key for row in table for key in row))
        return RawBatch({key: [row.get(key) for row in table] for key in names}, len(table))
    raise InputError(
        f"{name} is {type(table).__name__}", hint="Expected a DataFrame, a pyarrow Table, or a list of dictionaries."
    )


def _recognise(
    where: str,
    columns: Mapping[str, str],
    wanted: str | None,
    batches: Callable[[list[str]], Iterator[RawBatch]],
) -> Layout:
    """The layout that the columns say, or the wanted one if the columns allow it."""
    names = set(columns)
    if wanted is not None:
        layout = next((layout for layout in LAYOUTS if layout.name == wanted), None)
        if layout is None:
            raise InputError(
                f"there is no format {wanted!r}", hint=f"Choose one of {', '.join(layout.name for layout in LAYOUTS)}."
            )
        if missing := [name for name in layout.needs if name not in names]:
            raise _missing(where, missing, columns, f"The format {layout.name} is {layout.summary}.")
        return layout
    fitting = [layout for layout in LAYOUTS if layout.fits(names)]
    if not fitting:
        nearest = min(LAYOUTS, key=lambda layout: len(set(layout.needs) - names))
        raise _missing(where, [name for name in nearest.needs if name not in names], columns, _expected())
    if len({layout.family for layout in fitting}) > 1:
        raise InputError(
            f"the columns fit several formats: {', '.join(layout.name for layout in fitting)}",
            where=where,
            hint="Say which with --format.",
        )
    if fitting[0] is KAGGLE and not any(name in names for name in ("winner_model_a", "prompt_key")):
        first = next(batches([columns["prompt"]]), None)
        if first is not None and first.num_rows:
            raw = first.renamed({columns["prompt"]: "prompt"})
            return KAGGLE if looks_like_turns(raw, Place(where, 1)) else GENERIC
    return fitting[0]


def _missing(where: str, missing: Sequence[str], columns: Mapping[str, str], hint: str) -> InputError:
    return InputError(
        f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; found {shorten(list(columns))}",
        where=where,
        hint=hint,
    )


def _expected() -> str:
    return (
        "Expected id, prompt, response_a, response_b (Kaggle), the same with winner, conversation_a and "
        "conversation_b, or chosen and rejected; other names with --columns prompt=NAME,..."
    )


def parse_columns(text: str) -> dict[str, str]:
    """``prompt=question,response_a=left`` as a mapping from known names to the file's.

    Raises
    ------
    InputError
        If it is not written so, or a name is not one prefcli knows.
    """
    known = list(dict.fromkeys(name for layout in LAYOUTS for name in (*layout.needs, *layout.may_have)))
    mapping: dict[str, str] = {}
    for item in text.split(","):
        ours, equals, theirs = (part.strip() for part in item.partition("="))
        if not (ours and equals and theirs):
            raise InputError(
                f"--columns: cannot read {item.strip()!r}", hint="Write --columns prompt=question,response_a=left,..."
            )
        if ours not in known:
            raise InputError(f"--columns: no column is called {ours}", hint=f"Known are {', '.join(known)}.")
        if ours in mapping or theirs in mapping.values():
            raise InputError(f"--columns: {item.strip()} names a column for the second time")
        mapping[ours] = theirs
    return mapping


def column_batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a table as strings, exactly as they are spelled, some rows at a time.

    For files that are not battles (predictions, labels). Numbers in Parquet become their shortest decimal form.

    Raises
    ------
    InputError
        If the file cannot be read or a column is missing.
    """
    container = open_container(path)
    found = column_names(container)
    if missing := [name for name in names if name not in found]:
        raise _missing(container.name, missing, dict.fromkeys(found, ""), f"Expected the columns {', '.join(names)}.")
    row = 1
    for raw in raw_batches(container, names):
        place = Place(container.name, row)
        yield pa.record_batch([strings(raw, name, place) for name in names], names=list(names))
        row += raw.num_rows


__all__ = [
    "BATTLE_SCHEMA",
    "LAYOUTS",
    "BattleFile",
    "Layout",
    "Source",
    "battles_from",
    "column_batches",
    "open_battles",
    "parse_columns",
]

"""Recognise the layout of files of battles, and stream their battles in memory that does not grow with the files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefcli.battles import ReadCounts, Source
from prefcli.errors import InputError
from prefcli.readers.arena import ARENA, MT_BENCH
from prefcli.readers.cells import Location, RawBatch, missing_columns, string_column
from prefcli.readers.containers import Container, column_names, open_container, raw_batches, readable
from prefcli.readers.layouts import ID_COLUMNS, Layout
from prefcli.readers.preferences import PREFERENCES
from prefcli.readers.rows import GENERIC, KAGGLE, looks_like_turns
from prefcli.readers.tables import raw_table
from prefcli.storage import files

LAYOUTS: tuple[Layout, ...] = (KAGGLE, GENERIC, MT_BENCH, ARENA, PREFERENCES)
"""Every layout; the first that matches a file's columns is used, with the exceptions in :func:`_recognise`."""

_EXPECTED = (
    "Expected id, prompt, response_a, response_b (Kaggle), the same with winner, conversation_a and "
    "conversation_b, or chosen and rejected; other names with --columns prompt=NAME,..."
)


@dataclass(frozen=True)
class BattleFile:
    """One or more files of battles with a recognised layout."""

    source: Source
    """The files as the user named them."""
    layout: Layout
    containers: tuple[Container, ...]
    columns: Mapping[str, str]
    """The columns to read: name in the layout -> name in the files."""
    not_read: tuple[str, ...] = ()
    """Columns of the files that are not read, in the files' order."""

    @property
    def has_ids(self) -> bool:
        """Whether the files hold ids; if not, a battle's id is its row number."""
        return any(name in self.columns for name in ID_COLUMNS)

    @property
    def description(self) -> str:
        """How the files are read, for the user to check."""
        containers = dict.fromkeys(container.description for container in self.containers if container.description)
        return "; ".join([*containers, f"format {self.layout.name}: {self.layout.summary}"])

    @property
    def _members(self) -> list[str]:
        """The files inside of archives."""
        return [container.member for container in self.containers if container.member]

    def digest(self) -> str:
        """SHA-256 of the content: of the file, or of the files' digests if there are several."""
        digests = [files.sha256(container.path) for container in self.containers]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def options(self) -> dict[str, object]:
        """What else determines the battles, for the cache's fingerprint."""
        options: dict[str, object] = {"layout": self.layout.name}
        if self.source.columns:
            options["columns"] = dict(self.source.columns)
        if self._members:
            options["members"] = self._members
        return options

    def batches(self) -> Iterator[tuple[pa.RecordBatch, ReadCounts]]:
        """The battles in the files' order, a batch at a time, with what was repaired in each.

        Raises
        ------
        InputError
            On the first row that is not a battle, or if a file holds none.
        """
        layout_names = {file_name: name for name, file_name in self.columns.items()}
        last_numbers: dict[str, int] = {}
        rows_before = 0
        for container in self.containers:
            rows = 0
            for raw in raw_batches(container, list(layout_names)):
                if raw.num_rows:
                    with readable(container.name):
                        location = Location(container.name, rows + 1, rows_before)
                        batch, counts = self.layout.convert(raw.rename(layout_names), location)
                    invented = 0 if self.has_ids else batch.num_rows
                    if not self.layout.keeps_ids:
                        read_ids = batch.column("id").to_pylist()
                        ids = [unique_id(battle_id, last_numbers) for battle_id in read_ids]
                        batch = batch.set_column(0, batch.schema.field("id"), pa.array(ids, pa.string()))
                        if self.has_ids:
                            invented = sum(new != old for new, old in zip(ids, read_ids, strict=True))
                    counts += ReadCounts(invented_ids=invented)
                    yield batch, counts
                    rows += raw.num_rows
            if not rows:
                raise InputError("the file holds no battles", where=container.name, hint=_EXPECTED)
            rows_before += rows


def unique_id(battle_id: str, last_numbers: dict[str, int]) -> str:
    """The id, with a numbered suffix if it was used before; ``last_numbers`` holds used ids and their last number."""
    free, number = battle_id, last_numbers.get(battle_id, 1)
    while free in last_numbers:
        number += 1
        free = f"{battle_id}-{number}"
    last_numbers[battle_id] = number
    last_numbers.setdefault(free, 1)
    return free


def open_battles(source: Source | Path, preferred: str = "train") -> BattleFile:
    """Recognise the layout of one or more files of battles.

    ``preferred`` names the table to read from an archive that holds several.

    Raises
    ------
    InputError
        If a file cannot be read, its columns match no layout, or the files do not fit together.
    """
    source = Source.of(source)
    if not source.paths:
        raise InputError("no file to read")
    containers = tuple(open_container(path, preferred, source.encoding) for path in source.paths)
    available = [_available_columns(container, source.columns or {}) for container in containers]
    layouts = [
        _recognise(container.name, names, source.format, functools.partial(raw_batches, container))
        for container, names in zip(containers, available, strict=True)
    ]
    layout = layouts[0]
    used = [{name: names[name] for name in layout.columns if name in names} for names in available]
    for container, other, names in zip(containers, layouts, used, strict=True):
        if other is not layout:
            raise InputError(
                f"{container.name} is {other.name}, {containers[0].name} is {layout.name}",
                hint="Files that are read together must have the same layout.",
            )
        if differing := sorted(set(names) ^ set(used[0])):
            raise InputError(
                f"column {differing[0]} is in one file and not in the other",
                where=f"{containers[0].name}, {container.name}",
                hint="Files that are read together must have the same columns.",
            )
    read = set(used[0].values())
    not_read = dict.fromkeys(name for names in available for name in names.values() if name not in read)
    return BattleFile(source, layout, containers, used[0], tuple(not_read))


def _available_columns(container: Container, mapping: Mapping[str, str]) -> dict[str, str]:
    """The file's columns, renamed by ``--columns``: name for the layouts -> name in the file."""
    names = column_names(container)
    if missing := [file_name for file_name in mapping.values() if file_name not in names]:
        raise InputError(
            missing_columns(missing, names),
            where=container.name,
            hint="--columns takes KNOWN=NAME, NAME being a column of the file.",
        )
    renamed = set(mapping.values())
    return {**{name: name for name in names if name not in renamed}, **mapping}


def battles_from(table: Any, *, format: str | None = None, name: str = "the table") -> pa.RecordBatch:
    """Battles that are in memory already, in any layout that files may have.

    Parameters
    ----------
    table:
        See :func:`~prefcli.readers.tables.raw_table`.
    format:
        A layout's name; None recognises it.
    name:
        The table's name in error messages.

    Raises
    ------
    InputError
        If it is not a table, or its rows are not battles.
    """
    raw = raw_table(table, name)
    if not raw.num_rows:
        raise InputError("there are no battles", where=name, hint=_EXPECTED)
    columns = {column: column for column in raw.columns}
    layout = _recognise(name, columns, format, lambda names: iter([raw.select(names)]))
    used = [column for column in layout.columns if column in raw]
    return layout.convert(raw.select(used), Location(name, 1))[0]


def _recognise(
    where: str, columns: Mapping[str, str], wanted: str | None, read: Callable[[list[str]], Iterator[RawBatch]]
) -> Layout:
    """The layout that matches the columns, or the wanted one if the columns allow it.

    ``read`` gives batches of some columns: a file with Kaggle's columns but no winners may also be a generic one,
    which its first prompt decides.
    """
    names = set(columns)
    if wanted is not None:
        layout = next((layout for layout in LAYOUTS if layout.name == wanted), None)
        if layout is None:
            raise InputError(
                f"unknown format {wanted!r}", hint=f"Choose one of {', '.join(layout.name for layout in LAYOUTS)}."
            )
        if missing := [name for name in layout.required if name not in names]:
            hint = f"The format {layout.name} is {layout.summary}."
            raise InputError(missing_columns(missing, list(columns)), where=where, hint=hint)
        return layout
    matching = [layout for layout in LAYOUTS if layout.matches(names)]
    if not matching:
        nearest = min(LAYOUTS, key=lambda layout: len(set(layout.required) - names))
        missing = [name for name in nearest.required if name not in names]
        raise InputError(missing_columns(missing, list(columns)), where=where, hint=_EXPECTED)
    if len({layout.family for layout in matching}) > 1:
        raise InputError(
            f"the columns fit several formats: {', '.join(layout.name for layout in matching)}",
            where=where,
            hint="Choose one with --format.",
        )
    if matching[0] is KAGGLE and not names & {"winner_model_a", "prompt_key"}:
        first = next(read([columns["prompt"]]), None)
        if first is not None and first.num_rows:
            raw = first.rename({columns["prompt"]: "prompt"})
            return KAGGLE if looks_like_turns(raw, Location(where, 1)) else GENERIC
    return matching[0]


def parse_columns(text: str) -> dict[str, str]:
    """``prompt=question,response_a=left`` as a mapping from layouts' names to the file's.

    Raises
    ------
    InputError
        If it is not written so, or no layout has a column of that name.
    """
    known = list(dict.fromkeys(name for layout in LAYOUTS for name in layout.columns))
    mapping: dict[str, str] = {}
    for item in text.split(","):
        name, equals, file_name = (part.strip() for part in item.partition("="))
        if not (name and equals and file_name):
            raise InputError(
                f"--columns: cannot read {item.strip()!r}", hint="Write --columns prompt=question,response_a=left,..."
            )
        if name not in known:
            raise InputError(f"--columns: unknown column {name}", hint=f"Known are {', '.join(known)}.")
        if name in mapping or file_name in mapping.values():
            raise InputError(f"--columns: {item.strip()} names a column for the second time")
        mapping[name] = file_name
    return mapping


def column_batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a table as strings, spelled as in the file, a batch at a time.

    For files that are not battles (predictions, labels). Numbers in Parquet become their shortest decimal form.

    Raises
    ------
    InputError
        If the file cannot be read or a column is missing.
    """
    container = open_container(path)
    present = column_names(container)
    if missing := [name for name in names if name not in present]:
        hint = f"Expected the columns {', '.join(names)}."
        raise InputError(missing_columns(missing, present), where=container.name, hint=hint)
    row = 1
    for raw in raw_batches(container, names):
        location = Location(container.name, row)
        yield pa.record_batch([string_column(raw, name, location) for name in names], names=list(names))
        row += raw.num_rows

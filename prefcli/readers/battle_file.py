"""Files and tables of battles: recognised, then streamed in memory that does not grow with the files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefcli import groups
from prefcli.battles import BATTLE_SCHEMA, OPTIONAL_FIELDS, SOURCE, ReadCounts, Source
from prefcli.errors import InputError
from prefcli.readers.cells import Location, RawBatch, missing_columns, string_column
from prefcli.readers.containers import Container, column_names, open_container, raw_batches, readable, scan_json
from prefcli.readers.file_columns import EXPECTED, PEEK_ROWS
from prefcli.readers.layouts import KAGGLE, Layout
from prefcli.readers.recognition import Recognised, recognise
from prefcli.readers.tables import raw_table
from prefcli.reporting import NO_PROGRESS, SILENT, Progress, Reporter
from prefcli.storage import files
from prefcli.storage.paths import check_different


@dataclass(frozen=True)
class BattleFile:
    """One or more files of battles with a recognised layout."""

    source: Source
    """The files as the user named them."""
    containers: tuple[Container, ...]
    recognised: tuple[Recognised, ...]
    """How each of the files is read."""

    @property
    def layout(self) -> Layout:
        """Of the first file, and of all if they are not sources of their own."""
        return self.recognised[0].mapped.layout

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The files' different layouts."""
        layouts = [recognised.mapped.layout for recognised in self.recognised]
        return tuple(layout for i, layout in enumerate(layouts) if layout not in layouts[:i])

    @property
    def columns(self) -> Mapping[str, str]:
        """Where everything is in the first file: canonical name -> path."""
        return self.recognised[0].mapped.names()

    @property
    def not_read(self) -> tuple[str, ...]:
        """Columns that are not read, in the files' order."""
        return tuple(dict.fromkeys(name for recognised in self.recognised for name in recognised.not_read))

    @property
    def questions(self) -> tuple[str, ...]:
        """Doubts about columns that are not read, for the user."""
        return tuple(dict.fromkeys(text for recognised in self.recognised for text in recognised.questions))

    @property
    def has_ids(self) -> bool:
        """Whether all files hold ids; if not, a battle's id is its row number."""
        return all("id" in recognised.mapped.places for recognised in self.recognised)

    @property
    def has_ties(self) -> bool:
        """Whether any file can hold ties at all."""
        every = [recognised.mapped for recognised in self.recognised]
        return any(mapped.rule.has_ties if mapped.rule else mapped.layout.has_ties for mapped in every)

    @property
    def says_chosen(self) -> bool:
        """Whether the files say which answer was chosen, so that a hash decides which is A."""
        return all({"chosen", "rejected"} <= recognised.mapped.places.keys() for recognised in self.recognised)

    @property
    def groups_are_a_column(self) -> bool:
        """Whether ``Source.by`` is a column of the files; else it is computed from the battles, or not given."""
        return bool(self.recognised[0].mapped.by_places)

    @property
    def description(self) -> str:
        """How the files are read, for the user to check."""
        containers = dict.fromkeys(container.description for container in self.containers if container.description)
        return "; ".join([*containers, *(f"format {layout.name}: {layout.summary}" for layout in self.layouts)])

    @property
    def _members(self) -> list[str]:
        """The files inside of archives."""
        return [container.member for container in self.containers if container.member]

    @property
    def size(self) -> int:
        """Bytes of the files on disk."""
        return sum(container.size for container in self.containers)

    def digest(self, progress: Progress = NO_PROGRESS) -> str:
        """SHA-256 of the content: of the file, or of the files' digests if there are several."""
        return digest_of(self.containers, progress)

    def options(self) -> dict[str, object]:
        """What else determines the battles, for the cache's fingerprint."""
        options: dict[str, object] = {"layout": self.layout.name}
        how = [recognised.mapped.to_json() for recognised in self.recognised]
        if self.layouts != (KAGGLE,) or any(name != path for name, path in self.columns.items()):
            options["read"] = how  # stages of Kaggle's files that earlier versions read are still valid
        if self.source.encoding:
            options["encoding"] = self.source.encoding
        if self.source.source is not None or self.source.file_sources:
            options[SOURCE] = self.source.source or self.source.file_sources
        if self.source.by is not None:
            options["by"] = {"name": self.source.by, "is_column": self.groups_are_a_column}
        if self._members:
            options["members"] = self._members
        return options

    def batches(self, progress: Progress = NO_PROGRESS) -> Iterator[tuple[pa.RecordBatch, ReadCounts]]:
        """The battles in the files' order, a batch at a time, with what was repaired in each.

        ``progress`` is advanced by bytes.

        Raises
        ------
        InputError
            On the first row that is not a battle, or if a file holds none.
        """
        last_numbers: dict[str, int] = {}
        rows_before = 0
        for container, recognised in zip(self.containers, self.recognised, strict=True):
            rows = battles = 0
            for raw in raw_batches(container, recognised.mapped.columns, progress):
                if raw.num_rows:
                    with readable(container.name):
                        location = Location(container.name, rows + 1, rows_before)
                        batch, counts = recognised.mapped.convert(raw, location)
                    if len(self.layouts) > 1:
                        batch = _with_all_columns(batch)
                    has_ids = "id" in recognised.mapped.places
                    invented = 0 if has_ids else batch.num_rows
                    if not recognised.mapped.keeps_ids:
                        read_ids = batch.column("id").to_pylist()
                        ids = [unique_id(battle_id, last_numbers) for battle_id in read_ids]
                        batch = batch.set_column(0, batch.schema.field("id"), pa.array(ids, pa.string()))
                        if has_ids:
                            invented = sum(new != old for new, old in zip(ids, read_ids, strict=True))
                    counts += ReadCounts(invented_ids=invented)
                    yield batch, counts
                    rows += raw.num_rows
                    battles += batch.num_rows
            if not battles:
                raise InputError("the file holds no battles", where=container.name, hint=EXPECTED)
            rows_before += rows


def _with_all_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with every optional column, since a stage has the same columns throughout; null where it has none."""
    schema = pa.schema([*BATTLE_SCHEMA, *OPTIONAL_FIELDS, *(f for f in batch.schema if f.name == groups.COLUMN)])
    present = set(batch.schema.names)
    arrays = [batch.column(f.name) if f.name in present else pa.nulls(batch.num_rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def digest_of(containers: Sequence[Container], progress: Progress = NO_PROGRESS) -> str:
    """SHA-256 of a file, or of the files' digests if there are several; ``progress`` is advanced by bytes."""
    digests = [files.sha256(container.path, progress.advance) for container in containers]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def unique_id(battle_id: str, last_numbers: dict[str, int]) -> str:
    """The id, with a numbered suffix if it was used before; ``last_numbers`` holds used ids and their last number."""
    free, number = battle_id, last_numbers.get(battle_id, 1)
    while free in last_numbers:
        number += 1
        free = f"{battle_id}-{number}"
    last_numbers[battle_id] = number
    last_numbers.setdefault(free, 1)
    return free


def open_battles(
    source: Source | Path,
    preferred: str = "train",
    *,
    outcomes: bool = True,
    usual: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> BattleFile:
    """Recognise the layout of one or more files of battles.

    Parameters
    ----------
    source:
        The files, and how they are read.
    preferred:
        The table to read from an archive that holds several.
    outcomes:
        Whether a file is refused whose outcome is not understood.
    usual:
        How other files of the same kind are read (:attr:`Source.reading`): done so if the source does not say how, and
        the columns allow it. :attr:`BattleFile.source` then has it.
    reporter:
        Gets the progress of what reads a whole file.

    Raises
    ------
    InputError
        If a file cannot be read, its columns match no layout, or the files do not fit together.
    """
    source = Source.of(source)
    if not source.paths:
        raise InputError("no file to read")
    check_different(source.paths)
    containers = tuple(open_container(path, preferred, source.encoding, reporter) for path in source.paths)
    scan_json(containers, reporter)
    if usual and not source.is_described:
        with contextlib.suppress(InputError):
            return _recognise_files(dataclasses.replace(source, **usual), containers, outcomes)
    return _recognise_files(source, containers, outcomes)


def _recognise_files(source: Source, containers: tuple[Container, ...], outcomes: bool) -> BattleFile:
    recognised = tuple(
        recognise(
            container.name,
            column_names(container),
            functools.partial(peek_file, container),
            source,
            outcomes=outcomes,
        )
        for container in containers
    )
    if names := source.file_sources:
        recognised = tuple(
            dataclasses.replace(each, mapped=dataclasses.replace(each.mapped, source=name))
            for each, name in zip(recognised, names, strict=True)
        )
    first = recognised[0].mapped
    for container, other in zip(containers, (one.mapped for one in recognised), strict=True):
        if bool(other.by_places) != bool(first.by_places):
            raise InputError(
                f"column {source.by} is in one file and not in the other",
                where=f"{containers[0].name}, {container.name}",
                hint="Give all files the column, or none.",
            )
        if other.layout is first.layout and (differing := sorted(set(other.places) ^ set(first.places))):
            raise InputError(
                f"column {differing[0]} is in one file and not in the other",
                where=f"{containers[0].name}, {container.name}",
                hint="Files of one layout that are read together must have the same columns.",
            )
    return BattleFile(source, containers, recognised)


def peek_file(container: Container, names: Sequence[str]) -> RawBatch:
    """The first rows of some columns of a file."""
    names = list(dict.fromkeys(names))
    raw = next(raw_batches(container, names), None) if names else None
    return _first_rows(raw or RawBatch({name: [] for name in names}, 0))


def _first_rows(raw: RawBatch) -> RawBatch:
    return RawBatch({name: column[:PEEK_ROWS] for name, column in raw.columns.items()}, min(raw.num_rows, PEEK_ROWS))


@dataclass(frozen=True)
class BattleTable:
    """Battles that were in memory already."""

    battles: pa.RecordBatch
    columns: Mapping[str, str]
    """Where everything was: canonical name -> path."""


def check_has_ids(table: BattleTable) -> None:
    """Refuse a batch of a larger table without ids: each batch would be numbered from 1.

    Raises
    ------
    InputError
        If it has none.
    """
    if "id" not in table.columns:
        raise InputError("there is no column id", where="the table", hint="Name it: columns={'id': NAME}.")


def battles_from(table: Any, source: Source | None = None, **options: Any) -> pa.RecordBatch:
    """The battles of a table in memory, see :func:`read_table`; ``format`` is short for a source with it."""
    if "format" in options:
        source = Source((), format=options.pop("format"))
    return read_table(table, source, **options).battles


def read_table(
    table: Any,
    source: Source | None = None,
    *,
    name: str = "the table",
    outcomes: bool = True,
    usual: Mapping[str, Any] | None = None,
) -> BattleTable:
    """Battles that are in memory already, in any layout that files may have.

    Parameters
    ----------
    table:
        See :func:`~prefcli.readers.tables.raw_table`.
    source:
        How it is read, as a source of no files.
    name:
        The table's name in error messages.
    outcomes, usual:
        See :func:`open_battles`.

    Raises
    ------
    InputError
        If it is not a table, or its rows are not battles.
    """
    raw = raw_table(table, name)
    if not raw.num_rows:
        raise InputError("there are no battles", where=name, hint=EXPECTED)
    source = source or Source(())
    if usual and not source.is_described:
        with contextlib.suppress(InputError):
            return _convert_table(raw, dataclasses.replace(source, **usual), name, outcomes)
    return _convert_table(raw, source, name, outcomes)


def _convert_table(raw: RawBatch, source: Source, name: str, outcomes: bool) -> BattleTable:
    peek = functools.partial(peek_table, raw)
    mapped = recognise(name, list(raw.columns), peek, source, outcomes=outcomes).mapped
    return BattleTable(mapped.convert(raw.select(mapped.columns), Location(name, 1))[0], mapped.names())


def peek_table(raw: RawBatch, names: Sequence[str]) -> RawBatch:
    """The first rows of some columns of a table."""
    return _first_rows(raw.select(names))


def column_batches(path: Path, names: Sequence[str], progress: Progress = NO_PROGRESS) -> Iterator[pa.RecordBatch]:
    """Some columns of a table as strings, spelled as in the file, a batch at a time; ``progress`` goes by bytes.

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
    for raw in raw_batches(container, names, progress):
        location = Location(container.name, row)
        yield pa.record_batch([string_column(raw, name, location) for name in names], names=list(names))
        row += raw.num_rows

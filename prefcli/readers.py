"""Every file format there is, read into battles. The only room that knows formats.

:func:`open_battles` looks at a file's columns, recognises its layout and returns a :class:`BattleFile` whose
``batches()`` stream canonical record batches (see :mod:`prefcli.battles`) with memory that does not grow with the
file. A layout is one entry of :data:`LAYOUTS`: which columns it needs, and how a raw batch becomes battles.

Containers: CSV and Parquet, CSV also inside ``.gz`` and ``.zip``. Everything wrong with a file is an
:class:`~prefcli.errors.InputError` that names file, row (counted from 1, the header not counted) and column.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from prefcli.battles import BATTLE_SCHEMA, TEXT_FIELDS, TURNS, ReadCounts, make_batch
from prefcli.errors import InputError
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS, WINNER_COLUMNS

BLOCK_BYTES = 8 << 20
"""CSV bytes read at a time, and so roughly the text in one batch."""
BATCH_ROWS = 4096
"""Upper bound of battles in one batch."""
LARGEST_BLOCK_BYTES = 1 << 30
"""A single CSV row longer than this is refused."""

RawBatch = pa.RecordBatch
"""Columns as they stand in the file: binary for CSV, whatever the file says for Parquet."""


@dataclass(frozen=True)
class Layout:
    """One way the field writes battles down."""

    name: str
    summary: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    convert: Callable[[RawBatch, Place], tuple[pa.RecordBatch, ReadCounts]]


@dataclass(frozen=True)
class Place:
    """Where in a file a batch stands, for error messages."""

    file: str
    first_row: int

    def error(self, what: str, *, row: int | None = None, column: str = "", hint: str = "") -> InputError:
        """An :class:`InputError` at ``row`` (counted from 0 within this batch)."""
        where = self.file
        if row is not None:
            where += f", row {self.first_row + row}"
        if column:
            where += f", column {column}"
        return InputError(what, where=where, hint=hint)


@dataclass(frozen=True)
class BattleFile:
    """A recognised file of battles.

    Attributes
    ----------
    path:
        The file.
    layout:
        The recognised layout.
    columns:
        The columns found in the file.
    """

    path: Path
    layout: Layout
    columns: tuple[str, ...]

    def batches(self) -> Iterator[tuple[pa.RecordBatch, ReadCounts]]:
        """The battles in the file's order, a batch at a time, with what was repaired in each.

        Raises
        ------
        InputError
            On the first row that is not a battle, or if the file holds none.
        """
        wanted = [name for name in self.columns if name in (*self.layout.needs, *self.layout.may_have)]
        row = 1
        for raw in _raw_batches(self.path, wanted):
            if raw.num_rows:
                yield self.layout.convert(raw, Place(str(self.path), row))
                row += raw.num_rows
        if row == 1:
            raise InputError("the file holds no battles", where=str(self.path), hint=_EXPECTED)


def open_battles(path: Path) -> BattleFile:
    """Recognise the layout of a file of battles.

    Raises
    ------
    InputError
        If the file cannot be read, or its columns fit no known layout.
    """
    columns = _column_names(path)
    for layout in LAYOUTS:
        if set(layout.needs) <= set(columns):
            return BattleFile(path, layout, tuple(columns))
    nearest = min(LAYOUTS, key=lambda layout: len(set(layout.needs) - set(columns)))
    missing = [name for name in nearest.needs if name not in columns]
    raise InputError(
        f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; found {_shorten(columns)}",
        where=str(path),
        hint=_EXPECTED,
    )


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Some columns of a CSV or Parquet file as strings, exactly as they are spelled.

    For files that are not battles (predictions, labels). Numbers in Parquet become their shortest decimal form.

    Raises
    ------
    InputError
        If the file cannot be read or a column is missing.
    """
    found = _column_names(path)
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; found {_shorten(found)}",
            where=str(path),
            hint=f"Expected the columns {', '.join(names)}.",
        )
    batches = []
    row = 1
    for raw in _raw_batches(path, names):
        place = Place(str(path), row)
        batches.append(pa.record_batch([_strings(raw, name, place) for name in names], names=list(names)))
        row += raw.num_rows
    return pa.Table.from_batches(batches, schema=pa.schema([(name, pa.string()) for name in names]))


# Containers: a file -> raw record batches


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


@contextlib.contextmanager
def _open_binary(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a CSV file, decompressed where its name says that it is compressed."""
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            raise InputError("expected a file, found a folder", where=str(path))
        if suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield stream  # type: ignore[misc]
        elif suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(_only_table(archive, path)) as stream:
                yield stream
        else:
            with path.open("rb") as stream:
                yield stream
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), hint="Check the path.") from None
    except PermissionError:
        raise InputError("no permission to read the file", where=str(path)) from None
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise InputError(
            f"the compressed file is damaged: {error}", where=str(path), hint="Download or copy it again."
        ) from None


def _only_table(archive: zipfile.ZipFile, path: Path) -> str:
    tables = [name for name in archive.namelist() if name.lower().endswith(".csv") and not name.startswith("__MACOSX")]
    if len(tables) != 1:
        raise InputError(
            f"expected one .csv inside, found {_shorten(tables) if tables else 'none'}",
            where=str(path),
            hint="Unpack the archive and name the file.",
        )
    return tables[0]


def _column_names(path: Path) -> list[str]:
    if _is_parquet(path):
        with _open_parquet(path) as parquet:
            names = list(parquet.schema_arrow.names)
    else:
        with _open_binary(path) as stream:
            names = _csv_header(stream, path)
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"column {sorted(repeated)[0]!r} occurs twice", where=str(path))
    return names


def _csv_header(stream: IO[bytes], path: Path) -> list[str]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        header = next(csv.reader(text), None)
    except (UnicodeDecodeError, csv.Error):
        raise InputError("not a CSV file in UTF-8", where=str(path), hint=_EXPECTED) from None
    finally:
        with contextlib.suppress(ValueError):
            text.detach()
    if not header:
        raise InputError("the file is empty", where=str(path), hint=_EXPECTED)
    return header


def _raw_batches(path: Path, columns: Sequence[str]) -> Iterator[RawBatch]:
    return _parquet_batches(path, columns) if _is_parquet(path) else _csv_batches(path, columns)


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    if not path.exists():
        raise InputError("no such file", where=str(path), hint="Check the path.")
    if path.is_dir():
        raise InputError("expected a file, found a folder", where=str(path))
    try:
        with pq.ParquetFile(path) as parquet:
            yield parquet
    except PermissionError:
        raise InputError("no permission to read the file", where=str(path)) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"not a readable Parquet file: {_one_line(error)}", where=str(path)) from None


def _parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[RawBatch]:
    with _open_parquet(path) as parquet:
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))


def _csv_batches(path: Path, columns: Sequence[str]) -> Iterator[RawBatch]:
    """CSV through Arrow's reader; every cell stays bytes, so that nothing is guessed about numbers or nulls."""
    import pyarrow.csv

    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.binary()),
        include_columns=list(columns),
        strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    block, done = BLOCK_BYTES, 0
    while True:
        read = pyarrow.csv.ReadOptions(block_size=block, skip_rows_after_names=done, use_threads=False)
        try:
            with (
                _open_binary(path) as stream,
                pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
            ):
                for batch in reader:
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.slice(start, BATCH_ROWS)
                    done += batch.num_rows
            return
        except pa.ArrowInvalid as error:
            # A row longer than the block: go on behind the rows already delivered, with larger blocks.
            if "straddl" in str(error) and block < LARGEST_BLOCK_BYTES:
                block *= 8
                continue
            raise _explain_csv_error(path, error) from None


def _explain_csv_error(path: Path, error: Exception) -> InputError:
    """Arrow knows what is wrong, not always where: read the file again slowly and find the row."""
    csv.field_size_limit(LARGEST_BLOCK_BYTES)
    with _open_binary(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        reader = csv.reader(text, strict=True)
        row = 0
        try:
            width = len(next(reader, []))
            for row, cells in enumerate(reader, start=1):
                if len(cells) not in (0, width):
                    return Place(str(path), 1).error(
                        f"expected {width} cells, found {len(cells)} (line {reader.line_num})",
                        row=row - 1,
                        hint="A cell with commas, quotes or line breaks must be quoted, its quotes doubled.",
                    )
        except csv.Error as slow_error:
            return Place(str(path), 1).error(
                f"not valid CSV: {slow_error}",
                row=row,
                hint="A quote was opened and never closed, or not doubled.",
            )
        finally:
            with contextlib.suppress(ValueError):
                text.detach()
    return InputError(f"not valid CSV: {_one_line(error)}", where=str(path))


# Cells: raw columns -> canonical columns


def _strings(raw: RawBatch, name: str, place: Place) -> pa.Array:
    """A column as strings; bytes must be UTF-8."""
    column = raw.column(raw.schema.get_field_index(name))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type):
        raise place.error(f"expected text, found {column.type}", column=name)
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        for row, cell in enumerate(column.to_pylist()):
            try:
                cell.decode("utf-8")
            except UnicodeDecodeError as error:
                raise place.error(
                    f"byte {error.start} of the cell is not UTF-8",
                    row=row,
                    column=name,
                    hint="Save the file as UTF-8.",
                ) from None
        raise
    except pa.ArrowNotImplementedError:
        raise place.error(f"expected text, found {column.type}", column=name) from None


def _json_turns(raw: RawBatch, name: str, place: Place) -> tuple[pa.Array, int]:
    """Cells that hold JSON lists of turns, as Kaggle writes them -> ``list<string>``, turns with surrogates."""
    decode = json.JSONDecoder().decode
    cells = _strings(raw, name, place).to_pylist()
    turns: list[str | None] = []
    ends = np.empty(len(cells) + 1, dtype=np.int32)
    ends[0] = 0
    for row, cell in enumerate(cells):
        try:
            value = decode(cell)
        except (ValueError, RecursionError, TypeError) as error:
            what = "no text" if cell is None else f"broken JSON: {_one_line(error)}; the cell begins {_excerpt(cell)}"
            raise place.error(
                what,
                row=row,
                column=name,
                hint='Expected a JSON list of turns, such as ["Hello", "And again?"].',
            ) from None
        if type(value) is not list:
            raise place.error(
                f"expected a JSON list of turns, found {_excerpt(cell)}",
                row=row,
                column=name,
                hint=_TURNS_HINT,
            )
        turns += value
        ends[row + 1] = len(turns)
    try:
        flat, surrogates = _text_array(turns)
    except TypeError:
        position = next(i for i, turn in enumerate(turns) if not (turn is None or isinstance(turn, str)))
        row = int(np.searchsorted(ends, position, side="right")) - 1
        raise place.error(
            f"a turn is {_excerpt(json.dumps(turns[position]))}, not text",
            row=row,
            column=name,
            hint=_TURNS_HINT,
        ) from None
    return pa.ListArray.from_arrays(pa.array(ends), flat), surrogates


_SURROGATE = re.compile("[\ud800-\udfff]")


def _text_array(texts: list[str | None]) -> tuple[pa.Array, int]:
    """Texts as an Arrow array; lone surrogates, which UTF-8 cannot hold, become U+FFFD and are counted."""
    try:
        return pa.array(texts, pa.string()), 0
    except UnicodeEncodeError:
        repaired = [text and _SURROGATE.sub("\ufffd", text) for text in texts]
        changed = sum(a != b for a, b in zip(texts, repaired, strict=True))
        return pa.array(repaired, pa.string()), changed
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(str(error)) from None


def _turn_lists(raw: RawBatch, name: str, place: Place) -> tuple[pa.Array, int]:
    """A column of turns: JSON text (CSV, Kaggle's Parquet) or Arrow lists of strings (our own Parquet)."""
    column = raw.column(raw.schema.get_field_index(name))
    if not pa.types.is_nested(column.type):
        return _json_turns(raw, name, place)
    try:
        lists = column.cast(TURNS)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise place.error(f"expected lists of text, found {column.type}", column=name) from None
    if lists.null_count:
        row = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
        raise place.error("no text", row=row, column=name, hint=_TURNS_HINT)
    return lists, 0


_ZERO_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "False": 0, "True": 1}


def _one_hot_label(raw: RawBatch, place: Place) -> pa.Array:
    """Kaggle's three winner columns -> label; all three empty means unknown."""
    cells = [_strings(raw, name, place).to_pylist() for name in WINNER_COLUMNS]
    labels: list[int | None] = []
    for row, triple in enumerate(zip(*cells, strict=True)):
        if not any(triple):
            labels.append(None)
            continue
        values = [_ZERO_ONE.get(cell or "") for cell in triple]
        if None in values:
            column = values.index(None)
            raise place.error(
                f"expected 0 or 1, found {_excerpt(triple[column] or '')}",
                row=row,
                column=WINNER_COLUMNS[column],
                hint=f"For probabilities as labels name the columns {', '.join(SOFT_LABEL_COLUMNS)}.",
            )
        if sum(values) != 1:  # type: ignore[arg-type]
            found = "no winner" if not any(values) else f"{sum(values)} winners"  # type: ignore[arg-type]
            raise place.error(
                f"{found}: {', '.join(f'{n}={c}' for n, c in zip(WINNER_COLUMNS, triple, strict=True))}",
                row=row,
                hint="Exactly one of the three winner columns must be 1.",
            )
        labels.append(values.index(1))
    return pa.array(labels, pa.int8())


# Layouts: which columns, and how they become battles


def _convert_kaggle(raw: RawBatch, place: Place) -> tuple[pa.RecordBatch, ReadCounts]:
    columns: dict[str, pa.Array] = {"id": _strings(raw, "id", place)}
    surrogates = 0
    for name in TEXT_FIELDS:
        columns[name], repaired = _turn_lists(raw, name, place)
        surrogates += repaired
    for name in ("model_a", "model_b"):
        if name in raw.schema.names:
            columns[name] = _strings(raw, name, place)
    winners = [name for name in WINNER_COLUMNS if name in raw.schema.names]
    if winners:
        if missing := [name for name in WINNER_COLUMNS if name not in winners]:
            raise place.error(
                f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
                hint="A labelled file has all three winner columns, an unlabelled one has none.",
            )
        columns["label"] = _one_hot_label(raw, place)
    elif "label" in raw.schema.names:
        columns["label"] = _label_numbers(raw, place)
    for name in SOFT_LABEL_COLUMNS:
        if name in raw.schema.names and pa.types.is_floating(raw.schema.field(name).type):
            columns[name] = raw.column(raw.schema.get_field_index(name))
    if (ids := columns["id"]).null_count:
        raise place.error(
            "no id", row=int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0]), column="id"
        )
    batch = make_batch(columns)
    label = batch.column(batch.schema.get_field_index("label"))
    return batch, ReadCounts(
        battles=batch.num_rows,
        labelled=batch.num_rows - label.null_count,
        surrogates=surrogates,
        null_turns=sum(columns[name].flatten().null_count for name in TEXT_FIELDS),
    )


def _label_numbers(raw: RawBatch, place: Place) -> pa.Array:
    """A ``label`` column of our own Parquet: 0, 1, 2 or null."""
    cells = _strings(raw, "label", place).to_pylist()
    known = {str(i): i for i in range(len(OUTCOMES))}
    for row, cell in enumerate(cells):
        if cell and cell not in known:
            raise place.error(f"expected 0, 1 or 2, found {_excerpt(cell)}", row=row, column="label")
    return pa.array([known[cell] if cell else None for cell in cells], pa.int8())


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="kaggle",
        summary="LMSYS - Chatbot Arena's train.csv and test.csv: turns as JSON lists, winners one-hot",
        needs=("id", *TEXT_FIELDS),
        may_have=("model_a", "model_b", *WINNER_COLUMNS, "label", *SOFT_LABEL_COLUMNS),
        convert=_convert_kaggle,
    ),
)

_EXPECTED = "Expected Kaggle's layout: id, prompt, response_a, response_b; for training also winner_model_a, winner_model_b, winner_tie."
_TURNS_HINT = 'Expected a list of turns, each text or null, such as ["Hello", null].'


def _one_line(error: object, limit: int = 160) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _excerpt(cell: str, limit: int = 40) -> str:
    return repr(cell if len(cell) <= limit else cell[: limit - 1] + "…")


def _shorten(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(_one_line(name, 40) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


__all__ = ["BATTLE_SCHEMA", "LAYOUTS", "BattleFile", "Layout", "open_battles", "read_columns"]

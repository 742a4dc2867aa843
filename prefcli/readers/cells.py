"""Cells: raw columns -> canonical columns, and where in a file something stands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefcli.battles import TURNS
from prefcli.errors import InputError, one_line

TURNS_HINT = 'Expected a JSON list of turns, each text or null, such as ["Hello", null].'


@dataclass(frozen=True)
class Place:
    """Where in a file a batch stands, for error messages."""

    file: str
    first_row: int
    rows_before: int = 0
    """Rows of the files read before this one."""

    def error(self, what: str, *, row: int | None = None, column: str = "", hint: str = "") -> InputError:
        """An :class:`InputError` at ``row`` (counted from 0 within this batch)."""
        where = self.file
        if row is not None:
            where += f", row {self.first_row + row}"
        if column:
            where += f", column {column}"
        return InputError(what, where=where, hint=hint)


@dataclass(frozen=True)
class RawBatch:
    """Columns as they stand in a file: Arrow arrays (bytes for CSV), or lists of Python values for JSON."""

    columns: Mapping[str, Any]
    num_rows: int

    @staticmethod
    def of(batch: pa.RecordBatch) -> RawBatch:
        """A record batch, dictionaries decoded."""
        columns = {
            name: column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        return RawBatch(columns, batch.num_rows)

    def renamed(self, names: Mapping[str, str]) -> RawBatch:
        """The same columns under the names that ``names`` (name in the file -> name here) gives them."""
        return RawBatch({names[name]: column for name, column in self.columns.items()}, self.num_rows)

    def only(self, names: Sequence[str]) -> RawBatch:
        """Some of the columns."""
        return RawBatch({name: self.columns[name] for name in names}, self.num_rows)

    def slice_first(self) -> RawBatch:
        """The first row alone."""
        return RawBatch({name: column[:1] for name, column in self.columns.items()}, min(1, self.num_rows))

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def is_nested(self, name: str) -> bool:
        """Whether a column holds lists or objects rather than text."""
        column = self.columns[name]
        if isinstance(column, list):
            return any(isinstance(cell, (list, dict)) for cell in column)
        return bool(pa.types.is_nested(column.type))


def strings(raw: RawBatch, name: str, place: Place) -> pa.Array:
    """A column as strings; bytes must be UTF-8, numbers become their shortest decimal form."""
    column = raw.columns[name]
    if isinstance(column, list):
        return text_array([_plain(cell, row, name, place) for row, cell in enumerate(column)])[0]
    if pa.types.is_nested(column.type):
        raise place.error(f"expected text, found {one_line(column.type, 60)}", column=name)
    try:
        return column.cast(pa.string())
    except pa.ArrowNotImplementedError:
        raise place.error(f"expected text, found {one_line(column.type, 60)}", column=name) from None
    except pa.ArrowInvalid as error:
        raise _no_text(column, name, place, error) from None


def _no_text(column: pa.Array, name: str, place: Place, error: Exception) -> InputError:
    """Why a column cannot be cast to strings: a cell that is not UTF-8, or what Arrow says."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        for row, cell in enumerate(column.to_pylist()):
            try:
                (cell or b"").decode("utf-8")
            except UnicodeDecodeError as wrong:
                return place.error(
                    f"byte {wrong.start} of the cell is not UTF-8",
                    row=row,
                    column=name,
                    hint="Save the file as UTF-8.",
                )
    return place.error(f"cannot read {one_line(column.type, 60)} as text: {one_line(error)}", column=name)


def texts(raw: RawBatch, name: str, place: Place) -> list[str | None]:
    """A column as Python strings, empty text and missing cells both None."""
    return [cell or None for cell in strings(raw, name, place).to_pylist()]


def _plain(cell: Any, row: int, name: str, place: Place) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, (list, dict)):
        raise place.error(f"expected text, found {shown(cell)}", row=row, column=name)
    return json.dumps(cell)


def first_null(column: pa.Array) -> int:
    """The first row of a column without a value."""
    return int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])


# Turns


def turn_lists(raw: RawBatch, name: str, place: Place) -> tuple[pa.Array, int]:
    """A column of turns -> ``list<string>``, and how many turns held lone surrogates.

    The turns stand there as JSON text (CSV, Kaggle's Parquet) or as lists (JSON, our own Parquet).
    """
    column = raw.columns[name]
    if isinstance(column, list):
        return lists_of_turns([_decoded(cell, row, name, place) for row, cell in enumerate(column)], name, place)
    if not pa.types.is_nested(column.type):
        cells = strings(raw, name, place).to_pylist()
        return lists_of_turns([_decoded(cell, row, name, place) for row, cell in enumerate(cells)], name, place)
    try:
        lists = column.cast(TURNS)
    except pa.ArrowException:
        raise place.error(
            f"expected lists of text, found {one_line(column.type, 60)}", column=name, hint=TURNS_HINT
        ) from None
    if lists.null_count:
        raise place.error("no text", row=first_null(lists), column=name, hint=TURNS_HINT)
    return lists, 0


_decode = json.JSONDecoder().decode


def _decoded(cell: Any, row: int, name: str, place: Place) -> list[Any]:
    if type(cell) is list:
        return cell
    try:
        value = _decode(cell)
    except (ValueError, RecursionError, TypeError) as error:
        what = f"broken JSON: {one_line(error)}; the cell begins {excerpt(cell)}" if cell else "no text"
        hint = TURNS_HINT + (" For plain text add --format generic." if cell else "")
        raise place.error(what, row=row, column=name, hint=hint) from None
    if type(value) is not list:
        raise place.error(
            f"expected a JSON list of turns, found {excerpt(cell)}", row=row, column=name, hint=TURNS_HINT
        )
    return value


def lists_of_turns(rows: Sequence[list[Any]], name: str, place: Place) -> tuple[pa.Array, int]:
    """Python lists of turns as an Arrow column, and how many turns held lone surrogates."""
    turns: list[Any] = []
    ends = np.zeros(len(rows) + 1, dtype=np.int32)
    for row, value in enumerate(rows, start=1):
        turns += value
        ends[row] = len(turns)
    try:
        flat, surrogates = text_array(turns)
    except TypeError:
        position = next(i for i, turn in enumerate(turns) if not (turn is None or isinstance(turn, str)))
        row = int(np.searchsorted(ends, position, side="right")) - 1
        raise place.error(
            f"a turn is {shown(turns[position])}, not text", row=row, column=name, hint=TURNS_HINT
        ) from None
    return pa.ListArray.from_arrays(pa.array(ends), flat), surrogates


_SURROGATE = re.compile("[\ud800-\udfff]")


def text_array(values: list[Any]) -> tuple[pa.Array, int]:
    """Texts as an Arrow array; lone surrogates, which UTF-8 cannot hold, become U+FFFD and are counted.

    Raises
    ------
    TypeError
        If a value is neither text nor None.
    """
    try:
        return pa.array(values, pa.string()), 0
    except UnicodeEncodeError:
        repaired = [_SURROGATE.sub("\ufffd", text) if isinstance(text, str) else text for text in values]
        changed = sum(a != b for a, b in zip(values, repaired, strict=True))
        return text_array(repaired)[0], changed
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(str(error)) from None


# Labels


def soft_labels(raw: RawBatch, names: Sequence[str], place: Place) -> dict[str, pa.Array]:
    """Three columns of probabilities as float32; a row has all of them, summing to 1 within 1e-3, or none."""
    columns = [texts(raw, name, place) for name in names]
    for row, cells in enumerate(zip(*columns, strict=True)):
        if cells == (None,) * len(names):
            continue
        total = 0.0
        for name, cell in zip(names, cells, strict=True):
            try:
                value = float(cell if cell is not None else "nan")
            except ValueError:
                value = math.nan
            if not 0 <= value <= 1:
                raise place.error(
                    f"expected a probability, found {excerpt(cell) if cell else 'nothing'}", row=row, column=name
                )
            total += value
        if abs(total - 1) > 1e-3:
            raise place.error(
                f"{' + '.join(names)} is {total:g}, not 1", row=row, hint="A row's soft labels are probabilities."
            )
    return {
        name: pa.array([None if cell is None else float(cell) for cell in column], pa.float32())
        for name, column in zip(names, columns, strict=True)
    }


# Words for messages


def excerpt(cell: object, limit: int = 40) -> str:
    """The beginning of a cell, quoted."""
    text = cell if isinstance(cell, str) else str(cell)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def shown(value: object) -> str:
    """The beginning of a JSON value, quoted."""
    try:
        return excerpt(json.dumps(value))
    except RecursionError:
        return "something nested too deeply"


def shorten(names: Sequence[str], limit: int = 12) -> str:
    """Names in a row, the first dozen of them."""
    first = ", ".join(one_line(name, 40) for name in names[:limit])
    return first + (f" and {len(names) - limit} more" if len(names) > limit else "")

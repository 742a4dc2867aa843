"""Raw columns and their cells -> canonical columns, and locations in a file for error messages."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefcli.battles import TURNS
from prefcli.errors import InputError, one_line


def encoding_hint(text: bytes) -> str:
    """How to read text that is not UTF-8: as Chinese, if all of its other bytes come in pairs, else as Windows' own."""
    runs = re.findall(rb"[\x80-\xff]+", text)
    paired = bool(runs) and all(len(run) % 2 == 0 for run in runs)
    names = "gb18030 (if it is Chinese)" if paired else "cp1252"
    return f"Save the file as UTF-8, or name its encoding: --encoding {names}"


TURNS_HINT = 'Expected a JSON list of turns, each text or null, such as ["Hello", null].'


@dataclass(frozen=True)
class Location:
    """Where a batch stands in a file, for error messages."""

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
    """Columns as a file stores them: Arrow arrays (bytes for CSV), or lists of Python values for JSON."""

    columns: Mapping[str, Any]
    num_rows: int

    @staticmethod
    def from_arrow(batch: pa.RecordBatch) -> RawBatch:
        """A record batch, dictionaries decoded."""
        columns = {
            name: column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        return RawBatch(columns, batch.num_rows)

    def select(self, names: Sequence[str]) -> RawBatch:
        """Some of the columns."""
        return RawBatch({name: self.columns[name] for name in names}, self.num_rows)


def string_column(raw: RawBatch, name: str, location: Location) -> pa.Array:
    """A column as strings; bytes must be UTF-8, numbers become their shortest decimal form."""
    column = raw.columns[name]
    if isinstance(column, list):
        return string_array([_to_text(cell, row, name, location) for row, cell in enumerate(column)])[0]
    if not pa.types.is_nested(column.type):
        try:
            return column.cast(pa.string())
        except pa.ArrowNotImplementedError:
            pass
        except pa.ArrowInvalid as error:
            raise _not_text(column, name, location, error) from None
    raise location.error(f"expected text, found {one_line(column.type, 60)}", column=name)


def _not_text(column: pa.Array, name: str, location: Location, error: Exception) -> InputError:
    """Why a column cannot be cast to strings: the cell that is not UTF-8, or Arrow's reason."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        for row, cell in enumerate(column.to_pylist()):
            try:
                (cell or b"").decode("utf-8")
            except UnicodeDecodeError as decode_error:
                return location.error(
                    f"byte {decode_error.start} of the cell is not UTF-8",
                    row=row,
                    column=name,
                    hint=encoding_hint(cell or b""),
                )
    return location.error(f"cannot read {one_line(column.type, 60)} as text: {one_line(error)}", column=name)


def _to_text(cell: Any, row: int, name: str, location: Location) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, (list, dict)):
        raise location.error(f"expected text, found {json_excerpt(cell)}", row=row, column=name)
    return json.dumps(cell)


def first_null_row(column: pa.Array) -> int:
    """The first row of a column without a value."""
    return int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])


def turns_column(raw: RawBatch, name: str, location: Location) -> tuple[pa.Array, int]:
    """A column of turns as ``list<string>``, and how many turns held lone surrogates.

    The file stores them as JSON text (CSV, Kaggle's Parquet) or as lists (JSON, prefcli's own Parquet).
    """
    column = raw.columns[name]
    if isinstance(column, list) or not pa.types.is_nested(column.type):
        cells = column if isinstance(column, list) else string_column(raw, name, location).to_pylist()
        return turns_array([_parse_turns(cell, row, name, location) for row, cell in enumerate(cells)], name, location)
    try:
        lists = column.cast(TURNS)
    except pa.ArrowException:
        raise location.error(
            f"expected lists of text, found {one_line(column.type, 60)}", column=name, hint=TURNS_HINT
        ) from None
    if lists.null_count:
        raise location.error("no text", row=first_null_row(lists), column=name, hint=TURNS_HINT)
    return lists, 0


_decode_json = json.JSONDecoder().decode
LIKE_MESSAGES = re.compile(
    r"""\s*(?:\[\s*)?\{\s*(?:['"](?:content|value)['"]\s*:.*)?['"](?:role|from)['"]\s*:""",
    re.DOTALL,
)
"""The beginning of text that is messages, written as JSON or as Python writes them."""
_PYTHON_MESSAGES = re.compile(r"(?:\[\s*)?\{\s*'")
_PYTHON_ITEM = re.compile(r"""\s*('[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"|None)\s*(,|\]\s*\Z)""")
"""An item of a list of text as Python prints it, and what follows it."""


def parse_nested(text: str) -> Any:
    """JSON, or the list or dictionary that Python prints and pandas so writes into a CSV file.

    ``['Hi' 'there']``, as NumPy prints arrays, is neither: Python would join the two texts.

    Raises
    ------
    ValueError, RecursionError
        If it is neither; the message is that of the JSON decoder.
    """
    try:
        return _decode_json(text)
    except ValueError:
        if not text.startswith(("[", "{")):
            raise
        items = _parse_python_list(text) if text.startswith("[") else None
        if items is not None:
            return items
        if not _PYTHON_MESSAGES.match(text):
            raise
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return _literal(text)
        raise


def parsed(cell: Any) -> Any:
    """What text holds as JSON, or as Python writes it; other cells, and text that is neither, as they are."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return parse_nested(cell.strip())
    return cell


def _literal(text: str) -> Any:
    """What Python prints; without its warnings about unknown escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def _parse_python_list(cell: str) -> list[Any] | None:
    items: list[Any] = []
    position = cell.index("[") + 1
    while item := _PYTHON_ITEM.match(cell, position):
        try:
            items.append(_literal(item[1]))
        except (ValueError, SyntaxError):  # no such escape
            return None
        if item[2] != ",":
            return items
        position = item.end()
    return None


def _parse_turns(cell: Any, row: int, name: str, location: Location) -> list[Any]:
    if type(cell) is list:
        return cell
    try:
        try:
            value = _decode_json(cell)
        except ValueError:
            value = parse_nested(cell)
    except (ValueError, RecursionError, TypeError) as error:
        what = f"broken JSON: {one_line(error)}; the cell begins {excerpt(cell)}" if cell else "no text"
        hint = TURNS_HINT + (" For plain text add --format generic." if cell else "")
        raise location.error(what, row=row, column=name, hint=hint) from None
    if type(value) is not list:
        raise location.error(
            f"expected a JSON list of turns, found {excerpt(cell)}", row=row, column=name, hint=TURNS_HINT
        )
    return value


def turns_array(rows: Sequence[list[Any]], name: str, location: Location) -> tuple[pa.Array, int]:
    """Python lists of turns as ``list<string>``, and how many turns held lone surrogates."""
    turns: list[Any] = []
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    for row, value in enumerate(rows, start=1):
        turns += value
        offsets[row] = len(turns)
    try:
        values, surrogates = string_array(turns)
    except TypeError:
        position = next(i for i, turn in enumerate(turns) if not (turn is None or isinstance(turn, str)))
        row = int(np.searchsorted(offsets, position, side="right")) - 1
        raise location.error(
            f"a turn is {json_excerpt(turns[position])}, not text", row=row, column=name, hint=TURNS_HINT
        ) from None
    return pa.ListArray.from_arrays(pa.array(offsets), values), surrogates


_SURROGATE = re.compile("[\ud800-\udfff]")


def string_array(values: list[Any]) -> tuple[pa.Array, int]:
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
        return string_array(repaired)[0], changed
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TypeError(str(error)) from None


def excerpt(cell: object, limit: int = 40) -> str:
    """The beginning of a cell, quoted."""
    text = str(cell)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def json_excerpt(value: object) -> str:
    """The beginning of a JSON value, quoted."""
    try:
        return excerpt(json.dumps(value, default=str))
    except RecursionError:
        return "something nested too deeply"


def list_names(names: Sequence[str], limit: int = 12) -> str:
    """Names separated by commas; of many only the first."""
    first = ", ".join(one_line(name, 40) for name in names[:limit])
    return first + (f" and {len(names) - limit} more" if len(names) > limit else "")


def missing_columns(missing: Sequence[str], present: Sequence[str] = ()) -> str:
    """The message for columns that a file should have."""
    found = f"; found {list_names(present)}" if present else ""
    return f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}{found}"

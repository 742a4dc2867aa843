"""Tables in memory to raw columns: DataFrames, Arrow tables, datasets, dictionaries of columns, rows."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from prefcli.errors import InputError
from prefcli.readers.cells import Location, RawBatch, excerpt

EXPECTED = (
    "Expected a DataFrame (pandas or polars), a pyarrow Table, a datasets.Dataset, a list of dictionaries, or a "
    "dictionary of columns."
)
_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
_MISSING = ("NAType", "NaTType")
"""Types of pandas' missing values; pandas is not imported for them."""


def raw_table(table: Any, name: str) -> RawBatch:
    """The columns of a table as lists of Python values: text, numbers, lists and dictionaries, None where empty.

    Parameters
    ----------
    table:
        A DataFrame of pandas or polars, or whatever else exports Arrow data; a ``datasets.Dataset``; a dictionary of
        columns; rows as dictionaries, from a list or a generator.
    name:
        The table's name in error messages.

    Raises
    ------
    InputError
        If it is none of these, a column occurs twice, or a cell holds something else.
    """
    location = Location(name, 1)
    columns = _columns(table, name)
    if repeated := [column for column, count in Counter(column for column, _ in columns).items() if count > 1]:
        raise InputError(f"column {excerpt(repeated[0])} occurs twice", where=name, hint="Rename or drop one of them.")
    lengths = {len(cells) for _, cells in columns}
    if len(lengths) > 1:
        raise InputError(
            "the columns are of different lengths",
            where=name,
            hint="A dictionary holds columns; a single battle goes into a list: [battle].",
        )
    plain = {column: _plain_column(cells, column, location) for column, cells in columns}
    return RawBatch(plain, lengths.pop() if lengths else 0)


def _columns(table: Any, name: str) -> list[tuple[str, Sequence[Any]]]:
    """Names and cells; a name may occur twice."""
    if hasattr(table, "isna") and hasattr(table, "iloc") and hasattr(table, "columns"):  # pandas, not imported for it
        objects = table.astype(object)
        return [(str(column), objects.iloc[:, i].tolist()) for i, column in enumerate(table.columns)]
    if isinstance(table, Mapping):
        return _columns_of_dictionary(table, name)
    if hasattr(table, "with_format") and hasattr(table, "__getitem__"):  # a datasets.Dataset may be some rows of a file
        table = table.with_format("arrow")[:]
    if hasattr(table, "__arrow_c_stream__"):
        with contextlib.suppress(pa.ArrowInvalid):  # a single column
            table = pa.table(table)
    if isinstance(table, pa.Table):
        return [(column, cells.to_pylist()) for column, cells in zip(table.column_names, table.columns, strict=True)]
    rows: list[Any] = list(table) if isinstance(table, Iterable) and not isinstance(table, (str, bytes)) else [None]
    if not all(isinstance(row, Mapping) for row in rows):
        lazy = " Collect a lazy frame first: table.collect()." if hasattr(table, "collect") else ""
        raise InputError(f"{name} is {type(table).__name__}", hint=EXPECTED + lazy)
    names = dict.fromkeys(key for row in rows for key in row)
    return [(str(key), [row.get(key) for row in rows]) for key in names]


def _columns_of_dictionary(table: Mapping[Any, Any], name: str) -> list[tuple[str, Sequence[Any]]]:
    for column, cells in table.items():
        if not isinstance(cells, (list, tuple, np.ndarray)):
            raise InputError(
                f"{name} is a dictionary whose {excerpt(column)} is {type(cells).__name__}, not a column",
                hint=f"A single battle goes into a list: [battle]; of several tables pass one: table[{column!r}].",
            )
    return [(str(column), cells) for column, cells in table.items()]


def _plain_column(cells: Sequence[Any], column: str, location: Location) -> list[Any]:
    plain = []
    for row, cell in enumerate(cells):
        try:
            plain.append(_plain(cell))
        except (TypeError, UnicodeDecodeError):
            raise location.error(
                f"a cell is {type(cell).__name__}",
                row=row,
                column=column,
                hint="Cells are text, numbers, and lists or dictionaries of them.",
            ) from None
    return plain


def _plain(cell: Any) -> Any:
    """A cell as JSON would have it.

    Raises
    ------
    TypeError
        If JSON has nothing like it.
    """
    if cell is None or type(cell) in (str, int, bool):
        return cell
    if isinstance(cell, float):
        return None if math.isnan(cell) else float(cell)
    if isinstance(cell, str):
        return str(cell)
    if isinstance(cell, bytes):
        return cell.decode("utf-8")
    if isinstance(cell, Mapping):
        return {str(key): _plain(value) for key, value in cell.items()}
    if isinstance(cell, (list, tuple)):
        return [_plain(item) for item in cell]
    if isinstance(cell, (np.ndarray, np.generic)):
        items = cell.tolist()
        if isinstance(items, type(cell)):
            raise TypeError
        return _plain(items)
    if type(cell).__name__ in _MISSING:
        return None
    if isinstance(cell, _AS_TEXT):
        return str(cell)
    raise TypeError

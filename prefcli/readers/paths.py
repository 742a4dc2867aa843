"""Where a value is in a row: ``prompt``, ``input.messages``, ``completions.0.text``, or several joined by ``+``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefcli.errors import InputError, did_you_mean, one_line
from prefcli.readers.cells import Location, RawBatch, excerpt, list_names, parse_nested, string_column

_INDEX = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class ColumnPath:
    """A column of the file, and the keys and positions that lead to a value inside of its cells."""

    column: str
    steps: tuple[str, ...] = ()
    """Keys; positions from 0, negative ones from the end; ``:-1`` is a list without its last item."""

    def __str__(self) -> str:
        return ".".join((self.column, *self.steps))


Places = tuple[ColumnPath, ...]
"""Several places are joined."""


def normalise(name: str) -> str:
    """A column's name without case, and with underscores for white space and hyphens."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def find_column(name: str, columns: Sequence[str]) -> str | None:
    """The column of this name; if there is none, the one that differs in case, white space or hyphens only."""
    if name in columns:
        return name
    wanted = normalise(name)
    alike = [column for column in columns if normalise(column) == wanted]
    return alike[0] if len(alike) == 1 else None


def parse_places(text: str, columns: Sequence[str], where: str, option: str = "--columns") -> Places:
    """The places that a path names in a file with these columns.

    A column whose own name contains dots or ``+`` is preferred over a path.

    Raises
    ------
    InputError
        If there is no such column.
    """
    if (column := find_column(text, columns)) is not None:
        return (ColumnPath(column),)
    places = []
    for part in map(str.strip, text.split("+")):
        keys = part.split(".")
        for end in range(len(keys), 0, -1):
            if (column := find_column(".".join(keys[:end]), columns)) is not None:
                places.append(ColumnPath(column, tuple(keys[end:])))
                break
        else:
            raise InputError(
                f"missing column {keys[0]}; found {list_names(columns)}",
                where=where,
                hint=did_you_mean(keys[0], columns) or f"{option} takes names of columns, and paths into them: a.b.0.",
            )
    return tuple(places)


def cell_at(value: Any, steps: Sequence[str]) -> Any:
    """The value that the steps lead to; None if a key or a position is missing. Text is entered as JSON.

    Raises
    ------
    ValueError, RecursionError
        If text that is to be entered is not JSON.
    """
    for step in steps:
        if isinstance(value, str) and value.strip():
            value = parse_nested(value.strip())
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, (list, tuple)) and step == ":-1":
            value = list(value[:-1])
        elif isinstance(value, (list, tuple)) and _INDEX.fullmatch(step):
            position = int(step)
            value = value[position] if -len(value) <= position < len(value) else None
        else:
            return None
    return None if is_missing(value) else value


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def column_cells(raw: RawBatch, places: Places, location: Location) -> list[Any]:
    """The cells at some places as Python values; several texts are joined by a line break, messages to a list.

    What is empty, or the same as before, is left out.
    """
    columns = [_cells_at(python_cells(raw, place.column, location), place, location) for place in places]
    return columns[0] if len(columns) == 1 else [_join(cells) for cells in zip(*columns, strict=True)]


def _cells_at(cells: list[Any], place: ColumnPath, location: Location) -> list[Any]:
    values = []
    for row, cell in enumerate(cells):
        try:
            values.append(cell_at(cell, place.steps))
        except (ValueError, RecursionError) as error:
            what = f"broken JSON: {one_line(error)}; the cell begins {excerpt(cell)}"
            raise location.error(what, row=row, column=place.column) from None
    return values


def _join(cells: Sequence[Any]) -> Any:
    present = [cell for i, cell in enumerate(cells) if cell not in (None, "", []) and cell not in cells[:i]]
    if len(present) <= 1:
        return next(iter(present), None)
    if not any(isinstance(cell, (list, dict)) for cell in present):
        return "\n".join(map(as_text, present))
    messages: list[Any] = []
    for cell in present:
        if isinstance(cell, list):
            messages += cell
        else:
            messages.append(cell if isinstance(cell, dict) else {"role": "user", "content": as_text(cell)})
    return messages


def as_text(cell: Any) -> str:
    """Text as it is; numbers and booleans as JSON spells them."""
    return cell if isinstance(cell, str) else json.dumps(cell, default=str)


def python_cells(raw: RawBatch, name: str, location: Location) -> list[Any]:
    """A column as Python values; the bytes of a text file become text."""
    column = raw.columns[name]
    if isinstance(column, list):
        return column
    kind = column.type
    if pa.types.is_floating(kind):  # through the shortest decimal form: 0.1 as float32 is 0.1
        return [None if text is None else float(text) for text in column.cast(pa.string()).to_pylist()]
    if not (pa.types.is_nested(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        column = string_column(raw, name, location)
    try:
        cells: list[Any] = _without_unread_fields(column).to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise location.error(f"cannot read {one_line(kind, 60)}: {one_line(error)}", column=name) from None
    return cells


MESSAGE_FIELDS = ("role", "content")


def _without_unread_fields(column: pa.Array) -> pa.Array:
    """Conversations with roles and texts only: making Python objects of whole structs is many times slower."""
    kind = column.type
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return column
    names = [field.name for field in kind.value_type]
    if len(names) == len(MESSAGE_FIELDS) or not set(MESSAGE_FIELDS) <= set(names):
        return column
    items = column.flatten()
    fields = [_without_unread_fields(pc.struct_field(items, name)) for name in MESSAGE_FIELDS]
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    structs = pa.StructArray.from_arrays(fields, MESSAGE_FIELDS)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, mask=column.is_null())

"""What is known of a file before it is read: its columns, what the user says of them, and its first rows."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefcli.battles import Source
from prefcli.errors import InputError, closest_name
from prefcli.readers import layouts
from prefcli.readers.cells import LIKE_MESSAGES, Location, RawBatch, list_names, parsed
from prefcli.readers.conversations import is_transcript
from prefcli.readers.outcome_rules import comparable
from prefcli.readers.paths import (
    ColumnPath,
    Places,
    column_cells,
    find_column,
    is_missing,
    normalise,
    parse_places,
)

EXPECTED = (
    "Expected prompt, response_a, response_b and winner; conversation_a and conversation_b; or chosen and rejected. "
    "Other names with --columns prompt=NAME,..., other outcomes with --outcome, lists of answers with --each."
)
PEEK_ROWS = 100
MAX_COLUMNS = 100
"""Columns that are looked at."""
MAX_JOINED = 3
"""Columns that a hint proposes to join."""

Peek = Callable[[Sequence[str]], RawBatch]
"""The first rows of some columns."""

LIKE_LIST = re.compile(r"""\s*\[\s*['"].*['"]\s*\]\s*""", re.DOTALL)


class FileColumns:
    """The columns of a file, as the user maps them, with a look at their first rows.

    Parameters
    ----------
    where, names:
        The file's name and its columns.
    peek:
        Gives the first rows of some columns; without rows if the file has none.
    source:
        What the user says.
    """

    def __init__(self, where: str, names: Sequence[str], peek: Peek, source: Source) -> None:
        self.where, self.source, self._peek = where, source, peek
        mapping = source.columns or {}
        self.unmapped = {name for name, path in mapping.items() if not path}
        hidden = {find_column(name, names) for name in self.unmapped}
        self.all_names = list(names)
        self.names = [name for name in names if name not in hidden]
        self.given = {name: self.places(path) for name, path in mapping.items() if path}
        used = {place.column for places in self.given.values() for place in places if not place.steps}
        self.free = [name for name in self.names if name not in used]
        """Columns that the user has not given another name."""
        self.location = Location(where, 1)

    def error(self, what: str, hint: str) -> InputError:
        """An error in this file."""
        return InputError(what, where=self.where, hint=hint)

    def places(self, path: str, option: str = "--columns") -> Places:
        """The places that a path names."""
        return parse_places(path, self.names, self.where, option)

    def find(self, name: str) -> str | None:
        """The free column of that name."""
        return find_column(name, self.free)

    def first(self, names: Sequence[str]) -> str | None:
        """The first of the names that is a free column."""
        return next((column for name in names if name not in self.unmapped and (column := self.find(name))), None)

    def absent(self, names: Sequence[str]) -> list[str]:
        """Those canonical names that neither the file has nor the user maps."""
        return [name for name in names if name not in self.given and not self.find(name)]

    def pairs(self, stems: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs of free columns whose names differ by a and b, or by numbers.

        Raises
        ------
        InputError
            If a third column continues a pair.
        """
        by_name = {normalise(name): name for name in self.free}
        pairs = []
        for stem in stems:
            for first, second, third in layouts.SUFFIXES:
                if stem + first in by_name and stem + second in by_name:
                    pairs.append((by_name[stem + first], by_name[stem + second]))
                    if stem + third in by_name:
                        raise self.error(
                            f"more than two of a kind: {', '.join((*pairs[-1], by_name[stem + third]))}; "
                            f"found {list_names(self.all_names)}",
                            f"Name two: --columns response_a={pairs[-1][0]},response_b={pairs[-1][1]}",
                        )
        return pairs

    def pair_of_answers(self) -> tuple[str, str] | None:
        """The columns of the two answers under other names, if there is exactly one such pair."""
        pairs = self.pairs(layouts.ANSWER_STEMS)
        return pairs[0] if len(pairs) == 1 else None

    def pair_of_chosen(self) -> tuple[str, str] | None:
        """The columns of the chosen and the rejected answer, under any of their names."""
        for chosen, rejected in layouts.PAIRS_OF_NAMES:
            columns = (self.find(chosen), self.find(rejected))
            if columns[0] and columns[1]:
                return columns[0], columns[1]
        return None

    def hint_for(self, name: str, likely: Sequence[str] = ()) -> str:
        """How to name a missing column: the likely one if there is one, or one with a similar name."""
        names = [column for column in self.free if normalise(column) not in layouts.ID_COLUMNS]
        alike = likely[0] if len(likely) == 1 else closest_name(name, likely or names)
        if alike:
            return f"Did you mean {alike}? Name it with --columns {name}={alike}"
        if 1 < len(likely) <= MAX_JOINED:
            return f"Name it with --columns {name}={likely[0]}, or join several: --columns {name}={'+'.join(likely)}"
        return f"Name it with --columns {name}=NAME."

    def texts(self) -> list[str]:
        """The columns that hold text that may be a prompt."""
        names = (name for name in self.names if normalise(name) not in layouts.ID_COLUMNS)
        return [name for name in names if any(map(is_text, self.column(name)))]

    # The first rows

    def peek(self, names: Sequence[str]) -> RawBatch:
        """The first rows of some columns; of all at once, unless one of them cannot be read."""
        first = self._first_rows
        return self._peek(names) if first is None else first.select(list(dict.fromkeys(names)))

    @functools.cached_property
    def _first_rows(self) -> RawBatch | None:
        try:
            return self._peek(self.all_names)
        except InputError:
            return None

    def cells(self, places: Places) -> list[Any]:
        """The cells at some places in the first rows; none if they cannot be read."""
        try:
            return column_cells(self.peek([place.column for place in places]), places, self.location)
        except InputError:
            return []

    def column(self, name: str) -> list[Any]:
        """The cells of a column in the first rows."""
        return self.cells((ColumnPath(name),))

    def values(self, places: Places) -> list[Any]:
        """The different values at some places, without empty ones and lists."""
        cells = (cell for cell in self.cells(places) if not is_missing(cell) and cell != "")
        return list(dict.fromkeys(cell for cell in cells if isinstance(cell, (str, int, float))))

    def holds_something(self, places: Places) -> bool:
        """Whether there is anything at some places."""
        return not all(map(is_missing, self.cells(places)))

    def answers(self, places: Mapping[str, Places], names: Sequence[str]) -> list[Any]:
        """The cells of several canonical columns, one after the other, without missing ones."""
        return [cell for name in names for cell in self.cells(places[name]) if not is_missing(cell)]


def flat(cell: Any) -> str:
    """Every text of a cell but the assistant's, one after the other."""
    if isinstance(cell, dict):
        role = str(cell.get("role", cell.get("from", "")))
        if role.lower() in ("assistant", "gpt", "model", "bot"):
            return ""
        return "\n".join(filter(None, (flat(value) for value in cell.values() if value != role)))
    if isinstance(cell, (list, tuple)):
        return "\n".join(filter(None, map(flat, cell)))
    return "" if is_missing(cell) else str(cell).strip()


def is_conversation(cell: Any) -> bool:
    """Whether a cell holds a conversation with a message of the user."""
    if isinstance(cell, str):
        if LIKE_MESSAGES.match(cell) and not isinstance(messages := parsed(cell), str):
            return is_conversation(messages)
        return is_transcript(cell) and cell.lstrip().startswith("Human:")
    if not isinstance(cell, (list, tuple)):
        return False
    messages = [item for item in cell if isinstance(item, (dict, list, tuple)) and item]
    roles = [item.get("role", item.get("from")) if isinstance(item, dict) else item[0] for item in messages]
    return any(str(role).lower() in ("user", "human", "prompter") for role in roles)


def is_list_of_turns(cell: Any) -> bool:
    """Whether a cell holds a list of texts, or text that spells one."""
    cell = parsed(cell)
    return isinstance(cell, list) and bool(cell) and all(turn is None or isinstance(turn, str) for turn in cell)


def is_text(cell: Any) -> bool:
    """Whether a cell holds text that could be a question; numbers and truth values are none."""
    if isinstance(cell, (list, dict)):
        return bool(flat(cell))
    return (
        isinstance(cell, str)
        and isinstance(comparable(cell), str)
        and cell.strip().lower() not in ("", "true", "false")
    )

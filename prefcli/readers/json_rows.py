"""Rows of JSON: how they are arranged in a file, and the rows one by one, without holding the whole file.

Rows are objects one after the other (JSON lines, or indented), the items of an array, the items of the one list of
objects inside an object (``{"data": [...]}``), or columns, as pandas writes them. Only columns have to be in memory
at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast

from prefcli.battles import TEXT_FIELDS
from prefcli.candidates import LIST_COLUMNS
from prefcli.errors import InputError, one_line
from prefcli.readers.cells import Location, encoding_hint, excerpt, json_excerpt, list_names

BLOCK_CHARS = 1 << 20
"""How much text is read at a time."""
MAX_TOKEN_CHARS = 64
"""A mistake this close to the end of the text that is there may only be its end."""

WRAPPERS = frozenset(("data", "examples", "items", "records", "results", "rows", "test", "train", "validation"))
"""Keys under which a file's rows are found whatever stands beside them."""
_PAIRS = ({"response_a", "response_b"}, {"conversation_a", "conversation_b"}, {"chosen", "rejected"})
"""Keys of a battle: a list whose objects have them holds the rows, too."""
ROW_NAMES = frozenset(
    ("id", "prompt", "system", "instruction", "question", "input", "query", "request", "context", "messages")
).union(*_PAIRS)
"""Keys of an object that is itself a row, so that its lists of objects belong to it."""

Arrangement = Literal["objects", "array", "wrapped", "lists", "columns", "index", "split"]
"""Of rows in a file. The last four are pandas' ``to_json(orient=...)``."""

_WHITE = re.compile(r"[ \t\r\n]*")
_INCOMPLETE = "Is the file complete?"
_ROWS_HINT = "Expected one JSON object a line, or one JSON array of objects. Is the file complete?"
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class JsonTable:
    """How a file's rows are arranged, and the union of their keys."""

    arrangement: Arrangement
    names: tuple[str, ...]
    """In the order of their first appearance."""
    wrapper: str = ""
    """The key under which the rows are."""

    @property
    def description(self) -> str:
        """What a user may not expect of a JSON file."""
        if self.arrangement == "wrapped":
            return f"rows under {excerpt(self.wrapper)}"
        return {"lists": "by columns", "columns": "by columns", "split": "by columns"}.get(self.arrangement, "")


def scan(
    open_stream: Callable[[], AbstractContextManager[IO[bytes]]], file: str, max_row_bytes: int, *, lines: bool = False
) -> JsonTable:
    """Read a whole JSON file for the arrangement of its rows and their keys.

    Every row is looked at: a key may occur in a late row for the first time. With ``lines`` one object is
    a row unless its keys show that it is a document.

    Raises
    ------
    InputError
        If the text is not JSON or not UTF-8, a row is not an object or longer than ``max_row_bytes``, a key occurs
        twice in one object, or it is not clear which list holds the rows.
    """
    location = Location(file, 1)
    with open_stream() as stream:
        text = _Text(stream, location, max_row_bytes, json.JSONDecoder(object_pairs_hook=_unique_keys).raw_decode)
        with text.errors():
            try:
                return _scan(text, location, lines)
            except UnicodeDecodeError:
                pass
    with open_stream() as stream:
        raise _not_utf8(stream, location, max_row_bytes)


def json_rows(
    stream: IO[bytes], table: JsonTable, file: str, max_row_bytes: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a file that :func:`scan` looked at, each with its length as text.

    Raises
    ------
    InputError
        If the file is another one by now.
    """
    text = _Text(stream, Location(file, 1), max_row_bytes, _decode)
    with text.errors():
        if table.arrangement in ("objects", "array"):
            yield from text.values() if table.arrangement == "objects" else text.items()
        elif table.arrangement == "wrapped":
            for name in text.members():
                if name == table.wrapper:
                    yield from text.items()
                    return
                text.value()
        else:
            document, length = text.value()
            if table.arrangement == "split" and {len(row) for row in document["data"]} != {len(table.names)}:
                what = f"'data' holds rows that are not {len(table.names)} cells long, as 'columns' says"
                raise InputError(what, where=file, hint=_INCOMPLETE)
            columns = _columns(document, table.arrangement)
            for cells in zip(*columns.values(), strict=True):
                yield dict(zip(columns, cells, strict=True)), length // len(next(iter(columns.values())))


def _columns(document: dict[str, Any], arrangement: Arrangement) -> dict[str, Sequence[Any]]:
    """The columns of a document that pandas wrote."""
    if arrangement == "split":
        return dict(zip(document["columns"], zip(*document["data"], strict=True), strict=True))
    if arrangement == "index":
        names = dict.fromkeys(name for row in document.values() for name in row)
        return {name: [row.get(name) for row in document.values()] for name in names}
    if arrangement == "columns":
        return {name: list(cells.values()) for name, cells in document.items()}
    return document


def loads(text: str) -> Any:
    """A JSON value; ValueError also for a key that occurs twice in one object, of which :mod:`json` keeps the last."""
    return json.loads(text, object_pairs_hook=_unique_keys)


class _RepeatedKeyError(ValueError):
    def __str__(self) -> str:
        return f"key {excerpt(self.args[0])} occurs twice in one object"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return value


class _Text:
    """JSON text, read a block at a time."""

    def __init__(self, stream: IO[bytes], location: Location, max_row_bytes: int, decode: Any, errors: str = "strict"):
        self._text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8-sig", errors=errors, newline="")
        self._location, self._max_row_bytes, self._decode = location, max_row_bytes, decode
        self._buffer, self._position, self._ended = "", 0, False
        self.row = 0
        """The number of rows that are complete, and so the index of the current one."""

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Leave the stream open, and let what :mod:`json` cannot do be input errors."""
        try:
            yield
        except RecursionError:
            raise self.broken("nested too deeply", "") from None
        except _RepeatedKeyError as error:
            raise self._location.error(str(error), row=self.row, hint="Only one of the two can be meant.") from None
        finally:
            with contextlib.suppress(ValueError):
                self._text.detach()

    def broken(self, problem: object, hint: str = _ROWS_HINT) -> InputError:
        """The error for text that is not JSON."""
        return self._location.error(f"broken JSON: {one_line(problem)}", row=self.row, hint=hint)

    def peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            self._position = cast(re.Match[str], _WHITE.match(self._buffer, self._position)).end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if self._ended:
                return ""
            self._read(BLOCK_CHARS)

    def take(self, *characters: str) -> str:
        """The next character, which must be one of these."""
        if (character := self.peek()) not in characters:
            expected = " or ".join(map(repr, characters))
            raise self.broken(f"expected {expected}, found {repr(character) if character else 'the end'}", _INCOMPLETE)
        self._position += 1
        return character

    def value(self) -> tuple[Any, int]:
        """The next value, and how long it is."""
        self.peek()
        step = BLOCK_CHARS
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
                # A number may go on in the next block: of 1.5e-3 it may hold 1. or 1.5e-
                if self._ended or end + 2 < len(self._buffer) or self._buffer[end - 1] in '}]"':
                    length = end - self._position
                    if length > self._max_row_bytes:
                        break
                    self._position = end
                    return value, length
            except _RepeatedKeyError:
                raise
            except ValueError as error:
                if self._ended or not _may_go_on(error, len(self._buffer)):
                    raise self.broken(error) from None
            if len(self._buffer) - self._position > self._max_row_bytes:
                break
            self._read(step)
            step = min(step * 2, self._max_row_bytes)
        raise self._location.error(
            f"the row is longer than {self._max_row_bytes / 2**20:g} MiB",
            row=self.row,
            hint="Was a quote opened and never closed?",
        )

    def values(self) -> Iterator[tuple[Any, int]]:
        """Objects one after the other, to the end."""
        while self.peek():
            yield self._object()

    def items(self) -> Iterator[tuple[Any, int]]:
        """The objects of an array."""
        for _ in self.places():
            yield self._object()

    def _object(self) -> tuple[dict[str, Any], int]:
        value, length = self.value()
        if not isinstance(value, dict):
            raise self._location.error(
                f"expected an object, found {json_excerpt(value)}",
                row=self.row,
                hint='Every row is a JSON object: {"prompt": ..., ...}.',
            )
        self.row += 1
        return value, length

    def places(self) -> Iterator[None]:
        """Stop before each item of an array, which the caller takes."""
        self.take("[")
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            yield
            if not self.peek():
                raise self.broken("the array is not closed", _INCOMPLETE)
            if self.take(",", "]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of an object, stopping before each value, which the caller takes."""
        self.take("{")
        if self.peek() == "}":
            self._position += 1
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            name, _ = self.value()
            self.take(":")
            yield name
            if self.take(",", "}") == "}":
                return

    def _read(self, size: int) -> None:
        more = self._text.read(size)
        self._ended = not more
        self._buffer, self._position = self._buffer[self._position :] + more, 0


def _may_go_on(error: ValueError, length: int) -> bool:
    """Whether a value is only cut off at the end of the text that is there, rather than wrong."""
    position = getattr(error, "pos", None)
    if position is None:
        return False
    return position > length - MAX_TOKEN_CHARS or str(error).startswith("Unterminated string")


def _not_utf8(stream: IO[bytes], location: Location, max_row_bytes: int) -> InputError:
    """The error that names the row of the first byte that is not UTF-8."""
    text = _Text(stream, location, max_row_bytes, _decode, errors="surrogateescape")
    escaped = re.compile("[\udc80-\udcff]")
    wrong = ""
    with text.errors():
        rows = text.items() if text.peek() == "[" else text.values()
        with contextlib.suppress(InputError):
            for value, _ in rows:
                if escaped.search(row := json.dumps(value, ensure_ascii=False)):
                    text.row -= 1
                    wrong = row
                    break
    hint = encoding_hint(wrong.encode(errors="surrogateescape"))
    return location.error("the text is not UTF-8", row=text.row, hint=hint)


# Which arrangement


@dataclass
class _Member:
    """A member of the one object that a file is."""

    kind: str
    """``object``, ``scalar``, or of a list what all its items are: ``texts``, ``scalars``, ``lists``, ``messages`` or
    other ``objects``; ``mixed`` if they are several of the first three, else ``other``."""
    length: int = 0
    """Of a list."""
    names: dict[str, None] = field(default_factory=dict)
    """The keys of the object, or of the list's objects."""
    texts: list[str] = field(default_factory=list)
    """The items of a list of texts under the key ``columns``."""


_CELLS = {"texts", "scalars", "lists"}


def _scan(text: _Text, location: Location, lines: bool) -> JsonTable:
    names: dict[str, None] = {}
    if text.peek() == "[":
        for row, _ in text.items():
            _add_names(names, row)
        if text.peek():
            raise text.broken(f"{text.peek()!r} follows the array", "A file holds one array, or objects without one.")
        return _table("array", names, location)
    if text.peek() == "{":
        members: dict[str, _Member] = {}
        for name in text.members():
            if name in members:
                raise _RepeatedKeyError(name)
            members[name] = _scan_member(name, text)
        text.row += 1
        if not text.peek():
            return _arrangement_of_one(members, location, lines)
        names = dict.fromkeys(members)
    for row, _ in text.values():
        _add_names(names, row)
    return _table("objects", names, location)


def _add_names(names: dict[str, None], row: Mapping[str, Any]) -> None:
    if not row.keys() <= names.keys():
        names.update(dict.fromkeys(row))


def _table(arrangement: Arrangement, names: Iterable[str], location: Location, wrapper: str = "") -> JsonTable:
    if not names:
        raise InputError("the file holds no rows", where=location.file)
    return JsonTable(arrangement, tuple(names), wrapper)


def _scan_member(name: str, text: _Text) -> _Member:
    """One member; a list of objects may be as long as the file, and is not kept."""
    if text.peek() != "[":
        value, _ = text.value()
        return _Member("object", names=dict.fromkeys(value)) if isinstance(value, dict) else _Member("scalar")
    member, kinds = _Member("mixed"), set()
    for _ in text.places():
        item, _ = text.value()
        kinds.add(_kind_of(item))
        member.length += 1
        if isinstance(item, dict):
            _add_names(member.names, item)
        elif name == "columns" and isinstance(item, str):
            member.texts.append(item)
    if len(kinds) == 1:
        member.kind = kinds.pop()
    elif not kinds <= _CELLS:  # such as messages of which one holds no text
        member.kind = "other"
    return member


def _kind_of(item: Any) -> str:
    if isinstance(item, dict):
        is_message = {"role", "from"} & item.keys() and {"content", "value", "text"} & item.keys()
        return "messages" if is_message else "objects"
    return "lists" if isinstance(item, list) else "texts" if isinstance(item, str) else "scalars"


def _arrangement_of_one(members: Mapping[str, _Member], location: Location, lines: bool) -> JsonTable:
    """The arrangement of a file that is one object: its rows are inside, or it is the only row."""
    if _is_split(members):
        return _table("split", members["columns"].texts, location)
    kinds = {member.kind for member in members.values()}
    if kinds == {"object"}:
        inner = [member.names for member in members.values()]
        if all(_are_numbers(names) and names == inner[0] for names in inner):
            return _table("columns", members, location)
        if _are_numbers(members):
            return _table("index", dict.fromkeys(name for names in inner for name in names), location)
    lengths = {member.length for member in members.values()}
    if kinds and kinds <= _CELLS | {"mixed"} and len(lengths) == 1:
        if lengths != {1} and _may_be_one_conversation({name: member.kind for name, member in members.items()}):
            if lines:
                return _table("objects", members, location)
            raise InputError(
                "this may be one row of several turns, or several rows by columns",
                where=location.file,
                hint="Of one row make a list, by [ and ] around it; several write as JSON lines or CSV.",
            )
        return _table("lists", members if lengths != {0} else (), location)
    lists = [name for name, member in members.items() if member.kind == "objects"]
    wrappers = [name for name in lists if name in WRAPPERS or any(map(members[name].names.keys().__ge__, _PAIRS))]
    if lists and (wrappers or not (lines or ROW_NAMES.intersection(members))):
        if len(lists) > 1:
            raise InputError(
                f"several lists may be the rows: {list_names(lists)}",
                where=location.file,
                hint=f"Take one of them: jq -c '.{(wrappers or lists)[0]}[]' FILE | prefcli ... -",
            )
        return _table("wrapped", members[lists[0]].names, location, lists[0])
    return _table("objects", members, location)


def _may_be_one_conversation(kinds: Mapping[str, str]) -> bool:
    """Whether lists by these names may be the turns of one battle, or of one prompt and its answers."""
    is_battle = kinds.keys() <= set(TEXT_FIELDS) and set(kinds.values()) == {"texts"}
    answers = {kind for name, kind in kinds.items() if name != "prompt"}
    is_question = kinds.keys() <= {"prompt", *LIST_COLUMNS} and kinds.get("prompt") == "texts" and answers == {"lists"}
    return is_battle or is_question


def _is_split(members: Mapping[str, _Member]) -> bool:
    """Whether rows are lists under ``data``, as pandas and Weights & Biases write tables."""
    if not {"columns", "data"} <= members.keys():
        return False
    others = {member.kind for name, member in members.items() if name not in ("columns", "data", "index")}
    return members["columns"].kind == "texts" and members["data"].kind == "lists" and others <= {"scalar", "object"}


def _are_numbers(names: Iterable[str]) -> bool:
    return all(name.isdecimal() for name in names)

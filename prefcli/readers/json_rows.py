"""Rows of JSON: the objects of an array, or one object a line; read without holding the whole file."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any, cast

from prefcli.errors import InputError, one_line
from prefcli.readers.cells import Place, shown

BLOCK_CHARACTERS = 8 << 20
"""Of an array, read at a time."""


_WHITE = re.compile(r"[ \t\r\n]*")
_WHITE_OR_COMMAS = re.compile(r"[ \t\r\n,]*")


def json_rows(stream: IO[bytes], place: Place, largest_row: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a JSON array, or of JSON lines, each with its length as text.

    Parameters
    ----------
    stream:
        Buffered bytes.
    place:
        The file's first row, for messages.
    largest_row:
        Bytes; a row longer than this is refused.

    Raises
    ------
    InputError
        If the text is no JSON or not in UTF-8, or a row is no object.
    """
    head = cast(Any, stream).peek(4096)
    is_array = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    values = _array_items(stream, place, largest_row) if is_array else _lines(stream, place, largest_row)
    for row, (value, length) in enumerate(values):
        if not isinstance(value, dict):
            raise place.error(
                f"expected an object, found {shown(value)}",
                row=row,
                hint='Every row is a JSON object: {"prompt": ..., ...}.',
            )
        yield value, length


def _lines(stream: IO[bytes], place: Place, largest_row: int) -> Iterator[tuple[Any, int]]:
    row = 0
    while line := stream.readline(largest_row):
        if len(line) == largest_row and not line.endswith(b"\n"):
            raise _too_long(largest_row, row, place)
        text = _utf8(line, row, place)
        if not text.strip():
            _skip_white(stream)
        else:
            try:
                yield json.loads(text), len(text)
            except (ValueError, RecursionError) as error:
                raise place.error(
                    f"broken JSON: {one_line(error)}",
                    row=row,
                    hint="One JSON object a line, or one JSON array of objects. Is the file whole?",
                ) from None
            row += 1


def _too_long(largest_row: int, row: int, place: Place) -> InputError:
    return place.error(
        f"the row is longer than {largest_row / 2**20:g} MiB", row=row, hint="Was a quote opened and never closed?"
    )


def _skip_white(stream: IO[bytes]) -> None:
    """Go on to the next line that holds something: line by line, a file of line breaks would take hours."""
    while ahead := cast(Any, stream).peek(1):
        found = ahead.lstrip()
        stream.read(len(ahead) - len(found))
        if found:
            return


def _utf8(data: bytes, row: int, place: Place) -> str:
    try:
        return data.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise place.error(
            f"byte {error.start} of the row is not UTF-8", row=row, hint="Save the file as UTF-8."
        ) from None


def _array_items(stream: IO[bytes], place: Place, largest_row: int) -> Iterator[tuple[Any, int]]:
    """The items of a JSON array, without holding the whole array."""
    decoder = json.JSONDecoder()
    text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8-sig")
    buffer, position, row, step = "", 0, 0, BLOCK_CHARACTERS
    ended = False
    opened = False
    try:
        while True:
            position = _skip(_WHITE, buffer, position)
            if position < len(buffer) and not opened:
                opened, position = True, position + 1  # the bracket
                continue
            if position < len(buffer) and buffer[position] == "]":
                return
            problem: Exception | None = None
            if position < len(buffer):
                try:
                    start = _skip(_WHITE_OR_COMMAS, buffer, position) if row else position
                    value, end = decoder.raw_decode(buffer, start)
                    follows = _skip(_WHITE, buffer, end)
                    if follows < len(buffer) or ended:
                        yield value, end - start
                        row, position, step = row + 1, end, BLOCK_CHARACTERS
                        continue
                except ValueError as error:
                    problem = error
            if len(buffer) - position > largest_row:
                raise _too_long(largest_row, row, place)
            if ended:
                raise place.error(
                    f"broken JSON: {one_line(problem) if problem else 'the array is not closed'}",
                    row=row,
                    hint="Is the file whole?",
                )
            more = text.read(step)
            ended, step = not more, min(step * 2, largest_row) if position < len(buffer) else BLOCK_CHARACTERS
            buffer, position = buffer[position:] + more, 0
    except UnicodeDecodeError:
        raise place.error("the text is not UTF-8", row=row, hint="Save the file as UTF-8.") from None
    except RecursionError:
        raise place.error("broken JSON: nested too deeply", row=row) from None
    finally:
        with contextlib.suppress(ValueError):
            text.detach()


def _skip(characters: re.Pattern[str], text: str, position: int) -> int:
    return cast(re.Match[str], characters.match(text, position)).end()

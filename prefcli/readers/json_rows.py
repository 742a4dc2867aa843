"""Rows of JSON: the objects of an array, or one object a line; streamed, without holding the whole file."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any, cast

from prefcli.errors import InputError, one_line
from prefcli.readers.cells import Location, json_excerpt

BLOCK_CHARS = 8 << 20
"""How much of an array is read at a time."""

_WHITE = re.compile(r"[ \t\r\n]*")
_WHITE_OR_COMMAS = re.compile(r"[ \t\r\n,]*")


def json_rows(stream: IO[bytes], location: Location, max_row_bytes: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a JSON array, or of JSON lines, each with its length as text.

    The stream must be buffered; ``location`` is that of its first row.

    Raises
    ------
    InputError
        If the text is not JSON or not UTF-8, or a row is not an object or longer than ``max_row_bytes``.
    """
    head = cast(Any, stream).peek(4096)
    is_array = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    values = _array_items(stream, location, max_row_bytes) if is_array else _lines(stream, location, max_row_bytes)
    for row, (value, length) in enumerate(values):
        if not isinstance(value, dict):
            raise location.error(
                f"expected an object, found {json_excerpt(value)}",
                row=row,
                hint='Every row is a JSON object: {"prompt": ..., ...}.',
            )
        yield value, length


def _lines(stream: IO[bytes], location: Location, max_row_bytes: int) -> Iterator[tuple[Any, int]]:
    row = 0
    while line := stream.readline(max_row_bytes):
        if len(line) == max_row_bytes and not line.endswith(b"\n"):
            raise _too_long(max_row_bytes, row, location)
        text = _utf8(line, row, location)
        if not text.strip():
            _skip_blank_lines(stream)
            continue
        try:
            yield json.loads(text), len(text)
        except (ValueError, RecursionError) as error:
            raise location.error(
                f"broken JSON: {one_line(error)}",
                row=row,
                hint="Expected one JSON object a line, or one JSON array of objects. Is the file complete?",
            ) from None
        row += 1


def _too_long(max_row_bytes: int, row: int, location: Location) -> InputError:
    return location.error(
        f"the row is longer than {max_row_bytes / 2**20:g} MiB", row=row, hint="Was a quote opened and never closed?"
    )


def _skip_blank_lines(stream: IO[bytes]) -> None:
    """Skip to the next line with text, block by block: line by line, a file of line breaks would take hours."""
    while block := cast(Any, stream).peek(1):
        text = block.lstrip()
        stream.read(len(block) - len(text))
        if text:
            return


def _utf8(data: bytes, row: int, location: Location) -> str:
    try:
        return data.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise location.error(
            f"byte {error.start} of the row is not UTF-8", row=row, hint="Save the file as UTF-8."
        ) from None


def _array_items(stream: IO[bytes], location: Location, max_row_bytes: int) -> Iterator[tuple[Any, int]]:
    decoder = json.JSONDecoder()
    text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8-sig")
    row, step, ended = 0, BLOCK_CHARS, False
    try:
        buffer = text.read(step)
        position = buffer.index("[") + 1
        while True:
            position = _skip(_WHITE, buffer, position)
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
                        row, position, step = row + 1, end, BLOCK_CHARS
                        continue
                except ValueError as error:
                    problem = error
            if len(buffer) - position > max_row_bytes:
                raise _too_long(max_row_bytes, row, location)
            if ended:
                raise location.error(
                    f"broken JSON: {one_line(problem) if problem else 'the array is not closed'}",
                    row=row,
                    hint="Is the file complete?",
                )
            more = text.read(step)
            ended, step = not more, min(step * 2, max_row_bytes) if position < len(buffer) else BLOCK_CHARS
            buffer, position = buffer[position:] + more, 0
    except UnicodeDecodeError:
        raise location.error("the text is not UTF-8", row=row, hint="Save the file as UTF-8.") from None
    except RecursionError:
        raise location.error("broken JSON: nested too deeply", row=row) from None
    finally:
        with contextlib.suppress(ValueError):
            text.detach()


def _skip(characters: re.Pattern[str], text: str, position: int) -> int:
    return cast(re.Match[str], characters.match(text, position)).end()

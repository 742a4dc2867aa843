"""Rows of JSON: the objects of an array, or one object a line; read without holding the whole file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from typing import IO, Any, cast

from prefcli.readers.cells import Place, one_line

BLOCK_CHARACTERS = 8 << 20
"""Of an array, read at a time."""


def json_rows(stream: IO[bytes], place: Place, largest_row: int) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, or of JSON lines.

    Parameters
    ----------
    stream:
        Buffered bytes.
    place:
        The file's first row, for messages.
    largest_row:
        Bytes; a row of an array longer than this is refused.

    Raises
    ------
    InputError
        If the text is no JSON or not in UTF-8, or a row is no object.
    """
    head = cast(Any, stream).peek(4096)
    is_array = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    values = _array_items(stream, place, largest_row) if is_array else _lines(stream, place, largest_row)
    for row, value in enumerate(values):
        if not isinstance(value, dict):
            raise place.error(
                f"expected an object, found {one_line(json.dumps(value), 40)}",
                row=row,
                hint='Every row is a JSON object: {"prompt": ..., ...}.',
            )
        yield value


def _lines(stream: IO[bytes], place: Place, largest_row: int) -> Iterator[Any]:
    row = 0
    while line := stream.readline(largest_row):
        text = _utf8(line, row, place)
        if text.strip():
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:
                raise place.error(
                    f"broken JSON: {one_line(error)}",
                    row=row,
                    hint="One JSON object a line, or one JSON array of objects. Is the file whole?",
                ) from None
            row += 1


def _utf8(data: bytes, row: int, place: Place) -> str:
    try:
        return data.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise place.error(
            f"byte {error.start} of the row is not UTF-8", row=row, hint="Save the file as UTF-8."
        ) from None


def _array_items(stream: IO[bytes], place: Place, largest_row: int) -> Iterator[Any]:
    """The items of a JSON array, without holding the whole array."""
    decoder = json.JSONDecoder()
    text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8-sig")
    buffer, position, row, step = "", 0, 0, BLOCK_CHARACTERS
    ended = False
    opened = False
    try:
        while True:
            position = _skip(buffer, position, " \t\r\n")
            if position < len(buffer) and not opened:
                opened, position = True, position + 1  # the bracket
                continue
            if position < len(buffer) and buffer[position] == "]":
                return
            problem: Exception | None = None
            if position < len(buffer):
                try:
                    start = _skip(buffer, position, " \t\r\n,") if row else position
                    value, end = decoder.raw_decode(buffer, start)
                    follows = _skip(buffer, end, " \t\r\n")
                    if follows < len(buffer) or ended:
                        yield value
                        row, position, step = row + 1, end, BLOCK_CHARACTERS
                        continue
                except ValueError as error:
                    problem = error
            if ended or len(buffer) - position > largest_row:
                raise place.error(
                    f"broken JSON: {one_line(problem) if problem else 'the array is not closed'}",
                    row=row,
                    hint="Is the file whole?",
                )
            more = text.read(step)
            ended, step = not more, step * 2
            buffer, position = buffer[position:] + more, 0
    except UnicodeDecodeError:
        raise place.error("the text is not UTF-8", row=row, hint="Save the file as UTF-8.") from None
    except RecursionError:
        raise place.error("broken JSON: nested too deeply", row=row) from None
    finally:
        with contextlib.suppress(ValueError):
            text.detach()


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position

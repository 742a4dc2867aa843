"""Rows as files, JSON lines, JSON or Parquet by the file's name, written one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefcli.errors import InputError
from prefcli.storage import files

ROWS_TOGETHER = 1000
"""Rows of one row group."""

AppendRow = Callable[[Mapping[str, Any]], None]


def check_name(path: Path) -> None:
    """Refuse a file whose name does not say its format.

    Raises
    ------
    InputError
        If the suffix is not ``.jsonl``, ``.json``, ``.parquet`` or ``.pq``.
    """
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"cannot tell the format of {path}", hint="Name it .jsonl, .json or .parquet.")


@contextlib.contextmanager
def row_writer(path: Path, schema: pa.Schema) -> Iterator[AppendRow]:
    """A function that appends a row to a file, which is there when the block ends without an error.

    Parameters
    ----------
    path:
        Its suffix is one that :func:`check_name` allows.
    schema:
        The columns of a Parquet file.
    """
    writer = _WRITERS[path.suffix.lower()]
    with files.atomic(path) as temporary, writer(temporary, schema) as append:
        yield append


@contextlib.contextmanager
def _json_lines(path: Path, schema: pa.Schema) -> Iterator[AppendRow]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield lambda row: print(files.to_json(row), file=file)


@contextlib.contextmanager
def _json_array(path: Path, schema: pa.Schema) -> Iterator[AppendRow]:
    with path.open("w", encoding="utf-8", newline="") as file:
        before = "[\n"

        def append(row: Mapping[str, Any]) -> None:
            nonlocal before
            file.write(before + files.to_json(row))
            before = ",\n"

        yield append
        file.write("[]\n" if before == "[\n" else "\n]\n")


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[AppendRow]:
    import pyarrow.parquet as pq

    waiting: list[Mapping[str, Any]] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
        waiting.clear()

    def append(row: Mapping[str, Any]) -> None:
        waiting.append(row)
        if len(waiting) == ROWS_TOGETHER:
            flush()

    with pq.ParquetWriter(path, schema) as writer:
        yield append
        flush()


_WRITERS = {".jsonl": _json_lines, ".json": _json_array, ".parquet": _parquet, ".pq": _parquet}

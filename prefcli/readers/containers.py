"""Containers: CSV, TSV, JSON, JSONL and Parquet, plain, ``.gz`` or ``.zip``, or standard input -> raw batches.

What a file is, is read off its first bytes, with its name as a help: a compressed file is recognised whatever it is
called. What cannot be read twice (standard input, a pipe) is spooled into a temporary file first. What is unpacked or
spooled is bounded by :data:`MAX_INPUT_BYTES`, one row by :data:`MAX_ROW_BYTES`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import io
import itertools
import lzma
import stat
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from prefcli.battles import STANDARD_INPUT
from prefcli.errors import InputError, one_line
from prefcli.readers.cells import Place, RawBatch, excerpt, shorten
from prefcli.readers.json_rows import json_rows
from prefcli.storage import files

BLOCK_BYTES = 8 << 20
"""Bytes read at a time, and so roughly the text in one batch."""
BATCH_ROWS = 4096
"""Upper bound of rows in one batch."""
MAX_ROW_BYTES = 1 << 30
"""A single row longer than this is refused."""
MAX_INPUT_BYTES = 16 << 30
"""Compressed input that unpacks to more than this is refused, and a stream that goes on longer."""
MAX_HEADER_CHARS = 16 << 20
"""Characters; a table's header longer than this is refused."""
MAX_EXPLAINED_CHARS = 64 << 20
"""Characters; why Arrow refused a row longer than this is not looked into."""
PEEKED_BYTES = 1 << 16
"""Of unpacked JSON, held to look ahead."""
PEEKED_PARQUET_ROWS = 16
"""How many rows tell how much text the others hold."""
PEEKED_JSON_ROWS = 100
"""A JSON file has the columns that its first rows have."""

EXPECTED_KINDS = "Expected CSV, TSV, JSON, JSONL or Parquet, plain, .gz or .zip."

_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_AGAIN = "Download or copy it again."
_ARCHIVE_LIES = "the compressed file is damaged: its directory points outside of it"
_DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


@dataclass(frozen=True)
class Container:
    """One table of data on disk.

    Attributes
    ----------
    name:
        What to call it in messages.
    path:
        Where its bytes lie: the file itself, or a temporary copy of a stream.
    packing:
        ``gz``, ``zip``, or nothing.
    member:
        The file inside a ``.zip``.
    kind:
        ``csv``, ``tsv``, ``json`` or ``parquet``.
    """

    name: str
    path: Path
    packing: str
    member: str
    kind: str
    _spool: Any = field(default=None, repr=False, compare=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The table's bytes, unpacked."""
        with readable(self.name):
            if self.packing == "gz":
                with gzip.open(self.path, "rb") as packed:
                    yield cast(Any, _Bounded(packed, self.name))
            elif self.packing == "zip":
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as packed:
                    yield cast(Any, _Bounded(packed, self.name))
            else:
                with self.path.open("rb") as stream:
                    yield stream


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """What can go wrong with opening and unpacking, as input errors."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("no such file", where=name, hint="Check the path.") from None
    except PermissionError:
        raise InputError("no permission to read the file", where=name) from None
    except _DAMAGED as error:
        raise InputError(f"the compressed file is damaged: {one_line(error)}", where=name, hint=_AGAIN) from None
    except MemoryError:
        raise InputError(
            "reading the file asks for more memory than there is", where=name, hint="Is it damaged? Copy it again."
        ) from None
    except OSError as error:
        what = f"cannot read the file: {error.strerror or one_line(error)}"
        hint = ""
        if error.errno in (None, errno.EINVAL):  # bz2 gives its errors no number
            what, hint = _ARCHIVE_LIES if error.errno else f"the compressed file is damaged: {one_line(error)}", _AGAIN
        raise InputError(what, where=name, hint=hint) from None
    except RuntimeError as error:
        if "password" not in str(error):
            raise
        raise InputError("the archive is encrypted", where=name, hint="Unpack it and name the file.") from None


def open_container(path: Path) -> Container:
    """Find out what a file is: packed or not, which member of an archive, which kind of table.

    Parameters
    ----------
    path:
        A file; ``-`` for standard input; ``archive.zip/member.csv`` for a certain file of an archive.

    Raises
    ------
    InputError
        If there is no such file, it is empty or a folder, or an archive holds no table or several.
    """
    if path == STANDARD_INPUT:
        return _spooled("standard input", sys.stdin.buffer)
    name, wanted = str(path), ""
    with readable(name):
        if not path.exists():
            archive = next(
                (parent for parent in path.parents if parent.suffix.lower() == ".zip" and parent.is_file()), None
            )
            if archive is not None:
                path, wanted = archive, path.relative_to(archive).as_posix()
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError("expected a file, found a folder", where=name)
        if not stat.S_ISREG(mode):
            with path.open("rb") as stream:
                return _spooled(name, stream)
        return _recognised(name, path, path.name, wanted)


def _spooled(name: str, stream: IO[bytes]) -> Container:
    """A temporary copy of what can be read only once; it goes away with the container."""
    spool, path = _temporary_file()
    _copy(_Bounded(stream, name, f"the input goes on after {MAX_INPUT_BYTES / 2**30:g} GiB"), spool)
    return _recognised(name, path, "", "", spool)


def _temporary_file() -> tuple[IO[bytes], Path]:
    """A temporary file, and a path to it. Where the system allows it has no name, so that nothing is left of it
    however the process ends.
    """
    with files.temporary_file_errors():
        nameless = tempfile.TemporaryFile(prefix="prefcli-")  # noqa: SIM115  (lives as long as the container)
        path = Path(f"/proc/self/fd/{nameless.fileno()}")
        if path.exists():
            return nameless, path
        nameless.close()
        named = tempfile.NamedTemporaryFile(prefix="prefcli-")  # noqa: SIM115
        return cast(Any, named), Path(named.name)


def _copy(source: Any, spool: IO[bytes]) -> None:
    """Fill a temporary file. What goes wrong with reading is not told as if it went wrong with writing."""
    while block := source.read(BLOCK_BYTES):
        with files.temporary_file_errors():
            spool.write(block)
            spool.flush()


def _recognised(name: str, path: Path, file_name: str, wanted: str, spool: Any = None) -> Container:
    with path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise InputError("the file is empty", where=name, hint=EXPECTED_KINDS)
    packing = member = ""
    inner = file_name
    if head[:2] == b"\x1f\x8b" or inner.lower().endswith(".gz"):
        packing, inner = "gz", inner[:-3] if inner.lower().endswith(".gz") else inner
    elif head == b"PK\x03\x04" or head == b"PK\x05\x06" or inner.lower().endswith(".zip"):
        packing = "zip"
        with zipfile.ZipFile(path) as archive:
            member = inner = _member(archive, wanted, name)
    container = Container(name, path, packing, member, "", spool)
    return Container(name, path, packing, member, _kind(container, inner), spool)


def _member(archive: zipfile.ZipFile, wanted: str, name: str) -> str:
    """The table inside an archive: the one asked for, the only one, or ``train`` of the competition's download."""
    tables = [
        member
        for member in archive.namelist()
        if Path(member).suffix.lower() in _KINDS and not member.startswith("__MACOSX")
    ]
    if wanted:
        if wanted in tables:
            return wanted
        raise InputError(f"no {wanted} inside; found {shorten(tables) or 'no table'}", where=name)
    if len(tables) == 1:
        return tables[0]
    train = [member for member in tables if Path(member).stem.lower() == "train"]
    if len(train) == 1:
        return train[0]
    example = tables[0] if tables else "train.csv"
    raise InputError(
        f"expected one table inside, or one called train; found {shorten(tables) if tables else 'none'}",
        where=name,
        hint=f"Name the file inside as {name}/{example}, or unpack the archive.",
    )


def _kind(container: Container, inner: str) -> str:
    """By the first bytes where they are unmistakable, else by the name, else by the first character."""
    with container.open() as stream:
        head = stream.read(4096)
    if not head:
        raise InputError("the file is empty", where=container.name, hint=EXPECTED_KINDS)
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("the text is UTF-16", where=container.name, hint="Save the file as UTF-8.")
    named = _KINDS.get(Path(inner).suffix.lower())
    if named:
        return named
    return "json" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"


class _Bounded(io.RawIOBase):
    """A stream that ends in an error before it fills the machine."""

    def __init__(self, stream: Any, name: str, problem: str = "") -> None:
        self._stream, self._name, self._left = stream, name, MAX_INPUT_BYTES
        self._problem = problem or f"the file unpacks to more than {MAX_INPUT_BYTES / 2**30:g} GiB"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise InputError(
                self._problem,
                where=self._name,
                hint="Is it damaged, or made to do harm? If not, make a plain file of it and name that.",
            )
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# Columns and rows


def column_names(container: Container) -> list[str]:
    """The columns of a table, in the file's order.

    Raises
    ------
    InputError
        If the file cannot be read as what it is, or a column occurs twice.
    """
    if container.kind == "parquet":
        with _open_parquet(container) as parquet:
            names = list(parquet.schema_arrow.names)
    elif container.kind == "json":
        rows = [row for row, _ in itertools.islice(_json_rows(container), PEEKED_JSON_ROWS)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise InputError("the file holds no rows", where=container.name)
    else:
        names = _csv_header(container)
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"column {excerpt(min(repeated))} occurs twice", where=container.name)
    return names


def raw_batches(container: Container, columns: Sequence[str]) -> Iterator[RawBatch]:
    """Some columns of a table as they stand there, a batch at a time."""
    if container.kind == "parquet":
        return _parquet_batches(container, columns)
    if container.kind == "json":
        return _json_batches(container, columns)
    return _csv_batches(container, columns)


class _TooLongError(Exception):
    """A row is longer than it may be."""


class _Lines:
    """Lines of a table for :mod:`csv`, which would put together a row of any length."""

    def __init__(self, stream: IO[bytes], limit: int, errors: str) -> None:
        buffered = io.BufferedReader(cast(Any, stream))
        self._text = io.TextIOWrapper(buffered, encoding="utf-8-sig", errors=errors, newline="")
        self._left = self._limit = limit

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _TooLongError
        if not line:
            raise StopIteration
        return line

    def next_row(self) -> None:
        """A row is complete, the next one may be as long again."""
        self._left = self._limit

    def detach(self) -> None:
        """Leave the stream open."""
        with contextlib.suppress(ValueError):
            self._text.detach()


def _csv_header(container: Container) -> list[str]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with container.open() as stream:
        lines = _Lines(stream, MAX_HEADER_CHARS, "surrogateescape")
        try:
            header = next(csv.reader(lines, delimiter=_delimiter(container)), None)
            "".join(header or ()).encode("utf-8")
        except (UnicodeError, csv.Error):
            raise InputError("not a table in UTF-8", where=container.name, hint=EXPECTED_KINDS) from None
        except _TooLongError:
            raise InputError(
                f"the header is longer than {MAX_HEADER_CHARS >> 20} MiB",
                where=container.name,
                hint=EXPECTED_KINDS,
            ) from None
        finally:
            lines.detach()
    if not header:
        raise InputError("the file begins with an empty line, not a header", where=container.name)
    return header


def _delimiter(container: Container) -> str:
    return "\t" if container.kind == "tsv" else ","


@contextlib.contextmanager
def _open_parquet(container: Container) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        place: Any = container.path
        if container.packing:
            spool, place = _temporary_file()
            stack.enter_context(spool)
            with container.open() as stream:
                head = stream.read(4)
                if head != b"PAR1":  # not worth unpacking
                    raise InputError("not a Parquet file", where=container.name, hint=_AGAIN)
                spool.write(head)
                _copy(stream, spool)
        with readable(container.name):
            try:
                with pq.ParquetFile(place) as parquet:
                    yield parquet
            except MemoryError:
                raise
            except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise InputError(
                    f"not a readable Parquet file: {one_line(error)}", where=container.name, hint=_AGAIN
                ) from None


def _parquet_batches(container: Container, columns: Sequence[str]) -> Iterator[RawBatch]:
    with _open_parquet(container) as parquet:
        peeked = next(_checked_batches(parquet, columns, PEEKED_PARQUET_ROWS), None)
        if peeked is not None:
            yield from _checked_batches(parquet, columns, _rows_of_a_block(peeked))


def _checked_batches(parquet: Any, columns: Sequence[str], rows: int) -> Iterator[RawBatch]:
    for batch in parquet.iter_batches(batch_size=rows, columns=list(columns)):
        batch.validate(full=True)  # text that is not UTF-8, lists that end before they begin
        yield RawBatch.of(batch)


def _rows_of_a_block(peeked: RawBatch) -> int:
    """As many rows as make a block, judged by the first ones. The file's size does not tell: Parquet writes a long
    text that is repeated a million times once.
    """
    size = sum(column.nbytes for column in peeked.columns.values())
    return min(max(BLOCK_BYTES * peeked.num_rows // max(size, 1), 1), BATCH_ROWS)


def _csv_batches(container: Container, columns: Sequence[str]) -> Iterator[RawBatch]:
    """CSV through Arrow's reader; every cell stays bytes, so that nothing is guessed about numbers or nulls."""
    import pyarrow.csv

    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.binary()),
        include_columns=list(columns),
        strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=_delimiter(container))
    block, done = BLOCK_BYTES, 0
    while True:
        read = pyarrow.csv.ReadOptions(block_size=block, skip_rows_after_names=done, use_threads=False)
        try:
            with (
                container.open() as stream,
                pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
            ):
                for batch in reader:
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield RawBatch.of(batch.slice(start, BATCH_ROWS))
                    done += batch.num_rows
            return
        except MemoryError:
            raise
        except pa.ArrowException as error:
            # A row longer than the block: go on behind the rows already delivered, with larger blocks.
            if "straddl" in str(error):
                if block >= MAX_ROW_BYTES:
                    raise InputError(
                        f"a row is longer than {MAX_ROW_BYTES / 2**20:g} MiB",
                        where=f"{container.name}, after row {done}",
                        hint="Was a quote opened and never closed?",
                    ) from None
                block = min(block * 8, MAX_ROW_BYTES)
                continue
            raise _explain_csv_error(container, error) from None


def _explain_csv_error(container: Container, error: Exception) -> InputError:
    """Arrow knows what is wrong, not always where: read the file again slowly and find the row."""
    csv.field_size_limit(MAX_ROW_BYTES)
    place = Place(container.name, 1)
    with container.open() as stream:
        lines = _Lines(stream, MAX_EXPLAINED_CHARS, "replace")
        reader = csv.reader(lines, strict=True, delimiter=_delimiter(container))
        row = 0
        try:
            width = len(next(reader, []))
            lines.next_row()
            for row, cells in enumerate(reader, start=1):
                lines.next_row()
                if len(cells) not in (0, width):
                    return place.error(
                        f"expected {width} cells, found {len(cells)} (line {reader.line_num})",
                        row=row - 1,
                        hint="A cell with commas, quotes or line breaks must be quoted, its quotes doubled.",
                    )
        except csv.Error as slow_error:
            return place.error(
                f"not valid CSV: {slow_error}", row=row, hint="A quote was opened and never closed, or not doubled."
            )
        except _TooLongError:
            return place.error(
                f"the row is longer than {MAX_EXPLAINED_CHARS >> 20} MiB, and not valid CSV",
                row=row,
                hint="Was a quote opened and never closed?",
            )
        finally:
            lines.detach()
    return InputError(f"not valid CSV: {one_line(error)}", where=container.name)


def _json_rows(container: Container) -> Iterator[tuple[dict[str, Any], int]]:
    with container.open() as raw:
        stream = io.BufferedReader(cast(Any, raw), PEEKED_BYTES) if container.packing else raw
        yield from json_rows(stream, Place(container.name, 1), MAX_ROW_BYTES)


def _json_batches(container: Container, columns: Sequence[str]) -> Iterator[RawBatch]:
    rows: list[dict[str, Any]] = []
    size = 0
    for row, length in _json_rows(container):
        rows.append(row)
        size += length
        if len(rows) == BATCH_ROWS // 4 or size >= BLOCK_BYTES:
            yield _columns_of(rows, columns)
            rows, size = [], 0
    if rows:
        yield _columns_of(rows, columns)


def _columns_of(rows: list[dict[str, Any]], columns: Sequence[str]) -> RawBatch:
    return RawBatch({name: [row.get(name) for row in rows] for name in columns}, len(rows))

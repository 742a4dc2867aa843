"""Containers: CSV, TSV, JSON, JSONL and Parquet, plain, ``.gz`` or ``.zip``, or standard input -> raw batches.

The first bytes of a file say what it is; its name decides only what they leave open. Text in another encoding is read
as UTF-8. What cannot be read twice (standard input, a pipe) is copied into a temporary file first.
:data:`MAX_INPUT_BYTES` bounds what is unpacked or copied, :data:`MAX_ROW_BYTES` one row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import errno
import functools
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
from prefcli.readers import foreign
from prefcli.readers.cells import Location, RawBatch, encoding_hint, excerpt, list_names
from prefcli.readers.json_rows import JsonTable, json_rows, scan
from prefcli.reporting import NO_PROGRESS, SILENT, Progress, Reporter
from prefcli.storage import files
from prefcli.storage.paths import check_inputs

BLOCK_BYTES = 8 << 20
"""Bytes read at a time, and so roughly the text in one batch."""
METERED_BYTES = 1 << 20
"""Progress is reported this often, or less often where blocks are larger."""
BATCH_ROWS = 4096
"""Upper bound of rows in one batch."""
MAX_ROW_BYTES = 1 << 30
MAX_INPUT_BYTES = 16 << 30
"""Of what compressed input unpacks to, and of a stream."""
MAX_HEADER_CHARS = 16 << 20
"""Of a table's header."""
MAX_EXPLAINED_CHARS = 64 << 20
"""Of a row that Arrow refuses: why is not investigated in a longer one."""
PARQUET_BUFFER_BYTES = 1 << 20
"""Of each column that are read at a time."""
PEEK_PARQUET_ROWS = 16
"""Rows from which the size of the others is estimated."""
SNIFFED_BYTES = 1 << 20
"""Of a table whose delimiter is not clear from the header alone."""
SNIFFED_ROWS = 20
DELIMITERS = ",;\t|"

EXPECTED_KINDS = "Expected CSV, TSV, JSON, JSONL or Parquet, plain, .gz or .zip."

_KINDS = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
_MARKS = (
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the codecs that skip them."""
_AGAIN = "Download or copy it again."
_DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


@dataclass(frozen=True)
class Container:
    """One table of data on disk."""

    name: str
    """In messages."""
    path: Path
    """The file itself, or a temporary copy of a stream."""
    compression: str = ""
    """``gz``, ``zip``, or nothing."""
    member: str = ""
    """The file inside a ``.zip``."""
    kind: str = ""
    """``csv``, ``json`` or ``parquet``."""
    encoding: str = ""
    """Of text that is not UTF-8."""
    delimiter: str = ","
    """Between the cells of CSV."""
    is_json_lines: bool = False
    """Whether the name does not say that the file is one JSON document: one object is then a row, if in doubt."""
    spool: Any = field(default=None, repr=False, compare=False)
    """Keeps the temporary copy: it is deleted when this is closed."""
    meter: _Meter = field(default_factory=lambda: _Meter(), repr=False, compare=False)
    """Reports how much of the file has been read."""

    @functools.cached_property
    def json_table(self) -> JsonTable:
        """How the rows of a JSON file are arranged, and their keys: found by reading all of it."""
        return scan(self.open, self.name, MAX_ROW_BYTES, lines=self.is_json_lines)

    @property
    def description(self) -> str:
        """How the file is read, where that is not obvious: the member of an archive, encoding, delimiter."""
        delimiter = {";": "semicolons", "\t": "tabs", "|": "|"}.get(self.delimiter)
        arrangement = self.json_table.description if self.kind == "json" else ""
        parts = (self.member, self.encoding, delimiter and f"cells separated by {delimiter}", arrangement)
        return ", ".join(part for part in parts if part)

    def json_rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The rows of a JSON file, each with its length as text."""
        with self.open() as stream:
            yield from json_rows(stream, self.json_table, self.name, MAX_ROW_BYTES)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The table's bytes, unpacked, and text as UTF-8."""
        with self.unpacked() as stream:
            yield cast(Any, _Recoded(stream, self.name, self.encoding)) if self.encoding else stream

    @property
    def size(self) -> int:
        """Bytes of the file on disk."""
        return self.path.stat().st_size

    @contextlib.contextmanager
    def metered(self, progress: Progress) -> Iterator[None]:
        """Advance ``progress`` by the bytes on disk that are read meanwhile, by :attr:`size` in all."""
        self.meter.start(progress)
        yield
        self.meter.reach(self.size)
        self.meter.start(NO_PROGRESS)

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[IO[bytes]]:
        """The table's bytes in its own encoding."""
        with readable(self.name):
            raw = _MeteredFile(self.path, self.meter)
            with io.BufferedReader(raw, METERED_BYTES) as file:
                if self.compression == "gz":
                    with gzip.open(file, "rb") as stream:
                        yield cast(Any, _Bounded(stream, self.name, "the file unpacks to more"))
                elif self.compression == "zip":
                    with raw.unmetered():  # a zip's directory is at its end
                        archive = zipfile.ZipFile(file)
                    with archive, archive.open(self.member) as stream:
                        yield cast(Any, _Bounded(stream, self.name, "the file unpacks to more"))
                else:
                    yield file


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Errors of opening and unpacking a file become input errors."""
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
            "reading the file needs more memory than is available", where=name, hint="Is it damaged? Copy it again."
        ) from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # bz2 gives its errors no number
            reason = "its directory points outside of it" if error.errno else one_line(error)
            raise InputError(f"the compressed file is damaged: {reason}", where=name, hint=_AGAIN) from None
        raise InputError(f"cannot read the file: {error.strerror or one_line(error)}", where=name) from None
    except RuntimeError as error:
        if "password" not in str(error):
            raise
        raise InputError("the archive is encrypted", where=name, hint="Unpack it first.") from None


def open_container(
    path: Path, preferred: str = "train", encoding: str | None = None, reporter: Reporter = SILENT
) -> Container:
    """Find out what a file is: compressed or not, which member of an archive, which kind of table.

    Parameters
    ----------
    path:
        A file; ``-`` for standard input; ``archive.zip/member.csv`` for one file of an archive.
    preferred:
        The name, without its suffix, of the table to read from an archive that holds several.
    encoding:
        Of text without a byte order mark; None is UTF-8.
    reporter:
        Gets the progress of copying a stream.

    Raises
    ------
    InputError
        If there is no such file, it is empty or a folder, or an archive holds no table or several.
    """
    codec = codec_of(encoding)
    if path == STANDARD_INPUT:
        return _spool(sys.stdin.buffer, "standard input", preferred, codec, reporter)
    name, wanted = str(path), ""
    check_inputs([path])
    with readable(name):
        if not path.exists():
            archive = next(
                (parent for parent in path.parents if parent.suffix.lower() == ".zip" and parent.is_file()), None
            )
            if archive is not None:
                path, wanted = archive, path.relative_to(archive).as_posix()
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            with path.open("rb") as stream:
                return _spool(stream, name, preferred, codec, reporter)
        return _recognise(Container(name, path, encoding=codec), path.name, wanted, preferred)


def codec_of(encoding: str | None) -> str:
    """The name of an encoding's codec; nothing for UTF-8.

    Raises
    ------
    InputError
        If there is no such encoding of text.
    """
    try:
        "".encode(encoding or "utf-8")
        codec = codecs.lookup(encoding or "utf-8").name
    except (LookupError, ValueError):
        raise InputError(
            f"unknown encoding {excerpt(encoding)}",
            hint="Python's names are taken: cp1252 (Windows), latin-1, utf-16, gb18030, shift_jis, ...",
        ) from None
    return "" if codec == "utf-8" else codec


def _spool(stream: IO[bytes], name: str, preferred: str, codec: str, reporter: Reporter) -> Container:
    """A temporary copy of a stream that can be read only once."""
    spool, path = _temporary_file()
    with reporter.track(f"copying {name}", None, "bytes") as progress:
        _copy(_Bounded(stream, name, "the input is longer"), spool, progress)
    return _recognise(Container(name, path, encoding=codec, spool=spool), "", "", preferred)


def _temporary_file() -> tuple[IO[bytes], Path]:
    """A temporary file and a path to it.

    Where the system allows it the file has no name, so that nothing is left of it however the process ends.
    """
    with files.temporary_file_errors():
        nameless = tempfile.TemporaryFile(prefix="prefcli-")  # noqa: SIM115  (lives as long as the container)
        path = Path(f"/proc/self/fd/{nameless.fileno()}")
        if path.exists():
            return nameless, path
        nameless.close()
        named = tempfile.NamedTemporaryFile(prefix="prefcli-")  # noqa: SIM115
        return cast(Any, named), Path(named.name)


def _copy(source: Any, spool: IO[bytes], progress: Progress = NO_PROGRESS) -> None:
    while block := source.read(BLOCK_BYTES):
        with files.temporary_file_errors():  # only around writing: errors of the source are not the temporary file's
            spool.write(block)
            spool.flush()
        progress.advance(len(block))


def _recognise(container: Container, file_name: str, wanted: str, preferred: str) -> Container:
    """The container with its compression, member, kind, encoding and delimiter."""
    with container.path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise InputError("the file is empty", where=container.name, hint=EXPECTED_KINDS)
    suffix = Path(file_name).suffix.lower()
    if head[:2] == b"\x1f\x8b" or suffix == ".gz":
        file_name = file_name[:-3] if suffix == ".gz" else file_name
        container = dataclasses.replace(container, compression="gz")
    elif head in (b"PK\x03\x04", b"PK\x05\x06") or suffix == ".zip":
        with zipfile.ZipFile(container.path) as archive:
            if not any(Path(member).suffix.lower() in _KINDS for member in archive.namelist()):
                foreign.refuse_archive(archive.namelist(), container.name)
            file_name = _member(archive, wanted, preferred, container.name)
        container = dataclasses.replace(container, compression="zip", member=file_name)
    with container.unpacked() as stream:
        head = stream.read(4096)
    if not head:
        raise InputError("the file is empty", where=container.name, hint=EXPECTED_KINDS)
    foreign.refuse(head, container.name)
    suffix = Path(file_name).suffix.lower()
    if head[:4] == b"PAR1" or _KINDS.get(suffix) == "parquet":
        return dataclasses.replace(container, kind="parquet", encoding="")
    encoding = _encoding(head, container)
    beginning = head.decode(encoding or "utf-8", "ignore").lstrip("\ufeff \t\r\n")
    is_json = _KINDS.get(suffix) == "json" or beginning.startswith(("{", "[") if suffix not in _KINDS else ('{"', "[{"))
    container = dataclasses.replace(container, kind="json" if is_json else "csv", encoding=encoding)
    if is_json:
        return dataclasses.replace(container, is_json_lines=suffix != ".json")
    return dataclasses.replace(container, delimiter=_delimiter(container, "\t" if suffix == ".tsv" else ","))


def _encoding(head: bytes, container: Container) -> str:
    """By the byte order mark, else as it was named."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if not container.encoding and len(head) > 3 and (head[0] == 0 != head[1] or head[1] == 0 != head[0]):
        wide = "utf-16-be" if head[0] == 0 else "utf-16-le"
        raise InputError(
            "the text seems to be UTF-16", where=container.name, hint=f"Name its encoding: --encoding {wide}"
        )
    return container.encoding


def _delimiter(container: Container, usual: str) -> str:
    """The usual delimiter, unless only another one divides header and first rows into the same number of cells."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with container.open() as stream:
        sample = stream.read(SNIFFED_BYTES)
    rows = {
        delimiter: _first_rows(sample.decode("utf-8-sig", "replace"), delimiter, len(sample) < SNIFFED_BYTES)
        for delimiter in DELIMITERS
    }
    widths = {delimiter: len(first_rows[0]) for delimiter, first_rows in rows.items() if first_rows}

    def divides(delimiter: str) -> bool:
        width = widths.get(delimiter, 1)
        return width > 1 and all(len(cells) in (0, width) for cells in rows[delimiter])

    if max(widths.values(), default=1) == widths.get(usual, 1) or divides(usual):
        return usual
    others = [other for other in DELIMITERS if divides(other) and widths[other] > widths[usual]]
    return others[0] if len(others) == 1 else usual


def _first_rows(sample: str, delimiter: str, is_all: bool) -> list[list[str]]:
    """The rows at the beginning of a table that are complete."""
    try:
        rows = list(
            itertools.islice(csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter), SNIFFED_ROWS + 1)
        )
    except csv.Error:
        return []
    return rows if is_all else rows[:-1]


def _member(archive: zipfile.ZipFile, wanted: str, preferred: str, name: str) -> str:
    """The table inside an archive: the wanted one, the only one, or the one with the preferred name."""
    names = (member for member in archive.namelist() if not member.startswith("__MACOSX"))
    tables = [member for member in names if Path(member).suffix.lower() in _KINDS]
    if wanted:
        if wanted in tables:
            return wanted
        raise InputError(f"no {wanted} inside; found {list_names(tables) or 'no table'}", where=name)
    for candidates in (tables, [member for member in tables if Path(member).stem.lower() == preferred]):
        if len(candidates) == 1:
            return candidates[0]
    raise InputError(
        f"expected one table inside, or one called {preferred}; found {list_names(tables) or 'none'}",
        where=name,
        hint=f"Name the file inside as {name}/{tables[0] if tables else f'{preferred}.csv'}, or unpack the archive.",
    )


class _Meter:
    """Advances a progress when a file has been read farther than ever before since it was started."""

    def __init__(self) -> None:
        self.start(NO_PROGRESS)

    def start(self, progress: Progress) -> None:
        self._progress, self._reached = progress, 0
        self.position = 0
        """To where the file has been read."""
        self.reads_ahead = False
        """Whether what is read is used much later, so that only its user knows how far it is."""

    def read_to(self, position: int) -> None:
        self.position = position
        if not self.reads_ahead:
            self.reach(position)

    def reach(self, position: int) -> None:
        if position > self._reached:
            self._progress.advance(position - self._reached)
            self._reached = position


class _MeteredFile(io.FileIO):
    """A file whose reading is metered."""

    def __init__(self, path: Path, meter: _Meter) -> None:
        super().__init__(path)
        self._meter = meter

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        self._meter.read_to(self.tell())
        return size

    @contextlib.contextmanager
    def unmetered(self) -> Iterator[None]:
        meter, self._meter = self._meter, _Meter()
        yield
        self._meter = meter


class _Blocks(io.RawIOBase):
    """A stream that Arrow reads in blocks, far ahead of the batches that it makes of them, one of each."""

    def __init__(self, stream: IO[bytes], meter: _Meter) -> None:
        self._stream, self._meter = stream, meter
        self._ends: list[int] = []

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._stream.read(size)
        self._ends.append(self._meter.position)
        return block

    def positions(self) -> Iterator[tuple[int, int]]:
        """Where in the file the block of each batch begins and ends."""
        begin = 0
        for number in itertools.count():
            end = self._ends[min(number, len(self._ends) - 1)]
            yield begin, end
            begin = end


class _Recoded(io.RawIOBase):
    """Text of another encoding, as UTF-8."""

    def __init__(self, stream: IO[bytes], name: str, encoding: str) -> None:
        self._stream, self._name, self._encoding = stream, name, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._position, self._offset = b"", 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = 0
        while size < len(buffer):  # Arrow takes a block for a whole one, however short it is
            data = self._ready[self._position : self._position + len(buffer) - size]
            buffer[size : size + len(data)] = data
            self._position += len(data)
            size += len(data)
            if not data:
                block = self._stream.read(BLOCK_BYTES)
                self._ready, self._position = self._recode(block), 0
                if not block and not self._ready:
                    break
        return size

    def _recode(self, block: bytes) -> bytes:
        pending = len(self._decoder.getstate()[0])
        try:
            data = self._decoder.decode(block, final=not block).encode("utf-8")
        except UnicodeError as error:
            at = self._offset - pending + getattr(error, "start", 0)
            raise InputError(
                f"byte {at} is not {self._encoding}",
                where=self._name,
                hint="Name another --encoding, or save it as UTF-8.",
            ) from None
        self._offset += len(block)
        return data


class _Bounded(io.RawIOBase):
    """A stream that raises an error when it is longer than :data:`MAX_INPUT_BYTES`."""

    def __init__(self, stream: Any, name: str, problem: str) -> None:
        self._stream, self._name, self._problem = stream, name, problem
        self._left = MAX_INPUT_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise InputError(
                f"{self._problem} than {MAX_INPUT_BYTES / 2**30:g} GiB",
                where=self._name,
                hint="Is it damaged or malicious? If not, save it as a plain file and use that.",
            )
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


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
        names = list(container.json_table.names)
    else:
        names = [name for cell in _csv_header(container) if (name := cell.strip())]  # none: columns of a spreadsheet
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"column {excerpt(min(repeated))} occurs twice", where=container.name)
    return names


def scan_json(containers: Sequence[Container], reporter: Reporter) -> None:
    """Find out how the rows of JSON files are arranged, which means to read them whole."""
    for container in containers:
        if container.kind == "json":
            with (
                reporter.track(f"scanning {container.name}", container.size, "bytes") as progress,
                container.metered(progress),
            ):
                container.json_table  # noqa: B018  (computed once)


def raw_batches(container: Container, columns: Sequence[str], progress: Progress = NO_PROGRESS) -> Iterator[RawBatch]:
    """Some columns of a table as the file stores them, a batch at a time; ``progress`` is advanced by bytes."""
    read = {"parquet": _parquet_batches, "json": _json_batches}.get(container.kind, _csv_batches)
    with container.metered(progress):
        yield from read(container, columns)


class _TooLongError(Exception):
    """A row is longer than the limit."""


class _Lines:
    """Lines of a table for :mod:`csv`, which sets no limit to the length of a row itself."""

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
        """Start counting again: a row is complete."""
        self._left = self._limit

    def detach(self) -> None:
        """Leave the stream open when this is collected."""
        with contextlib.suppress(ValueError):
            self._text.detach()


def _csv_header(container: Container) -> list[str]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with container.open() as stream:
        lines = _Lines(stream, MAX_HEADER_CHARS, "surrogateescape")
        try:
            header = next(csv.reader(lines, delimiter=container.delimiter), None)
            "".join(header or ()).encode("utf-8")
        except UnicodeError:
            hint = encoding_hint("".join(header or ()).encode(errors="surrogateescape"))
            raise InputError("the header is not UTF-8", where=container.name, hint=hint) from None
        except csv.Error:
            raise InputError("not a table", where=container.name, hint=EXPECTED_KINDS) from None
        except _TooLongError:
            what = f"the header is longer than {MAX_HEADER_CHARS >> 20} MiB"
            raise InputError(what, where=container.name, hint=EXPECTED_KINDS) from None
        finally:
            lines.detach()
    if not header:
        raise InputError("the file begins with an empty line, not a header", where=container.name, hint="Remove it.")
    return header


@contextlib.contextmanager
def _open_parquet(container: Container) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        path = container.path
        if container.compression:
            spool, path = _temporary_file()
            stack.enter_context(spool)
            with container.open() as stream:
                head = stream.read(4)
                if head != b"PAR1":  # refused before it is unpacked
                    raise InputError("not a Parquet file", where=container.name, hint=_AGAIN)
                spool.write(head)
                _copy(stream, spool)
        with readable(container.name):
            try:
                # Otherwise Arrow holds all that it has read, or a whole row group, until the file is closed.
                with pq.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES) as parquet:
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
        first = next(_checked_batches(parquet, columns, PEEK_PARQUET_ROWS), None)
        if first is not None:
            # Judged by the rows, not by the file's size: Parquet stores a long text that is repeated only once.
            size = sum(column.nbytes for column in first.columns.values())
            rows = min(max(BLOCK_BYTES * first.num_rows // max(size, 1), 1), BATCH_ROWS)
            rows_read = 0
            for batch in _checked_batches(parquet, columns, rows):
                rows_read += batch.num_rows
                container.meter.reach(container.size * rows_read // parquet.metadata.num_rows)
                yield batch


def _checked_batches(parquet: Any, columns: Sequence[str], rows: int) -> Iterator[RawBatch]:
    for batch in parquet.iter_batches(batch_size=rows, columns=list(columns)):
        batch.validate(full=True)  # finds text that is not UTF-8, and lists that end before they begin
        yield RawBatch.from_arrow(batch)


def _csv_batches(container: Container, columns: Sequence[str]) -> Iterator[RawBatch]:
    """CSV by Arrow's reader; every cell stays bytes, so that no numbers or nulls are inferred."""
    import pyarrow.csv

    stored = {cell.strip(): cell for cell in _csv_header(container)}
    cells = [stored[name] for name in columns]
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(cells, pa.binary()), include_columns=cells, strings_can_be_null=False
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=container.delimiter)
    block_bytes, rows_done = BLOCK_BYTES, 0
    container.meter.reads_ahead = True
    while True:
        read = pyarrow.csv.ReadOptions(block_size=block_bytes, skip_rows_after_names=rows_done, use_threads=False)
        try:
            with (
                container.open() as stream,
                _Blocks(stream, container.meter) as blocks,
                pyarrow.csv.open_csv(blocks, read_options=read, parse_options=parse, convert_options=convert) as reader,
            ):
                for batch, (begin, end) in zip(reader, blocks.positions(), strict=False):
                    named = pa.RecordBatch.from_arrays(batch.columns, names=list(columns))
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield RawBatch.from_arrow(named.slice(start, BATCH_ROWS))
                        rows = min(start + BATCH_ROWS, batch.num_rows)
                        container.meter.reach(begin + (end - begin) * rows // batch.num_rows)
                    rows_done += batch.num_rows
            return
        except MemoryError:
            raise
        except pa.ArrowException as error:
            # A row is longer than the block: continue after the rows already yielded, with larger blocks.
            if "straddl" in str(error):
                if block_bytes >= MAX_ROW_BYTES:
                    raise InputError(
                        f"a row is longer than {MAX_ROW_BYTES / 2**20:g} MiB",
                        where=f"{container.name}, after row {rows_done}",
                        hint="Was a quote opened and never closed?",
                    ) from None
                block_bytes = min(block_bytes * 8, MAX_ROW_BYTES)
                continue
            raise _explain_csv_error(container, error) from None


def _explain_csv_error(container: Container, error: Exception) -> InputError:
    """Arrow does not always say which row is wrong: find it by reading the file again with :mod:`csv`."""
    csv.field_size_limit(MAX_ROW_BYTES)
    location = Location(container.name, 1)
    with container.open() as stream:
        lines = _Lines(stream, MAX_EXPLAINED_CHARS, "replace")
        reader = csv.reader(lines, strict=True, delimiter=container.delimiter)
        row = 0
        try:
            width = len(next(reader, []))
            lines.next_row()
            for row, cells in enumerate(reader, start=1):
                lines.next_row()
                if len(cells) not in (0, width):
                    return location.error(
                        f"expected {width} cells, found {len(cells)} (line {reader.line_num})",
                        row=row - 1,
                        hint="A cell with commas, quotes or line breaks must be quoted, its quotes doubled.",
                    )
        except csv.Error as slow_error:
            return location.error(
                f"not valid CSV: {slow_error}", row=row, hint="A quote was opened and never closed, or not doubled."
            )
        except _TooLongError:
            return location.error(
                f"the row is longer than {MAX_EXPLAINED_CHARS >> 20} MiB, and not valid CSV",
                row=row,
                hint="Was a quote opened and never closed?",
            )
        finally:
            lines.detach()
    return InputError(f"not valid CSV: {one_line(error)}", where=container.name)


def _json_batches(container: Container, columns: Sequence[str]) -> Iterator[RawBatch]:
    rows: list[dict[str, Any]] = []
    size = 0
    for row, length in container.json_rows():
        rows.append(row)
        size += length
        if len(rows) == BATCH_ROWS // 4 or size >= BLOCK_BYTES:
            yield _to_batch(rows, columns)
            rows, size = [], 0
    if rows:
        yield _to_batch(rows, columns)


def _to_batch(rows: list[dict[str, Any]], columns: Sequence[str]) -> RawBatch:
    return RawBatch({name: [row.get(name) for row in rows] for name in columns}, len(rows))

"""Text normalisation in several processes: batches stay in order, and memory does not grow with their number.

Each worker is a plain child process that reads batches from its standard input and answers on its standard output.
Compared with multiprocessing: nothing is forked (the parent holds threads), the caller's main module is not imported
again, a worker imports only the text room, pyarrow and numpy, and one whose parent is gone, however it went, reads the
end of its input and leaves.
"""

from __future__ import annotations

import contextlib
import os
import queue
import struct
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from itertools import chain, islice
from typing import IO, TYPE_CHECKING, BinaryIO

from prefcli.battles import TEXT_FIELDS
from prefcli.errors import InputError, PrefcliError
from prefcli.text.normalise import TextCounts, check, check_columns, normalise_batch, utf8_bytes

if TYPE_CHECKING:
    import pyarrow as pa

#: Larger batches are cut, so that all processes get work and memory stays bounded (bytes of the three text columns).
_PIECE_BYTES = 4_000_000
#: A request is its length; an answer is whether it worked, the five counts, its length; then the bytes.
_REQUEST = struct.Struct("<Q")
_ANSWER = struct.Struct("<?5QQ")
_WORKER = "import sys; sys.path[:] = {path!r}; from prefcli.text.parallel import work; work({normalisation!r})"


def normalise_stream(
    batches: Iterable[pa.RecordBatch], normalisation: str, *, workers: int | None = None
) -> Iterator[tuple[pa.RecordBatch, TextCounts]]:
    """Normalise battles batch by batch, in several processes.

    Parameters
    ----------
    batches:
        As :func:`normalise_batch` takes them. Read only as far ahead as there is work for the processes (two pieces of
        at most 4 MB of text for each), so memory does not grow with the input.
    normalisation:
        A name in :data:`NORMALISATIONS`.
    workers:
        Processes; None for one per usable core. With 1, for ``raw``, and for input of one small batch no process is
        started. The result does not depend on it.

    Yields
    ------
    battles, counts:
        The normalised rows in their order, with what happened to them. A batch of more than 4 MB of text comes out in
        pieces.

    Raises
    ------
    InputError
        There is no such normalisation, a text column is missing, or ``workers`` is below 1.
    PrefcliError
        A process died, for instance because memory ran out.
    """
    check(normalisation)
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise InputError(f"{workers} workers cannot work.", hint="Use --workers 1 or more.")
    return _normalise_stream(batches, normalisation, workers)


def usable_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _normalise_stream(
    batches: Iterable[pa.RecordBatch], normalisation: str, workers: int
) -> Iterator[tuple[pa.RecordBatch, TextCounts]]:
    pieces = (piece for batch in batches for piece in _cut(batch))
    if normalisation == "raw" or workers == 1 or not sys.executable:
        for piece in pieces:
            yield normalise_batch(piece, normalisation)
        return
    first = list(islice(pieces, 2))
    if len(first) < 2:
        for piece in first:
            yield normalise_batch(piece, normalisation)
        return
    with _Workers(normalisation, workers) as crew:
        waiting: deque[tuple[pa.RecordBatch, Future[tuple[pa.RecordBatch, TextCounts]]]] = deque()
        for piece in chain(first, pieces):
            waiting.append((piece, crew.submit(piece)))
            if len(waiting) >= 2 * workers:
                yield _join(*waiting.popleft())
        while waiting:
            yield _join(*waiting.popleft())


def _cut(battles: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces of about :data:`_PIECE_BYTES` of text; a small one as it is."""
    size = sum(utf8_bytes(battles.column(name).flatten()) for name in TEXT_FIELDS if name in battles.schema.names)
    pieces = max(1, min(battles.num_rows, -(-size // _PIECE_BYTES)))
    rows = max(1, -(-battles.num_rows // pieces))
    if rows >= battles.num_rows:
        yield battles
        return
    for start in range(0, battles.num_rows, rows):
        yield battles.slice(start, rows)


def _join(
    piece: pa.RecordBatch, future: Future[tuple[pa.RecordBatch, TextCounts]]
) -> tuple[pa.RecordBatch, TextCounts]:
    """The columns that went to a worker, back among those that did not."""
    import pyarrow as pa

    normalised, counts = future.result()
    columns = [
        normalised.column(name) if name in TEXT_FIELDS else column
        for name, column in zip(piece.schema.names, piece.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=piece.schema), counts


class _Workers:
    """Child processes, started as work comes in, each with a thread that hands it a batch and waits for the answer.

    Leaving the ``with`` block kills the processes, whatever they are doing.
    """

    def __init__(self, normalisation: str, count: int) -> None:
        self._normalisation = normalisation
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="prefcli-text")
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing = False
        self._lock = threading.Lock()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._closing = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not yet sent is of no use any more
                    pipe.close()  # type: ignore[union-attr]
            process.wait()

    def submit(self, piece: pa.RecordBatch) -> Future[tuple[pa.RecordBatch, TextCounts]]:
        check_columns(piece)
        return self._threads.submit(self._ask, _to_ipc(piece.select(list(TEXT_FIELDS))))

    def _ask(self, request: memoryview) -> tuple[pa.RecordBatch, TextCounts]:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None
        try:
            requests.write(_REQUEST.pack(len(request)))
            requests.write(request)
            requests.flush()
            worked, *counts, length = _ANSWER.unpack(_read_exactly(answers, _ANSWER.size))
            answer = _read_exactly(answers, length)
        except (EOFError, OSError) as error:
            raise PrefcliError(
                f"A text process ended unexpectedly (exit code {process.wait()}).",
                hint="If memory ran out, use fewer processes (--workers 1).",
            ) from error
        self._idle.put(process)
        if not worked:
            raise PrefcliError(f"A text process failed.\n{answer.decode()}", hint="Please report this as a bug.")
        return _from_ipc(answer), TextCounts(*counts)

    def _start(self) -> subprocess.Popen[bytes]:
        code = _WORKER.format(path=[entry or os.getcwd() for entry in sys.path], normalisation=self._normalisation)
        with self._lock:
            if self._closing:
                raise PrefcliError("The text processes are being stopped.")
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is the parent's to answer
            )
            self._processes.append(process)
        return process


def work(normalisation: str) -> None:
    """A worker's life: read a batch, normalise it, answer, until the input ends."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a library prints is no answer
    try:
        while True:
            (length,) = _REQUEST.unpack(_read_exactly(requests, _REQUEST.size))
            request = _read_exactly(requests, length)
            try:
                normalised, counts = normalise_batch(_from_ipc(request), normalisation)
                answer = _to_ipc(normalised)
                answers.write(_ANSWER.pack(True, *astuple(counts), len(answer)))
            except Exception:
                answer = memoryview(traceback.format_exc().encode())
                answers.write(_ANSWER.pack(False, 0, 0, 0, 0, 0, len(answer)))
            answers.write(answer)
            answers.flush()
    except (EOFError, OSError):
        os._exit(0)  # the parent has finished or is gone; nothing here is worth flushing


def _read_exactly(stream: BinaryIO | IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _to_ipc(battles: pa.RecordBatch) -> memoryview:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, battles.schema) as writer:
        writer.write_batch(battles)
    return memoryview(sink.getvalue())


def _from_ipc(data: bytes) -> pa.RecordBatch:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()

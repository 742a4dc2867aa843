"""Text normalisation in several processes: batches stay in order, and memory does not grow with their number.

A worker is a plain child process that reads an Arrow stream from its standard input and writes one to its standard
output. Executors of ``concurrent.futures`` import the caller's main module again, so scripts without a guard fail;
those of joblib leave processes behind when the parent is killed. A worker here sees the end of its input and exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from itertools import chain, islice

import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.errors import InputError, PrefcliError
from prefcli.text.normalise import TextCounts, check_columns, check_normalisation, normalise_batch, utf8_bytes
from prefcli.threads import usable_cores

#: Larger batches are cut, so that all processes get work and memory stays bounded (bytes of the three text columns).
_MAX_PIECE_BYTES = 4_000_000
_WORKER = "import sys; sys.path[:] = {path!r}; from prefcli.text.parallel import run_worker; run_worker({name!r})"

_Normalised = tuple[pa.RecordBatch, TextCounts]


def normalise_stream(
    batches: Iterable[pa.RecordBatch], normalisation: str, *, workers: int | None = None
) -> Iterator[_Normalised]:
    """Normalise battles batch by batch, in several processes.

    Parameters
    ----------
    batches:
        As :func:`normalise_batch` takes them, all of the same schema. At most two pieces of 4 MB of text are read ahead
        for each process, so memory does not grow with the input.
    normalisation:
        A name in :data:`prefcli.text.NORMALISATIONS`.
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
    check_normalisation(normalisation)
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise InputError(f"text cannot be normalised by {workers} workers", hint="Use --workers 1 or more.")
    return _normalise_stream(batches, normalisation, workers)


def _normalise_stream(batches: Iterable[pa.RecordBatch], normalisation: str, workers: int) -> Iterator[_Normalised]:
    pieces = (piece for batch in batches for piece in _cut(batch))
    first = list(islice(pieces, 2))
    if normalisation == "raw" or workers == 1 or len(first) < 2 or not sys.executable:
        for piece in chain(first, pieces):
            yield normalise_batch(piece, normalisation)
        return
    threads = ThreadPoolExecutor(workers, thread_name_prefix="prefcli-text")  # each waits for a process's answer
    started: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def normalise(piece: pa.RecordBatch) -> _Normalised:
        worker = idle.get()
        try:
            return worker.normalise(piece)
        finally:
            idle.put(worker)

    try:
        waiting: deque[Future[_Normalised]] = deque()
        for piece in chain(first, pieces):
            if len(started) < workers:
                started.append(_Worker(normalisation, piece.schema))
                idle.put(started[-1])
            waiting.append(threads.submit(normalise, piece))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the caller stops early: the processes are killed, whatever they are doing
        for worker in started:
            worker.process.kill()
        threads.shutdown(wait=True, cancel_futures=True)
        for worker in started:
            worker.close()


def _cut(battles: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces of about :data:`_MAX_PIECE_BYTES` of text; a small one as it is."""
    check_columns(battles)
    size = sum(utf8_bytes(battles.column(name).flatten()) for name in TEXT_FIELDS)
    pieces = max(1, min(battles.num_rows, -(-size // _MAX_PIECE_BYTES)))
    rows = max(1, -(-battles.num_rows // pieces))
    for start in range(0, max(1, battles.num_rows), rows):
        yield battles.slice(start, rows)


class _Worker:
    """A child process with the Arrow streams to and from it."""

    def __init__(self, normalisation: str, schema: pa.Schema) -> None:
        code = _WORKER.format(path=[entry or os.getcwd() for entry in sys.path], name=normalisation)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal goes to the parent alone
        )
        self._requests = pa.ipc.new_stream(self.process.stdin, schema)
        self._answers: pa.ipc.RecordBatchStreamReader | None = None

    def normalise(self, battles: pa.RecordBatch) -> _Normalised:
        try:
            self._requests.write_batch(battles)
            self.process.stdin.flush()  # type: ignore[union-attr]
            self._answers = self._answers or pa.ipc.open_stream(self.process.stdout)
            normalised, metadata = self._answers.read_next_batch_with_custom_metadata()
        except (OSError, StopIteration, pa.ArrowException) as error:
            raise PrefcliError(
                f"a text process ended unexpectedly (exit code {self.process.wait()})",
                hint="If memory ran out, use fewer processes (--workers 1).",
            ) from error
        if b"error" in metadata:
            raise PrefcliError(
                f"a text process failed\n{metadata[b'error'].decode()}", hint="Please report this as a bug."
            )
        return normalised, TextCounts(*json.loads(metadata[b"counts"]))

    def close(self) -> None:
        """After the process was killed."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not yet sent is lost
                pipe.close()  # type: ignore[union-attr]
        self.process.wait()


def run_worker(normalisation: str) -> None:
    """What a worker runs: read a batch, normalise it, answer, until the input ends."""
    stdout = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a library prints is no answer
    try:
        requests = pa.ipc.open_stream(sys.stdin.buffer)
        answers = pa.ipc.new_stream(stdout, requests.schema)
        for battles in requests:
            try:
                normalised, counts = normalise_batch(battles, normalisation)
                metadata = {"counts": json.dumps(astuple(counts))}
            except Exception:
                normalised, metadata = battles.slice(0, 0), {"error": traceback.format_exc()}
            answers.write_batch(normalised, custom_metadata=metadata)
            stdout.flush()
    except (OSError, pa.ArrowException):  # the parent is gone
        pass
    os._exit(0)  # nothing here is worth flushing

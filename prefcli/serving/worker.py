"""The thread that computes: requests of all clients in one queue, answered in batches.

A batch takes what is waiting, up to a number of battles and of characters, without waiting for more. A request that is
larger than that is computed in parts, and others have their turn between them.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Compute = Callable[[list[Any]], Sequence[Any]]
"""Gives a result for each item."""


@dataclass(frozen=True)
class Item:
    """Something to compute: a battle, or a question with its answers."""

    value: Any
    battles: int
    """How many battles, or single answers, that is for the model."""
    characters: int


@dataclass(eq=False)
class Job:
    """What a request waits for."""

    compute: Compute
    """Jobs with the same function are computed together."""
    items: Sequence[Item]
    done: asyncio.Future[list[Any]]
    results: list[Any] = field(default_factory=list)
    error: Exception | None = None


Part = tuple[Job, Sequence[Item]]


class QueueFullError(Exception):
    """As many requests wait as may."""


class Worker:
    """A queue, and the thread that works on it.

    Parameters
    ----------
    max_queue:
        Requests that wait at most.
    batch_battles, batch_characters:
        What is computed together at most.
    observe:
        Called from the thread with the battles of each batch.
    """

    def __init__(
        self, *, max_queue: int, batch_battles: int, batch_characters: int, observe: Callable[[int], None]
    ) -> None:
        self._max_queue = max_queue
        self._batch_battles, self._batch_characters = batch_battles, batch_characters
        self._observe = observe
        self._queue: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="prefcli-worker", daemon=True)
        self._rate = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Compute what is waiting, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def seconds_of_queue(self) -> int:
        """When a client may try again: how long it takes to compute what waits, at the present rate; 1 to 60."""
        waiting = sum(item.battles for job in tuple(self._queue) for item in job.items)
        return max(1, min(60, math.ceil(waiting / self._rate))) if self._rate else 1

    @property
    def is_full(self) -> bool:
        """Whether :meth:`submit` would refuse a request."""
        return len(self._queue) >= self._max_queue

    async def submit(self, compute: Compute, items: Sequence[Item]) -> list[Any]:
        """The result of each item.

        Raises
        ------
        QueueFullError
            If too many requests wait.
        """
        if self.is_full:
            raise QueueFullError
        job = Job(compute, items, asyncio.get_running_loop().create_future())
        with self._changed:
            self._queue.append(job)
            self._changed.notify()
        return await job.done

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                parts = self._take()
            if parts:
                self._compute(parts)

    def _take(self) -> list[Part]:
        """The next batch: of each waiting request in turn as many items as have room."""
        parts: list[Part] = []
        battles, characters = self._batch_battles, self._batch_characters
        while self._queue:
            job = self._queue.popleft()
            if job.error is not None or job.done.done():  # nobody waits for the rest of it
                continue
            start = len(job.results)
            stop = start
            while stop < len(job.items):
                item = job.items[stop]
                fits = item.battles <= battles and item.characters <= characters
                if not fits and (parts or stop > start):
                    break
                battles, characters, stop = battles - item.battles, characters - item.characters, stop + 1
            if stop > start:
                parts.append((job, job.items[start:stop]))
            if stop < len(job.items):
                # The rest comes after what others wait for.
                self._queue.insert(len(self._queue) if stop > start else 0, job)
                break
        return parts

    def _compute(self, parts: Sequence[Part]) -> None:
        started = time.monotonic()
        groups: dict[Compute, list[Part]] = {}
        for part in parts:
            groups.setdefault(part[0].compute, []).append(part)
        for compute, alike in groups.items():
            self._compute_alike(compute, alike)
        battles = sum(item.battles for _, items in parts for item in items)
        rate = battles / max(time.monotonic() - started, 1e-6)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        self._observe(battles)
        finished = [job for job, _ in parts if job.error is not None or len(job.results) == len(job.items)]
        if finished:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                finished[0].done.get_loop().call_soon_threadsafe(_deliver, finished)

    def _compute_alike(self, compute: Compute, parts: Sequence[Part]) -> None:
        try:
            results = iter(compute([item.value for _, items in parts for item in items]))
        except BaseException as error:  # a panic in a package written in Rust is no Exception
            if len(parts) == 1:
                parts[0][0].error = _deliverable(error)
                return
            for part in parts:  # one request must not spoil the others
                self._compute_alike(compute, [part])
            return
        for job, items in parts:
            job.results += itertools.islice(results, len(items))


def _deliverable(error: BaseException) -> Exception:
    """An exception that a future takes and that ends no more than the request."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)


def _deliver(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.done.done():  # cancelled: its time was up
            continue
        if job.error is None:
            job.done.set_result(job.results)
        else:
            job.done.set_exception(job.error)

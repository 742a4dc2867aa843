"""How many cores there are to work on, and threads for functions that leave Python's lock to each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 4
"""Each holds what it works on in memory, and between calls of NumPy they wait for Python's lock."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def usable_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """``function(item)`` of every item, in order, by as many threads as cores, at most :data:`MAX_THREADS`.

    It gains where most of the time is spent in NumPy or Arrow, which release Python's lock. ``OMP_NUM_THREADS`` is
    kept to, as PyTorch and LightGBM do.
    """
    items = list(items)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(limit) if limit.isdecimal() and int(limit) else usable_cores(), MAX_THREADS, len(items))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="prefcli-map") as pool:
        return list(pool.map(function, items))

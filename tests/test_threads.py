"""Work in threads gives what a loop gives, and batches of Arrow are never silently cut."""

import os
import platform
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import prefcli.battles
from prefcli.battles import one_batch
from prefcli.compute import memory
from prefcli.errors import InputError
from prefcli.models.features import network, statistics
from prefcli.threads import MAX_THREADS, map_in_threads
from tests.test_features import as_batch, same


@pytest.mark.parametrize(("limit", "threads"), [("1", 1), ("2", 2), ("99", MAX_THREADS)])
def test_items_keep_their_order_and_no_more_threads_work_than_omp_num_threads(monkeypatch, limit, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    together = threading.Barrier(threads)

    def square(number):
        together.wait(timeout=20)  # would time out with fewer threads
        return number**2, threading.get_ident()

    squares, names = zip(*map_in_threads(square, range(threads * 5)), strict=True)
    assert list(squares) == [number**2 for number in range(threads * 5)]
    assert len(set(names)) == threads


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda number: 1 // number, [2, 1, 0, 3])


def test_several_threads_measure_and_predict_to_the_same_bits(monkeypatch):
    random = np.random.default_rng(0)
    words = np.array(["apple", "pear", "`x`", "1.", "\n- item", "warum", "苹果"])
    texts = [" ".join(random.choice(words, size)) for size in random.integers(0, 60, 900)]
    battles = as_batch([([texts[i]], [texts[i + 1]], [texts[i + 2]]) for i in range(0, 900, 3)])
    rows = random.normal(size=(network.PART * 3 + 5, 9)).astype(np.float32)
    layers = network._initial(random, 9)
    networks = network.Networks(np.zeros(9, np.float32), np.ones(9, np.float32), (layers,), 0.5)
    monkeypatch.setattr(statistics, "CHUNK_BYTES", 2_000)

    results = []
    for threads in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append((statistics.extract(battles), networks.scores(rows, -rows)))
    (one, scores), (several, other_scores) = results
    same(one, several)
    np.testing.assert_array_equal(scores, other_scores)


def test_a_table_that_fits_in_no_batch_is_refused(monkeypatch):
    table = pa.table({"text": pa.chunked_array([["a" * 40], ["b" * 40]])})
    assert one_batch(table).to_pylist() == table.to_pylist()
    assert one_batch(table.slice(0, 0)).num_rows == 0
    monkeypatch.setattr(prefcli.battles, "MAX_BATCH_BYTES", 80)
    with pytest.raises(InputError, match="2 rows of 88 bytes at once, more than 80"):
        one_batch(table)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory so")
def test_freed_memory_between_blocks_in_use_is_given_back():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [bytes(16_000) for _ in range(6_000)]  # too small to be mapped each
    blocks[:-1:2] = [b""] * 3_000
    before = resident()
    memory.return_freed_memory()
    assert resident() < before - 20_000_000

"""Join streams of rows by id in memory that does not grow with them.

Few rows are kept in memory. From :data:`IN_MEMORY_ROWS` on, all streams are spread over nameless temporary files by
the hash of their ids, and rows with equal ids meet within a file: the hash join of Kitsuregawa et al., "Application of
hash to data base machine and its architecture" (1983). Nothing of it is left behind, even by a process that is killed.
"""

from __future__ import annotations

import contextlib
import heapq
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.storage import files

IN_MEMORY_ROWS = 1 << 18
MAX_FILES = 128
"""How many temporary files are open at once, for all streams together."""
MAX_EXAMPLES = 3
"""How many rows of each kind of mismatch are shown."""

Values = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Some rows of a file."""

    ids: pa.Array
    """As the file spells them."""
    values: Values
    """Numbers of each row, shape ``[n, k]``, of one type in all rows of a stream."""
    first: int
    """Number of the first row in its file, counted from 1."""


@dataclass
class Mismatch:
    """How many rows of a kind are wrong, and the first of them: ``(row, id, ...)``."""

    count: int = 0
    examples: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, rows: Iterable[tuple[Any, ...]], count: int) -> None:
        self.count += count
        self.examples = heapq.nsmallest(MAX_EXAMPLES, [*self.examples, *heapq.nsmallest(MAX_EXAMPLES, rows)])


@dataclass
class Mismatches:
    """Rows of several streams that do not fit together; each stream is compared with the last one."""

    duplicates: list[Mismatch]
    """For each stream: rows whose id occurred before in it, ``(row, id, first row with the id)``."""
    extra: list[Mismatch]
    """For each stream but the last: its rows whose id is not in the last stream, ``(row, id)``."""
    missing: list[Mismatch]
    """For each stream but the last: rows of the last one whose id it has not, ``(row, id)``."""

    @staticmethod
    def of(streams: int) -> Mismatches:
        """No mismatches yet."""
        return Mismatches(*([Mismatch() for _ in range(size)] for size in (streams, streams - 1, streams - 1)))


class Join:
    """Rows of several streams with equal ids, side by side; a context manager. Streams are read to their end in turn.

    Raises
    ------
    PrefcliError
        If the temporary files do not fit on the disk.
    """

    def __init__(self, *streams: Iterable[Rows]) -> None:
        self.mismatches = Mismatches.of(len(streams))
        """Complete after the last of :meth:`rows`."""
        buckets = max(MAX_FILES // len(streams), 2)
        self._spools = [_Spool(buckets) for _ in streams]
        with files.temporary_file_errors():
            for spool, stream in zip(self._spools, streams, strict=True):
                for rows in stream:
                    spool.add(rows)
            if any(spool.is_on_disk for spool in self._spools):
                for spool in self._spools:
                    spool.spill()

    def __enter__(self) -> Join:
        return self

    def __exit__(self, *error: object) -> None:
        for spool in self._spools:
            spool.close()

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many rows the streams had."""
        return tuple(spool.rows for spool in self._spools)

    def rows(self) -> Iterator[tuple[Values, ...]]:
        """Each stream's values of the rows that all have, in the order of the last one if all rows fit in memory."""
        import pandas as pd

        for bucket in zip(*(spool.buckets() for spool in self._spools), strict=True):
            tables = [_drop_duplicates(t, m) for t, m in zip(bucket, self.mismatches.duplicates, strict=True)]
            last = tables[-1]
            positions = [pd.Index(t["id"].to_numpy()).get_indexer(last["id"].to_numpy()) for t in tables[:-1]]
            for number, position in enumerate(positions):
                is_used = np.zeros(tables[number].num_rows, dtype=bool)
                is_used[position[position >= 0]] = True
                _add_rows(self.mismatches.missing[number], last, position < 0)
                _add_rows(self.mismatches.extra[number], tables[number], ~is_used)
            in_all = np.all([position >= 0 for position in positions], axis=0)
            values = [_values(t)[p[in_all]] for t, p in zip(tables, positions, strict=False)]
            yield *values, _values(last)[in_all]


class _Spool:
    """Rows as tables ``id, row, 0, 1, ...``, in memory or spread over files."""

    def __init__(self, buckets: int) -> None:
        self.rows = 0
        self._size = buckets
        self._batches: list[pa.RecordBatch] = []
        self._files: list[IO[bytes]] = []
        self._writers: list[Any] = []

    @property
    def is_on_disk(self) -> bool:
        return bool(self._files)

    def add(self, rows: Rows) -> None:
        numbers = np.arange(rows.first, rows.first + len(rows.ids))
        columns = {str(i): pa.array(rows.values[:, i]) for i in range(rows.values.shape[1])}
        batch = pa.RecordBatch.from_pydict({"id": rows.ids, "row": pa.array(numbers), **columns})
        self._batches.append(batch)
        self.rows += batch.num_rows
        if sum(batch.num_rows for batch in self._batches) > IN_MEMORY_ROWS:
            self.spill()

    def spill(self) -> None:
        """Move the rows in memory to the files."""
        import pandas as pd

        if not self._files:
            self._files = [tempfile.TemporaryFile(prefix="prefcli-") for _ in range(self._size)]  # noqa: SIM115
        if not self._batches:
            return
        table = pa.Table.from_batches(self._batches)
        self._batches = []
        if not self._writers:
            self._writers = [pa.ipc.new_stream(file, table.schema) for file in self._files]
        bucket = pd.util.hash_array(table["id"].to_numpy(), categorize=False) % np.uint64(self._size)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=self._size))
        table = table.take(pa.array(order)).combine_chunks()
        for writer, start, end in zip(self._writers, [0, *ends[:-1]], ends, strict=True):
            if end > start:
                writer.write_table(table.slice(start, end - start))

    def buckets(self) -> Iterator[pa.Table]:
        """All rows, once: as one table, or file by file."""
        if not self._files:
            yield pa.Table.from_batches(self._batches)
            return
        for file, writer in zip(self._files, self._writers, strict=True):
            with files.temporary_file_errors():
                writer.close()
                file.seek(0)
            with pa.ipc.open_stream(file) as reader:
                yield reader.read_all()

    def close(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()


def _drop_duplicates(table: pa.Table, duplicates: Mismatch) -> pa.Table:
    import pandas as pd

    ids, rows = pd.Index(table["id"].to_numpy()), table["row"].to_numpy()
    is_duplicate = ids.duplicated()
    if not is_duplicate.any():
        return table
    repeated = ids[is_duplicate]
    first_rows = rows[~is_duplicate][ids[~is_duplicate].get_indexer(repeated)]
    duplicates.add(zip(rows[is_duplicate].tolist(), repeated, first_rows.tolist(), strict=True), len(repeated))
    return table.filter(pa.array(~is_duplicate))


def _add_rows(mismatch: Mismatch, table: pa.Table, mask: NDArray[np.bool_]) -> None:
    positions = np.flatnonzero(mask)
    if len(positions):
        first = table.take(pa.array(positions[:MAX_EXAMPLES]))  # a table's rows are in the order of their file
        mismatch.add(zip(first["row"].to_pylist(), first["id"].to_pylist(), strict=True), len(positions))


def _values(table: pa.Table) -> Values:
    return np.stack([table[name].to_numpy() for name in table.column_names[2:]], axis=1)

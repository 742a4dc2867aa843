"""Join two streams of rows by id in memory that does not grow with them.

Few rows are kept in memory. From :data:`IN_MEMORY_ROWS` on, both streams are spread over nameless temporary files by
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
BUCKETS = 64
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
    """Rows of two streams that do not fit together."""

    left_duplicates: Mismatch = field(default_factory=Mismatch)
    right_duplicates: Mismatch = field(default_factory=Mismatch)
    """Rows whose id occurred before in their stream: ``(row, id, first row with the id)``."""
    left_only: Mismatch = field(default_factory=Mismatch)
    right_only: Mismatch = field(default_factory=Mismatch)
    """Rows whose id is not in the other stream: ``(row, id)``."""


class Join:
    """Left and right rows with equal ids, side by side; a context manager. ``left`` is read to its end first.

    Raises
    ------
    PrefcliError
        If the temporary files do not fit on the disk.
    """

    def __init__(self, left: Iterable[Rows], right: Iterable[Rows]) -> None:
        self.mismatches = Mismatches()
        """Complete after the last of :meth:`pairs`."""
        self._left, self._right = _Spool(), _Spool()
        with files.temporary_file_errors():
            for spool, stream in ((self._left, left), (self._right, right)):
                for rows in stream:
                    spool.add(rows)
            if self._left.is_on_disk or self._right.is_on_disk:
                self._left.spill()
                self._right.spill()

    def __enter__(self) -> Join:
        return self

    def __exit__(self, *error: object) -> None:
        self._left.close()
        self._right.close()

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows the streams had."""
        return self._left.rows, self._right.rows

    def pairs(self) -> Iterator[tuple[Values, Values]]:
        """Values of rows with equal ids, in the order of ``right`` if all rows fit in memory."""
        import pandas as pd

        for left, right in zip(self._left.buckets(), self._right.buckets(), strict=True):
            left = _drop_duplicates(left, self.mismatches.left_duplicates)
            right = _drop_duplicates(right, self.mismatches.right_duplicates)
            left_rows = pd.Index(left["id"].to_numpy()).get_indexer(right["id"].to_numpy())
            has_left = left_rows >= 0
            has_right = np.zeros(left.num_rows, dtype=bool)
            has_right[left_rows[has_left]] = True
            _add_rows(self.mismatches.right_only, right, ~has_left)
            _add_rows(self.mismatches.left_only, left, ~has_right)
            yield _values(left)[left_rows[has_left]], _values(right)[has_left]


class _Spool:
    """Rows as tables ``id, row, 0, 1, ...``, in memory or spread over files."""

    def __init__(self) -> None:
        self.rows = 0
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
            self._files = [tempfile.TemporaryFile(prefix="prefcli-") for _ in range(BUCKETS)]  # noqa: SIM115
        if not self._batches:
            return
        table = pa.Table.from_batches(self._batches)
        self._batches = []
        if not self._writers:
            self._writers = [pa.ipc.new_stream(file, table.schema) for file in self._files]
        bucket = pd.util.hash_array(table["id"].to_numpy(), categorize=False) % np.uint64(BUCKETS)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=BUCKETS))
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

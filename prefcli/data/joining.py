"""Two streams of rows joined by id, in memory that does not grow with them.

While there are few rows they are kept in memory. From :data:`IN_MEMORY_ROWS` on, both streams are spread over nameless
temporary files by the hash of their ids, and rows of the same id meet within a file: the hash join of Kitsuregawa et
al., "Application of hash to data base machine and its architecture" (1983). Nothing of it is left behind, even by a
process that is killed.
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
NAMED = 3
"""How many rows of a kind of mismatch are named."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Some rows of a file.

    Attributes
    ----------
    ids:
        As they are spelled.
    values:
        Numbers of each row, shape ``[n, k]``.
    first:
        Number of the first row in its file, counted from 1.
    """

    ids: pa.Array
    values: Values
    first: int


@dataclass
class Named:
    """How often something was found, and the first rows where it was: ``(row, id, more)``."""

    count: int = 0
    first: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, found: Iterable[tuple[Any, ...]], count: int) -> None:
        self.count += count
        self.first = heapq.nsmallest(NAMED, [*self.first, *heapq.nsmallest(NAMED, found)])


@dataclass
class Mismatches:
    """What of two streams does not fit together.

    Attributes
    ----------
    left_twice, right_twice:
        Ids that occur a second time in a stream: ``(row, id, earlier row)``.
    left_alone, right_alone:
        Ids that the other stream does not have: ``(row, id)``.
    """

    left_twice: Named = field(default_factory=Named)
    right_twice: Named = field(default_factory=Named)
    left_alone: Named = field(default_factory=Named)
    right_alone: Named = field(default_factory=Named)


class Join:
    """Left rows and right rows of the same id, side by side; a context manager.

    Parameters
    ----------
    left, right:
        The streams; ``left`` is read to its end first.

    Raises
    ------
    PrefcliError
        If there is no room for temporary files.
    """

    def __init__(self, left: Iterable[Rows], right: Iterable[Rows]) -> None:
        self.mismatches = Mismatches()
        """Complete when :meth:`pairs` has come to its end."""
        self._left, self._right = _Spool(), _Spool()
        with files.temporary_file_errors():
            for spool, rows in ((self._left, left), (self._right, right)):
                for some in rows:
                    spool.add(some)
            if self._left.spread or self._right.spread:
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
        """Values of rows that met, in the order of ``right`` as long as all rows are in memory."""
        for left, right in zip(self._left.buckets(), self._right.buckets(), strict=True):
            yield self._meet(left, right)

    def _meet(self, left: pa.Table, right: pa.Table) -> tuple[Values, Values]:
        import pandas as pd

        found = self.mismatches
        left = _without_repeated(left, found.left_twice)
        right = _without_repeated(right, found.right_twice)
        rows = pd.Index(left["id"].to_numpy()).get_indexer(right["id"].to_numpy())
        there = rows >= 0
        _name(found.right_alone, right, np.flatnonzero(~there))
        unmet = np.ones(left.num_rows, dtype=bool)
        unmet[rows[there]] = False
        _name(found.left_alone, left, np.flatnonzero(unmet))
        return _values(left)[rows[there]], _values(right)[there]


class _Spool:
    """Rows as tables ``id, row, 0, 1, ...``, in memory or spread over files."""

    def __init__(self) -> None:
        self.rows = 0
        self._batches: list[pa.RecordBatch] = []
        self._waiting = 0
        self._files: list[IO[bytes]] = []
        self._writers: list[Any] = []
        self._schema: Any = None

    @property
    def spread(self) -> bool:
        return bool(self._files)

    def add(self, some: Rows) -> None:
        numbers = np.arange(some.first, some.first + len(some.ids))
        columns = {str(i): pa.array(some.values[:, i]) for i in range(some.values.shape[1])}
        batch = pa.RecordBatch.from_pydict({"id": some.ids, "row": pa.array(numbers), **columns})
        self._schema = batch.schema
        self._batches.append(batch)
        self._waiting += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting > IN_MEMORY_ROWS:
            self.spill()

    def spill(self) -> None:
        """Put what is in memory into the files."""
        import pandas as pd

        if not self._files:
            self._files = [tempfile.TemporaryFile(prefix="prefcli-") for _ in range(BUCKETS)]  # noqa: SIM115
        if not self._batches:
            return
        if not self._writers:
            self._writers = [pa.ipc.new_stream(file, self._schema) for file in self._files]
        table = pa.Table.from_batches(self._batches)
        self._batches, self._waiting = [], 0
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


def _without_repeated(table: pa.Table, twice: Named) -> pa.Table:
    import pandas as pd

    repeated = pd.Index(table["id"].to_numpy()).duplicated()
    if not repeated.any():
        return table
    rows, ids = table["row"].to_numpy(), table["id"].to_pylist()
    first: dict[str, int] = {}
    for row, name in zip(rows.tolist(), ids, strict=True):
        first.setdefault(name, row)
    places = np.flatnonzero(repeated)
    twice.add(((int(rows[i]), ids[i], first[ids[i]]) for i in places), len(places))
    return table.filter(pa.array(~repeated))


def _name(named: Named, table: pa.Table, places: NDArray[np.intp]) -> None:
    if len(places):
        few = table.take(pa.array(places[:NAMED]))  # rows of a table are in the order of their file
        named.add(zip(few["row"].to_pylist(), few["id"].to_pylist(), strict=True), len(places))


def _values(table: pa.Table) -> Values:
    return np.stack([table[name].to_numpy() for name in table.column_names[2:]], axis=1)

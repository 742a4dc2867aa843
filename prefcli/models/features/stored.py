"""Features of many battles in temporary files: in memory are two numbers for each battle, and what is asked for.

Written batch by batch, read by position. The files are deleted when nothing refers to them any more, also when the
process is killed (on Windows, when it ends).
"""

from __future__ import annotations

import copy
import itertools
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli.models.features.names import ANSWER_STATISTICS, PAIR_STATISTICS, TEXT_STATISTICS
from prefcli.models.features.statistics import BUCKETS, BattleStatistics, Features, entry_chunks
from prefcli.storage import files

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Positions = NDArray[np.integer]
MAPPED_PARTS = 512
"""Rows, or slices of them, after which a file is mapped anew: the kernel maps 64 KB around each."""
WIDTH = len(TEXT_STATISTICS) + 2 * len(ANSWER_STATISTICS) + len(PAIR_STATISTICS)


class _Column:
    """Rows of numbers, one after the other in a temporary file."""

    def __init__(self, folder: Path, dtype: type[np.generic], width: int = 1) -> None:
        with files.as_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk did not take is not tried again when the file is closed.
            self._file: Any = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (open as long as it is used)
        self._dtype, self._width = np.dtype(dtype), width
        self._folder = folder
        self._bytes = 0

    def append(self, values: NDArray[np.generic]) -> None:
        data = np.ascontiguousarray(values, dtype=self._dtype).reshape(-1).view(np.uint8)
        with files.as_write_errors(self._folder):
            left = data.data
            while left:  # one call may write a part
                left = left[self._file.write(left) :]
        self._bytes += data.nbytes

    def view(self) -> NDArray[Any]:
        """All rows; what is read of them counts as this process's memory until the array is deleted."""
        if not self._bytes:
            return np.empty((0, self._width), dtype=self._dtype)
        mapped = mmap.mmap(self._file.fileno(), self._bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype=self._dtype).reshape(-1, self._width)

    def slices(self, parts: list[slice]) -> NDArray[Any]:
        """Some of the rows of one number, in memory."""
        found = []
        for start in range(0, len(parts), MAPPED_PARTS):
            rows = self.view()
            found.append(np.concatenate([rows[part, 0] for part in parts[start : start + MAPPED_PARTS]]))
        return np.concatenate(found)


class StoredFeatures:
    """Features of n battles on disk, with the methods of :class:`.statistics.Features` that a fit needs."""

    def __init__(self, folder: Path) -> None:
        self._statistics = _Column(folder, np.float32, WIDTH)
        self._buckets = _Column(folder, np.int32)
        self._differences = _Column(folder, np.float32)
        self._offsets = np.zeros(1, dtype=np.int64)
        """Battle ``i`` has the entries ``offsets[i]:offsets[i + 1]`` of the words' files."""
        self._rows: Positions = np.empty(0, dtype=np.intp)

    def append(self, battles: Features) -> None:
        """Write more battles."""
        sides = battles.answers.reshape(len(battles), -1)
        self._statistics.append(np.concatenate([battles.prompt, sides, battles.pair], axis=1))
        self._buckets.append(battles.words.indices)
        self._differences.append(battles.words.data)
        self._offsets = np.concatenate([self._offsets, self._offsets[-1] + battles.words.indptr[1:].astype(np.int64)])
        self._rows = np.arange(len(self._offsets) - 1)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: Positions) -> StoredFeatures:
        """The battles at these positions, in this order; they stay on disk."""
        part = copy.copy(self)
        part._rows = self._rows[rows]
        return part

    def statistics(self, rows: Positions) -> BattleStatistics:
        """The statistics of the battles at these positions, in memory."""
        found = self._rows[rows]
        parts = np.array_split(found, len(found) // MAPPED_PARTS + 1)
        values = np.concatenate([self._statistics.view()[part] for part in parts])
        prompt, sides, pair = np.split(values, [len(TEXT_STATISTICS), WIDTH - len(PAIR_STATISTICS)], axis=1)
        return BattleStatistics(prompt, sides.reshape(len(rows), 2, len(ANSWER_STATISTICS)), pair)

    def load(self, rows: Positions) -> Features:
        """The battles at these positions, in memory."""
        found = self.statistics(rows)
        return Features(found.prompt, found.answers, found.pair, self._words(self._rows[rows]))

    def word_chunks(self) -> Iterator[tuple[slice, csr_matrix]]:
        """See :meth:`.statistics.Features.word_chunks`."""
        sizes = np.diff(self._offsets)[self._rows]
        for chunk in entry_chunks(np.concatenate([[0], np.cumsum(sizes)])):
            yield chunk, self._words(self._rows[chunk])

    def _words(self, rows: Positions) -> csr_matrix:
        from scipy.sparse import csr_matrix

        if not len(rows):
            return csr_matrix((0, BUCKETS), dtype=np.float32)
        starts, stops = self._offsets[rows], self._offsets[rows + 1]
        breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        parts = [
            slice(starts[first], stops[last - 1])
            for first, last in itertools.pairwise([0, *breaks.tolist(), len(rows)])
        ]
        buckets, differences = (column.slices(parts) for column in (self._buckets, self._differences))
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        return csr_matrix((differences, buckets, offsets), shape=(len(rows), BUCKETS))


Measured = Features | StoredFeatures
"""Battles in memory, or on disk."""

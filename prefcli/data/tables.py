"""Predictions and truth as files: what ``predict`` writes and ``score`` reads.

Kaggle's submission: ``id, winner_model_a, winner_model_b, winner_tie``, as CSV, Parquet or JSON
lines by the file's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import metrics, readers
from prefcli.battles import check_unique_ids, duplicate_id_error
from prefcli.data.joining import Join, Named, Rows
from prefcli.errors import InputError
from prefcli.outcomes import WINNER_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

_TO_QUOTE = re.compile(r'[",\r\n]')
NAMED_ROWS = 3
"""How many wrong rows an error names."""

GRADER_CLIP = 1e-15
BYTES_PER_ROW = 80
"""Of a file of predictions, roughly."""


class PredictionWriter(Protocol):
    """Writes predictions batch by batch; a context manager."""

    def __enter__(self) -> PredictionWriter: ...
    def __exit__(self, *error: object) -> None: ...
    def write(self, ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
        """Append rows: ids ``[n]``, probabilities ``[n, 3]``."""


class CsvWriter:
    """Rows with the shortest decimals that give the same float64 back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> CsvWriter:
        self._stream = self._path.open("w", encoding="utf-8", newline="")
        self._stream.write(",".join(["id", *WINNER_COLUMNS]) + "\n")
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
        for name, (a, b, tie) in zip(ids.to_pylist(), probabilities.tolist(), strict=True):
            self._stream.write(f"{_quoted(name)},{a!r},{b!r},{tie!r}\n")


def _quoted(name: str) -> str:
    """An id as a cell of CSV. Python's own writer leaves a carriage return unquoted, which breaks the row."""
    return '"' + name.replace('"', '""') + '"' if _TO_QUOTE.search(name) or not name else name


class ParquetWriter:
    """The same four columns as Parquet."""

    schema = pa.schema([("id", pa.string()), *((name, pa.float64()) for name in WINNER_COLUMNS)])

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> ParquetWriter:
        import pyarrow.parquet as pq

        self._writer: Any = pq.ParquetWriter(self._path, self.schema)
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
        columns = [ids, *(pa.array(probabilities[:, i]) for i in range(len(WINNER_COLUMNS)))]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))


class JsonLinesWriter:
    """The same four columns as JSON, one object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> JsonLinesWriter:
        self._stream = self._path.open("w", encoding="utf-8", newline="")
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
        for name, row in zip(ids.to_pylist(), probabilities.tolist(), strict=True):
            self._stream.write(json.dumps({"id": name, **dict(zip(WINNER_COLUMNS, row, strict=True))}) + "\n")


def writer_for(path: Path) -> Callable[[Path], PredictionWriter]:
    """The writer that a file's name asks for.

    Raises
    ------
    InputError
        If the name ends neither in ``.csv`` nor in ``.parquet`` nor in ``.jsonl``.
    """
    writers: dict[str, Callable[[Path], PredictionWriter]] = {
        ".csv": CsvWriter,
        ".parquet": ParquetWriter,
        ".pq": ParquetWriter,
        ".jsonl": JsonLinesWriter,
    }
    if path.suffix.lower() not in writers:
        raise InputError(f"cannot tell the format of {path}", hint="Name it .csv, .parquet or .jsonl.")
    return writers[path.suffix.lower()]


def read_probabilities(path: Path, *, renormalize: bool = False) -> tuple[pd.Index, NDArray[np.float64]]:
    """Ids and probabilities ``[n, 3]`` of a whole file of predictions; ids are unique.

    Raises
    ------
    InputError
        As :func:`probabilities` does.
    """
    import pandas as pd

    parts = list(probabilities(path, renormalize=renormalize))
    ids = pd.Index(pa.chunked_array([rows.ids for rows in parts]).to_numpy(), dtype=object)
    if not ids.is_unique:
        check_unique_ids(ids, str(path))
    return ids, np.concatenate([rows.values for rows in parts])


def probabilities(path: Path, *, renormalize: bool = False) -> Iterator[Rows]:
    """The rows of a file of predictions, some at a time; values ``[n, 3]``.

    Parameters
    ----------
    path:
        CSV or Parquet.
    renormalize:
        Make probabilities of whatever finite numbers stand there, as the competition's grader does.

    Raises
    ------
    InputError
        If a value is not a number, or, at the end of the file, if rows are not probability distributions: how many,
        and the first of them.
    """
    if renormalize:
        what, hint = "not finite", "No rule can make probabilities of them."
    else:
        what = f"not probabilities (finite, within 0 and 1, summing to 1 within {metrics.SUM_TOLERANCE:g})"
        hint = "To clip and renormalise as the competition's grader does, add --renormalize."
    wrong = _WrongRows(path, what, hint)
    for rows in _rows(path, "predictions"):
        if renormalize:
            wrong.note(rows, np.flatnonzero(~np.isfinite(rows.values).all(axis=1)))
            yield Rows(rows.ids, clip_and_renormalize(rows.values), rows.first)
        else:
            wrong.note(rows, metrics.find_improper(rows.values))
            yield rows
    wrong.raise_if_any()


def clip_and_renormalize(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities from any finite scores ``[n, 3]``: clipped to [1e-15, 1], then divided by the row's sum."""
    clipped = np.clip(scores, GRADER_CLIP, 1)
    return clipped / clipped.sum(axis=1, keepdims=True)


def truth(path: Path) -> Iterator[Rows]:
    """The rows of a file with one-hot winner columns, some at a time; values are labels ``[n, 1]``.

    Raises
    ------
    InputError
        If rows have no winner or several.
    """
    wrong = _WrongRows(path, "without exactly one winner", "In the truth one of the three columns is 1, the others 0.")
    for rows in _rows(path, "labels"):
        values = rows.values
        wrong.note(rows, np.flatnonzero(~(np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1))))
        yield Rows(rows.ids, values.argmax(axis=1).astype(np.float64)[:, None], rows.first)
    wrong.raise_if_any()


def matched(
    guess_file: Path, true_file: Path, *, renormalize: bool = False
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Probabilities ``[n, 3]`` and labels ``[n]`` of the same battles, some at a time; memory does not grow.

    Raises
    ------
    InputError
        If a file is not what it should be, or an id occurs twice or stands in one file only. What the ids say is known
        at the end, after the last part.
    """
    with Join(probabilities(guess_file, renormalize=renormalize), truth(true_file)) as join:
        for guesses, labels in join.pairs():
            yield guesses, labels[:, 0].astype(np.int64)
        found, (_, battles) = join.mismatches, join.sizes
    for twice, file in ((found.left_twice, guess_file), (found.right_twice, true_file)):
        if twice.count:
            row, name, earlier = twice.first[0]
            raise duplicate_id_error(name, earlier, row, str(file))
    if found.right_alone.count:
        raise InputError(
            f"{found.right_alone.count:,} of {battles:,} battles have no prediction: id {_listed(found.right_alone)}",
            where=str(guess_file),
            hint=f"Every id of {true_file} must be predicted.",
        )
    if found.left_alone.count:
        raise InputError(
            f"{found.left_alone.count:,} predictions have no truth: id {_listed(found.left_alone)}",
            where=str(guess_file),
            hint=f"Every predicted id must stand in {true_file}.",
        )


def _rows(path: Path, what: str) -> Iterator[Rows]:
    """Ids as they are spelled and the three columns as numbers ``[n, 3]``."""
    first = 1
    for batch in readers.column_batches(path, ["id", *WINNER_COLUMNS]):
        ids = batch.column("id")
        if ids.null_count:
            row = first + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError("no id", where=f"{path}, row {row}, column id")
        columns = [_numbers(batch.column(name), path, first, name) for name in WINNER_COLUMNS]
        if len(ids):
            yield Rows(ids, np.stack(columns, axis=1), first)
        first += len(ids)
    if first == 1:
        raise InputError(f"the file holds no {what}", where=str(path))


def _numbers(column: pa.Array, path: Path, first: int, name: str) -> NDArray[np.float64]:
    """A column of text as float64; "nan" is a number here, and refused with its row where it is no probability."""
    try:
        if not column.null_count:
            return np.asarray(column.cast(pa.float64()).to_numpy())
    except pa.ArrowInvalid:
        pass
    values = []
    for row, cell in enumerate(column.to_pylist(), start=first):
        try:
            values.append(float("" if cell is None or "_" in cell else cell))
        except ValueError:
            raise InputError(
                f"expected a number, found {repr(cell[:40]) if cell else 'nothing'}",
                where=f"{path}, row {row}, column {name}",
            ) from None
    return np.array(values, dtype=np.float64)


class _WrongRows:
    """Rows of a file that are not what they should be: how many, and the first of them in words."""

    def __init__(self, path: Path, what: str, hint: str) -> None:
        self._path, self._what, self._hint = path, what, hint
        self._count = 0
        self._named: list[str] = []

    def note(self, rows: Rows, wrong: NDArray[np.intp]) -> None:
        self._count += len(wrong)
        for row in wrong[: NAMED_ROWS - len(self._named)].tolist():
            numbers = ", ".join(f"{value:.7g}" for value in rows.values[row])
            self._named.append(f"row {rows.first + row} (id {rows.ids[row].as_py()[:40]}): {numbers}")

    def raise_if_any(self) -> None:
        if not self._count:
            return
        more = f"; and {self._count - len(self._named):,} more" if self._count > len(self._named) else ""
        count = "1 row is" if self._count == 1 else f"{self._count:,} rows are"
        raise InputError(
            f"{count} {self._what}: {'; '.join(self._named)}{more}", where=str(self._path), hint=self._hint
        )


def _listed(named: Named) -> str:
    shown = ", ".join(repr(name[:40]) for _, name in named.first)
    return shown + (" ..." if named.count > len(named.first) else "")

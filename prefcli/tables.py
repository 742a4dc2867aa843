"""Predictions and truth as files: what ``predict`` writes and ``score`` reads.

Kaggle's submission: ``id, winner_model_a, winner_model_b, winner_tie``, as CSV or Parquet by the file's name.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import metrics, readers
from prefcli.battles import check_unique_ids
from prefcli.errors import InputError
from prefcli.outcomes import WINNER_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

NAMED_ROWS = 3
"""How many wrong rows an error names."""

GRADER_CLIP = 1e-15


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
        self._rows = csv.writer(self._stream, lineterminator="\n")
        self._rows.writerow(["id", *WINNER_COLUMNS])
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
        self._rows.writerows([name, *row] for name, row in zip(ids.to_pylist(), probabilities.tolist(), strict=True))


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


def writer_for(path: Path) -> Callable[[Path], PredictionWriter]:
    """The writer that a file's name asks for.

    Raises
    ------
    InputError
        If the name ends neither in ``.csv`` nor in ``.parquet``.
    """
    writers: dict[str, Callable[[Path], PredictionWriter]] = {
        ".csv": CsvWriter,
        ".parquet": ParquetWriter,
        ".pq": ParquetWriter,
    }
    if path.suffix.lower() not in writers:
        raise InputError(f"cannot tell the format of {path}", hint="Name it .csv or .parquet.")
    return writers[path.suffix.lower()]


def read_probabilities(path: Path, *, renormalize: bool = False) -> tuple[pd.Index, NDArray[np.float64]]:
    """Ids and probabilities ``[n, 3]`` of a file of predictions.

    Parameters
    ----------
    path:
        CSV or Parquet.
    renormalize:
        Make probabilities of whatever finite numbers stand there, as the competition's grader does.

    Raises
    ------
    InputError
        If a value is not a number or a row is not a probability distribution; the first rows are named.
    """
    ids, values = _read(path, "predictions")
    if renormalize:
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            wrong = np.flatnonzero(~finite)
            raise _wrong_rows(path, ids, values, wrong, "not finite", "No rule can make probabilities of them.")
        values = graders_rule(values)
    if len(improper := metrics.find_improper(values)):
        raise _wrong_rows(
            path,
            ids,
            values,
            improper,
            "not probabilities (finite, within 0 and 1, summing to 1 within 1e-6)",
            "To clip and renormalise as the competition's grader does, add --renormalize.",
        )
    return ids, values


def graders_rule(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities from any finite scores ``[n, 3]``: clipped to [1e-15, 1], then divided by the row's sum."""
    clipped = np.clip(scores, GRADER_CLIP, 1)
    return clipped / clipped.sum(axis=1, keepdims=True)


def read_truth(path: Path) -> tuple[pd.Index, NDArray[np.int64]]:
    """Ids and labels ``[n]`` of a file with one-hot winner columns.

    Raises
    ------
    InputError
        If a row has no winner or several.
    """
    ids, values = _read(path, "labels")
    wrong = np.flatnonzero(~(np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1)))
    if len(wrong):
        hint = "In the truth one of the three columns is 1, the others 0."
        raise _wrong_rows(path, ids, values, wrong, "without exactly one winner", hint)
    return ids, values.argmax(axis=1)


def match(guess_ids: pd.Index, true_ids: pd.Index, guess_file: Path, true_file: Path) -> NDArray[np.intp]:
    """For each true id, the row of its prediction; shape ``[n]``.

    Raises
    ------
    InputError
        If an id stands in one file only.
    """
    rows: NDArray[np.intp] = guess_ids.get_indexer(true_ids)
    if (rows < 0).any():
        missing = true_ids[rows < 0]
        raise InputError(
            f"{len(missing):,} of {len(true_ids):,} battles have no prediction: id {_listed(missing)}",
            where=str(guess_file),
            hint=f"Every id of {true_file} must be predicted.",
        )
    if len(guess_ids) > len(true_ids):
        extra = guess_ids[~guess_ids.isin(true_ids)]
        raise InputError(
            f"{len(extra):,} predictions have no truth: id {_listed(extra)}",
            where=str(guess_file),
            hint=f"Every predicted id must stand in {true_file}.",
        )
    return rows


def _read(path: Path, what: str) -> tuple[pd.Index, NDArray[np.float64]]:
    """Ids as they are spelled, unique, and the three columns as numbers ``[n, 3]``."""
    import pandas as pd

    frame = readers.read_columns(path, ["id", *WINNER_COLUMNS]).to_pandas()
    if not len(frame):
        raise InputError(f"the file holds no {what}", where=str(path))
    ids = pd.Index(frame["id"])
    if not ids.is_unique:
        check_unique_ids(ids, str(path))
    numbers = frame[list(WINNER_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    # "nan" is a number that score refuses with its row; anything else that became NaN was no number.
    unread = numbers.isna() & (
        frame[list(WINNER_COLUMNS)].apply(lambda column: column.str.strip().str.lower()) != "nan"
    )
    if unread.to_numpy().any():
        row, column = (int(axis[0]) for axis in np.nonzero(unread.to_numpy()))
        cell = frame.iloc[row, column + 1]
        shown = "nothing" if not isinstance(cell, str) or not cell else repr(cell[:40])
        raise InputError(
            f"expected a number, found {shown}", where=f"{path}, row {row + 1}, column {WINNER_COLUMNS[column]}"
        )
    return ids, numbers.to_numpy(dtype=np.float64)


def _wrong_rows(
    path: Path, ids: pd.Index, values: NDArray[np.float64], rows: NDArray[np.intp], what: str, hint: str
) -> InputError:
    named = "; ".join(
        f"row {row + 1} (id {ids[row]}): {', '.join(f'{v:.7g}' for v in values[row])}"
        for row in rows[:NAMED_ROWS].tolist()
    )
    more = f"; and {len(rows) - NAMED_ROWS:,} more" if len(rows) > NAMED_ROWS else ""
    count = "1 row is" if len(rows) == 1 else f"{len(rows):,} rows are"
    return InputError(f"{count} {what}: {named}{more}", where=str(path), hint=hint)


def _listed(names: pd.Index) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:NAMED_ROWS])
    return shown + (" ..." if len(names) > NAMED_ROWS else "")

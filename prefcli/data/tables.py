"""Predictions and truth as files: what ``predict`` writes and ``score`` reads.

The columns are those of Kaggle's submission: ``id, winner_model_a, winner_model_b, winner_tie``; where the battles say
which answer was chosen, ``p_chosen`` follows. The file's name decides between CSV, Parquet and JSON lines. What
probabilities are is decided in :mod:`prefcli.metrics`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli import groups, metrics, readers
from prefcli.battles import STANDARD_INPUT, ReadCounts, Source, check_unique_ids, duplicate_id_error, int_column
from prefcli.data.joining import MAX_EXAMPLES, Join, Mismatch, Rows
from prefcli.errors import InputError, PrefcliError, plural
from prefcli.outcomes import TIE, WINNER_COLUMNS
from prefcli.readers.cells import first_null_row
from prefcli.readers.containers import column_names, open_container
from prefcli.reporting import NO_PROGRESS, Progress, Reporter
from prefcli.storage import files
from prefcli.storage.paths import check_different

if TYPE_CHECKING:
    import pandas as pd

_TO_QUOTE = re.compile(r'[",\r\n]')
GRADER_CLIP = 1e-15
BYTES_PER_ROW = 80
"""Of a file of predictions, roughly."""

CHOSEN_COLUMN = "p_chosen"
"""The probability that the chosen answer wins if there is no tie: which of A and B it is, a hash decided."""


def probability_of_chosen(probabilities: NDArray[np.float64], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """The probability that the chosen answer wins if there is no tie, shape ``[n]``.

    Parameters
    ----------
    probabilities:
        Shape ``[n, 3]``: A, B, tie. Where A and B are 0, both answers are equally probable.
    labels:
        Shape ``[n]``: 0 where A is the chosen answer, 1 where B is.
    """
    decided = probabilities[:, :TIE]
    total = decided.sum(axis=1)
    own = decided[np.arange(len(labels)), labels]
    return np.divide(own, total, out=np.full(len(labels), 0.5), where=total > 0)


AppendRows = Callable[[pa.Array, NDArray[np.float64]], None]
"""Appends ids ``[n]`` and numbers ``[n, columns]`` to a file."""


@contextlib.contextmanager
def _csv_writer(path: Path, names: Sequence[str] = WINNER_COLUMNS) -> Iterator[AppendRows]:
    """Probabilities as the shortest decimals that give the same float64 back."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(["id", *names]) + "\n")

        def append(ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
            for battle_id, row in zip(ids.to_pylist(), probabilities.tolist(), strict=True):
                if _TO_QUOTE.search(battle_id) or not battle_id:
                    # Python's own writer leaves a carriage return unquoted, which breaks the row.
                    battle_id = '"' + battle_id.replace('"', '""') + '"'
                file.write(f"{battle_id},{','.join(map(repr, row))}\n")

        yield append


@contextlib.contextmanager
def _json_lines_writer(path: Path, names: Sequence[str] = WINNER_COLUMNS) -> Iterator[AppendRows]:
    with path.open("w", encoding="utf-8", newline="") as file:

        def append(ids: pa.Array, probabilities: NDArray[np.float64]) -> None:
            for battle_id, row in zip(ids.to_pylist(), probabilities.tolist(), strict=True):
                file.write(files.to_json({"id": battle_id, **dict(zip(names, row, strict=True))}) + "\n")

        yield append


def prediction_schema(names: Sequence[str] = WINNER_COLUMNS) -> pa.Schema:
    """Ids and probabilities as an Arrow table and as Parquet."""
    return pa.schema([("id", pa.string()), *((name, pa.float64()) for name in names)])


@contextlib.contextmanager
def _parquet_writer(path: Path, names: Sequence[str] = WINNER_COLUMNS) -> Iterator[AppendRows]:
    import pyarrow.parquet as pq

    schema = prediction_schema(names)
    with pq.ParquetWriter(path, schema) as writer:
        yield lambda ids, probabilities: writer.write_batch(pa.record_batch([ids, *probabilities.T], schema=schema))


def writer_for(path: Path) -> Callable[..., contextlib.AbstractContextManager[AppendRows]]:
    """The writer for a file, by its suffix.

    It is a context manager that takes a path, and the names of the columns if they are not the three winner columns;
    it gives a function to append rows.

    Raises
    ------
    InputError
        If the suffix is not ``.csv``, ``.parquet``, ``.pq`` or ``.jsonl``.
    """
    match path.suffix.lower():
        case ".csv":
            return _csv_writer
        case ".parquet" | ".pq":
            return _parquet_writer
        case ".jsonl":
            return _json_lines_writer
    raise InputError(f"cannot tell the format of {path}", hint="Name it .csv, .parquet or .jsonl.")


def read_probabilities(path: Path, *, renormalize: bool = False) -> tuple[pd.Index, NDArray[np.float64]]:
    """Unique ids ``[n]`` and probabilities ``[n, 3]`` of a whole file of predictions.

    Raises
    ------
    InputError
        As :func:`prediction_rows` does, or if an id occurs twice.
    """
    import pandas as pd

    parts = list(prediction_rows(path, renormalize=renormalize))
    ids = pd.Index(pa.chunked_array([rows.ids for rows in parts]).to_numpy(), dtype=object)
    if not ids.is_unique:
        check_unique_ids(ids, str(path))
    return ids, np.concatenate([rows.values for rows in parts])


def prediction_rows(path: Path, *, renormalize: bool = False) -> Iterator[Rows]:
    """The rows of a file of predictions, some at a time; values are probabilities ``[n, 3]``.

    Parameters
    ----------
    path:
        CSV or Parquet.
    renormalize:
        Turn any finite numbers into probabilities, as the competition's grader does.

    Raises
    ------
    InputError
        If a value is not a number, or, at the end of the file, if rows are not probability distributions: how many,
        and the first of them.
    """
    if renormalize:
        what, hint = "not finite", "No rule turns them into probabilities."
    else:
        what = f"not probabilities (finite, within 0 and 1, summing to 1 within {metrics.SUM_TOLERANCE:g})"
        hint = "To clip and renormalise as the competition's grader does, add --renormalize."
    invalid = Mismatch()
    for rows, _ in _rows(path, "predictions"):
        if renormalize:
            _add_rows(invalid, rows, np.flatnonzero(~np.isfinite(rows.values).all(axis=1)))
            yield Rows(rows.ids, clip_and_renormalize(rows.values), rows.first)
        else:
            _add_rows(invalid, rows, metrics.find_improper(rows.values))
            yield rows
    _refuse(invalid, path, what, hint)


def clip_and_renormalize(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The competition grader's rule for finite scores ``[n, 3]``: clip to [1e-15, 1], divide by the row's sum."""
    clipped = np.clip(scores, GRADER_CLIP, 1)
    return clipped / clipped.sum(axis=1, keepdims=True)


LabelColumns = tuple[pa.Array, NDArray[np.int64], NDArray[np.int64], pa.Array]
"""Ids, labels, prompt keys and names of groups of some rows."""


class LabelFile:
    """Outcomes to score against: battles of any layout, or one file with only ``id`` and the three winner columns.

    Parameters
    ----------
    source, usual:
        See :func:`prefcli.readers.open_battles`.

    Raises
    ------
    InputError
        If the file is neither.
    """

    def __init__(self, source: Source, usual: Mapping[str, Any] | None = None) -> None:
        self.source = source
        self.counts = ReadCounts()
        """Of the battles that were read so far."""
        self.battles: readers.BattleFile | None = None
        """None if there are only outcomes."""
        self._group_codes: dict[str, int] = {}
        try:
            self.battles = readers.open_battles(source, usual=usual)
        except InputError:
            only_outcomes = source.paths[0] if len(source.paths) == 1 and not source.reading else None
            if only_outcomes is None or not _has_only_outcomes(only_outcomes, None):
                raise
            if source.by is not None and not _has_only_outcomes(only_outcomes, source.by):
                if source.by not in groups.COMPUTED:
                    raise
                raise InputError(
                    f"there are no texts to group by {source.by}, only outcomes",
                    where=str(source),
                    hint="Give the battles themselves as LABELS, or a column of this file.",
                ) from None

    @property
    def size(self) -> int:
        """Bytes of the files on disk."""
        return self.battles.size if self.battles is not None else self.source.paths[0].stat().st_size

    @property
    def outcomes(self) -> int | None:
        """2 if the layout has no ties; None if only the labels show how many outcomes there are."""
        return 2 if self.battles is not None and not self.battles.has_ties else None

    @property
    def group_names(self) -> list[str]:
        """The groups that were read so far, by their codes."""
        return list(self._group_codes)

    def rows(self, progress: Progress = NO_PROGRESS) -> Iterator[Rows]:
        """Ids and integers: label (-1 where unknown), prompt key (0 if prompts are not known) and code of the group.

        ``progress`` is advanced by bytes.

        Raises
        ------
        InputError
            If a row is invalid.
        """
        first = 1
        for ids, labels, keys, names in self._columns(progress):
            yield Rows(ids, np.stack([labels, keys, self._codes(names)], axis=1), first)
            first += len(ids)

    def _codes(self, names: pa.Array) -> NDArray[np.int64]:
        encoded = names.dictionary_encode()
        codes = [self._group_codes.setdefault(name, len(self._group_codes)) for name in encoded.dictionary.to_pylist()]
        return np.array([*codes, -1])[int_column(encoded.indices, missing=-1)]

    def _columns(self, progress: Progress) -> Iterator[LabelColumns]:
        by = self.source.by
        if self.battles is None:
            yield from _label_rows(self.source.paths[0], by, progress)
            return
        for batch, counts in self.battles.batches(progress):
            labels, keys = (int_column(batch.column(name), missing=-1) for name in ("label", "prompt_key"))
            names = pa.nulls(batch.num_rows, pa.string()) if by is None else groups.of(batch, by)
            yield batch.column("id"), labels, keys, names
            self.counts += counts


def _has_only_outcomes(path: Path, by: str | None) -> bool:
    try:
        next(readers.column_batches(path, _outcome_columns(by)), None)
    except InputError:
        return False
    return True


def _outcome_columns(by: str | None) -> list[str]:
    return list(dict.fromkeys(["id", *WINNER_COLUMNS, *([by] if by else [])]))


def _label_rows(path: Path, by: str | None, progress: Progress) -> Iterator[LabelColumns]:
    """Ids, labels, no keys and groups of a file with one-hot winner columns, some rows at a time."""
    invalid = Mismatch()
    for rows, names in _rows(path, "labels", by, progress):
        is_one_hot = np.isin(rows.values, (0, 1)).all(axis=1) & (rows.values.sum(axis=1) == 1)
        _add_rows(invalid, rows, np.flatnonzero(~is_one_hot))
        yield rows.ids, rows.values.argmax(axis=1), np.zeros(len(rows.ids), dtype=np.int64), names
    _refuse(invalid, path, "without exactly one winner", "One of the three winner columns must be 1, the others 0.")


def labels_last(predictions: Sequence[Path], labels: Source, reporter: Reporter) -> tuple[Sequence[Path], Source]:
    """Files of predictions and their labels, put in order with a message where the labels were named among the former.

    Raises
    ------
    InputError
        If a file is named twice, or none holds labels.
    """
    check_different(predictions, "the files of predictions")
    if len(labels.paths) != 1 or not _holds_probabilities(last := labels.paths[0]):
        return predictions, labels
    others = [path for path in predictions if not _holds_probabilities(path)]
    if not others:
        order = " ".join(shlex.quote(str(path)) for path in (*predictions, last))
        raise InputError(
            f"{last} holds probabilities, not outcomes: there are no labels",
            hint=f"Type the battles' file at the end: prefcli score {order} LABELS",
        )
    if len(others) > 1:
        return predictions, labels
    reporter.note(f"{last} holds probabilities and {others[0]} does not: taking {others[0]} for the labels")
    return [*(path for path in predictions if path != others[0]), last], labels.like(others[0])


def _holds_probabilities(path: Path) -> bool:
    """Whether a file is one of predictions for certain: its first rows have winner columns between 0 and 1."""
    if path == STANDARD_INPUT:
        return False
    try:
        rows, _ = next(_rows(path, "predictions"))
    except PrefcliError:  # also if it cannot be read: those who read it say so
        return False
    return bool(((rows.values > 0) & (rows.values < 1)).any())


class ScoredBattles:
    """The battles of a label file that every file of predictions has, joined by id.

    Parameters
    ----------
    predictions, labels, renormalize:
        The files; see :func:`prediction_rows`.
    """

    def __init__(self, predictions: Sequence[Path], labels: LabelFile, *, renormalize: bool = False) -> None:
        self.predictions = tuple(predictions)
        self.labels = labels
        self.renormalize = renormalize
        self.left_out: list[str] = []
        """After the last of :meth:`parts`: what several files do not have in common, in words."""

    def parts(self, progress: Progress = NO_PROGRESS) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Probabilities ``[files, n, 3]`` and integers ``[n, 3]`` of the same battles, see :meth:`LabelFile.rows`.

        They come some at a time; memory does not grow. ``progress`` is advanced by bytes of the labels.

        Raises
        ------
        InputError
            If a file is invalid, an id occurs twice, or ids do not match; they are checked after the last part. One
            file of predictions must have every battle and no other, several must have battles in common.
        """
        streams = [prediction_rows(path, renormalize=self.renormalize) for path in self.predictions]
        scored = 0
        with Join(*streams, self.labels.rows(progress)) as join:
            for *probabilities, values in join.rows():
                scored += len(values)
                yield np.stack(probabilities), values
            mismatches, sizes = join.mismatches, join.sizes
        files_in_order = (*self.predictions, self.labels.source)
        for duplicates, file in zip(mismatches.duplicates, files_in_order, strict=True):
            if duplicates.count:
                row, battle_id, first_row = duplicates.examples[0]
                raise duplicate_id_error(battle_id, first_row, row, str(file))
        for path, size, missing, extra in zip(
            self.predictions, sizes[:-1], mismatches.missing, mismatches.extra, strict=True
        ):
            if missing.count == sizes[-1]:
                raise self._foreign_ids(path, missing, extra)
            if len(self.predictions) == 1:
                self._refuse_mismatch(path, sizes[-1], missing, extra)
            if missing.count:
                self.left_out.append(f"{path} lacks {missing.count:,} of {plural(sizes[-1], 'battle')}")
            if extra.count:
                self.left_out.append(f"no label for {extra.count:,} of {plural(size, 'prediction')} of {path}")
        if not scored:
            names = ", ".join(map(str, self.predictions))
            raise InputError("no battle is in all files", where=names, hint="Score them one by one.")

    def _refuse_mismatch(self, path: Path, battles: int, missing: Mismatch, extra: Mismatch) -> None:
        labels = self.labels.source
        if missing.count:
            raise InputError(
                f"no prediction for {missing.count:,} of {plural(battles, 'battle')}: id {_example_ids(missing)}",
                where=str(path),
                hint=f"Every id of {labels} must be predicted.",
            )
        if extra.count:
            raise InputError(
                f"no label for {plural(extra.count, 'prediction')}: id {_example_ids(extra)}",
                where=str(path),
                hint=f"Every predicted id must be in {labels}.",
            )

    def _foreign_ids(self, path: Path, missing: Mismatch, extra: Mismatch) -> InputError:
        """The error for predictions of which none has an id of the labels, with the column that holds their ids."""
        labels = self.labels.source
        ids = [battle_id for _, battle_id in extra.examples]
        column = _column_of_ids(labels, ids)
        if column is None and self.labels.battles is not None and ids == [str(n) for n in range(1, len(ids) + 1)]:
            column = ""  # predictions of a file without ids are numbered by its rows
        command = " ".join(shlex.quote(str(name)) for name in (path, *labels.paths))
        return InputError(
            f"no prediction has an id of {labels}: {_example_ids(extra)} against {_example_ids(missing)}",
            where=str(path),
            hint=f"Every id of {labels} must be predicted: is it the file that was?"
            if column is None
            else f"Type: prefcli score {command} --columns {shlex.quote(f'id={column}')}",
        )


def _column_of_ids(source: Source, ids: Sequence[str]) -> str | None:
    """The column of a file that holds these ids, in rows of different values."""
    if source.paths[0] == STANDARD_INPUT:
        return None
    for name in column_names(open_container(source.paths[0], encoding=source.encoding)):
        with contextlib.suppress(InputError):  # not a column of texts or numbers
            batches = readers.column_batches(source.paths[0], [name])
            cells = [cell for batch in batches for cell in batch.column(name).to_pylist()]
            if len(set(cells)) == len(cells) and set(cells).issuperset(ids):
                return name
    return None


def _rows(
    path: Path, what: str, by: str | None = None, progress: Progress = NO_PROGRESS
) -> Iterator[tuple[Rows, pa.Array]]:
    """Ids as they are spelled, the three winner columns as numbers ``[n, 3]``, and each row's group."""
    first = 1
    for batch in readers.column_batches(path, _outcome_columns(by), progress):
        ids = batch.column("id")
        if ids.null_count:
            raise InputError("no id", where=f"{path}, row {first + first_null_row(ids)}, column id")
        columns = [_numbers(batch.column(name), path, first, name) for name in WINNER_COLUMNS]
        names = pc.utf8_trim_whitespace(batch.column(by)) if by else pa.nulls(len(ids), pa.string())
        if len(ids):
            yield Rows(ids, np.stack(columns, axis=1), first), _without_empty(names)
        first += len(ids)
    if first == 1:
        raise InputError(f"the file holds no {what}", where=str(path))


def _without_empty(names: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(names, ""), pa.scalar(None, pa.string()), names)


def _numbers(column: pa.Array, path: Path, first: int, name: str) -> NDArray[np.float64]:
    """A column of text as float64; "nan" is a number here, and refused later if it should be a probability."""
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


def _add_rows(invalid: Mismatch, rows: Rows, positions: NDArray[np.intp]) -> None:
    examples = [
        (rows.first + i, rows.ids[i].as_py(), ", ".join(f"{value:.7g}" for value in rows.values[i]))
        for i in positions[:MAX_EXAMPLES].tolist()
    ]
    invalid.add(examples, len(positions))


def _refuse(invalid: Mismatch, path: Path, what: str, hint: str) -> None:
    """Raise an error that counts the invalid rows and shows the first, if there are any."""
    if not invalid.count:
        return
    examples = "; ".join(f"row {row} (id {battle_id[:40]}): {numbers}" for row, battle_id, numbers in invalid.examples)
    more = invalid.count - len(invalid.examples)
    count = "1 row is" if invalid.count == 1 else f"{invalid.count:,} rows are"
    raise InputError(f"{count} {what}: {examples}{f'; and {more:,} more' if more else ''}", where=str(path), hint=hint)


def _example_ids(mismatch: Mismatch) -> str:
    ids = ", ".join(repr(battle_id[:40]) for _, battle_id in mismatch.examples)
    return ids + (" ..." if mismatch.count > len(mismatch.examples) else "")

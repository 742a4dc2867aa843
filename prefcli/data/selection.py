"""Which battles a run learns from and which it is judged by: by prompt, never by row.

A battle can be trained on when it has an outcome or a soft label; it can be scored only when it has an outcome.

Soft labels are probabilities of A, B and tie: votes counted, or another model's predictions (distillation, Hinton,
Vinyals & Dean, "Distilling the knowledge in a neural network", 2015; on battles nobody voted on, pseudo-labels). They
come as the columns ``p_a, p_b, p_tie`` of the battles or from a file of predictions joined by id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, Source, labels_of, texts_of
from prefcli.data import splits, tables
from prefcli.errors import InputError
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS
from prefcli.reporting import Reporter
from prefcli.storage.workspace import Stage


@dataclass(frozen=True)
class RunData:
    """What a run is trained on.

    Attributes
    ----------
    training:
        The preprocessed battles.
    source, source_sha256:
        The files they came from, and the digest of their content.
    text:
        The text normalisation.
    validation:
        Preprocessed battles of a validation file, if one was given.
    soft_labels_sha256:
        Of the content of a file of soft labels, if one was given.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """What the data was, as kept in ``config.json``: a run is continued only with the same."""
        validation = None if self.validation is None else str(self.validation.metadata["input"])
        return {
            "source_sha256": self.source_sha256,
            "text": self.text,
            "validation_input": validation,
            "soft_labels_sha256": self.soft_labels_sha256,
        }

    training: Stage
    source: Source
    source_sha256: str
    text: str
    validation: Stage | None = None
    soft_labels_sha256: str | None = None


@dataclass(frozen=True)
class Fold:
    """One fit: where it goes, the positions it trains on and those it is judged by."""

    folder: Path
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]


@dataclass(frozen=True)
class TrainingData:
    """The battles a run works with, training and validation files together: small columns only.

    Attributes
    ----------
    stages:
        Each stage with the positions of its rows that are used.
    ids, labels, keys:
        Of the used battles; label -1 where only a soft label is known, key of the prompt.
    targets:
        What is taught of each, shape ``[n, 3]``.
    """

    stages: tuple[tuple[Stage, NDArray[np.intp]], ...]
    ids: list[str]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]
    targets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The used battles, texts included, a row group at a time."""
        for stage, rows in self.stages:
            used = np.zeros(stage.rows, dtype=bool)
            used[rows] = True
            start = 0
            for batch in stage.batches():
                yield batch.filter(pa.array(used[start : start + batch.num_rows]))
                start += batch.num_rows

    def texts(self, positions: NDArray[np.intp]) -> Iterator[str]:
        """Every text of the battles at these positions."""
        wanted = np.zeros(len(self), dtype=bool)
        wanted[positions] = True
        start = 0
        for batch in self.batches():
            chosen = batch.filter(pa.array(wanted[start : start + batch.num_rows]))
            start += batch.num_rows
            for name in TEXT_FIELDS:
                yield from texts_of(chosen.column(name))


@dataclass(frozen=True)
class _Columns:
    """The small columns of a stage."""

    stage: Stage
    ids: list[str]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]
    soft: NDArray[np.float32]

    @staticmethod
    def of(stage: Stage) -> _Columns:
        small = stage.table(["id", "label", "prompt_key"])
        return _Columns(
            stage, small["id"].to_pylist(), labels_of(small), small["prompt_key"].to_numpy(), _soft_columns(stage)
        )


def select(folder: Path, data: RunData, options: TrainOptions, reporter: Reporter) -> tuple[TrainingData, list[Fold]]:
    """Choose battles and split them.

    Raises
    ------
    InputError
        If there is no outcome to learn from, or nothing could be held out.
    """
    columns = _Columns.of(data.training)
    if options.soft_labels is not None:
        columns = _with_soft_file(columns, Path(options.soft_labels), reporter)
    taught = has_soft_label(columns.soft)
    used = np.flatnonzero((columns.labels >= 0) | taught)
    if not len(used):
        raise InputError(
            "no battle has an outcome, so there is nothing to learn", where=str(data.source),
            hint="A training file has the columns winner_model_a, winner_model_b, winner_tie.",
        )  # fmt: skip
    if len(used) < len(columns.ids):
        reporter.note(f"{len(columns.ids) - len(used):,} battles without an outcome are left out")
    if taught[used].any():
        reporter.note(
            f"{taught.sum():,} battles have soft labels, {(columns.labels[taught] < 0).sum():,} of them no outcome "
            f"(weight {options.soft_weight:g} where both are known, temperature {options.soft_temperature:g})"
        )
    if data.validation is not None:
        return _with_validation_file(folder, data, columns, used, options, reporter)
    used = _limited(used, columns.keys, options, reporter)
    pool = _pool([(columns, used)], options)
    if options.folds:
        return pool, _folds(folder, pool, options, reporter)
    train, held_out = splits.split_validation(pool.keys, pool.labels, options.validation, options.seed)
    held_out = held_out[pool.labels[held_out] >= 0]
    if options.validation and not (len(train) and len(held_out)):
        raise InputError(
            f"{len(pool)} battles with {len(np.unique(pool.keys))} different prompts cannot be split by prompt",
            where=str(data.source),
            hint="Train on all of them with --validation 0, or give more battles.",
        )
    if options.validation:
        reporter.note(f"split by prompt: {len(train):,} battles to train on, {len(held_out):,} held out")
    else:
        reporter.note(f"training on all {len(train):,} battles: nothing is held out, so nothing tells how good it gets")
    return pool, [Fold(folder, train, held_out)]


def _folds(folder: Path, pool: TrainingData, options: TrainOptions, reporter: Reporter) -> list[Fold]:
    prompts = len(np.unique(pool.keys))
    if prompts < options.folds:
        raise InputError(f"--folds {options.folds}, but there are only {prompts} different prompts")
    parts = splits.split_folds(pool.keys, pool.labels, options.folds, options.seed)
    reporter.note(f"{len(pool):,} battles in {options.folds} folds by prompt")
    return [
        Fold(folder / f"fold-{number}", train, held_out[pool.labels[held_out] >= 0])
        for number, (train, held_out) in enumerate(parts, start=1)
    ]


def _with_validation_file(
    folder: Path, data: RunData, columns: _Columns, used: NDArray[np.intp], options: TrainOptions, reporter: Reporter
) -> tuple[TrainingData, list[Fold]]:
    """Train on one file, validate on another; training battles that share a prompt with the second are left out."""
    assert data.validation is not None
    other = _Columns.of(data.validation)
    judged = np.flatnonzero(other.labels >= 0)
    if not len(judged):
        raise InputError("no battle of the validation file has an outcome", where=str(options.validation_file))
    shared = np.isin(columns.keys[used], other.keys[judged])
    if shared.any():
        reporter.warn(f"{shared.sum():,} training battles share a prompt with the validation file: they are left out")
        used = used[~shared]
    if not len(used):
        raise InputError("every training battle shares a prompt with the validation file", where=str(data.source))
    used = _limited(used, columns.keys, options, reporter)
    pool = _pool([(columns, used), (other, judged)], options)
    reporter.note(f"{len(used):,} battles to train on, {len(judged):,} of {options.validation_file} to validate on")
    return pool, [Fold(folder, np.arange(len(used)), np.arange(len(used), len(pool)))]


def _pool(parts: list[tuple[_Columns, NDArray[np.intp]]], options: TrainOptions) -> TrainingData:
    labels = np.concatenate([columns.labels[rows] for columns, rows in parts])
    soft = np.concatenate([columns.soft[rows] for columns, rows in parts])
    return TrainingData(
        tuple((columns.stage, rows) for columns, rows in parts),
        [columns.ids[row] for columns, rows in parts for row in rows],
        labels,
        np.concatenate([columns.keys[rows] for columns, rows in parts]),
        training_targets(labels, soft, weight=options.soft_weight, temperature=options.soft_temperature),
    )


def _limited(
    rows: NDArray[np.intp], keys: NDArray[np.int64], options: TrainOptions, reporter: Reporter
) -> NDArray[np.intp]:
    """``--limit`` of the rows, whole prompts together (the last one cut), in their order."""
    if options.limit is None or options.limit >= len(rows):
        return rows
    reporter.note(f"limited to {options.limit:,} battles, drawn by prompt")
    prompts, of = np.unique(keys[rows], return_inverse=True)
    rank = np.random.default_rng(options.seed).permutation(len(prompts))
    order = np.argsort(rank[of], kind="stable")
    return np.sort(rows[order[: options.limit]])


def _soft_columns(stage: Stage) -> NDArray[np.float32]:
    if not set(SOFT_LABEL_COLUMNS) <= set(stage.columns):
        return no_soft_labels(stage.rows)
    table = stage.table(list(SOFT_LABEL_COLUMNS))
    columns = [table[name].cast(pa.float32()).to_numpy(zero_copy_only=False) for name in SOFT_LABEL_COLUMNS]
    return np.stack(columns, axis=1).astype(np.float32)


def _with_soft_file(columns: _Columns, path: Path, reporter: Reporter) -> _Columns:
    """Soft labels from a file of predictions, joined by id; they replace the battles' own."""
    import pandas as pd

    ids, probabilities = tables.read_probabilities(path)
    rows = pd.Index(columns.ids).get_indexer(ids)
    found = rows >= 0
    if not found.any():
        raise InputError(
            "no id of the soft labels is an id of the battles", where=str(path),
            hint="Predict the same file that is trained on.",
        )  # fmt: skip
    if not found.all():
        reporter.warn(f"{(~found).sum():,} of {len(ids):,} soft labels belong to no battle ({path})")
    soft = columns.soft.copy()
    soft[rows[found]] = probabilities[found]
    return _Columns(columns.stage, columns.ids, columns.labels, columns.keys, soft)


def training_targets(
    labels: NDArray[np.integer], soft: NDArray[np.floating], *, weight: float = 1.0, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Target distributions of the battles.

    Parameters
    ----------
    labels:
        Shape ``[n]``, -1 where there is no outcome.
    soft:
        Soft labels, shape ``[n, 3]``; rows of NaN where there is none.
    weight:
        Of the soft label where a battle has both.
    temperature:
        Soft labels are taken to the power ``1 / temperature`` and normalised.

    Returns
    -------
    Shape ``[n, 3]``, rows sum to 1; rows without either are zero and so weigh nothing.
    """
    known = labels >= 0
    targets = np.zeros((len(labels), len(OUTCOMES)), dtype=np.float64)
    targets[known, labels[known]] = 1
    given = has_soft_label(soft)
    sharpened = np.asarray(soft[given], dtype=np.float64) ** (1 / temperature)
    sharpened /= sharpened.sum(axis=1, keepdims=True)
    share = np.where(known[given], weight, 1.0)[:, None]
    targets[given] = share * sharpened + (1 - share) * targets[given]
    return targets.astype(np.float32)


def has_soft_label(soft: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows have a soft label, shape ``[n]``."""
    return ~np.isnan(soft).any(axis=1)


def no_soft_labels(n: int) -> NDArray[np.float32]:
    """The soft labels of ``n`` battles that have none."""
    return np.full((n, len(OUTCOMES)), np.nan, dtype=np.float32)

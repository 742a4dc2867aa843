"""Which battles a run is trained on and which it is validated on, and the training target of each.

A battle can be trained on if it has an outcome or a soft label; it can be validated on only if it has an outcome.
Battles are held out by prompt, never by row.

Soft labels are probabilities of A, B and tie: shares of votes, or another model's predictions (distillation, Hinton,
Vinyals & Dean, "Distilling the knowledge in a neural network", 2015; on battles without votes, pseudo-labels). They
come as the columns ``p_a, p_b, p_tie`` of the battles or from a file of predictions joined by id.

This module does not read, preprocess or tokenise battles, and it does not assign them to folds
(:mod:`prefcli.data.splits`): it works on the small columns of preprocessed stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import SOURCE, TEXT_FIELDS, Source, labels_of, one_batch, texts_of
from prefcli.data import splits, tables
from prefcli.errors import InputError, plural
from prefcli.metrics import describe_battles
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS
from prefcli.reporting import Reporter
from prefcli.storage.workspace import Stage

Positions = NDArray[np.intp]


@dataclass(frozen=True)
class RunData:
    """The files a run is trained on."""

    training: Stage
    """The preprocessed battles."""
    source: Source
    source_sha256: str
    """Of the source's content."""
    text: str
    """Name of the text normalisation."""
    validation: Stage | None = None
    """Preprocessed battles of the validation file, if there is one."""
    soft_labels_sha256: str | None = None
    """Of the file of soft labels, if there is one."""
    split_version: int = splits.VERSION
    """The rule by which battles are held out (:func:`splits.assign_parts`)."""
    by_source: bool = True
    """Whether several sources are distinguished; runs that an earlier release began do not."""

    @property
    def identity(self) -> dict[str, Any]:
        """What ``config.json`` records of the data: a run is resumed only with the same."""
        validation = None if self.validation is None else str(self.validation.metadata["input"])
        return {
            "source_sha256": self.source_sha256,
            "text": self.text,
            "validation_input": validation,
            "soft_labels_sha256": self.soft_labels_sha256,
        }


@dataclass(frozen=True)
class Fold:
    """One fit: its folder, and the positions of the battles it is trained on and validated on."""

    folder: Path
    train: Positions
    held_out: Positions


@dataclass(frozen=True)
class TrainingData:
    """The battles of a run, training and validation files together, without their texts."""

    stages: tuple[tuple[Stage, Positions], ...]
    """Each stage with the positions of the rows that are used; the other fields are of these battles only."""
    ids: list[str]
    labels: NDArray[np.int64]
    """Shape ``[n]``, -1 where only a soft label is known."""
    keys: NDArray[np.int64]
    """Prompt keys, shape ``[n]``."""
    targets: NDArray[np.float32]
    """Target distributions, shape ``[n, 3]``."""
    sources: list[str | None] | None = None
    """The source of each battle; None where there is one source."""

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The used battles with their texts, a row group at a time."""
        for stage, rows in self.stages:
            yield from _filter(stage.batches(), rows, stage.rows)

    def texts(self, positions: Positions) -> Iterator[str]:
        """Every text of the battles at these positions."""
        for batch in _filter(self.batches(), positions, len(self)):
            for name in TEXT_FIELDS:
                yield from texts_of(batch.column(name))


def _filter(batches: Iterator[pa.RecordBatch], positions: Positions, total: int) -> Iterator[pa.RecordBatch]:
    """Those of ``total`` rows that are at the positions."""
    mask = np.zeros(total, dtype=bool)
    mask[positions] = True
    start = 0
    for batch in batches:
        yield batch.filter(pa.array(mask[start : start + batch.num_rows]))
        start += batch.num_rows


def take(batches: Iterator[pa.RecordBatch], positions: Positions, total: int) -> pa.RecordBatch:
    """The rows at these positions of ``total`` rows, in the order of the rows, as one batch."""
    return one_batch(pa.Table.from_batches(list(_filter(batches, positions, total))))


@dataclass(frozen=True)
class _Columns:
    """The small columns of a stage; ``soft`` is NaN where there is no soft label."""

    stage: Stage
    ids: list[str]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]
    soft: NDArray[np.float32]
    sources: list[str | None] | None

    @staticmethod
    def read(stage: Stage, *, by_source: bool = True) -> _Columns:
        table = stage.table(["id", "label", "prompt_key"])
        soft = no_soft_labels(stage.rows)
        if set(SOFT_LABEL_COLUMNS) <= set(stage.columns):
            probabilities = stage.table(list(SOFT_LABEL_COLUMNS))
            for i, name in enumerate(SOFT_LABEL_COLUMNS):
                soft[:, i] = probabilities[name].cast(pa.float32()).to_numpy(zero_copy_only=False)
        sources = stage.table([SOURCE])[SOURCE].to_pylist() if by_source and SOURCE in stage.columns else None
        return _Columns(stage, table["id"].to_pylist(), labels_of(table), table["prompt_key"].to_numpy(), soft, sources)


def select(folder: Path, data: RunData, options: TrainOptions, reporter: Reporter) -> tuple[TrainingData, list[Fold]]:
    """Select the battles of a run and split them into folds; without ``--folds`` there is one.

    Raises
    ------
    InputError
        If there is no outcome to train on, or nothing can be held out.
    """
    columns = _Columns.read(data.training, by_source=data.by_source)
    if options.soft_labels is not None:
        columns = _with_soft_label_file(columns, Path(options.soft_labels), reporter)
    is_soft = has_soft_label(columns.soft)
    rows = np.flatnonzero((columns.labels >= 0) | is_soft)
    if not len(rows):
        raise InputError(
            "no battle has an outcome, so there is nothing to train on",
            where=str(data.source),
            hint="Train on battles with outcomes, such as train.csv. Is it in a column of another name? See --outcome.",
        )
    if len(rows) < len(columns.ids):
        reporter.note(f"{plural(len(columns.ids) - len(rows), 'battle')} without an outcome: not used")
    if is_soft.any():
        reporter.note(
            f"{plural(is_soft.sum(), 'battle')} with soft labels, "
            f"{(columns.labels[is_soft] < 0).sum():,} of them without an outcome "
            f"(weight {options.soft_weight:g} where both are known, temperature {options.soft_temperature:g})"
        )
    if data.validation is not None:
        return _with_validation_file(folder, data, columns, rows, options, reporter)
    battles = _training_data([(columns, _limit(rows, columns.keys, options, reporter))], options)
    if options.folds:
        return battles, _folds(folder, battles, options, data.split_version, reporter)
    train, held_out = splits.split_validation(
        battles.keys, battles.labels, options.validation, options.seed, version=data.split_version
    )
    share = len(held_out) / max(len(battles), 1)
    held_out = held_out[battles.labels[held_out] >= 0]
    if options.validation and not (len(train) and len(held_out)):
        raise InputError(
            f"{_describe(battles.keys)} cannot be split by prompt",
            where=str(data.source),
            hint="Train on all of them with --validation 0, or use more battles.",
        )
    if options.validation:
        described = (_describe(battles.keys[rows]) for rows in (train, held_out))
        reporter.note("split by prompt: {} to train on, {} held out".format(*described))
        _warn_if_uneven(share, len(battles), options.validation, "held out", reporter)
    else:
        reporter.note(
            f"training on all of {plural(len(train), 'battle')}: nothing is held out, so there is no validation score"
        )
    return battles, [Fold(folder, train, held_out)]


def _describe(keys: NDArray[np.int64]) -> str:
    """How many battles of how many prompts."""
    return describe_battles(len(keys), len(np.unique(keys)))


def _warn_if_uneven(share: float, battles: int, wanted: float, where: str, reporter: Reporter) -> None:
    """Say when prompts of many battles leave no split of the wanted size."""
    if abs(share - wanted) > max(wanted / 2, 1 / battles):
        reporter.warn(
            f"{share:.0%} of the battles are {where} instead of {wanted:.0%}: the battles of a prompt stay together, "
            "and some prompts have very many"
        )


def _folds(folder: Path, battles: TrainingData, options: TrainOptions, version: int, reporter: Reporter) -> list[Fold]:
    prompts = len(np.unique(battles.keys))
    if prompts < options.folds:
        raise InputError(f"--folds {options.folds}, but there are only {prompts} different prompts")
    parts = splits.split_folds(battles.keys, battles.labels, options.folds, options.seed, version=version)
    reporter.note(f"{_describe(battles.keys)} in {options.folds} folds by prompt")
    largest = max(len(held_out) for _, held_out in parts)
    _warn_if_uneven(largest / len(battles), len(battles), 1 / options.folds, "in the largest fold", reporter)
    return [
        Fold(folder / f"fold-{number}", train, held_out[battles.labels[held_out] >= 0])
        for number, (train, held_out) in enumerate(parts, start=1)
    ]


def _with_validation_file(
    folder: Path, data: RunData, columns: _Columns, rows: Positions, options: TrainOptions, reporter: Reporter
) -> tuple[TrainingData, list[Fold]]:
    """Train on one file, validate on another; training battles that share a prompt with the second are not used."""
    assert data.validation is not None
    validation = _Columns.read(data.validation)
    held_out = np.flatnonzero(validation.labels >= 0)
    if not len(held_out):
        raise InputError("no battle of the validation file has an outcome", where=str(options.validation_file))
    is_shared = np.isin(columns.keys[rows], validation.keys[held_out])
    if is_shared.any():
        reporter.warn(f"{is_shared.sum():,} training battles share a prompt with the validation file and are not used")
        rows = rows[~is_shared]
    if not len(rows):
        raise InputError("every training battle shares a prompt with the validation file", where=str(data.source))
    rows = _limit(rows, columns.keys, options, reporter)
    battles = _training_data([(columns, rows), (validation, held_out)], options)
    trained, validated = _describe(columns.keys[rows]), _describe(validation.keys[held_out])
    reporter.note(f"{trained} to train on, {validated} of {options.validation_file} to validate on")
    return battles, [Fold(folder, np.arange(len(rows)), np.arange(len(rows), len(battles)))]


def _training_data(parts: list[tuple[_Columns, Positions]], options: TrainOptions) -> TrainingData:
    labels = np.concatenate([columns.labels[rows] for columns, rows in parts])
    soft = np.concatenate([columns.soft[rows] for columns, rows in parts])
    trained_on, rows_trained_on = parts[0]
    sources = None
    if trained_on.sources is not None and len({trained_on.sources[row] for row in rows_trained_on}) > 1:
        sources = [columns.sources[row] if columns.sources else None for columns, rows in parts for row in rows]
    return TrainingData(
        stages=tuple((columns.stage, rows) for columns, rows in parts),
        ids=[columns.ids[row] for columns, rows in parts for row in rows],
        labels=labels,
        keys=np.concatenate([columns.keys[rows] for columns, rows in parts]),
        targets=training_targets(labels, soft, weight=options.soft_weight, temperature=options.soft_temperature),
        sources=sources,
    )


def _limit(rows: Positions, keys: NDArray[np.int64], options: TrainOptions, reporter: Reporter) -> Positions:
    """``--limit`` of the rows, ascending: those of randomly drawn prompts (of the last one perhaps not all)."""
    if options.limit is None or options.limit >= len(rows):
        return rows
    reporter.note(f"limited to {plural(options.limit, 'battle')}, drawn by prompt")
    prompts, prompt_of = np.unique(keys[rows], return_inverse=True)
    rank = np.random.default_rng(options.seed).permutation(len(prompts))
    order = np.argsort(rank[prompt_of], kind="stable")
    return np.sort(rows[order[: options.limit]])


def _with_soft_label_file(columns: _Columns, path: Path, reporter: Reporter) -> _Columns:
    """Soft labels from a file of predictions, joined by id; they replace the battles' own."""
    import pandas as pd

    ids, probabilities = tables.read_probabilities(path)
    rows = pd.Index(columns.ids).get_indexer(ids)
    matches = rows >= 0
    if not matches.any():
        raise InputError(
            "no id of the soft labels is an id of the battles",
            where=str(path),
            hint="Predict the same file that is trained on.",
        )
    if not matches.all():
        reporter.warn(f"{(~matches).sum():,} of {len(ids):,} soft labels belong to no battle ({path})")
    soft = columns.soft.copy()
    soft[rows[matches]] = probabilities[matches]
    return dataclasses.replace(columns, soft=soft)


def training_targets(
    labels: NDArray[np.integer], soft: NDArray[np.floating], *, weight: float = 1.0, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Target distributions of the battles.

    Parameters
    ----------
    labels:
        Shape ``[n]``, -1 where there is no outcome.
    soft:
        Soft labels, shape ``[n, 3]``; NaN where there is none.
    weight:
        Of the soft label, if a battle has both.
    temperature:
        Soft labels are raised to the power ``1 / temperature`` and normalised.

    Returns
    -------
    Shape ``[n, 3]``, each row sums to 1; a row without label and soft label is zero and has no weight.
    """
    known = labels >= 0
    targets = np.zeros((len(labels), len(OUTCOMES)), dtype=np.float64)
    targets[known, labels[known]] = 1
    is_soft = has_soft_label(soft)
    scaled = np.asarray(soft[is_soft], dtype=np.float64) ** (1 / temperature)
    scaled /= scaled.sum(axis=1, keepdims=True)
    share = np.where(known[is_soft], weight, 1.0)[:, None]
    targets[is_soft] = share * scaled + (1 - share) * targets[is_soft]
    return targets.astype(np.float32)


def has_soft_label(soft: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each row has a soft label, shape ``[n]``."""
    return ~np.isnan(soft).any(axis=1)


def no_soft_labels(n: int) -> NDArray[np.float32]:
    """Soft labels ``[n, 3]`` of battles that have none: NaN."""
    return np.full((n, len(OUTCOMES)), np.nan, dtype=np.float32)

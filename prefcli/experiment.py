"""From preprocessed battles and options to a trained run: what happens around the loop.

Which battles are used and which are held out, the tokenizer and the encoder, one fit or one per fold, and the papers a
run leaves: its config, per-battle probabilities, card. The loop itself is :mod:`prefcli.training`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import checkpoints, devices, encoders, files, metrics, runs, splits, training
from prefcli.battles import TEXT_FIELDS, joined, labels_of, outcome_counts
from prefcli.devices import Placement
from prefcli.distributed import World
from prefcli.errors import InputError
from prefcli.models import neural
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES
from prefcli.packing import TokenisedBattles, tokenise
from prefcli.report.curves import learning_curves
from prefcli.reporting import Reporter
from prefcli.runs import Data

FEW_BATTLES = 10_000


@dataclass(frozen=True)
class Result:
    """What :func:`conduct` found."""

    validation: dict[str, Any] | None
    battles_per_second: float
    only_prior: bool


@dataclass(frozen=True)
class Fold:
    """One fit: where it goes, the positions it trains on and those it is judged by."""

    folder: Path
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]


@dataclass(frozen=True)
class Pool:
    """The battles a run works with, training and validation files together: small columns only."""

    stages: tuple[tuple[Any, NDArray[np.intp]], ...]
    """Each stage with the positions of its rows that are used."""
    ids: list[str]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]

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
        wanted = np.zeros(len(self.ids), dtype=bool)
        wanted[positions] = True
        start = 0
        for batch in self.batches():
            chosen = batch.filter(pa.array(wanted[start : start + batch.num_rows]))
            start += batch.num_rows
            for name in TEXT_FIELDS:
                yield from joined(chosen.column(name))


def conduct(
    folder: Path,
    data: Data,
    options: TrainOptions,
    *,
    origins: Mapping[str, str],
    command: str,
    resume: bool,
    world: World,
    reporter: Reporter,
) -> Result:
    """Train into ``folder`` and write everything a run holds.

    Raises
    ------
    InputError
        If the battles do not allow it: no outcomes, too few prompts to hold any out.
    """
    placement = devices.place(options.device, options.precision, world.local_rank)
    pool, folds = select(folder, data, options, reporter)
    started_before = resume and (folder / neural.TOKENIZER_CONFIG).is_file()
    located = encoders.Located(folder, f"the run {folder.name}") if started_before else encoders.locate(options.encoder)
    everything = np.unique(np.concatenate([fold.train for fold in folds]))
    tokenizer = encoders.make_tokenizer(located, pool.texts(everything))
    with reporter.track("tokenising", len(pool.ids)) as progress:
        battles = tokenise(tokenizer, pool.batches(), progress)

    outcome: dict[Path, NDArray[np.float64]] = {}
    rates = []
    for number, fold in enumerate(folds):
        speaker = f"fold {number + 1} of {len(folds)}: " if options.folds else ""
        fitted = _fit(
            fold, data, options, pool, battles, tokenizer, placement,
            prefix=speaker, origins=origins, command=command, resume=resume, world=world, reporter=reporter,
        )  # fmt: skip
        rates.append(fitted.battles_per_second)
        if fitted.logits is not None:
            outcome[fold.folder] = fitted.logits
    logits, held_out = _held_out(folds, outcome)
    validation = None
    if logits is not None:
        validation = dataclasses.asdict(metrics.score(metrics.softmax(logits), pool.labels[held_out]))
    if options.folds and world.is_first:
        _write_papers(folder, options, runs.read_config(folder), pool, logits, held_out)
    doubt = "" if logits is None else doubt_about(metrics.softmax(logits), pool.labels[held_out])
    if doubt:
        more = ", or more battles" if len(everything) < FEW_BATTLES else ""
        reporter.warn(f"{doubt}: try --warmup 0.1, another --lr, more --epochs, --text raw{more}")
    return Result(validation, float(np.mean(rates)), bool(doubt))


def doubt_about(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> str:
    """What to say of a model that knows no more than the prior; empty when it clearly knows more.

    It knows no more if its probabilities hardly differ between battles, or if the 95 % interval of its advantage over
    the prior, battle by battle, reaches zero.
    """
    if probabilities.std(axis=0).max() < training.PRIOR_SPREAD:
        return "the model predicts only the shares of the outcomes, the same for every battle"
    shares = np.bincount(labels, minlength=len(OUTCOMES)) / len(labels)
    prior = metrics.losses(np.tile(shares, (len(labels), 1)), labels)
    _, high = metrics.bootstrap_interval(metrics.losses(probabilities, labels) - prior)
    return "the model is not clearly better than the prior" if high >= 0 else ""


def select(folder: Path, data: Data, options: TrainOptions, reporter: Reporter) -> tuple[Pool, list[Fold]]:
    """Which battles are trained on and which are held out: by prompt, never by row.

    Raises
    ------
    InputError
        If there is no outcome to learn from, or nothing could be held out.
    """
    small = data.training.table(["id", "label", "prompt_key"])
    labels, keys = labels_of(small), small["prompt_key"].to_numpy()
    used = np.flatnonzero(labels >= 0)
    if not len(used):
        raise InputError(
            "no battle has an outcome, so there is nothing to learn", where=str(data.source),
            hint="A training file has the columns winner_model_a, winner_model_b, winner_tie.",
        )  # fmt: skip
    if len(used) < len(labels):
        reporter.note(f"{len(labels) - len(used):,} battles without an outcome are left out")
    ids = small["id"].to_pylist()
    if data.validation is not None:
        return _with_validation_file(folder, data, used, ids, labels, keys, options, reporter)
    if options.limit is not None and options.limit < len(used):
        used = _draw(used, keys, options.limit, options.seed)
        reporter.note(f"limited to {len(used):,} battles, drawn by prompt")
    pool = Pool(((data.training, used),), [ids[i] for i in used], labels[used], keys[used])
    if options.folds:
        if len(np.unique(pool.keys)) < options.folds:
            raise InputError(
                f"--folds {options.folds}, but there are only {len(np.unique(pool.keys))} different prompts"
            )
        parts = splits.split_folds(pool.keys, pool.labels, options.folds, options.seed)
        folds = [Fold(folder / f"fold-{i}", *part) for i, part in enumerate(parts, start=1)]
        reporter.note(f"{len(pool.ids):,} battles in {options.folds} folds by prompt")
        return pool, folds
    train, held_out = splits.split_validation(pool.keys, pool.labels, options.validation, options.seed)
    if options.validation and not (len(train) and len(held_out)):
        raise InputError(
            f"{len(pool.ids)} battles with {len(np.unique(pool.keys))} different prompts cannot be split by prompt",
            where=str(data.source),
            hint="Train on all of them with --validation 0, or give more battles.",
        )
    if options.validation:
        reporter.note(f"split by prompt: {len(train):,} battles to train on, {len(held_out):,} held out")
    else:
        reporter.note(f"training on all {len(train):,} battles: nothing is held out, so nothing tells how good it gets")
    return pool, [Fold(folder, train, held_out)]


def _with_validation_file(
    folder: Path, data: Data, used: NDArray[np.intp], ids: list[str], labels: NDArray[np.int64],
    keys: NDArray[np.int64], options: TrainOptions, reporter: Reporter,
) -> tuple[Pool, list[Fold]]:  # fmt: skip
    """Train on one file, validate on another; training battles that share a prompt with the second are left out."""
    assert data.validation is not None
    other = data.validation.table(["id", "label", "prompt_key"])
    other_labels, other_keys = labels_of(other), other["prompt_key"].to_numpy()
    judged = np.flatnonzero(other_labels >= 0)
    if not len(judged):
        raise InputError("no battle of the validation file has an outcome", where=str(options.validation_file))
    shared = np.isin(keys[used], other_keys[judged])
    if shared.any():
        reporter.warn(f"{shared.sum():,} training battles share a prompt with the validation file: they are left out")
        used = used[~shared]
    if not len(used):
        raise InputError("every training battle shares a prompt with the validation file", where=str(data.source))
    if options.limit is not None and options.limit < len(used):
        used = _draw(used, keys, options.limit, options.seed)
    other_ids = other["id"].to_pylist()
    pool = Pool(
        ((data.training, used), (data.validation, judged)),
        [ids[i] for i in used] + [other_ids[i] for i in judged],
        np.concatenate([labels[used], other_labels[judged]]),
        np.concatenate([keys[used], other_keys[judged]]),
    )
    reporter.note(f"{len(used):,} battles to train on, {len(judged):,} of {options.validation_file} to validate on")
    return pool, [Fold(folder, np.arange(len(used)), np.arange(len(used), len(pool.ids)))]


def _draw(rows: NDArray[np.intp], keys: NDArray[np.int64], count: int, seed: int) -> NDArray[np.intp]:
    """``count`` of the rows, whole prompts together (the last one cut), in their order."""
    prompts = np.unique(keys[rows])
    rank = dict(zip(prompts.tolist(), np.random.default_rng(seed).permutation(len(prompts)).tolist(), strict=True))
    order = np.argsort([rank[key] for key in keys[rows].tolist()], kind="stable")
    return np.sort(rows[order[:count]])


def _fit(
    fold: Fold, data: Data, options: TrainOptions, pool: Pool, battles: TokenisedBattles, tokenizer: Any,
    placement: Placement, *, prefix: str, origins: Mapping[str, str], command: str, resume: bool, world: World,
    reporter: Reporter,
) -> training.Fitted:  # fmt: skip
    """Fit one fold (or the only split) into its folder."""
    folder = fold.folder
    held_out_exists = len(fold.held_out) > 0
    under_way = resume and bool(checkpoints.existing(folder / "checkpoints"))
    if under_way:
        located = encoders.Located(folder, f"the run {folder.name}")
        encoder = encoders.from_config(runs.read_config(folder)["encoder_config"])
    else:
        located = encoders.locate(options.encoder)
        encoder = encoders.make_encoder(located, len(tokenizer), seed=options.seed)
    max_length = options.max_length
    longest = encoders.longest_input(encoder)
    if longest is not None and longest < max_length:
        reporter.note(f"max length {max_length} -> {longest}: the encoder takes no more")
        max_length = longest
    model = neural.build(options.architecture, encoder, tokenizer, max_length, placement, options.seed)
    train = battles.take(fold.train)
    counts = outcome_counts(train.labels)
    cut = model.cut(train)
    if not under_way:
        reporter.note(
            f"{prefix}encoder {options.encoder}: {located.source}; {_parameters(model.module):.1f} M parameters"
        )
        reporter.note(f"{prefix}{placement}; {max_length} tokens a sequence: {cut}")
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            config = {
                "origins": dict(origins),
                "resolved": {
                    "placement": str(placement),
                    "max_length": max_length,
                    "lr": options.learning_rate,
                    "encoder_source": located.source,
                    "cut": str(cut),
                    "ranks": world.size,
                },
                "data": {
                    "source": data.source.to_json(),
                    "source_sha256": data.source_sha256,
                    "stage": data.training.path.name,
                    "text": data.text,
                    "validation_file": options.validation_file,
                    "train_battles": len(train),
                    "held_out_battles": len(fold.held_out),
                    "shares": (counts / counts.sum()).tolist(),
                },
                "command": command,
                "encoder_config": model.encoder_config(),
            }
            single = dataclasses.replace(options, folds=0) if options.folds else options
            runs.write_config(folder, single, **config)
            model.save_beside_weights(folder)
            if options.folds and not (folder.parent / runs.CONFIG).exists():
                runs.write_config(folder.parent, options, **config)
                model.save_beside_weights(folder.parent)
        world.barrier()
    fitted = training.fit(
        training.Task(
            model=model,
            train=train,
            validation=battles.take(fold.held_out) if held_out_exists else None,
            options=options,
            folder=folder,
            reporter=reporter,
            world=world,
            resume=resume,
        )
    )
    if world.is_first:
        _write_papers(folder, options, runs.read_config(folder), pool, fitted.logits, fold.held_out)
    return fitted


def _parameters(module: Any) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def _held_out(
    folds: list[Fold], outcome: Mapping[Path, NDArray[np.float64]]
) -> tuple[NDArray[np.float64] | None, NDArray[np.intp]]:
    """Logits of all held-out battles together, and their positions, ascending."""
    if not outcome:
        return None, np.empty(0, dtype=np.intp)
    positions = np.concatenate([fold.held_out for fold in folds])
    order = np.argsort(positions)
    return np.concatenate([outcome[fold.folder] for fold in folds])[order], positions[order]


def _write_papers(
    folder: Path, options: TrainOptions, config: Mapping[str, Any], pool: Pool,
    logits: NDArray[np.float64] | None, held_out: NDArray[np.intp],
) -> None:  # fmt: skip
    """What a finished run leaves besides its weights: per-battle probabilities, its score, its card."""
    validation = None
    if logits is not None:
        labels = pool.labels[held_out]
        validation = dataclasses.asdict(metrics.score(metrics.softmax(logits), labels))
        runs.write_validation(folder, [pool.ids[i] for i in held_out], logits, labels)
    if (folder / runs.METRICS).is_file():
        prior = validation["prior_log_loss"] if validation else None
        files.write_text(folder / runs.CURVES, learning_curves(runs.read_metrics(folder), prior))
    runs.write_card(folder, options, config, validation)

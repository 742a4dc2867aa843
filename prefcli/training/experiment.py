"""From preprocessed battles and options to a trained run: what happens around the fit.

Battles are selected and split (:mod:`prefcli.data.selection`), one model is fitted or one per fold,
and the run gets its papers: per-battle probabilities, score, calibration, card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.compute.distributed import World
from prefcli.data.selection import Fold, RunData, TrainingData, select
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES
from prefcli.prediction import calibration
from prefcli.report.curves import learning_curves
from prefcli.reporting import Reporter
from prefcli.storage import card, files, runs
from prefcli.storage.workspace import Workspace
from prefcli.training import trackers
from prefcli.training.context import FitResult, Fitter, TrainContext

FEW_BATTLES = 10_000
PRIOR_SPREAD = 0.01
"""A model whose probabilities differ by less than this (standard deviation) over battles predicts only the prior."""


@dataclass(frozen=True)
class ExperimentResult:
    """What :func:`run_experiment` found."""

    validation: dict[str, Any] | None
    battles_per_second: float
    only_prior: bool


def fitter_for(work: TrainContext, folds: Sequence[Fold]) -> Fitter:
    """What fits the architecture that was chosen; what all folds share (tokens, statistics) is made here, once."""
    if work.options.architecture == "features":
        from prefcli.training.fit_features import FeaturesFitter

        return FeaturesFitter(work)
    from prefcli.training.fit_neural import NeuralFitter

    return NeuralFitter(work, folds)


def run_experiment(
    folder: Path,
    workspace: Workspace,
    data: RunData,
    options: TrainOptions,
    *,
    origins: Mapping[str, str],
    command: str,
    resume: bool,
    world: World,
    reporter: Reporter,
) -> ExperimentResult:
    """Train into ``folder`` and write everything a run holds.

    Raises
    ------
    InputError
        If the battles do not allow it: no outcomes, too few prompts to hold any out.
    """
    pool, folds = select(folder, data, options, reporter)
    work = TrainContext(folder, workspace, data, pool, options, origins, command, resume, world, reporter)
    fitter = fitter_for(work, folds)
    fits: list[FitResult] = []
    for number, fold in enumerate(folds):
        with _following(fold.folder, work) as following:
            fitted = fitter.fit(fold, f"fold {number + 1} of {len(folds)}: " if options.folds else "", following)
            fits.append(fitted)
            if world.is_main_process:
                following.conclude(_write_artifacts(fold.folder, options, pool, fitted, fold.held_out))
                runs.seal(fold.folder, trained=True)
    whole, held_out = _together(folds, fits)
    if options.folds and world.is_main_process:
        with _following(folder, work) as following:
            following.conclude(_write_artifacts(folder, options, pool, whole, held_out))
        runs.seal(folder, trained=True)
    validation, doubt = None, ""
    if whole.logits is not None:
        probabilities, labels = metrics.softmax(whole.logits), pool.labels[held_out]
        validation = dataclasses.asdict(metrics.score(probabilities, labels, groups=pool.keys[held_out]))
        doubt = not_better_than_prior(probabilities, labels, pool.keys[held_out])
        reporter.note(str(calibration.calibrate([whole.logits], labels, pool.keys[held_out])))
    if doubt:
        trained = len(pool) - (0 if options.folds else len(held_out))
        more = ", or more battles" if trained < FEW_BATTLES else ""
        if options.architecture == "features":
            advice = f"try --text raw{more}" if data.text != "raw" else "more battles may help"
        else:
            advice = f"try --warmup 0.1, another --lr, more --epochs, --text raw, --recipe fast{more}"
        reporter.warn(f"{doubt}: {advice}")
    return ExperimentResult(validation, whole.battles_per_second, bool(doubt))


def _following(folder: Path, work: TrainContext) -> AbstractContextManager[trackers.Trackers]:
    """The trackers of the run or of one of its folds; only one process tells them."""
    if not work.world.is_main_process:
        return nullcontext(trackers.NOTHING)
    title = folder.name if folder == work.folder else f"{work.folder.name}/{folder.name}"
    return trackers.following(folder, work.options, title, work.reporter)


def not_better_than_prior(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], keys: NDArray[np.int64] | None = None
) -> str:
    """What to say of a model that knows no more than the prior; empty when it clearly knows more.

    It knows no more if its probabilities hardly differ between battles, or if the 95 % interval of its advantage over
    the prior, battle by battle, reaches zero.
    """
    if probabilities.std(axis=0).max() < PRIOR_SPREAD:
        return "the model predicts only the shares of the outcomes, the same for every battle"
    shares = np.bincount(labels, minlength=len(OUTCOMES)) / len(labels)
    prior = metrics.losses(np.tile(shares, (len(labels), 1)), labels)
    _, high = metrics.bootstrap_interval(metrics.losses(probabilities, labels) - prior, groups=keys)
    return "the model is not clearly better than the prior" if high >= 0 else ""


def _together(folds: list[Fold], fits: list[FitResult]) -> tuple[FitResult, NDArray[np.intp]]:
    """All folds as one: logits of all held-out battles with their positions, mean rate, mean importances."""
    rate = float(np.mean([fitted.battles_per_second for fitted in fits]))
    shares: dict[str, float] = {}
    for fitted in fits:
        for name, share in fitted.importances:
            shares[name] = shares.get(name, 0.0) + share / len(fits)
    importances = sorted(shares.items(), key=lambda item: -item[1])
    parts = [fitted.logits for fitted in fits if fitted.logits is not None]
    if len(parts) < len(folds):
        return FitResult(None, rate, importances), np.empty(0, dtype=np.intp)
    positions = np.concatenate([fold.held_out for fold in folds])
    order = np.argsort(positions)
    return FitResult(np.concatenate(parts)[order], rate, importances), positions[order]


def _write_artifacts(
    folder: Path, options: TrainOptions, pool: TrainingData, fitted: FitResult, held_out: NDArray[np.intp]
) -> dict[str, Any] | None:
    """What a finished run leaves besides its model: per-battle probabilities, its score (also returned), its card."""
    validation, calibrated = None, None
    if fitted.logits is not None:
        labels, keys = pool.labels[held_out], pool.keys[held_out]
        validation = dataclasses.asdict(metrics.score(metrics.softmax(fitted.logits), labels, groups=keys))
        calibrated = calibration.calibrate([fitted.logits], labels, keys)
        runs.write_validation(folder, [pool.ids[i] for i in held_out], fitted.logits, labels, keys)
    if (folder / runs.METRICS).is_file():
        prior = validation["prior_log_loss"] if validation else None
        files.write_text(folder / runs.CURVES, learning_curves(runs.read_metrics(folder), prior))
    card.write(folder, options, runs.read_config(folder), validation, str(calibrated or ""), fitted.importances)
    return validation

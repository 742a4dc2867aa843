"""What surrounds the fits of one training: folds, trackers, score, calibration, and the artifacts of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.data.selection import Fold
from prefcli.exploration import contradictions
from prefcli.outcomes import OUTCOMES
from prefcli.prediction import blending
from prefcli.rendering.curves import course_of_run, learning_curves
from prefcli.storage import card, files, runs
from prefcli.storage.sources import Sources
from prefcli.training import trackers
from prefcli.training.context import FitResult, Fitter, TrainContext

FEW_BATTLES = 10_000
PRIOR_SPREAD = 0.01
"""A model whose probabilities differ by less than this (standard deviation) over battles predicts only the prior."""


@dataclass(frozen=True)
class SourceResult:
    """One of a run's sources."""

    name: str
    outcomes: tuple[float, ...]
    """How many of its training battles had the outcomes A, B, tie; soft labels are counted by their shares."""
    can_tie: bool
    """Whether any of them was a tie, or they are too few to tell; else its battles say nothing about ties."""
    validation: metrics.Score | None
    """Every metric on its held-out battles, predicted as it votes; None where there are none."""


@dataclass(frozen=True)
class ExperimentResult:
    """What :func:`run_experiment` returns.

    Attributes
    ----------
    validation:
        The scores on the held-out battles; None where nothing was held out.
    battles_per_second:
        Of the training steps alone, the mean over folds.
    outcomes:
        How many training battles had each outcome, soft labels counted by their shares.
    unseen:
        The outcomes that none of them had: A, B, tie.
    sources:
        The run's sources, the largest first; empty for a run of one source.
    """

    validation: metrics.Score | None
    battles_per_second: float
    outcomes: tuple[float, ...]
    unseen: tuple[str, ...]
    sources: tuple[SourceResult, ...] = ()


@dataclass(frozen=True)
class _Evaluation:
    """Score and calibration of a fit on its held-out battles, computed once and used everywhere."""

    held_out: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    """What is scored: of two outcomes for a run that knows only two."""
    validation: metrics.Score
    calibration: str
    by_source: dict[str, metrics.Score]
    """Of each source with held-out battles; empty for a run of one source."""


def fitter_for(context: TrainContext, folds: Sequence[Fold]) -> Fitter:
    """The fitter of the chosen architecture; it prepares once what all folds share (tokens, statistics)."""
    if context.options.architecture == "features":
        from prefcli.training.fit_features import FeaturesFitter

        return FeaturesFitter(context, folds)
    with context.reporter.track("loading PyTorch", None):
        from prefcli.training.fit_neural import NeuralFitter

    return NeuralFitter(context, folds)


def run_experiment(context: TrainContext, folds: Sequence[Fold]) -> ExperimentResult:
    """Fit every fold into the run's folder, score it, and write everything a run holds."""
    trained_on = np.unique(np.concatenate([fold.train for fold in folds]))
    unseen = _report_unseen(context, folds, trained_on)
    whole = Fold(context.folder, trained_on, trained_on[:0])
    sources = context.sources(whole)
    if sources is not None and not context.resume:
        _report_sources(context, sources)
    fitter = fitter_for(context, folds)
    fits: list[FitResult] = []
    evaluation = None
    with context.reporter.track(*fitter.task) as progress:
        for number, fold in enumerate(folds, start=1):
            name = f"fold {number} of {len(folds)}" if context.options.folds else ""
            with _tracking(fold.folder, context) as tracking:
                fits.append(fitter.fit(fold, name, tracking, progress))
                evaluation = _finish(fold, context, fits[-1], tracking)
            if name and evaluation is not None and context.options.architecture == "features":  # others validate
                progress.result(f"{name}: validation log loss {evaluation.validation.log_loss:.4f}")
    fit = fits[-1]
    if context.options.folds:
        fit, held_out = merge_folds(folds, fits)
        with _tracking(context.folder, context) as tracking:
            evaluation = _finish(Fold(context.folder, trained_on, held_out), context, fit, tracking)
    if evaluation is not None:
        context.reporter.note(evaluation.calibration)
        _warn_if_only_prior(context, evaluation)
    return ExperimentResult(
        evaluation.validation if evaluation else None,
        fit.battles_per_second,
        tuple(context.outcomes(trained_on).round(6).tolist()),
        tuple(OUTCOMES[outcome] for outcome in unseen),
        _source_results(sources, evaluation.by_source if evaluation else {}) if sources else (),
    )


def _report_sources(context: TrainContext, sources: Sources) -> None:
    """Name the sources, and where they contradict each other."""
    battles = context.training_data
    context.reporter.note(f"{len(sources.names):,} sources, each with its own share of ties: {sources}")
    names = np.array(battles.sources, dtype=object)
    for sentence in contradictions.find(battles.batches(), names, battles.keys):
        context.reporter.warn(sentence)


def _source_results(sources: Sources, scores: Mapping[str, metrics.Score]) -> tuple[SourceResult, ...]:
    rows = zip(sources.names, sources.outcomes.tolist(), sources.can_tie.tolist(), strict=True)
    return tuple(SourceResult(name, tuple(outcomes), can_tie, scores.get(name)) for name, outcomes, can_tie in rows)


def _report_unseen(context: TrainContext, folds: Sequence[Fold], trained_on: NDArray[np.intp]) -> tuple[int, ...]:
    """The outcomes that no training battle has, and messages about them and about those that a fold lacks."""
    unseen = context.unseen(trained_on)
    for fold in [Fold(context.folder, trained_on, trained_on[:0]), *(folds if context.options.folds else ())]:
        lacking = context.unseen(fold.train)
        if lacking and not context.resume and (fold.folder == context.folder or lacking != unseen):
            where = "" if fold.folder == context.folder else f"{fold.folder.name}: "
            context.reporter.warn(f"{where}{runs.describe_unseen(lacking, len(fold.train))}")
    return unseen


def _tracking(folder: Path, context: TrainContext) -> AbstractContextManager[trackers.Trackers]:
    """The trackers of the run or of one of its folds; only the main process feeds them."""
    if not context.world.is_main_process:
        return nullcontext(trackers.NOTHING)
    title = folder.name if folder == context.folder else f"{context.folder.name}/{folder.name}"
    return trackers.tracking(folder, context.options, title, context.reporter)


def _finish(fold: Fold, context: TrainContext, fit: FitResult, tracking: trackers.Trackers) -> _Evaluation | None:
    """Evaluate a fit on every process; on the main one write its artifacts, feed the trackers and seal its folder.

    ``fold`` is what was fitted: a fold, or all of them as one.
    """
    held_out = None if fit.logits is None else _held_out(context, fit, fold.held_out)
    evaluation = None if held_out is None else _evaluate(context, fold, held_out)
    if context.world.is_main_process:
        if held_out is not None:
            runs.write_validation(fold.folder, held_out)
        _write_artifacts(fold.folder, context, fit, evaluation)
        tracking.conclude(evaluation.validation if evaluation else None)
        runs.seal(fold.folder, trained=True)
    return evaluation


def _held_out(context: TrainContext, fit: FitResult, rows: NDArray[np.intp]) -> runs.HeldOut:
    assert fit.logits is not None
    battles = context.training_data
    return runs.HeldOut(
        [battles.ids[row] for row in rows],
        battles.keys[rows],
        fit.logits,
        battles.labels[rows],
        fit.swapped,
        None if battles.sources is None else [battles.sources[row] for row in rows],
        fit.pooled,
    )


def _evaluate(context: TrainContext, fold: Fold, held_out: runs.HeldOut) -> _Evaluation:
    config = runs.read_config(fold.folder)
    unseen = runs.unseen_outcomes(config)
    scored = metrics.held_out_probabilities(held_out.logits, held_out.labels, unseen)
    score = runs.validation_score(held_out, unseen)
    is_mean_of_folds = context.options.folds and fold.folder == context.folder
    predicted = blending.as_predicted(held_out, runs.sources_of(config))
    run = blending.HeldOutRun(
        context.folder.name,
        predicted,
        predicted.logits,
        unseen,
        blending.FOLDS_PREDICT_THEIR_MEAN if is_mean_of_folds else "",
    )
    sources = runs.sources_of(config)
    by_source = runs.source_scores(held_out, sources) if sources else {}
    return _Evaluation(fold.held_out, scored, score, str(blending.calibration_of(run)), by_source)


def _write_artifacts(folder: Path, context: TrainContext, fit: FitResult, evaluation: _Evaluation | None) -> None:
    """Write what a finished run holds besides its model and its held-out battles: learning curves, card."""
    validation = evaluation.validation if evaluation else None
    config = runs.read_config(folder)
    if (folder / runs.METRICS).is_file():
        prior = validation.prior_log_loss if validation else None
        files.write_text(folder / runs.CURVES, learning_curves(course_of_run(folder, config), prior))
    calibrated = evaluation.calibration if evaluation else ""
    by_source = evaluation.by_source if evaluation else {}
    card.write(folder, context.options, config, validation, calibrated, fit.importances, by_source=by_source)


def _warn_if_only_prior(context: TrainContext, evaluation: _Evaluation) -> None:
    battles, options, rows = context.training_data, context.options, evaluation.held_out
    labels, base = battles.labels[rows], None
    if (sources := runs.sources_of(runs.read_config(context.folder))) and battles.sources is not None:
        base = metrics.softmax(sources.held_out_bases([battles.sources[row] for row in rows], labels))
    problem = not_better_than_prior(evaluation.probabilities, labels, battles.keys[rows], base=base)
    if not problem:
        return
    trained = len(battles) - (0 if options.folds else len(rows))
    more = ", or more battles" if trained < FEW_BATTLES else ""
    raw = "--text raw, " if context.data.text != "raw" else ""
    if metrics.too_few_units(len(rows), len(np.unique(battles.keys[rows]))):
        advice = "hold out more with --validation, or use more battles"
    elif options.architecture != "features":
        advice = f"try --warmup 0.1, another --lr, more --epochs, {raw}--recipe fast{more}"
    else:
        advice = f"try --text raw{more}" if raw else "more battles may help"
    context.reporter.warn(f"{problem}: {advice}")


def not_better_than_prior(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    keys: NDArray[np.int64] | None = None,
    *,
    base: NDArray[np.float64] | None = None,
) -> str:
    """What to say of a model that is not better than the prior; empty when it clearly is.

    It is not if its probabilities hardly differ between battles, or if the 95 % interval of its advantage over the
    prior, battle by battle, reaches zero. A model of several sources must be better than ``base``, the shares of each
    battle's source, shape ``[n, 3]``: to know the sources is no merit of the model.
    """
    known, constant = "its sources' shares of ties alone", "its sources' shares of ties, whatever the texts"
    if base is None:
        known, constant = "the prior", "the shares of the outcomes, the same for every battle"
        shares = np.bincount(labels, minlength=len(OUTCOMES)) / len(labels)
        base = np.tile(shares, (len(labels), 1))
    if (probabilities - base).std(axis=0).max() < PRIOR_SPREAD:
        return f"the model predicts only {constant}"
    prior = metrics.losses(base, labels)
    advantage = metrics.losses(probabilities, labels) - prior
    prompts = None if keys is None else len(np.unique(keys))
    if metrics.too_few_units(len(labels), prompts):
        held_out = metrics.describe_battles(len(labels), prompts, "held-out battle")
        return f"the model is not clearly better than {known} on {held_out}"
    interval = metrics.bootstrap_interval(advantage, groups=keys)
    high = float(advantage.mean()) if interval is None else interval[1]
    figures = f"log loss {float(prior.mean() + advantage.mean()):.4f} against {float(prior.mean()):.4f}"
    return f"the model is not clearly better than {known} ({figures})" if high >= 0 else ""


def merge_folds(folds: Sequence[Fold], fits: Sequence[FitResult]) -> tuple[FitResult, NDArray[np.intp]]:
    """All folds as one fit: logits of all held-out battles with their positions, mean rate, mean importances."""
    rate = float(np.mean([fit.battles_per_second for fit in fits]))
    shares: dict[str, float] = {}
    for fit in fits:
        for name, share in fit.importances:
            shares[name] = shares.get(name, 0.0) + share / len(fits)
    importances = sorted(shares.items(), key=lambda item: -item[1])
    parts = [fit.logits for fit in fits]
    if any(part is None for part in parts):
        return FitResult(None, rate, importances), np.empty(0, dtype=np.intp)
    positions = np.concatenate([fold.held_out for fold in folds])
    order = np.argsort(positions)

    def joined(of_fits: list[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
        known = [part for part in of_fits if part is not None]
        return np.concatenate(known)[order] if len(known) == len(fits) else None

    swapped, pooled = joined([fit.swapped for fit in fits]), joined([fit.pooled for fit in fits])
    return FitResult(joined(parts), rate, importances, swapped, pooled), positions[order]

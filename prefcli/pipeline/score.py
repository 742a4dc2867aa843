"""``prefcli score``: score predictions against labels, joined by id."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import Source, SourceLike
from prefcli.data import tables
from prefcli.errors import InputError, ModelError
from prefcli.outcomes import TIE
from prefcli.pipeline.stages import report_reading
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import runs
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class ScoreResult(metrics.Score):
    """What ``score`` returns: the metrics, and what was found about the battles."""

    unlabelled: int = 0
    """Battles of the label file without an outcome; they are not scored."""
    trained_on: int | None = None
    """Scored battles whose prompt the predicting runs were trained on; None where it is not known."""


def score(
    predictions: Path,
    labels: SourceLike,
    *,
    outcomes: int | None = None,
    renormalize: bool = False,
    seed: int = 0,
    workspace: Workspace | None = None,
    reporter: Reporter = SILENT,
) -> ScoreResult:
    """Score predictions against labels, joined by id, in memory that does not grow with the files.

    Parameters
    ----------
    predictions:
        A file with ``id`` and the three winner columns as probabilities.
    labels:
        Battles with outcomes, in any layout; or a file with ``id`` and the three winner columns one-hot. Where the
        prompts are known, the interval resamples prompts, else battles. They are read as the training battles of the
        predicting run were if the source does not say how, and their columns allow it.
    outcomes:
        2 scores the probabilities given that there is no tie, 3 as they are. None takes 2 if the layout has no ties or
        none of at least :data:`metrics.MIN_BATTLES_WITHOUT_TIE` labels is a tie.
    renormalize:
        Apply the competition grader's rule: clip to [1e-15, 1], divide by the row's sum.
    seed:
        Of the bootstrap interval.
    workspace:
        Where it is recorded which runs made the predictions.

    Raises
    ------
    InputError
        If the files do not fit together, the predictions are not probabilities (it names the first such rows), or one
        of two outcomes is a tie.
    """
    usual = _usual_reading(predictions, workspace)
    label_file = tables.LabelFile(Source.of(labels), usual)
    if label_file.battles is not None:
        report_reading(label_file.battles, label_file.source, usual, reporter)
    outcomes = outcomes or label_file.outcomes
    prompts = _training_prompts(predictions, workspace, reporter)
    unlabelled, trained_on = 0, 0
    with reporter.track("scoring", None) as progress:

        def parts() -> Iterator[metrics.Part]:
            nonlocal unlabelled, trained_on
            for probabilities, outcome, keys in tables.join_predictions(
                predictions, label_file, renormalize=renormalize
            ):
                is_known = outcome >= 0
                unlabelled += int((~is_known).sum())
                if outcomes == 2 and (outcome == TIE).any():
                    raise InputError(
                        "there are ties among the labels, so they are not of two outcomes",
                        where=str(label_file.source),
                        hint="Score three outcomes, or leave the ties out of both files.",
                    )
                keys = None if keys is None else keys[is_known]
                if keys is not None and prompts is not None:
                    trained_on += int(np.isin(keys, prompts).sum())
                yield probabilities[is_known], outcome[is_known], keys
                progress.advance(len(outcome))

        try:
            result = metrics.score_stream(parts(), outcomes=outcomes, seed=seed)
        except metrics.NoBattlesError:
            raise InputError("no battle has an outcome", where=str(label_file.source)) from None
    knows_trained_on = prompts is not None and result.prompts is not None
    _warn(result, predictions, label_file, workspace, unlabelled, trained_on, reporter)
    return ScoreResult(
        **dataclasses.asdict(result), unlabelled=unlabelled, trained_on=trained_on if knows_trained_on else None
    )


def _usual_reading(predictions: Path, workspace: Workspace | None) -> dict[str, Any]:
    """How the training battles of the predicting run were read; empty if that was not said or is not known."""
    for run in workspace.runs_of_predictions(predictions) if workspace is not None else ():
        with contextlib.suppress(ModelError):  # damaged since
            return runs.reading_of(run)
    return {}


def _training_prompts(predictions: Path, workspace: Workspace | None, reporter: Reporter) -> NDArray[np.int64] | None:
    """Keys of the prompts that the runs behind the predictions were trained on; None if no run tells."""
    keys = []
    for run in workspace.runs_of_predictions(predictions) if workspace is not None else ():
        try:
            keys.append(runs.training_prompts(run))
        except ModelError as error:
            reporter.warn(f"{run}: {error.what}")
    known = [of_run for of_run in keys if of_run is not None]
    return np.unique(np.concatenate(known)) if known else None


def _warn(
    result: metrics.Score,
    predictions: Path,
    label_file: tables.LabelFile,
    workspace: Workspace | None,
    unlabelled: int,
    trained_on: int,
    reporter: Reporter,
) -> None:
    """Say what makes a score doubtful."""
    if unlabelled:
        reporter.warn(f"{metrics.plural(unlabelled, 'battle')} of {label_file.source} without an outcome: not scored")
    if trained_on:
        reporter.warn(
            f"{trained_on:,} of {metrics.plural(result.n, 'battle')} have a prompt that the predicting runs were "
            "trained on: this score is too good"
        )
    if result.clipped:
        reporter.warn(
            f"{result.clipped:,} battles gave the true outcome a probability of (nearly) 0: 36 nats each after clipping"
        )
    if label_file.counts.invented_ids and label_file.battles is not None:
        source = workspace.source_of_predictions(predictions) if workspace is not None else ""
        if source != label_file.battles.digest():
            reporter.warn(
                f"{label_file.source} has no ids, or repeated ones: joined by the numbers of its rows. This is right "
                f"only if {predictions} holds predictions of the same battles in the same order"
            )

"""``prefcli score``: score predictions against labels, joined by id; several files side by side, or group by group."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli import groups, metrics
from prefcli.battles import PathLike, Source, SourceLike, user_path
from prefcli.console import LOGGING
from prefcli.data import reward_bench, tables
from prefcli.errors import InputError, ModelError
from prefcli.outcomes import TIE
from prefcli.pipeline.stages import report_reading, source_of
from prefcli.reporting import Reporter
from prefcli.storage import runs
from prefcli.storage.paths import check_inputs
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class ScoresByGroup:
    """The metrics of every group of battles."""

    column: str
    groups: tuple[metrics.GroupScore, ...]
    """By size, or in the order of bins; those of too few prompts have no intervals."""
    ungrouped: int
    """Scored battles in no group, because their cell is empty."""
    reward_bench: reward_bench.RewardBench | None
    """Where the groups are RewardBench's subsets, and two outcomes are scored."""


@dataclass(frozen=True, repr=False)
class ScoreResult(metrics.Score):
    """What ``score`` returns: the metrics, and what was found about the battles."""

    unlabelled: int = 0
    """Battles of the label file without an outcome; they are not scored."""
    trained_on: int | None = None
    """Scored battles whose prompt the predicting runs were trained on; None where it is not known."""
    by: ScoresByGroup | None = None
    """None if groups were not asked for."""


@dataclass(frozen=True)
class ScoreComparison:
    """What ``compare_scores`` returns: several files' metrics on the battles that all have."""

    scores: dict[str, ScoreResult]
    """By the file's name, with its folder if two names are equal."""
    differences: tuple[metrics.NamedDifference, ...]
    """Of every two files, in the order in which they were named."""
    best: str | None
    """The file of the lowest log loss, if its paired difference from each of the others has p < 0.05; of more than two
    files these p-values are adjusted by Holm's method. Else None."""


@dataclass(frozen=True)
class ScoreOptions:
    """The options of :func:`score`."""

    outcomes: int | None = None
    renormalize: bool = False
    seed: int = 0
    workspace: Workspace | PathLike | None = None


def score(
    predictions: PathLike,
    labels: SourceLike,
    *,
    outcomes: int | None = None,
    renormalize: bool = False,
    seed: int = 0,
    workspace: Workspace | PathLike | None = None,
    reporter: Reporter = LOGGING,
) -> ScoreResult:
    """Score predictions against labels, joined by id, in memory that does not grow with the files.

    Parameters
    ----------
    predictions:
        A file with ``id`` and the three winner columns as probabilities.
    labels:
        Battles with outcomes, in any layout; or a file with ``id`` and the three winner columns one-hot. Where the
        prompts are known, the interval resamples prompts, else battles. They are read as the training battles of the
        predicting run were if the source does not say how, and their columns allow it. With ``Source.by`` every group
        of battles is scored too.
    outcomes:
        2 scores the probabilities given that there is no tie, 3 as they are. None takes 2 if the layout has no ties or
        none of at least :data:`metrics.MIN_BATTLES_WITHOUT_TIE` labels is a tie.
    renormalize:
        Apply the competition grader's rule: clip to [1e-15, 1], divide by the row's sum.
    seed:
        Of the bootstrap interval.
    workspace:
        Where it is recorded which runs made the predictions.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        If the files do not fit together, the predictions are not probabilities (it names the first such rows), or one
        of two outcomes is a tie.
    """
    how = ScoreOptions(outcomes, renormalize, seed, workspace)
    paths, source = find_files([predictions], labels, Workspace.of(workspace), reporter)
    (result,), _ = _score(paths, source, how, reporter)
    return result


def compare_scores(
    predictions: Sequence[PathLike],
    labels: SourceLike,
    *,
    outcomes: int | None = None,
    renormalize: bool = False,
    seed: int = 0,
    workspace: Workspace | PathLike | None = None,
    reporter: Reporter = LOGGING,
) -> ScoreComparison:
    """Score several files of predictions on the battles that all of them have, and tell which is better.

    Parameters
    ----------
    predictions:
        At least two files.
    labels, outcomes, renormalize, seed, workspace:
        As for :func:`score`.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        As for :func:`score`; also if the files have no battle in common.
    """
    paths, source = find_files(predictions, labels, Workspace.of(workspace), reporter)
    if len(paths) < 2:
        raise InputError("there is nothing to compare", hint="Name at least two files of predictions.")
    results, differences = _score(paths, source, ScoreOptions(outcomes, renormalize, seed, workspace), reporter)
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [path.as_posix() for path in paths]
    scores = dict(zip(names, results, strict=True))
    named = tuple(
        metrics.NamedDifference(**vars(found), a=names[a], b=names[b]) for (a, b), found in differences.items()
    )
    log_losses = {name: result.log_loss for name, result in scores.items()}
    return ScoreComparison(scores, named, metrics.best(log_losses, named))


def find_files(
    predictions: PathLike | Sequence[PathLike], labels: SourceLike, workspace: Workspace, reporter: Reporter
) -> tuple[Sequence[Path], Source]:
    """The files of predictions and the labels, whichever were named first, if they are there."""
    names = [predictions] if isinstance(predictions, (str, Path)) else predictions
    paths, source = [user_path(path) for path in names], source_of(labels, workspace)
    check_inputs([*paths, *source.paths])
    return tables.labels_last(paths, source, reporter)


def _score(
    paths: Sequence[Path], source: Source, how: ScoreOptions, reporter: Reporter
) -> tuple[list[ScoreResult], dict[tuple[int, int], metrics.Difference]]:
    """Each file's metrics on the battles that all have, and the differences of every two files."""
    workspace = Workspace.of(how.workspace)
    usual = next(filter(None, (usual_reading(path, workspace) for path in paths)), {})
    label_file = tables.LabelFile(source, usual)
    if label_file.battles is not None:
        report_reading(label_file.battles, source, usual, reporter)
    elif source.by is not None:
        reporter.note(f"{source}: {groups.describe(source.by, is_column=True)}")
    battles = tables.ScoredBattles(paths, label_file, renormalize=how.renormalize)
    tallies = _Tallies(battles, how, [_training_prompts(path, workspace, reporter) for path in paths])
    with reporter.track("scoring", label_file.size, "bytes") as progress:
        for probabilities, values in battles.parts(progress):
            tallies.add(probabilities, values)
    if not tallies.all.n:
        raise InputError("no battle has an outcome", where=str(source), hint="Labels are battles with outcomes.")
    results = tallies.results()
    _warn(results, battles, workspace, reporter)
    return results, tallies.all.differences(tallies.outcomes, seed=how.seed) if len(paths) > 1 else {}


class _Tallies:
    """Adds up the battles of all files, and those of every group."""

    def __init__(
        self, battles: tables.ScoredBattles, how: ScoreOptions, training_prompts: Sequence[NDArray[np.int64] | None]
    ) -> None:
        self.all = metrics.Tally(len(battles.predictions))
        self._labels = battles.labels
        self._how = how
        self._training_prompts = training_prompts
        self._groups: dict[int, metrics.Tally] = {}
        self._unlabelled = 0
        self._ungrouped = 0
        self._trained_on = np.zeros(len(training_prompts), dtype=np.int64)

    def add(self, probabilities: NDArray[np.float64], values: NDArray[np.int64]) -> None:
        """Add battles, as :meth:`tables.ScoredBattles.parts` gives them."""
        is_known = values[:, 0] >= 0
        self._unlabelled += int((~is_known).sum())
        if self._how.outcomes == 2 and (values[:, 0] == TIE).any():
            raise InputError(
                "there are ties among the labels, so they are not of two outcomes",
                where=str(self._labels.source),
                hint="Score three outcomes, or leave the ties out of both files.",
            )
        if not is_known.any():
            return
        probabilities, (labels, keys, codes) = probabilities[:, is_known], values[is_known].T
        self.all.add(probabilities, labels, keys if self._knows_prompts else None)
        for number, prompts in enumerate(self._training_prompts):
            if prompts is not None and self._knows_prompts:
                self._trained_on[number] += int(np.isin(keys, prompts).sum())
        if self._labels.source.by is not None:
            self._ungrouped += int((codes < 0).sum())
            self._add_groups(probabilities, labels, keys, codes)

    def _add_groups(
        self,
        probabilities: NDArray[np.float64],
        labels: NDArray[np.int64],
        keys: NDArray[np.int64],
        codes: NDArray[np.int64],
    ) -> None:
        order = np.argsort(codes, kind="stable")
        present, begins = np.unique(codes[order], return_index=True)
        for code, rows in zip(present.tolist(), np.split(order, begins[1:]), strict=True):
            if code >= 0:
                tally = self._groups.setdefault(code, metrics.Tally(len(probabilities), metrics.METRICS))
                tally.add(probabilities[:, rows], labels[rows], keys[rows] if self._knows_prompts else None)

    @property
    def _knows_prompts(self) -> bool:
        return self._labels.battles is not None

    @property
    def outcomes(self) -> int:
        """How many outcomes are scored, of all groups alike."""
        return self._how.outcomes or self._labels.outcomes or self.all.outcomes

    def results(self) -> list[ScoreResult]:
        """What every file scores."""
        by = self._by_group() if self._labels.source.by is not None else [None] * len(self._training_prompts)
        return [
            ScoreResult(
                **vars(found),
                unlabelled=self._unlabelled,
                trained_on=int(trained_on) if prompts is not None and self._knows_prompts else None,
                by=of_groups,
            )
            for found, trained_on, prompts, of_groups in zip(
                self.all.scores(self.outcomes, seed=self._how.seed),
                self._trained_on,
                self._training_prompts,
                by,
                strict=True,
            )
        ]

    def _by_group(self) -> list[ScoresByGroup]:
        """For each file the metrics of its groups."""
        by = str(self._labels.source.by)
        if not self._groups:
            raise InputError(f"no battle is in a group: {by} is empty", where=str(self._labels.source))
        names = dict(enumerate(self._labels.group_names))
        tallies = {names[code]: tally for code, tally in self._groups.items()}
        in_order = groups.in_order({name: tally.n for name, tally in tallies.items()}, by)
        seed, outcomes = self._how.seed, self.outcomes
        scores = [tallies[name].group_scores(name, outcomes, seed=seed) for name in in_order]
        return [
            ScoresByGroup(
                by,
                tuple(of_files[number] for of_files in scores),
                self._ungrouped,
                _reward_bench(tallies, number, seed) if outcomes == 2 else None,
            )
            for number in range(len(self._training_prompts))
        ]


def _reward_bench(tallies: Mapping[str, metrics.Tally], number: int, seed: int) -> reward_bench.RewardBench | None:
    """RewardBench's averages of one file's predictions."""
    if not reward_bench.SUBSETS & tallies.keys():
        return None
    return reward_bench.averages(
        {
            name: reward_bench.Subset(*tally.drawn(number, "accuracy", 2, seed=seed + code))
            for code, (name, tally) in enumerate(sorted(tallies.items()))
        }
    )


def usual_reading(predictions: Path, workspace: Workspace) -> dict[str, Any]:
    """How the training battles of the predicting run were read; empty if that was not said or is not known."""
    for run in workspace.runs_of_predictions(predictions):
        with contextlib.suppress(ModelError):  # damaged since
            return runs.reading_of(run)
    return {}


def _training_prompts(predictions: Path, workspace: Workspace, reporter: Reporter) -> NDArray[np.int64] | None:
    """Keys of the prompts that the runs behind the predictions were trained on; None if no run tells."""
    keys = []
    for run in workspace.runs_of_predictions(predictions):
        try:
            keys.append(runs.training_prompts(run))
        except ModelError as error:
            reporter.warn(f"{run}: {error.what}")
    known = [of_run for of_run in keys if of_run is not None]
    return np.unique(np.concatenate(known)) if known else None


def _warn(
    results: Sequence[ScoreResult], battles: tables.ScoredBattles, workspace: Workspace, reporter: Reporter
) -> None:
    """Say what makes scores doubtful."""
    labels = battles.labels
    unlabelled = results[0].unlabelled
    if battles.left_out:
        common = metrics.plural(results[0].n + unlabelled, "battle")
        reporter.warn(f"scored on the {common} that all files have: {'; '.join(battles.left_out)}")
    if unlabelled:
        reporter.warn(f"{metrics.plural(unlabelled, 'battle')} of {labels.source} without an outcome: not scored")
    for path, result in zip(battles.predictions, results, strict=True):
        of = f"{path}: " if len(results) > 1 else ""
        if result.trained_on:
            reporter.warn(
                f"{of}{result.trained_on:,} of {metrics.plural(result.n, 'battle')} have a prompt that the predicting "
                "runs were trained on: this score is too good"
            )
        if result.clipped:
            reporter.warn(
                f"{of}{metrics.plural(result.clipped, 'battle')} gave the true outcome a probability of "
                "(nearly) 0: 36 nats each after clipping"
            )
        if labels.counts.invented_ids and labels.battles is not None:
            source = workspace.source_of_predictions(path)
            if source != labels.battles.digest():
                reporter.warn(
                    f"{labels.source} has no ids, or repeated ones: joined by the numbers of its rows. This is right "
                    f"only if {path} holds predictions of the same battles in the same order"
                )

"""``prefcli runs compare``: which of some runs is better, on the battles that all of them held out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import PathLike
from prefcli.console import LOGGING
from prefcli.errors import InputError, ModelError, PrefcliError
from prefcli.pipeline.runs import find_several, written
from prefcli.prediction import blending
from prefcli.prediction.calibration import MIN_PROBABILITY
from prefcli.reporting import Reporter
from prefcli.storage import runs
from prefcli.storage.run_names import run_folders, run_name
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class RunComparison:
    """What ``prefcli runs compare`` finds."""

    battles: int
    """How many battles all runs held out; everything is of these."""
    prompts: int
    outcomes: int
    """2 where none of the battles is a tie: then every run is scored on two outcomes."""
    scores: dict[str, metrics.Score]
    """By run."""
    differences: tuple[metrics.NamedDifference, ...]
    """Of every two."""
    best: str | None
    """The run that is better than each of the others (p below 0.05, adjusted for their number); None if none."""
    cautions: tuple[str, ...]
    """What to know about the comparison."""


@dataclass(frozen=True)
class _Run:
    name: str
    config: dict[str, Any]
    held_out: runs.HeldOut
    trained_on: NDArray[np.int64]
    """Keys of the prompts that the model of a held-out battle may have seen, as far as they are known."""


def compare_runs(
    names: Sequence[PathLike],
    workspace: Workspace | PathLike | None = None,
    *,
    seed: int = 0,
    reporter: Reporter = LOGGING,
) -> RunComparison:
    """Compare runs on the battles that all of them held out, battle by battle.

    Battles are the same if id, prompt and outcome are. A battle whose prompt one of the runs has seen in training is
    left out. Intervals and p-values resample prompts; those of several runs are adjusted by Holm's method only to
    name the best.

    Parameters
    ----------
    names, workspace:
        Runs by name or folder; where they are found by name.
    seed:
        Of the bootstrap.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        If there is no such run, or they held out no battle in common.
    ModelError
        If a run is damaged or unfinished, or held nothing out.
    """
    workspace = Workspace.of(workspace)
    loaded = [_load(workspace, folder) for folder in find_several(workspace, names)]
    cautions = _cautions(loaded)
    rows = blending.common_rows([run.held_out for run in loaded])
    for caution in cautions:
        reporter.warn(caution)
    warned = len(cautions)
    if not len(rows[0]):
        raise InputError(
            f"{', '.join(run.name for run in loaded)} held out no battle in common",
            hint="Train them on the same file with the same --seed and --validation, or with one --validation-file.",
        )
    keys = loaded[0].held_out.keys[rows[0]]
    seen = np.isin(keys, np.concatenate([run.trained_on for run in loaded]))
    if seen.all():
        raise InputError(
            f"one of the runs was trained on the prompts of all {metrics.plural(len(seen), 'battle')} in common",
            hint="Compare them on other battles: prefcli predict, then prefcli score.",
        )
    rows = [of_run[~seen] for of_run in rows]
    if seen.any():
        cautions.append(
            f"{metrics.plural(int(seen.sum()), 'battle')} in common left out: a run was trained on their prompts"
        )
    for run, of_run in zip(loaded, rows, strict=True):
        if len(of_run) < len(run.held_out.ids):
            battles = metrics.plural(len(run.held_out.ids), "battle")
            left_out = len(run.held_out.ids) - len(of_run)
            cautions.append(f"not compared: {left_out:,} of {battles} held out by {run.name}")
    for caution in cautions[warned:]:
        reporter.warn(caution)
    return _compare(loaded, rows, tuple(cautions), seed)


@dataclass(frozen=True)
class Partner:
    """A run whose blend with another one has a lower validation log loss than each of the two."""

    run: str
    folder: Path
    gain: metrics.Difference
    """The blend's log loss minus that of the better run, on the battles that both held out."""


MAX_PARTNERS = 5
"""Runs that are tried, the newest first: the p-value of the best is multiplied by their number."""
MIN_COMMON_BATTLES = 50


def best_partner(run: Path, workspace: Workspace) -> Partner | None:
    """The run of the workspace whose blend with ``run``, at equal weights, has a clearly lower validation log loss.

    Only runs that held out the same battles are tried. None if the 95 % interval of the best one's difference is not
    below 0, or its p-value is not below 0.05 after Bonferroni's correction.
    """
    try:
        own = _load(workspace, run)
    except (PrefcliError, ValueError, OSError):  # unfinished, damaged or without held-out battles
        return None
    if len(own.held_out.ids) < MIN_COMMON_BATTLES:
        return None
    losses: list[tuple[_Run, Path, list[NDArray[np.float64]]]] = []
    others = (path for path in run_folders(workspace.root) if path.resolve() != run.resolve())
    for folder in sorted(others, key=written, reverse=True):
        with suppress(PrefcliError, ValueError, OSError):
            if _is_alike(own.config, runs.read_config(folder)):  # a look at the configuration takes less than _load
                other = _load(workspace, folder)
                if _same_battles(own.held_out, other.held_out):
                    losses.append((other, folder, _losses_of_blend(own.held_out, other.held_out)))
        if len(losses) == MAX_PARTNERS:
            break
    if not losses:
        return None
    other, folder, (blend, better) = min(losses, key=lambda found: float((found[2][0] - found[2][1]).mean()))
    gain = metrics.compare(blend, better, own.held_out.keys)
    if gain.ci is None or gain.p is None or gain.ci[1] >= 0 or gain.p * len(losses) >= 0.05:
        return None
    return Partner(other.name, folder, gain)


def _is_alike(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs may have held out the same battles of the same files."""
    names = ("source_sha256", "validation_input", "held_out_battles")
    return all(config["data"].get(name) == other["data"].get(name) for name in names)


def _same_battles(first: runs.HeldOut, second: runs.HeldOut) -> bool:
    """Whether two runs held out the same battles, which are then in the same order."""
    arrays = ((first.keys, second.keys), (first.labels, second.labels))
    return first.ids == second.ids and all(np.array_equal(*pair) for pair in arrays)


def _losses_of_blend(first: runs.HeldOut, second: runs.HeldOut) -> list[NDArray[np.float64]]:
    """Each battle's log loss by two runs' blend, and by the better of the two."""
    labels = first.labels
    logs = [np.log(np.maximum(metrics.softmax(of_run.logits), MIN_PROBABILITY)) for of_run in (first, second)]
    probabilities = [metrics.softmax(values) for values in ((logs[0] + logs[1]) / 2, *logs)]
    if metrics.count_outcomes(labels) == 2:
        probabilities = [metrics.two_outcome(p) for p in probabilities]
    blend, *alone = (metrics.losses(p, labels) for p in probabilities)
    return [blend, min(alone, key=lambda values: float(values.mean()))]


def _load(workspace: Workspace, folder: Path) -> _Run:
    runs.verify(folder, names=(runs.VALIDATION, runs.TRAINING_PROMPTS, runs.CONFIG))
    config = runs.read_config(folder)
    encoder = config["options"]["encoder"]  # None of features
    seen = []
    if config["options"]["architecture"] != "features" and encoder and runs.is_run(Path(encoder)):
        seen.append(runs.training_prompts(Path(encoder)))
    if runs.members(folder) == [folder]:  # with folds, each held-out battle is predicted by a model that did not see it
        seen.append(runs.training_prompts(folder))
    trained_on = np.concatenate([np.empty(0, np.int64), *(keys for keys in seen if keys is not None)])
    held_out = runs.read_validation(folder)
    if len(broken := metrics.find_non_finite(held_out.logits)):
        raise ModelError(
            f"the run has logits that are not finite numbers, the first of battle {held_out.ids[broken[0]]}",
            where=str(folder),
        )
    return _Run(run_name(workspace.root, folder), config, held_out, trained_on)


def _cautions(loaded: Sequence[_Run]) -> list[str]:
    """What differs in the runs' data."""
    cautions = []
    for name, what in (
        ("source_sha256", "trained on different files"),
        ("validation_input", "validated on other files"),
    ):
        if len({str(run.config["data"].get(name)) for run in loaded}) > 1:
            cautions.append(f"the runs were {what}")
    for first, second in itertools.permutations(loaded, 2):
        prompts = np.unique(first.held_out.keys)
        seen = int(np.isin(prompts, second.trained_on).sum())
        if seen:
            of_all = f"{seen:,} of {metrics.plural(len(prompts), 'prompt')}"
            cautions.append(f"{second.name} was trained on {of_all} held out by {first.name}")
    return cautions


def _compare(
    loaded: Sequence[_Run], rows: Sequence[NDArray[np.intp]], cautions: tuple[str, ...], seed: int
) -> RunComparison:
    held_out = [run.held_out.take(of_run) for run, of_run in zip(loaded, rows, strict=True)]
    labels, keys = held_out[0].labels, held_out[0].keys
    outcomes = metrics.count_outcomes(labels)
    probabilities = [metrics.softmax(of_run.logits) for of_run in held_out]
    scores = {
        run.name: metrics.score(p, labels, groups=keys, outcomes=outcomes, seed=seed)
        for run, p in zip(loaded, probabilities, strict=True)
    }
    scored = [metrics.two_outcome(p) if outcomes == 2 else p for p in probabilities]
    losses = {run.name: metrics.losses(p, labels) for run, p in zip(loaded, scored, strict=True)}
    differences = tuple(
        metrics.NamedDifference(**vars(metrics.compare(losses[a], losses[b], keys, seed=seed)), a=a, b=b)
        for a, b in itertools.combinations(losses, 2)
    )
    return RunComparison(
        battles=len(labels),
        prompts=len(np.unique(keys)),
        outcomes=outcomes,
        scores=scores,
        differences=differences,
        best=metrics.best({name: score.log_loss for name, score in scores.items()}, differences),
        cautions=cautions,
    )

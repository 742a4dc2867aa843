"""What every fit gets, what it returns, and the ``config.json`` that a run starts with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.compute.distributed import World
from prefcli.data.selection import Fold, RunData, TrainingData
from prefcli.options import TrainOptions
from prefcli.reporting import Progress, Reporter
from prefcli.storage import runs
from prefcli.storage.sources import Sources
from prefcli.storage.workspace import Workspace
from prefcli.training.trackers import Trackers


@dataclass(frozen=True)
class FoldSources:
    """The sources of a fold's battles, and the bases that their logits are added to."""

    train: list[str | None]
    held_out: list[str | None]
    train_bases: NDArray[np.float64]
    """Shape ``[n, 3]``, as the next."""
    held_out_bases: NDArray[np.float64]
    pooled: NDArray[np.float64]
    """Of the sources that can tie, pooled; shape ``[3]``."""


@dataclass(frozen=True)
class TrainContext:
    """One call of ``train``.

    Attributes
    ----------
    folder:
        The run's folder; folds lie below it.
    workspace:
        Where stages are cached.
    data, training_data, options:
        The files and stages to train on, the battles selected from them, and how to train.
    origins, command:
        Where each option came from, and the command line; kept in the run.
    resume:
        Whether the run is continued.
    world, reporter:
        The processes that take part, and where messages go.
    trainings:
        How many trainings of this size the whole command does from this one on: for the time that a long one warns of.
    """

    folder: Path
    workspace: Workspace
    data: RunData
    training_data: TrainingData
    options: TrainOptions
    origins: Mapping[str, str]
    command: str
    resume: bool
    world: World
    reporter: Reporter
    trainings: float = 1.0

    def outcomes(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """How many of some training battles had each outcome, soft labels counted by their shares; shape ``[3]``."""
        return np.asarray(self.training_data.targets[rows].sum(axis=0, dtype=np.float64))

    def unseen(self, rows: NDArray[np.intp]) -> tuple[int, ...]:
        """The outcomes that a model trained on these battles never sees."""
        return metrics.unseen_outcomes(self.outcomes(rows), both_orders=self.options.shows_both_orders)

    def sources(self, fold: Fold) -> Sources | None:
        """The sources of a fold's training battles; None where the run has one."""
        names = self.training_data.sources
        if names is None:
            return None
        return Sources.of([str(names[row]) for row in fold.train], self.training_data.targets[fold.train])

    def fold_sources(self, fold: Fold) -> FoldSources | None:
        """The sources of a fold's battles; None for a run of one source."""
        sources, names = self.sources(fold), self.training_data.sources
        if sources is None or names is None:
            return None
        train, held_out = ([names[row] for row in rows] for rows in (fold.train, fold.held_out))
        held_out_bases = sources.held_out_bases(held_out, self.training_data.labels[fold.held_out])
        return FoldSources(train, held_out, sources.bases(train), held_out_bases, sources.base())

    def write_config(self, fold: Fold, resolved: Mapping[str, Any], encoder: Mapping[str, Any] | None = None) -> None:
        """Write a fold's ``config.json`` (and with folds, once, the whole run's) and which prompts it is trained on.

        Parameters
        ----------
        fold:
            The fold.
        resolved:
            What ``auto`` and defaults became.
        encoder:
            The encoder's own configuration, or where its weights are.
        """
        outcomes, sources = self.outcomes(fold.train), self.sources(fold)
        config = {
            **(encoder or {}),
            "origins": dict(self.origins),
            "resolved": dict(resolved),
            "data": {
                "source": self.data.source.to_json(),
                "stage": self.data.training.path.name,
                "validation_file": self.options.validation_file,
                **self.data.identity,
                "split_version": self.data.split_version,
                "train_battles": len(fold.train),
                "held_out_battles": len(fold.held_out),
                "shares": (outcomes / outcomes.sum()).tolist(),
                "outcomes": outcomes.round(6).tolist(),
                **({"sources": sources.to_json()} if sources else {}),
            },
            "command": self.command,
        }
        single = dataclasses.replace(self.options, folds=0) if self.options.folds else self.options
        fold.folder.mkdir(parents=True, exist_ok=True)
        runs.write_config(fold.folder, single, config)
        runs.write_training_prompts(fold.folder, self.training_data.keys[fold.train])
        if self.options.folds and not (self.folder / runs.CONFIG).exists():
            everything = np.arange(len(self.training_data))
            of_all_folds = {"outcomes": self.outcomes(everything).round(6).tolist()}
            if sources := self.sources(Fold(self.folder, everything, everything[:0])):
                of_all_folds["sources"] = sources.to_json()
            whole = {**config, "data": {**config["data"], **of_all_folds}}
            runs.write_config(self.folder, self.options, whole)


@dataclass(frozen=True)
class FitResult:
    """What a fit returns, besides the model in its folder."""

    logits: NDArray[np.float64] | None
    """Of the held-out battles, by the kept model; shape ``[n, 3]``."""
    battles_per_second: float
    importances: list[tuple[str, float]] = field(default_factory=list)
    """Shares of the statistics in the model's gain; empty for neural models."""
    swapped: NDArray[np.float64] | None = None
    """Logits of the same outcomes when the answers are shown in the other order; None where that changes nothing."""
    pooled: NDArray[np.float64] | None = None
    """Logits as of the sources that can tie, pooled; the others are of each battle's own. None for one source."""


class Fitter(Protocol):
    """Fits folds, one after the other."""

    @property
    def task(self) -> tuple[str, float, str]:
        """What fitting all folds is called, how much it probably is, and in which unit."""

    def fit(self, fold: Fold, name: str, trackers: Trackers, progress: Progress) -> FitResult:
        """Fit one fold, called ``fold 1 of 5``, or the only split, which has no name, into its folder."""

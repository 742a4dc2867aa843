"""Fitting the `features` architecture: statistics of every battle, measured once, then a booster per fold."""

from __future__ import annotations

import time

import numpy as np

from prefcli.data.selection import Fold
from prefcli.errors import ModelError
from prefcli.models import features as models
from prefcli.models.features import statistics
from prefcli.models.features.statistics import Features
from prefcli.storage import runs
from prefcli.training.context import FitResult, TrainContext
from prefcli.training.trackers import Trackers


class FeaturesFitter:
    """Measures the pool once. Of several processes the first one does all the work."""

    def __init__(self, work: TrainContext) -> None:
        self.work = work
        self.features: Features | None = None
        if not work.world.is_main_process:
            return
        parts = []
        with work.reporter.track("measuring", len(work.pool)) as progress:
            for batch in work.pool.batches():
                if batch.num_rows:
                    parts.append(statistics.extract(batch))
                    progress.advance(batch.num_rows)
        self.features = Features.concatenate(parts)

    def fit(self, fold: Fold, prefix: str, trackers: Trackers) -> FitResult:
        """Fit one fold. A fold of a continued run that is fitted already is not fitted again.

        There are no steps that a tracker could be told.
        """
        fitted = self._fit_here(self.features, fold, prefix) if self.features is not None else None
        first: FitResult = self.work.world.gather(fitted)[0]
        return first

    def _fit_here(self, battles: Features, fold: Fold, prefix: str) -> FitResult:
        work = self.work
        started = time.monotonic()
        model = self._fitted_before(fold) if work.resume else None
        if model is None:
            work.reporter.note(
                f"{prefix}boosting {len(models.COLUMNS):,} statistics of {len(fold.train):,} battles in both orders"
            )
            work.write_config(fold, {"columns": len(models.COLUMNS)})
            runs.seal(fold.folder, trained=False)
            with work.reporter.track(f"{prefix}boosting", None, "steps") as progress:
                model = models.fit(
                    battles.take(fold.train),
                    work.pool.targets[fold.train],
                    work.pool.keys[fold.train],
                    seed=work.options.seed,
                    progress=lambda what, done, total: progress.advance(1, f"{what} {done} of {total}"),
                )
            model.save(fold.folder)
        rate = len(fold.train) / max(time.monotonic() - started, 1e-9)
        logits = np.log(model.probabilities(battles.take(fold.held_out))) if len(fold.held_out) else None
        return FitResult(logits, rate, model.importances())

    def _fitted_before(self, fold: Fold) -> models.FeaturesModel | None:
        try:
            return models.load(fold.folder)
        except ModelError:
            return None

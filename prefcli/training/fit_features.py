"""Fitting the ``features`` architecture: statistics of every battle, extracted once, then a booster per fold."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from prefcli import metrics
from prefcli.data.selection import Fold
from prefcli.errors import ModelError
from prefcli.models import features as models
from prefcli.models.features import booster, statistics
from prefcli.models.features.stored import StoredFeatures
from prefcli.reporting import Progress, followed
from prefcli.storage import files, runs
from prefcli.training.context import FitResult, FoldSources, TrainContext
from prefcli.training.duration import MIN_TIMED, TimeWarning
from prefcli.training.trackers import Trackers

MIN_ROUNDS = 20
"""Rounds of boosting that show how long all of them take."""


class FeaturesFitter:
    """Extracts the statistics once. Of several processes the main one does all the work."""

    def __init__(self, context: TrainContext, folds: Sequence[Fold]) -> None:
        self.context = context
        seeds = context.options.booster_settings.get("seeds", 1)
        self.task = ("boosting", sum(models.expected_rounds(len(fold.train), seeds) for fold in folds), "rounds")
        self._left = len(folds)
        faster = "--limit N, fewer battles" + "; fewer --folds" * (len(folds) > 2)
        self._warning = TimeWarning(context.reporter, faster)
        self._done: list[float] = []
        """Rounds of the folds that are done."""
        self.features: StoredFeatures | None = None
        self._names = np.empty((0, 2), dtype=object)
        """Of the models that answered, where known."""
        if not context.world.is_main_process:
            return
        with context.reporter.track("measuring", len(context.training_data)) as progress:
            self.features, names = StoredFeatures(context.workspace.root), []
            for batch in followed(context.training_data.batches(), progress):
                if batch.num_rows:
                    self.features.append(statistics.extract(batch))
                    names.append(models.author_names(batch))
            self._names = np.concatenate(names)
        self._first_authors = self._authors(folds[0])
        context.reporter.note(
            f"boosting {len(models.COLUMNS):,} statistics of {len(folds[0].train):,} battles in both orders"
            + (", in each fold about as many" if context.options.folds else "")
            + f"; {self._first_authors}"
        )

    def fit(self, fold: Fold, name: str, trackers: Trackers, progress: Progress) -> FitResult:
        """Fit one fold. A fold of a resumed run that has been fitted is not fitted again; trackers get no steps."""
        result = self._fit_here(self.features, fold, name, progress) if self.features is not None else None
        shared: FitResult = self.context.world.gather(result)[0]
        return shared

    def _fit_here(self, battles: StoredFeatures, fold: Fold, name: str, progress: Progress) -> FitResult:
        context = self.context
        started = time.monotonic()
        self._left -= 1
        sources = context.fold_sources(fold)
        model = self._load_fitted(fold) if context.resume else None
        if model is None:
            authors = self._authors(fold)
            context.write_config(fold, {"columns": len(models.COLUMNS), "authors": str(authors)})
            if authors.suffice != self._first_authors.suffice:
                context.reporter.note(f"{name}: {authors}")
            runs.seal(fold.folder, trained=False)
            model = models.fit(
                battles.take(fold.train),
                context.training_data.targets[fold.train],
                context.training_data.keys[fold.train],
                authors=authors if authors.suffice else None,
                sources=battle_sources(sources),
                seed=context.options.seed,
                progress=self._reporting(name, progress),
                settings=context.options.booster_settings,
            )
            if authors.suffice and model.authors is None:
                described = "no author scores: nearly all battles between rated models are of one prompt"
                context.reporter.note(f"{name and f'{name}: '}{described}")
                # Until it is sealed again the run has no checksums: one that is stopped in between can be resumed.
                files.remove(fold.folder / files.CHECKSUMS)
                context.write_config(fold, {"columns": len(models.COLUMNS), "authors": described})
                runs.seal(fold.folder, trained=False)
            if model.booster is not None and 2 * len(fold.train) > booster.BIN_ROWS:
                context.reporter.note(
                    f"{name and f'{name}: '}bins of the columns are from a sample: {booster.BIN_ROWS:,} of "
                    f"{2 * len(fold.train):,} rows, which are the battles in both orders; all are trained on"
                )
            if model.networks is not None:
                context.reporter.note(f"{name and f'{name}: '}{model.networks}")
            if len(model.curve) and int(np.argmin(model.curve)) + 1 == models.MAX_ROUNDS:
                context.reporter.note(
                    f"{name and f'{name}: '}the best number of rounds was the largest that is tried, "
                    f"{models.MAX_ROUNDS}: more might still help"
                )
            if model.curve:
                log = ({"step": number, "inner_log_loss": loss} for number, loss in enumerate(model.curve, start=1))
                files.write_text(fold.folder / runs.METRICS, "".join(files.to_json(line) + "\n" for line in log))
            model.save(fold.folder)
        rate = len(fold.train) / max(time.monotonic() - started, 1e-9)
        if not len(fold.held_out):
            return FitResult(None, rate, model.importances())
        held_out, unseen = battles.take(fold.held_out), runs.unseen_outcomes(runs.read_config(fold.folder))
        if sources is None:
            logits = metrics.with_unseen(np.log(model.probabilities(held_out)), unseen)
            return FitResult(logits, rate, model.importances())
        logits = metrics.with_unseen(model.scores(held_out, sources.held_out) + sources.held_out_bases, unseen)
        pooled = metrics.with_unseen(model.scores(held_out, [None] * len(held_out)) + sources.pooled, unseen)
        return FitResult(logits, rate, model.importances(), pooled=pooled)

    def _authors(self, fold: Fold) -> models.Authors:
        return models.Authors.of(self._names[fold.train], self.context.training_data.targets[fold.train])

    def _load_fitted(self, fold: Fold) -> models.FeaturesModel | None:
        try:
            model = models.load(fold.folder)
        except ModelError:
            return None
        return model if model.version == statistics.VERSION else None  # the battles are measured for this one

    def _reporting(self, name: str, progress: Progress) -> Callable[[str, float, float], None]:
        """Reports the rounds of one fold; those to come are expected to be like those that are done."""
        before = list(self._done)
        self._done.append(0.0)
        began: tuple[float, float] | None = None

        def report(what: str, done: float, expected: float) -> None:
            nonlocal began
            total = sum(before) + expected + self._left * (float(np.mean(before)) if before else expected)
            progress.expect(total)
            # Words take another time than rounds: how long the rest takes is not known before there are some.
            if what != "words" and began is None:
                began = time.monotonic(), done
            elif began and not self._warning.said:
                seconds, rounds = time.monotonic() - began[0], done - began[1]
                if rounds >= MIN_ROUNDS and seconds >= MIN_TIMED:
                    self._warning.expect(seconds / rounds * (total - sum(before) - done))
            step = progress.skip if what == "words" and not before else progress.advance
            step(done - self._done[-1], f"{name}, {what}" if name else what)
            self._done[-1] = done

        return report


def battle_sources(sources: FoldSources | None) -> models.BattleSources | None:
    """Those of a fold's training battles; None for a run of one source."""
    if sources is None:
        return None
    return models.BattleSources(np.array(sources.train, dtype=object), sources.train_bases)

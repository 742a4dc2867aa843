"""``train --tune``: several settings of a recipe tried on the same folds, and whether the best beats the default.

Every trial is a run with folds, which keeps only its held-out predictions when it is done. The prompts are split in two
halves: the search and the choice see the losses on one, the other says how much the chosen setting really gains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli._version import __version__
from prefcli.battles import SourceLike
from prefcli.compute.distributed import World, from_environment
from prefcli.errors import Diverged, InputError, Interrupted, require
from prefcli.options import TrainOptions, flag_of
from prefcli.pipeline.encoder_choice import with_encoder
from prefcli.pipeline.stages import read_stage, source_of
from prefcli.pipeline.train import check_files, train, with_absolute_paths
from prefcli.reporting import SILENT, OneOfSeveral, Reporter
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

DEFAULT_FOLDS = 3
MIN_TRIALS_FOR_IMPORTANCES = 20
RANDOM_TRIALS = 5
"""So many trials, the default among them, come before the search is drawn to what did well."""
DIVERGED = "diverged"
"""A file in a trial's folder."""
KEPT = (runs.VALIDATION, runs.CONFIG, files.CHECKSUMS, DIVERGED)
"""Files of a trial that is done; its weights are not needed any more."""


@dataclass(frozen=True)
class Trial:
    """Settings that were tried."""

    settings: dict[str, Any]
    """Options in place of the given ones; empty for the first trial, the default."""
    log_loss: float
    """Out of fold, on the battles that settings are chosen on; infinite (null in JSON) of a training that diverged."""


@dataclass(frozen=True)
class Tuning:
    """What ``tune`` found."""

    trials: tuple[Trial, ...]
    best: int
    """The number of the trial with the lowest log loss; 1 is the default."""
    settings: dict[str, Any]
    """What to train with in place of the given options: those of the best trial if it is better, else nothing."""
    is_better: bool
    """Whether the interval of ``difference`` lies below zero."""
    difference: metrics.Difference | None
    """Log loss of the best trial minus the default's on the battles that were not chosen on; None for the default."""
    importances: dict[str, float]
    """How much each setting mattered, shares of 1, by optuna's PED-ANOVA; empty with few trials."""
    battles: int
    """Those that settings are chosen on."""
    prompts: int
    reading: str
    """What was found, in sentences."""
    folder: Path

    @property
    def flags(self) -> list[str]:
        """The best trial's settings as flags of ``train``."""
        return _flags(self.trials[self.best - 1].settings)


def tune(
    source: SourceLike,
    workspace: Workspace,
    options: TrainOptions,
    *,
    trials: int,
    fixed: Collection[str] = (),
    reporter: Reporter = SILENT,
) -> Tuning:
    """Try settings, the first of them the options as they are. The same call goes on where one was stopped.

    Parameters
    ----------
    source, workspace, options:
        As for ``train``; ``folds`` is that of all trials, by default :data:`DEFAULT_FOLDS`.
    trials:
        How many; 2 at least.
    fixed:
        Names of options that are not tuned.

    Raises
    ------
    InputError
        If the options do not allow it, or leave nothing to tune.
    MissingPackage
        If optuna is not installed.
    Interrupted
        On SIGINT or SIGTERM.
    """
    if trials < 2:
        raise InputError(f"--tune is {trials}, at least 2 is needed: the first trial is the default")
    if options.validation_file:
        raise InputError("--tune and --validation-file exclude each other", hint="Settings are compared on folds.")
    if from_environment().size > 1:
        raise InputError("--tune does not run under torchrun", hint="Tune in one process, then train in several.")
    options.check()
    require("--tune", "optuna")
    options.require_packages("train")
    source = source_of(source, workspace)
    check_files(source, workspace, options)
    battles = read_stage(source, workspace, reporter)
    if options.architecture != "features":
        options, _ = with_encoder(options, World(), reporter)  # once for all trials
    options = with_absolute_paths(dataclasses.replace(options, folds=options.folds or DEFAULT_FOLDS))
    space = _space(options, min(battles.rows, options.limit or battles.rows))
    space = {name: space[name] for name in space if name not in fixed}
    if not space:
        raise InputError("every setting that is tuned is given", hint="Leave some of them out.")
    soft_labels = options.soft_labels and files.sha256(Path(options.soft_labels))
    searched = [*space, soft_labels, version("optuna"), __version__]
    identity = json.dumps([battles.fingerprint, dataclasses.asdict(options), searched], sort_keys=True)
    name = f"tuning-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"  # a repeated command finds its trials
    search = _Search(workspace.root / "tunings" / name, options, space)
    return _conclude(search, *_try_all(search, source, workspace, trials, reporter))


Space = dict[str, tuple["BaseDistribution", Any]]
"""What each tuned setting is drawn from, and its value in the first trial."""


def _space(options: TrainOptions, battles: int) -> Space:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from prefcli.models.features.booster import BoosterSettings

    if options.architecture == "features":
        in_training = round(battles * (1 - 1 / options.folds))
        booster = dataclasses.replace(BoosterSettings.for_battles(in_training), **options.booster_settings)
        return {
            "num_leaves": (IntDistribution(4, 64, log=True), booster.num_leaves),
            "shrinkage_rate": (FloatDistribution(0.02, 0.2, log=True), booster.learning_rate),
            "min_data_in_leaf": (IntDistribution(5, 300, log=True), booster.min_data_in_leaf),
            "feature_fraction": (FloatDistribution(0.1, 1.0), booster.feature_fraction),
            "lambda_l2": (FloatDistribution(0.1, 100.0, log=True), booster.lambda_l2),
        }

    def choice(default: float, *others: float) -> tuple[BaseDistribution, float]:
        return CategoricalDistribution(sorted({default, *others})), default

    rate, length = options.learning_rate, options.max_length
    return {
        "lr": (FloatDistribution(rate / 4, min(rate * 4, 1.0), log=True), rate),
        "warmup": (FloatDistribution(0.0, 0.2), options.warmup),
        "epochs": (IntDistribution(1, 3), options.epochs),
        "label_smoothing": (FloatDistribution(0.0, 0.2), options.label_smoothing),
        "weight_decay": choice(options.weight_decay, 0.0, 0.01, 0.1),
        "batch_size": choice(options.batch_size, 8, 16, 32),
        "max_length": choice(length, max(8, length // 2)),
    }


@dataclass(frozen=True)
class _Search:
    """What is tried, and where."""

    folder: Path
    options: TrainOptions
    space: Space

    @property
    def kinds(self) -> dict[str, BaseDistribution]:
        """What each setting is drawn from."""
        return {name: kind for name, (kind, _) in self.space.items()}

    def run(self, number: int) -> Path:
        return self.folder / f"trial-{number}"

    def is_done(self, number: int) -> bool:
        run = self.run(number)
        return (run / DIVERGED).is_file() or ((run / runs.VALIDATION).is_file() and not runs.is_unfinished(run))

    def study(self, tried: Sequence[Trial], seed: int = 0) -> Study:
        """Made anew from what was tried, so that a search that was stopped goes on as one that was not."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=RANDOM_TRIALS)
        study = optuna.create_study(sampler=sampler)
        for trial in tried:
            if np.isfinite(trial.log_loss):
                values = {name: default for name, (_, default) in self.space.items()} | trial.settings
                params = {name: _within(values[name], kind) for name, kind in self.kinds.items()}
                done = optuna.trial.create_trial(params=params, distributions=self.kinds, value=trial.log_loss)
                study.add_trial(done)
        return study

    def next(self, tried: Sequence[Trial]) -> dict[str, Any]:
        """The settings of the next trial, to three digits."""
        if not tried:
            return {}
        suggested = self.study(tried, self.options.seed + len(tried)).ask(self.kinds).params
        return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in suggested.items()}


def _within(value: Any, kind: Any) -> Any:
    """A value as one of the search space: a default may lie outside."""
    return value if hasattr(kind, "choices") else min(max(value, kind.low), kind.high)


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (flag_of(name), f"{value}")]


def _try_all(
    search: _Search, source: SourceLike, workspace: Workspace, trials: int, reporter: Reporter
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]], list[Trial]]:
    """Train what is not trained yet; the prompts of the battles, their losses in each trial, and the trials."""
    left = sum(not search.is_done(number) for number in range(1, trials + 1))
    if left < trials:
        reporter.note(f"{search.folder} holds {trials - left} of {metrics.plural(trials, 'trial')}: going on there")
    noted: set[str] = set()
    keys = np.empty(0, np.int64)
    losses: list[NDArray[np.float64]] = []
    tried: list[Trial] = []
    for number in range(1, trials + 1):
        run, settings = search.run(number), search.next(tried)
        if not search.is_done(number):
            reporter.note(f"trial {number} of {trials}: {' '.join(_flags(settings)) or 'the default'}")
            chosen = dataclasses.replace(search.options, **settings)
            _train(source, workspace, chosen, run, left, OneOfSeveral(reporter, number, trials, noted))
            left = 0  # the first one says how long all of them take
        if (run / DIVERGED).is_file():
            losses.append(np.full(len(keys), np.inf))
        else:
            runs.verify(run, names=(runs.VALIDATION, runs.CONFIG))
            held_out = runs.read_validation(run)
            keys = held_out.keys  # the same in all trials
            losses.append(_losses(held_out))
        for path in run.iterdir():
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        chosen_on = _are_chosen_on(keys, search.options.seed)
        tried.append(Trial(settings, float(losses[-1][chosen_on].mean())))
        others = keys[~chosen_on]
        if number == 1 and (too_few := metrics.too_few_units(len(others), len(np.unique(others)))):
            reporter.warn(f"whatever is found, the default will be kept: {too_few} on which settings are not chosen")
    return keys, losses, tried


def _train(
    source: SourceLike, workspace: Workspace, options: TrainOptions, run: Path, trainings: int, reporter: Reporter
) -> None:
    """One trial, or the rest of it."""
    try:
        train(
            source, workspace, options, output=run, remember=False, command="prefcli train --tune",
            trainings=trainings, reporter=reporter,
        )  # fmt: skip
    except Interrupted as stopped:
        hint = "The same command goes on there."
        raise Interrupted(stopped.exit_code - 128, f"{run.name}: {stopped.what}", hint=hint) from None
    except Diverged as error:
        if run.name == "trial-1":
            raise
        reporter.warn(f"{run.name} does not count: {error.what}")
        files.write_text(run / DIVERGED, error.what + "\n")


def _losses(held_out: runs.HeldOut) -> NDArray[np.float64]:
    """Log loss of each battle, shape ``[n]``."""
    outcomes = metrics.count_outcomes(held_out.labels)
    probabilities = metrics.softmax(held_out.logits)
    return metrics.losses(metrics.two_outcome(probabilities) if outcomes == 2 else probabilities, held_out.labels)


def _are_chosen_on(keys: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Whether settings are chosen on each battle, shape ``[n]``: on one half of the prompts, drawn at random."""
    prompts, of_battle = np.unique(keys, return_inverse=True)
    chosen: NDArray[np.bool_] = np.random.default_rng(seed).permutation(len(prompts)) % 2 == 0
    return chosen[of_battle]


def _conclude(
    search: _Search, keys: NDArray[np.int64], losses: Sequence[NDArray[np.float64]], tried: Sequence[Trial]
) -> Tuning:
    """Compare the best trial with the default on the battles that it was not chosen on."""
    best = min(range(len(tried)), key=lambda trial: tried[trial].log_loss)
    chosen_on = _are_chosen_on(keys, search.options.seed)
    others = ~chosen_on
    difference = metrics.compare(losses[best][others], losses[0][others], keys[others]) if best else None
    is_better = difference is not None and difference.ci is not None and difference.ci[1] < 0
    counted = [trial for trial in tried if np.isfinite(trial.log_loss)]
    importances = {}
    if len(counted) >= MIN_TRIALS_FOR_IMPORTANCES:
        import optuna

        importances = optuna.importance.get_param_importances(search.study(counted))
    return Tuning(
        trials=tuple(tried),
        best=best + 1,
        settings=tried[best].settings if is_better else {},
        is_better=is_better,
        difference=difference,
        importances=importances,
        battles=int(chosen_on.sum()),
        prompts=len(np.unique(keys[chosen_on])),
        reading=f"{_verdict(tried, best, difference, is_better)} {_what_mattered(importances)}",
        folder=search.folder,
    )


def _verdict(tried: Sequence[Trial], best: int, difference: metrics.Difference | None, is_better: bool) -> str:
    if difference is None:
        return "No setting was better than the default, which is kept."
    gain = metrics.signed(tried[best].log_loss - tried[0].log_loss)
    size = f"log loss {metrics.signed(difference.difference)}"
    interval = difference.reason if difference.ci is None else f"95 %: {metrics.signed_interval(difference.ci)}"
    battles = metrics.describe_battles(difference.n, difference.prompts)
    claim = "is clearly better than" if is_better else "is not clearly better than"
    return (
        f"Trial {best + 1} {claim} the default: {size} ({interval}) on {battles} that it was not chosen on; "
        f"{gain} on those that it was chosen on, where the best of {len(tried)} looks better than it is. "
        f"{'Its settings are used' if is_better else 'The default is kept'}."
    )


def _what_mattered(importances: Mapping[str, float]) -> str:
    if not importances:
        return f"Which settings mattered is said of {MIN_TRIALS_FOR_IMPORTANCES} trials or more."
    return f"What mattered: {', '.join(f'{flag_of(name)} {share:.0%}' for name, share in importances.items())}."

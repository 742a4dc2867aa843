"""``ablate``: the original notebook's experiment on where softmax belongs.

Six rows, five distinct trainings: cross-entropy on logits, on softmaxed logits, on log-softmaxed logits; one epoch or
three; softmax at inference or the raw scores, which the competition's grader clips and renormalises. Every model is
trained once per seed, as a run of its own that is reused or continued when the command is repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import SourceLike
from prefcli.compute.distributed import World
from prefcli.data.tables import clip_and_renormalize
from prefcli.errors import InputError, ModelError
from prefcli.options import TrainOptions
from prefcli.pipeline.encoder_choice import with_encoder
from prefcli.pipeline.stages import read_stage, source_of
from prefcli.pipeline.train import check_files, train
from prefcli.reporting import SILENT, OneOfSeveral, Reporter
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class Setting:
    """One row of the table: what is trained and how it is scored."""

    loss_input: str
    activation: str
    """What is applied to the raw scores at inference: ``softmax`` or ``none``."""
    epochs: int
    """Three epochs have a learning rate schedule of their own, they do not continue the first."""
    reported: float
    """The score that the original notebook reports."""


TABLES = ("ablation.json", "ablation.md")
"""The files that the table is written to."""
SETTINGS = (
    Setting("logits", "softmax", 1, 1.04219),
    Setting("logits", "softmax", 3, 1.07467),
    Setting("softmax", "softmax", 1, 1.04398),
    Setting("log-softmax", "softmax", 1, 1.07435),
    Setting("softmax", "none", 1, 1.35201),
    Setting("softmax", "none", 3, 1.58984),
)


@dataclass(frozen=True)
class Row:
    """A measured row: held-out scores and the difference to the first row.

    Means are over the battles of all seeds together; differences are paired by battle. Intervals resample prompts, each
    with its battles in all seeds: seeds repeat battles, they do not add any.
    """

    setting: Setting
    score: metrics.Score
    by_seed: tuple[float, ...]
    """The log loss of each seed."""
    to_first: metrics.Difference
    """How far the log loss is above the first row's."""

    JSON_PROPERTIES: ClassVar = ("log_loss", "interval", "difference", "difference_interval")

    @property
    def log_loss(self) -> float:
        return self.score.log_loss

    @property
    def interval(self) -> metrics.Interval | None:
        return self.score.log_loss_ci

    @property
    def difference(self) -> float:
        return self.to_first.difference

    @property
    def difference_interval(self) -> metrics.Interval | None:
        return self.to_first.ci


@dataclass(frozen=True)
class Ablation:
    """The table, the prior's log loss, and what the table shows."""

    rows: tuple[Row, ...]
    battles: int
    """Held-out battles, over all seeds; one that several seeds hold out counts for each."""
    prompts: int
    """How many different prompts they have."""
    outcomes: int
    """2 where there are no ties, else 3; see :func:`metrics.two_outcome`."""
    prior_log_loss: float
    seeds: int
    reading: str
    encoder: str
    folder: Path


def ablate(
    source: SourceLike,
    workspace: Workspace,
    options: TrainOptions,
    *,
    seeds: int = 1,
    output: Path | None = None,
    reporter: Reporter = SILENT,
) -> Ablation:
    """Train what is not yet trained and score all six rows; the table is also written as JSON and Markdown.

    Parameters
    ----------
    source, workspace:
        Files of battles with outcomes; where caches are, and the runs if ``output`` is not given.
    options:
        Of all trainings; epochs, loss input and which weights are kept are set by the experiment.
    seeds:
        How many times each model is trained: with ``options.seed``, the one after it, and so on.
    output:
        Folder of the runs and the table.

    Raises
    ------
    InputError
        If nothing is held out to score on, or the architecture has no loss on logits.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}, at least 1 is needed")
    options.check()
    if not options.validation and not options.validation_file:
        raise InputError("an ablation needs held-out battles", hint="Use --validation 0.1 or --validation-file FILE.")
    if options.architecture == "features":
        raise InputError("the ablation is for neural architectures", hint="Use siamese, cross-encoder or reward.")
    options.require_packages("ablate")
    source = source_of(source, workspace)
    check_files(source, workspace, options)
    battles = read_stage(source, workspace, reporter)
    identity = json.dumps([battles.fingerprint, dataclasses.asdict(options)], sort_keys=True)
    name = f"ablation-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"  # a repeated command finds its runs
    folder = output or workspace.root / "ablations" / name
    for table in TABLES:
        files.refuse_to_replace(folder / table, source.paths)
    options = _with_encoder(options, folder, reporter)
    # Rows that differ only at inference share a run.
    all_runs = {
        _run_folder(folder, seed, setting): (seed, setting)
        for seed in range(options.seed, options.seed + seeds)
        for setting in SETTINGS
    }
    missing = {run: both for run, both in all_runs.items() if not (run / runs.VALIDATION).is_file()}
    epochs_left = sum(setting.epochs for _, setting in missing.values())
    noted: set[str] = set()
    for number, (run, (seed, setting)) in enumerate(missing.items(), start=1):
        reporter.note(run.name)
        of_run = OneOfSeveral(reporter, number, len(missing), noted)
        trainings, epochs_left = epochs_left / setting.epochs, 0  # the first one says how long all of them take
        if (run / runs.CONFIG).is_file():
            train(None, workspace, options, resume=str(run), remember=False, reporter=of_run, trainings=trainings)
            continue
        # The last weights, not the best: what more epochs do is part of the question.
        chosen = dataclasses.replace(
            options, seed=seed, loss_input=setting.loss_input, epochs=setting.epochs, keep="last"
        )
        train(
            source, workspace, chosen, output=run, remember=False, command="prefcli ablate", reporter=of_run,
            trainings=trainings,
        )  # fmt: skip
    return evaluate(folder, options.encoder_name, options.seed, seeds)


def _with_encoder(options: TrainOptions, folder: Path, reporter: Reporter) -> TrainOptions:
    """Options with one encoder for all rows: as named, else that of the runs that are there, else the default one.

    Raises
    ------
    InputError
        If the runs that are there have another encoder than the one named.
    """
    runs_there = sorted(config.parent for config in folder.glob(f"seed-*/{runs.CONFIG}"))
    began_with = str(runs.read_config(runs_there[0])["options"]["encoder"]) if runs_there else None
    if options.encoder is None and began_with is not None:
        options = dataclasses.replace(options, encoder=began_with)
        reporter.note(f"going on with the encoder that this ablation began with: {began_with}")
    # Once for all rows: whether the hub can be reached may change between them.
    options, _ = with_encoder(options, World(), reporter)
    if began_with not in (None, options.encoder):
        raise InputError(
            f"the runs there have another encoder: {began_with}, not {options.encoder}",
            where=str(folder),
            hint="Choose another --output.",
        )
    return options


def evaluate(folder: Path, encoder: str, first_seed: int, seeds: int) -> Ablation:
    """Score the six rows from the runs of an encoder below ``folder``, and write the table beside them."""
    all_seeds = range(first_seed, first_seed + seeds)
    held_out = {
        setting: [_read_validation(_run_folder(folder, seed, setting)) for seed in all_seeds] for setting in SETTINGS
    }
    by_seed = held_out[SETTINGS[0]]
    for setting, of_setting in held_out.items():
        for seed, first, other in zip(all_seeds, by_seed, of_setting, strict=True):
            if first.ids != other.ids:
                raise ModelError(
                    "this run and those beside it held out different battles",
                    where=str(_run_folder(folder, seed, setting)),
                    hint=f"Delete {folder}, which an earlier version began, or choose another --output.",
                )
    keys, labels = (np.concatenate([getattr(h, name) for h in by_seed]) for name in ("keys", "labels"))
    outcomes = metrics.count_outcomes(labels)
    rows: list[Row] = []
    first_losses: NDArray[np.float64] | None = None
    for setting in SETTINGS:
        probabilities = np.concatenate([_scores(h.logits, setting, outcomes) for h in held_out[setting]])
        losses = metrics.losses(probabilities, labels)
        first_losses = losses if first_losses is None else first_losses
        rows.append(
            Row(
                setting,
                metrics.score(probabilities, labels, groups=keys, outcomes=outcomes),
                tuple(float(of_seed.mean()) for of_seed in np.split(losses, len(by_seed))),
                metrics.compare(losses, first_losses, keys),
            )
        )
    prompts = len(np.unique(keys))
    ablation = Ablation(
        rows=tuple(rows),
        battles=len(keys),
        prompts=prompts,
        outcomes=outcomes,
        prior_log_loss=float(np.mean([metrics.prior_log_loss(h.labels) for h in by_seed])),
        seeds=seeds,
        encoder=encoder,
        reading=_describe(rows, metrics.too_few_units(len(keys), prompts)),
        folder=folder,
    )
    files.write_text(folder / TABLES[0], files.to_json(ablation, indent=2) + "\n")
    files.write_text(folder / TABLES[1], as_markdown(ablation))
    return ablation


def _read_validation(run: Path) -> runs.HeldOut:
    held_out = runs.read_validation(run)
    if not np.isfinite(held_out.logits).all():
        raise ModelError("the training diverged: its scores are not finite", where=str(run))
    return held_out


def _scores(logits: NDArray[np.float64], setting: Setting, outcomes: int) -> NDArray[np.float64]:
    """The probabilities that are scored, shape ``[n, 3]``."""
    scores = metrics.softmax(logits) if setting.activation == "softmax" else clip_and_renormalize(logits)
    return metrics.two_outcome(scores) if outcomes == 2 else scores


COLUMNS = ("loss input", "at inference", "epochs", "log loss", "95 % interval", "difference to row 1", "reported")


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table as text, under :data:`COLUMNS`."""
    return (
        row.setting.loss_input,
        "softmax" if row.setting.activation == "softmax" else "raw scores",
        str(row.setting.epochs),
        f"{row.log_loss:.4f}",
        "none" if row.interval is None else "{:.4f} to {:.4f}".format(*row.interval),
        _difference(row, metrics.signed(row.difference)),
        f"{row.setting.reported:.5f}",
    )


def _difference(row: Row, difference: str) -> str:
    interval = row.difference_interval
    return difference if interval is None else f"{difference} ({metrics.signed_interval(interval)})"


def title(ablation: Ablation) -> str:
    """What the table is of."""
    battles = metrics.describe_battles(
        ablation.battles, ablation.prompts, "held-out battle", outcomes=ablation.outcomes
    )
    return f"{ablation.encoder}, {metrics.plural(ablation.seeds, 'seed')}: {battles}"


def as_markdown(ablation: Ablation) -> str:
    """The table and what it shows."""
    table = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, ablation.rows)]
    lines = [f"| {' | '.join(line)} |" for line in table]
    about = f"{title(ablation)}; prior {ablation.prior_log_loss:.4f}. {ablation.reading}"
    return "\n".join([*lines, "", about, ""])


def _describe(rows: Sequence[Row], no_interval: str) -> str:
    """What the numbers show, computed from them; ``no_interval`` says why there are no intervals."""
    best, worst = (
        f"{row.setting.loss_input} as loss input, {metrics.plural(row.setting.epochs, 'epoch')}, "
        f"{'softmax' if row.setting.activation == 'softmax' else 'raw scores'} at inference ({row.log_loss:.4f})"
        for row in (pick(rows, key=lambda row: row.log_loss) for pick in (min, max))
    )
    claims = []
    changes = ("softmax before the loss", "log-softmax before it", "submitting raw scores")
    for row, change in zip(rows[2:5], changes, strict=True):
        low, high = row.difference_interval or (-np.inf, np.inf)
        size = f"{abs(row.difference):.4f}"
        verdict = "costs" if low > 0 else "gains" if high < 0 else "makes no clear difference:"
        if not float(size):
            verdict, size = "makes a difference of less than", "0.0001"
        claims.append(f"{change} {verdict} {_difference(row, size)}")
    return (
        f"Best: {best}. Worst: {worst}. "
        f"Against plain cross-entropy for one epoch on the same battles: {'; '.join(claims)}."
        f"{no_interval and f' {no_interval.capitalize()}.'}"
    )


def _run_folder(folder: Path, seed: int, setting: Setting) -> Path:
    return folder / f"seed-{seed}-{setting.loss_input}-{setting.epochs}"

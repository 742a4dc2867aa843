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

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import SourceLike
from prefcli.data.tables import clip_and_renormalize
from prefcli.errors import InputError, ModelError
from prefcli.options import TrainOptions
from prefcli.pipeline.stages import read_stage
from prefcli.pipeline.train import train
from prefcli.reporting import SILENT, Reporter
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
    """A measured row: held-out log loss and difference to the first row, with 95 % bootstrap intervals.

    Means and intervals are over the battles of all seeds together; differences are paired by battle.
    """

    setting: Setting
    log_loss: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]
    """The log loss of each seed."""
    difference: float
    difference_interval: tuple[float, float]


@dataclass(frozen=True)
class Ablation:
    """The table, the prior's log loss, and what the table shows."""

    rows: tuple[Row, ...]
    battles: int
    """Held-out battles, over all seeds."""
    prior_log_loss: float
    seeds: int
    reading: str
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
    options.check()
    if not options.validation and not options.validation_file:
        raise InputError("an ablation needs held-out battles", hint="Use --validation 0.1 or --validation-file FILE.")
    if options.architecture == "features":
        raise InputError("the ablation is for neural architectures", hint="Use siamese or cross-encoder.")
    battles = read_stage(source, workspace, reporter)
    identity = json.dumps([battles.fingerprint, dataclasses.asdict(options)], sort_keys=True)
    name = f"ablation-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"  # a repeated command finds its runs
    folder = output or workspace.root / "ablations" / name
    for seed in range(options.seed, options.seed + seeds):
        for loss_input, epochs in dict.fromkeys((s.loss_input, s.epochs) for s in SETTINGS):
            run = _run_folder(folder, seed, loss_input, epochs)
            if (run / runs.VALIDATION).is_file():
                continue
            reporter.note(run.name)
            if (run / runs.CONFIG).is_file():
                train(None, workspace, options, resume=str(run), remember=False, reporter=reporter)
                continue
            # The last weights, not the best: what more epochs do is part of the question.
            chosen = dataclasses.replace(options, seed=seed, loss_input=loss_input, epochs=epochs, keep="last")
            train(source, workspace, chosen, output=run, remember=False, command="prefcli ablate", reporter=reporter)
    return evaluate(folder, options.seed, seeds)


def evaluate(folder: Path, first_seed: int, seeds: int) -> Ablation:
    """Score the six rows from the runs below ``folder``, and write the table beside them."""
    losses_by_row: list[NDArray[np.float64]] = []
    rows: list[Row] = []
    priors: list[float] = []
    for setting in SETTINGS:
        losses_by_seed = []
        for seed in range(first_seed, first_seed + seeds):
            run = _run_folder(folder, seed, setting.loss_input, setting.epochs)
            held_out = runs.read_validation(run)
            logits, labels = held_out.logits, held_out.labels
            if not np.isfinite(logits).all():
                raise ModelError("the training diverged: its scores are not finite", where=str(run))
            scores = metrics.softmax(logits) if setting.activation == "softmax" else clip_and_renormalize(logits)
            losses_by_seed.append(metrics.losses(scores, labels))
            if setting is SETTINGS[0]:
                priors.append(metrics.prior_log_loss(labels))
        losses = np.concatenate(losses_by_seed)
        losses_by_row.append(losses)
        difference = losses - losses_by_row[0]
        rows.append(
            Row(
                setting,
                float(losses.mean()),
                metrics.bootstrap_interval(losses),
                tuple(float(of_seed.mean()) for of_seed in losses_by_seed),
                float(difference.mean()),
                metrics.bootstrap_interval(difference),
            )
        )
    ablation = Ablation(tuple(rows), len(losses_by_row[0]), float(np.mean(priors)), seeds, _describe(rows), folder)
    files.write_text(folder / "ablation.json", json.dumps(dataclasses.asdict(ablation), indent=2, default=str) + "\n")
    files.write_text(folder / "ablation.md", as_markdown(ablation))
    return ablation


COLUMNS = ("loss input", "at inference", "epochs", "log loss", "95 % interval", "difference to row 1", "reported")


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table as text, under :data:`COLUMNS`."""
    (low, high), (difference_low, difference_high) = row.interval, row.difference_interval
    return (
        row.setting.loss_input,
        "softmax" if row.setting.activation == "softmax" else "raw scores",
        str(row.setting.epochs),
        f"{row.log_loss:.4f}",
        f"{low:.4f} to {high:.4f}",
        f"{row.difference:+.4f} ({difference_low:+.4f} to {difference_high:+.4f})",
        f"{row.setting.reported:.5f}",
    )


def as_markdown(ablation: Ablation) -> str:
    """The table and what it shows."""
    table = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, ablation.rows)]
    lines = [f"| {' | '.join(line)} |" for line in table]
    battles = f"{ablation.battles:,} held-out battles over {ablation.seeds} seed(s)"
    return "\n".join([*lines, "", f"{battles}; prior {ablation.prior_log_loss:.4f}. {ablation.reading}", ""])


def _describe(rows: Sequence[Row]) -> str:
    """Two sentences on what the numbers show, computed from them."""
    best, worst = (
        f"{row.setting.loss_input} as loss input, {row.setting.epochs} epoch{'s' if row.setting.epochs > 1 else ''}, "
        f"{'softmax' if row.setting.activation == 'softmax' else 'raw scores'} at inference ({row.log_loss:.4f})"
        for row in (pick(rows, key=lambda row: row.log_loss) for pick in (min, max))
    )
    claims = []
    changes = ("softmax before the loss", "log-softmax before it", "submitting raw scores")
    for row, change in zip(rows[2:5], changes, strict=True):
        low, high = row.difference_interval
        verdict = "costs" if low > 0 else "gains" if high < 0 else "makes no clear difference:"
        claims.append(f"{change} {verdict} {abs(row.difference):.4f} ({low:+.4f} to {high:+.4f})")
    return (
        f"Best: {best}. Worst: {worst}. "
        f"Against plain cross-entropy for one epoch on the same battles: {'; '.join(claims)}."
    )


def _run_folder(folder: Path, seed: int, loss_input: str, epochs: int) -> Path:
    return folder / f"seed-{seed}-{loss_input}-{epochs}"

"""The seed document's experiment as one command: where softmax belongs.

Six rows, five distinct trainings: cross-entropy on logits, on softmaxed logits, on log-softmaxed logits; one epoch or
three; softmax at inference or the raw scores, which the competition's grader clips and renormalises. Every model is
trained once per seed, as a run of its own that is found again (or continued) when the command is repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import Source
from prefcli.data.tables import clip_and_renormalize
from prefcli.errors import InputError, ModelError
from prefcli.options import TrainOptions
from prefcli.pipeline.stages import read
from prefcli.pipeline.train import train
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes
    ----------
    loss_input:
        What the loss is given.
    activation:
        What is applied to the raw scores at inference: ``softmax`` or ``none``.
    epochs:
        Passes over the data; three are a schedule of their own, not one continued.
    reported:
        The score the seed document reports for it.
    """

    loss_input: str
    activation: str
    epochs: int
    reported: float


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
    """A measured row: means over seeds, with intervals.

    Attributes
    ----------
    setting:
        What was done.
    log_loss:
        Mean over seeds of the held-out log loss.
    interval:
        95 % bootstrap interval of it, over the battles of all seeds together.
    by_seed:
        The log loss of each seed.
    difference:
        Mean difference to the first row on the same battles; 0 for the first row itself.
    difference_interval:
        95 % paired bootstrap interval of the difference.
    """

    setting: Setting
    log_loss: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]
    difference: float
    difference_interval: tuple[float, float]


@dataclass(frozen=True)
class Ablation:
    """The table, its baselines, and what it shows."""

    rows: tuple[Row, ...]
    battles: int
    """Held-out battles, over all seeds."""
    prior_log_loss: float
    seeds: int
    reading: str
    folder: Path


def ablate(
    source: Path | Source,
    workspace: Workspace,
    options: TrainOptions,
    *,
    seeds: int = 1,
    output: Path | None = None,
    reporter: Reporter = SILENT,
) -> Ablation:
    """The seed document's experiment: six ways to place softmax, five trainings a seed; resumable run by run.

    Parameters
    ----------
    source:
        Files of battles with outcomes.
    workspace:
        Where caches live, and the runs if ``output`` is not given.
    options:
        Of all trainings; epochs and the loss's input are set by the experiment.
    seeds:
        How many seeds.
    output:
        Folder of the runs and the table.
    """
    options.check()
    digest = read(source, workspace, reporter).fingerprint
    folder = output or folder_for(workspace.root / "ablations", digest, options)

    def train_one(run: Path, chosen: TrainOptions, resume: bool) -> None:
        reporter.note(f"{run.name}")
        if resume:
            train(None, workspace, chosen, resume=str(run), remember=False, reporter=reporter)
        else:
            train(source, workspace, chosen, output=run, remember=False, command="prefcli ablate", reporter=reporter)

    return run_ablation(folder, options, seeds, train_one)


def folder_for(root: Path, digest: str, options: TrainOptions) -> Path:
    """Where an ablation of these battles with these options lives, so that repeating it finds what is done."""
    known = json.dumps([digest, dataclasses.asdict(options)], sort_keys=True)
    return root / f"ablation-{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def run_ablation(
    folder: Path, options: TrainOptions, seeds: int, train: Callable[[Path, TrainOptions, bool], None]
) -> Ablation:
    """Train what is not there yet, score all six rows.

    Parameters
    ----------
    folder:
        Of the ablation; each training is a run below it.
    options:
        Everything that is the same for all trainings.
    seeds:
        How many times each is trained: with ``options.seed``, the one after it, and so on.
    train:
        ``train(folder, options, resume)`` leaves a run in a folder.

    Raises
    ------
    InputError
        If nothing is held out to score on.
    """
    if not options.validation and not options.validation_file:
        raise InputError("an ablation needs held-out battles", hint="Use --validation 0.1 or --validation-file FILE.")
    if options.architecture == "features":
        raise InputError("the softmax ablation is about neural architectures", hint="Use siamese or cross-encoder.")
    trainings = list(dict.fromkeys((s.loss_input, s.epochs) for s in SETTINGS))
    for seed in range(options.seed, options.seed + seeds):
        for loss_input, epochs in trainings:
            run = _run_of(folder, seed, loss_input, epochs)
            # The last weights, not the best: what more epochs do is part of the question.
            chosen = dataclasses.replace(options, seed=seed, loss_input=loss_input, epochs=epochs, keep="last")
            if not (run / runs.VALIDATION).is_file():
                train(run, chosen, (run / runs.CONFIG).is_file())
    return evaluate(folder, options.seed, seeds)


def evaluate(folder: Path, first_seed: int, seeds: int) -> Ablation:
    """Score the six rows from the runs below ``folder``."""
    each: list[NDArray[np.float64]] = []
    by_seed: list[list[float]] = []
    priors: list[float] = []
    for setting in SETTINGS:
        losses = []
        for seed in range(first_seed, first_seed + seeds):
            run = _run_of(folder, seed, setting.loss_input, setting.epochs)
            held_out = runs.read_validation(run)
            logits, labels = held_out.logits, held_out.labels
            if not np.isfinite(logits).all():
                raise ModelError("a training left scores that are no numbers", where=str(run))
            scores = metrics.softmax(logits) if setting.activation == "softmax" else clip_and_renormalize(logits)
            losses.append(metrics.losses(scores, labels))
            if setting is SETTINGS[0]:
                priors.append(metrics.prior_log_loss(labels))
        each.append(np.concatenate(losses))
        by_seed.append([float(loss.mean()) for loss in losses])
    rows = []
    for setting, losses_, means in zip(SETTINGS, each, by_seed, strict=True):
        difference = losses_ - each[0]
        rows.append(
            Row(
                setting,
                float(losses_.mean()),
                metrics.bootstrap_interval(losses_),
                tuple(means),
                float(difference.mean()),
                metrics.bootstrap_interval(difference),
            )
        )
    prior = float(np.mean(priors))
    ablation = Ablation(tuple(rows), len(each[0]), prior, seeds, _reading(rows), folder)
    files.write_text(folder / "ablation.json", json.dumps(dataclasses.asdict(ablation), indent=2, default=str) + "\n")
    files.write_text(folder / "ablation.md", as_markdown(ablation))
    return ablation


def as_markdown(ablation: Ablation) -> str:
    """The table for a document."""
    lines = [
        "| loss is given | at inference | epochs | log loss | 95 % interval | difference to row 1 | the document's |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ablation.rows:
        s = row.setting
        lines.append(
            f"| {s.loss_input} | {'softmax' if s.activation == 'softmax' else 'raw scores'} | {s.epochs} "
            f"| {row.log_loss:.4f} | {row.interval[0]:.4f} to {row.interval[1]:.4f} "
            f"| {row.difference:+.4f} ({row.difference_interval[0]:+.4f} to {row.difference_interval[1]:+.4f}) "
            f"| {s.reported:.5f} |"
        )
    lines.append("")
    lines.append(
        f"{ablation.battles:,} held-out battles over {ablation.seeds} seed(s); prior {ablation.prior_log_loss:.4f}. "
        f"{ablation.reading}"
    )
    return "\n".join(lines) + "\n"


def _reading(rows: Sequence[Row]) -> str:
    """Two sentences that say what the numbers show, computed from them."""
    best, worst = (pick(rows, key=lambda row: row.log_loss) for pick in (min, max))
    first = (
        f"The best row gives the loss {best.setting.loss_input} for {_epochs(best)} ({best.log_loss:.4f}), the worst "
        f"gives it {worst.setting.loss_input} for {_epochs(worst)} and "
        f"{'submits raw scores' if worst.setting.activation == 'none' else 'applies softmax'} ({worst.log_loss:.4f})."
    )
    claims = []
    for row, what in (
        (rows[2], "Softmax before the loss"),
        (rows[3], "log-softmax before it"),
        (rows[4], "submitting raw scores"),
    ):
        low, high = row.difference_interval
        verdict = "costs" if low > 0 else "gains" if high < 0 else "makes no clear difference:"
        claims.append(f"{what} {verdict} {abs(row.difference):.4f} ({low:+.4f} to {high:+.4f})")
    return f"{first} Against plain cross-entropy for one epoch on the same battles: {'; '.join(claims)}."


def _epochs(row: Row) -> str:
    return f"{row.setting.epochs} epoch{'s' if row.setting.epochs > 1 else ''}"


def _run_of(folder: Path, seed: int, loss_input: str, epochs: int) -> Path:
    return folder / f"seed-{seed}-{loss_input}-{epochs}"

"""The verbs as functions: what the command line and a Python program both call.

Every function takes plain arguments and a :class:`~prefcli.workspace.Workspace`, tells a reporter what it does, and
returns plain data. Nothing here prints. Data flows ``read -> (preprocess) -> train | predict -> score``; what is read
and what is preprocessed is cached in the workspace, and each function says which stages it goes through. ``train`` and
``predict`` have files of their own here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefcli import card, files, hub, metrics, runs, tables
from prefcli import eda as eda_room
from prefcli.errors import InputError
from prefcli.hub import check_push
from prefcli.merging import Merged, merge
from prefcli.options import TrainOptions
from prefcli.pipeline.estimation import estimate_prediction, estimate_training
from prefcli.pipeline.exporting import export
from prefcli.pipeline.prediction import Answered, Predicted, latest_run, predict, predict_lines
from prefcli.pipeline.stages import Preprocessed, Preview, preprocess, preview, read, treat
from prefcli.pipeline.training import Trained, train
from prefcli.readers import Source
from prefcli.reporting import SILENT, Reporter
from prefcli.workspace import Workspace

if TYPE_CHECKING:
    from prefcli.ablation import Ablation


def eda(
    source: Path | Source,
    workspace: Workspace,
    *,
    top: int = 5,
    test: Path | Source | None = None,
    max_length: int = 512,
    report: Path | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> eda_room.Eda:
    """Numbers about battles, through the stage ``battles``.

    Parameters
    ----------
    source:
        One file or several.
    workspace:
        Where caches live.
    top:
        How many pairs and models to list.
    test:
        A second file, to look for prompts that stand in both.
    max_length:
        A token limit to tell about.
    report:
        Write the numbers there as an HTML page.
    force:
        Overwrite ``report``.
    """
    if top < 1:
        raise InputError(f"--top is {top}, at least 1 is needed")
    if max_length < 1:
        raise InputError(f"--max-length is {max_length}, at least 1 is needed")
    if report is not None:
        files.refuse_to_overwrite(report, force)
    battles = read(source, workspace, reporter)
    keys = read(test, workspace, reporter).table(["prompt_key"])["prompt_key"].to_numpy() if test else None
    found = eda_room.explore(battles.batches(), top, max_length=max_length, test_keys=keys)
    if report is not None:
        from prefcli.report import page

        files.write_text(report, page.render(found, Source.of(source).title))
        reporter.note(f"wrote {report}")
    return found


def score(
    predictions: Path, labels: Path, *, renormalize: bool = False, seed: int = 0, reporter: Reporter = SILENT
) -> metrics.Score:
    """Score predictions against the truth, joined by id. Memory does not grow with the files.

    Parameters
    ----------
    predictions:
        A file with ``id`` and the three winner columns as probabilities.
    labels:
        A file with ``id`` and the three winner columns as truth: Kaggle's ``train.csv`` will do.
    renormalize:
        Apply the grader's rule to rows that are not probabilities: clip to [1e-15, 1], divide by the sum.
    seed:
        Of the bootstrap.

    Raises
    ------
    InputError
        If the files do not fit together, or the predictions are not probabilities; the first rows are named.
    """
    with reporter.track("scoring", None) as progress:

        def counted() -> Iterator[tuple[metrics.Array, metrics.Labels]]:
            for guesses, outcomes in tables.matched(predictions, labels, renormalize=renormalize):
                yield guesses, outcomes
                progress.advance(len(outcomes))

        return metrics.score_stream(counted(), seed=seed)


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
    from prefcli import ablation

    options.check()
    digest = read(source, workspace, reporter).fingerprint
    folder = output or ablation.folder_for(workspace.root / "ablations", digest, options)

    def train_one(run: Path, chosen: TrainOptions, resume: bool) -> None:
        reporter.note(f"{run.name}")
        if resume:
            train(None, workspace, chosen, resume=str(run), remember=False, reporter=reporter)
        else:
            train(source, workspace, chosen, output=run, remember=False, command="prefcli ablate", reporter=reporter)

    return ablation.conduct(folder, options, seeds, train_one)


def push(
    run: str,
    name: str,
    workspace: Workspace,
    *,
    private: bool = True,
    license: str | None = None,
    reporter: Reporter = SILENT,
) -> hub.Kept:
    """Bring a finished run to the hub: all that prediction needs, its card and its course, no checkpoints.

    Parameters
    ----------
    run:
        By folder or name.
    name:
        ``owner/name``; made when missing, a run that is there is replaced.
    private:
        Whether only its owner can see it.
    license:
        To be said in the card: ``apache-2.0``, ``cc-by-4.0``, ...

    Raises
    ------
    InputError, ModelError, NetworkError
        If the run is not whole, nobody is logged in who may write there, or the hub does not take it.
    """
    folder = workspace.find_run(run)
    names = runs.published(folder)
    hub.check_push(name)
    if license is not None:
        for member in dict.fromkeys((folder, *runs.members(folder))):
            card.state_license(member, license)
    reporter.note(f"pushing {len(names)} files of {folder} to {name} ({'private' if private else 'public'})")
    return hub.push(folder, names, name, private=private)


@dataclass(frozen=True)
class Demonstrated:
    """What the demo found."""

    eda: eda_room.Eda
    run: Path
    score: metrics.Score
    best_log_loss: float


def demo(folder: Path, workspace: Workspace, *, force: bool = False, reporter: Reporter = SILENT) -> Demonstrated:
    """Make synthetic battles in ``folder`` and run all five verbs on them with the built-in encoder.

    Raises
    ------
    InputError
        If the folder holds something and ``force`` is not given.
    """
    from prefcli import demo as demo_room

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise InputError(f"{folder} already exists", hint="Name another folder, or overwrite it with --force.")
    made = demo_room.write(folder)
    reporter.note(f"wrote {made.train}, {made.test} and {made.truth}")
    found = eda(made.train, workspace, reporter=reporter)
    preprocess(made.train, workspace, reporter=reporter)
    trained = train(None, workspace, TrainOptions(encoder="tiny"), command="prefcli demo", reporter=reporter)
    predictions = folder / "preds.csv"
    predict(made.test, workspace, predictions, force=True, reporter=reporter)
    return Demonstrated(found, trained.run, score(predictions, made.truth), made.best_log_loss)


__all__ = [
    "Answered",
    "Demonstrated",
    "Merged",
    "Predicted",
    "Preprocessed",
    "Preview",
    "Trained",
    "ablate",
    "check_push",
    "demo",
    "eda",
    "estimate_prediction",
    "estimate_training",
    "export",
    "latest_run",
    "merge",
    "predict",
    "predict_lines",
    "preprocess",
    "preview",
    "push",
    "read",
    "score",
    "train",
    "treat",
]

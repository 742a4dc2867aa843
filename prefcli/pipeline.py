"""The five verbs as five functions: what the command line and a Python program both call.

Every function takes plain arguments and a :class:`~prefcli.workspace.Workspace`, tells a reporter what it does, and
returns plain data. Nothing here prints. Data flows ``read -> (preprocess) -> train | predict -> score``; what is read
and what is preprocessed is cached in the workspace, and each function below says which stages it goes through.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefcli import blending, files, metrics, readers, runs, tables
from prefcli import eda as eda_room
from prefcli.battles import TEXT_FIELDS, ReadCounts, check_unique_ids, joined
from prefcli.calibration import Calibration
from prefcli.distributed import connected, from_environment
from prefcli.errors import InputError, PrefcliError
from prefcli.options import ACTIVATIONS, TrainOptions
from prefcli.readers import Source
from prefcli.reporting import SILENT, Reporter
from prefcli.runs import Data
from prefcli.workspace import Stage, StageWriter, Workspace

if TYPE_CHECKING:
    from prefcli.ablation import Ablation
    from prefcli.devices import Placement

READ_VERSION = 1
"""Raise when the same file would be read into other battles."""
TREAT_VERSION = 1
"""Raise when the preprocess stage's columns change; changed text raises its treatment's own version."""


# Stages


def read(source: Path | Source, workspace: Workspace, reporter: Reporter = SILENT) -> Stage:
    """The battles of a file (or of several) as the cached stage ``battles``.

    Raises
    ------
    InputError
        If a file is not one of battles.
    """
    source = Source.of(source)
    battle_file = _opened(source)

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        counts = ReadCounts()
        with reporter.track(f"reading {source}", None) as progress:
            for batch, counted in battle_file.batches():
                writer.write(batch)
                counts += counted
                progress.advance(batch.num_rows)
        return dataclasses.asdict(counts)

    stage = workspace.stage(
        "battles",
        version=READ_VERSION,
        source=battle_file.digest(),
        options=battle_file.options(),
        produce=produce,
        reporter=reporter,
    )
    counts = stage.metadata["counts"]
    how = f"{battle_file.description}; {'reused from the cache' if stage.reused else 'read now'}"
    reporter.note(f"{source}: {counts['battles']:,} battles, {counts['labelled']:,} with an outcome ({how})")
    for warning in ReadCounts(**counts).warnings():
        reporter.warn(f"{source}: {warning}")
    return stage


def _opened(source: Source) -> readers.BattleFile:
    """The files of battles; those that cannot be read twice are copied to a temporary file on the way."""
    with files.spooling():
        return readers.open_battles(source)


@dataclass(frozen=True)
class Preprocessed:
    """What ``preprocess`` made: the stage, and what the treatment did."""

    stage: Stage
    text: str
    source_sha256: str
    counts: Mapping[str, Any]


def preprocess(
    source: Path | Source,
    workspace: Workspace,
    *,
    text: str = "nltk",
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> Preprocessed:
    """Treat the text of every battle; cached as the stage ``preprocess``, and remembered for ``train``.

    Parameters
    ----------
    source:
        Files of battles.
    workspace:
        Where caches live.
    text:
        Name of a treatment, see :data:`prefcli.text.TREATMENTS`.
    workers:
        Processes; by default one per core.
    """
    from prefcli import text as text_room

    text_room.check(text)
    source = Source.of(source)
    battles = read(source, workspace, reporter)
    stage = treat(battles, workspace, text, workers=workers, reporter=reporter)
    digest = str(battles.metadata["input"])
    workspace.remember(
        "preprocess",
        {"stage": stage.path.name, "source": source.to_json(), "source_sha256": digest, "text": text},
    )
    return Preprocessed(stage, text, digest, stage.metadata["counts"])


def treat(
    battles: Stage, workspace: Workspace, text: str, *, workers: int | None = None, reporter: Reporter = SILENT
) -> Stage:
    """The battles with their text treated: the cached stage ``preprocess``."""
    from prefcli import parallel
    from prefcli import text as text_room

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        total = text_room.TextCounts()
        with reporter.track(f"treating text ({text})", battles.rows) as progress:
            started = time.monotonic()
            for batch, counts in parallel.treat_stream(battles.batches(), text, workers=workers):
                writer.write(batch)
                total += counts
                rate = total.bytes_in / 1e6 / max(time.monotonic() - started, 1e-9)
                progress.advance(batch.num_rows, f"{rate:.1f} MB/s")
        return dataclasses.asdict(total)

    stage = workspace.stage(
        "preprocess",
        version=TREAT_VERSION,
        source=battles.fingerprint,
        options=text_room.identity(text),
        produce=produce,
        reporter=reporter,
    )
    counts = stage.metadata["counts"]
    how = "reused from the cache" if stage.reused else "done"
    reporter.note(
        f"text treated as {text}: {counts['bytes_in'] / 1e6:.1f} -> {counts['bytes_out'] / 1e6:.1f} MB ({how})"
    )
    if counts["emptied_answers"]:
        reporter.warn(
            f"{counts['emptied_answers']:,} answers have no text left after the treatment {text} "
            f"({counts['emptied']:,} turns): only stop words, symbols or code"
        )
    return stage


@dataclass(frozen=True)
class Preview:
    """A battle's fields before and after the treatment, turns joined."""

    id: str
    fields: Mapping[str, tuple[str, str]]


def preview(source: Path | Source, *, text: str = "nltk", battles: int = 3) -> list[Preview]:
    """What a treatment does to the first battles; nothing is cached."""
    from prefcli import text as text_room

    text_room.check(text)
    shown: list[Preview] = []
    for batch, _ in _opened(Source.of(source)).batches():
        before = batch.slice(0, battles - len(shown))
        after, _ = text_room.treat_batch(before, text)
        columns = {name: (joined(before.column(name)), joined(after.column(name))) for name in TEXT_FIELDS}
        for row, name in enumerate(before.column("id").to_pylist()):
            shown.append(Preview(name, {field: (old[row], new[row]) for field, (old, new) in columns.items()}))
        if len(shown) == battles:
            break
    return shown


# eda


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


# train


@dataclass(frozen=True)
class Trained:
    """What ``train`` made.

    Attributes
    ----------
    run:
        The run's folder.
    validation:
        Every metric on the held-out battles, None when nothing was held out.
    seconds:
        The whole command's time.
    battles_per_second:
        Of the training steps alone.
    """

    run: Path
    validation: dict[str, Any] | None
    seconds: float
    battles_per_second: float
    only_prior: bool
    """Whether the model learnt nothing beyond the shares of the outcomes."""
    speaks: bool
    """Whether this process is the one that reports (of several under ``torchrun``)."""


def train(
    source: Path | Source | None,
    workspace: Workspace,
    options: TrainOptions,
    *,
    origins: Mapping[str, str] | None = None,
    output: Path | None = None,
    resume: str | None = None,
    force: bool = False,
    remember: bool = True,
    command: str = "",
    reporter: Reporter = SILENT,
) -> Trained:
    """Train a model; through the stages ``battles`` and ``preprocess`` into a run's folder.

    Parameters
    ----------
    source:
        Files of battles with outcomes. None takes what ``preprocess`` last left, else ``train.csv`` here.
    workspace:
        Where caches and runs live.
    options:
        How to train; with ``resume`` the run's own options are used instead.
    origins:
        Where each option came from, kept in the run.
    output:
        The run's folder; by default a new one in the workspace.
    resume:
        A run to continue, by folder or name.
    force:
        Overwrite ``output``.
    remember:
        Whether ``predict`` without ``--model`` shall take this run.
    command:
        The command line, kept in the run.

    Raises
    ------
    InputError, ModelError, NetworkError
        If the data, the encoder or the options do not allow it.
    Interrupted
        On SIGINT or SIGTERM, after a checkpoint.
    """
    from prefcli import encoders, experiment

    started = time.monotonic()
    world = from_environment()
    speaker: Reporter = reporter if world.is_first else SILENT
    with connected(world), contextlib.ExitStack() as claims:
        if resume is not None:
            folder = workspace.find_run(resume)
            if world.is_first:
                claims.enter_context(runs.claimed(folder))
            _verify(folder, going_on=True)
            config = runs.read_config(folder)
            options = TrainOptions(**config["options"])
            with world.first_does():
                data = _data_again(config["data"], options, workspace, speaker)
            under_way = True
        else:
            options.check()
            options = _with_absolute_paths(options)
            with world.first_does():
                if options.architecture != "features":
                    encoders.locate(options.encoder)  # a name that leads nowhere is said before any work is done
                data = _find_data(source, workspace, options, speaker)
            options = dataclasses.replace(options, text=data.text)
            folder, under_way = world.gather(
                _claim(output, force, options, data, workspace, claims, speaker) if world.is_first else None
            )[0]
        result = experiment.conduct(
            folder,
            workspace,
            data,
            dataclasses.replace(options, text=data.text),
            origins=origins or {},
            command=command,
            resume=under_way,
            world=world,
            reporter=speaker,
        )
        if world.is_first:
            if remember:
                workspace.remember("train", {"run": str(folder.resolve())})
            runs.finish(folder)
    return Trained(
        folder,
        result.validation,
        time.monotonic() - started,
        result.battles_per_second,
        result.only_prior,
        world.is_first,
    )


def _claim(
    output: Path | None,
    force: bool,
    options: TrainOptions,
    data: Data,
    workspace: Workspace,
    claims: contextlib.ExitStack,
    reporter: Reporter,
) -> tuple[Path, bool]:
    """The run's folder, held against other processes, and whether a killed call of this very command began it."""

    def same(config: Mapping[str, Any]) -> bool:
        known = {name: config["data"].get(name) for name in data.identity}
        return known == data.identity and TrainOptions(**config["options"]) == options

    folder = output or runs.new_folder(workspace.runs, options)
    claims.enter_context(runs.claimed(folder))
    under_way = runs.begin(folder, force=force, same=same)
    if under_way:
        _verify(folder, going_on=True)
        reporter.note(f"{folder} holds this run, unfinished: continuing it")
    return folder, under_way


def _verify(folder: Path, *, going_on: bool = False) -> None:
    """Check a run's files, and those of its folds, against their checksums."""
    for member in dict.fromkeys((folder, *runs.members(folder))):
        runs.verify(member, going_on=going_on)


def _with_absolute_paths(options: TrainOptions) -> TrainOptions:
    """Files that options name are found again when the run is continued from elsewhere."""

    def absolute(name: str | None) -> str | None:
        return None if name is None else str(Path(name).absolute())

    return dataclasses.replace(
        options, validation_file=absolute(options.validation_file), soft_labels=absolute(options.soft_labels)
    )


def _find_data(source: Path | Source | None, workspace: Workspace, options: TrainOptions, reporter: Reporter) -> Data:
    """What to train on, preprocessed: the named files, what ``preprocess`` last left, or ``train.csv`` here."""
    latest = workspace.latest("preprocess") if source is None else None
    if latest and options.text in (None, latest["text"]) and options.architecture != "features":
        found = Source.from_json(latest["source"])
        reporter.note(f"training on what preprocess last left: {found}, text {latest['text']}")
        training = workspace.open_stage(latest["stage"])
        digest, text = latest["source_sha256"], latest["text"]
    else:
        if latest:
            source = Source.from_json(latest["source"])
            reporter.note(f"training on the battles preprocess last read: {source}, text {options.treatment}")
        elif source is None:
            source = Path("train.csv")
            if not source.exists():
                raise InputError(
                    f"no battles to train on: nothing preprocessed in {workspace.root}, and no train.csv here",
                    hint="Name a file: prefcli train FILE.",
                )
            reporter.note("training on train.csv in this folder")
        found = Source.of(source)
        battles = read(found, workspace, reporter)
        training = treat(battles, workspace, options.treatment, reporter=reporter)
        digest, text = str(battles.metadata["input"]), options.treatment
    return Data(
        training, found, digest, text, _validation_data(options, text, workspace, reporter), _soft_digest(options)
    )


def _soft_digest(options: TrainOptions) -> str | None:
    if options.soft_labels is None:
        return None
    path = Path(options.soft_labels)
    try:
        return files.sha256(path)
    except OSError as error:
        raise InputError(f"cannot read the soft labels: {error.strerror}", where=str(path)) from None


def _data_again(known: Mapping[str, Any], options: TrainOptions, workspace: Workspace, reporter: Reporter) -> Data:
    """The data of a run that is continued: its cached stage, or the same source treated again."""
    source, digest, text = Source.from_json(known["source"]), known["source_sha256"], known["text"]
    try:
        training = workspace.open_stage(known["stage"])
    except PrefcliError:
        battles = read(source, workspace, reporter)
        if battles.metadata["input"] != digest:
            raise InputError(
                "the battles this run was trained on have changed",
                where=str(source),
                hint="Put the same file back to continue, or train anew.",
            ) from None
        training = treat(battles, workspace, text, reporter=reporter)
    validation = _validation_data(options, text, workspace, reporter)
    data = Data(training, source, digest, text, validation, _soft_digest(options))
    for name, what, file in (
        ("soft_labels_sha256", "soft labels", options.soft_labels),
        ("validation_input", "validation battles", options.validation_file),
    ):
        if data.identity[name] != known.get(name):
            raise InputError(
                f"the {what} this run was trained with have changed",
                where=str(file),
                hint="Put the same file back to continue, or train anew.",
            )
    return data


def _validation_data(options: TrainOptions, text: str, workspace: Workspace, reporter: Reporter) -> Stage | None:
    if options.validation_file is None:
        return None
    return treat(read(Path(options.validation_file), workspace, reporter), workspace, text, reporter=reporter)


# predict


@dataclass(frozen=True)
class Predicted:
    """What ``predict`` wrote."""

    output: Path
    battles: int
    models: tuple[str, ...]
    weights: tuple[float, ...]
    """Of each model's log probabilities; for one model the inverse of its temperature."""
    tie_shift: float
    calibration: str
    """What was fitted on which battles, in words."""
    seconds: float
    battles_per_second: float
    speaks: bool
    """Whether this process is the one that reports (of several under ``torchrun``)."""


def predict(
    source: Path | Source,
    workspace: Workspace,
    output: Path,
    *,
    models: Sequence[str] = (),
    swap_average: bool = False,
    activation: str = "softmax",
    calibrated: bool = True,
    calibrate: Path | Source | None = None,
    precision: str = "auto",
    device: str = "auto",
    fast_attention: bool = True,
    workers: int | None = None,
    limit: int | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Predicted:
    """Probabilities for every battle of a file, in its order, ids as they were spelled.

    Streams: memory does not grow with the file. A run's folds are averaged with equal weights. Several runs are blended
    with weights, one run is given a temperature, both fitted on their (common) validation battles and kept only if that
    helps; battles whose prompt stands in ``source`` are left out of the fit.

    Parameters
    ----------
    source:
        Files of battles, with or without models and winners.
    workspace:
        Where caches and runs live.
    output:
        CSV or Parquet, by its name.
    models:
        Runs, by folder or name; by default the latest one.
    swap_average:
        Average over both orders of the answers.
    activation:
        ``softmax``, or ``none`` for raw scores.
    calibrated:
        Whether weights and temperature are fitted; otherwise weights are equal.
    calibrate:
        Labelled battles like those to be predicted: temperature and share of ties are refitted on them. Those that
        share a prompt with ``source`` are left out.
    precision, device, fast_attention:
        As for training.
    workers:
        Processes for the text treatment; by default one per core.
    limit:
        Predict the first N battles only.
    force:
        Overwrite ``output``.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"--activation is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    writer_of = tables.writer_for(output)
    files.refuse_to_overwrite(output, force)
    if activation == "none" and calibrate is not None:
        raise InputError("--calibrate makes probabilities, --activation none does not", hint="Leave one of them out.")
    started = time.monotonic()
    world = from_environment()
    speaker: Reporter = reporter if world.is_first else SILENT
    folders = [workspace.find_run(name) for name in models] or [_latest_run(workspace, speaker)]
    texts = tuple(_text_of(folder) for folder in folders)
    with connected(world):
        with world.first_does():
            battles = read(source, workspace, speaker)
            check_unique_ids(_ids(battles), str(Source.of(source)))
            stages = _treated(battles, texts, workspace, workers, speaker)
            sample = read(calibrate, workspace, speaker) if calibrate is not None else None
            sample_stages = _treated(sample, texts, workspace, workers, speaker) if sample is not None else []

        for folder in folders:
            _verify(folder)

        from prefcli import devices, inference
        from prefcli import models as model_room

        place = functools.cache(lambda: devices.place(device, precision, world.local_rank))
        members = [
            inference.Member(
                tuple(model_room.load(m, place, fast_attention=fast_attention) for m in runs.members(folder)), text
            )
            for folder, text in zip(folders, texts, strict=True)
        ]
        speaker.note(f"predicting with {', '.join(f.name for f in folders)}{_on(folders, place)}")
        keys = battles.table(["prompt_key"])["prompt_key"].to_numpy()
        mixing = blending.from_validation(folders, keys, speaker) if calibrated else Calibration.equal(len(folders))
        mixings = [mixing]
        if sample is not None:
            with speaker.track("calibrating", sample.rows * len(members)) as progress:
                guesses = (
                    mixing.apply(predictions)
                    for _, predictions in inference.stream(
                        members, sample_stages, sample.rows, swap_average=swap_average, world=world,
                        done=progress.advance,
                    )
                )  # fmt: skip
                name = str(Source.of(calibrate or source))
                mixings.append(blending.from_sample(sample, guesses, keys, name, speaker))

        total = min(battles.rows, limit or battles.rows)
        with contextlib.ExitStack() as stack:
            writer = None
            if world.is_first:
                writer = stack.enter_context(
                    writer_of(stack.enter_context(files.atomic(output, needs=tables.BYTES_PER_ROW * total)))
                )
            progress = stack.enter_context(speaker.track("predicting", total * len(members)))
            begun = time.monotonic()
            for ids, predictions in inference.stream(
                members,
                stages,
                total,
                swap_average=swap_average,
                activation=activation,
                world=world,
                done=progress.advance,
            ):
                if writer is not None:
                    if activation == "none":
                        writer.write(ids, np.mean(predictions, axis=0))
                        continue
                    for mixing in mixings:
                        predictions = [mixing.apply(predictions)]
                    writer.write(ids, predictions[0])
            rate = total / max(time.monotonic() - begun, 1e-9)
    if activation == "none":
        speaker.warn("raw scores, not probabilities, were written: score them with --renormalize")
    scale = mixings[1].weights[0] if len(mixings) > 1 else 1.0
    return Predicted(
        output=output,
        battles=total,
        models=tuple(f.name for f in folders),
        weights=tuple(weight * scale for weight in mixings[0].weights),
        tie_shift=mixings[-1].tie_shift,
        calibration="; ".join(str(mixing) for mixing in mixings) if activation == "softmax" else "none",
        seconds=time.monotonic() - started,
        battles_per_second=rate,
        speaks=world.is_first,
    )


def _text_of(folder: Path) -> str:
    return TrainOptions(**runs.read_config(folder)["options"]).treatment


def _treated(
    battles: Stage, texts: Sequence[str], workspace: Workspace, workers: int | None, reporter: Reporter
) -> list[Stage]:
    """For each of the treatments the battles so treated; each is made once."""
    made = {text: treat(battles, workspace, text, workers=workers, reporter=reporter) for text in dict.fromkeys(texts)}
    return [made[text] for text in texts]


def _on(folders: Sequence[Path], place: Callable[[], Placement]) -> str:
    """Where neural runs compute; nothing to say of others."""
    kinds = {runs.read_config(folder)["options"]["architecture"] for folder in folders}
    return "" if kinds == {"features"} else f" on {place()}"


def _ids(stage: Stage) -> Iterator[str]:
    for batch in stage.batches(["id"]):
        yield from batch.column("id").to_pylist()


def _latest_run(workspace: Workspace, reporter: Reporter) -> Path:
    latest = workspace.latest("train")
    if latest is None:
        raise InputError(
            f"no run in {workspace.root} yet",
            hint="Train one first (prefcli train FILE), or name one with --model.",
        )
    reporter.note(f"using the latest run: {latest['run']}")
    return workspace.find_run(latest["run"])


# score


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


# ablate


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


# demo


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

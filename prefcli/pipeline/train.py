"""``train``: from files of battles, or what ``preprocess`` left, to a run's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefcli import readers
from prefcli.battles import PathLike, Source, SourceLike, user_path
from prefcli.compute.distributed import World, from_environment, process_group
from prefcli.data.selection import RunData, select
from prefcli.encoders.tiny import TINY
from prefcli.errors import InputError, PrefcliError
from prefcli.metrics import Score
from prefcli.options import TrainOptions
from prefcli.pipeline.stages import INVENTED_IDS, preprocess_stage, read_stage
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub, runs
from prefcli.storage.paths import check_inputs
from prefcli.storage.workspace import Workspace

if TYPE_CHECKING:
    from prefcli.training.experiment import SourceResult


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` returns."""

    run: Path
    """The run's folder."""
    encoder: str | None
    """The encoder that was trained; None for ``features``."""
    validation: Score | None
    """The scores on the held-out battles; None where nothing was held out."""
    seconds: float
    """The whole command's time."""
    battles_per_second: float
    """Of the training steps alone."""
    outcomes: tuple[float, ...]
    """How many training battles had the outcomes A, B, tie; soft labels are counted by their shares."""
    unseen: tuple[str, ...]
    """The outcomes that none of them had; each gets :data:`prefcli.metrics.UNSEEN_PROBABILITY`."""
    sources: tuple[SourceResult, ...] = ()
    """The sources of the votes, the largest first; empty where there is one."""


def train(  # noqa: PLR0913  (what the command line gives)
    source: SourceLike | None,
    workspace: Workspace,
    options: TrainOptions,
    *,
    origins: Mapping[str, str] | None = None,
    output: PathLike | None = None,
    resume: PathLike | None = None,
    force: bool = False,
    remember: bool = True,
    command: str = "",
    reporter: Reporter = SILENT,
    trainings: float = 1.0,
) -> TrainResult:
    """Train a model into a run's folder, through the stages ``battles`` and ``preprocess``.

    Parameters
    ----------
    source:
        Files of battles with outcomes. None takes what ``preprocess`` last left, else ``train.csv`` here.
    workspace:
        Where caches and runs live.
    options:
        How to train; with ``resume`` the run's own options are used instead.
    output, force:
        The run's folder, by default a new one in the workspace; whether to overwrite it.
    resume:
        A run to continue, by folder or name.
    remember:
        Whether ``predict`` without ``--model`` uses this run.
    origins, command:
        Where each option came from, and the command line; kept in the run.
    trainings:
        How many trainings of this size the whole command does from this one on; 0 says nothing of its time.

    Raises
    ------
    InputError, ModelError, NetworkError
        If the data, the encoder or the options do not allow it.
    Interrupted
        On SIGINT or SIGTERM, after a checkpoint.
    """
    from prefcli.training import experiment
    from prefcli.training.context import TrainContext

    started = time.monotonic()
    world = from_environment()
    if not world.is_main_process:
        reporter = SILENT
    with process_group(world), contextlib.ExitStack() as locks:
        if resume is not None:
            folder, data, options, under_way = _resume(str(resume), workspace, world, locks, reporter)
        else:
            folder, data, options, under_way = _start(source, workspace, options, output, force, world, locks, reporter)
        if world.is_main_process and remember:
            workspace.record_run(folder)
        if under_way:
            begun = runs.read_config(folder)["data"]
            # Runs that do not say by which rule they were split were split by the first.
            version = int(begun.get("split_version", 1))
            data = dataclasses.replace(data, split_version=version, by_source="sources" in begun)
        try:
            training_data, folds = select(folder, data, options, reporter)
            context = TrainContext(
                folder=folder,
                workspace=workspace,
                data=data,
                training_data=training_data,
                options=options,
                origins=origins or {},
                command=command,
                resume=under_way,
                world=world,
                reporter=reporter,
                trainings=trainings,
            )
            result = experiment.run_experiment(context, folds)
        except BaseException:
            if world.is_main_process:
                runs.remove_if_empty(folder)
            raise
        if world.is_main_process:
            if remember:
                workspace.remember("train", {"run": str(folder.resolve())})
            runs.finish(folder)
            if not options.keep_checkpoints:
                runs.remove_checkpoints(folder)
    return TrainResult(
        folder,
        None if options.architecture == "features" else options.encoder,
        result.validation,
        time.monotonic() - started,
        result.battles_per_second,
        result.outcomes,
        result.unseen,
        result.sources,
    )


_Started = tuple[Path, RunData, TrainOptions, bool]
"""A run's folder, locked against other processes, its data and options, and whether it holds a beginning."""


def _resume(name: str, workspace: Workspace, world: World, locks: contextlib.ExitStack, reporter: Reporter) -> _Started:
    if name.startswith(hub.PREFIX):
        raise InputError(
            "a run of the hub holds no checkpoint to continue from",
            hint=f"Train anew with its options: --config takes its {runs.CONFIG}.",
        )
    folder = workspace.find_run(name)
    if world.is_main_process:
        locks.enter_context(runs.locked(folder))
    runs.verify(folder, resuming=True)
    config = runs.read_config(folder)
    if runs.runtime_of(config) == "onnx":
        raise InputError(f"{folder} is an exported run", hint="Continue the run that it was exported from.")
    options = TrainOptions(**config["options"])
    if not runs.is_unfinished(folder) and not runs.has_checkpoints(folder):
        raise InputError(
            f"the training of {folder} is finished, and it holds no checkpoint: there is nothing to continue",
            hint=f"Train anew: --config {folder / runs.CONFIG} has its options, --epochs N wins over them.",
        )
    options.require_packages()
    with world.main_process_first():
        data = data_of_run(config["data"], options, workspace, reporter)
    return folder, data, options, True


def _start(
    source: SourceLike | None,
    workspace: Workspace,
    options: TrainOptions,
    output: PathLike | None,
    force: bool,
    world: World,
    locks: contextlib.ExitStack,
    reporter: Reporter,
) -> _Started:
    """A new run's folder; or the one that a killed call of the very same command began."""
    from prefcli.pipeline.encoder_choice import with_encoder

    options.check()
    options.require_packages()
    check_files(source, workspace, options)
    folder = user_path(output) if output else None
    if folder is not None and world.is_main_process:
        runs.refuse_folder(folder, force=force)
    options = with_absolute_paths(options)
    # A name that cannot be found is refused before any work is done.
    options, _ = with_encoder(options, world, reporter, began=None if force else folder)
    with world.main_process_first():
        data = find_data(source, workspace, options, reporter)
    options = dataclasses.replace(options, text=data.text)

    def is_same(config: Mapping[str, Any]) -> bool:
        identity = {name: config["data"].get(name) for name in data.identity}
        is_read_alike = Source.from_json(config["data"]["source"]).reading == data.source.reading
        return is_read_alike and identity == data.identity and TrainOptions(**config["options"]) == options

    under_way = False
    if world.is_main_process:
        folder = folder or runs.new_folder(workspace.runs, options)
        inputs = [*data.source.paths, *files_of(options), data.training.path]
        if options.encoder_name != TINY:  # which is built in, also where a folder has its name
            inputs.append(Path(options.encoder_name))
        files.refuse_to_replace(folder, inputs)
        locks.enter_context(runs.locked(folder))
        under_way = runs.start(folder, force=force, is_same=is_same)
        if under_way:
            runs.verify(folder, resuming=True)
            reporter.note(f"{folder} holds this run, unfinished: continuing it")
    folder, under_way = world.gather((folder, under_way))[0]
    return folder, data, options, under_way


def with_absolute_paths(options: TrainOptions) -> TrainOptions:
    """Files that options name are found again when the run is continued from elsewhere."""
    names = {"validation_file": options.validation_file, "soft_labels": options.soft_labels}
    absolute: dict[str, Any] = {option: name and str(Path(name).absolute()) for option, name in names.items()}
    return dataclasses.replace(options, **absolute)


def files_of(options: TrainOptions) -> list[Path]:
    """The files of battles and of probabilities that options name."""
    return [Path(name) for name in (options.validation_file, options.soft_labels) if name]


def check_files(source: SourceLike | None, workspace: Workspace, options: TrainOptions) -> None:
    """Refuse files that are not there, before anything is read or downloaded.

    Raises
    ------
    InputError
        Also if no file is named and there is nothing to train on.
    """
    if source is None and not workspace.latest("preprocess") and not Path("train.csv").exists():
        raise InputError(
            f"no battles to train on: nothing preprocessed in {workspace.root}, and no train.csv here",
            hint="Name a file: prefcli train FILE.",
        )
    check_inputs([*(Source.of(source).paths if source is not None else ()), *files_of(options)])


def find_data(source: SourceLike | None, workspace: Workspace, options: TrainOptions, reporter: Reporter) -> RunData:
    """What to train on, preprocessed: the named files, what ``preprocess`` last left, or ``train.csv`` here."""
    latest = workspace.latest("preprocess") if source is None else None
    if latest and options.text in (None, latest["text"]) and options.architecture != "features":
        battle_source = Source.from_json(latest["source"])
        reporter.note(f"training on what preprocess last left: {battle_source}, text {latest['text']}")
        training = workspace.open_stage(latest["stage"])
        digest, text = latest["source_sha256"], latest["text"]
    else:
        if latest:
            source = Source.from_json(latest["source"])
            reporter.note(f"training on the battles preprocess last read: {source}, text {options.normalisation}")
        elif source is None:
            source = Path("train.csv")
            reporter.note("training on train.csv in this folder")
        battle_source = Source.of(source)
        battles = read_stage(battle_source, workspace, reporter)
        training = preprocess_stage(battles, workspace, options.normalisation, reporter=reporter)
        digest, text = str(battles.metadata["input"]), options.normalisation
    data = _with_named_files(RunData(training, battle_source, digest, text), options, workspace, reporter)
    if options.soft_labels is not None:
        _check_soft_labels(data, Path(options.soft_labels), workspace, reporter)
    return data


def data_of_run(record: Mapping[str, Any], options: TrainOptions, workspace: Workspace, reporter: Reporter) -> RunData:
    """The data of a run that is resumed: its cached stage, or the same source preprocessed again."""
    source, digest, text = Source.from_json(record["source"]), record["source_sha256"], record["text"]
    try:
        training = workspace.open_stage(record["stage"])
    except PrefcliError:
        battles = read_stage(source, workspace, reporter)
        if battles.metadata["input"] != digest:
            raise InputError(
                "the battles this run was trained on have changed",
                where=str(source),
                hint="Put the same file back to continue, or train anew.",
            ) from None
        training = preprocess_stage(battles, workspace, text, reporter=reporter)
    data = _with_named_files(RunData(training, source, digest, text), options, workspace, reporter)
    for name, what, file in (
        ("soft_labels_sha256", "soft labels", options.soft_labels),
        ("validation_input", "validation battles", options.validation_file),
    ):
        if data.identity[name] != record.get(name):
            raise InputError(
                f"the {what} this run was trained with have changed",
                where=str(file),
                hint="Put the same file back to continue, or train anew.",
            )
    return data


def _with_named_files(data: RunData, options: TrainOptions, workspace: Workspace, reporter: Reporter) -> RunData:
    """The data with the battles of ``--validation-file`` and the digest of ``--soft-labels``."""
    validation, digest = None, None
    if options.validation_file is not None:
        source = _without_absent_source(data.source.like(options.validation_file), reporter)
        battles = read_stage(source, workspace, reporter)
        validation = preprocess_stage(battles, workspace, data.text, reporter=reporter)
    if options.soft_labels is not None:
        try:
            digest = files.sha256(Path(options.soft_labels))
        except OSError as error:
            raise InputError(f"cannot read the soft labels: {error.strerror}", where=options.soft_labels) from None
    return dataclasses.replace(data, validation=validation, soft_labels_sha256=digest)


def _without_absent_source(held_out: Source, reporter: Reporter) -> Source:
    """How validation battles are read: those of other voters need no column that says whose votes they are."""
    if held_out.source is None:
        return held_out
    without = dataclasses.replace(held_out, source=None)
    readers.open_battles(without)  # what else is wrong with it
    try:
        readers.open_battles(held_out)
    except InputError:
        reporter.note(f"{held_out} has no column {held_out.source}: predicted as no source of its own")
        return without
    return held_out


def _check_soft_labels(data: RunData, path: Path, workspace: Workspace, reporter: Reporter) -> None:
    """Refuse soft labels for battles without ids, unless they are known to be predictions of the very same file."""
    if not data.training.metadata["counts"].get(INVENTED_IDS):
        return
    if _source_of(path, workspace) != data.source_sha256:
        raise InputError(
            "soft labels are joined by id, and the battles have no ids, or repeated ones",
            where=str(data.source),
            hint=f"Give the battles ids before both are made, or let prefcli predict this very file into {path}.",
        )
    reporter.note(f"{path} holds predictions of {data.source}: joined by the numbers of its rows")


def _source_of(predictions: Path, workspace: Workspace) -> str:
    """SHA-256 of the battles that predictions are of, if it is known: what ``predict`` wrote, or a run's validation."""
    if predictions.name == runs.VALIDATION:
        with contextlib.suppress(PrefcliError):
            data = runs.read_config(predictions.parent)["data"]
            return "" if data.get("validation_file") else str(data["source_sha256"])
    return workspace.source_of_predictions(predictions)

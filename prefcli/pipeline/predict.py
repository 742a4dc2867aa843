"""``predict``: from files of battles, or from lines as they arrive, to probabilities."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli.battles import PathLike, Source, SourceLike, user_path
from prefcli.compute import devices
from prefcli.compute.distributed import from_environment, process_group
from prefcli.data import tables
from prefcli.errors import InputError, plural
from prefcli.options import PredictOptions, TrainOptions
from prefcli.outcomes import OUTCOMES, WINNER_COLUMNS
from prefcli.pipeline.stages import CHOSEN, files_of, preprocess_stage, read_stage, source_of
from prefcli.prediction import blending, inference
from prefcli.prediction.calibration import Calibration
from prefcli.prediction.stacking import Covariates
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub, runs
from prefcli.storage.paths import check_inputs, check_output
from prefcli.storage.workspace import Stage, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.prediction.predictor import Answer, Predictor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PredictResult:
    """What ``predict`` wrote."""

    output: Path
    battles: int
    models: tuple[str, ...]
    weights: tuple[float, ...]
    """Of each model's log probabilities; for one model the inverse of its temperature."""
    tie_shift: float
    stack: dict[str, Any] | None
    """What ``calibrate`` changed beyond weights and tie shift: by source, and by length of the answers; None if nothing
    more helped."""
    calibration: str
    """What was fitted on which battles, in words."""
    unseen: tuple[tuple[str, ...], ...]
    """For each model, the outcomes that it never saw in training: A, B, tie."""
    labelled: int
    """How many of the file's battles have an outcome."""
    trained_on: tuple[int | None, ...]
    """For each model, how many of the battles have a prompt that it was trained on; None if the run does not say."""
    seconds: float
    battles_per_second: float


def predict(
    source: SourceLike,
    workspace: Workspace,
    output: PathLike,
    options: PredictOptions,
    *,
    calibrate: SourceLike | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> PredictResult:
    """Write probabilities for every battle of a file, in its order, with unchanged ids.

    Memory does not grow with the file. A run's folds are averaged. Several runs are blended with weights, one run gets
    a temperature, both fitted on their (common) held-out battles whose prompts do not occur in ``source``, and kept
    only if that helps.

    Parameters
    ----------
    source:
        Files of battles, with or without models and winners.
    workspace, options, force:
        Where caches and runs are; how to predict; whether to overwrite ``output``.
    output:
        CSV, Parquet or JSON lines, by its name.
    calibrate:
        Labelled battles like those to be predicted: temperature and share of ties are refitted on them. Those that
        share a prompt with ``source`` are left out.

    Raises
    ------
    InputError, ModelError
        If options, battles or output do not allow it; if a run cannot be loaded.
    """
    output, source = user_path(output), source_of(source, workspace)
    calibrate = None if calibrate is None else source.like(files_of(calibrate, workspace))
    _check(options, output, source, calibrate, force)
    started = time.monotonic()
    world = from_environment()
    if not world.is_main_process:
        reporter = SILENT
    folders = find_runs(workspace, options.models, reporter)
    for folder in folders:
        files.refuse_to_replace(output, [part / name for part in runs.all_folders(folder) for name in runs.TABLES])
    names = hub.run_names(options.models, folders)
    with process_group(world):
        with world.main_process_first():
            battles, stages, sample = read_stages(source, calibrate, folders, workspace, options, reporter)
        request = devices.DeviceRequest(options.device, options.precision, world.local_rank)
        with reporter.track("loading models", None):
            members = inference.open_runs(folders, options, request)
        reporter.note(f"predicting with {', '.join(names)}{placement(folders, request)}")
        if options.swap_average and all(map(_is_reward, folders)):
            reporter.note("--swap-average changes nothing: swapped answers have swapped probabilities anyway")
        unseen = describe_unseen(folders, names, reporter, as_source=options.as_source)
        stream = functools.partial(inference.stream, members, world=world, swap_average=options.swap_average)
        keys = prompt_keys(stages)
        calibrations = [blending.from_options(folders, keys, reporter, options)]
        if calibrate is not None:
            fit = functools.partial(
                blending.from_sample, sample[0], predicted=keys, name=str(calibrate), reporter=reporter,
                trained=_training_prompts(folders), unseen=calibrations[0].unseen,
            )  # fmt: skip
            with reporter.track("calibrating", sample[0].rows * inference.models_in(members)) as progress:
                calibrations.append(_refit(fit, calibrations[0], sample, stream, inference.advancing(progress, world)))
        calibration = "; ".join(map(str, calibrations)) if options.activation == "softmax" else "none"
        total = min(len(keys), options.limit or len(keys))
        trained_on = count_trained_on(folders, names, keys[:total], reporter)
        begun = time.monotonic()
        with reporter.track("predicting", total * inference.models_in(members)) as progress:
            predictions = stream(
                stages, total, activation=options.activation, done=inference.advancing(progress, world)
            )
            covariates = _covariates(calibrations[-1], stages, total, reporter)
            combined = _combine(predictions, calibrations, options.activation, covariates)
            has_chosen = battles.metadata["options"][CHOSEN] and options.activation == "softmax"
            chosen = battles.table(["label"])["label"].to_numpy() if has_chosen else None
            _write(combined, output if world.is_main_process else None, total, chosen)
        seconds = time.monotonic() - begun
        if world.is_main_process:
            workspace.record_predictions(output, folders, str(battles.metadata["input"]), calibration)
    if options.activation == "none":
        reporter.warn("raw scores, not probabilities, were written: score them with --renormalize")
    blend, *refit = calibrations
    scale = refit[0].weights[0] if refit else 1.0
    return PredictResult(
        output=output,
        battles=total,
        models=tuple(names),
        weights=tuple(weight * scale for weight in blend.weights),
        tie_shift=calibrations[-1].tie_shift,
        stack=None if calibrations[-1].stack is None else calibrations[-1].stack.to_json(),
        calibration=calibration,
        unseen=unseen,
        labelled=int(battles.metadata["counts"]["labelled"]),
        trained_on=trained_on,
        seconds=time.monotonic() - started,
        battles_per_second=total / max(seconds, 1e-9),
    )


def _is_reward(folder: Path) -> bool:
    return runs.read_config(folder)["options"]["architecture"] == "reward"


def _check(options: PredictOptions, output: Path, source: Source, calibrate: Source | None, force: bool) -> None:
    """Refuse what cannot work before anything is read."""
    options.check()
    tables.writer_for(output)
    inputs = [*source.paths, *(calibrate.paths if calibrate else ())]
    check_output(output, inputs, force=force)
    check_inputs(inputs)
    for flag, value in (("--calibrate", calibrate), ("--temperature", options.temperature)):
        if options.activation == "none" and value is not None:
            raise InputError(f"{flag} needs probabilities: it cannot be combined with --activation none")


def find_runs(workspace: Workspace, models: Sequence[str], reporter: Reporter = SILENT) -> list[Path]:
    """The folders of the named runs, or of the one that ``train`` made last in this workspace.

    Raises
    ------
    InputError
        If there is no such run.
    MissingPackage
        If packages that it needs are not installed.
    """
    if models:
        return _that_can_predict([workspace.find_run(name) for name in models])
    latest = workspace.latest("train")
    if latest is None or not isinstance(latest.get("run"), str):
        raise InputError(
            f"no run in {workspace.root} yet", hint="Train one first (prefcli train FILE), or name one with --model."
        )
    reporter.note(f"using the latest run: {latest['run']}")
    return _that_can_predict([workspace.find_run(latest["run"])])


def _that_can_predict(folders: list[Path]) -> list[Path]:
    for folder in folders:
        runs.require_packages(folder)
    return folders


def read_stages(
    source: SourceLike,
    calibrate: SourceLike | None,
    folders: Sequence[Path],
    workspace: Workspace,
    options: PredictOptions,
    reporter: Reporter,
) -> tuple[Stage, list[Stage], list[Stage]]:
    """The battles; for each run, those to predict and those to calibrate on, with its normalised text."""
    texts = [TrainOptions(**runs.read_config(folder)["options"]).normalisation for folder in folders]

    def preprocess(battles: Stage) -> list[Stage]:
        stages = {
            text: preprocess_stage(battles, workspace, text, workers=options.workers, reporter=reporter)
            for text in dict.fromkeys(texts)
        }
        return [stages[text] for text in texts]

    usual = next(filter(None, map(runs.reading_of, folders)), None)
    battles = read_stage(source, workspace, reporter, preferred="test", outcomes=False, usual=usual)
    stages = preprocess(battles)
    if calibrate is None:
        return battles, stages, []
    held_out = source_of(source, workspace).like(files_of(calibrate, workspace))
    sample = read_stage(held_out, workspace, reporter, usual=usual)
    return battles, stages, preprocess(sample)


def prompt_keys(stages: Sequence[Stage]) -> NDArray[np.int64]:
    """The prompt keys of battles, shape ``[n]``; all stages hold the same battles."""
    return stages[0].table(["prompt_key"])["prompt_key"].to_numpy()


def describe_unseen(
    folders: Sequence[Path], names: Sequence[str], reporter: Reporter, *, as_source: str | None = None
) -> tuple[tuple[str, ...], ...]:
    """The outcomes that each run never saw in training, and messages: about them, and as which source it predicts."""
    unseen_by_run = []
    for folder, name in zip(folders, names, strict=True):
        unseen: set[int] = set()
        for part in runs.all_folders(folder):
            config = runs.read_config(part)
            lacking = runs.unseen_outcomes(config)
            if not unseen.issuperset(lacking):
                where = name if part == folder else f"{name}/{part.name}"
                reporter.note(f"{where}: {runs.describe_unseen(lacking, round(sum(config['data']['outcomes'])))}")
            unseen.update(lacking)
        config = runs.read_config(folder)
        if (sources := runs.sources_of(config)) is not None:
            unseen.update(runs.unseen_as(config, as_source))
            named = "" if as_source else "; --as-source NAME predicts as one of them"
            count = len(sources.names)
            reporter.note(f"{name} knows {count:,} sources and predicts {sources.describe(as_source)}{named}")
        if runs.lacks_unseen(config):
            reporter.warn(
                f"{name} was trained without ties by an earlier release, so it gives them a probability near 0: "
                "--calibrate FILE fits their share, or train it again"
            )
        unseen_by_run.append(tuple(OUTCOMES[outcome] for outcome in sorted(unseen)))
    return tuple(unseen_by_run)


def count_trained_on(
    folders: Sequence[Path],
    names: Sequence[str],
    predicted: NDArray[np.int64],
    reporter: Reporter,
    *,
    what: str = "battles",
    so: str = "a score on them is too good",
) -> tuple[int | None, ...]:
    """How many of the battles to predict have a prompt that each run was trained on; a warning says so.

    ``what`` are the battles called in it, and ``so`` is what follows for them.
    """
    counts: list[int | None] = []
    for folder, name in zip(folders, names, strict=True):
        prompts = runs.training_prompts(folder)
        counts.append(None if prompts is None else int(np.isin(predicted, prompts).sum()))
        if counts[-1]:
            reporter.warn(f"{counts[-1]:,} of {len(predicted):,} {what} have a prompt that {name} was trained on: {so}")
    return tuple(counts)


def _training_prompts(folders: Sequence[Path]) -> NDArray[np.int64]:
    """Keys of the prompts that any of the runs was trained on, as far as they say."""
    return np.concatenate([np.empty(0, np.int64), *(p for f in folders if (p := runs.training_prompts(f)) is not None)])


def _refit(
    fit: Callable[..., Calibration],
    blend: Calibration,
    sample: Sequence[Stage],
    stream: Callable[..., Iterator[tuple[pa.Array, list[Array]]]],
    done: Callable[[int], None],
) -> Calibration:
    """A second calibration, of the blended probabilities, from a labelled sample."""
    return fit(probabilities=(blend.apply(of_runs) for _, of_runs in stream(sample, sample[0].rows, done=done)))


def _covariates(fit: Calibration, stages: Sequence[Stage], total: int, reporter: Reporter) -> Covariates | None:
    """What a calibration needs to know of the first ``total`` battles besides their predictions."""
    if fit.stack is None:
        return None
    battles, sources = Covariates.of(stages[0]).take(slice(total)), fit.stack.sources
    if sources and (others := int((battles.codes(sources) == len(sources)).sum())):
        reporter.warn(
            f"{others:,} of {plural(len(battles.doublings), 'battle')} {'is' if others == 1 else 'are'} of a source "
            "that the sample lacks or has too few battles of: predicted as all of the sample"
        )
    return battles


def _combine(
    predictions: Iterator[tuple[pa.Array, list[Array]]],
    calibrations: Sequence[Calibration],
    activation: str,
    battles: Covariates | None,
) -> Iterator[tuple[pa.Array, Array]]:
    """One prediction from all runs': calibrated probabilities, or the mean of raw scores."""
    done = 0
    for ids, of_runs in predictions:
        rows = slice(done, done := done + len(ids))
        if activation == "none":
            yield ids, np.asarray(np.mean(of_runs, axis=0))
            continue
        for calibration in calibrations:
            of_runs = [calibration.apply(of_runs, None if battles is None else battles.take(rows))]
        yield ids, of_runs[0]


def _write(
    batches: Iterator[tuple[pa.Array, Array]], output: Path | None, total: int, chosen: NDArray[np.int8] | None
) -> None:
    """Compute all batches, on every rank; the one with an ``output`` writes them.

    ``chosen`` are the labels of the chosen answers, where the file says which they are.
    """
    if output is None:
        for _ in batches:
            pass
        return
    names = WINNER_COLUMNS if chosen is None else (*WINNER_COLUMNS, tables.CHOSEN_COLUMN)
    writer = tables.writer_for(output)
    with files.atomic(output, needs=tables.BYTES_PER_ROW * total) as path, writer(path, names) as append:
        done = 0
        for ids, probabilities in batches:
            values = probabilities
            if chosen is not None:
                labels = chosen[done : done + len(ids)]
                values = np.column_stack([probabilities, tables.probability_of_chosen(probabilities, labels)])
            append(ids, values)
            done += len(ids)


def predict_lines(
    lines: IO[bytes],
    answers: IO[bytes],
    workspace: Workspace,
    options: PredictOptions,
    *,
    reading: Source | None = None,
    reporter: Reporter = SILENT,
) -> tuple[int, int]:
    """Answer battles written as JSON lines, each as soon as it arrives; nothing is cached.

    Parameters
    ----------
    lines:
        One battle per line, a JSON object in any layout that prefcli reads.
    answers:
        Gets a line for each: ``id``, the three probabilities and perhaps ``p_chosen``, or ``id`` (null if the line has
        none), ``line`` and ``error``; flushed at once.
    options:
        How to predict; ``activation``, ``limit`` and ``workers`` are not used. The temperature is fitted without the
        prompt of the current battle.
    reading:
        How the lines are read, as a source of no files; by default as the run's training battles were.

    Returns
    -------
    How many lines were answered, and how many of them with an error.
    """
    return write_answers(open_predictor(workspace, options, reporter).answers(lines, reading), answers)


def open_predictor(workspace: Workspace, options: PredictOptions, reporter: Reporter) -> Predictor:
    """The runs that options name, in memory; messages say which they are and what is fitted on held-out battles.

    Raises
    ------
    InputError, ModelError
        If options do not allow it; if a run cannot be loaded.
    """
    from prefcli.prediction.predictor import Predictor

    options.check()
    folders = find_runs(workspace, options.models, reporter)
    names = hub.run_names(options.models, folders)
    predictor = Predictor(folders, options)
    reporter.note(f"answering with {', '.join(names)}")
    describe_unseen(folders, names, reporter, as_source=options.as_source)
    # What it says of the fit; each battle's own leaves out the battle's prompt.
    blending.from_options(folders, np.empty(0, dtype=np.int64), reporter, options)
    return predictor


def write_answers(batches: Iterator[list[Answer]], output: IO[bytes]) -> tuple[int, int]:
    """Write answers as JSON lines, flushed as they come; how many there were, and how many of them errors."""
    total = failed = 0
    for batch in batches:
        output.write(b"".join(files.to_json(answer.value).encode() + b"\n" for answer in batch))
        output.flush()
        total += len(batch)
        failed += sum(answer.failed for answer in batch)
    return total, failed


def placement(folders: Sequence[Path], request: devices.DeviceRequest) -> str:
    """Where neural runs compute, as `` on ...``; empty for others."""
    runtimes = {runs.runtime_of(runs.read_config(folder)) for folder in folders}
    places = ["ONNX Runtime"] if "onnx" in runtimes else []
    places += [str(request.placement)] if "torch" in runtimes else []
    return f" on {' and '.join(places)}" if places else ""

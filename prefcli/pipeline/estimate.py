"""``--estimate``: how long ``train`` or ``predict`` will take and how much memory, from a sample of the work.

Reading, text normalisation, tokenising and loading are done for real: their caches stay, everything else is deleted.
Training steps, boosting and prediction are timed on a sample of the battles and scaled to all of them. The sample is
spread over the lengths of the battles, because that is what their cost depends on. Peak memory is what the process
has taken after the longest battles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli import encoders
from prefcli.battles import TEXT_FIELDS, Source, SourceLike
from prefcli.compute import devices
from prefcli.compute.distributed import World, from_environment, process_group
from prefcli.data.selection import Fold, select, take
from prefcli.errors import InputError, Interrupted, plural
from prefcli.options import PredictOptions, TrainOptions
from prefcli.pipeline.predict import find_runs, prompt_keys, read_stages
from prefcli.pipeline.train import check_files, find_data, with_absolute_paths
from prefcli.prediction import blending, inference
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, hub
from prefcli.storage.paths import check_inputs
from prefcli.storage.workspace import Stage, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.training.context import TrainContext

MIN_STEPS, MAX_STEPS = 6, 20
"""Training steps that are timed: a third of all of them, within these bounds."""
MAX_SECONDS = 60.0
"""Fewer than :data:`MAX_STEPS` are timed if they would take longer."""
MIN_SECONDS = 5.0
"""The sample of a prediction grows until it takes at least this long, or holds all battles."""
NEIGHBOURS = 4
"""Battles of like length that are sampled together, because batches hold battles of like length."""
ROUND_POWERS = {0: 0.8, 5_000: 0.6, 50_000: 1.15}
"""From so many battles on, the time of a round of boosting grows with such a power of their number: first what does not
depend on it weighs less and less, then the bins of all rows outgrow the caches. See ``docs/benchmarks.md``."""
RANGE = 0.8, 1.25
"""Lowest and highest real time as a share of the estimate, from ``benchmarks/estimates.py``."""


@dataclass(frozen=True)
class Estimate:
    """What a command is expected to cost."""

    seconds: float
    """Of the command if it were started now, as its own ``--json`` will report them."""
    interval: tuple[float, float]
    """Lowest and highest ``seconds`` to expect at this machine's current load."""
    kept_seconds: float
    """What the cached stages took (reading, text, tokens) that were made for the estimate: not part of ``seconds``."""
    parts: dict[str, float]
    """``seconds`` by what they are spent on."""
    pieces: int
    timed: int
    """Optimizer steps (of `features` and of a prediction: battles) in all, and how many of them were timed."""
    memory_mb: float
    """Peak of the host memory that one process takes, in MB (10^6 bytes)."""
    processes: int
    """How many processes work together; each takes up to ``memory_mb``."""
    cuda_mb: float | None
    """Peak of the tensors on a GPU, of the process that needs most; None without one."""
    encoder: str | None = None
    """The encoder that would be trained; None for ``features`` and for a prediction."""


@dataclass(frozen=True)
class _Timing:
    """What a sample of the work shows."""

    parts: dict[str, float]
    """Seconds that all of the work takes, by part."""
    pieces: int
    timed: int
    """See :class:`Estimate`."""
    seconds: float
    """How long the sample took; it is no part of the work."""
    more_memory_mb: float = 0.0
    """Host memory that all of the work takes beside what the sample took."""


class _TimedWorkspace(Workspace):
    """A workspace that measures the time spent on stages that were not cached yet."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seconds = 0.0

    def stage(self, name: str, **arguments: Any) -> Stage:
        started = time.perf_counter()
        stage = super().stage(name, **arguments)
        if not stage.reused:
            self.seconds += time.perf_counter() - started
        return stage


def estimate_training(
    source: SourceLike | None, workspace: Workspace, options: TrainOptions, *, reporter: Reporter = SILENT
) -> Estimate:
    """How long :func:`~prefcli.pipeline.train` would take with the same arguments, and how much memory.

    Raises
    ------
    InputError, ModelError, NetworkError
        As training does.
    Interrupted
        On SIGINT or SIGTERM.
    """
    from prefcli.pipeline.encoder_choice import with_encoder
    from prefcli.training.context import TrainContext

    started = time.perf_counter()
    world = from_environment()
    reporter = reporter if world.is_main_process else SILENT
    timed_workspace = _TimedWorkspace(workspace.root)
    options.check()
    check_files(source, workspace, options)
    dataclasses.replace(options, tracker=None).require_packages()
    options = with_absolute_paths(options)
    boosted = options.architecture == "features"
    with process_group(world), contextlib.ExitStack() as stack:
        began = time.perf_counter()
        options, encoder_source = with_encoder(options, world, reporter)
        if encoder_source == hub.DOWNLOADED:
            timed_workspace.seconds += time.perf_counter() - began
        with world.main_process_first():
            data = find_data(source, timed_workspace, options, reporter)
        options = dataclasses.replace(options, text=data.text, tracker=None)
        temporary = stack.enter_context(files.temporary_directory(workspace.root)) if world.is_main_process else None
        folder: Path = world.gather(temporary)[0]
        training_data, folds = select(folder, data, options, SILENT)
        context = TrainContext(folder, timed_workspace, data, training_data, options, {}, "", False, world, SILENT)
        try:
            timing = (_time_boosting if boosted else _time_neural_training)(context, folds, reporter)
        except Interrupted as interrupted:
            number = interrupted.exit_code - 128
            raise Interrupted(number, "interrupted while timing: nothing but caches is left") from None
        world.barrier()  # the folder is there until all processes are done with it
        estimate = _estimate(started, timing, timed_workspace, world)
        return estimate if boosted else dataclasses.replace(estimate, encoder=options.encoder)


def estimate_prediction(
    source: SourceLike,
    workspace: Workspace,
    options: PredictOptions,
    *,
    calibrate: SourceLike | None = None,
    reporter: Reporter = SILENT,
) -> Estimate:
    """How long :func:`~prefcli.pipeline.predict` would take with the same arguments, and how much memory.

    Raises
    ------
    InputError, ModelError
        As prediction does.
    """
    options.check()
    check_inputs([*Source.of(source).paths, *(Source.of(calibrate).paths if calibrate is not None else ())])
    world = from_environment()
    reporter = reporter if world.is_main_process else SILENT
    timed_workspace = _TimedWorkspace(workspace.root)
    folders = find_runs(workspace, options.models, reporter)
    started = time.perf_counter()  # a run that was downloaded above stays on this machine
    with process_group(world):
        with world.main_process_first():
            _, stages, sample = read_stages(source, calibrate, folders, timed_workspace, options, reporter)
        request = devices.DeviceRequest(options.device, options.precision, world.local_rank)
        members = inference.open_runs(folders, options, request)
        keys = prompt_keys(stages)
        blending.from_options(folders, keys, SILENT, options)
        total = min(len(keys), options.limit or len(keys))

        def predict(batches: list[pa.RecordBatch]) -> None:
            for member, batch in zip(members, batches, strict=True):
                inference.predict_batch(member, batch, swap_average=options.swap_average)

        reporter.note(f"timing a sample of {plural(total, 'battle')}")
        timing = _time_prediction(predict, stages, total, world)
        if sample:
            timing.parts["calibrating"] = timing.parts["predicting"] * sample[0].rows / total
        return _estimate(started, timing, timed_workspace, world)


def _estimate(started: float, timing: _Timing, workspace: _TimedWorkspace, world: World) -> Estimate:
    around = time.perf_counter() - started - timing.seconds - workspace.seconds
    parts = {"around": around, **timing.parts}
    seconds = sum(parts.values())
    memory = world.gather(_peak_memory())
    return Estimate(
        seconds=seconds,
        interval=(RANGE[0] * seconds, RANGE[1] * seconds),
        kept_seconds=workspace.seconds,
        parts=parts,
        pieces=timing.pieces,
        timed=timing.timed,
        memory_mb=max(host for host, _ in memory) + timing.more_memory_mb,
        processes=world.size,
        cuda_mb=max((cuda for _, cuda in memory if cuda is not None), default=None),
    )


def _peak_memory() -> tuple[float, float | None]:
    """The largest amount of memory that this process has taken so far, on the host and on its GPU, in MB."""
    cuda = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        cuda = torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource
    except ImportError:  # not on Windows
        return math.nan, cuda
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6, cuda


def _time_neural_training(context: TrainContext, folds: Sequence[Fold], reporter: Reporter) -> _Timing:
    """Time a short training of the first fold; the other folds are as large."""
    from prefcli.training import loop, pretraining
    from prefcli.training.fit_neural import NeuralFitter

    spec = NeuralFitter(context, folds).spec(folds[0], "")
    began = time.perf_counter()
    options, held_out = spec.options, spec.validation
    once = dataclasses.replace(options, epochs=1, max_steps=0, max_time=0.0, eval_every=0, checkpoint_every=0)
    sample = dataclasses.replace(spec, validation=None, options=once, reporter=SILENT)

    def battles_per_second(rows: NDArray[np.intp]) -> float:
        train, targets = spec.train.take(rows), spec.targets[rows]
        return loop.fit(dataclasses.replace(sample, train=train, targets=targets)).battles_per_second

    by_length = np.argsort(spec.lengths, kind="stable")
    # The longest battles warm up: no step takes more time or memory.
    max_step_seconds = options.batch_size / battles_per_second(by_length[-options.batch_size :])
    gc.collect()  # what DistributedDataParallel hung on the parameters goes with it
    steps = spec.world.gather(int(min(MAX_STEPS, spec.total_steps / 3, MAX_SECONDS / max_step_seconds)))[0]
    rows = _spread(by_length, max(steps, MIN_STEPS) * options.batch_size)
    steps = math.ceil(len(rows) / options.batch_size)
    reporter.note(f"timing {steps} steps of {spec.total_steps * len(folds):,}")
    sampling = time.perf_counter()
    rate = battles_per_second(rows)
    writing = time.perf_counter() - sampling - len(rows) / rate

    epochs = math.ceil(spec.total_steps / spec.batches_per_epoch)
    training = spec.battles_until(spec.total_steps) / rate
    if options.max_time:
        training = min(training, options.max_time * 60)
    validations = epochs + (spec.total_steps // options.eval_every if options.eval_every else 0)
    validation = 0.0
    if held_out is not None:
        predict, lengths = partial(loop.predict_shared, spec, both_orders=True), spec.model.lengths(held_out)
        validation, _ = _time_all(held_out.take, predict, lengths, spec.world)
    every = options.checkpoint_every
    checkpoints = 1 + (spec.total_steps // every if every else int(training / loop.CHECKPOINT_SECONDS))
    # The sample wrote the weights once, and once a checkpoint, which holds the weights and two moments of each.
    writes = ((epochs if held_out is None else validations) + 3 * checkpoints) / 4
    parts = {"training": training, "validation": validation * validations, "writing": writing * writes}
    total = spec.total_steps + options.pretrain
    if options.pretrain:
        timed = min(options.pretrain, MIN_STEPS)
        short = dataclasses.replace(once, pretrain=timed)
        of_rows = dataclasses.replace(sample, train=spec.train.take(rows), targets=spec.targets[rows], options=short)
        source = encoders.locate(options.encoder_name)
        parts["pre-training"] = spec.battles_until(options.pretrain) / pretraining.pretrain(of_rows, source)
        steps += timed
    parts = {name: seconds * len(folds) for name, seconds in parts.items()}
    return _Timing(parts, total * len(folds), steps, time.perf_counter() - began)


def _time_boosting(context: TrainContext, folds: Sequence[Fold], reporter: Reporter) -> _Timing:
    """Time `features` on a part of the first fold. How many rounds all battles will take cannot be known before."""
    from prefcli.models import features
    from prefcli.models.features import booster, statistics
    from prefcli.training.fit_features import battle_sources

    booster.import_lightgbm()  # takes as long for all battles as for some
    began = time.perf_counter()
    pool, train = context.training_data, folds[0].train
    size = len(train) // 2
    if len(train) >= features.SMALL_DATASET:  # from there on the booster is built differently
        size = min(max(size, features.SMALL_DATASET), 2 * features.SMALL_DATASET)
    if not size:
        raise InputError(f"{plural(len(train), 'battle')}: too few to time a part of them")
    reporter.note(f"timing the boosting of {size:,} of {len(train):,} battles")
    parts = {}
    if context.world.is_main_process:  # it does all the work
        sample = np.sort(np.random.default_rng(context.options.seed).permutation(len(train))[:size])
        rows, sources = train[sample], battle_sources(context.fold_sources(folds[0]))
        batch = take(pool.batches(), rows, len(pool))
        authors = features.Authors.of(features.author_names(batch), pool.targets[rows])
        started = time.perf_counter()
        battles = statistics.extract(batch)
        measured = time.perf_counter()
        options = context.options
        rounds = [0.0]
        features.fit(
            battles,
            pool.targets[rows],
            pool.keys[rows],
            authors=authors if authors.suffice else None,
            sources=None if sources is None else sources.take(sample),
            seed=options.seed,
            progress=lambda what, done, total: rounds.append(done),
            settings=options.booster_settings,
        )
        seeds = options.booster_settings.get("seeds", 1)
        longer = features.expected_rounds(len(train), seeds) / features.expected_rounds(size, seeds)
        if sources is None and rounds[-1]:  # sources have boosters of their own
            longer = min(longer, features.most_rounds(len(train), seeds) / rounds[-1])
        boosting = (time.perf_counter() - measured) * longer * _round_growth(size, len(train))
        parts = {"measuring": (measured - started) * len(pool) / size, "boosting": boosting * len(folds)}
    more = (features.memory_of(len(train)) - features.memory_of(size)) / 1e6
    return _Timing(context.world.gather(parts)[0], len(train) * len(folds), size, time.perf_counter() - began, more)


def _round_growth(few: int, many: int) -> float:
    """How many times as long a round takes on many battles as on few."""
    growth = 1.0
    for (start, power), end in zip(ROUND_POWERS.items(), [*list(ROUND_POWERS)[1:], math.inf], strict=True):
        if few < end and many > start:
            growth *= (min(many, end) / max(few, start)) ** power
    return growth


def _time_prediction(
    predict: Callable[[list[pa.RecordBatch]], None], stages: Sequence[Stage], total: int, world: World
) -> _Timing:
    """Time a prediction of the first ``total`` battles of the stages, which all hold the same battles."""
    began = time.perf_counter()
    lengths = np.concatenate([_text_bytes(batch) for batch in stages[0].batches()])[:total]

    def take_all(rows: NDArray[np.intp]) -> list[pa.RecordBatch]:
        return [take(stage.batches(), rows, stage.rows) for stage in stages]

    on_gpu = _peak_memory()[1] is not None
    predict(take_all(np.argsort(lengths)[-512 if on_gpu else -16 :]))  # warms up, with the longest battles
    seconds, timed = _time_all(take_all, predict, lengths, world)
    groups = math.ceil(total / next(stages[0].batches(["id"])).num_rows)  # the processes share them
    seconds *= math.ceil(groups / world.size) / groups
    return _Timing({"predicting": seconds}, total, timed, time.perf_counter() - began)


def _time_all(
    take: Callable[[NDArray[np.intp]], Any], predict: Callable[[Any], Any], lengths: NDArray[np.int64], world: World
) -> tuple[float, int]:
    """Seconds that predicting all battles takes, and the size of the sample: it grows until it takes long enough."""
    by_length = np.argsort(lengths, kind="stable")
    size = 64
    while True:
        rows = _spread(by_length, size)
        sample = take(rows)
        started = time.perf_counter()
        predict(sample)
        seconds = time.perf_counter() - started
        if len(rows) == len(lengths) or max(world.gather(seconds)) >= MIN_SECONDS:
            return seconds * len(lengths) / len(rows), len(rows)
        size *= 4


def _spread(by_length: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """About ``size`` positions, sorted: a few neighbours from each of many equal parts of the order of length."""
    if size >= len(by_length):
        return np.sort(by_length)
    groups = np.array_split(by_length, max(size // NEIGHBOURS, 1))
    return np.sort(np.concatenate([group[(len(group) - NEIGHBOURS) // 2 :][:NEIGHBOURS] for group in groups]))


def _text_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """About how many bytes of text each battle has, shape ``[n]``."""
    import pyarrow.compute as pc

    lengths = [pc.binary_length(pc.binary_join(batch.column(name), "")).fill_null(0) for name in TEXT_FIELDS]
    return np.sum([length.to_numpy(zero_copy_only=False) for length in lengths], axis=0, dtype=np.int64)

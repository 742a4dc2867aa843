"""How long a training or a prediction will take and how much memory it will need, before it is done.

Everything around the expensive part runs for real (reading, text, tokens, loading, the papers of a run) in a folder
that is gone afterwards; of the expensive part only a sample runs, through the same functions, and is scaled up by what
it has to do. Steps differ because texts differ in length, so the sample is spread evenly over the lengths, and memory
is what the process had taken after the longest battles there are.

The estimate knows how much the timed pieces differ among themselves, not how busy the machine will be later.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcli.compute.distributed import World
from prefcli.data.selection import Fold
from prefcli.errors import InputError
from prefcli.outcomes import OUTCOMES
from prefcli.prediction import inference
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import runs
from prefcli.storage.workspace import Stage, Workspace
from prefcli.training.context import FitResult, Fitter, TrainContext
from prefcli.training.experiment import fitter_for
from prefcli.training.trackers import Trackers

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.models.neural import NeuralModel
    from prefcli.training import loop

SAMPLE_SECONDS = 20.0
"""About how long steps (or pieces of a prediction) are timed."""
FEWEST_STEPS, MOST_STEPS = 6, 100
LARGEST_SHARE = 1 / 3
"""At most this share of a training's steps is timed, if that leaves :data:`FEWEST_STEPS`."""
MOST_GROWTH = 0.75
"""Of a half of the sample against the half before it: a sample too short to show that growth ends is not believed."""
LEAST_DOUBT = 0.05
"""Half of the interval is never less than this share of what was scaled up: the same work takes so much more or less a
minute later, however alike the timed steps were."""
CONFIDENCE = 0.975
COUNTED_BATCHES = 2000
"""Batches whose work is counted to know the mean; of larger epochs so many, evenly spread."""
NEIGHBOURS = 8
"""Battles of like length that are predicted together in the sample, as they are in the whole."""


@dataclass(frozen=True)
class Part:
    """Seconds of one part of the work, and half of their 95 % interval."""

    seconds: float
    doubt: float = 0.0

    def times(self, factor: float) -> Part:
        return Part(self.seconds * factor, self.doubt * factor)


@dataclass(frozen=True)
class Estimate:
    """What a command is expected to cost.

    Attributes
    ----------
    seconds:
        Of the command if it were started now, as its own ``--json`` will count them.
    interval:
        The 95 % interval of ``seconds``, from how much the timed pieces differed.
    kept_seconds:
        What the stages took that were made for the estimate (reading, text, tokens). They are kept and not made again;
        a command that had to make them would take ``seconds`` and these.
    parts:
        ``seconds`` by what they are spent on.
    pieces, timed:
        Optimizer steps (or battles to predict) in all, and how many of them were timed.
    memory_mb:
        Peak of this machine's memory that one process takes, in MB (10^6 bytes), after the longest battles.
    processes:
        How many processes work together; each takes up to ``memory_mb``.
    cuda_mb:
        Peak of the tensors on a GPU, of the process that needs most; None without one.
    is_main_process:
        Whether this process is the one that reports (of several under ``torchrun``).
    """

    seconds: float
    interval: tuple[float, float]
    kept_seconds: float
    parts: dict[str, float]
    pieces: int
    timed: int
    memory_mb: float
    processes: int
    cuda_mb: float | None
    is_main_process: bool

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "is_main_process"}


class Watched(Workspace):
    """A workspace whose stages are made and kept as always, with the time that took; it forgets what was made last."""

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self.kept_seconds = 0.0

    def stage(self, name: str, **arguments: Any) -> Stage:
        started = time.perf_counter()
        stage = super().stage(name, **arguments)
        if not stage.reused:
            self.kept_seconds += time.perf_counter() - started
        return stage

    def remember(self, what: str, value: Any) -> None:
        pass


def together(
    parts: dict[str, Part],
    *,
    kept_seconds: float,
    pieces: int,
    timed: int,
    world: World,
    growth_mb: float = 0.0,
) -> Estimate:
    """One estimate of several parts, whose doubts are independent.

    Memory is what the processes have taken so far, and ``growth_mb`` more (:func:`growth`).
    """
    seconds = sum(part.seconds for part in parts.values())
    doubt = math.sqrt(sum(part.doubt**2 for part in parts.values()))
    host, cuda = _peaks()
    memory = world.gather((host + growth_mb, cuda))
    cudas = [cuda for _, cuda in memory if cuda is not None]
    return Estimate(
        seconds=seconds,
        interval=(max(seconds - doubt, 0.0), seconds + doubt),
        kept_seconds=kept_seconds,
        parts={name: part.seconds for name, part in parts.items()},
        pieces=pieces,
        timed=timed,
        memory_mb=max(host for host, _ in memory),
        processes=world.size,
        cuda_mb=max(cudas) if cudas else None,
        is_main_process=world.is_main_process,
    )


def _peaks() -> tuple[float, float | None]:
    """Most memory this process has taken, on the host and on its GPU, in MB."""
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


def scaled(seconds: ArrayLike, work: ArrayLike, everything: float) -> Part:
    """The time of all the work from timed pieces of it: the ratio estimator and its interval.

    Source: Cochran, *Sampling Techniques*, 3rd ed., 6.4. Its bias vanishes where the pieces' mean work is that of all.

    Parameters
    ----------
    seconds, work:
        Of each timed piece.
    everything:
        TrainContext of all of it.
    """
    times, works = np.asarray(seconds, dtype=np.float64), np.asarray(work, dtype=np.float64)
    rate = times.sum() / works.sum()
    total, error = rate * everything, 0.0
    if len(times) > 1:
        from scipy.special import stdtrit

        left = max(1.0 - works.sum() / everything, 0.0)
        spread = math.sqrt(((times - rate * works) ** 2).sum() / (len(times) - 1) / len(times) * left)
        error = float(stdtrit(len(times) - 1, CONFIDENCE)) * spread / works.mean() * everything
    return Part(float(total), max(error, LEAST_DOUBT * float(total)))


def spread_order(count: int) -> NDArray[np.intp]:
    """Positions 0 to ``count - 1``, such that every beginning of them lies evenly spread: van der Corput's sequence."""
    bits = max(1, (count - 1).bit_length())
    size = 1 << bits
    # From the middle on: the sequence begins at the shortest, which stands for none but itself.
    numbers = np.array([int(f"{number:0{bits}b}"[::-1], 2) for number in range(size)])
    numbers = (numbers + size // 2) % size
    return numbers[numbers < count]


def growth(sizes: Sequence[float], steps: int) -> float:
    """How much larger than in the sample the memory will be after so many steps, in MB.

    The allocator never finds the same sizes free twice, so a process grows for dozens of steps after its largest one,
    by less and less: as a geometric series, of which the sample's two halves are the first two terms.

    Parameters
    ----------
    sizes:
        Peak memory after each step of the sample.
    steps:
        Of the whole training.
    """
    half = (len(sizes) - 1) // 2
    if half < 1 or steps <= len(sizes):
        return 0.0
    start, middle, end = sizes[-1 - 2 * half], sizes[-1 - half], sizes[-1]
    first, second = middle - start, end - middle
    if not first > 0 or not second > 0:
        return 0.0
    ratio = min(second / first, MOST_GROWTH)
    return second * ratio * (1 - ratio ** ((steps - len(sizes)) / half)) / (1 - ratio)


# Training


@dataclass(frozen=True)
class Sampled:
    """What a sample told: seconds by part, how many pieces there are, how many were timed, what memory is to come."""

    parts: dict[str, Part]
    pieces: int
    timed: int
    growth_mb: float = 0.0


@dataclass
class Sampler:
    """A fitter that times a sample of the first fold's fit and says of the others what that means for them.

    What it gives back is no model: only what the papers of a run need to be written, for their time.
    """

    work: TrainContext
    folds: Sequence[Fold]
    seconds: float = SAMPLE_SECONDS
    parts: dict[str, Part] = field(default_factory=dict)
    pieces: int = 0
    timed: int = 0
    growth_mb: float = 0.0
    sampling: float = 0.0
    """Time that went into the sample: no part of what the training will take."""

    def __post_init__(self) -> None:
        self._boosted = self.work.options.architecture == "features"
        self._fitter: Fitter | None = None if self._boosted else fitter_for(self.work, self.folds)
        self._of_first: Sampled | None = None

    def fit(self, fold: Fold, prefix: str, trackers: Trackers) -> FitResult:
        """Time a sample, unless that was done, and add this fold to the parts; trackers hear nothing of it."""
        started = time.perf_counter()
        first = self.folds[0]
        if self._of_first is None:
            self._of_first = self._boosting() if self._boosted else self._steps(fold, prefix)
        elif self.work.world.is_main_process:
            self.work.write_config(fold, runs.read_config(first.folder)["resolved"])
        sampled = self._of_first
        self.timed, self.growth_mb = sampled.timed, sampled.growth_mb
        share = len(fold.train) / len(first.train)
        for name, part in sampled.parts.items():
            before = self.parts.get(name, Part(0.0))
            more = part if name == "starting" else part.times(share)
            # The same sample is_main_process for all folds: what is wrong with it is wrong with all.
            self.parts[name] = Part(before.seconds + more.seconds, before.doubt + more.doubt)
        self.pieces += round(sampled.pieces * share)
        logits = np.random.default_rng(0).normal(size=(len(fold.held_out), len(OUTCOMES)))
        self.sampling += time.perf_counter() - started
        return FitResult(logits if len(fold.held_out) else None, 0.0)

    def _steps(self, fold: Fold, prefix: str) -> Sampled:
        from prefcli.training.fit_neural import NeuralFitter

        assert isinstance(self._fitter, NeuralFitter)
        started = time.perf_counter()
        task = self._fitter.task(fold, prefix)
        starting = time.perf_counter() - started
        return _neural_parts(task, starting, self.seconds, self.work.reporter)

    def _boosting(self) -> Sampled:
        found = _features_parts(self.work, self.folds[0]) if self.work.world.is_main_process else None
        first: Sampled = self.work.world.gather(found)[0]
        return first


def _neural_parts(task: loop.FitSpec, starting: float, seconds: float, reporter: Reporter) -> Sampled:
    """What a neural fit is made of, from a short training of the same task in the same folder."""
    from prefcli.training import loop

    options = task.options
    batches = [task.batch(0, number) for number in range(task.batches_per_epoch)]
    if len(batches) > COUNTED_BATCHES:
        batches = [batches[i] for i in np.linspace(0, len(batches) - 1, COUNTED_BATCHES).astype(int)]
    works = np.array([_work(task, rows) for rows in batches])
    by_work = np.argsort(works, kind="stable")
    chosen = by_work[spread_order(len(batches))][:MOST_STEPS]
    longest = np.argsort(-task.lengths, kind="stable")[: options.batch_size]
    # The longest battles of all in one batch: no step needs more memory. Then one to get used to, and the timed ones.
    sample = _sample_of(task, [longest, batches[chosen[0]], *(batches[i] for i in chosen)])
    warm_up = 2

    moments: list[float] = []
    spent: list[float] = []
    sizes: list[float] = []

    def after(position: loop.TrainState) -> None:
        moments.append(time.perf_counter())
        spent.append(position.seconds)
        sizes.append(_peaks()[0])
        if len(moments) == warm_up:
            one = task.world.gather(max(spent[1] - spent[0], 1e-6))[0]
            few = int(np.clip(LARGEST_SHARE * task.total_steps, FEWEST_STEPS, MOST_STEPS))
            steps = int(np.clip(seconds / one, FEWEST_STEPS, few))
            sample.batches_per_epoch = sample.total_steps = min(warm_up + steps, sample.batches_per_epoch)
            reporter.note(f"timing {sample.batches_per_epoch - warm_up} steps of {task.total_steps:,}")

    sample.on_step_end = after
    loop.fit(sample)
    ended = time.perf_counter()
    gc.collect()  # what DistributedDataParallel hung on the parameters goes with it
    cycles, steps = np.diff(moments), np.diff(spent)
    keeping = max(cycles[-1] - steps[-1], 0.0)  # the last step is followed by writing the weights
    cycles[-1] = steps[-1]
    timed = cycles[warm_up - 1 :]
    all_steps = task.total_steps
    training_part = scaled(timed, works[chosen[: len(timed)]], float(works.mean()) * all_steps)
    checkpoint = ended - moments[-1]
    every = options.checkpoint_every
    checkpoints = 1 + (all_steps // every if every else int(training_part.seconds // loop.CHECKPOINT_SECONDS))
    validations = _validations(task)
    kept = validations if task.validation is not None else 1
    parts = {
        "starting": Part(starting),
        "training": training_part,
        "validation": _validation_part(task, seconds / 4).times(validations),
        "writing": Part(keeping * kept + checkpoint * checkpoints),
    }
    return Sampled(parts, all_steps, len(timed), growth(sizes[warm_up - 1 :], all_steps))


def _validations(task: loop.FitSpec) -> int:
    """How often a training validates if nothing stops it early."""
    steps = np.arange(1, task.total_steps + 1)
    due = steps % task.batches_per_epoch == 0
    if task.options.eval_every:
        due |= steps % task.options.eval_every == 0
    return int(due.sum())


def _sample_of(task: loop.FitSpec, plan: list[NDArray[np.intp]]) -> Any:
    """The same task with other batches, no validation and nothing that depends on how far a training is."""
    from prefcli.training import loop

    class Sample(loop.FitSpec):
        def batch(self, epoch: int, number: int) -> NDArray[np.intp]:
            return plan[number]

    given = {f.name: getattr(task, f.name) for f in fields(loop.FitSpec) if f.init}
    options = replace(task.options, epochs=1, eval_every=0, checkpoint_every=0, patience=0)
    sample = Sample(**{**given, "validation": None, "options": options, "reporter": SILENT, "resume": False})
    sample.batches_per_epoch = sample.total_steps = len(plan)
    return sample


def _work(task: loop.FitSpec, rows: NDArray[np.intp]) -> float:
    passes = task.model.passes(task.lengths, rows, task.options.micro_batch, both_orders=task.options.swap)
    return _passes_work(task.model, task.lengths, passes)


def _passes_work(model: NeuralModel, lengths: NDArray[np.int64], passes: Sequence[tuple[Any, Any]]) -> float:
    """What passes over an encoder cost, in tokens of short sequences.

    A layer computes 24 d^2 + 4 L d operations a token (d wide, L long; Kaplan et al. 2020, table 1).
    """
    config = getattr(model.module.encoder, "config", None)
    width = getattr(config, "hidden_size", None) or 768
    total = 0.0
    for rows, _ in passes:
        length = int(lengths[rows].max())
        total += len(rows) * length * (1 + length / (6 * width))
    return total * len(model.input_format.sequences)


def _validation_part(task: loop.FitSpec, seconds: float) -> Part:
    """One validation, from battles spread over all lengths; the longest ones go first, for the memory they take."""
    from prefcli.training import loop

    if task.validation is None:
        return Part(0.0)
    model, battles = task.model, task.validation
    lengths = model.lengths(battles)
    everything = np.arange(len(battles))
    loop.predict_shared(task, battles.take(next(model.micro_batches(lengths, everything))))
    whole = _passes_work(model, lengths, model.passes(lengths, everything))
    order = np.argsort(lengths, kind="stable")
    count, took, done = 32, 0.0, 0.0
    while True:
        count = min(count, len(battles))
        rows = order[np.linspace(0, len(battles) - 1, count).astype(int)]
        started = time.perf_counter()
        loop.predict_shared(task, battles.take(rows))
        took = time.perf_counter() - started
        done = _passes_work(model, lengths, model.passes(lengths, rows))
        enough = task.world.gather(took >= seconds / 3)[0]
        if count == len(battles) or enough:
            return Part(took * whole / done, LEAST_DOUBT * took * whole / done)
        count *= 2


def _features_parts(work: TrainContext, fold: Fold) -> Sampled:
    """What `features` is made of: statistics by the byte, and boosting from two smaller fits.

    How the time grows from the smaller to the larger says how it goes on. How many rounds the booster will take is
    known only afterwards, so this is much less certain than steps of equal kind.
    """
    from prefcli.models import features as models
    from prefcli.models.features import statistics

    count = len(fold.train)
    # From SMALL_DATASET on the booster is built otherwise, so what is timed must lie on the same side.
    few = models.SMALL_DATASET
    larger = count // 2 if count < few else few if count < 4 * few else 2 * few
    smaller = larger // 2 if count < few else few
    wanted = np.zeros(len(work.pool), dtype=bool)
    wanted[fold.train[np.random.default_rng(work.options.seed).permutation(count)[:larger]]] = True
    parts, at, took, done, size = [], 0, 0.0, 0, 0
    import pyarrow as pa

    for batch in work.pool.batches():
        chosen = batch.filter(pa.array(wanted[at : at + batch.num_rows]))
        at += batch.num_rows
        size += int(_text_bytes(batch).sum())
        if chosen.num_rows:
            started = time.perf_counter()
            parts.append(statistics.extract(chosen))
            took += time.perf_counter() - started
            done += int(_text_bytes(chosen).sum())
    measuring = Part(took * size / max(done, 1), LEAST_DOUBT * took * size / max(done, 1))
    if not parts:
        raise InputError(f"{count} battles are too few to time a part of them")
    battles, rows = statistics.Features.concatenate(parts), np.flatnonzero(wanted)
    sizes = sorted({smaller, larger})
    work.reporter.note(f"boosting {' and '.join(f'{size:,}' for size in sizes)} of {count:,} battles")
    times = []
    for one in sizes:
        some = np.arange(one)
        started = time.perf_counter()
        model = models.fit(
            battles.take(some), work.pool.targets[rows[some]], work.pool.keys[rows[some]], seed=work.options.seed
        )
        times.append(time.perf_counter() - started)
    work.write_config(fold, {"columns": len(models.COLUMNS)})
    started = time.perf_counter()
    model.save(fold.folder)
    model.probabilities(battles.take(np.arange(min(len(fold.held_out), larger))))
    writing = time.perf_counter() - started
    power = math.log(times[-1] / times[0]) / math.log(larger / smaller) if larger > smaller > 0 else 1.0
    power, growth = min(max(power, 0.5), 1.5), count / max(larger, 1)
    boosting = times[-1] * growth**power
    # With more battles the booster mostly goes on for more rounds: fits took a fifth to two fifths longer than this.
    doubt = boosting * max(growth**0.75 - 1, LEAST_DOUBT)
    found = {"measuring": measuring, "boosting": Part(boosting, doubt), "writing": Part(writing)}
    return Sampled(found, count, larger)


# Prediction


def predicting(
    members: Sequence[inference.Member],
    stages: Sequence[Stage],
    total: int,
    *,
    swap_average: bool,
    world: World,
    reporter: Reporter,
    seconds: float = SAMPLE_SECONDS,
) -> Sampled:
    """How long the first ``total`` battles of the stages take, from some of them.

    The sample are groups of neighbours in the order of length, at even distances over all of it: replicated systematic
    samples (Cochran, *Sampling Techniques*, 3rd ed., 8), whose differences tell how sure their mean is.
    """
    lengths = np.concatenate([_text_bytes(batch) for batch in stages[0].batches()])[:total]
    order = np.argsort(lengths, kind="stable")

    def predict(rows: NDArray[np.intp]) -> float:
        parts = [_taken(stage, rows) for stage in stages]
        started = time.perf_counter()
        for member, part in zip(members, parts, strict=True):
            inference.predict_batch(member, part, swap_average=swap_average)
        return time.perf_counter() - started

    _largest_group(members, stages)
    longest = 512 if any(_on_gpu(member) for member in members) else 16
    predict(np.sort(order[-longest:]))
    few = _neighbours(order, 4 * NEIGHBOURS, 0.5)
    each = world.gather(predict(few) / max(len(few), 1))[0]
    replicates = 5
    size = int(np.clip(seconds / replicates / max(each, 1e-9), 4 * NEIGHBOURS, 1024))
    if replicates * size >= total:  # hardly less than all of it
        size, replicates = max(min(size, total), 1), max(1, min(replicates, total // max(size, 1)))
    reporter.note(f"timing {min(replicates * size, total):,} battles of {total:,}")
    drawn = [_neighbours(order, size, (number + 0.5) / replicates) for number in range(replicates)]
    timed, sizes = [], []
    for rows in drawn:
        timed.append(predict(rows))
        sizes.append(_peaks()[0])
    part = scaled(timed, [float(len(rows)) for rows in drawn], float(total))
    ends = np.cumsum([batch.num_rows for batch in stages[0].batches(["id"])])
    groups = int(np.searchsorted(ends, total)) + 1  # each is one rank's
    rounds = math.ceil(groups / world.size) / groups
    slowest = max(world.gather((part.times(rounds).seconds, part.times(rounds).doubt)))
    return Sampled({"predicting": Part(*slowest)}, total, sum(map(len, drawn)), growth(sizes, math.ceil(total / size)))


def _neighbours(order: NDArray[np.intp], size: int, offset: float) -> NDArray[np.intp]:
    """Rows in groups of neighbours in ``order``, at even distances, the first ``offset`` of one from its start."""
    if size >= len(order):
        return np.sort(order)
    groups = max(size // NEIGHBOURS, 1)
    width = min(size, NEIGHBOURS)
    starts = ((np.arange(groups) + offset) / groups * (len(order) - width)).astype(int)
    return np.unique(order[(starts[:, None] + np.arange(width)).ravel()])


def _taken(stage: Stage, rows: NDArray[np.intp]) -> pa.RecordBatch:
    """Some rows of a stage, in their order."""
    import pyarrow as pa

    parts, start = [], 0
    for batch in stage.batches():
        here = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
        if len(here):
            parts.append(batch.take(pa.array(here)))
        start += batch.num_rows
    return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def _largest_group(members: Sequence[inference.Member], stages: Sequence[Stage]) -> None:
    """Tokenise (or measure) one whole row group, as prediction does, for the memory that takes."""
    for member, stage in zip(members, stages, strict=True):
        model: Any = member.models[0]
        group = next(stage.batches())
        if hasattr(model, "tokenise"):
            model.tokenise(iter([group]))
        else:
            model.logits(group)


def _on_gpu(member: inference.Member) -> bool:
    placement = getattr(member.models[0], "placement", None)
    return placement is not None and placement.device.type != "cpu"


def _text_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Bytes of text in each battle of a batch."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from prefcli.battles import TEXT_FIELDS

    total = np.zeros(batch.num_rows, dtype=np.int64)
    for name in TEXT_FIELDS:
        column = batch.column(name)
        turns = pc.fill_null(pc.binary_length(column.flatten()), 0).to_numpy(zero_copy_only=False)
        counts = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(turns, dtype=np.int64)])
        stops = np.cumsum(counts)
        total += ends[stops] - ends[stops - counts]
    return total

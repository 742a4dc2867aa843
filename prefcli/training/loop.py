"""The training loop: autocast, GradScaler, AdamW, a linear schedule, validation, checkpoints, ranks.

Small enough to read in one sitting: :func:`fit` is the loop, :func:`step` one optimizer step. It knows nothing
about files of battles or about architectures; it is given a :class:`~prefcli.models.neural.NeuralModel` and
tokenised battles, and writes into a run's folder.

Exactness: the order of the battles is a function of (seed, epoch) alone, the learning rate of the number of optimizer
steps taken, and a checkpoint holds the rest (weights, moments, scale, random states), so a training that was killed and
resumed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prefcli import metrics
from prefcli.compute import fsdp
from prefcli.compute.distributed import World
from prefcli.errors import Interrupted, ModelError, PrefcliError
from prefcli.models import weights
from prefcli.models.batches import Pass, ahead
from prefcli.models.neural import WEIGHTS, NeuralModel
from prefcli.models.packing import TokenisedBattles
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, SWAPPED
from prefcli.reporting import Reporter
from prefcli.storage import files
from prefcli.storage.runs import METRICS, read_metrics
from prefcli.training import checkpoints
from prefcli.training.trackers import NOTHING, Trackers

CHECKPOINT_SECONDS = 300.0
MOST_SKIPS_IN_A_ROW = 20
INITIAL_SCALE = 2.0**16
KEPT = Path("checkpoints") / "kept.json"
"""Digests of kept weights, each with the logits that they gave of the validation battles."""


@dataclass
class Position:
    """How far a training has come; part of every checkpoint."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    steps: int = 0
    """Steps attempted, over all epochs."""
    optimizer_steps: int = 0
    """Steps in which the optimizer stepped: what the schedule counts."""
    skipped: int = 0
    """Steps in which float16 overflowed, so that the scaler left the weights alone."""
    skipped_in_a_row: int = 0
    battles: int = 0
    seconds: float = 0.0
    """Time in training steps alone, without validation and checkpoints."""
    best: float = math.inf
    """Lowest validation log loss so far."""
    best_step: int = 0
    stale: int = 0
    """Validations since the best one."""
    finished: bool = False


@dataclass(frozen=True)
class LoopResult:
    """What came out of :func:`fit`."""

    position: Position
    logits: NDArray[np.float64] | None
    """Of the validation battles, by the kept weights; shape ``[n, 3]``."""

    @property
    def battles_per_second(self) -> float:
        return self.position.battles / self.position.seconds if self.position.seconds else 0.0


@dataclass
class FitSpec:
    """Everything :func:`fit` works with, and the derived quantities of a run."""

    model: NeuralModel
    train: TokenisedBattles
    targets: NDArray[np.float32]
    """What the loss compares the training battles' probabilities with, shape ``[n, 3]``."""
    validation: TokenisedBattles | None
    options: TrainOptions
    folder: Path
    reporter: Reporter
    world: World = field(default_factory=World)
    resume: bool = False
    on_step_end: Callable[[Position], None] | None = None
    """Called after every step; tests inject faults here."""
    trackers: Trackers = NOTHING
    """Told what ``metrics.jsonl`` is told."""

    def __post_init__(self) -> None:
        if not len(self.train):
            raise PrefcliError("there is no battle with a known outcome to train on")
        if self.targets.shape != (len(self.train), len(OUTCOMES)):
            raise ValueError(f"{len(self.train)} battles, but targets of shape {self.targets.shape}")
        self.lengths = self.model.lengths(self.train)
        self.batches_per_epoch = math.ceil(len(self.train) / self.options.batch_size)
        self.total_steps = self.batches_per_epoch * self.options.epochs
        self._order: tuple[int, NDArray[np.intp]] = (-1, np.empty(0, np.intp))

    def batch(self, epoch: int, number: int) -> NDArray[np.intp]:
        """Positions of the battles of one optimizer step: a slice of the epoch's permutation."""
        if self._order[0] != epoch:
            self._order = (
                epoch,
                np.random.default_rng([self.options.seed, epoch]).permutation(len(self.train)),
            )
        return self._order[1][number * self.options.batch_size : (number + 1) * self.options.batch_size]

    def prepare(self, rows: NDArray[np.intp]) -> list[Pass]:
        """This process's forward passes over a batch."""
        mine = rows[self.world.rank :: self.world.size]
        passes = self.model.passes(
            self.lengths,
            mine if len(mine) else rows[:1],
            self.options.micro_batch,
            both_orders=self.options.swap,
        )
        return self.model.prepared(self.train, passes)

    def batches(self, epoch: int, number: int) -> Iterator[tuple[NDArray[np.intp], list[Pass]]]:
        """All batches from one on, with their passes, each put together while the step before it runs."""

        def upcoming() -> Iterator[NDArray[np.intp]]:
            for later in range(epoch, self.options.epochs):
                for batch in range(number if later == epoch else 0, self.batches_per_epoch):
                    yield self.batch(later, batch)

        return ahead(lambda rows: (rows, self.prepare(rows)), upcoming())


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up over ``warmup * total`` steps, then linear decay to 0 at ``total``; ``step`` counts from 0."""
    rising = round(warmup * total)
    if step < rising:
        return peak * step / rising
    return peak * max(0.0, (total - step) / max(1, total - rising))


def make_optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), weight decay on matrices only: not on biases and norms."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)


def loss_of(logits: Tensor, targets: Tensor, options: TrainOptions) -> Tensor:
    """Cross-entropy summed over battles.

    ``loss_input`` other than ``logits`` is the original notebook's ablation: CrossEntropyLoss applies log-softmax
    itself, so ``log-softmax`` before it changes nothing and ``softmax`` squeezes the logits into [0, 1].
    """
    if options.loss_input == "softmax":
        logits = logits.softmax(dim=-1)
    elif options.loss_input == "log-softmax":
        logits = logits.log_softmax(dim=-1)
    return nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=options.label_smoothing)


def fit(task: FitSpec) -> LoopResult:
    """Train, validate, keep the best weights in ``folder/model.safetensors``.

    Raises
    ------
    Interrupted
        On SIGINT or SIGTERM, after a checkpoint.
    PrefcliError
        If the loss is no longer a number, or the memory does not suffice.
    """
    options, model, world = task.options, task.model, task.world
    placement = model.placement
    module = model.module
    if options.gradient_checkpointing:
        encoder = module.encoder
        # transformers renamed it; the old name goes in its next major release.
        enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    optimizer = make_optimizer(module, options)
    scaler = torch.amp.GradScaler(placement.device.type, init_scale=INITIAL_SCALE, enabled=placement.scaled)
    torch.manual_seed(options.seed + 1 + world.rank)
    position = _restore(task, optimizer, scaler) if task.resume else Position()
    sharded = fsdp.is_sharded(module)
    parallel = module if world.alone or sharded else _data_parallel(module, placement.device)
    log = _Log(task.folder / METRICS, position.steps, task.trackers, writes=world.is_main_process)
    log.open()
    last_checkpoint = time.monotonic()
    first_done = position.epoch * len(task.train) + position.batch * options.batch_size

    def checkpoint() -> None:
        nonlocal last_checkpoint
        states = world.gather(checkpoints.random_states(placement.device))
        learnt, moments = (
            fsdp.full_state_dict(weights.trainable_state_dict(module)),
            fsdp.full_optimizer_state_dict(optimizer),
        )
        if world.is_main_process:
            random = {f"{rank}.{name}": state for rank, held in enumerate(states) for name, state in held.items()}
            state = {"position": asdict(position), "scaler": scaler.state_dict(), "ranks": world.size}
            checkpoints.save(
                task.folder / "checkpoints",
                position.steps,
                checkpoints.Checkpoint(learnt, moments, random, state),
            )
        last_checkpoint = time.monotonic()

    with (
        _signals() as stopped,
        task.reporter.track(
            "training",
            len(task.train) * options.epochs,
            done=min(first_done, len(task.train) * options.epochs),
        ) as progress,
    ):
        batches = task.batches(position.epoch, position.batch)
        while not position.finished:
            started = time.perf_counter()
            rows, passes = next(batches)
            rate = learning_rate(position.optimizer_steps, task.total_steps, options.learning_rate, options.warmup)
            result = step(task, parallel, optimizer, scaler, rows, rate, passes)
            position.seconds += time.perf_counter() - started
            position.batch += 1
            position.steps += 1
            position.battles += len(rows)
            position.optimizer_steps += not result.skipped
            position.skipped += result.skipped
            position.skipped_in_a_row = position.skipped_in_a_row + 1 if result.skipped else 0
            log.write(step=position.steps, epoch=position.epoch, lr=rate, **asdict(result))
            _watch(result, position, rate, scaled=placement.scaled)
            note = f"loss {result.loss:.4f}, lr {rate:.2g}"
            progress.advance(len(rows), note + (f", {position.skipped} skipped" if position.skipped else ""))

            end_of_epoch = position.batch == task.batches_per_epoch
            if end_of_epoch or (options.eval_every and position.steps % options.eval_every == 0):
                _validate(task, position, log)
            if end_of_epoch:
                position.epoch, position.batch = position.epoch + 1, 0
                position.finished |= position.epoch == options.epochs
            if task.on_step_end is not None:
                task.on_step_end(position)
            signals = [number for number in world.gather(stopped()) if number]
            due = (
                position.steps % options.checkpoint_every == 0
                if options.checkpoint_every
                else world.any(time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS)
            )
            if due or signals or position.finished:
                checkpoint()
            if signals and not position.finished:
                raise Interrupted(
                    signals[0],
                    f"interrupted after step {position.steps} of {task.total_steps}; a checkpoint is saved",
                    hint=f"Continue with: prefcli train --resume {task.folder}",
                )
    world.barrier()  # the first process has written what it keeps
    return LoopResult(position, kept_logits(task.folder))


@dataclass(frozen=True)
class StepResult:
    """What one step did, as it stands in ``metrics.jsonl``."""

    loss: float
    grad_norm: float
    scale: float
    skipped: bool


def step(
    task: FitSpec,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rows: NDArray[np.intp],
    rate: float,
    prepared: list[Pass] | None = None,
) -> StepResult:
    """One optimizer step over a batch: forward and loss under autocast, backward through the scaler, update.

    The loss is the mean over the whole batch, however it is cut into micro-batches and spread over ranks. ``prepared``
    are the batch's passes where they have been put together already.
    """
    options, model, world = task.options, task.model, task.world
    device = model.placement.device
    module.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)

    mine = rows[world.rank :: world.size]
    # A rank without a share of the last, small batch still takes part in the exchange, with weight 0.
    weight = (world.size if len(mine) else 0.0) / (len(rows) * (2 if options.swap else 1))
    passes = prepared if prepared is not None else task.prepare(rows)
    total = torch.zeros((), device=device)
    shown = _in_step(task, passes)
    for number, (one, counts) in enumerate(shown):
        targets = torch.from_numpy(_targets(task, one)).to(device, non_blocking=True)
        with _exchanging(module, last=number == len(shown) - 1):
            with torch.autocast(device.type, model.placement.dtype, enabled=model.placement.precision != "fp32"):
                logits = model.forward(module, one)
                loss = loss_of(logits.float(), targets, options) * weight * counts
            scaler.scale(loss).backward()
        total += loss.detach()

    scaler.unscale_(optimizer)
    norm = fsdp.full_tensor(torch.nn.utils.clip_grad_norm_(module.parameters(), options.clip or math.inf))
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    # The scale falls exactly when the scaler found infinities and left the optimizer out.
    skipped = scaler.is_enabled() and scaler.get_scale() < scale
    loss_value = sum(world.gather(float(total))) / world.size
    return StepResult(loss_value, float(norm), scale, skipped)


def _in_step(task: FitSpec, passes: list[Pass]) -> list[tuple[Pass, float]]:
    """Passes and what each counts. In a sharded model each pass is an exchange: idle ranks repeat one, for nothing."""
    missing = _agreed(task, len(passes)) - len(passes)
    return [(one, 1.0) for one in passes] + [(passes[-1], 0.0)] * missing


def _agreed(task: FitSpec, passes: int) -> int:
    """How many forward passes to make where this process needs so many: in a sharded model as many as any process."""
    return max(task.world.gather(passes)) if fsdp.is_sharded(task.model.module) else passes


@contextlib.contextmanager
def _exchanging(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients of several passes are added up before they are exchanged with other processes.

    Not those of a sharded model: until they are exchanged, every process would keep all of them.
    """
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else contextlib.nullcontext():
        yield


def _targets(task: FitSpec, one: Pass) -> NDArray[np.float32]:
    """Targets in the order of a pass's logits: those of an exchanged battle are exchanged too."""
    straight = task.targets[one.rows]
    return np.concatenate([straight[:, SWAPPED] if swapped else straight for swapped in one.orders])


def _watch(result: StepResult, position: Position, rate: float, *, scaled: bool) -> None:
    """Stop a training that has gone wrong instead of letting it run for hours."""
    broken = not math.isfinite(result.loss) or not math.isfinite(result.grad_norm)
    if (broken and not scaled) or position.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW:
        raise PrefcliError(
            f"the loss is no longer a number at step {position.steps} (loss {result.loss}, learning rate {rate:.3g})",
            hint="Try a lower --lr, --warmup 0.1, a smaller --clip, or --precision fp32.",
        )


def _validate(task: FitSpec, position: Position, log: _Log) -> None:
    """Validation log loss of the weights as they are; keeps them if they are the best so far."""
    if task.validation is None:
        if position.batch == task.batches_per_epoch:
            _keep(task, None)
        return
    logits = predict_shared(task, task.validation)
    loss = metrics.log_loss(metrics.softmax(logits), task.validation.labels)
    log.write(step=position.steps, epoch=position.epoch, validation_log_loss=loss)
    better = loss < position.best
    if better or task.options.keep == "last":
        _keep(task, logits)
    if better:
        position.best, position.best_step, position.stale = loss, position.steps, 0
    else:
        position.stale += 1
        if task.options.patience and position.stale >= task.options.patience:
            position.finished = True
            task.reporter.note(
                f"stopped early: no better validation in {position.stale} attempts, best {position.best:.4f} "
                f"at step {position.best_step}"
            )
    task.reporter.note(f"step {position.steps}: validation log loss {loss:.4f}, best {position.best:.4f}")


def predict_shared(task: FitSpec, battles: TokenisedBattles) -> NDArray[np.float64]:
    """Logits ``[n, 3]``, the battles shared out among the ranks, the result on all of them."""
    world = task.world
    own = np.arange(len(battles))[world.rank :: world.size]
    # A rank without a share predicts the first battle all the same, because a sharded model needs all ranks.
    mine = battles if world.alone else battles.take(own if len(own) else np.zeros(1, np.intp))
    shared = world.gather(task.model.logits_of(mine, in_step=lambda passes: _agreed(task, passes))[0])
    logits = np.empty((len(battles), len(OUTCOMES)))
    for rank, part in enumerate(shared):
        logits[rank :: world.size] = part[: len(logits[rank :: world.size])]
    return logits


def _keep(task: FitSpec, logits: NDArray[np.float64] | None) -> None:
    """Write the weights as they are, and what they say of the validation battles; all ranks call it, one writes.

    Two files cannot change at once. So the second one, written first, speaks of the weights that lie there and of those
    about to come: whenever this is interrupted, it knows the weights that are found.
    """
    state = fsdp.full_state_dict(weights.trainable_state_dict(task.model.module))
    if not task.world.is_main_process:
        return
    path = task.folder / WEIGHTS
    with files.atomic(path, needs=weights.size(state)) as temporary:
        weights.save(state, temporary)
        known = _kept(task.folder)
        before = files.sha256(path) if path.exists() else ""
        entries = {before: known[before]} if before in known else {}
        entries[files.sha256(temporary)] = None if logits is None else logits.tolist()
        files.write_text(task.folder / KEPT, files.with_checksum(entries))


def _kept(folder: Path) -> dict[str, Any]:
    """Digests of kept weights and their logits; empty where the file is missing or damaged."""
    try:
        return files.verify_checksum((folder / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def kept_logits(folder: Path) -> NDArray[np.float64] | None:
    """Logits of the validation battles by the weights that a training has kept so far; None where there are none.

    Raises
    ------
    ModelError
        If the kept weights are not those that were written.
    """
    known = _kept(folder)
    try:
        logits = known[files.sha256(folder / WEIGHTS)]
    except (OSError, KeyError):
        raise ModelError(
            f"the weights kept so far are damaged: {WEIGHTS} does not match {KEPT}",
            where=str(folder),
            hint="Nothing else holds them: delete the run and train again.",
        ) from None
    return None if logits is None else np.array(logits, dtype=np.float64).reshape(-1, len(OUTCOMES))


def _restore(task: FitSpec, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Position:
    """Set everything to where the newest whole checkpoint left it; a run without one begins anew."""
    held = checkpoints.load_latest(task.folder / "checkpoints", task.reporter.warn)
    if held is None:
        task.reporter.note("the run has no checkpoint yet: it begins anew")
        return Position()
    weights.load_state_dict(task.model.module, held.model)
    fsdp.load_optimizer_state_dict(optimizer, held.optimizer)
    scaler.load_state_dict(held.state["scaler"])
    rank = task.world.rank if held.state["ranks"] == task.world.size else 0
    prefix = f"{rank}."
    own = {name.removeprefix(prefix): state for name, state in held.random.items() if name.startswith(prefix)}
    checkpoints.restore_random_states(own, task.model.placement.device)
    position = Position(**held.state["position"])
    if position.best_step:
        kept_logits(task.folder)  # before hours of work that could not be brought to an end
    task.reporter.note(f"resumed at step {position.steps} of {task.total_steps}")
    return position


def _data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    # Encoders have heads and poolers that this model does not use: their gradients never come.
    return DistributedDataParallel(
        module, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
    )


class _Log:
    """``metrics.jsonl``: a line per step and validation, cut back to the checkpoint when resumed; trackers hear it."""

    def __init__(self, path: Path, steps: int, trackers: Trackers, *, writes: bool) -> None:
        self._path = path
        self._steps = steps
        self._trackers = trackers
        self._writes = writes

    def open(self) -> None:
        if not self._writes:
            return
        known = read_metrics(self._path.parent) if self._steps and self._path.exists() else []
        kept = [record for record in known if record["step"] <= self._steps]
        files.write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._trackers.begin(kept)

    def write(self, **record: Any) -> None:
        if self._writes:
            files.append_line(self._path, json.dumps(record))
            self._trackers.record(record)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM instead of dying of them; the loop asks which one came. A second one is not held back."""
    received = 0

    def note(number: int, frame: Any) -> None:
        nonlocal received
        received = number
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: its owner deals with signals
            break
    try:
        yield lambda: received
    finally:
        for held, handler in previous.items():
            signal.signal(held, handler)

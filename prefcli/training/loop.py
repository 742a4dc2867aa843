"""The training loop: autocast, GradScaler, AdamW, a linear schedule, validation, checkpoints, several processes.

Small enough to read in one sitting: :func:`fit` is the loop, :func:`forward_backward` and :func:`update` are one
optimizer step. It knows nothing about files of battles or about architectures: it is given a
:class:`~prefcli.models.neural.NeuralModel` and tokenised battles, and writes into a run's folder.

Resuming is exact: the order of the battles depends on (seed, epoch) only, the learning rate on the number of optimizer
steps, and a checkpoint holds the rest (weights, moments, scale, random states). A training that was killed and resumed
ends with the same bytes as one that was not.

The host of a single GPU does not wait for it between two lines of ``metrics.jsonl`` (``--log-every``).
"""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
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
from prefcli.compute.devices import Placement
from prefcli.compute.distributed import World
from prefcli.encoders import layers
from prefcli.errors import Diverged, Interrupted, ModelError, PrefcliError
from prefcli.models import weights
from prefcli.models.batches import Pass, prefetch
from prefcli.models.neural import WEIGHTS, NeuralModel
from prefcli.models.reward import Reward
from prefcli.models.tokens import TokenisedBattles
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES, SWAPPED, TIE, A, B
from prefcli.reporting import NO_PROGRESS, Progress, Reporter
from prefcli.storage import files
from prefcli.storage.runs import CHECKPOINTS, METRICS, read_metrics
from prefcli.storage.sources import NEVER
from prefcli.training import checkpoints
from prefcli.training.trackers import NOTHING, Trackers

CHECKPOINT_SECONDS = 300.0
MAX_SKIPS_IN_A_ROW = 20
DIVERGED_HINT = "Try a lower --lr, --warmup 0.1, a smaller --clip, or --precision fp32."
INITIAL_SCALE = 2.0**16
TIE_LR = 1e-2
"""Peak learning rate of a reward model's constant for ties, if the others' is lower."""
KEPT_RECORD = Path(CHECKPOINTS) / "kept.json"
"""Digests of kept weights, each with the logits that these weights give for the validation battles."""


@dataclass
class TrainState:
    """How far a training is; part of every checkpoint."""

    epoch: int = 0
    batch: int = 0
    """Finished batches of this epoch."""
    steps: int = 0
    """Steps attempted, over all epochs."""
    optimizer_steps: int = 0
    """Steps in which the optimizer stepped: what the schedule counts. Like the next two, one step late between lines
    of ``metrics.jsonl``, because only the device knows whether the last step was skipped."""
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
    elapsed: float = 0.0
    """Seconds since the training began, validation and checkpoints included, but not the time between two calls."""
    unlogged_loss: float = 0.0
    """At a checkpoint: sum of the losses since the last line of ``metrics.jsonl``; the next two count its steps."""
    unlogged_steps: int = 0
    unlogged_skips: int = 0


@dataclass(frozen=True)
class LoopResult:
    """What :func:`fit` returns."""

    state: TrainState
    logits: NDArray[np.float64] | None
    """Of the validation battles, by the kept weights; shape ``[n, 3]``."""
    swapped: NDArray[np.float64] | None = None
    """The same for swapped answers, in the order of the original outcomes; None in a run that an earlier release began.
    """

    @property
    def battles_per_second(self) -> float:
        return self.state.battles / self.state.seconds if self.state.seconds else 0.0


@dataclass
class FitSpec:
    """Everything :func:`fit` works with, and what follows from it."""

    model: NeuralModel
    train: TokenisedBattles
    targets: NDArray[np.float32]
    """Target probabilities of the training battles, shape ``[n, 3]``."""
    validation: TokenisedBattles | None
    """Battles whose labels are known."""
    options: TrainOptions
    folder: Path
    reporter: Reporter
    progress: Progress = NO_PROGRESS
    """Is advanced by battles."""
    name: str = ""
    """Of the fold, for messages."""
    run: Path | None = None
    """The run that the fold is part of, for messages; None if it is the folder."""
    world: World = field(default_factory=World)
    resume: bool = False
    on_step_end: Callable[[TrainState], None] | None = None
    """Called after every step."""
    trackers: Trackers = NOTHING
    """They get every line of ``metrics.jsonl``."""
    validation_ids: Sequence[str] = ()
    """Of the validation battles, for messages."""
    unseen: tuple[int, ...] = ()
    """Outcomes that no training battle has."""
    bases: NDArray[np.float64] | None = None
    """Logits that those of the training battles are added to, shape ``[n, 3]``; see :mod:`prefcli.storage.sources`."""
    validation_bases: NDArray[np.float64] | None = None
    """The same of the validation battles."""

    def __post_init__(self) -> None:
        if not len(self.train):
            raise PrefcliError("there is no battle with a known outcome to train on")
        if self.targets.shape != (len(self.train), len(OUTCOMES)):
            raise ValueError(f"{len(self.train)} battles, but targets of shape {self.targets.shape}")
        self.lengths = self.model.lengths(self.train)
        self.batches_per_epoch = math.ceil(len(self.train) / self.options.batch_size)
        self.total_steps = self.batches_per_epoch * self.options.epochs
        if self.options.max_steps:
            self.total_steps = min(self.total_steps, self.options.max_steps)
        self._order: tuple[int, NDArray[np.intp]] = (-1, np.empty(0, np.intp))

    def batch(self, epoch: int, number: int) -> NDArray[np.intp]:
        """Positions of the battles of one optimizer step: a slice of the epoch's permutation."""
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.options.seed, epoch]).permutation(len(self.train)))
        return self._order[1][number * self.options.batch_size : (number + 1) * self.options.batch_size]

    def battles_until(self, step: int) -> int:
        """Battles of all steps up to one."""
        return battles_of_steps(step, len(self.train), self.options.batch_size)

    def share(self, rows: NDArray[np.intp], rank: int) -> NDArray[np.intp]:
        """The battles of a batch that a process computes; the first one where it has none.

        All processes wait for the slowest one in every step. So the battles are dealt out by length, to and fro, and
        each process has about as many tokens.
        """
        if self.world.alone:
            return rows
        dealt, turn = rows[np.argsort(-self.lengths[rows], kind="stable")], 2 * self.world.size
        share = np.concatenate([dealt[rank::turn], dealt[turn - 1 - rank :: turn]])
        return share if len(share) else rows[:1]

    def prepare(self, rows: NDArray[np.intp]) -> list[Pass]:
        """This process's forward passes over a batch."""
        passes = self.model.passes(
            self.lengths,
            self.share(rows, self.world.rank),
            self.options.micro_batch,
            both_orders=self.options.computes_both_orders,
        )
        return [self.model.prepare(self.train, positions, orders) for positions, orders in passes]

    def target_tensor(self, each: Pass) -> Tensor:
        """Targets in the order of a pass's logits, on the device; those of a swapped battle are swapped too."""
        targets = self.targets[each.rows]
        in_orders = np.concatenate([targets[:, SWAPPED] if swapped else targets for swapped in each.orders])
        return torch.from_numpy(in_orders).to(self.model.placement.device, non_blocking=True)

    def base_tensor(self, each: Pass) -> Tensor | None:
        """Bases in the order of a pass's logits, on the device; those of a swapped battle are the same."""
        if self.bases is None:
            return None
        bases = np.tile(self.bases[each.rows].astype(np.float32), (len(each.orders), 1))
        return torch.from_numpy(bases).to(self.model.placement.device, non_blocking=True)

    def batches(self, epoch: int, number: int) -> Iterator[tuple[NDArray[np.intp], list[Pass]]]:
        """All batches from one on, with their passes, each put together while the step before it runs."""

        def upcoming() -> Iterator[NDArray[np.intp]]:
            for later in range(epoch, self.options.epochs):
                for batch in range(number if later == epoch else 0, self.batches_per_epoch):
                    yield self.batch(later, batch)

        return prefetch(lambda rows: (rows, self.prepare(rows)), upcoming())


def battles_of_steps(steps: int, battles: int, batch_size: int) -> int:
    """Battles of so many steps, where an epoch has ``battles``: its last step may have fewer than the others."""
    epochs, batches = divmod(steps, max(math.ceil(battles / batch_size), 1))
    return epochs * battles + batches * batch_size


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up over ``warmup * total`` steps, then linear decay to 0 at ``total``; ``step`` counts from 0."""
    rising = round(warmup * total)
    if step < rising:
        return peak * step / rising
    return peak * max(0.0, (total - step) / max(1, total - rising))


def make_optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), weight decay on matrices only: not on biases and norms.

    With ``layer_decay`` the learning rate falls from layer to layer, as in BEiT (Bao et al., ICLR 2022): the head has
    the whole one, the top layer ``layer_decay`` times it, the next layer the square of that.

    Raises
    ------
    InputError
        If there is a ``layer_decay`` and the encoder's layers cannot be distinguished.
    """
    tie = module.tie.bias if isinstance(module, Reward) else None
    parameters = [p for p in module.parameters() if p.requires_grad and p is not tie]
    depths = layers.depths(module.encoder) if options.layer_decay < 1 else {}  # type: ignore[arg-type]
    groups: list[dict[str, Any]] = []
    for depth in sorted({0, *depths.values()}):
        here = [p for p in parameters if depths.get(p, 0) == depth]
        slower = {"factor": options.layer_decay**depth} if depth else {}
        groups.append({"params": [p for p in here if p.ndim >= 2], "weight_decay": options.weight_decay, **slower})
        groups.append({"params": [p for p in here if p.ndim < 2], "weight_decay": 0.0, **slower})
    if tie is not None:
        # One number that belongs to the data, not to the language: it has farther to go than a pretrained weight.
        groups.append({"params": [tie], "weight_decay": 0.0, "factor": max(TIE_LR / options.learning_rate, 1.0)})
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)


def checkpoint_activations(spec: FitSpec) -> None:
    """Let the encoder recompute its activations in the backward pass, if the options say so."""
    if spec.options.gradient_checkpointing:
        encoder = spec.model.module.encoder
        # transformers renamed it; the old name goes in its next major release.
        enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def make_scaler(placement: Placement) -> torch.amp.GradScaler:
    """The loss scaler; it does nothing unless the precision is float16."""
    return torch.amp.GradScaler(placement.device.type, init_scale=INITIAL_SCALE, enabled=placement.scaled)


def loss_of(
    logits: Tensor, targets: Tensor, options: TrainOptions, *, ties: bool = True, bases: Tensor | None = None
) -> Tensor:
    """Cross-entropy summed over battles, whose logits are added to their ``bases``.

    Where a base says that a tie cannot happen, the loss is that of the other two outcomes. Label smoothing spreads over
    the outcomes that can happen: without ``ties`` among the training battles over two.

    A reward model whose training battles have no ``ties`` learns from the other two outcomes alone: Bradley and Terry's
    model. ``margin`` and ``center_rewards`` are those of TRL's ``RewardTrainer`` (Touvron et al., "Llama 2", 2023,
    section 3.2.2; Eisenstein et al., "Helping or herding?", COLM 2024).

    ``loss_input`` other than ``logits`` is the original notebook's ablation: CrossEntropyLoss applies log-softmax
    itself, so ``log-softmax`` before it changes nothing and ``softmax`` squeezes the logits into [0, 1].
    """
    centering: Tensor | float = 0.0
    if options.architecture == "reward":
        if options.center_rewards:
            centering = options.center_rewards * (logits[:, A] + logits[:, B]).square().sum()
        if options.margin:
            half = options.margin / 2 * (targets[:, A] - targets[:, B])
            logits = torch.stack([logits[:, A] - half, logits[:, B] + half, logits[:, TIE]], dim=-1)
        if not ties:
            logits, targets = logits[:, :TIE], targets[:, :TIE]
            bases = None
    if options.loss_input == "softmax":
        logits = logits.softmax(dim=-1)
    elif options.loss_input == "log-softmax":
        logits = logits.log_softmax(dim=-1)
    smoothing = options.label_smoothing
    possible = None if ties or logits.shape[1] == TIE else torch.tensor([[True, True, False]], device=logits.device)
    if bases is not None:
        logits, possible = logits + bases, bases > NEVER
    if smoothing and possible is not None:
        targets = (1 - smoothing) * targets + smoothing * possible / possible.sum(dim=1, keepdim=True)
        smoothing = 0.0
    return nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) + centering


def fit(spec: FitSpec) -> LoopResult:
    """Train, validate, keep the best weights in ``folder/model.safetensors``.

    Raises
    ------
    Interrupted
        On SIGINT or SIGTERM, after a checkpoint.
    PrefcliError
        If the loss is no longer a number, or a validation's logits are not and no weights have been kept yet.
    """
    training = _Training(spec)
    state, options = training.state, spec.options
    last_checkpoint = time.monotonic()
    began = last_checkpoint - state.elapsed
    time_is_up = False
    progress, battles_left = spec.progress, spec.battles_until(spec.total_steps) - spec.battles_until(state.steps)
    progress.skip(spec.battles_until(state.steps))
    with signals() as received:
        batches = spec.batches(state.epoch, state.batch)
        while not state.finished:
            started = time.perf_counter()
            rows, passes = next(batches)
            number = state.steps + 1
            end_of_epoch = state.batch + 1 == spec.batches_per_epoch
            last = time_is_up or number == spec.total_steps
            validating = end_of_epoch or last or (options.eval_every > 0 and number % options.eval_every == 0)
            logging = validating or number % options.log_every == 0
            training.step(rows, passes, logging=logging)
            state.elapsed = time.monotonic() - began
            signal_number, time_is_up, checkpoint_due = training.exchange(
                received(),
                time_is_up=0 < options.max_time * 60 < state.elapsed,
                checkpoint_due=time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS,
                logging=logging,
            )
            if options.checkpoint_every:
                checkpoint_due = state.steps % options.checkpoint_every == 0
            if checkpoint_due:
                training.wait_for_device()
            state.seconds += time.perf_counter() - started
            battles_left -= len(rows)
            progress.advance(len(rows), training.note)

            if validating:
                training.validate(last=end_of_epoch or last)
            if end_of_epoch:
                state.epoch, state.batch = state.epoch + 1, 0
            state.finished |= last
            if spec.on_step_end is not None:
                spec.on_step_end(state)
            if checkpoint_due or signal_number or state.finished:
                training.checkpoint()
                last_checkpoint = time.monotonic()
            if signal_number and not state.finished:
                raise Interrupted(
                    signal_number,
                    f"interrupted after step {state.steps} of {spec.total_steps}; a checkpoint is saved",
                    hint=f"Continue with: prefcli train --resume {shlex.quote(str(spec.run or spec.folder))}",
                )
    progress.skip(battles_left)  # of a training that stopped early
    if state.steps < spec.total_steps and time_is_up:
        spec.reporter.note(f"stopped after {options.max_time:g} minutes, at step {state.steps} of {spec.total_steps}")
    spec.world.barrier()  # the main process has written what it keeps
    kept = kept_logits(spec.folder)
    if kept is None:
        return LoopResult(state, None)
    return LoopResult(state, kept[0], kept[1][:, SWAPPED] if len(kept) == 2 else None)


def forward_backward(
    spec: FitSpec,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rows: NDArray[np.intp],
    passes: list[Pass],
) -> Tensor:
    """Forward and loss under autocast, backward through the scaler, for this process's share of a batch.

    The loss is the mean over the whole batch, however it is cut into passes and spread over processes.

    Returns
    -------
    The loss on the device, to be averaged over processes.
    """
    options, placement, world = spec.options, spec.model.placement, spec.world
    module.train()
    # Not by the module: after a validation, FSDP's module may list gathered parameters, whose gradients are others.
    optimizer.zero_grad(set_to_none=True)
    # A process without a share of the last, small batch takes part in the exchange with weight 0.
    share = (world.size if world.rank < len(rows) else 0.0) / (len(rows) * (2 if options.computes_both_orders else 1))
    # In a sharded model each pass is an exchange: a process with fewer passes repeats one with weight 0.
    missing = _max_passes(spec, rows) - len(passes) if fsdp.is_sharded(module) else 0
    weighted = [(each, share) for each in passes] + [(passes[-1], 0.0)] * missing
    total = torch.zeros((), device=placement.device)
    for number, (each, weight) in enumerate(weighted, start=1):
        targets = spec.target_tensor(each)
        with _gradient_sync(module, enabled=number == len(weighted)):
            with torch.autocast(placement.device.type, placement.dtype, enabled=placement.precision != "fp32"):
                logits = spec.model.forward(module, each)
                bases = spec.base_tensor(each)
                loss = loss_of(logits.float(), targets, options, ties=TIE not in spec.unseen, bases=bases) * weight
            scaler.scale(loss).backward()
        total += loss.detach()
    return total


def update(
    module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, rate: float, clip: float
) -> Tensor:
    """Clip the gradient, step the optimizer, update the scale.

    Returns
    -------
    The gradient's norm before it was clipped, on the device; not finite where the scaler skipped the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    scaler.unscale_(optimizer)
    norm = fsdp.full_tensor(torch.nn.utils.clip_grad_norm_(module.parameters(), clip or math.inf))
    scaler.step(optimizer)
    scaler.update()
    return norm


class _Training:
    """A fit under way: module, optimizer, scaler and state, and what is not logged yet."""

    def __init__(self, spec: FitSpec) -> None:
        module, placement = spec.model.module, spec.model.placement
        checkpoint_activations(spec)
        self.spec = spec
        self.optimizer = make_optimizer(module, spec.options)
        self.scaler = make_scaler(placement)
        torch.manual_seed(spec.options.seed + 1 + spec.world.rank)
        self.state = self._restored() if spec.resume else TrainState()
        self.module = module
        if not spec.world.alone and not fsdp.is_sharded(module):
            self.module = _data_parallel(module, placement.device)
        self.log = MetricsLog(
            spec.folder / METRICS, self.state.steps, spec.trackers, enabled=spec.world.is_main_process
        )
        self.loss = torch.zeros((), device=placement.device)
        """Sum of this process's losses since the last log line or checkpoint."""
        self.grad_norm = _Reading(self.loss)
        """Of the last step."""
        self.counted = True
        """Whether the last step is in the state's counts of steps that were taken and skipped."""
        self.rate, self.scale = 0.0, 1.0
        self.name = f"{spec.name}: " if spec.name else ""
        self.note = spec.name
        """What stands beside the progress bar."""

    def step(self, rows: NDArray[np.intp], passes: list[Pass], *, logging: bool) -> None:
        """One optimizer step over a batch."""
        state, options = self.state, self.spec.options
        self.loss += forward_backward(self.spec, self.module, self.optimizer, self.scaler, rows, passes)
        self._count_step()  # the step before: only now, when the device has work, so it does not wait for the host
        self.rate = learning_rate(state.optimizer_steps, self.spec.total_steps, options.learning_rate, options.warmup)
        if logging:
            self.scale = self.scaler.get_scale()
        self.grad_norm = _Reading(update(self.module, self.optimizer, self.scaler, self.rate, options.clip))
        self.counted = False
        state.batch += 1
        state.steps += 1
        state.battles += len(rows)
        state.unlogged_steps += 1

    def _count_step(self) -> None:
        """Count the last step as taken, or as skipped: the scaler skips steps whose gradient is not finite."""
        if self.counted:
            return
        state = self.state
        skipped = self.scaler.is_enabled() and not math.isfinite(self.grad_norm.value)
        state.optimizer_steps += not skipped
        state.skipped += skipped
        state.unlogged_skips += skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        self.counted = True
        if state.skipped_in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise Diverged(
                f"float16 overflowed in {MAX_SKIPS_IN_A_ROW} steps in a row, up to step {state.steps}",
                hint=DIVERGED_HINT,
            )

    def exchange(
        self, signal_number: int, *, time_is_up: bool, checkpoint_due: bool, logging: bool
    ) -> tuple[int, bool, bool]:
        """Agree with the other processes after a step, by one small all-reduce, and write the log line if one is due.

        Parameters
        ----------
        signal_number:
            The signal that this process received; 0 for none.
        time_is_up, checkpoint_due:
            Whether this process finds so.
        logging:
            Whether a log line is due.

        Returns
        -------
        Signal, ``time_is_up`` and ``checkpoint_due``, as any process has them.
        """
        flags = [signal_number == signal.SIGINT, signal_number == signal.SIGTERM, time_is_up, checkpoint_due]
        *sums, loss = self.spec.world.sum([*map(float, flags), float(self.loss) if logging else 0.0])
        interrupted, terminated, time_is_up, checkpoint_due = (value > 0 for value in sums)
        if logging:
            self._write_log(loss / self.spec.world.size)
        return signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0, time_is_up, checkpoint_due

    def wait_for_device(self) -> None:
        """So that the time of the steps is not taken for that of the checkpoint which follows."""
        float(self.loss)

    def _write_log(self, loss: float) -> None:
        """A line of ``metrics.jsonl``: means and counts over the steps since the line before."""
        self._count_step()
        state = self.state
        loss = (state.unlogged_loss + loss) / state.unlogged_steps
        grad_norm = self.grad_norm.value
        self._check(loss, grad_norm)
        self.log.write(
            step=state.steps, epoch=state.epoch, lr=self.rate, loss=loss, grad_norm=grad_norm, scale=self.scale,
            skipped=state.unlogged_skips,
        )  # fmt: skip
        self.loss.zero_()
        state.unlogged_loss, state.unlogged_steps, state.unlogged_skips = 0.0, 0, 0
        self.note = f"{self.name}loss {loss:.4f}, lr {self.rate:.2g}" + (
            f", {state.skipped} skipped" if state.skipped else ""
        )

    def _check(self, loss: float, grad_norm: float) -> None:
        """Stop a training that has gone wrong instead of letting it run for hours."""
        if not self.scaler.is_enabled() and not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(
                f"the loss is no longer a number at step {self.state.steps} (loss {loss}, gradient's norm {grad_norm}, "
                f"learning rate {self.rate:.3g})",
                hint=DIVERGED_HINT,
            )

    def validate(self, *, last: bool) -> None:
        """Validation log loss of the weights as they are; keeps them if they are the best so far.

        Parameters
        ----------
        last:
            Whether an epoch or the training ends here: without validation battles these weights are kept.
        """
        spec, state, reporter = self.spec, self.state, self.spec.reporter
        if spec.validation is None:
            if last:
                _keep(spec, None)
            return
        labels = spec.validation.labels
        # Of several processes each computes a share, and this one tells how far it is with its own.
        with reporter.track("validating", len(spec.validation)) as progress:
            logits = predict_shared(
                spec, spec.validation, both_orders=True, done=lambda count: progress.advance(count * spec.world.size)
            )
        if len(broken := metrics.find_non_finite(logits)):
            self._refuse_validation(broken)
            return
        if spec.validation_bases is not None:
            logits = logits + spec.validation_bases
        logits = metrics.with_unseen(logits, spec.unseen)
        loss = metrics.log_loss(metrics.held_out_probabilities(logits[0], labels, spec.unseen), labels)
        self.log.write(step=state.steps, epoch=state.epoch, validation_log_loss=loss)
        better = loss < state.best
        if better or spec.options.keep == "last":
            _keep(spec, logits)
        if better:
            state.best, state.best_step, state.stale = loss, state.steps, 0
        else:
            state.stale += 1
            if spec.options.patience and state.stale >= spec.options.patience:
                state.finished = True
                reporter.note(
                    f"{self.name}stopped early: no better validation in {state.stale} attempts, best {state.best:.4f} "
                    f"at step {state.best_step}"
                )
        spec.progress.result(f"{self.name}step {state.steps:,}: validation log loss {loss:.4f}, best {state.best:.4f}")

    def _refuse_validation(self, broken: NDArray[np.intp]) -> None:
        """End the training with the weights kept so far: what computes no numbers now would predict none."""
        spec, state = self.spec, self.state
        first = spec.validation_ids[broken[0]] if spec.validation_ids else f"number {broken[0] + 1}"
        what = (
            f"step {state.steps}: logits of {metrics.plural(len(broken), 'validation battle')} are not finite numbers "
            f"(the first is battle {first})"
        )
        if not state.best_step:
            hint = "Train with --precision bf16 or fp32." if self.scaler.is_enabled() else DIVERGED_HINT
            raise Diverged(f"{what}, and no weights have been kept yet", where=str(spec.folder), hint=hint)
        kept = f"step {state.best_step}" if spec.options.keep == "best" else "the last validation"
        spec.reporter.warn(f"{what}: training ends here, with the weights kept at {kept}")
        state.finished = True

    def checkpoint(self) -> None:
        """Write everything that is needed to go on; all processes call it, the main one writes."""
        self._count_step()
        spec, state, module = self.spec, self.state, self.spec.model.module
        [loss] = spec.world.sum([float(self.loss)])
        self._check(loss, self.grad_norm.value)
        state.unlogged_loss += loss / spec.world.size
        self.loss.zero_()
        random_states = spec.world.gather(checkpoints.random_states(spec.model.placement.device))
        model = fsdp.full_state_dict(weights.trainable_state_dict(module), spec.world)
        optimizer = fsdp.full_optimizer_state_dict(self.optimizer, spec.world)
        if spec.world.is_main_process:
            random = {f"{rank}.{name}": t for rank, states in enumerate(random_states) for name, t in states.items()}
            # The state was called position; checkpoints keep the name.
            others = {"position": asdict(state), "scaler": self.scaler.state_dict(), "ranks": spec.world.size}
            checkpoints.save(
                spec.folder / CHECKPOINTS, state.steps, checkpoints.Checkpoint(model, optimizer, random, others)
            )

    def _restored(self) -> TrainState:
        """Set everything to where the newest intact checkpoint left it; a run without one starts over."""
        spec = self.spec
        checkpoint = checkpoints.load_latest(spec.folder / CHECKPOINTS, spec.reporter.warn)
        if checkpoint is None:
            spec.reporter.note("the run has no checkpoint yet: it starts over")
            return TrainState()
        weights.load_state_dict(spec.model.module, checkpoint.model)
        fsdp.load_optimizer_state_dict(self.optimizer, checkpoint.optimizer)
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        rank = spec.world.rank if checkpoint.state["ranks"] == spec.world.size else 0
        prefix = f"{rank}."
        own = {name.removeprefix(prefix): t for name, t in checkpoint.random.items() if name.startswith(prefix)}
        checkpoints.restore_random_states(own, spec.model.placement.device)
        state = TrainState(**checkpoint.state["position"])
        if state.best_step:
            kept_logits(spec.folder)  # refuses damaged weights now, not after hours of work
        spec.reporter.note(f"resumed at step {state.steps} of {spec.total_steps}")
        return state


class _Reading:
    """A number on its way from the device to the host, which waits for it only when it is asked for."""

    def __init__(self, number: Tensor) -> None:
        self._number, self._arrived = number, None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def value(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._number)


def _max_passes(spec: FitSpec, rows: NDArray[np.intp]) -> int:
    """The largest number of forward passes that any process makes over a batch."""
    return max(
        len(spec.model.passes(
            spec.lengths, spec.share(rows, rank), spec.options.micro_batch,
            both_orders=spec.options.computes_both_orders,
        ))
        for rank in range(spec.world.size)
    )  # fmt: skip


def _gradient_sync(module: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients of several passes are added up before they are exchanged with other processes.

    Not those of a sharded model: until they are exchanged, every process would keep all of them.
    """
    if isinstance(module, DistributedDataParallel) and not enabled:
        return module.no_sync()
    return contextlib.nullcontext()


def predict_shared(
    spec: FitSpec,
    battles: TokenisedBattles,
    *,
    both_orders: bool = False,
    done: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Logits ``[orders, n, 3]``, the battles shared out among the processes, the result on all of them.

    ``done`` is called with the number of battles that each step of this process finished.
    """
    world = spec.world
    share = np.arange(len(battles))[world.rank :: world.size]
    share = share if len(share) else np.arange(1)
    sharded = fsdp.is_sharded(spec.model.module)
    logits_of_share = spec.model.logits_from_tokens(
        battles if world.alone else battles.take(share),
        both_orders=both_orders,
        done=done,
        # Each pass of a sharded model is an exchange: all processes make the same number.
        max_over_ranks=(lambda passes: max(world.gather(passes))) if sharded else None,
    )
    logits = np.empty((1 + both_orders, len(battles), len(OUTCOMES)))
    for rank, part in enumerate(world.gather(logits_of_share)):
        of_rank = logits[:, rank :: world.size]
        of_rank[:] = part[:, : of_rank.shape[1]]
    return logits


def _keep(spec: FitSpec, logits: NDArray[np.float64] | None) -> None:
    """Write the weights as they are, and their logits of the validation battles; all processes call it, one writes.

    Two files cannot change at once. So the record, written first, names both the weights that lie there and those about
    to come: whenever this is interrupted, it knows the weights that are found.
    """
    state = fsdp.full_state_dict(weights.trainable_state_dict(spec.model.module), spec.world)
    if not spec.world.is_main_process:
        return
    path = spec.folder / WEIGHTS
    with files.atomic(path, needs=weights.nbytes(state)) as temporary:
        weights.save(state, temporary)
        recorded = _recorded(spec.folder)
        before = files.sha256(path) if path.exists() else ""
        entries = {before: recorded[before]} if before in recorded else {}
        entries[files.sha256(temporary)] = None if logits is None else logits.tolist()
        files.write_text(spec.folder / KEPT_RECORD, files.with_checksum(entries))


def _recorded(folder: Path) -> dict[str, Any]:
    """Digests of kept weights and their logits; empty where the file is missing or damaged."""
    try:
        return files.verify_checksum((folder / KEPT_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def kept_logits(folder: Path) -> NDArray[np.float64] | None:
    """Logits of the validation battles by the weights kept so far, shape ``[orders, n, 3]``; None without validation.

    There is one order of the answers in what an earlier release kept, else two.

    Raises
    ------
    ModelError
        If the kept weights are not those that were written.
    """
    recorded = _recorded(folder)
    try:
        logits = recorded[files.sha256(folder / WEIGHTS)]
    except (OSError, KeyError):
        raise ModelError(
            f"the weights kept so far are damaged: {WEIGHTS} does not match {KEPT_RECORD}",
            where=str(folder),
            hint="Nothing else holds them: delete the run and train again.",
        ) from None
    if logits is None:
        return None
    array = np.array(logits, dtype=np.float64)
    return array if array.ndim == 3 else array[None]


def _data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    # Encoders have heads and poolers that this model does not use: their gradients never come.
    return DistributedDataParallel(
        module, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
    )


class MetricsLog:
    """``metrics.jsonl``, cut back to the checkpoint when a training is resumed; trackers get the same lines."""

    def __init__(self, path: Path, steps: int, trackers: Trackers, *, enabled: bool) -> None:
        self._path = path
        self._trackers = trackers
        self._enabled = enabled
        if not enabled:
            return
        records = read_metrics(path.parent) if path.exists() else []
        records = [record for record in records if record["step"] <= steps]
        files.write_text(path, "".join(files.to_json(record) + "\n" for record in records))
        trackers.begin(records)

    def write(self, **record: Any) -> None:
        if self._enabled:
            finite = {name: value for name, value in record.items() if math.isfinite(value)}
            files.append_line(self._path, files.to_json(finite))
            self._trackers.record(finite)


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Catch SIGINT and SIGTERM; the loop asks which one came. A second one ends the process as usual."""
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
        for caught, handler in previous.items():
            signal.signal(caught, handler)

"""Masked language modelling on the training battles' text before a fit: the encoder gets used to these texts.

The task is BERT's (Devlin et al., NAACL 2019, section 3.1): 15 % of the tokens are to be predicted, of which 80 % are
masked, 10 % replaced and 10 % kept; on the text of the task itself as in Gururangan et al., "Don't stop pretraining"
(ACL 2020). The sequences are those of the fit, in its order of battles, and the encoder is the fit's own: transformers'
masked language model of its family is put around it (:func:`prefcli.encoders.masked_language_model`) and dropped at the
end. Held-out battles are never read: a fold's encoder sees the fold's training battles only.

Which tokens are masked is a function of (seed, step), and checkpoints hold the rest, so a resumed training ends with
the same bytes. In ``metrics.jsonl`` the steps before the fit count up to 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefcli import encoders
from prefcli.compute.distributed import World
from prefcli.errors import Diverged, InputError, Interrupted
from prefcli.models.architectures import EncoderCall, is_causal
from prefcli.models.batches import prefetch
from prefcli.storage.runs import CHECKPOINTS, METRICS
from prefcli.training import checkpoints, loop
from prefcli.training.duration import FirstSteps
from prefcli.training.trackers import NOTHING

FOLDER = Path(CHECKPOINTS) / "pretraining"
"""The checkpoints of a pre-training; they go with those of the fit."""
MASKED_SHARE = 0.15
WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""
NOT_MASKED = -100
"""transformers' label of a token that is not to be predicted."""


@dataclass
class PretrainState:
    """How far a pre-training is; part of its checkpoints."""

    steps: int = 0
    seconds: float = 0.0
    unlogged_loss: float = 0.0
    """Sum of the losses since the last line of ``metrics.jsonl``."""
    first_loss: float | None = None
    last_loss: float | None = None
    """Of the first and the last line of ``metrics.jsonl``."""


def check(source: encoders.ResolvedModel, name: str, tokenizer: Any, world: World) -> None:
    """Refuse what cannot be pre-trained.

    Raises
    ------
    InputError
        If transformers has no masked language model of the encoder's family, its tokenizer no mask, or several
        processes train.
    """
    if not world.alone:
        raise InputError(
            "--pretrain runs in one process, and torchrun started several",
            hint="Pre-train in one process (--pretrain N --max-steps 1), then train with that run's folder as "
            "--encoder.",
        )
    model_type = encoders.without_masked_language_model(source)
    hint = "Leave --pretrain out, or choose an encoder with one: BERT, RoBERTa, DeBERTa, ModernBERT, minilm, tiny."
    if model_type:
        raise InputError(f"--pretrain: transformers has no masked language model for {name} ({model_type})", hint=hint)
    if tokenizer.mask_token is None:
        raise InputError(f"--pretrain: the tokenizer of {name} has no mask token", hint=hint)


def pretrain(spec: loop.FitSpec, source: encoders.ResolvedModel, first_steps: FirstSteps | None = None) -> float:
    """Train the encoder of ``spec`` for ``options.pretrain`` steps, or what is left of them.

    Parameters
    ----------
    spec:
        Of the fit that follows.
    source:
        The encoder's files, for a masked language model's head that they may hold.
    first_steps:
        Observes after each step how long the steps take.

    Returns
    -------
    Battles per second; if there are several steps, without the first one, which warms up.

    Raises
    ------
    Interrupted
        On SIGINT or SIGTERM, after a checkpoint.
    Diverged
        If the loss is no longer a number.
    """
    return _Pretraining(spec, source).run(first_steps)


@dataclass(frozen=True)
class _MaskedPass:
    inputs: dict[str, Tensor]
    labels: Tensor
    """The tokens to be predicted, :data:`NOT_MASKED` elsewhere; shape of the ids."""


class _Pretraining:
    def __init__(self, spec: loop.FitSpec, source: encoders.ResolvedModel) -> None:
        from transformers import DataCollatorForLanguageModeling

        options = dataclasses.replace(spec.options, lr=spec.options.pretrain_learning_rate, layer_decay=1.0)
        self.spec, self.steps, self.rate = spec, options.pretrain, options.learning_rate
        encoder = spec.model.module.encoder
        if is_causal(encoder) or not spec.model.traits.ignores_padding:
            why = "reads texts from left to right" if is_causal(encoder) else "gives other results with padding"
            raise InputError(f"--pretrain: {options.encoder_name} {why}", hint="Leave --pretrain out.")
        loop.checkpoint_activations(spec)
        self.encoder = encoder
        self.module = encoders.masked_language_model(encoder, source, seed=options.seed, reporter=spec.reporter)
        self.module.to(spec.model.placement.device)
        self.call = EncoderCall(self.module)
        self.collator = DataCollatorForLanguageModeling(spec.model.tokenizer, mlm_probability=MASKED_SHARE)
        self.special_ids = torch.tensor(sorted(spec.model.tokenizer.all_special_ids))
        self.optimizer = loop.make_optimizer(self.module, options)
        self.scaler = loop.make_scaler(spec.model.placement)
        torch.manual_seed(options.seed)
        self.state = self._restored()
        # Trackers begin with the fit, and count its steps from 0: what is before is in the run's own log alone.
        self.log = loop.MetricsLog(spec.folder / METRICS, self.state.steps - self.steps, NOTHING, enabled=True)

    def run(self, first_steps: FirstSteps | None) -> float:
        spec, state, options = self.spec, self.state, self.spec.options
        began, warm_up = time.monotonic(), (0, 0.0)
        spec.progress.skip(spec.battles_until(state.steps))
        note = ""
        with loop.signals() as received, _only_masked(self.encoder) as selected:
            for rows, passes in prefetch(self._prepare, range(state.steps, self.steps)):
                started = time.perf_counter()
                state.unlogged_loss += self._step(passes, selected)
                state.steps += 1
                state.seconds += time.perf_counter() - started
                if state.steps == 1 < self.steps:
                    warm_up = (1, state.seconds)
                if state.steps % options.log_every == 0 or state.steps == self.steps:
                    note = self._write_log()
                spec.progress.advance(len(rows), note)
                if first_steps is not None:
                    first_steps.observe(rows, state.steps, state.seconds, state.seconds)
                due = time.monotonic() - began > loop.CHECKPOINT_SECONDS
                if options.checkpoint_every:
                    due = state.steps % options.checkpoint_every == 0
                if due or received() or state.steps == self.steps:
                    self._checkpoint()
                    began = time.monotonic()
                if received() and state.steps < self.steps:
                    raise Interrupted(
                        received(),
                        f"interrupted after step {state.steps} of {self.steps} of the pre-training; a checkpoint is "
                        "saved",
                        hint=f"Continue with: prefcli train --resume {shlex.quote(str(spec.run or spec.folder))}",
                    )
        self.optimizer.zero_grad(set_to_none=True)
        if state.first_loss is not None and state.last_loss is not None:
            spec.progress.result(
                f"{spec.name and f'{spec.name}: '}pre-trained for {self.steps:,} steps: loss of masked tokens "
                f"{state.first_loss:.4f} -> {state.last_loss:.4f}"
            )
        return (spec.battles_until(state.steps) - spec.battles_until(warm_up[0])) / (state.seconds - warm_up[1] or 1.0)

    def _prepare(self, step: int) -> tuple[NDArray[np.intp], list[_MaskedPass]]:
        """The battles of a step, and their sequences with masks."""
        spec = self.spec
        rows = spec.batch(*divmod(step, spec.batches_per_epoch))
        seeds = np.random.SeedSequence([spec.options.seed, step]).generate_state(1, np.uint64)
        self.collator.generator = torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))
        passes = []
        for positions, orders in spec.model.passes(spec.lengths, rows, spec.options.micro_batch):
            inputs = spec.model.prepare(spec.train, positions, orders).inputs
            ids = inputs["input_ids"].clone()
            fixed = torch.isin(ids, self.special_ids) | (inputs["attention_mask"] == 0)
            ids, labels = self.collator.torch_mask_tokens(ids, special_tokens_mask=fixed)
            if bool((labels != NOT_MASKED).any()):
                passes.append(_MaskedPass({**inputs, "input_ids": ids}, labels))
        return rows, passes

    def _step(self, passes: Sequence[_MaskedPass], selected: list[Tensor]) -> float:
        """One optimizer step; the loss is the mean over all masked tokens of the batch."""
        if not passes:  # texts of a few tokens: no token was drawn
            return 0.0
        place, options = self.spec.model.placement, self.spec.options
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        count = sum(int((each.labels != NOT_MASKED).sum()) for each in passes)
        total = torch.zeros((), device=place.device)
        for each in passes:
            masked = (each.labels != NOT_MASKED).to(place.device)
            selected[:] = [masked]
            inputs = {name: tensor.to(place.device, non_blocking=True) for name, tensor in each.inputs.items()}
            with torch.autocast(place.device.type, place.dtype, enabled=place.precision != "fp32"):
                logits = self.call.output(self.module, inputs).logits
                targets = each.labels.to(place.device)[masked]
                loss = nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum") / count
            self.scaler.scale(loss).backward()
            total += loss.detach()
        rate = loop.learning_rate(self.state.steps, self.steps, self.rate, WARMUP)
        loop.update(self.module, self.optimizer, self.scaler, rate, options.clip)
        return float(total)

    def _write_log(self) -> str:
        """A line of ``metrics.jsonl``: the mean loss since the line before; returns it for the progress."""
        state, every = self.state, self.spec.options.log_every
        loss = state.unlogged_loss / (state.steps % every or every)
        if not np.isfinite(loss):
            raise Diverged(
                f"the loss is no longer a number at step {state.steps} of the pre-training",
                hint="Try a lower --pretrain-lr, a smaller --clip, or --precision fp32.",
            )
        state.unlogged_loss = 0.0
        state.first_loss, state.last_loss = state.first_loss or loss, loss
        self.log.write(step=state.steps - self.steps, masked_lm_loss=loss)
        return f"{self.spec.name and f'{self.spec.name}: '}pre-training, loss {loss:.4f}"

    def _checkpoint(self) -> None:
        random = checkpoints.random_states(self.spec.model.placement.device)
        others = {"position": dataclasses.asdict(self.state), "scaler": self.scaler.state_dict()}
        checkpoint = checkpoints.Checkpoint(self.module.state_dict(), self.optimizer.state_dict(), random, others)
        checkpoints.save(self.spec.folder / FOLDER, self.state.steps, checkpoint)

    def _restored(self) -> PretrainState:
        """Set everything to where the newest intact checkpoint left it."""
        spec = self.spec
        checkpoint = checkpoints.load_latest(spec.folder / FOLDER, spec.reporter.warn) if spec.resume else None
        if checkpoint is None:
            if spec.resume:
                spec.reporter.note("the pre-training has no checkpoint yet: it starts over")
            return PretrainState()
        self.module.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        checkpoints.restore_random_states(checkpoint.random, spec.model.placement.device)
        state = PretrainState(**checkpoint.state["position"])
        spec.reporter.note(f"resumed at step {state.steps} of {self.steps} of the pre-training")
        return state


@contextlib.contextmanager
def _only_masked(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Let the head see the masked tokens alone: a vocabulary's logits for all of them would take most of the time.

    Yields a list whose one item, which tokens are masked ``[batch, length]``, is set before each pass. The logits are
    then of shape ``[1, masked, vocabulary]``.
    """
    selected: list[Tensor] = []

    def select(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[selected[0]].unsqueeze(0)
        return output

    handle = encoder.register_forward_hook(select)
    try:
        yield selected
    finally:
        handle.remove()

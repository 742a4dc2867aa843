"""How long a training will take: said once, as soon as its first steps show it, where that is long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefcli.options import TrainOptions
from prefcli.reporting import Reporter

if TYPE_CHECKING:
    from prefcli.training.loop import FitSpec, TrainState

MIN_REPORTED = 300.0
"""Seconds from which a training counts as long."""
MIN_TIMED = 5.0
"""Seconds of steps that an estimate needs."""
SLOW_STEP = 60.0
"""Seconds of a first step that are an estimate by themselves: what it takes to warm up matters little."""
FORWARD_SHARE = 1 / 3
"""Of a training step; the backward pass costs two forward passes."""
MINILM_PARAMETERS = 10_600_000
"""Of MiniLM, without its embeddings, which cost no time."""


@dataclass
class TimeWarning:
    """Warns once of a long training, with what would be faster."""

    reporter: Reporter
    faster: str = ""
    """Options, in words."""
    said: bool = False

    def expect(self, seconds: float) -> None:
        """The training will take so many seconds more."""
        if not self.said and seconds >= MIN_REPORTED:
            self.reporter.warn(f"this will take about {about(seconds)}. Faster: {self.faster}")
        self.said = True


@dataclass
class FirstSteps:
    """Called after each step of a neural fit: tells ``warning`` how long all of them will take.

    Steps take as long as their tokens; the first ones, which warm up, are not counted.
    """

    spec: FitSpec
    warning: TimeWarning
    fits: float
    """How many fits of this size there are, this one included."""
    _warm: tuple[float, int] | None = field(default=None, init=False)
    """Seconds and tokens of the steps that are not counted."""
    _tokens: int = field(default=0, init=False)

    def __call__(self, state: TrainState) -> None:
        if self.warning.said or state.finished:
            return
        rows = self.spec.batch(*divmod(state.steps - 1, self.spec.batches_per_epoch))
        self.observe(rows, state.steps, state.seconds, state.elapsed)

    def observe(self, rows: NDArray[np.intp], steps: int, seconds: float, elapsed: float) -> None:
        """A step, of the fit or of the pre-training before it, is done.

        Parameters
        ----------
        rows:
            Its battles.
        steps, seconds:
            How many steps are done, and how long they took.
        elapsed:
            Seconds since the training began.
        """
        if self.warning.said:
            return
        spec, on_gpu = self.spec, self.spec.model.placement.device.type == "cuda"
        self._tokens += int(spec.lengths[rows].sum())
        if on_gpu and steps % spec.options.log_every:
            return  # the host has not waited for the device: what it measured is too short
        if self._warm is None:
            is_slow = steps == 1 and seconds >= SLOW_STEP
            self._warm = (0.0, 0) if is_slow else (seconds, self._tokens)
            if not is_slow:
                return
        seconds, tokens = seconds - self._warm[0], self._tokens - self._warm[1]
        if seconds >= MIN_TIMED:
            self.warning.expect(self.fits * self._seconds(seconds / tokens) - elapsed)

    def _seconds(self, per_token: float) -> float:
        """Of one fit: pre-training, training and validation."""
        spec, options = self.spec, self.spec.options
        training = per_token * float(spec.lengths.mean()) * spec.battles_until(spec.total_steps)
        if spec.validation is not None:
            every = options.eval_every or spec.total_steps
            validations = max(math.ceil(spec.total_steps / spec.batches_per_epoch), spec.total_steps // every)
            orders = 2 if options.architecture == "cross-encoder" and not options.computes_both_orders else 1
            lengths = spec.model.lengths(spec.validation)
            training += FORWARD_SHARE * per_token * float(lengths.sum()) * validations * orders
        training = min(training, options.max_time * 60) if options.max_time else training
        return training + per_token * float(spec.lengths.mean()) * spec.battles_until(options.pretrain)


def faster_than(options: TrainOptions, parameters: int, *, is_ablation: bool) -> str:
    """What is faster than a neural training, in words; ``parameters`` without embeddings."""
    choices = ["--limit N, fewer battles" if is_ablation else "--recipe fast, boosted text statistics in minutes"]
    if parameters > 2 * MINILM_PARAMETERS:
        choices.append(f"--encoder minilm, {parameters / MINILM_PARAMETERS:.0f} times smaller")
    if options.pretrain:
        choices.append("a smaller --pretrain")
    if options.folds > 2 and not is_ablation:
        choices.append("fewer --folds")
    return "; ".join(choices)


def about(seconds: float) -> str:
    """Two hours and more in hours, two days and more in days, else in minutes."""
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"

"""The course of a training, from ``metrics.jsonl``: ``curves.svg`` in a run's folder, and the same on a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.rendering.templating import render
from prefcli.storage import runs

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 54, WIDTH - 16, 40, HEIGHT - 36
"""Edges of the plot's area."""
MAX_POINTS = 300
"""A line has no more points: they could not be seen."""
MAX_DOTS = 50
"""Of more validations only the best has a dot: each round of boosting is one."""
WINDOWS = 25
"""A point of the training loss is the mean over this part of the course, at least."""

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Course:
    """What ``metrics.jsonl`` says of a training."""

    training: Points
    """Training loss by step, smoothed."""
    validations: Points
    """Log loss of held-out battles by step; of boosting, that of its inner folds by round."""
    boosting: bool = False

    @property
    def last(self) -> int:
        """The last step."""
        return max((step for step, _ in (*self.training, *self.validations)), default=1)

    @property
    def best(self) -> tuple[int, float] | None:
        """The step of the lowest validation, and its value."""
        return min(self.validations, key=lambda point: point[1], default=None)

    @property
    def description(self) -> str:
        """The course in words."""
        if self.best is None:
            return f"Training loss over {self.last:,} steps"
        step, loss = self.best
        if self.boosting:
            return f"Log loss of the inner folds over {self.last:,} rounds of boosting, best {loss:.4f} at {step:,}"
        return f"Training loss over {self.last:,} steps; validation log loss, best {loss:.4f} at step {step:,}"

    @property
    def dots(self) -> Points:
        """The validations that get a dot: all, or the best if they are too many to see each."""
        return self.validations if self.best is None or len(self.validations) <= MAX_DOTS else [self.best]


def course_of_run(folder: Path, config: Mapping[str, Any]) -> Course:
    """The course of a run's training, or of one of its folds; ``config`` is its ``config.json``."""
    battles, batch = config["data"]["train_battles"], config["options"]["batch_size"]
    return course_of(runs.read_metrics(folder), train_battles=battles, batch_size=batch)


def course_of(records: Sequence[Mapping[str, Any]], *, train_battles: int, batch_size: int) -> Course:
    """The course of a training.

    A line of ``metrics.jsonl`` is a mean over the steps since the line before. The last one of an epoch covers fewer
    steps, and its last step fewer battles, so lines are weighted by their battles.

    Parameters
    ----------
    records:
        The lines of ``metrics.jsonl``.
    train_battles, batch_size:
        Battles of an epoch and of a step.
    """
    inner = [(line["step"], line["inner_log_loss"]) for line in records if "inner_log_loss" in line]
    if inner:
        return Course([], inner, boosting=True)
    training = [(line["step"], line["loss"]) for line in records if math.isfinite(line.get("loss", math.nan))]
    validations = [(line["step"], line["validation_log_loss"]) for line in records if "validation_log_loss" in line]
    battles = np.diff([0, *(_battles_until(step, train_battles, batch_size) for step, _ in training)])
    return Course(_smoothed(training, battles.astype(np.float64)), validations)


def _battles_until(step: int, train_battles: int, batch_size: int) -> int:
    """Battles of all steps up to one; the last batch of an epoch may be smaller."""
    epochs, batches = divmod(step, math.ceil(train_battles / batch_size))
    return epochs * train_battles + min(batches * batch_size, train_battles)


def _smoothed(points: Points, weights: NDArray[np.float64]) -> Points:
    """Weighted means over the points that make up the last part of the course, at most :data:`MAX_POINTS` of them."""
    if not points:
        return []
    steps, values = np.array(points).T
    ends = np.cumsum(weights)
    sums = np.cumsum(weights * values)
    window = ends[-1] / WINDOWS
    complete = np.flatnonzero(ends >= window - 1e-9)
    chosen = complete[np.unique(np.linspace(0, len(complete) - 1, MAX_POINTS).astype(int))]
    begins = np.concatenate([[0.0], ends])
    first = np.searchsorted(begins, ends[chosen] - window + 1e-9, side="right") - 1
    before = np.concatenate([[0.0], sums])[first]
    means = (sums[chosen] - before) / (ends[chosen] - begins[first])
    return [(int(steps[i]), float(mean)) for i, mean in zip(chosen, means, strict=True)]


def learning_curves(course: Course, prior: float | None) -> str:
    """Training loss and validation log loss by step, as an SVG document.

    ``prior`` is the log loss of the held-out battles' class shares, drawn as a line to beat; None leaves it out.
    """
    losses = [loss for _, loss in (*course.training, *course.validations)] + ([prior] if prior is not None else [])
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    margin = max(0.05 * (high - low), 0.01)
    low, high = low - margin, high + margin
    last = course.last
    return render(
        "curves.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        bottom=BOTTOM,
        description=course.description,
        losses=np.linspace(low, high, 5).tolist(),
        steps=np.linspace(0, last, 5).tolist(),
        unit="round" if course.boosting else "step",
        prior=prior,
        course=course,
        x=lambda step: round(LEFT + (RIGHT - LEFT) * step / last, 1),
        y=lambda loss: round(TOP + (BOTTOM - TOP) * (high - loss) / (high - low), 1),
    )

"""The course of a training as a picture: ``curves.svg`` in a run's folder, from its ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefcli.rendering.templating import render

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 54, WIDTH - 16, 40, HEIGHT - 36
"""Edges of the plot's area."""
MAX_POINTS = 300
"""A line has no more points: they could not be seen."""

Points = list[tuple[int, float]]


def learning_curves(records: Sequence[Mapping[str, Any]], prior: float | None) -> str:
    """Training loss (mean over neighbouring steps) and validation log loss by step, as an SVG document.

    Parameters
    ----------
    records:
        The lines of ``metrics.jsonl``.
    prior:
        Log loss of the held-out battles' class shares, drawn as a line to beat; None leaves it out.
    """
    training = [(line["step"], line["loss"]) for line in records if math.isfinite(line.get("loss", math.nan))]
    validations = [(line["step"], line["validation_log_loss"]) for line in records if "validation_log_loss" in line]
    last = max([step for step, _ in (*training, *validations)], default=1)
    smoothed = _smoothed(training)
    losses = [loss for _, loss in (*smoothed, *validations)] + ([prior] if prior is not None else [])
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    margin = max(0.05 * (high - low), 0.01)
    low, high = low - margin, high + margin
    description = f"Training loss over {last:,} steps"
    if validations:
        best_step, best = min(validations, key=lambda point: point[1])
        description += f"; validation log loss, best {best:.4f} at step {best_step:,}"
    return render(
        "curves.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        bottom=BOTTOM,
        description=description,
        losses=np.linspace(low, high, 5).tolist(),
        steps=np.linspace(0, last, 5).tolist(),
        prior=prior,
        training=smoothed,
        validations=validations,
        x=lambda step: round(LEFT + (RIGHT - LEFT) * step / last, 1),
        y=lambda loss: round(TOP + (BOTTOM - TOP) * (high - loss) / (high - low), 1),
    )


def _smoothed(points: Points) -> Points:
    """Means of neighbouring points: each over a twenty-fifth of the course, at most :data:`MAX_POINTS`."""
    if len(points) < 3:
        return points
    window = max(1, len(points) // 25)
    steps, values = np.array(points).T
    sums = np.cumsum(np.concatenate([[0.0], values]))
    means = (sums[window:] - sums[:-window]) / window
    chosen = np.unique(np.linspace(0, len(means) - 1, MAX_POINTS).astype(int))
    return [(int(steps[i + window - 1]), float(means[i])) for i in chosen]

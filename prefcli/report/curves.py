"""The course of a training as a picture: ``curves.svg`` in a run's folder, from its ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from prefcli.report.markup import Html, element, joined

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 40, 36
POINTS = 300
"""At most this many points in a line: more would not be seen."""

STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; color: #1c2330; }
text { fill: currentColor; } .muted { fill: #5b6575; } .grid { stroke: #dfe3ea; } .prior { stroke: #5b6575; }
.training { stroke: #2f6fd0; } .validation { stroke: #d2691e; } circle { fill: #d2691e; }
@media (prefers-color-scheme: dark) { svg { background: #12161d; color: #e6e9ef; } .muted { fill: #9aa4b5; }
  .grid { stroke: #2b3341; } .training { stroke: #5b9bf5; } .validation { stroke: #f0924a; } circle { fill: #f0924a; } }
"""


def learning_curves(records: Iterable[Mapping[str, Any]], prior: float | None) -> Html:
    """Training loss (mean over neighbouring steps) and validation log loss by step, as an SVG document.

    Parameters
    ----------
    records:
        The lines of ``metrics.jsonl``.
    prior:
        Log loss of the held-out battles' own shares, drawn as a line to beat; None leaves it out.
    """
    steps: list[tuple[int, float]] = []
    validations: list[tuple[int, float]] = []
    for record in records:
        if "loss" in record and math.isfinite(record["loss"]):
            steps.append((record["step"], record["loss"]))
        elif "validation_log_loss" in record:
            validations.append((record["step"], record["validation_log_loss"]))
    training = _thinned(steps)
    levels = [value for _, value in (*training, *validations)] + ([prior] if prior is not None else [])
    low, high = min(levels, default=0.0), max(levels, default=1.0)
    margin = max(0.05 * (high - low), 0.01)
    low, high = low - margin, high + margin
    last = max([step for step, _ in (*steps, *validations)], default=1)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    parts: list[Html] = []
    for value in np.linspace(low, high, 5):
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value)))
        parts.append(element("text", f"{value:.3f}", class_="muted", x=LEFT - 8, y=y(value) + 4, text_anchor="end"))
    for step in np.linspace(0, last, 5):
        parts.append(
            element("text", f"{step:,.0f}", class_="muted", x=x(step), y=HEIGHT - BOTTOM + 18, text_anchor="middle")
        )
    parts.append(element("text", "step", class_="muted", x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end"))
    if prior is not None:
        parts.append(
            element("line", class_="prior", stroke_dasharray="4 4", x1=LEFT, x2=WIDTH - RIGHT, y1=y(prior), y2=y(prior))
        )
        parts.append(element("text", "prior", class_="muted", x=WIDTH - RIGHT, y=y(prior) - 5, text_anchor="end"))
    for name, points in (("training", training), ("validation", validations)):
        if points:
            path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
            parts.append(element("polyline", class_=name, points=path, fill="none", stroke_width=2))
    parts += [element("circle", cx=x(step), cy=y(value), r=4) for step, value in validations]
    described = f"Training loss over {last:,} steps"
    if validations:
        best_step, best = min(validations, key=lambda point: point[1])
        described += f"; validation log loss, best {best:.4f} at step {best_step:,}"
    return element(
        "svg",
        element("title", "Learning curves"),
        element("desc", described),
        element("style", Html(STYLE)),
        element("text", described, x=LEFT, y=22, font_weight="600"),
        joined(*parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of neighbouring points: a twenty-fifth of the course in each, at most :data:`POINTS`."""
    if len(points) < 3:
        return points
    window = max(1, len(points) // 25)
    values = np.array([value for _, value in points])
    steps = np.array([step for step, _ in points])
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(window, len(values) + 1)
    means = (sums[ends] - sums[ends - window]) / window
    chosen = np.unique(np.linspace(0, len(means) - 1, POINTS).astype(int))
    return [(int(steps[i + window - 1]), float(means[i])) for i in chosen]

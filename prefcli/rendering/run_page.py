"""``prefcli report`` and ``score --report``: predictions of battles as one page (``templates/run.html``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefcli import groups, metrics
from prefcli.rendering import run_plots
from prefcli.rendering.advice import Advice
from prefcli.rendering.curves import Course
from prefcli.rendering.evaluation import MAX_GROUPS, MIN_GROUP, Evaluation
from prefcli.rendering.page import render_page
from prefcli.rendering.tables import Table


@dataclass(frozen=True)
class RunPage:
    """What the page shows besides the evaluation."""

    title: str
    name: str
    """Of what predicted, in the first plot."""
    battles: str
    """How many battles, and of how many prompts."""
    cautions: Sequence[str] = ()
    """What is missing on the page, and what makes a figure doubtful, in sentences."""
    compared: Sequence[Table] = ()
    """Scores and differences of several files of predictions, of which this is one."""
    advice: Sequence[Advice] = ()
    calibration: str = ""
    """Which temperature prediction applies."""
    courses: Sequence[tuple[str, Course]] = ()
    """Learning curves; with folds each has its name."""
    importances: Sequence[tuple[str, float]] = ()
    facts: Sequence[tuple[str, str]] = ()


def render(page: RunPage, evaluation: Evaluation) -> str:
    """The page as HTML."""
    return render_page(
        "run.html",
        **vars(page),
        evaluation=evaluation,
        plots=run_plots,
        meanings=groups.COMPUTED,
        calibration_bins=metrics.CALIBRATION_BINS,
        max_groups=MAX_GROUPS,
        min_group=MIN_GROUP,
    )

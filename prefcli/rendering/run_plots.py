"""What the plots of a page about predictions show."""

from __future__ import annotations

from collections.abc import Sequence

from prefcli import metrics
from prefcli.rendering.curves import Course
from prefcli.rendering.evaluation import Evaluation, Grouping, ReliabilityBin, Surprise
from prefcli.rendering.plots import SHARES, Axis, Bar, Cell, Chart, Dot, Line, heat_class
from prefcli.rendering.tables import Table, interval

LOSS_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
STEP_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)
MAX_IMPORTANCES = 25
MAX_CHARACTERS = 1500
"""Of a text on the page; the rest is counted."""
NAMES = ("A", "B", "tie")
OUTCOMES = ("A won", "B won", "a tie")


def losses(evaluation: Evaluation, name: str) -> tuple[list[Dot], Axis]:
    """Log loss with its interval, beside that of the class shares and of a uniform guess."""
    score = evaluation.score
    low, high = score.log_loss_ci or (score.log_loss, score.log_loss)
    dots = [
        Dot(name, score.log_loss, low, high, f"{score.log_loss:.4f}", f"n = {score.n:,}"),
        _point("always the class shares", score.prior_log_loss),
        _point("always equal probabilities", score.uniform_log_loss),
    ]
    return dots, _loss_axis([low, high, *(dot.value for dot in dots)])


def _point(label: str, value: float) -> Dot:
    return Dot(label, value, value, value, f"{value:.4f}")


def _loss_axis(values: Sequence[float]) -> Axis:
    return Axis.around(min(values), max(values), LOSS_STEPS, ".4g")


def groups(grouping: Grouping) -> tuple[list[Dot], Axis]:
    """Log loss of each group with its interval; the mark is that of the group's own class shares."""
    dots = []
    for name, score in grouping.groups.items():
        low, high = score.log_loss_ci or (score.log_loss, score.log_loss)
        shown = f"{score.log_loss:.4f}"
        dots.append(Dot(name, score.log_loss, low, high, shown, f"n = {score.n:,}", score.prior_log_loss))
    return dots, _loss_axis([end for dot in dots for end in (dot.low, dot.high, dot.mark or dot.value)])


def group_table(grouping: Grouping) -> Table:
    """The same as a table."""
    rows = []
    for name, score in grouping.groups.items():
        known = interval(*score.log_loss_ci, ".4f") if score.log_loss_ci else score.log_loss_ci_reason
        rows.append(
            [name, f"{score.n:,}", "" if score.prompts is None else f"{score.prompts:,}", f"{score.log_loss:.4f}",
             known, f"{score.prior_log_loss:.4f}", f"{score.accuracy:.1%}"]
        )  # fmt: skip
    return [grouping.by, "battles", "prompts", "log loss", "95 %", "class shares", "accuracy"], rows


def reliability(bins: Sequence[ReliabilityBin]) -> Chart:
    """Predicted against observed, the diagonal, and how many battles each bin has."""
    highest = max(each.observed.n for each in bins)
    return Chart(
        x=SHARES,
        y=SHARES,
        lines=(Line("ideal", ((0, 0), (1, 1))),),
        dots=tuple((b.predicted, b.observed.value, b.observed.low, b.observed.high) for b in bins),
        columns=tuple((b.low, b.high, b.observed.n / highest) for b in bins),
    )


def reliability_table(evaluation: Evaluation) -> Table:
    rows = [
        [NAMES[outcome], interval(b.low, b.high, ".0%"), f"{b.predicted:.1%}", f"{b.observed.value:.1%}",
         interval(b.observed.low, b.observed.high), f"{b.observed.n:,}"]
        for outcome, bins in enumerate(evaluation.reliability)
        for b in bins
    ]  # fmt: skip
    return ["outcome", "predicted", "mean", "came", "95 %", "battles"], rows


def confusion(evaluation: Evaluation) -> tuple[list[str], list[str], list[list[Cell]]]:
    """Names of the rows and columns, and the cells: counts, coloured by their share of the row."""
    size = len(evaluation.confusion)
    cells = []
    for i, row in enumerate(evaluation.confusion):
        total = sum(row) or 1.0
        cells.append(
            [
                Cell(
                    f"{_count(value)} ({value / total:.0%})",
                    heat_class("a" if i == j else "b", value / total),
                    f"{OUTCOMES[i]}, {NAMES[j]} was the most probable: {_count(value)} of {_count(total)} battles",
                )
                for j, value in enumerate(row)
            ]
        )
    rows = [f"{OUTCOMES[i]} ({_count(sum(row))})" for i, row in enumerate(evaluation.confusion)]
    return rows, list(NAMES[:size]), cells


def _count(value: float) -> str:
    """A count; equally probable outcomes share a battle."""
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:,.1f}"


def course(course: Course, prior: float | None) -> Chart:
    """Training loss and validation log loss by step."""
    values = [loss for _, loss in (*course.training, *course.validations)] + ([prior] if prior is not None else [])
    return Chart(
        x=Axis.until(course.last, STEP_STEPS, ",.0f"),
        y=_loss_axis(values),
        lines=(
            Line("training", tuple(course.training)),
            Line("validation", tuple(course.validations)),
        ),
        marks=tuple(course.dots),
        references=(("class shares", prior),) if prior is not None else (),
    )


def importances(shares: Sequence[tuple[str, float]]) -> list[Bar]:
    """The most used statistics; bars are relative to the first."""
    most = shares[0][1]
    return [Bar(name, (share / most,), f"{share:.1%}") for name, share in shares[:MAX_IMPORTANCES]]


def probabilities(surprise: Surprise) -> Bar:
    """What was predicted for a battle."""
    return Bar("predicted", surprise.probabilities, f"loss {surprise.loss:.2f}")


def cut(turns: Sequence[str | None]) -> list[tuple[str | None, int]]:
    """The turns of a text that the page shows, each with how many characters are left out; null turns are None."""
    shown: list[tuple[str | None, int]] = []
    left = MAX_CHARACTERS
    for number, turn in enumerate(turns):
        if turn is None:
            shown.append((None, 0))
            continue
        if len(turn) > left:
            rest = sum(len(later or "") for later in turns[number + 1 :])
            shown.append((turn[:left], len(turn) - left + rest))
            break
        shown.append((turn, 0))
        left -= len(turn)
    return shown


def winner(label: int) -> str:
    """``A won``, ``B won`` or ``a tie``."""
    return OUTCOMES[label]


def against_prior(difference: metrics.Difference) -> str:
    """Whether predictions are better than the class shares, in words."""
    if difference.ci is None:
        return f"{metrics.signed(difference.difference)} against the class shares ({difference.reason})"
    low, high = difference.ci
    verdict = "better than" if high < 0 else "worse than" if low > 0 else "not clearly different from"
    return (
        f"{verdict} always predicting the class shares: {metrics.signed(difference.difference)} on the same battles "
        f"(95 % interval {metrics.signed_interval((low, high))})"
    )

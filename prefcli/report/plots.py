"""Plots as inline SVG: small, sharp, and readable at any width.

An SVG here has no viewBox: its height is in pixels, its width is the page's, and everything in it is placed by
percentages. So a plot shrinks to a phone while its letters keep their size. Every plot has a title and a description
for those who cannot see it; colours come from the page's style, and never carry meaning alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefcli.report.markup import Html, element, joined

ROW = 24
"""Pixels per row."""
LABELS = 33
"""Percent of the width for labels on the left."""
VALUES = 14
"""Percent of the width for numbers on the right."""
AXIS = 26
FEW_NAMES = 8
"""With so few rows a heat map's cells bear numbers."""
SMALLEST_NUMBERED = 0.09
"""Parts of a bar smaller than this bear no number."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval, a row of :func:`dots`. ``mark`` is a second value to compare with."""

    label: str
    value: float
    low: float
    high: float
    shown: str
    mark: float | None = None


@dataclass(frozen=True)
class Bar:
    """Shares that sum to 1, a row of :func:`bars`."""

    label: str
    shares: tuple[float, ...]
    shown: str


def dots(
    title: str,
    description: str,
    rows: Sequence[Dot],
    *,
    span: tuple[float, float],
    ticks: Sequence[tuple[float, str]],
    line: float | None = None,
) -> Html:
    """Values with intervals, one row each, on a common axis.

    Parameters
    ----------
    title, description:
        For those who cannot see the plot.
    rows:
        From top to bottom.
    span:
        The axis's ends.
    ticks:
        Where to write what below.
    line:
        A value to mark across all rows.
    """

    width = span[1] - span[0] or 1.0  # of models that are all as good as each other, say

    def at(value: float) -> str:
        return _percent((min(max(value, span[0]), span[1]) - span[0]) / width)

    height = len(rows) * ROW
    inside = [element("line", x1=at(value), x2=at(value), y1=0, y2=height, class_="grid") for value, _ in ticks]
    if line is not None:
        inside.append(element("line", x1=at(line), x2=at(line), y1=0, y2=height, class_="reference"))
    for number, row in enumerate(rows):
        y = number * ROW + ROW / 2
        inside.append(
            element(
                "g",
                element("title", f"{row.label}: {row.shown}"),
                element("line", x1=at(row.low), x2=at(row.high), y1=y, y2=y, class_="interval"),
                element("circle", cx=at(row.value), cy=y, r=4, class_="dot"),
                element("circle", cx=at(row.mark), cy=y, r=4, class_="mark") if row.mark is not None else None,
            )
        )
    axis = [element("text", label, x=at(value), y=height + 17, class_="tick") for value, label in ticks]
    plot = element(
        "svg", *inside, *axis, x=_percent(LABELS / 100), width=_percent(1 - (LABELS + VALUES) / 100), class_="area"
    )
    texts = [_row_texts(row.label, row.shown, number) for number, row in enumerate(rows)]
    return _svg(title, description, height + AXIS, *texts, plot)


def bars(title: str, description: str, rows: Sequence[Bar], classes: Sequence[str]) -> Html:
    """Shares as stacked bars, one row each; ``classes`` name the style of each share."""
    width = 1 - (LABELS + VALUES) / 100
    drawn = []
    for number, row in enumerate(rows):
        start = LABELS / 100
        for value, style in zip(row.shares, classes, strict=True):
            wide = value * width
            drawn.append(
                element(
                    "rect", x=_percent(start), width=_percent(wide), y=number * ROW + 3, height=ROW - 6, class_=style
                )
            )
            if value >= SMALLEST_NUMBERED:
                drawn.append(
                    element(
                        "text",
                        f"{value:.0%}",
                        x=_percent(start + wide / 2),
                        y=number * ROW + ROW / 2 + 4,
                        class_=f"on {style}",
                    )
                )
            start += wide
    texts = [_row_texts(row.label, row.shown, number) for number, row in enumerate(rows)]
    return _svg(title, description, len(rows) * ROW, *texts, *drawn)


def heat_map(
    title: str,
    description: str,
    names: Sequence[str],
    score: Sequence[Sequence[float | None]],
    told: Sequence[Sequence[str]],
) -> Html:
    """A square of shares: row against column, one colour above one half, another below, stronger further away."""
    size = len(names)
    cell = (1 - LABELS / 100) / size
    drawn = [
        element("text", str(column + 1), x=_percent(LABELS / 100 + (column + 0.5) * cell), y=14, class_="tick")
        for column in range(size)
        if size <= FEW_NAMES or column == 0 or (column + 1) % 5 == 0
    ]
    for row in range(size):
        drawn.append(_label(f"{row + 1} {names[row]}", row + 1))
        for column in range(size):
            value = score[row][column]
            if row == column or value is None:
                continue
            drawn.append(
                element(
                    "rect",
                    element("title", told[row][column]),
                    x=_percent(LABELS / 100 + column * cell),
                    width=_percent(cell),
                    y=(row + 1) * ROW,
                    height=ROW,
                    class_="a" if value >= 0.5 else "b",
                    fill_opacity=f"{0.08 + 0.92 * min(1, 2 * abs(value - 0.5)):.2f}",
                )
            )
            if size <= FEW_NAMES:
                middle = _percent(LABELS / 100 + (column + 0.5) * cell)
                drawn.append(element("text", f"{value:.0%}", x=middle, y=(row + 1.5) * ROW + 4, class_="cell"))
    return _svg(title, description, (size + 1) * ROW, *drawn)


def _row_texts(label: str, shown: str, row: int) -> Html:
    return joined(_label(label, row), element("text", shown, x="100%", y=row * ROW + ROW / 2 + 4, class_="value"))


def _label(label: str, row: int) -> Html:
    """The label in HTML, which can cut what is too long for a narrow page; pointing at it shows the whole."""
    text = element("div", label, class_="label", title=label)
    return element("foreignObject", text, x=0, y=row * ROW, width=_percent(LABELS / 100 - 0.02), height=ROW)


def _svg(title: str, description: str, height: float, *children: Html) -> Html:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        role="img",
        aria_label=f"{title}. {description}",
        width="100%",
        height=height,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"

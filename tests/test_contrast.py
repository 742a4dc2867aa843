"""Colours of the pages: contrasts by WCAG 2.2, computed from the style sheet; no browser is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefcli import rendering
from prefcli.rendering.plots import HEAT_LEVELS

TEMPLATES = Path(rendering.__file__).parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")
TEXT, GRAPHIC = 4.5, 3.0
"""Least contrasts of text (1.4.3) and of lines and dots (1.4.11)."""
PAIRS = [
    *[("ink", behind, TEXT) for behind in ("page", "card", "line")],
    *[("muted", behind, TEXT) for behind in ("page", "card")],
    *[("on", behind, TEXT) for behind in ("a", "b", "tie")],
    *[(text, "page", TEXT) for text in ("warn", "link")],
    *[(drawn, "page", GRAPHIC) for drawn in ("a", "b", "tie", "muted")],
]


def variables(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block))


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def luminance(colour: tuple[float, ...]) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


LIGHT = variables(STYLE.partition("@media")[0])
DARK = variables(STYLE.partition("prefers-color-scheme: dark")[2].partition("\n*")[0])


def test_contrast_is_that_of_the_recommendation() -> None:
    """Black on white is 21; #777777 on white is the well-known 4.48 that just fails."""
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("front", "behind", "least"), PAIRS)
def test_colours_can_be_told_apart(theme: dict[str, str], front: str, behind: str, least: float) -> None:
    assert contrast(rgb(theme[front]), rgb(theme[behind])) >= least


def test_every_colour_is_in_a_pair() -> None:
    assert set(LIGHT) == set(DARK) == {name for pair in PAIRS for name in pair[:2]}
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) <= set(LIGHT)
    after = STYLE.partition("\n*")[2]
    assert not re.findall(r"#[0-9a-f]{3,8}\b", after), "colours are variables, so that they are checked"


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_numbers_on_coloured_cells_can_be_read(theme: dict[str, str]) -> None:
    mix = r"\.heat-([ab])-(\d) \{ background: color-mix\(in srgb, var\(--\1\) (\d+)%, var\(--page\)\)"
    mixes = re.findall(mix, STYLE)
    assert len(mixes) == 2 * HEAT_LEVELS
    for side, level, percent in mixes:
        share = int(percent) / 100
        mixed = tuple(share * c + (1 - share) * p for c, p in zip(rgb(theme[side]), rgb(theme["page"]), strict=True))
        assert contrast(rgb(theme["ink"]), mixed) >= TEXT, (side, level)


def test_the_picture_of_learning_curves_can_be_read() -> None:
    text = (TEMPLATES / "curves.svg").read_text(encoding="utf-8")
    light, _, dark = text.partition("@media")
    for block in (light, dark):
        page = rgb(re.findall(r"background: (#\w+)", block)[0].replace("#fff", "#ffffff")[:7])
        for name, least in (("muted", TEXT), ("training", GRAPHIC), ("validation", GRAPHIC)):
            colour = re.findall(rf"\.{name} \{{ (?:fill|stroke): (#\w{{6}})", block)[0]
            assert contrast(rgb(colour), page) >= least, name


def test_the_page_of_serve_has_the_same_colours_and_fields_whose_edges_can_be_seen() -> None:
    text = (TEMPLATES.parent.parent / "serving" / "static" / "page.css").read_text(encoding="utf-8")
    light, _, rest = text.partition("@media")
    for block, reports in ((light, LIGHT), (rest.partition("\n*")[0], DARK)):
        colours = variables(block)
        assert contrast(rgb(colours.pop("field")), rgb(colours["page"])) >= GRAPHIC
        assert colours == reports

"""``prefcli eda --report``: all statistics as one page that needs no network and no script.

``templates/page.html`` has the words, this module prepares the plots. The page's Content-Security-Policy forbids
requests and scripts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prefcli._version import __version__
from prefcli.eda import Eda
from prefcli.eda.effects import MAX_TURNS
from prefcli.eda.measures import TOKENS_EXPLAINED
from prefcli.eda.models import MIN_BATTLES_FOR_RATE
from prefcli.eda.ratings import ELO_PER_LOG_ODDS, PRIOR_PRECISION
from prefcli.report import tables
from prefcli.report.plots import SHARES, Axis, Bar, Dot
from prefcli.report.tables import bin_label, interval
from prefcli.report.templating import render as render_template

MAX_PLOTTED_RATINGS = 20
MAX_LISTED_RATINGS = 200
"""Keeps the page small."""


def render(eda: Eda, source: str) -> str:
    """The page about ``source``, which its title names."""
    return render_template(
        "page.html",
        eda=eda,
        source=source,
        tables=tables,
        outcomes=_outcomes(eda),
        **_ratings(eda),
        effects=[
            Dot.of(label, share, ".1%")
            for label, share in [
                ("first answer (A)", eda.position),
                *((f"more {effect.what}", effect.wins) for effect in eda.rewarded),
            ]
            if share
        ],
        shares_axis=SHARES,
        odds=[
            [effect.what, f"{effect.odds:.2f}", interval(*effect.odds_ci, ".2f"), f"{effect.wins.n:,}"]
            for effect in eda.rewarded
            if effect.odds is not None and effect.odds_ci is not None
        ],
        by_length=[
            Bar(bin_label(row.low, row.high, " times"), (row.longer_won, row.tied, row.shorter_won), row.battles)
            for row in eda.length_curve
        ],
        by_closeness=[
            Dot.of(bin_label(row.low, row.high), row.tied, ".0%", mark=row.expected) for row in eda.tie_closeness
        ],
        min_battles_for_rate=MIN_BATTLES_FOR_RATE,
        prior_points=ELO_PER_LOG_ODDS / math.sqrt(PRIOR_PRECISION),
        tokens_explained=TOKENS_EXPLAINED,
        version=__version__,
    )


def _outcomes(eda: Eda) -> list[Bar]:
    """Shares of the outcomes: of all battles and, where they differ in it, by the number of turns."""
    if not eda.labelled:
        return []
    bars = [Bar("all", tuple(count / eda.labelled for count in eda.outcomes), eda.labelled)]
    if len(eda.turns) > 1:
        for row in eda.turns:
            label = f"{row.turns} turn{'s' if row.turns > 1 else ''}"
            label = label if row.turns < MAX_TURNS else f"{row.turns} or more turns"
            bars.append(Bar(label, (row.a_won, row.b_won, row.tied), row.battles))
    return bars


def _ratings(eda: Eda) -> dict[str, Any]:
    """The ratings' plot, its axis, and their table with ranks."""
    if not eda.ratings:
        return {}
    plotted = eda.ratings.models[:MAX_PLOTTED_RATINGS]
    low, high = min(model.low for model in plotted), max(model.high for model in plotted)
    step = next(step for step in (25, 50, 100, 200, 500, 1000, 2500, 5000, 1e9) if (high - low) / step <= 5)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    columns, rows = tables.ratings(eda.ratings, MAX_LISTED_RATINGS)
    return {
        "rating_axis": Axis(low, high, tuple((value, f"{value:,.0f}") for value in np.arange(low, high + 1, step))),
        "by_rating": [
            Dot(tables.model_label(model, eda.ratings), model.rating, model.low, model.high, f"{model.rating:.0f}")
            for model in plotted
        ],
        "ranked_ratings": (["", *columns], [[str(rank), *row] for rank, row in enumerate(rows, start=1)]),
    }

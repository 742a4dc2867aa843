"""``prefcli eda --report``: all statistics as one page that needs no network and no script.

``templates/eda.html`` has the words and the order, ``templates/base.html`` what all pages share: its
Content-Security-Policy forbids requests and scripts.
"""

from __future__ import annotations

import math
import time
from typing import Any

from prefcli._version import __version__
from prefcli.exploration import Eda
from prefcli.exploration.davidson import PRIOR_PRECISION
from prefcli.exploration.measures import TOKENS_EXPLAINED
from prefcli.exploration.models import MIN_BATTLES_FOR_RATE
from prefcli.exploration.ratings import ELO_PER_LOG_ODDS
from prefcli.rendering import eda_plots, judges, tables, templating
from prefcli.rendering.plots import SHARES

MAX_LISTED = 50
"""Models and people beside a judge."""
MAX_GROUPS = 20
"""Of models that never met, each with its own table."""


def render(eda: Eda, source: str) -> str:
    """The page about the battles of ``source``, which its title names."""
    return render_page(
        "eda.html",
        title=f"Battles in {source}",
        eda=eda,
        tables=tables,
        judges=judges,
        max_listed=MAX_LISTED,
        plots=eda_plots,
        shares=SHARES,
        max_groups=MAX_GROUPS,
        min_battles_for_rate=MIN_BATTLES_FOR_RATE,
        prior_points=ELO_PER_LOG_ODDS / math.sqrt(PRIOR_PRECISION),
        tokens_explained=TOKENS_EXPLAINED,
    )


def render_page(template: str, *, title: str, **context: Any) -> str:
    """A page from a template that extends ``base.html``; sections add themselves to its contents."""
    return templating.render(
        template,
        title=title,
        contents=[],
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        **context,
    )

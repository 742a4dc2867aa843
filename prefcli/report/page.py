"""``prefcli eda --report``: all statistics as one page that needs no network and no script.

``templates/page.html`` has the words and the order. Its Content-Security-Policy forbids requests and scripts.
"""

from __future__ import annotations

import math

from prefcli._version import __version__
from prefcli.eda import Eda
from prefcli.eda.measures import TOKENS_EXPLAINED
from prefcli.eda.models import MIN_BATTLES_FOR_RATE
from prefcli.eda.ratings import ELO_PER_LOG_ODDS, PRIOR_PRECISION
from prefcli.report import plots, tables, templating


def render(eda: Eda, source: str) -> str:
    """The page about ``source``, which its title names."""
    return templating.render(
        "page.html",
        eda=eda,
        source=source,
        tables=tables,
        plots=plots,
        min_battles_for_rate=MIN_BATTLES_FOR_RATE,
        prior_points=ELO_PER_LOG_ODDS / math.sqrt(PRIOR_PRECISION),
        tokens_explained=TOKENS_EXPLAINED,
        version=__version__,
    )

"""Numbers about battles, as plain dataclasses; :mod:`prefcli.rendering` and the command line show them.

One pass over the batches keeps a few numbers per battle (:mod:`.measures`). Everything else is computed from those:
every share with Wilson's interval, every rating with a bootstrap interval.
"""

from prefcli.exploration.summary import Eda, explore

__all__ = ["Eda", "explore"]

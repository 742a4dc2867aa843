"""prefcli: predict which of two LLM answers a person prefers.

``prefcli.load(RUN)`` gives a trained run in memory; the verbs are functions too (:mod:`prefcli.api`). Importing this
package loads none of it: a name is looked up when it is first used. The command line lives in :mod:`prefcli.cli`.
"""

from typing import TYPE_CHECKING, Any

from prefcli._version import __version__ as __version__

if TYPE_CHECKING:
    from prefcli.api import Source as Source
    from prefcli.api import compare_judges as compare_judges
    from prefcli.api import compare_scores as compare_scores
    from prefcli.api import estimate as estimate
    from prefcli.api import export as export
    from prefcli.api import load as load
    from prefcli.api import predict as predict
    from prefcli.api import preprocess as preprocess
    from prefcli.api import push as push
    from prefcli.api import rank as rank
    from prefcli.api import report as report
    from prefcli.api import runs as runs
    from prefcli.api import score as score
    from prefcli.api import train as train

_API = (
    "Source",
    "compare_judges",
    "compare_scores",
    "estimate",
    "export",
    "load",
    "predict",
    "preprocess",
    "push",
    "rank",
    "report",
    "runs",
    "score",
    "train",
)


def __getattr__(name: str) -> Any:
    if name in _API:
        from prefcli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])

"""``prefcli serve``: runs behind HTTP, with a page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command, given_options
from prefcli.options import ServeOptions

if TYPE_CHECKING:
    from prefcli.pipeline.serve import Serving

EXAMPLES = common.examples(
    "prefcli serve my-run",
    "prefcli serve RUN1 RUN2 --port 8080",
    "prefcli serve my-run --host 0.0.0.0 --token-file token.txt",
)


@command(ServeOptions, without=("models", "calibrated", "activation", "limit", "workers"))
def run(
    session: common.Session,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="A run's folder or name, or hf://owner/name; several are blended. [default: the latest run]",
            autocompletion=common.complete_run,
        ),
    ] = None,
    calibration: common.CalibrationOption = True,
    **flags: Any,
) -> None:
    """Answer comparisons, rankings and scores over HTTP.

    The page at / takes a prompt and answers; programs ask /v1/compare, /v1/rank and /v1/score, which /docs describes.
    Only this machine can ask unless --host says otherwise; then requests must send a token.

    Ctrl+C or SIGTERM stops it after the requests that were accepted, a second one at once.
    """
    from prefcli import pipeline
    from prefcli.compute import memory

    memory.keep_freed_memory()
    options = ServeOptions(tuple(runs or ()), calibrated=calibration, **given_options(flags))

    def ready(serving: Serving) -> None:
        session.reporter.note(f"{', '.join(serving.models)} at {serving.url} (Ctrl+C stops)")
        if session.json:
            common.print_json(serving)
            sys.stdout.flush()

    pipeline.serve(session.workspace, options, ready=ready, reporter=session.reporter)

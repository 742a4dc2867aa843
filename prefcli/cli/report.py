"""``prefcli report``: a run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command

EXAMPLES = common.examples(
    "prefcli report my-run",
    "prefcli report my-run --by length --output by-length.html",
)


@command()
def run(
    session: common.Session,
    run: common.RunArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE.html", help="[default: the run's name, in the current folder]"),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Also group battles by this column of the file.")
    ] = None,
    force: common.ForceOption = False,
) -> None:
    """Write a page about a run: scores, errors, training, advice.

    It shows how good the run is, where it fails, how it was trained, and what to try next, with plots.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    result = pipeline.report(run, session.workspace, output, by=by, force=force, reporter=session.reporter)
    lines = [line for each in result.advice for line in (each.reason, f"  {each.command}")]
    common.print_result(session, result, f"wrote {result.page}", *lines)
    folder = session.workspace.find_run(run)
    next_steps.show(session, next_steps.after_report, folder, advised=bool(result.advice))

"""``prefcli export``: a run in another form."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.errors import InputError

EXAMPLES = common.examples("prefcli export my-run --merged my-run-merged")


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder or name.")],
    merged: Annotated[
        Path | None,
        typer.Option(
            "--merged",
            metavar="DIR",
            help="A run with its adapters added to the encoder's weights; folds become one model by averaging.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", metavar="NAME", help="Where the encoder of a run of adapters is now, if not where it was."
        ),
    ] = None,
    force: common.ForceOption = False,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write a run in another form: as one set of weights that needs nothing else."""
    from prefcli import pipeline

    session = common.session(ctx, workspace, quiet)
    if merged is None:
        raise InputError("nothing is said of what to export", hint="Name a folder: --merged DIR.")
    made = pipeline.merge(
        session.workspace.find_run(model), merged, encoder=encoder, force=force, reporter=session.reporter
    )
    if json:
        common.print_json(asdict(made))
        return
    what = f"the mean of {made.members} folds" if made.members > 1 else "one model"
    common.say(f"{made.output}: {what}, {made.parameters / 1e6:,.1f} M parameters")

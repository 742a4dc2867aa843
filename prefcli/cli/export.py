"""``prefcli export``: a run in another form."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.errors import InputError

EXAMPLES = common.examples(
    "prefcli export my-run --onnx my-run-onnx",
    "prefcli export my-run --onnx my-run-int8 --int8",
    "prefcli predict test.csv --model my-run-onnx",
    "prefcli export my-run --merged my-run-merged",
)


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name.")],
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="DIR", help="A run for ONNX Runtime: predicts without torch.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the matrices: a quarter of the size; what it costs is measured.")
    ] = False,
    merged: Annotated[
        Path | None,
        typer.Option(
            "--merged",
            metavar="DIR",
            help="A run with its adapters added to the encoder's weights; folds become one model by averaging.",
        ),
    ] = None,
    encoder: common.EncoderOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that stands there.")] = False,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write a run in another form: for ONNX Runtime, or as one set of weights that needs nothing else.

    An ONNX export is compared with torch on battles before it is kept. Needs: pip install "prefcli[onnx]".
    """
    from prefcli import pipeline
    from prefcli.compute import memory

    memory.keep_freed_memory()
    session = common.session(ctx, workspace, quiet)
    if (onnx is None) == (merged is None):
        raise InputError("export makes one thing: --onnx DIR or --merged DIR", hint="Name one of them.")
    if encoder is not None and merged is None:
        raise InputError("--encoder belongs to --merged", hint="Leave one of them out.")
    if int8 and merged is not None:
        raise InputError("--int8 belongs to --onnx", hint="Leave one of them out.")
    if merged is not None:
        joined = pipeline.merge(
            session.workspace.find_run(model), merged, encoder=encoder, force=force, reporter=session.reporter
        )
        if json:
            common.print_json(asdict(joined))
            return
        what = f"the mean of {joined.members} folds" if joined.members > 1 else "one model"
        common.say(f"{joined.output}: {what}, {joined.parameters / 1e6:,.1f} M parameters")
        return
    assert onnx is not None
    made = pipeline.export(model, session.workspace, onnx, int8=int8, force=force, reporter=session.reporter)
    if json:
        common.print_json(asdict(made))
        return
    common.say(f"{made.folder}: {made.precision}, {made.bytes / 1e6:,.1f} MB")
    if made.int8 is not None:
        common.say(f"int8 costs: {made.int8}")

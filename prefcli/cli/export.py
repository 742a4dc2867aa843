"""``prefcli export``: a run in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command
from prefcli.errors import InputError

EXAMPLES = common.examples(
    "prefcli export my-run --onnx my-run-onnx",
    "prefcli export my-run --onnx my-run-int8 --int8",
    "prefcli predict test.csv --model my-run-onnx",
)


@command()
def run(
    session: common.Session,
    model: common.RunArgument,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="DIR", help="A run for ONNX Runtime: predicts without torch.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the matrices to a quarter of the size; the loss is measured.")
    ] = False,
    merged: Annotated[
        Path | None,
        typer.Option(
            "--merged",
            metavar="DIR",
            help="A run with adapters merged into the encoder's weights, folds averaged into one model.",
        ),
    ] = None,
    encoder: common.EncoderOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
) -> None:
    """Convert a run: to ONNX, or to one set of merged weights.

    An ONNX export is kept only if it predicts what torch predicts. It needs the packages
    onnx, onnxruntime and onnxscript.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps
    from prefcli.compute import memory

    memory.keep_freed_memory()
    if (onnx is None) == (merged is None):
        raise InputError("export needs either --onnx DIR or --merged DIR", hint="Give one of them.")
    if encoder is not None and merged is None:
        raise InputError("--encoder belongs to --merged", hint="Leave one of them out.")
    if int8 and merged is not None:
        raise InputError("--int8 belongs to --onnx", hint="Leave one of them out.")
    if merged is not None:
        merge = pipeline.merge(
            session.workspace.find_run(model), merged, encoder=encoder, force=force, reporter=session.reporter
        )
        what = f"the mean of {merge.members} folds" if merge.members > 1 else "one model"
        common.print_result(session, merge, f"{merge.output}: {what}, {merge.parameters / 1e6:,.1f} M parameters")
        next_steps.show(session, next_steps.after_export, session.workspace.find_run(model), merge.output)
        return
    assert onnx is not None
    result = pipeline.export(model, session.workspace, onnx, int8=int8, force=force, reporter=session.reporter)
    costs = [] if result.int8 is None else [f"int8 costs: {result.int8}"]
    common.print_result(session, result, f"{result.folder}: {result.precision}, {result.bytes / 1e6:,.1f} MB", *costs)
    next_steps.show(session, next_steps.after_export, session.workspace.find_run(model), result.folder)

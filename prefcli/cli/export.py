"""``prefcli export``: a run for ONNX Runtime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common

EXAMPLES = common.examples(
    "prefcli export my-run --onnx my-run-onnx",
    "prefcli export my-run --onnx my-run-int8 --int8",
    "prefcli predict test.csv --model my-run-onnx",
)


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name.")],
    onnx: Annotated[Path, typer.Option("--onnx", metavar="DIR", help="Where to write the exported run.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the matrices: a quarter of the size; what it costs is measured.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an exported run that stands there.")] = False,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Export a trained run to ONNX: `prefcli predict` then runs it without torch.

    The export is compared with torch on battles before it is kept. Needs: pip install "prefcli[onnx]".
    """
    from prefcli import memory, pipeline

    memory.keep_freed_memory()
    session = common.session(ctx, workspace, quiet)
    made = pipeline.export(model, session.workspace, onnx, int8=int8, force=force, reporter=session.reporter)
    if json:
        common.print_json(asdict(made))
        return
    common.say(f"{made.folder}: {made.precision}, {made.bytes / 1e6:,.1f} MB")
    if made.int8 is not None:
        common.say(f"int8 costs: {made.int8}")

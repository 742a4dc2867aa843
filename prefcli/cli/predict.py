"""``prefcli predict``: probabilities for every battle of a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common

EXAMPLES = common.examples(
    "prefcli predict test.csv",
    "prefcli predict test.csv --model my-run --output submission.csv",
    "prefcli predict test.csv --model run-1 --model run-2 --swap-average --output blend.parquet",
    "prefcli predict ours.csv --model run-1 --calibrate our-votes.csv",
)


def run(
    ctx: typer.Context,
    file: common.FilesArgument,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="RUN",
            help="A run's folder or name; repeat it to blend several. [default: the latest run]",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="Where to write, .csv or .parquet.")
    ] = Path("preds.csv"),
    swap_average: Annotated[
        bool,
        typer.Option(
            "--swap-average", help="Average over both orders of the answers: twice the time for cross-encoder."
        ),
    ] = False,
    activation: Annotated[
        str, typer.Option("--activation", metavar="NAME", help="softmax, or none for raw scores (an ablation).")
    ] = "softmax",
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration/--no-calibration",
            help="Temperature, and weights of several runs, fitted on validation battles where that helps.",
        ),
    ] = True,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="Refit temperature and share of ties on these labelled battles: other voters than trained on.",
        ),
    ] = None,
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="auto, fp32, fp16 or bf16.")] = "auto",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    fast_attention: Annotated[
        bool,
        typer.Option("--fast-attention/--no-fast-attention", help="Compute encoders faster, with the same results."),
    ] = True,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N battles.")] = None,
    format: common.FormatOption = None,
    columns: common.ColumnsOption = None,
    workers: common.WorkersOption = None,
    force: common.ForceOption = False,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write the probabilities of A, B and tie for every battle: Kaggle's submission, in the input's order."""
    from prefcli import memory, pipeline

    memory.keep_freed_memory()
    session = common.session(ctx, workspace, quiet)
    made = pipeline.predict(
        common.source(file, format, columns),
        session.workspace,
        output,
        models=model or (),
        swap_average=swap_average,
        activation=activation,
        calibrated=calibration,
        calibrate=calibrate,
        precision=precision,
        device=device,
        fast_attention=fast_attention,
        limit=limit,
        workers=workers,
        force=force,
        reporter=session.reporter,
    )
    if not made.speaks:
        return
    if json:
        common.print_json({name: value for name, value in asdict(made).items() if name != "speaks"})
    else:
        common.say(f"{made.output}: {made.battles:,} battles, {made.battles_per_second:,.1f} a second")

"""``prefcli predict``: probabilities for every battle of a file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.errors import InputError

STANDARD_OUTPUT = Path("-")
EXAMPLES = common.examples(
    "prefcli predict test.csv",
    "prefcli predict test.csv --model my-run --output submission.csv",
    "prefcli predict test.csv --model my-run --estimate",
    "prefcli predict test.csv --model run-1 --model run-2 --swap-average --output blend.parquet",
    "prefcli predict ours.csv --model run-1 --calibrate our-votes.csv",
    "prefcli predict test.csv --model hf://owner/judge",
    "produce-battles | prefcli predict - --output - | consume-probabilities",
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
            help="A run's folder or name, or hf://owner/name; repeat it to blend several. [default: the latest run]",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="Where to write: .csv, .parquet, .jsonl; - for lines."),
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
    encoder: common.EncoderOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N battles.")] = None,
    format: common.FormatOption = None,
    columns: common.ColumnsOption = None,
    workers: common.WorkersOption = None,
    estimate: common.EstimateOption = False,
    force: common.ForceOption = False,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Write the probabilities of A, B and tie for every battle: Kaggle's submission, in the input's order.

    With --output - battles are JSON lines, and each is answered by a JSON line as soon as it has come.
    """
    from prefcli import pipeline
    from prefcli.compute import memory

    memory.keep_freed_memory()
    session = common.session(ctx, workspace, quiet)
    how: dict[str, Any] = {
        "models": model or (),
        "swap_average": swap_average,
        "calibrated": calibration,
        "precision": precision,
        "device": device,
        "fast_attention": fast_attention,
        "encoder": encoder,
        "reporter": session.reporter,
    }
    if output == STANDARD_OUTPUT:
        others = {
            "--calibrate": calibrate,
            "--limit": limit,
            "--format": format,
            "--columns": columns,
            "--workers": workers,
            "--force": force,
            "--estimate": estimate,
            "--json": json,
            "--activation": activation != "softmax",
        }
        refused = [flag for flag, given in others.items() if given]
        if refused:
            raise InputError(f"--output - answers lines one by one: it cannot be combined with {', '.join(refused)}")
        with _json_lines(file) as lines:
            answered = pipeline.predict_lines(
                lines,
                sys.stdout.buffer,
                session.workspace,
                **how,
            )
        session.reporter.note(f"{answered.lines:,} lines answered")
        if answered.failed:
            raise InputError(
                f"{answered.failed:,} of {answered.lines:,} lines are no battles: they were answered with an error"
            )
        return
    if estimate:
        found = pipeline.estimate_prediction(
            common.source(file, format, columns),
            session.workspace,
            calibrate=calibrate,
            workers=workers,
            limit=limit,
            **how,
        )
        if found.is_main_process:
            common.print_estimate(found, json)
        return
    made = pipeline.predict(
        common.source(file, format, columns),
        session.workspace,
        output,
        activation=activation,
        calibrate=calibrate,
        limit=limit,
        workers=workers,
        force=force,
        **how,
    )
    if not made.is_main_process:
        return
    if json:
        common.print_json({name: value for name, value in asdict(made).items() if name != "is_main_process"})
    else:
        common.say(f"{made.output}: {made.battles:,} battles, {made.battles_per_second:,.1f} a second")


@contextlib.contextmanager
def _json_lines(files: list[Path]) -> Iterator[IO[bytes]]:
    """Standard input, or a file of JSON lines, as it comes."""
    if len(files) != 1:
        raise InputError("--output - answers one stream of lines", hint="Give one FILE, or - for standard input.")
    if files[0] == STANDARD_OUTPUT:
        yield sys.stdin.buffer
        return
    if files[0].suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(
            f"--output - answers JSON lines, and {files[0]} is not called .jsonl",
            hint="Name another --output, or give JSON lines.",
        )
    try:
        stream = files[0].open("rb")
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=str(files[0])) from None
    with stream:
        yield stream

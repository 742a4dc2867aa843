"""``prefcli predict``: probabilities for every battle of a file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command, given_options
from prefcli.errors import InputError
from prefcli.options import PredictOptions, flag_of

if TYPE_CHECKING:
    from prefcli.battles import Source

STANDARD_OUTPUT = Path("-")
EXAMPLES = common.examples(
    "prefcli predict test.csv",
    "prefcli predict test.csv --model my-run --output submission.csv",
    "prefcli predict test.csv --model my-run --estimate",
    "prefcli predict test.csv --model run-1 --model run-2 --swap-average --output blend.parquet",
    "prefcli predict ours.csv --model run-1 --calibrate our-votes.csv",
    "prefcli predict ours.jsonl --columns prompt=question,response_a=left,response_b=right",
    "prefcli predict test.csv --model hf://owner/judge",
    "produce-battles | prefcli predict - --output - | consume-probabilities",
)


@command(PredictOptions, without=("models", "calibrated"))
def run(
    session: common.Session,
    reading: common.Reading,
    file: common.FilesArgument,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="RUN",
            autocompletion=common.complete_run,
            help="A run's folder or name, or hf://owner/name; repeat it to blend several. [default: the latest run]",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="Where to write: .csv, .parquet, .jsonl; - for lines."),
    ] = Path("preds.csv"),
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration/--no-calibration",
            help="Fit a temperature, and weights of several runs, on held-out battles; kept only if that helps.",
        ),
    ] = True,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="Labelled battles to refit temperature and share of ties on, for voters other than in training.",
        ),
    ] = None,
    estimate: common.EstimateOption = False,
    force: common.ForceOption = False,
    **flags: Any,
) -> None:
    """Predict A, B and tie for every battle.

    Writes the probabilities in the input's order, as Kaggle's submission wants them. Chosen and rejected answers also
    get p_chosen, the probability that the chosen one wins if there is no tie.

    With --output - battles are JSON lines, and each is answered by a JSON line as soon as it arrives.
    """
    from prefcli import pipeline
    from prefcli.compute import memory

    memory.keep_freed_memory()
    options = PredictOptions(tuple(model or ()), calibrated=calibration, **given_options(flags))
    if output == STANDARD_OUTPUT:
        others = {
            "--calibrate": calibrate,
            "--encoding": reading.encoding,
            "--force": force,
            "--estimate": estimate,
            "--json": session.json,
        }
        _predict_lines(reading.like(file), [flag for flag, value in others.items() if value], options, session)
        return
    battles = reading.like(file)
    if estimate:
        cost = pipeline.estimate_prediction(
            battles, session.workspace, options, calibrate=calibrate, reporter=session.reporter
        )
        common.print_estimate(cost, session)
        return
    predicted = pipeline.predict(
        battles, session.workspace, output, options, calibrate=calibrate, force=force, reporter=session.reporter
    )
    summary = f"{predicted.battles:,} battles, {predicted.battles_per_second:,.1f} battles/s"
    common.print_result(session, predicted, f"{predicted.output}: {summary}")


def _predict_lines(source: Source, refused: list[str], options: PredictOptions, session: common.Session) -> None:
    """Answer JSON lines on standard output; ``refused`` are given flags that only files can have."""
    from prefcli import pipeline
    from prefcli.storage.files import refuse_to_replace

    default = PredictOptions()
    refused += [flag_of(f) for f in ("activation", "limit", "workers") if getattr(options, f) != getattr(default, f)]
    if refused:
        raise InputError(f"--output - answers line by line: it cannot be combined with {', '.join(refused)}")
    refuse_to_replace(Path("/dev/stdout"), source.paths)  # answers appended to the lines would be read as lines
    with _json_lines(source.paths) as lines:
        answered, failed = pipeline.predict_lines(
            lines, sys.stdout.buffer, session.workspace, options, reading=source, reporter=session.reporter
        )
    session.reporter.note(f"{answered:,} lines answered")
    if failed:
        raise InputError(f"{failed:,} of {answered:,} lines are not valid battles; each got an error reply")


def _json_lines(files: Sequence[Path]) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Standard input, or a file of JSON lines, as a stream."""
    if len(files) != 1:
        raise InputError("--output - reads one stream of lines", hint="Give one FILE, or - for standard input.")
    if files[0] == STANDARD_OUTPUT:
        return contextlib.nullcontext(sys.stdin.buffer)
    if files[0].suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(
            f"--output - answers JSON lines, but {files[0]} is not called .jsonl",
            hint="Name another --output, or give JSON lines.",
        )
    try:
        return files[0].open("rb")
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=str(files[0])) from None

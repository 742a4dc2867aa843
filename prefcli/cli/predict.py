"""``prefcli predict``: probabilities for every battle of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command, given_options
from prefcli.errors import InputError, plural
from prefcli.options import PredictOptions, flag_of

if TYPE_CHECKING:
    from prefcli.battles import Source

EXAMPLES = common.examples(
    "prefcli predict test.csv --model my-run --output submission.csv",
    "prefcli predict test.csv --model RUN1 --model RUN2 --output blend.parquet",
    "prefcli predict ours.csv --calibrate our-votes.csv --output ours-preds.csv",
)


@command(PredictOptions, without=("models", "calibrated"))
def run(
    session: common.Session,
    reading: common.Reading,
    file: common.FilesArgument,
    model: common.ModelsOption = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="Where to write: .csv, .parquet, .jsonl; - for lines."),
    ] = Path("preds.csv"),
    calibration: common.CalibrationOption = True,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="Labelled battles of voters other than in training, to refit temperature and share of ties on, with "
            "--source by source.",
        ),
    ] = None,
    estimate: common.EstimateOption = False,
    force: common.ForceOption = False,
    **flags: Any,
) -> None:
    """Predict the probabilities of A, B and tie for every battle.

    Writes the probabilities in the input's order, as Kaggle's submission wants them. Chosen and rejected answers also
    get p_chosen, the probability that the chosen one wins if there is no tie.

    With --output - battles are JSON lines, and each is answered by a JSON line as soon as it arrives.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps
    from prefcli.compute import memory

    memory.keep_freed_memory()
    options = PredictOptions(tuple(model or ()), calibrated=calibration, **given_options(flags))
    if output == common.STANDARD_OUTPUT:
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
    summary = f"{plural(predicted.battles, 'battle')}, {predicted.battles_per_second:,.1f} battles/s"
    common.print_result(session, predicted, f"{predicted.output}: {summary}")
    can_be_scored = predicted.labelled > 0 and options.limit is None and options.activation == "softmax"
    can_be_scored &= 2 * max((count or 0 for count in predicted.trained_on), default=0) < predicted.battles
    facts = {"can_be_scored": can_be_scored, "models": options.models}
    next_steps.show(session, next_steps.after_predict, battles, predicted.output, **facts)


def _predict_lines(source: Source, refused: list[str], options: PredictOptions, session: common.Session) -> None:
    """Answer JSON lines on standard output; ``refused`` are given flags that only files can have."""
    from prefcli import pipeline
    from prefcli.metrics import plural

    default = PredictOptions()
    refused += [flag_of(f) for f in ("activation", "limit", "workers") if getattr(options, f) != getattr(default, f)]
    with common.json_lines(source.paths, refused) as lines:
        answered, failed = pipeline.predict_lines(
            lines, sys.stdout.buffer, session.workspace, options, reading=source, reporter=session.reporter
        )
    session.reporter.note(f"{plural(answered, 'line')} answered")
    if failed:
        raise InputError(f"{failed:,} of {answered:,} lines are not valid battles; each got an error reply")

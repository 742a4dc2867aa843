"""``prefcli rank``: the order of several answers to each prompt, and the best of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command, given_options, take_pair_options
from prefcli.errors import InputError
from prefcli.options import PairOptions, RankOptions, flag_of

if TYPE_CHECKING:
    from prefcli.battles import Source

EXAMPLES = common.examples(
    "prefcli rank answers.jsonl --model my-run",
    "prefcli rank answers.jsonl --model my-run --best best.jsonl",
    "prefcli rank answers.jsonl --model my-run --pairs pairs.jsonl",
)


@command(RankOptions, PairOptions, without=("models", "calibrated", "activation", "workers", "source"))
def run(
    session: common.Session,
    reading: common.Reading,
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Prompts with several answers each: JSONL, JSON, Parquet, CSV or TSV, also .gz and .zip; or - for "
            "standard input.",
        ),
    ],
    model: common.ModelsOption = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="Where to write: .jsonl, .json, .parquet; - for lines."),
    ] = Path("ranked.jsonl"),
    best: Annotated[
        Path | None,
        typer.Option("--best", metavar="PATH", help="Also write the best answer to each prompt."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="PATH", help="Also write preference pairs for training, for TRL or others."),
    ] = None,
    calibration: common.CalibrationOption = True,
    force: common.ForceOption = False,
    **flags: Any,
) -> None:
    """Rank several answers to each prompt.

    FILE holds a prompt and a list of answers a row (responses, completions, ...), or prompt and response, one answer a
    row, grouped by prompt. Writes for each prompt the answers' positions, best first; each answer's score; and the
    probability that it is the best one.

    With --output - questions are JSON lines, and each is answered by a JSON line as soon as it arrives.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps
    from prefcli.compute import memory
    from prefcli.metrics import plural
    from prefcli.prediction.pairs import PairFile

    memory.keep_freed_memory()
    of_pairs = take_pair_options(flags)
    if of_pairs and pairs is None:
        raise InputError(f"{flag_of(PairOptions.PREFIX + next(iter(of_pairs)))} needs --pairs FILE")
    options = RankOptions(tuple(model or ()), calibrated=calibration, **given_options(flags))
    source = reading.like(file)
    if output == common.STANDARD_OUTPUT:
        refused = {
            "--best": best, "--pairs": pairs, "--encoding": reading.encoding, "--force": force, "--json": session.json,
            "--limit": options.limit,
        }  # fmt: skip
        _rank_lines(source, [flag for flag, value in refused.items() if value], options, session)
        return
    pair_file = None if pairs is None else PairFile(pairs, PairOptions(**of_pairs))
    ranked = pipeline.rank(
        source, session.workspace, output, options,
        best=best, pairs=pair_file, force=force, reporter=session.reporter,
    )  # fmt: skip
    questions, answers = plural(ranked.questions, "question"), plural(ranked.answers, "answer")
    summary = f"{questions}, {answers}, {ranked.answers_per_second:,.1f} answers/s"
    others = [f"{ranked.best}: the best answer to each"] if ranked.best else []
    if ranked.pair_counts:
        others.append(f"{ranked.pairs_file}: {plural(ranked.pair_counts.rows, 'row')} to train on")
    common.print_result(session, ranked, f"{ranked.output}: {summary}", *others)
    next_steps.show(session, next_steps.after_rank, source, best=best is not None, pairs=pairs is not None)


def _rank_lines(source: Source, refused: list[str], options: RankOptions, session: common.Session) -> None:
    """Answer JSON lines on standard output; ``refused`` are given flags that only files can have."""
    from prefcli import pipeline
    from prefcli.metrics import plural

    with common.json_lines(source.paths, refused) as lines:
        answered, failed = pipeline.rank_lines(
            lines, sys.stdout.buffer, session.workspace, options, reading=source, reporter=session.reporter
        )
    session.reporter.note(f"{plural(answered, 'line')} answered")
    if failed:
        raise InputError(f"{failed:,} of {answered:,} lines are not valid questions; each got an error reply")

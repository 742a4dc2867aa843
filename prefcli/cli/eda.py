"""``prefcli eda``: look at the votes before training on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli import common

if TYPE_CHECKING:
    from prefcli.eda import Eda

EXAMPLES = common.examples("prefcli eda train.csv", "prefcli eda train.csv --top 10", "prefcli eda train.csv --json")


def run(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Battles: CSV (.gz, .zip) or Parquet.")],
    top: Annotated[int, typer.Option("--top", metavar="N", help="How many pairs and models to list.")] = 5,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Count outcomes, models, pairs, lengths, and what is odd about a file of battles."""
    from prefcli import pipeline

    session = common.session(ctx, workspace, quiet)
    found = pipeline.eda(file, session.workspace, top=top, reporter=session.reporter)
    if json:
        common.print_json(asdict(found))
    else:
        show(found)


def show(eda: Eda) -> None:
    """The numbers as tables on stdout."""
    share = [f"{count / eda.labelled:.1%}" if eda.labelled else "-" for count in eda.outcomes]
    common.print_table(
        "Battles",
        ["", "battles", "share"],
        [
            ["all", eda.battles, ""],
            ["with an outcome", eda.labelled, ""],
            *(
                [name, count, part]
                for name, count, part in zip(("A won", "B won", "tie"), eda.outcomes, share, strict=True)
            ),
            ["several turns", eda.multi_turn, f"{eda.multi_turn / eda.battles:.1%}"],
            ["identical answers", eda.identical_answers, f"{eda.identical_answers / eda.battles:.1%}"],
            ["empty answers", eda.empty_answers, ""],
            ["null turns", eda.null_turns, ""],
            ["different prompts", eda.prompts, ""],
            ["models", eda.models, ""],
        ],
    )
    common.print_table(
        "Characters",
        ["", "mean", "median", "90 %", "longest"],
        [[name, round(d.mean), round(d.median), round(d.p90), d.longest] for name, d in eda.lengths.items()],
    )
    if eda.top_pairs:
        common.print_table(
            "Most frequent pairs",
            ["pair", "battles"],
            [[f"{pair.model_1} vs {pair.model_2}", pair.battles] for pair in eda.top_pairs],
        )
    if eda.top_winners:
        common.print_table(
            "Most wins",
            ["model", "wins", "ties", "battles", "win rate"],
            [[m.model, m.wins, m.ties, m.battles, f"{m.win_rate:.1%}"] for m in eda.top_winners],
        )

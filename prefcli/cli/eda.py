"""``prefcli eda``: look at the votes before training on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command

if TYPE_CHECKING:
    from prefcli.eda import Eda
    from prefcli.eda.shares import Share

EXAMPLES = common.examples(
    "prefcli eda train.csv",
    "prefcli eda train.csv --test test.csv --report page.html",
    "prefcli eda arena-*.parquet --top 10 --json",
    "prefcli eda votes.jsonl --columns prompt=question,response_a=left,response_b=right --outcome 'vote: l=a, r=b'",
    "prefcli eda answers.jsonl --each 'completions: text=response, model=model, score=overall_score'",
    "prefcli eda export.csv --layout ours.toml --encoding cp1252",
    "zcat votes.jsonl.gz | prefcli eda -",
)


@command()
def run(
    session: common.Session,
    reading: common.Reading,
    file: common.FilesArgument,
    top: Annotated[int, typer.Option("--top", metavar="N", help="How many pairs and models to list.")] = 5,
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="A second file: which prompts are in both?")
    ] = None,
    max_length: Annotated[
        int, typer.Option("--max-length", metavar="N", help="Report what this limit of tokens would cut.")
    ] = 512,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PAGE.html", help="Write everything as a page with plots.")
    ] = None,
    force: common.ForceOption = False,
) -> None:
    """Models, outcomes, ratings, what people reward, and what is wrong with a file of battles."""
    from prefcli import pipeline

    statistics = pipeline.eda(
        reading.like(file),
        session.workspace,
        top=top,
        test=test,
        max_length=max_length,
        report=report,
        force=force,
        reporter=session.reporter,
    )
    if session.json:
        common.print_json(statistics)
    else:
        show(statistics, top)


def show(eda: Eda, top: int = 5) -> None:
    """The statistics as tables on stdout."""
    _battles(eda)
    _models(eda, top)
    _rewarded(eda)
    _problems(eda)


def _battles(eda: Eda) -> None:
    from prefcli.rendering import tables

    rows: list[list[object]] = [["all", eda.battles, ""], ["with an outcome", eda.labelled, ""]]
    for name, count in zip(("A won", "B won", "tie"), eda.outcomes, strict=True):
        rows.append([name, count, _percent(count, eda.labelled)])
    if eda.both_bad is not None:
        rows.append(["  of them both bad", eda.both_bad, _percent(eda.both_bad, eda.labelled)])
    rows += [
        ["several turns", eda.multi_turn, _percent(eda.multi_turn, eda.battles)],
        ["different prompts", eda.prompts, ""],
        ["models", eda.models, ""],
    ]
    common.print_table("Battles", ["", "battles", "share"], rows)
    common.print_table("Characters", *tables.lengths(eda))


def _models(eda: Eda, top: int) -> None:
    from prefcli.rendering import tables

    if eda.top_pairs:
        common.print_table("Most frequent pairs", *tables.pairs(eda))
    if eda.top_winners:
        common.print_table("Most wins (they count popularity)", *tables.wins(eda.top_winners))
    if eda.top_rates:
        common.print_table("Highest win rates", *tables.wins(eda.top_rates))
    if eda.ratings:
        common.print_table(
            f"Ratings (Bradley-Terry with ties, mean 1000; intervals: {eda.ratings.intervals})",
            *tables.ratings(eda.ratings, top),
        )
        for caution in eda.ratings.cautions():
            print(common.visible(caution) + "\n")


def _rewarded(eda: Eda) -> None:
    from prefcli.rendering.tables import bin_label, interval

    def cells(share: Share) -> list[object]:
        return [f"{share.value:.1%}", interval(share.low, share.high), share.n]

    if eda.position:
        rows: list[list[object]] = [["the first answer (A)", *cells(eda.position), ""]]
        for effect in eda.rewarded:
            rows.append([f"more {effect.what}", *cells(effect.wins), f"{effect.odds:.2f}" if effect.odds else "-"])
        common.print_table(
            "Which answer wins (of decided battles; odds: one standard deviation more, all else equal)",
            ["", "wins", "95 %", "battles", "odds"],
            rows,
        )
    if len(eda.turns) > 1:
        common.print_table(
            "Outcome by turns",
            ["turns", "battles", "A", "B", "tie"],
            [
                [str(row.turns), row.battles, *(f"{share:.1%}" for share in (row.a_won, row.b_won, row.tied))]
                for row in eda.turns
            ],
        )
    if eda.tie_closeness:
        common.print_table(
            "Ties by how close the ratings are",
            ["points apart", "ties", "95 %", "battles", "expected"],
            [[bin_label(row.low, row.high), *cells(row.tied), f"{row.expected:.1%}"] for row in eda.tie_closeness],
        )


def _problems(eda: Eda) -> None:
    from prefcli.eda.measures import TOKENS_EXPLAINED
    from prefcli.rendering import tables

    common.print_table("What to look out for", *tables.problems(eda))
    if eda.agreement:
        print(tables.agreement(eda.agreement) + "\n")
    common.print_table(f"What a length limit would cut ({TOKENS_EXPLAINED})", *tables.cuts(eda))
    if len(eda.scripts) > 1:
        common.print_table("Script of the prompt", *tables.scripts(eda))


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"

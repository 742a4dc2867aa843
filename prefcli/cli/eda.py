"""``prefcli eda``: look at the votes before training on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command
from prefcli.cli.judges import show_annotators, show_judge

if TYPE_CHECKING:
    from prefcli.exploration import Eda
    from prefcli.exploration.ratings import Ratings
    from prefcli.exploration.shares import Share

EXAMPLES = common.examples(
    "prefcli eda train.csv",
    "prefcli eda train.csv --test test.csv --report page.html",
    "prefcli eda people.csv --judge judge.csv",
)

MAX_GROUPS = 3
"""Groups of models that never met whose ratings are printed."""
MAX_SHOWN = 10
"""Groups of ``--by`` that are printed without ``--all``."""


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
    by: common.ByOption = None,
    judge: Annotated[
        Path | None,
        typer.Option("--judge", metavar="FILE", help="An LLM judge's votes on the same battles: how far to trust it."),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            "--judge-model", metavar="NAME", help="The judge's own name among the models: does it prefer itself?"
        ),
    ] = None,
    annotator: Annotated[
        str | None,
        typer.Option("--annotator", metavar="COLUMN", help="Who voted: how far does each agree with the others?"),
    ] = None,
    details: Annotated[bool, typer.Option("--all", help="Print every table, not only the main ones.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PAGE.html", help="Write everything as a page with plots.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="PROBLEMS.csv",
            help="Write repeated and contradictory battles, and those of --test, with reasons: .csv, .jsonl, .parquet.",
        ),
    ] = None,
    label_errors: Annotated[
        bool,
        typer.Option("--label-errors", help="With --export: also battles whose label is probably wrong; it trains."),
    ] = False,
    force: common.ForceOption = False,
) -> None:
    """Rate the models of a file of votes, and find its problems.

    Which model people prefer and how surely, what else they reward, and what is wrong with the file.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    statistics = pipeline.eda(
        replace(reading.like(file), by=by),
        session.workspace,
        top=top,
        test=test,
        max_length=max_length,
        report=report,
        export=export,
        label_errors=label_errors,
        judges=pipeline.JudgeOptions(judge, judge_model, annotator),
        force=force,
        reporter=session.reporter,
    )
    if session.json:
        common.print_json(statistics)
    else:
        show(statistics, top, details=details)
    wrote = {"page": report is not None, "export": export is not None}
    next_steps.show(session, next_steps.after_eda, reading.like(file), statistics, **wrote)


def show(eda: Eda, top: int = 5, *, details: bool = False) -> None:
    """The statistics on stdout: what the votes say, then the main tables, or all of them."""
    for number, sentence in enumerate(eda.headline):
        common.print_text(sentence, "" if number else "bold")
    print()
    if eda.judge is not None:
        show_judge(eda.judge, top)
    if eda.annotators is not None:
        show_annotators(eda.annotators, top)
    _models(eda, top, details)
    _groups(eda, top, details)
    if details:
        _wins(eda)
    _outcomes(eda)
    _rewarded(eda)
    if details:
        _ties(eda)
    _problems(eda)
    if details:
        _texts(eda)
    else:
        common.print_text("--all prints more tables.", "dim")


def _models(eda: Eda, top: int, details: bool) -> None:
    """Ratings, a list for each group of models that met, and who beats whom."""
    from prefcli.metrics import plural
    from prefcli.rendering import tables

    if eda.ratings is None or eda.beats is None:
        return
    shown = eda.ratings.groups if details else min(eda.ratings.groups, MAX_GROUPS)
    for group in range(shown):
        of_group = f" of group {group + 1}" if eda.ratings.groups > 1 else ""
        _ratings(f"Ratings{of_group} (mean 1000; 400 points: odds of 10 to 1)", eda.ratings, top, group)
    if shown < eda.ratings.groups:
        common.print_text(f"{plural(eda.ratings.groups - shown, 'smaller group')} of models not shown: see --all.")
        print()
    if len(eda.ratings.models) > 2:
        columns, rows = tables.beats(eda.beats, top)
        common.print_table("P(row beats column) of decided votes; in brackets: they never met", columns, rows)
    for caution in eda.ratings.cautions():
        common.print_text(caution)
        print()


def _ratings(title: str, ratings: Ratings, top: int, group: int = 0) -> None:
    """The best models of one group of models that met, and how many there are below them."""
    from prefcli.metrics import plural
    from prefcli.rendering import tables

    common.print_table(title, *tables.ratings(ratings, top, group))
    models = len(ratings.of_group(group))
    if models > top:
        common.print_text(f"{plural(models - top, 'more model')}: --top {models} lists all.")
        print()


def _groups(eda: Eda, top: int, details: bool) -> None:
    from prefcli.metrics import plural

    shown = eda.by if details else eda.by[:MAX_SHOWN]
    for group in shown:
        common.print_text(f"{group.name} ({plural(group.battles, 'battle')})", "bold")
        for sentence in group.headline if details else group.headline[:1]:
            common.print_text(sentence)
        print()
        if details and group.ratings:
            _ratings(f"Ratings of {group.name}", group.ratings, top)
    if left_out := eda.groups_left_out + len(eda.by) - len(shown):
        common.print_text(f"{plural(left_out, 'more group')} not shown{'' if details else ': see --all'}.")
        print()
    if eda.ungrouped:
        common.print_text(f"{plural(eda.ungrouped, 'battle')} without a group.")
        print()


def _wins(eda: Eda) -> None:
    from prefcli.rendering import tables

    if eda.ratings and eda.ratings.style and eda.ratings.style.effects:
        common.print_table("What style adds, between equal models", *tables.style(eda.ratings.style))
    if len(eda.top_pairs) > 1:
        common.print_table("Most frequent pairs", *tables.pairs(eda))
    if eda.top_winners:
        common.print_table("Most wins (they count popularity)", *tables.wins(eda.top_winners))
    if eda.top_rates and eda.top_rates != eda.top_winners:
        common.print_table("Highest win rates", *tables.wins(eda.top_rates))


def _outcomes(eda: Eda) -> None:
    """Counts of the battles; A and B are positions there, not models."""
    rows: list[list[object]] = [["battles", eda.battles, ""]]
    if eda.labelled < eda.battles:
        rows.append(["with an outcome", eda.labelled, _percent(eda.labelled, eda.battles)])
    names = ("the first answer (A) won", "the second answer (B) won", "tie")
    rows += [[name, count, _percent(count, eda.labelled)] for name, count in zip(names, eda.outcomes, strict=True)]
    if eda.both_bad is not None:
        rows.append(["  both bad", eda.both_bad, _percent(eda.both_bad, eda.labelled)])
    rows += [
        ["of several turns", eda.multi_turn, _percent(eda.multi_turn, eda.battles)],
        ["different prompts", eda.prompts, ""],
        ["models", eda.models, ""],
    ]
    common.print_table("Battles", ["", "number", "share"], rows)


def _rewarded(eda: Eda) -> None:
    from prefcli.exploration.effects import describe_left_out

    if eda.position:
        rows: list[list[object]] = [["shown first (A)", *_cells(eda.position), ""]]
        for effect in eda.rewarded:
            rows.append([f"more {effect.what}", *_cells(effect.wins), f"{effect.odds:.2f}" if effect.odds else "-"])
        common.print_table(
            "Which answer wins (of decided battles; odds: one deviation more, all else equal)",
            ["", "wins", "95 %", "battles", "odds"],
            rows,
        )
        if left_out := describe_left_out(eda.rewarded):
            common.print_text(left_out)
            print()


def _ties(eda: Eda) -> None:
    from prefcli.rendering.tables import bin_label

    if len(eda.turns) > 1:
        common.print_table(
            "Outcome by turns",
            ["turns", "battles", "first won", "second won", "tie"],
            [
                [str(row.turns), row.battles, *(f"{share:.1%}" for share in (row.a_won, row.b_won, row.tied))]
                for row in eda.turns
            ],
        )
    if eda.tie_closeness:
        common.print_table(
            "Ties by how close the ratings are",
            ["points apart", "ties", "95 %", "battles", "expected"],
            [[bin_label(row.low, row.high), *_cells(row.tied), f"{row.expected:.1%}"] for row in eda.tie_closeness],
        )


def _problems(eda: Eda) -> None:
    from prefcli.rendering import tables

    columns, rows = tables.problems(eda)
    shown = [row for row in rows if row[1] != "0"]
    if shown:
        common.print_table("What to look out for", columns, shown)
    if eda.trouble:
        common.print_table("Battles with problems, as exported", *tables.trouble(eda.trouble))
    if eda.agreement:
        common.print_text(tables.agreement(eda.agreement))
        print()


def _texts(eda: Eda) -> None:
    from prefcli.exploration.measures import TOKENS_EXPLAINED
    from prefcli.rendering import tables

    common.print_table("Characters", *tables.lengths(eda))
    common.print_table(f"What a length limit would cut ({TOKENS_EXPLAINED})", *tables.cuts(eda))
    if len(eda.scripts) > 1:
        common.print_table("Script of the prompt", *tables.scripts(eda))


def _cells(share: Share) -> list[object]:
    from prefcli.rendering.tables import interval

    return [f"{share.value:.1%}", interval(share.low, share.high), share.n]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"

"""``prefcli eda``: look at the votes before training on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli import common

if TYPE_CHECKING:
    from prefcli.eda import Eda
    from prefcli.eda.effects import Share
    from prefcli.eda.ratings import ModelRating

EXAMPLES = common.examples(
    "prefcli eda train.csv",
    "prefcli eda train.csv --test test.csv --report page.html",
    "prefcli eda arena-*.parquet --top 10 --json",
    "prefcli eda votes.jsonl --columns prompt=question,response_a=left,response_b=right",
    "zcat votes.jsonl.gz | prefcli eda -",
)


def run(
    ctx: typer.Context,
    file: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Battles: CSV, TSV, JSON, JSONL or Parquet, also .gz and .zip; or -."),
    ],
    top: Annotated[int, typer.Option("--top", metavar="N", help="How many pairs and models to list.")] = 5,
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="A second file: which prompts stand in both?")
    ] = None,
    max_length: Annotated[
        int, typer.Option("--max-length", metavar="N", help="Tell what this limit of tokens would cut.")
    ] = 512,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="PAGE.html", help="Write everything as a page with plots.")
    ] = None,
    format: common.FormatOption = None,
    columns: common.ColumnsOption = None,
    json: common.JsonOption = False,
    force: common.ForceOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Models, outcomes, ratings, what people reward, and what is wrong with a file of battles."""
    from prefcli import pipeline

    session = common.session(ctx, workspace, quiet)
    found = pipeline.eda(
        common.source(file, format, columns),
        session.workspace,
        top=top,
        test=test,
        max_length=max_length,
        report=report,
        force=force,
        reporter=session.reporter,
    )
    if json:
        common.print_json(asdict(found))
    else:
        show(found, top)


def show(eda: Eda, top: int = 5) -> None:
    """The numbers as tables on stdout."""
    _battles(eda)
    _models(eda, top)
    _rewarded(eda)
    _problems(eda)


def _battles(eda: Eda) -> None:
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
    common.print_table(
        "Characters",
        ["", "mean", "median", "90 %", "longest"],
        [[name, round(d.mean), round(d.median), round(d.p90), d.longest] for name, d in eda.lengths.items()],
    )


def _models(eda: Eda, top: int) -> None:
    if eda.top_pairs:
        common.print_table(
            "Most frequent pairs",
            ["pair", "battles"],
            [[f"{pair.model_1} vs {pair.model_2}", pair.battles] for pair in eda.top_pairs],
        )
    for title, models in (
        ("Most wins (they count popularity)", eda.top_winners),
        ("Highest win rates", eda.top_rates),
    ):
        if models:
            common.print_table(
                title,
                ["model", "wins", "ties", "battles", "win rate", "95 %"],
                [[m.model, m.wins, m.ties, m.battles, f"{m.win_rate:.1%}", _range(*m.win_rate_ci)] for m in models],
            )
    if eda.ratings:
        common.print_table(
            f"Ratings (Bradley-Terry with ties, mean 1000; 95 % of {eda.ratings.rounds} bootstrap rounds)",
            ["model", "rating", "95 %", "battles"],
            [
                [
                    _rated(m, eda.ratings.groups),
                    f"{m.rating:.0f}",
                    f"{m.low:.0f} - {m.high:.0f}",
                    m.battles,
                ]
                for m in eda.ratings.models[:top]
            ],
        )
        for caution in eda.ratings.cautions():
            print(common.visible(caution) + "\n")


def _rated(model: ModelRating, groups: int) -> str:
    notes = [f"group {model.group + 1}"] * (groups > 1) + ["one-sided"] * model.one_sided
    return f"{model.model} ({', '.join(notes)})" if notes else model.model


def _rewarded(eda: Eda) -> None:
    if eda.position and eda.position.n:
        rows: list[list[object]] = [["the first answer (A)", *_share(eda.position), ""]]
        for one in eda.rewarded:
            rows.append([f"more {one.what}", *_share(one.wins), f"{one.odds:.2f}" if one.odds else "-"])
        common.print_table(
            "Which answer wins (of decided battles; odds: one standard deviation more, all else equal)",
            ["", "wins", "95 %", "battles", "odds"],
            rows,
        )
    if len(eda.turns) > 1:
        common.print_table(
            "Outcome by turns",
            ["turns", "battles", "A", "B", "tie"],
            [[str(t.turns), t.battles, *(f"{v:.1%}" for v in (t.a_won, t.b_won, t.tied))] for t in eda.turns],
        )
    if eda.tie_closeness:
        common.print_table(
            "Ties by how close the ratings are",
            ["points apart", "ties", "95 %", "battles", "expected"],
            [[_bin(c.low, c.high), *_share(c.tied), f"{c.expected:.1%}"] for c in eda.tie_closeness],
        )


def _problems(eda: Eda) -> None:
    from prefcli.eda.measures import TOKENS_EXPLAINED

    p = eda.problems
    a, b, tied = p.identical_outcomes
    rows: list[list[object]] = [
        ["identical answers", p.identical_answers, f"labelled A {a:,}, B {b:,}, tie {tied:,}"],
        ["repeated battles", p.duplicates, "same prompt and answers"],
        ["contradictory", p.contradictory, "same battle, both answers won"],
        ["a model against itself", p.self_battles, ""],
        ["null turns", sum(p.null_turns.values()), _by_field(p.null_turns)],
        ["empty texts", sum(p.empty.values()), _by_field(p.empty)],
    ]
    if p.overlap:
        o = p.overlap
        rows.append(
            [
                "prompts also in the test file",
                o.shared_prompts,
                f"{o.test_battles_known:,} of {o.test_battles:,} test battles",
            ]
        )
    common.print_table("What to look out for", ["", "battles", ""], rows)
    if eda.agreement:
        alpha = f", Krippendorff's alpha {eda.agreement.alpha:.2f}" if eda.agreement.alpha is not None else ""
        print(
            f"{eda.agreement.pairs:,} pairs of answers were judged more than once: "
            f"their votes agree in {eda.agreement.agree:.1%}{alpha}\n"
        )
    common.print_table(
        f"What a length limit cuts ({TOKENS_EXPLAINED})",
        ["tokens", "answers cut", "battles", "tokens lost"],
        [[str(c.max_length), *(f"{v:.1%}" for v in (c.sides_cut, c.battles_cut, c.tokens_lost))] for c in eda.cuts],
    )
    if len(eda.scripts) > 1:
        common.print_table(
            "Script of the prompt",
            ["", "battles", "share"],
            [[s.script, s.battles, f"{s.share:.1%}"] for s in eda.scripts],
        )


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _range(low: float, high: float) -> str:
    return f"{low:.1%} - {high:.1%}"


def _share(share: Share) -> list[object]:
    return [f"{share.value:.1%}", _range(share.low, share.high), share.n]


def _bin(low: float, high: float) -> str:
    return f"{low:g} - {high:g}" if high != float("inf") else f"{low:g} and more"


def _by_field(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)

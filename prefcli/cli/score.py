"""``prefcli score``. It never imports torch, transformers or nltk."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command
from prefcli.errors import one_line, plural

if TYPE_CHECKING:
    from prefcli.bootstrap import Interval
    from prefcli.data.reward_bench import RewardBench
    from prefcli.pipeline.score import ScoreComparison, ScoreResult, ScoresByGroup

EXAMPLES = common.examples(
    "prefcli score preds.csv labels.csv",
    "prefcli score preds.csv other.csv labels.csv",
    "prefcli score preds.csv labels.csv --report scores.html",
)


class Outcomes(str, Enum):
    """How many outcomes are scored."""

    auto = "auto"
    two = "2"
    three = "3"


@command()
def run(
    session: common.Session,
    reading: common.Reading,
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDS", help="id and three probabilities, CSV or Parquet; several are compared."),
    ],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="Battles with outcomes, or id and the three winner columns.")
    ],
    by: common.ByOption = None,
    outcomes: Annotated[
        Outcomes,
        typer.Option(help="Score A, B, tie, or only A against B. auto: 2 if no label is a tie.", show_default=True),
    ] = Outcomes.auto,
    renormalize: Annotated[
        bool, typer.Option("--renormalize", help="Clip to [1e-15, 1] and divide by the sum, as the grader does.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap interval.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="PAGE.html", help="Write a page with plots; of several files about the best."),
    ] = None,
    force: common.ForceOption = False,
) -> None:
    """Score predictions against labels: log loss and other metrics.

    They are joined by id. Several files of predictions are scored on the battles that all have, with paired
    differences.
    """
    from prefcli import pipeline
    from prefcli.battles import Source
    from prefcli.cli import next_steps

    source = Source.of(reading.like(labels), by=by)
    options: dict[str, Any] = {
        "outcomes": None if outcomes is Outcomes.auto else int(outcomes.value),
        "renormalize": renormalize,
        "seed": seed,
        "workspace": session.workspace,
    }
    result: ScoreResult | ScoreComparison
    if report is not None:
        how = pipeline.ScoreOptions(**options)
        result = pipeline.report_scores(predictions, source, report, how, force=force, reporter=session.reporter)
    elif len(predictions) == 1:
        result = pipeline.score(predictions[0], source, **options, reporter=session.reporter)
    else:
        result = pipeline.compare_scores(predictions, source, **options, reporter=session.reporter)
    if session.json:
        common.print_json(_as_json(result))
    elif isinstance(result, pipeline.ScoreComparison):
        _show_comparison(result)
    else:
        _show_score(result)
    first = next(iter(result.scores.values())) if isinstance(result, pipeline.ScoreComparison) else result
    next_steps.show(
        session, next_steps.after_score, [*predictions, labels],
        by=by is not None, page=report is not None, prompts=first.prompts is not None,
    )  # fmt: skip


def _as_json(result: ScoreResult | ScoreComparison) -> dict[str, Any]:
    """The result's fields; ``by`` only if groups were asked for."""
    fields = {name: value for name, value in vars(result).items() if name != "by" or value is not None}
    if "scores" in fields:
        fields["scores"] = {name: _as_json(score) for name, score in fields["scores"].items()}
    return fields


def _show_score(score: ScoreResult) -> None:
    from prefcli import metrics

    interval = metrics.describe_interval(score.log_loss_ci, score.log_loss_ci_reason)
    by_battle = "" if score.prompts or score.log_loss_ci is None else ", as if each battle had its own prompt"
    common.print_table(
        metrics.describe_battles(score.n, score.prompts, outcomes=score.outcomes),
        ["", "value", ""],
        [
            ["log loss", score.log_loss, interval + by_battle],
            ["  of the prior", score.prior_log_loss, "always predicting these labels' class shares"],
            ["  of a uniform guess", score.uniform_log_loss, ""],
            ["binary log loss", score.binary_log_loss, "each column as a yes/no question"],
            ["accuracy", score.accuracy, "of equal probabilities each counts by its share"],
            ["Brier score", score.brier, "0 to 2"],
            ["calibration error", score.ece, "top label, 15 bins"],
        ],
    )
    if score.by is not None:
        _show_groups(score.by)


def _show_comparison(comparison: ScoreComparison) -> None:
    from prefcli import metrics

    scores = comparison.scores
    first = next(iter(scores.values()))
    rows: list[list[object]] = [
        [name, score.log_loss, common.interval(score.log_loss_ci), score.accuracy, score.brier, score.ece, ""]
        for name, score in scores.items()
    ]
    for row, name in zip(rows, scores, strict=True):
        row[-1] = "best" if name == comparison.best else ""
    rows.append(["prior", first.prior_log_loss, "", "", "", "", ""])
    rows.append(["uniform guess", first.uniform_log_loss, "", "", "", "", ""])
    common.print_table(
        metrics.describe_battles(first.n, first.prompts, outcomes=first.outcomes),
        ["", "log loss", "95 %", "accuracy", "Brier", "calibr.", ""],
        rows,
    )
    lowest = min(scores, key=lambda name: scores[name].log_loss)
    shown = [each for each in comparison.differences if len(scores) < 5 or lowest in (each.a, each.b)]
    common.print_differences(shown)
    adjusted = " (adjusted for their number, Holm)" if len(scores) > 2 else ""
    if comparison.best is None:
        common.say(f"{lowest} has the lowest log loss, but none is marked best:")
        common.say(f"not every p against the others is below 0.05{adjusted}")
    else:
        common.say(f"best: {comparison.best}; p against every other file is below 0.05{adjusted}")
    if first.by is not None:
        print()
        _show_groups_of_files({name: score.by for name, score in scores.items() if score.by is not None})


MAX_SHOWN_GROUPS = 40


def _show_groups(by: ScoresByGroup) -> None:
    common.print_table(
        f"By {by.column}",
        ["", "battles", "log loss", "95 %", "prior", "accuracy", "95 %"],
        [
            [
                one_line(group.group, 80),
                group.n,
                group.log_loss,
                "-" if group.log_loss_ci is None else "{:.3f} to {:.3f}".format(*group.log_loss_ci),
                f"{group.prior_log_loss:.3f}",
                f"{group.accuracy:.1%}",
                "-" if group.accuracy_ci is None else "{:.0%} to {:.0%}".format(*group.accuracy_ci),
            ]
            for group in by.groups[:MAX_SHOWN_GROUPS]
        ],
    )
    _say_about_groups(by)
    if by.reward_bench is not None:
        _show_reward_bench({"accuracy": by.reward_bench})


def _show_groups_of_files(by: dict[str, ScoresByGroup]) -> None:
    first = next(iter(by.values()))
    common.print_table(
        f"Log loss by {first.column}",
        ["", "battles", *by],
        [
            [one_line(group.group, 80), group.n, *(of_file.groups[number].log_loss for of_file in by.values())]
            for number, group in enumerate(first.groups[:MAX_SHOWN_GROUPS])
        ],
    )
    _say_about_groups(first)
    if first.reward_bench is not None:
        averages = {name: of_file.reward_bench for name, of_file in by.items()}
        _show_reward_bench({name: average for name, average in averages.items() if average is not None})


def _say_about_groups(by: ScoresByGroup) -> None:
    """What the table of groups does not show."""
    lines = []
    if len(by.groups) > MAX_SHOWN_GROUPS:
        lines.append(f"{plural(len(by.groups) - MAX_SHOWN_GROUPS, 'more group')}: --json has all")
    if few := sum(group.log_loss_ci is None for group in by.groups):
        lines.append(
            f"no interval for {few:,} of {plural(len(by.groups), 'group')}: fewer than 20 prompts, or losses alike"
        )
    if by.ungrouped:
        lines.append(f"{plural(by.ungrouped, 'battle')} in no group: {by.column} is empty")
    for line in lines:
        common.say(line)
    if lines:
        print()


def _show_reward_bench(averages: dict[str, RewardBench]) -> None:
    first = next(iter(averages.values()))
    rows: list[list[object]] = []
    for number, section in enumerate(first.sections):
        cells = [(average.sections[number].accuracy, average.sections[number].ci) for average in averages.values()]
        rows.append([section.section, *(cell for value, ci in cells for cell in (f"{value:.1%}", _percent(ci)))])
    if first.average is not None:
        overall = [cell for average in averages.values() for cell in (f"{average.average:.1%}", _percent(average.ci))]
        rows.append(["mean of the sections", *overall])
    columns = [cell for name in averages for cell in (name, "95 %")]
    common.print_table("RewardBench's average", ["", *columns], rows)
    if first.missing:
        names = ", ".join(first.missing[:5]) + (" and others" if len(first.missing) > 5 else "")
        common.say(f"not comparable with the leaderboard: {len(first.missing)} of its subsets are missing: {names}\n")


def _percent(interval: Interval | None) -> str:
    return "-" if interval is None else "{:.1%} to {:.1%}".format(*interval)

"""List, show, compare and remove runs.

RUN is a run's name or its folder. Without a command runs are listed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.completion import complete_values
from prefcli.cli.flags import command
from prefcli.errors import InputError, PrefcliError
from prefcli.options import ARCHITECTURES

if TYPE_CHECKING:
    from prefcli.pipeline.runs import RunDetails, RunsDiff, RunSummary
    from prefcli.pipeline.runs_compare import RunComparison

EXAMPLES = common.examples(
    "prefcli runs --sort loss",
    "prefcli runs show my-run",
    "prefcli runs compare RUN1 RUN2",
)

FULL_WIDTH = 160
"""A terminal that is narrower gets several lines a run; piped, each run is on one line."""

RunsArgument = Annotated[
    list[str], typer.Argument(metavar="RUN", help="Names or folders of runs.", autocompletion=common.complete_run)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


@command()
def list_runs(
    session: common.Session,
    folder: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="More runs, or folders that hold runs.")
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="when|name|loss|gain|size",
            autocompletion=complete_values(("when", "name", "loss", "gain", "size")),
            help="The newest first; by name; the lowest log loss first; furthest below its prior; the largest.",
            show_default=True,
        ),
    ] = "when",
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            metavar="|".join(ARCHITECTURES),
            help="Only runs of this architecture.",
            autocompletion=complete_values(ARCHITECTURES),
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="KEY=VALUE", help="Only runs with this value of a flag or a key of --json."),
    ] = None,
) -> None:
    """List runs with their validation.

    Those of the workspace, and those trained from it into other places.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    summaries = pipeline.list_runs(
        session.workspace,
        folders=folder or (),
        sort=sort,
        architecture=architecture,
        where=dict(_condition(text) for text in where or ()),
        reporter=session.reporter,
    )
    different = pipeline.different_battles(summaries)
    if session.json:
        common.print_json({"runs": summaries})
        return
    if not summaries:
        common.say(f"no runs in {session.workspace.root}" + (" with these properties" if where or architecture else ""))
    elif common.output_width() >= FULL_WIDTH:
        _print_rows(summaries)
    else:
        for run in summaries:
            _print_lines(run)
    if different > 1:
        session.reporter.warn(
            f"these log losses are of {different} different sets of held-out battles, so they cannot all be compared: "
            "prefcli runs compare RUN RUN takes the battles that both held out"
        )
    next_steps.show(session, next_steps.after_runs, summaries, filtered=bool(where or architecture))


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--where is {text!r}, expected KEY=VALUE", hint="For example --where text=raw.")
    return name.strip().lstrip("-").replace("-", "_"), value.strip()


def _print_rows(summaries: Sequence[RunSummary]) -> None:
    columns = ["run", "when", "architecture", "encoder", "text", "data", "battles", "held out", "log loss", "95 %",
               "vs prior", "size", ""]  # fmt: skip
    rows = [
        [run.name, _when(run), run.architecture, run.encoder or "", run.text, run.data, _count(run.train_battles),
         _count(run.held_out_battles), _figure(run.log_loss), common.interval(run.log_loss_ci, ""), _against_prior(run),
         _size(run.bytes), _state(run)]
        for run in summaries
    ]  # fmt: skip
    common.print_table("Runs", columns, rows)


def _print_lines(run: RunSummary) -> None:
    """A run on lines that fit a terminal: name and state, figures, what it is."""
    common.say(f"{run.name}  {_state(run)}".rstrip())
    figures = []
    if run.log_loss is not None:
        interval = common.interval(run.log_loss_ci, "")
        figures = [
            f"log loss {run.log_loss:.4f}{f' ({interval})' if interval else ''}",
            f"{_against_prior(run)} against the prior",
        ]
    what = [run.architecture, run.encoder or "", run.text, run.data]
    counts = ((run.train_battles, "battles"), (run.held_out_battles, "held out"))
    battles = [f"{count:,} {name}" for count, name in counts if count is not None]
    for parts in (figures, [*what, *battles], [_when(run), _size(run.bytes)]):
        if text := ", ".join(filter(None, parts)):
            common.say(f"  {text}")


def _state(run: RunSummary) -> str:
    parts = ["latest"] * run.is_latest + [run.status] * (run.status != "finished") + [run.problem] * bool(run.problem)
    return ": ".join(parts) if len(parts) > 1 else "".join(parts)


def _when(run: RunSummary) -> str:
    return run.when[:16].replace("T", " ")


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{round(value, 4) + 0.0:.4f}"  # not "-0.0000"


def _against_prior(run: RunSummary) -> str:
    """How far the log loss is above the prior's: negative is better."""
    from prefcli import metrics

    return "" if run.gain is None else metrics.signed(-run.gain)


def _size(size: int) -> str:
    from prefcli.storage.files import amount

    return amount(size)


@command()
def show(
    session: common.Session,
    run: common.RunArgument,
) -> None:
    """Show everything about a run.

    Figures, options that are not the defaults, data, files; its files are checked.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    details = pipeline.show_run(run, session.workspace)
    if session.json:
        common.print_json(details)
    else:
        _print_details(details)
    next_steps.show(session, next_steps.after_show, details.summary, damaged=bool(details.damage))


def _print_details(details: RunDetails) -> None:
    from prefcli import metrics

    run = details.summary
    common.say(f"{run.path}")
    common.say(f"{run.status}, {_when(run)}, {_size(run.bytes)}" + ", the latest run" * run.is_latest)
    if details.damage:
        common.say(f"damaged: {details.damage}")
    print()
    if score := details.validation:
        common.print_table(
            metrics.describe_battles(score.n, score.prompts, "held-out battle", outcomes=score.outcomes),
            ["", "value", ""],
            [
                ["log loss", score.log_loss, metrics.describe_interval(score.log_loss_ci, score.log_loss_ci_reason)],
                ["  of the prior", score.prior_log_loss, ""],
                ["accuracy", score.accuracy, ""],
                ["Brier score", score.brier, ""],
                ["calibration error", score.ece, ""],
            ],
        )
    options = [
        [option.name, _text(option.value), option.origin, f"default {_text(option.default)}"]
        if option.origin != "default"
        else [option.name, _text(option.value), "other options", ""]
        for option in details.options
        if option.name != "encoder" or run.encoder
    ]
    if options:
        common.print_table("Options that are not the defaults", ["", "value", "from", ""], options)
    for title, values in (("Resolved", details.resolved), ("Data", details.data), ("Versions", details.versions)):
        if values:
            _print_pairs(title, {name: _text(value) for name, value in values.items()})
    if details.files:
        _print_pairs("Files", {name: _size(size) for name, size in details.files.items()})
    if details.command:
        common.say(f"made by: {details.command}")


def _print_pairs(title: str, values: dict[str, str]) -> None:
    common.print_table(title, ["", ""], [[name, value] for name, value in values.items()])


def _text(value: Any) -> str:
    from prefcli.storage.files import to_json

    if isinstance(value, list):
        value = [round(each, 4) if isinstance(each, float) else each for each in value]
    return value if isinstance(value, str) else "none" if value is None else to_json(value)


@command()
def diff(session: common.Session, run: RunsArgument) -> None:
    """Show options and figures in which runs differ."""
    from prefcli import pipeline
    from prefcli.cli import next_steps

    difference = pipeline.diff_runs(run, session.workspace)
    if session.json:
        common.print_json(difference)
    else:
        _print_difference(difference)
    next_steps.show(session, next_steps.after_diff, difference.runs)


def _print_difference(difference: RunsDiff) -> None:
    for title in ("figures", "options", "resolved", "data", "versions"):
        if rows := getattr(difference, title):
            spell = _rounded if title == "figures" else _text
            lines = [[name, *map(spell, values)] for name, values in rows.items()]
            common.print_table(title.capitalize(), ["", *difference.runs], lines)


def _rounded(value: Any) -> str:
    if isinstance(value, tuple):
        return common.interval(value)
    return _figure(value) if isinstance(value, float) else _count(value)


@command()
def compare(
    session: common.Session,
    run: RunsArgument,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Compare runs on the battles that all of them held out.

    Paired differences with intervals and p-values.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    comparison = pipeline.compare_runs(run, session.workspace, seed=seed, reporter=session.reporter)
    if session.json:
        common.print_json(comparison)
    else:
        _print_comparison(comparison)
    next_steps.show(session, next_steps.after_compare, comparison)


def _print_comparison(comparison: RunComparison) -> None:
    from prefcli import metrics

    what = metrics.describe_battles(
        comparison.battles, comparison.prompts, "common battle", outcomes=comparison.outcomes
    )
    rows = [
        [name, score.log_loss, common.interval(score.log_loss_ci), score.accuracy,
         "best" if name == comparison.best else ""]
        for name, score in comparison.scores.items()
    ]  # fmt: skip
    common.print_table(what, ["run", "log loss", "95 %", "accuracy", ""], rows)
    common.print_differences(comparison.differences)
    if comparison.best is None:
        common.say("no run is clearly better than each of the others")


@command()
def rm(session: common.Session, run: RunsArgument, yes: YesOption = False) -> None:
    """Remove runs for good; asks before it does."""
    from prefcli import pipeline

    planned = pipeline.plan_removal(run, session.workspace)
    total = _size(sum(each.bytes for each in planned))
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                "nothing was removed: there is no terminal to ask on", hint="Add --yes to remove the runs."
            )
        for each in planned:
            common.say(f"{each.path}: {each.status}, {_size(each.bytes)}")
        what = "it" if len(planned) == 1 else f"these {len(planned)} runs"
        if not typer.confirm(f"Remove {what} ({total})?", err=True):
            raise PrefcliError("nothing was removed")
    removed = pipeline.remove_runs(run, session.workspace, reporter=session.reporter)
    common.print_result(session, removed, *(f"{each.path}: removed, {_size(each.bytes)}" for each in removed.removed))


@command()
def prune(
    session: common.Session,
    unfinished: Annotated[
        float | None,
        typer.Option(
            "--unfinished", min=0, metavar="DAYS", help="Also unfinished runs that were not written to for so long."
        ),
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Also cached stages, made again when needed, and tables that no run uses.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it; without it, it is only listed.")] = False,
) -> None:
    """Remove the checkpoints of finished runs, and more if asked.

    Without --yes only list what would go.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps

    pruned = pipeline.prune(session.workspace, unfinished_days=unfinished, stages=stages, remove=yes)
    total = _size(pruned.bytes)
    lines = [f"{item.path}: {item.what}, {_size(item.bytes)}" for item in pruned.items]
    end = f"{total} removed" if yes else f"{total} would be removed: add --yes" if lines else "nothing to remove"
    common.print_result(session, pruned, *lines, end)
    if lines and not yes:
        next_steps.show(session, next_steps.after_prune)


COMMANDS = {"list": list_runs, "show": show, "diff": diff, "compare": compare, "rm": rm, "prune": prune}

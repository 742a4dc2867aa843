"""``prefcli train``: fit a model on battles with outcomes.

Its flags are the fields of :class:`prefcli.options.TrainOptions`, so that a flag, a key of ``--config`` and an option
kept in a run are the same thing under the same name.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import add_option_flags, given_options
from prefcli.options import RECIPES, TrainOptions, describe_recipe, flag_of, read_config, resolve

if TYPE_CHECKING:
    from prefcli.pipeline import Trained

EXAMPLES = common.examples(
    "prefcli train train.csv",
    "prefcli train train.csv --encoder tiny",
    "prefcli train train.csv --recipe fast",
    "prefcli train train.csv --estimate",
    "prefcli train train.csv --encoder ./deberta-v3-small --text raw --epochs 2",
    "prefcli train train.csv --folds 5 --output runs/five-folds",
    "prefcli train --resume 20260101-120000-siamese-tiny",
    "prefcli train train.csv --config run.toml",
    "prefcli train train.csv --push-to me/my-judge",
)


def run(
    ctx: typer.Context,
    file: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE", help="Battles with outcomes. [default: what preprocess last left, else train.csv]"
        ),
    ] = None,
    format: common.FormatOption = None,
    columns: common.ColumnsOption = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Options from a TOML file or a run's config.json; flags win."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Continue a run, by folder or name, with its options.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The run's folder. [default: a new one]")
    ] = None,
    push_to: Annotated[
        str | None, typer.Option("--push-to", metavar="OWNER/NAME", help="Bring the finished run to the hub, private.")
    ] = None,
    estimate: common.EstimateOption = False,
    force: common.ForceOption = False,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
    **flags: Any,
) -> None:
    """Train a model; its run holds weights, tokenizer, options, per-battle validation and a model card."""
    from prefcli import pipeline
    from prefcli.compute import memory
    from prefcli.errors import InputError, PrefcliError

    memory.keep_freed_memory()
    session = common.session(ctx, workspace, quiet)
    given = given_options(flags)
    if resume is not None and (given or file or output or config):
        named = [flag_of(name) for name in given] + [n for n, v in (("--output", output), ("--config", config)) if v]
        named += ["FILE"] if file else []
        raise InputError(f"--resume continues a run as it was: it cannot be combined with {', '.join(named)}")
    options, origins = resolve(given, read_config(config) if config else None)
    if RECIPES[options.recipe] and resume is None:
        session.reporter.note(describe_recipe(options, origins))
    if estimate:
        if resume is not None:
            raise InputError("--estimate tells of a whole training: it cannot be combined with --resume")
        battles = common.source(file, format, columns) if file else None
        found = pipeline.estimate_training(battles, session.workspace, options, reporter=session.reporter)
        if found.is_main_process:
            common.print_estimate(found, json)
        return
    if push_to is not None:
        pipeline.check_push(push_to)  # before hours of work
    made = pipeline.train(
        common.source(file, format, columns) if file else None,
        session.workspace,
        options,
        origins=origins,
        output=output,
        resume=resume,
        force=force,
        command=shlex.join(["prefcli", *sys.argv[1:]]),
        reporter=session.reporter,
    )
    if not made.is_main_process:
        return
    pushed, refused = None, None
    if push_to is not None:
        try:
            pushed = pipeline.push(str(made.run), push_to, session.workspace, reporter=session.reporter).url
        except PrefcliError as error:
            again = shlex.join(["prefcli", "push", str(made.run), push_to])
            refused = PrefcliError(
                f"the run is whole, but was not pushed: {error.what}",
                where=str(made.run),
                hint=f"Push it later: {again}",
            )
    _print(made, json, {"pushed": pushed} if push_to is not None else {})
    if refused is not None:
        raise refused


def _print(made: Trained, json: bool, more: dict[str, Any]) -> None:
    if json:
        common.print_json(
            {
                "run": str(made.run),
                "validation": made.validation,
                "seconds": made.seconds,
                "battles_per_second": made.battles_per_second,
                **more,
            }
        )
        return
    if made.validation is not None:
        low, high = made.validation["log_loss_ci"]
        common.print_table(
            f"{made.validation['n']:,} held-out battles",
            ["", "log loss", ""],
            [
                ["this model", made.validation["log_loss"], f"95 % interval {low:.4f} to {high:.4f}"],
                ["prior", made.validation["prior_log_loss"], "always the held-out battles' own shares"],
                ["uniform guess", made.validation["uniform_log_loss"], ""],
            ],
        )
    if more.get("pushed"):
        common.say(f"{more['pushed']}: pushed")
    common.say(f"{made.run}: trained at {made.battles_per_second:,.1f} battles/s, {made.seconds:,.0f} s in all")


add_option_flags(run, TrainOptions)

"""``prefcli train``: fit a model on battles with outcomes.

Most of its flags are the fields of :class:`prefcli.options.TrainOptions`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli import console
from prefcli.cli import common
from prefcli.cli.flags import command, given_options
from prefcli.errors import InputError, PrefcliError, one_line
from prefcli.options import FIRST_PANEL, RECIPES, TrainOptions, describe_recipe, flag_of, read_config, resolve

if TYPE_CHECKING:
    from prefcli.metrics import Score
    from prefcli.pipeline.train import TrainResult
    from prefcli.pipeline.tune import Tuning
    from prefcli.training.experiment import SourceResult

MAX_SHOWN_SOURCES = 20
MAX_SHOWN_TRIALS = 10

EXAMPLES = common.examples(
    "prefcli train train.csv --recipe fast",
    "prefcli train train.csv --estimate",
    "prefcli train train.csv --encoder my-encoder --text raw --output my-judge",
)


MostUsedOption = functools.partial(typer.Option, rich_help_panel=FIRST_PANEL)


@command(TrainOptions)
def run(
    session: common.Session,
    reading: common.Reading,
    file: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE", help="Battles with outcomes. [default: what preprocess last left, else train.csv]"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        common.GeneralOption(
            "--config", metavar="FILE", help="Options from a TOML file or a run's config.json; flags win."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        MostUsedOption(
            "--resume",
            metavar="RUN",
            help="Continue a run, by folder or name, with its options.",
            autocompletion=common.complete_run,
        ),
    ] = None,
    output: Annotated[
        Path | None, MostUsedOption("--output", "-o", metavar="DIR", help="The run's folder. [default: a new one]")
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            "--push-to",
            metavar="OWNER/NAME",
            help="Push the finished run to the hub, private.",
            rich_help_panel="Output",
        ),
    ] = None,
    estimate: Annotated[bool, MostUsedOption("--estimate", help=common.ESTIMATE_HELP)] = False,
    tune: Annotated[
        int | None,
        typer.Option(
            "--tune",
            min=2,
            metavar="N",
            help="Try N settings on folds first; train with the best if it is clearly better than the default.",
            rich_help_panel="Optimisation",
        ),
    ] = None,
    force: common.ForceOption = False,
    **flags: Any,
) -> None:
    """Train a model on battles with outcomes.

    Its run holds weights, tokenizer, options, the validation of every battle and a model card.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps
    from prefcli.compute import memory
    from prefcli.pipeline.train import check_files
    from prefcli.storage.runs import refuse_folder

    given = given_options(flags)
    if resume is not None:
        others = {"--output": output, "--config": config, "FILE": file}
        refused = [flag_of(name) for name in given] + [name for name, value in others.items() if value]
        refused += [flag_of(name) for name in reading.reading]
        if refused:
            raise InputError(f"--resume continues a run as it was: it cannot be combined with {', '.join(refused)}")
        if estimate:
            raise InputError("--estimate is for a whole training: it cannot be combined with --resume")
    if tune is not None and (resume is not None or estimate):
        raise InputError(f"--tune cannot be combined with {'--resume' if resume is not None else '--estimate'}")
    options, origins = resolve(given, read_config(config) if config else None)
    if options.architecture != "features":  # LightGBM's data sets are large, and each is freed before the next
        memory.keep_freed_memory()
    if RECIPES[options.recipe] and resume is None:
        session.reporter.note(describe_recipe(options, origins))
    if reading.reading and not file:
        raise InputError(f"--{next(iter(reading.reading))} says how FILE is read: name the file")
    battles = reading.like(file) if file else None
    if estimate:
        cost = pipeline.estimate_training(battles, session.workspace, options, reporter=session.reporter)
        common.print_estimate(cost, session)
        return
    if push_to is not None:
        if resume is None:
            check_files(battles, session.workspace, options)
        pipeline.check_push(push_to)  # before hours of training
    tuning = None
    if tune is not None:
        if battles is None:
            raise InputError("--tune needs the battles: name the file")
        if output is not None:
            refuse_folder(output, force=force)  # before hours of training, too
        tuning = pipeline.tune(battles, session.workspace, options, trials=tune, fixed=given, reporter=session.reporter)
        options = dataclasses.replace(options, **tuning.settings)
        origins |= dict.fromkeys(tuning.settings, "tuned")
        if not session.json:
            _print_tuning(tuning, session.arguments)
    trained = pipeline.train(
        battles,
        session.workspace,
        options,
        origins=origins,
        output=output,
        resume=resume,
        force=force,
        command=shlex.join(["prefcli", *session.arguments]),
        reporter=session.reporter,
    )
    if not session.is_main_process:
        return
    pushed, push_error = (None, None) if push_to is None else _push(trained.run, push_to, session)
    if session.json:
        result = asdict(trained) | ({"pushed": pushed} if push_to is not None else {})
        common.print_json(result | ({"tuning": asdict(tuning)} if tuning is not None else {}))
    else:
        _print(trained, pushed)
    if push_error is not None:
        raise push_error
    next_steps.show(session, next_steps.after_train, trained.run, held_out=trained.validation is not None)


def _print_tuning(tuning: Tuning, arguments: Sequence[str]) -> None:
    from prefcli.metrics import describe_battles

    ranked = sorted(enumerate(tuning.trials, start=1), key=lambda trial: trial[1].log_loss)
    shown = ranked[:MAX_SHOWN_TRIALS] + [trial for trial in ranked[MAX_SHOWN_TRIALS:] if trial[0] == 1]
    names = list(tuning.trials[1].settings)
    rows = [
        [number, trial.log_loss if math.isfinite(trial.log_loss) else "diverged"]
        + ([str(trial.settings[name]) for name in names] if trial.settings else ["default"] * len(names))
        for number, trial in shown
    ]
    title = f"{len(tuning.trials)} trials, the best first; {describe_battles(tuning.battles, tuning.prompts)}"
    common.print_table(title, ["trial", "log loss", *map(flag_of, names)], rows)
    common.say(tuning.reading)
    if tuning.best > 1:
        kept = [
            word for word, before in zip(arguments, ["", *arguments], strict=False)
            if not {word.partition("=")[0], before, word[:2]} & {"--tune", "--output", "-o"}
        ]  # fmt: skip
        common.say(f"Trial {tuning.best}: {shlex.join(['prefcli', *kept, *tuning.flags])}")


def _push(run: Path, name: str, session: common.Session) -> tuple[str | None, PrefcliError | None]:
    """The address of the pushed run, or why it was not pushed: the run's scores are printed before that is raised."""
    from prefcli import pipeline

    try:
        return pipeline.push(str(run), name, session.workspace, reporter=session.reporter).url, None
    except PrefcliError as error:
        return None, PrefcliError(
            f"the run is complete, but was not pushed: {error.what}",
            where=str(run),
            hint=f"Push it later: {shlex.join(['prefcli', 'push', str(run), name])}",
        )


def _tie_share(source: SourceResult) -> str:
    return f"{source.outcomes[-1] / sum(source.outcomes):.1%}" if source.can_tie else "never"


def _held_out(score: Score | None) -> list[Any]:
    if score is None:
        return [0, "-", ""]
    return [score.n, score.log_loss, common.interval(score.log_loss_ci)]


def _print(trained: TrainResult, pushed: str | None) -> None:
    from prefcli import metrics

    if trained.validation is not None:
        score = trained.validation
        interval = metrics.describe_interval(score.log_loss_ci, score.log_loss_ci_reason)
        common.print_table(
            metrics.describe_battles(score.n, score.prompts, "held-out battle", outcomes=score.outcomes),
            ["", "log loss", ""],
            [
                ["this model", score.log_loss, interval],
                ["prior", score.prior_log_loss, "class shares of the held-out battles"],
                ["uniform guess", score.uniform_log_loss, ""],
            ],
        )
    if trained.sources:
        rows = [
            [one_line(each.name, 40), f"{sum(each.outcomes):,.0f}", _tie_share(each), *_held_out(each.validation)]
            for each in trained.sources[:MAX_SHOWN_SOURCES]
        ]
        title = "Sources, each predicted as it votes"
        if left_out := len(trained.sources) - len(rows):
            title += f"; {left_out:,} smaller ones are in --json"
        common.print_table(title, ["source", "battles", "ties", "held out", "log loss", "95 %"], rows)
    if pushed:
        common.say(f"{pushed}: pushed")
    common.print_text(f"run {trained.run.name}: {_describe(trained)}")
    rate = f"{trained.battles_per_second:,.1f} battles/s"
    common.say(f"in {trained.run}; {console.duration(trained.seconds)} in all, {rate}")


def _describe(trained: TrainResult) -> str:
    """What was trained: ``siamese, encoder tiny, text nltk, on 2,700 battles``."""
    from prefcli.errors import plural
    from prefcli.storage import runs

    config = runs.read_config(trained.run)
    options = TrainOptions(**config["options"])
    encoder = [f"encoder {trained.encoder}"] if trained.encoder else []
    folds = f"{options.folds} folds of about " if options.folds else "on "
    battles = folds + plural(config["data"]["train_battles"], "battle")
    return ", ".join([options.architecture, *encoder, f"text {options.normalisation}", battles])

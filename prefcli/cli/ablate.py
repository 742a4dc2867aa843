"""``prefcli ablate``: the original notebook's experiment, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command, given_options
from prefcli.options import TrainOptions, resolve

EXAMPLES = common.examples(
    "prefcli ablate train.csv --encoder tiny --seeds 3",
    "prefcli ablate train.csv --encoder my-encoder --output softmax-ablation",
)


@command(TrainOptions, without=("epochs", "loss_input", "folds", "keep", "patience"))
def run(
    session: common.Session,
    reading: common.Reading,
    file: common.FilesArgument,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Train every model with N seeds.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the runs. [default: in the workspace]"),
    ] = None,
    **flags: Any,
) -> None:
    """Repeat the original notebook's softmax experiment, and measure it.

    Trains with the loss on logits, softmax and log-softmax, and scores six settings. If interrupted, the same command
    continues. The other flags are those of train.
    """
    from prefcli import pipeline
    from prefcli.cli import next_steps
    from prefcli.compute import memory
    from prefcli.pipeline.ablate import COLUMNS, cells, title

    memory.keep_freed_memory()
    options, _ = resolve(given_options(flags))
    ablation = pipeline.ablate(
        reading.like(file),
        session.workspace,
        options,
        seeds=seeds,
        output=output,
        reporter=session.reporter,
    )
    if session.json:
        common.print_json(ablation)
        return
    common.print_table(
        title(ablation),
        COLUMNS,
        [cells(row) for row in ablation.rows],
    )
    common.say(f"The prior scores {ablation.prior_log_loss:.4f}. {ablation.reading}")
    common.say(f"{ablation.folder}: the runs and the table (ablation.md, ablation.json)")
    next_steps.show(session, next_steps.after_ablate, ablation.folder)

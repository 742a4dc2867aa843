"""``prefcli ablate``: the seed document's experiment, measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import add_option_flags, given_options
from prefcli.options import TrainOptions, resolve

EXAMPLES = common.examples(
    "prefcli ablate train.csv --encoder tiny --seeds 3",
    "prefcli ablate train.csv --encoder ./deberta-v3-small --output softmax-ablation",
)
DECIDED_HERE = ("epochs", "loss_input", "folds", "keep", "patience")


def run(
    ctx: typer.Context,
    file: common.FilesArgument,
    format: common.FormatOption = None,
    columns: common.ColumnsOption = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Train every model with N seeds.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where its runs go. [default: the workspace]")
    ] = None,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
    **flags: Any,
) -> None:
    """Where softmax belongs: train with the loss on logits, softmax and log-softmax, score all six rows.

    Interrupted, it goes on where it was when called again. The other flags are those of train.
    """
    from prefcli import pipeline
    from prefcli.compute import memory

    memory.keep_freed_memory()
    session = common.session(ctx, workspace, quiet)
    options, _ = resolve(given_options(flags))
    found = pipeline.ablate(
        common.source(file, format, columns),
        session.workspace,
        options,
        seeds=seeds,
        output=output,
        reporter=session.reporter,
    )
    if json:
        common.print_json(asdict(found))
        return
    common.print_table(
        f"{found.battles:,} held-out battles over {found.seeds} seed(s)",
        ["loss is given", "at inference", "epochs", "log loss", "95 % interval", "difference to row 1", "document"],
        [
            [
                row.setting.loss_input,
                "softmax" if row.setting.activation == "softmax" else "raw scores",
                row.setting.epochs,
                row.log_loss,
                f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
                f"{row.difference:+.4f} ({row.difference_interval[0]:+.4f} to {row.difference_interval[1]:+.4f})",
                f"{row.setting.reported:.5f}",
            ]
            for row in found.rows
        ],
    )
    common.say(f"The prior scores {found.prior_log_loss:.4f}. {found.reading}")
    common.say(f"{found.folder}: the runs and the table (ablation.md, ablation.json)")


add_option_flags(run, TrainOptions, without=DECIDED_HERE)

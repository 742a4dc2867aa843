"""``prefcli demo``: all five verbs on battles made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common

EXAMPLES = common.examples("prefcli demo", "prefcli demo my-demo")


def run(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make it.")] = Path("prefcli-demo"),
    force: common.ForceOption = False,
    json: common.JsonOption = False,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Make a small synthetic train.csv and test.csv, run all five verbs on them, and compare with the best possible."""
    from prefcli import pipeline
    from prefcli.cli import eda

    session = common.session(ctx, folder / ".prefcli", quiet)
    outcome = pipeline.demo(folder, session.workspace, force=force, reporter=session.reporter)
    score = outcome.score
    if json:
        common.print_json(
            {
                "run": str(outcome.run),
                "log_loss": score.log_loss,
                "prior_log_loss": score.prior_log_loss,
                "best_log_loss": outcome.best_log_loss,
                "accuracy": score.accuracy,
            }
        )
        return
    eda.show(outcome.eda)
    low, high = score.log_loss_ci
    common.print_table(
        f"Log loss on {score.n:,} test battles",
        ["", "log loss", ""],
        [
            ["uniform guess", score.uniform_log_loss, ""],
            ["prior", score.prior_log_loss, "the shares of A, B and tie, nothing else"],
            ["the model", score.log_loss, f"95 % interval {low:.4f} to {high:.4f}"],
            ["best possible", outcome.best_log_loss, "the probabilities the votes were drawn from"],
        ],
    )
    common.say(f"Everything is in {folder}. Try the verbs yourself: cd {folder} && prefcli eda train.csv")

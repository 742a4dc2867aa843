"""``prefcli demo``: the whole pipeline on synthetic battles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command

EXAMPLES = common.examples("prefcli demo", "prefcli demo my-demo")


@command(without=("workspace",))
def run(
    session: common.Session,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for its files.")] = Path("prefcli-demo"),
    force: common.ForceOption = False,
) -> None:
    """Run all verbs on synthetic battles.

    Writes train.csv and test.csv, runs eda, preprocess, train, predict and score, and compares with the best possible.
    """
    from prefcli import metrics, pipeline
    from prefcli.cli import eda, next_steps

    result = pipeline.demo(folder, force=force, reporter=session.reporter)
    score = result.score
    if session.json:
        common.print_json(
            {
                "run": str(result.run),
                "log_loss": score.log_loss,
                "prior_log_loss": score.prior_log_loss,
                "best_log_loss": result.best_log_loss,
                "accuracy": score.accuracy,
            }
        )
        return
    eda.show(result.eda)
    common.print_table(
        f"Log loss on {metrics.describe_battles(score.n, score.prompts, 'test battle')}",
        ["", "log loss", ""],
        [
            ["uniform guess", score.uniform_log_loss, ""],
            ["prior", score.prior_log_loss, "class shares of the test battles"],
            ["the model", score.log_loss, metrics.describe_interval(score.log_loss_ci, score.log_loss_ci_reason)],
            ["best possible", result.best_log_loss, "the probabilities the votes were drawn from"],
        ],
    )
    common.say(f"Everything is in {folder}.")
    next_steps.show(session, next_steps.after_demo, folder, result.run)

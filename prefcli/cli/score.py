"""``prefcli score``. It never imports torch, transformers or nltk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command

EXAMPLES = common.examples(
    "prefcli score preds.csv labels.csv",
    "prefcli score preds.csv train.csv --json",
    "prefcli score raw_scores.csv labels.csv --renormalize",
)


@command()
def run(
    session: common.Session,
    predictions: Annotated[Path, typer.Argument(metavar="PREDS", help="id and three probabilities, CSV or Parquet.")],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="id and the three winner columns, such as train.csv.")
    ],
    renormalize: Annotated[
        bool, typer.Option("--renormalize", help="Clip to [1e-15, 1] and divide by the sum, as the grader does.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap interval.")] = 0,
) -> None:
    """Score predictions against labels, joined by id: log loss with its interval, and other metrics."""
    from prefcli import metrics, pipeline

    score = pipeline.score(predictions, labels, renormalize=renormalize, seed=seed, reporter=session.reporter)
    if session.json:
        common.print_json(score)
        return
    common.print_table(
        metrics.describe_battles(score.n, score.prompts),
        ["", "value", ""],
        [
            ["log loss", score.log_loss, metrics.describe_interval(score.log_loss_ci, score.log_loss_ci_reason)],
            ["  of the prior", score.prior_log_loss, "always predicting these labels' class shares"],
            ["  of a uniform guess", score.uniform_log_loss, ""],
            ["binary log loss", score.binary_log_loss, "each column as a yes/no question"],
            ["accuracy", score.accuracy, ""],
            ["Brier score", score.brier, "0 to 2"],
            ["calibration error", score.ece, "top label, 15 bins"],
        ],
    )
    if score.clipped:
        session.reporter.warn(
            f"{score.clipped:,} battles gave the true outcome a probability of (nearly) 0: 36 nats each after clipping"
        )

"""``prefcli score``. It never imports torch, transformers or nltk."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common
from prefcli.cli.flags import command

EXAMPLES = common.examples(
    "prefcli score preds.csv labels.csv",
    "prefcli score preds.csv train.csv --json",
    "prefcli score preds.csv votes.jsonl --layout ours.toml",
    "prefcli score raw_scores.csv labels.csv --renormalize",
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
    predictions: Annotated[Path, typer.Argument(metavar="PREDS", help="id and three probabilities, CSV or Parquet.")],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="Battles with outcomes, or id and the three winner columns.")
    ],
    outcomes: Annotated[
        Outcomes,
        typer.Option(help="Score A, B, tie, or only A against B. auto: 2 if no label is a tie.", show_default=True),
    ] = Outcomes.auto,
    renormalize: Annotated[
        bool, typer.Option("--renormalize", help="Clip to [1e-15, 1] and divide by the sum, as the grader does.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap interval.")] = 0,
) -> None:
    """Score predictions against labels, joined by id: log loss with its interval, and other metrics."""
    from prefcli import metrics, pipeline

    score = pipeline.score(
        predictions,
        reading.like(labels),
        outcomes=None if outcomes is Outcomes.auto else int(outcomes.value),
        renormalize=renormalize,
        seed=seed,
        workspace=session.workspace,
        reporter=session.reporter,
    )
    if session.json:
        common.print_json(score)
        return
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

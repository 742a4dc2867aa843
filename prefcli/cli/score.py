"""``prefcli score``: how good predictions are. Never imports torch, transformers or nltk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli import common

EXAMPLES = common.examples(
    "prefcli score preds.csv labels.csv",
    "prefcli score preds.csv train.csv --json",
    "prefcli score raw_scores.csv labels.csv --renormalize",
)


def run(
    ctx: typer.Context,
    predictions: Annotated[Path, typer.Argument(metavar="PREDS", help="id and three probabilities, CSV or Parquet.")],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="id and the three winner columns; train.csv will do.")
    ],
    renormalize: Annotated[
        bool, typer.Option("--renormalize", help="Clip to [1e-15, 1] and divide by the sum, as the grader does.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    json: common.JsonOption = False,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
) -> None:
    """Score predictions against the truth, joined by id: log loss with its interval, and its company."""
    from prefcli import pipeline

    reporter = common.session(ctx, workspace, quiet).reporter
    found = pipeline.score(predictions, labels, renormalize=renormalize, seed=seed, reporter=reporter)
    if json:
        common.print_json(asdict(found))
        return
    low, high = found.log_loss_ci
    common.print_table(
        f"{found.n:,} battles",
        ["", "value", ""],
        [
            ["log loss", found.log_loss, f"95 % interval {low:.4f} to {high:.4f}"],
            ["  of the prior", found.prior_log_loss, "always these labels' own shares"],
            ["  of a uniform guess", found.uniform_log_loss, ""],
            ["binary log loss", found.binary_log_loss, "each column as a yes/no question"],
            ["accuracy", found.accuracy, ""],
            ["Brier score", found.brier, "0 to 2"],
            ["calibration error", found.ece, "top label, 15 bins"],
        ],
    )
    if found.clipped:
        reporter.warn(
            f"{found.clipped:,} battles gave their true outcome probability (nearly) 0: 36 nats each after clipping"
        )

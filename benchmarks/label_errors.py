"""How many of the first label errors that ``prefcli eda --label-errors`` names were planted.

``python benchmarks/label_errors.py FILE [--prompts N] [--share 0.05]`` gives a share of the labels of a file of battles
another outcome, at random, lets the model of ``--recipe fast`` predict every battle out of fold, names label errors by
confident learning, and prints how many of the first 100, 500, ... were planted, beside chance and beside another order:
by how far the label's probability is below the other outcome's. Labels that were wrong before count as not planted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefcli import metrics, pipeline
from prefcli.battles import labels_of
from prefcli.exploration import trouble
from prefcli.options import resolve
from prefcli.outcomes import OUTCOMES
from prefcli.storage import runs
from prefcli.storage.workspace import Workspace


def sample_prompts(table: pa.Table, prompts: int | None, random: np.random.Generator) -> pa.Table:
    """All battles of some prompts, drawn at random."""
    keys = table["prompt_key"].to_numpy()
    different = np.unique(keys)
    if prompts is None or prompts >= len(different):
        return table
    return table.filter(pa.array(np.isin(keys, random.choice(different, prompts, replace=False))))


def plant(labels: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """The labels, a share of them changed to one of the two other outcomes."""
    changed = random.choice(len(labels), round(share * len(labels)), replace=False)
    planted = labels.copy()
    planted[changed] = (labels[changed] + random.integers(1, len(OUTCOMES), len(changed))) % len(OUTCOMES)
    return planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name) / "workspace")
        table = pipeline.read_stage(options.file, workspace).table()
        table = sample_prompts(table.filter(pa.array(labels_of(table) >= 0)), options.prompts, random)
        labels = labels_of(table)
        planted = plant(labels, options.share, random)
        battles = table.drop_columns(["prompt_key", "label"])
        winners = {f"winner_{side}": (planted == i).astype(int) for i, side in enumerate(("model_a", "model_b", "tie"))}
        for column, values in winners.items():
            battles = battles.append_column(column, pa.array(values))
        pq.write_table(battles, Path(name) / "planted.parquet")
        started = time.monotonic()
        train, _ = resolve({"recipe": "fast", "folds": options.folds})
        run = pipeline.train(Path(name) / "planted.parquet", workspace, train, output=Path(name) / "run").run
        held_out = runs.read_validation(run)
        seconds = time.monotonic() - started
    probabilities = metrics.softmax(held_out.logits)
    is_planted = dict(zip(table["id"].to_pylist(), (planted != labels).tolist(), strict=True))
    named = [problem.id for problem in trouble.label_errors(held_out.ids, held_out.labels, probabilities)]
    row_of = {battle: row for row, battle in enumerate(held_out.ids)}
    rows = np.array([row_of[battle] for battle in named])
    suggested = trouble.confident_outcomes(held_out.labels, probabilities)[rows]
    margins = probabilities[rows, held_out.labels[rows]] - probabilities[rows, suggested]
    by_margin = [named[position] for position in np.argsort(margins, kind="stable")]
    prompts = len(np.unique(held_out.keys))
    print(f"{metrics.describe_battles(len(labels), prompts)}, {options.folds} folds, {seconds:,.0f} s of training")
    print(f"log loss out of fold {metrics.log_loss(probabilities, held_out.labels):.4f}, "
          f"prior {metrics.prior_log_loss(held_out.labels):.4f}")  # fmt: skip
    print(f"{sum(is_planted.values()):,} labels planted, {len(named):,} named, "
          f"{sum(is_planted[battle] for battle in named):,} of them planted")  # fmt: skip
    print("| first | planted among those named | ordered by margin | chance |\n|---|---|---|---|")
    for first in (100, 500, 1000, 2000):
        shares = [np.mean([is_planted[battle] for battle in order[:first]]) for order in (named, by_margin)]
        print(f"| {first:,} | {shares[0]:.1%} | {shares[1]:.1%} | {np.mean(list(is_planted.values())):.1%} |")


if __name__ == "__main__":
    main()

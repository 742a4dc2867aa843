"""Which weights of a blend carry over to other prompts? ``python benchmarks/blend_weights.py FOLDER MODEL MODEL``.

FOLDER is that of `models.py`, MODEL a row of its table whose predictions are there, such as ``features`` and
``strong``. Draws of 64 % of the test prompts take the place of validation battles: weights are fitted on them and
scored on the other prompts. Printed are means over the draws, for the first model alone; for weights by each model's
own loss (the share of the prior's log loss that it takes away, squared), from which the fits start; for weights that
sum to 1 and weights of any sum, both wherever the cross-fit says that they help; and for what `prefcli` keeps of both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq

from prefcli import metrics
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.prediction import calibration

SHARE = 0.64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--draws", type=int, default=40)
    args = parser.parse_args()
    battles = pq.read_table(args.folder / "test.parquet", columns=["id", "label", "prompt_key"])
    ids, labels, keys = (battles[name].to_numpy() for name in battles.column_names)
    logits = [np.log(predictions(args.folder, name, ids)) for name in args.models]
    prompts, random, rows = np.unique(keys), np.random.default_rng(1), []
    for _ in range(args.draws):
        drawn = random.permutation(len(prompts)) < len(prompts) * SHARE
        fitted_on = drawn[np.searchsorted(prompts, keys)]
        found = weights([z[fitted_on] for z in logits], labels[fitted_on], keys[fitted_on])
        others = [z[~fitted_on] for z in logits], labels[~fitted_on]
        rows.append({name: log_loss(*others, each) for name, each in found.items()})
    print(
        f"{len(prompts)} prompts, {args.draws} draws\n\n| weights | mean log loss | to the last row | least to most |"
    )
    print("|---|---|---|---|")
    kept = np.array([row["kept"] for row in rows])
    for name in rows[0]:
        losses = np.array([row[name] for row in rows])
        gaps = losses - kept
        print(f"| {name} | {losses.mean():.4f} | {gaps.mean():+.4f} | {gaps.min():+.4f} to {gaps.max():+.4f} |")


def predictions(folder: Path, name: str, ids: np.ndarray) -> np.ndarray:
    """Probabilities ``[n, 3]`` of the battles in their order."""
    table = pq.read_table(folder / f"predictions of {name}.parquet")
    at = {identity: row for row, identity in enumerate(table["id"].to_pylist())}
    return np.stack([table[name].to_numpy() for name in WINNER_COLUMNS], axis=1)[[at[identity] for identity in ids]]


def weights(logits: list[np.ndarray], labels: np.ndarray, keys: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Of the models, by way of finding them."""
    alone = np.eye(len(logits))
    gains = [max(metrics.prior_log_loss(labels) - log_loss(logits, labels, row), 0.0) ** 2 for row in alone]
    start = [gain / sum(gains) for gain in gains]
    minimise = calibration._fit

    def of_any_sum(*arguments: object) -> object:
        return minimise(*arguments[:-1], True)

    fit = {scale: calibration.calibrate(logits, labels, keys, start=start, scale=scale) for scale in (False, True)}
    with mock.patch.object(calibration, "_fit", of_any_sum):
        any_sum = calibration.calibrate(logits, labels, keys, start=start)
    return {
        "the first model alone": tuple(alone[0]),
        "by each model's loss": tuple(start),
        "sum of 1": fit[False].weights,
        "any sum": any_sum.weights,
        "kept": fit[True].weights,
    }


def log_loss(logits: list[np.ndarray], labels: np.ndarray, of_models: tuple[float, ...] | np.ndarray) -> float:
    return metrics.log_loss(metrics.softmax(np.tensordot(of_models, np.stack(logits), axes=1)), labels)


if __name__ == "__main__":
    main()

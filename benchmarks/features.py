"""How fast and how good the `features` architecture is: ``python benchmarks/features.py FILE [--folds 5]``.

Measures, on a file of battles with outcomes, how long it takes to extract the features, to train, and to predict (text
to probabilities); and the log loss when every battle is predicted by a model that has not seen its prompt.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from prefcli import metrics
from prefcli.battles import labels_of
from prefcli.data.splits import split_folds
from prefcli.models import features as architecture
from prefcli.models.features.statistics import Features, extract
from prefcli.readers import open_battles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="battles with outcomes, in any format prefcli reads")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the training")
    parser.add_argument("--limit", type=int, help="use only the first N battles")
    parser.add_argument("--threads", type=int, default=0, help="of LightGBM; 0: as many as there are cores")
    parser.add_argument("--predict", type=int, default=20_000, help="battles to time prediction on")
    options = parser.parse_args()

    battles = pa.Table.from_batches([batch for batch, _ in open_battles(options.file).batches()])
    battles = battles.slice(0, options.limit)
    labels = labels_of(battles)
    battles = battles.filter(pa.array(labels >= 0))
    labels, groups = labels[labels >= 0], battles["prompt_key"].to_numpy()
    targets = metrics.one_hot(labels).astype(np.float32)

    started, used = time.perf_counter(), time.process_time()
    everything = Features.concatenate([extract(batch) for batch in battles.to_batches()])
    extraction = time.perf_counter() - started, time.process_time() - used

    choices = {"seed": options.seed, "threads": options.threads}
    started, used = time.perf_counter(), time.process_time()
    model = architecture.fit(everything, targets, groups, **choices)
    training = time.perf_counter() - started, time.process_time() - used

    timed = battles.slice(0, options.predict)
    started = time.perf_counter()
    for batch in timed.to_batches(max_chunksize=4096):
        model.logits(batch)
    rate = len(timed) / (time.perf_counter() - started)

    print(f"`python benchmarks/features.py {options.file.name} --folds {options.folds} --seed {options.seed}`\n")
    print("| what | figure |\n|---|---|")
    print(f"| battles, prompts | {len(labels):,}, {len(np.unique(groups)):,} |")
    print(f"| extraction, all battles | {extraction[0]:.1f} s ({extraction[1]:.1f} s of processor) |")
    print(f"| training, all battles | {training[0]:.1f} s ({training[1]:.1f} s of processor), {rounds(model)} rounds |")
    print(f"| prediction, text to probabilities | {rate:,.0f} battles/s |", flush=True)

    probabilities = np.empty((len(labels), 3))
    for inside, outside in split_folds(groups, labels, options.folds, options.seed):
        fold = architecture.fit(everything.take(inside), targets[inside], groups[inside], **choices)
        probabilities[outside] = fold.probabilities(everything.take(outside))
    score = metrics.score(probabilities, labels, groups=groups)
    assert score.log_loss_ci is not None
    low, high = score.log_loss_ci
    print(f"| log loss, {options.folds} folds by prompt | {score.log_loss:.4f} ({low:.4f} to {high:.4f}) |")
    print(f"| prior | {score.prior_log_loss:.4f} |")
    print(f"| accuracy, ECE | {score.accuracy:.3f}, {score.ece:.3f} |\n")
    for name, share in model.importances()[:15]:
        print(f"{share:6.1%}  {name}")


def rounds(model: architecture.FeaturesModel) -> int:
    return 0 if model.booster is None else int(model.booster.current_iteration())


if __name__ == "__main__":
    main()

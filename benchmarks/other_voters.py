"""A model of one source's votes on other voters: as it is, at temperature 2, and calibrated on a few of their votes.

    python benchmarks/other_voters.py --judge judge.parquet --votes votes.csv --origins votes_sources.csv

``--judge`` is a file with the verdicts of an LLM judge, ``--votes`` one with votes of people, ``--origins`` a CSV file
with the columns ``id`` and ``source``, which names each vote's source. The model is trained on the verdicts whose
prompt is in no vote. Samples of votes are drawn by prompt; a vote's loss is the mean over the draws that do not sample
its prompt, and intervals are over prompts. Priors and the temperature were chosen on other votes than those shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sources import measure

from prefcli import metrics, readers
from prefcli.models import features
from prefcli.prediction import calibration, stacking
from prefcli.prediction.calibration import Calibration
from prefcli.prediction.stacking import Covariates

Predict = Callable[[np.ndarray], np.ndarray]
"""From rows of votes to their probabilities."""


def calibrated(
    probabilities: np.ndarray, labels: np.ndarray, keys: np.ndarray, battles: Covariates | None, sample: np.ndarray
) -> Predict:
    """As ``predict --calibrate`` does on a sample; without ``battles`` only temperature and tie shift are fitted."""
    logs = np.log(probabilities)
    fit = calibration.calibrate([logs[sample]], labels[sample], keys[sample], tie=True)
    if battles is not None:
        fit = calibration.with_stack(fit, probabilities[sample], labels[sample], keys[sample], battles.take(sample))
    return lambda rows: fit.apply([probabilities[rows]], None if battles is None else battles.take(rows))


def sample_by_prompt(keys: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Rows of about so many battles, all those of a prompt or none."""
    prompts = np.random.default_rng(seed).permutation(np.unique(keys))
    counts = [(keys == prompt).sum() for prompt in prompts]
    return np.flatnonzero(np.isin(keys, prompts[: int(np.searchsorted(np.cumsum(counts), size)) + 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--votes", type=Path, required=True)
    parser.add_argument("--origins", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 300])
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    judge, votes = measure(options.judge), measure(options.votes)
    origins = pd.read_csv(options.origins, dtype=str).set_index("id")["source"]
    labels, keys = votes["labels"], votes["keys"]
    batches = [batch for batch, _ in readers.open_battles(options.votes).batches()]
    doublings = np.concatenate([stacking.count_doublings(batch) for batch in batches])
    by_length = Covariates(doublings)
    by_source = Covariates(doublings, origins.loc[votes["ids"]].to_numpy(dtype=object))
    train = np.flatnonzero(~np.isin(judge["keys"], keys))
    targets = np.eye(3, dtype=np.float32)[judge["labels"][train]]
    model = features.fit(judge["features"].take(train), targets, judge["keys"][train], threads=options.threads)
    probabilities = model.probabilities(votes["features"])
    halved = Calibration.equal(1).at_temperature(2).apply([probabilities])
    print(f"{len(train):,} verdicts to train on, {len(labels):,} votes; prior {metrics.prior_log_loss(labels):.4f}")
    alike = np.isin(keys, judge["keys"])

    def show(name: str, losses: np.ndarray, of: np.ndarray, against: np.ndarray | None = None) -> None:
        for group, rows in (("all", of), ("judge's prompts", of & alike), ("other prompts", of & ~alike)):
            ends = metrics.bootstrap_interval(losses[rows], groups=keys[rows])
            text = f"{losses[rows].mean():.4f} ({'{:.4f} to {:.4f}'.format(*ends) if ends else 'no interval'})"
            if against is not None:
                difference = metrics.compare(losses[rows], against[rows], keys[rows])
                text += f", to two numbers {difference.difference:+.4f}"
                text += "" if difference.ci is None else " ({:+.4f} to {:+.4f})".format(*difference.ci)
            print(f"  {name:28} {group:16} {rows.sum():5,}  {text}", flush=True)

    everything = np.ones(len(labels), dtype=bool)
    show("as it is", metrics.losses(probabilities, labels), everything)
    show("temperature 2", metrics.losses(halved, labels), everything)
    ways = {"two numbers": None, "and length": by_length, "and length, by source": by_source}
    for size in options.sizes:
        totals, counts = {name: np.zeros(len(labels)) for name in ways}, np.zeros(len(labels))
        per_draw: dict[str, list[float]] = {name: [] for name in ways}
        for seed in range(options.draws):
            sample = sample_by_prompt(keys, size, seed)
            rest = np.flatnonzero(~np.isin(keys, keys[sample]))
            counts[rest] += 1
            for name, battles in ways.items():
                predicted = calibrated(probabilities, labels, keys, battles, sample)(rest)
                losses = metrics.losses(predicted, labels[rest])
                totals[name][rest] += losses
                per_draw[name].append(losses.mean())
        scored = counts > 0
        means = {
            name: np.divide(total, counts, out=np.zeros_like(total), where=scored) for name, total in totals.items()
        }
        print(f"{size} labelled votes, {options.draws} draws")
        for name, mean in means.items():
            show(name, mean, scored, None if name == "two numbers" else means["two numbers"])
            print(f"    worst draw {max(per_draw[name]):.4f}")


if __name__ == "__main__":
    main()

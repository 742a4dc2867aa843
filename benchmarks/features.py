"""How fast and how good the `features` architecture is: ``python benchmarks/features.py FILE [--folds 5] [--draws 5]``.

Measures, on a file of battles with outcomes, how long it takes to extract the features, to train, and to predict (text
to probabilities); the log loss when every battle is predicted by a model that has not seen its prompt (``--folds``);
and that of battles between models that were not seen either (``--draws``). All of it as it is, as it is without its
networks, and as it was before there were author scores and networks and several inner folds chose the rounds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import labels_of
from prefcli.data.splits import split_folds
from prefcli.models import features as architecture
from prefcli.models.features import booster, network
from prefcli.models.features.statistics import Features, extract
from prefcli.readers import open_battles

VARIANTS = ("before", "now")
CHOICE_FOLDS = {"before": 1, "now": booster.CHOICE_FOLDS}
FIT_NETWORKS = network.fit
UNSEEN_MODELS, UNSEEN_PROMPTS = 1 / 3, 1 / 4


@dataclass(frozen=True)
class Battles:
    """Battles with outcomes, measured."""

    features: Features
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    names: NDArray[np.object_]

    def fit(self, rows: NDArray[np.intp], variant: str, options: argparse.Namespace) -> architecture.FeaturesModel:
        """A model of some of the battles."""
        targets = metrics.one_hot(self.labels[rows]).astype(np.float32)
        authors = architecture.Authors.of(self.names[rows], targets)
        booster.CHOICE_FOLDS = CHOICE_FOLDS[variant]
        network.fit = FIT_NETWORKS if variant == "now" else _no_networks
        return architecture.fit(
            self.features.take(rows),
            targets,
            self.groups[rows],
            authors=authors if variant == "now" and authors.suffice else None,
            seed=options.seed,
            threads=options.threads,
            settings={"seeds": options.seeds},
        )

    def unseen_models(self, draw: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Battles to train on, and those of other prompts between other models."""
        random = np.random.default_rng(draw)
        models, prompts = np.unique(self.names), np.unique(self.groups)
        drawn_models = random.choice(models, round(UNSEEN_MODELS * len(models)), replace=False)
        drawn_prompts = random.choice(prompts, round(UNSEEN_PROMPTS * len(prompts)), replace=False)
        models_out, prompt_out = np.isin(self.names, drawn_models), np.isin(self.groups, drawn_prompts)
        return np.flatnonzero(~models_out.any(1) & ~prompt_out), np.flatnonzero(models_out.all(1) & prompt_out)


def _no_networks(
    data: Any, folds: Any, booster: NDArray[np.float64], *_: Any, **__: Any
) -> tuple[None, NDArray[np.float64]]:
    return None, booster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="battles with outcomes, in any format prefcli reads")
    parser.add_argument("--folds", type=int, default=5, help="0: none")
    parser.add_argument("--draws", type=int, default=0, help="of a third of the models and a quarter of the prompts")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--repeats", type=int, default=1, help="of the timed trainings, in turn; the fastest counts")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of the training")
    parser.add_argument("--seeds", type=int, default=1, help="boosters that are averaged")
    parser.add_argument("--limit", type=int, help="use only the first N battles")
    parser.add_argument("--threads", type=int, default=0, help="of LightGBM; 0: as many as there are cores")
    parser.add_argument("--predict", type=int, default=20_000, help="battles to time prediction on")
    options = parser.parse_args()

    table = pa.Table.from_batches([batch for batch, _ in open_battles(options.file).batches()])
    table = table.slice(0, options.limit)
    table = table.filter(pa.array(labels_of(table) >= 0))
    started, used = time.perf_counter(), time.process_time()
    features = Features.concatenate([extract(batch) for batch in table.to_batches()])
    extraction = time.perf_counter() - started, time.process_time() - used
    names = np.concatenate([architecture.author_names(batch) for batch in table.to_batches()])
    battles = Battles(features, labels_of(table), table["prompt_key"].to_numpy(), names)

    print(f"{len(names):,} battles of {len(np.unique(battles.groups)):,} prompts; ", end="")
    print(f"extraction {extraction[0]:.1f} s ({extraction[1]:.1f} s of processor)\n")
    model = print_times(battles, table, options)
    if options.folds:
        print_folds(battles, options)
    for draw in range(options.draws):
        print_losses(f"unseen models, draw {draw}", battles, battles.unseen_models(draw), options)
    print()
    for name, share in model.importances()[:15]:
        print(f"{share:6.1%}  {name}")


def print_times(battles: Battles, table: pa.Table, options: argparse.Namespace) -> architecture.FeaturesModel:
    """Time the training on all battles and the prediction of some; returns the last model."""
    everything = np.arange(len(battles.labels))
    seconds: dict[str, list[float]] = {variant: [] for variant in options.variants}
    models = {}
    for _ in range(options.repeats):
        for variant in options.variants:
            started = time.perf_counter()
            models[variant] = battles.fit(everything, variant, options)
            seconds[variant].append(time.perf_counter() - started)
    print("| variant | training | rounds | prediction, text to probabilities |\n|---|---|---|---|")
    timed = table.slice(0, options.predict)
    for variant, model in models.items():
        started = time.perf_counter()
        for batch in timed.to_batches(max_chunksize=4096):
            model.logits(batch)
        rate = len(timed) / (time.perf_counter() - started)
        rounds = 0 if model.booster is None else model.booster.current_iteration()
        print(f"| {variant} | {min(seconds[variant]):.1f} s | {rounds} | {rate:,.0f} battles/s |", flush=True)
    print("\n| held out | battles | variant | log loss | minus the first |\n|---|---|---|---|---|")
    return model


def print_folds(battles: Battles, options: argparse.Namespace) -> None:
    """Log losses of all folds, and over all of them."""
    folds = split_folds(battles.groups, battles.labels, options.folds, options.seed)
    losses = [print_losses(f"fold {number}", battles, fold, options) for number, fold in enumerate(folds, start=1)]
    outside = np.concatenate([rows for _, rows in folds])
    joined = {variant: np.concatenate([of_fold[variant] for of_fold in losses]) for variant in losses[0]}
    print_rows(f"all {options.folds} folds", joined, battles.groups[outside])


def print_losses(
    what: str, battles: Battles, fold: tuple[NDArray[np.intp], NDArray[np.intp]], options: argparse.Namespace
) -> dict[str, NDArray[np.float64]]:
    """Train on the first positions and score the second; the losses by variant."""
    inside, outside = fold
    losses = {}
    for variant in options.variants:
        model = battles.fit(inside, variant, options)
        held_out = battles.features.take(outside)
        if variant == "now":
            alone = replace(model, networks=None).probabilities(held_out)
            losses["now, without networks"] = metrics.losses(alone, battles.labels[outside])
        losses[variant] = metrics.losses(model.probabilities(held_out), battles.labels[outside])
    print_rows(what, losses, battles.groups[outside])
    return losses


def print_rows(what: str, losses: dict[str, NDArray[np.float64]], groups: NDArray[np.int64]) -> None:
    """Rows of the table, with intervals over prompts."""
    first = next(iter(losses.values()))
    for variant, values in losses.items():
        loss, difference = (with_interval(each, groups, sign) for each, sign in ((values, ""), (values - first, "+")))
        print(f"| {what} | {len(values):,} | {variant} | {loss} | {difference if values is not first else ''} |")
    print(end="", flush=True)


def with_interval(values: NDArray[np.float64], groups: NDArray[np.int64], sign: str) -> str:
    interval = metrics.bootstrap_interval(values, groups=groups)
    described = "" if interval is None else f" ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"
    return f"{values.mean():{sign}.4f}{described}"


if __name__ == "__main__":
    main()

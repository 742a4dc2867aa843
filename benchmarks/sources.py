"""Several sources in one training against each alone, on prompts that none of the models saw.

    python benchmarks/sources.py --judge judge.parquet --human votes.csv more-votes.csv --origins votes_sources.csv \
        more-votes_sources.csv

``--judge`` is a file with the verdicts of an LLM judge, ``--human`` files with votes of people, of which the first is
scored, and ``--origins`` CSV files with the columns ``id`` and ``source``, which name each vote's source. In every
split a third of the prompts of the scored votes and a fifth of the judge's are held out from everything. Votes are
predicted as their own source votes, and as the sources that can tie, pooled. Settings of the model were chosen on
splits 10 and 11, which are not among those that are shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from prefcli import metrics, readers
from prefcli.battles import labels_of
from prefcli.models import features
from prefcli.models.features import statistics
from prefcli.storage.sources import Sources


def measure(path: Path) -> dict[str, Any]:
    """Statistics, labels, prompt keys and ids of a file of battles."""
    parts, labels, keys, ids = [], [], [], []
    for batch, _ in readers.open_battles(path).batches():
        parts.append(statistics.extract(batch))
        labels.append(labels_of(pa.Table.from_batches([batch])))
        keys.append(batch.column("prompt_key").to_numpy())
        ids += batch.column("id").to_pylist()
    return {
        "features": statistics.Features.concatenate(parts),
        "labels": np.concatenate(labels),
        "keys": np.concatenate(keys),
        "ids": ids,
    }


def held_out(keys: np.ndarray, share: float, seed: int) -> np.ndarray:
    prompts = np.unique(keys)
    return np.random.default_rng(seed).permutation(prompts)[: round(share * len(prompts))]


class Battles:
    """All battles of one run of this script."""

    def __init__(self, options: argparse.Namespace) -> None:
        files = {path: measure(path) for path in (options.judge, *options.human)}
        tables = [pd.read_csv(path, dtype=str) for path in options.origins]
        origins = {id: source for table in tables for id, source in zip(table["id"], table["source"], strict=True)}
        random = np.random.default_rng(5)
        parts = []
        for path, file in files.items():
            rows = np.arange(len(file["ids"]))
            if path == options.judge:
                rows = np.sort(random.permutation(rows)[: options.battles])
            names = [origins.get(file["ids"][row], path.stem) for row in rows]
            parts.append(
                (file["features"].take(rows), file["labels"][rows], file["keys"][rows], names, [path] * len(rows))
            )
        self.features = statistics.Features.concatenate([part[0] for part in parts])
        self.labels, self.keys = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        self.names = np.array([name for part in parts for name in part[3]], dtype=object)
        self.files = np.array([str(path) for part in parts for path in part[4]], dtype=object)
        self.targets = np.eye(3, dtype=np.float32)[self.labels]

    def fit(self, rows: np.ndarray, *, by_source: bool, threads: int) -> Callable[..., np.ndarray]:
        """A function from rows and the names of sources (None: pooled) to probabilities."""
        sources, own = Sources.of(self.names[rows].tolist(), self.targets[rows]), None
        if by_source:
            own = features.BattleSources(self.names[rows], sources.bases(self.names[rows].tolist()))
        model = features.fit(
            self.features.take(rows), self.targets[rows], self.keys[rows], sources=own, threads=threads
        )

        def predict(rows: np.ndarray, names: list[str | None]) -> np.ndarray:
            if not by_source:
                return model.probabilities(self.features.take(rows))
            return metrics.softmax(model.scores(self.features.take(rows), names) + sources.bases(names))

        return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--human", type=Path, nargs="+", required=True)
    parser.add_argument("--origins", type=Path, nargs="*", default=[])
    parser.add_argument("--battles", type=int, default=1_000_000, help="of the judge, at most")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="only the scored files alone, and all by source")
    options = parser.parse_args()
    battles = Battles(options)
    scored, judge = (battles.files == str(path) for path in (options.human[0], options.judge))
    for seed in options.splits:
        out = np.isin(
            battles.keys,
            [*held_out(battles.keys[scored], 1 / 3, seed), *held_out(battles.keys[judge], 1 / 5, seed)],
        )
        train, people, verdicts = np.flatnonzero(~out), np.flatnonzero(scored & out), np.flatnonzero(judge & out)
        prior = metrics.prior_log_loss(battles.labels[people])
        print(f"split {seed}: {len(train):,} battles to train on; {len(people):,} votes held out, prior {prior:.4f}")
        losses: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        pooled = None
        alone = [options.judge, options.human[0]] if options.short else [options.judge, *options.human]
        mixed = [] if options.short else [("all, not told apart", train, False)]
        for name, rows, by_source in (
            *((path.stem, train[battles.files[train] == str(path)], False) for path in alone),
            *mixed,
            ("all, by source", train, True),
        ):
            started = time.monotonic()
            predict = battles.fit(rows, by_source=by_source, threads=options.threads)
            own = [predict(part, battles.names[part].tolist()) for part in (people, verdicts)]
            losses[name] = tuple(
                metrics.losses(p, battles.labels[part]) for p, part in zip(own, (people, verdicts), strict=True)
            )
            if by_source:
                pooled = metrics.losses(predict(people, [None] * len(people)), battles.labels[people])
            of_people, of_judge = (part.mean() for part in losses[name])
            seconds = time.monotonic() - started
            print(f"  {name:24} votes {of_people:.4f}  verdicts {of_judge:.4f}  {seconds:.0f} s", flush=True)
        assert pooled is not None
        print(f"  {'all, pooled':24} votes {pooled.mean():.4f}")
        single = min((path.stem for path in alone), key=lambda name: losses[name][0].mean())
        show = (
            (f"votes: by source - {single}", losses["all, by source"][0], losses[single][0], people),
            *(("votes: pooled - not told apart", pooled, losses[name][0], people) for name, _, _ in mixed),
            (
                f"verdicts: by source - {options.judge.stem}",
                losses["all, by source"][1],
                losses[options.judge.stem][1],
                verdicts,
            ),
        )
        for what, a, b, rows in show:
            difference = metrics.compare(a, b, battles.keys[rows])
            ends = "no interval" if difference.ci is None else "{:+.4f} to {:+.4f}".format(*difference.ci)
            print(f"  {what}: {difference.difference:+.4f} ({ends})", flush=True)


if __name__ == "__main__":
    main()

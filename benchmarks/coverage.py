"""How often intervals hold the truth, and how often the paired test raises a false alarm, in simulated data sets.

    python benchmarks/coverage.py --data-sets 1000

The truth is that of a population of prompts, each with one to six battles whose outcomes and predictions resemble each
other; every data set draws prompts from it. A judge is biased: it prefers one model, the first answer, and no ties.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from prefcli import bootstrap, metrics
from prefcli.exploration import judges

POPULATION = 50_000
MAX_BATTLES = 6
"""Of a prompt."""
PROMPTS = 120
"""Of a data set; a group has a third of them."""


@dataclass(frozen=True)
class Population:
    """Battles of many prompts, sorted by prompt."""

    begins: np.ndarray  # [POPULATION + 1]
    labels: np.ndarray  # [n]
    models: np.ndarray  # [3, n, 3], probabilities; the first two are equally good, the third is worse

    def draw(self, random: np.random.Generator, prompts: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of prompts drawn with replacement, and the prompt of each."""
        drawn = random.integers(0, len(self.begins) - 1, prompts)
        sizes = np.diff(self.begins)[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(self.begins[drawn], sizes) + within, np.repeat(np.arange(prompts), sizes)


def make_population(random: np.random.Generator) -> Population:
    sizes = random.integers(1, MAX_BATTLES + 1, POPULATION)
    prompt = np.repeat(np.arange(POPULATION), sizes)
    logits = random.normal(0, 1, (POPULATION, 3))[prompt] + random.normal(0, 0.5, (len(prompt), 3))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    # each model errs alike on all battles of a prompt; those of the first two are the same in mirror image
    noise = random.normal(0, 1.2, (3, POPULATION, 3))[:, prompt]
    return Population(
        np.concatenate([[0], np.cumsum(sizes)]), labels, metrics.softmax(logits + noise * [[[1.0]], [[1.0]], [[1.5]]])
    )


def scores(data_sets: int, random: np.random.Generator) -> dict[str, list[bool]]:
    """Coverage of differences and of a group's metrics, false alarms of the paired test."""
    population = make_population(random)
    losses = np.stack([metrics.losses(p, population.labels) for p in population.models])
    whole = metrics.Tally(3, metrics.METRICS)
    whole.add(population.models, population.labels, None)
    truth = vars(whole.group_scores("all", 3)[0])
    # the mean loss of the first is subtracted from it, so that there is no difference to find
    no_difference = losses[0] - losses[0].mean(), losses[1] - losses[1].mean()
    found: dict[str, list[bool]] = defaultdict(list)
    for seed in range(data_sets):
        rows, prompts = population.draw(random, PROMPTS)
        worse = metrics.compare(losses[0][rows], losses[2][rows], prompts, seed=seed)
        found["difference of two models"].append(holds(worse.ci, losses[0].mean() - losses[2].mean()))
        equal = metrics.compare(no_difference[0][rows], no_difference[1][rows], prompts, seed=seed)
        found["false alarms of the paired test"].append(equal.p is not None and equal.p < 0.05)
        by_battle = metrics.compare(no_difference[0][rows], no_difference[1][rows], seed=seed)
        found["(false alarms if battles were independent)"].append(by_battle.p is not None and by_battle.p < 0.05)
        inside = prompts < PROMPTS // 3
        tally = metrics.Tally(3, metrics.METRICS)
        tally.add(population.models[:, rows[inside]], population.labels[rows[inside]], prompts[inside])
        group = vars(tally.group_scores("group", 3, seed=seed)[0])
        for name in metrics.METRICS:
            found[f"{name.replace('_', ' ')} of a group of {PROMPTS // 3} prompts"].append(
                holds(group[f"{name}_ci"], truth[name])
            )
    return found


def judged(data_sets: int, random: np.random.Generator) -> dict[str, list[bool]]:
    """Coverage of agreement, kappa and corrected win rates of a biased judge."""
    found: dict[str, list[bool]] = defaultdict(list)
    sizes = random.integers(1, MAX_BATTLES + 1, POPULATION)
    prompt = np.repeat(np.arange(POPULATION), sizes)
    lead = random.normal(0.3, 0.8, POPULATION)[prompt]
    people = (np.stack([lead / 2, -lead / 2, np.full(len(lead), -0.3)], 1) + random.gumbel(size=(len(lead), 3))).argmax(
        1
    )
    biased = np.stack([0.8 + lead / 2, -lead / 2, np.full(len(lead), -2.0)], 1) + 1.5 * np.eye(3)[people]
    judge = (biased + random.gumbel(size=(len(lead), 3))).argmax(1)
    cells = np.eye(9)[people * 3 + judge]
    y, f = ((labels == 0) + 0.5 * (labels == 2) for labels in (people, judge))
    population = Population(np.concatenate([[0], np.cumsum(sizes)]), people, np.empty(0))
    for _ in range(data_sets):
        rows, prompts = population.draw(random, 600)
        known = prompts < PROMPTS
        for name, statistic in (("agreement with the judge", judges.agreement), ("kappa", judges.kappa)):
            estimate = judges.estimate(cells[rows[known]], prompts[known], statistic)
            found[name].append(holds(estimate.ci, float(statistic(cells.sum(axis=0)))))
        rate = judges._corrected("model", np.where(known, y[rows], np.nan), f[rows], prompts)
        found["corrected win rate"].append(holds(rate.ci, y.mean()))
        units = bootstrap.Units()
        units.add(prompts, f[rows][:, None])
        found["(the judge's win rate as it is)"].append(holds(units.interval(), y.mean()))
        found["preference of the judge for a model"].append(holds(rate.preference.ci, f.mean() - y.mean()))
        width = rate.ci[1] - rate.ci[0] if rate.ci else np.nan
        people_alone = judges.estimate(
            np.stack([y[rows[known]], np.ones(known.sum())], 1), prompts[known], judges.share
        )
        low, high = people_alone.ci or (np.nan, np.nan)
        found["(narrower than the people's own interval)"].append(bool(width < high - low))
    return found


def holds(interval: tuple[float, float] | None, value: float) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-sets", type=int, default=1000)
    data_sets = parser.parse_args().data_sets
    for part in (scores, judged):
        started = time.monotonic()
        for name, hits in part(data_sets, np.random.default_rng(0)).items():
            print(f"{name:45} {np.mean(hits):6.1%}", flush=True)
        print(f"({data_sets} data sets, {time.monotonic() - started:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()

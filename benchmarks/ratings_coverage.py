"""Do the 95 % intervals of ratings hold the truth? Simulated votes with repeated prompts and a known answer.

    python benchmarks/ratings_coverage.py            # 1,000 data sets of each kind, about five minutes on one core
    python benchmarks/ratings_coverage.py --sets 100

Each battle follows Davidson's model exactly, but those of a prompt depend on each other: its outcome comes from a
uniform number that is correlated within the prompt by a Gaussian copula, because each prompt suits some models better.
"by battle" is the same interval with every battle taken for a prompt of its own, as if they were independent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prefcli.exploration import headline, ratings
from prefcli.exploration.davidson import probabilities
from prefcli.outcomes import TIE, A, B

Array = NDArray[np.float64]
TIES = 0.6
EFFECT = 0.5
_GRID = np.linspace(-6, 6, 4001)
_CDF = np.array([NormalDist().cdf(value) for value in _GRID])


@dataclass(frozen=True)
class Kind:
    """Data sets of one kind."""

    name: str
    strengths: tuple[float, ...]
    battles: int
    prompts: int
    correlation: float
    unequal: bool = False
    """Whether some prompts have many more battles than others."""


KINDS = (
    Kind("6 models, 1,500 battles of 100 prompts", tuple(np.linspace(0.5, -0.5, 6)), 1500, 100, 0.5),
    Kind("the same, prompts of unequal size", tuple(np.linspace(0.5, -0.5, 6)), 1500, 100, 0.5, True),
    Kind("6 nearly equal models", tuple(np.linspace(0.05, -0.05, 6)), 1500, 100, 0.5),
    Kind("a group: 3 models, 300 battles of 40 prompts", (0.4, 0.0, -0.4), 300, 40, 0.5),
    Kind("2 models, 400 battles of 60 prompts", (0.1, -0.1), 400, 60, 0.5),
    Kind("20 models, 5,000 battles, no repeated prompt", tuple(np.linspace(1, -1, 20)), 5000, 10**9, 0.0),
)


def simulate(kind: Kind, effect: float, seed: int) -> ratings.Votes:
    """One data set; ``effect`` is what a standard deviation more of style adds to the log-odds."""
    random = np.random.default_rng(seed)
    n, size = kind.battles, len(kind.strengths)
    if kind.prompts >= n:
        prompt = np.arange(n)
    else:
        weights = random.pareto(2, kind.prompts) + 0.2 if kind.unequal else np.ones(kind.prompts)
        prompt = random.choice(kind.prompts, n, p=weights / weights.sum())
    a = random.integers(size, size=n)
    b = (a + random.integers(1, size, size=n)) % size
    taste = random.normal(size=(prompt.max() + 1, size))
    shared = (taste[prompt, a] - taste[prompt, b]) / np.sqrt(2)
    latent = np.sqrt(kind.correlation) * shared + np.sqrt(1 - kind.correlation) * random.normal(size=n)
    uniform = np.interp(latent, _GRID, _CDF)
    style = random.normal(size=(n, 2))
    style /= np.sqrt((style**2).mean(axis=0))
    true = np.array(kind.strengths)
    p = probabilities(true[a] - true[b] + effect * style[:, 0] - effect * style[:, 1], TIES)
    label = np.where(uniform < p[:, A], A, np.where(uniform < p[:, A] + p[:, TIE], TIE, B))
    names = tuple(f"m{i:02}" for i in range(size))
    differences = np.concatenate([style, np.zeros((n, 2))], axis=1)
    return ratings.Votes.of(np.stack([a, b], axis=1), label, names, prompt, differences if effect else None)


def measure(kind: Kind, sets: int) -> dict[str, list[bool]]:
    """For each figure, whether each of its intervals holds the truth."""
    true = np.array(kind.strengths)
    held: dict[str, list[bool]] = {}
    for seed in range(sets):
        votes = simulate(kind, 0, seed)
        for suffix, part in (("", votes), (", by battle", ratings.Votes.of(*_unclustered(votes)))):
            estimated = ratings.estimate(part)
            assert estimated is not None
            errors = estimated.critical * np.sqrt(np.diag(estimated.covariance))
            usable = estimated.has_interval
            held.setdefault(f"rating{suffix}", []).extend((abs(estimated.strengths - true) <= errors)[usable])
            for i in range(len(true) - 1):
                gap, half = estimated.difference(i, i + 1)
                if half is not None:
                    covers = abs(gap - true[i] + true[i + 1]) <= half
                    held.setdefault(f"difference{suffix}", []).append(covers)
        estimated = ratings.estimate(votes)
        assert estimated is not None
        for model in ratings.summarise(estimated, seed=seed).models:
            if model.rank_low is not None and model.rank_high is not None:
                rank = int(model.model[1:]) + 1
                held.setdefault("range of ranks", []).append(model.rank_low <= rank <= model.rank_high)
        styled = ratings.estimate(simulate(kind, EFFECT, seed))
        assert styled is not None
        if styled.styled and styled.style:
            errors = styled.critical * np.sqrt(np.diag(styled.styled.covariance))
            covers = abs(styled.styled.strengths - true) <= errors
            held.setdefault("rating at equal style", []).extend(covers[styled.has_interval])
            for effect, value in zip(styled.style.effects, (EFFECT, -EFFECT), strict=True):
                held.setdefault("style coefficient", []).append(effect.low <= value <= effect.high)
    return held


def _unclustered(votes: ratings.Votes) -> tuple[NDArray, NDArray, tuple[str, ...]]:
    return np.stack([votes.first, votes.second], axis=1), votes.labels, votes.models


def power(sets: int) -> None:
    """The share of data sets of the advised size that tell a preference from an even one: 80 % is right."""
    random = np.random.default_rng(0)
    print(f"\n{'advised votes':46s} {'at 85 %':>8s} {'as many':>8s} {'at 115 %':>8s}")
    for preference, each, correlation in ((0.6, 1, 0.0), (0.6, 5, 0.2), (0.55, 10, 0.1)):
        effect = 1 + (each - 1) * correlation
        advised = headline.votes_needed(preference, effect) / each
        shares = []
        for factor in (0.85, 1, 1.15):
            prompts = round(factor * advised)
            found = 0
            for _ in range(sets):
                p = preference
                if correlation:
                    total = 1 / correlation - 1
                    p = random.beta(preference * total, (1 - preference) * total, size=(prompts, 1))
                labels = np.where(random.random((prompts, each)) < p, A, B).ravel()
                models = np.tile([0, 1], (len(labels), 1))
                estimated = ratings.estimate(
                    ratings.Votes.of(models, labels, ("x", "y"), np.repeat(np.arange(prompts), each))
                )
                assert estimated is not None
                gap, half = estimated.difference(0, 1)
                found += half is not None and abs(gap) > half
            shares.append(found / sets)
        name = f"{preference:.0%}, {each} per prompt: {advised * each:,.0f} votes"
        print(f"{name:46s} " + " ".join(f"{share:8.1%}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="simulated data sets of each kind")
    options = parser.parse_args()
    figures = (
        "rating", "difference", "rating at equal style", "style coefficient", "range of ranks",
        "rating, by battle", "difference, by battle",
    )  # fmt: skip
    for kind in KINDS:
        held = measure(kind, options.sets)
        print(kind.name)
        for name in figures:
            if held.get(name):
                print(f"  {name:24s} {np.mean(held[name]):6.1%}  ({len(held[name]):,} intervals)", flush=True)
    power(options.sets)


if __name__ == "__main__":
    main()

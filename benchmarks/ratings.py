"""Ratings beside `arena-rank` and `choix` on the same votes: agreement, time, memory.

    python benchmarks/ratings.py votes.parquet [--peers PYTHON] [--rounds 3]
    python benchmarks/ratings.py --synthetic 2000000 --models 200

Each way runs in a process of its own, so that its peak of memory is its own; reading the file is not counted. Votes are
compared where all can fit the same model: on decided votes, without ties. `choix` is in the extra `bench`. `arena-rank`
fixes the versions of NumPy and JAX: install it into another environment and name its Python with ``--peers``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 400 / np.log(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--synthetic", type=int, help="so many simulated votes instead of a file")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has arena-rank")
    parser.add_argument("--no-peers", action="store_true", help="prefcli alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.file, options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "votes.npz"
        np.savez(
            data, **(simulated(options.synthetic, options.models) if options.synthetic else votes_of(options.file))
        )
        results = {}
        for name in WAYS:
            if options.no_peers and name.startswith(("arena-rank", "choix")):
                continue
            results[name] = run(name, data, options)
            print(f"{name}: done", file=sys.stderr)
    print("| way | s | s of processor | peak MB, of it the fit |\n|---|---|---|---|")
    for name, result in results.items():
        if result:
            grown = result["peak_mb"] - result["before_mb"]
            times = f"{result['seconds']:.2f} | {result['cpu_seconds']:.2f}"
            print(f"| {name} | {times} | {result['peak_mb']:.0f}, {grown:.0f} |")
    if not options.no_peers:
        compare(results)


def run(name: str, data: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    python = options.peers if name.startswith("arena-rank") else sys.executable
    command = [python, __file__, str(data), "--worker", name, "--rounds", str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: left out, {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def work(name: str, path: Path, rounds: int) -> None:
    """In a process of its own: the median time of a way, its ratings, and the process's peak of memory."""
    with np.load(path) as stored:
        data = {key: stored[key] for key in stored.files}
    prepared = WAYS[name](data)
    before, seconds, busy, ratings = _peak(), [], [], {}
    for _ in range(rounds):
        started, cpu = time.perf_counter(), time.process_time()
        ratings = prepared()
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - cpu)
    times = {"seconds": float(np.median(seconds)), "cpu_seconds": float(np.median(busy))}
    result = times | {"before_mb": before, "peak_mb": _peak(), "ratings": ratings}
    print(json.dumps(result))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(results: dict[str, dict[str, Any] | None]) -> None:
    """How far the peers' ratings are from prefcli's, in points, on decided votes."""
    ours = results["prefcli, decided votes"]
    assert ours is not None
    print("\n| on decided votes | largest difference of a rating | of a half interval | of a style coefficient |")
    print("|---|---|---|---|")
    for name in ("arena-rank, decided votes", "choix, decided votes"):
        if not (theirs := results.get(name)):
            continue
        cells = []
        for key in ("rating", "half", "style"):
            mine, other = np.array(ours["ratings"][key]), np.array(theirs["ratings"].get(key, []))
            cells.append(f"{np.abs(mine - other).max():.3f}" if len(other) == len(mine) and len(mine) else "-")
        print(f"| {name} | {' | '.join(cells)} |")


def votes_of(path: Path) -> dict[str, np.ndarray]:
    """What the ratings are computed from, measured as `prefcli eda` does."""
    from prefcli.exploration.measures import measure_all
    from prefcli.exploration.style import style_differences
    from prefcli.readers import open_battles

    stats, models, names = measure_all(batch for batch, _ in open_battles(path).batches())
    known = (stats.label >= 0) & (models >= 0).all(axis=1) & (models[:, 0] != models[:, 1])
    style = style_differences(stats)[known]
    return {
        "models": models[known], "labels": stats.label[known], "prompts": stats.prompt_key[known],
        "style": style, "names": np.array(names),
    }  # fmt: skip


def simulated(n: int, size: int) -> dict[str, np.ndarray]:
    """Votes of Davidson's model, ten on each prompt."""
    random = np.random.default_rng(0)
    strengths = random.normal(0, 0.7, size)
    a = random.integers(size, size=n)
    b = (a + random.integers(1, size, size=n)) % size
    style = random.normal(0, 0.4, (n, 4)).clip(-1, 1)
    gap = strengths[a] - strengths[b] + style[:, 0] * 1.5 + style[:, 1] * 0.3
    first, second = np.exp(gap / 2), np.exp(-gap / 2)
    draw = random.random(n) * (first + second + 0.9)
    labels = np.where(draw < first, 0, np.where(draw < first + second, 1, 2))
    names = np.array([f"model-{i:03}" for i in range(size)])
    return {
        "models": np.stack([a, b], axis=1), "labels": labels, "prompts": random.integers(n // 10, size=n),
        "style": style, "names": names,
    }  # fmt: skip


def prefcli(data: dict[str, np.ndarray], **changes: Any) -> Callable[[], dict[str, Any]]:
    from prefcli.exploration import ratings

    data = {**data, **changes}
    names = tuple(data["names"].tolist())
    votes = ratings.Votes.of(data["models"], data["labels"], names, data["prompts"], data["style"])

    def rate() -> dict[str, Any]:
        rated = ratings.rate(votes)
        assert rated is not None
        models = sorted(rated.models, key=lambda model: names.index(model.model))
        half = [(model.high - model.low) / 2 if model.high is not None else 0 for model in models]  # type: ignore[operator]
        effects = rated.style.effects if rated.style else ()
        return {
            "rating": [model.rating for model in models], "half": half,
            "style": [effect.coefficient for effect in effects],
        }  # fmt: skip

    return rate


def decided(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The votes without ties, each as if on a prompt of its own, as the peers take them."""
    inside = data["labels"] != 2
    part = {name: data[name][inside] for name in ("models", "labels", "style")}
    return {**part, "prompts": np.arange(int(inside.sum())), "names": data["names"]}


def bootstrap(data: dict[str, np.ndarray]) -> Callable[[], dict[str, Any]]:
    """200 refits of battles drawn as if independent, without style control: what the sandwich replaces."""
    from prefcli.exploration import davidson

    def rate() -> dict[str, Any]:
        pairs = davidson.count_pairs(*data["models"].T, data["labels"], tuple(data["names"].tolist()))
        fitted = davidson.fit(pairs)
        random = np.random.default_rng(0)
        cells = pairs.counts.ravel()
        total, strengths = int(cells.sum()), []
        for _ in range(20):
            drawn = random.multinomial(total, cells / total, size=10).reshape(-1, *pairs.counts.shape).astype(float)
            start = fitted.strengths, fitted.log_nu
            strengths.append(davidson.fit(pairs, drawn, start=start, tolerance=1e-2).strengths)
        low, high = np.quantile(np.concatenate(strengths), [0.025, 0.975], axis=0) * POINTS
        return {"rating": (1000 + POINTS * fitted.strengths).tolist(), "half": ((high - low) / 2).tolist(), "style": []}

    return rate


def arena_rank(data: dict[str, np.ndarray], *, style: bool) -> Callable[[], dict[str, Any]]:
    import jax.numpy as jnp
    import pandas as pd
    from arena_rank.models.bradley_terry import BradleyTerry
    from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
    from arena_rank.utils.data_utils import ContextualPairDataset, PairDataset

    names = data["names"]
    size = len(names)
    columns = {"model_a": names[data["models"][:, 0]], "model_b": names[data["models"][:, 1]]}
    winner = np.array(["model_a", "model_b", "tie"])[data["labels"]]
    scaled = data["style"] / np.sqrt((data["style"] ** 2).mean(axis=0)).clip(1e-12)
    features = [f"style{k}" for k in range(4)]
    frame = pd.DataFrame({**columns, "winner": winner, **dict(zip(features, scaled.T, strict=True))})

    def rate() -> dict[str, Any]:
        dataset = PairDataset.from_pandas(frame)
        result = BradleyTerry(size).compute_ratings_and_cis(dataset)
        order = np.argsort(dataset.competitors)
        assert [dataset.competitors[i] for i in order] == sorted(names.tolist())
        back = np.argsort(np.argsort(names))
        values = {
            "rating": np.asarray(result["ratings"])[order][back],
            "half": np.asarray(result["rating_upper"] - result["rating_lower"])[order][back] / 2,
        }
        coefficients = jnp.zeros(0)
        if style:
            contextual = ContextualPairDataset.from_pandas(frame, features, reweighted=False, normalize_features=False)
            model = ContextualBradleyTerry(size, len(features), reg=1e-9)
            model.compute_ratings_and_cis(contextual)
            coefficients = model.params["coeffs"]
        return {name: value.tolist() for name, value in values.items()} | {"style": np.asarray(coefficients).tolist()}

    return rate


def choix(data: dict[str, np.ndarray]) -> Callable[[], dict[str, Any]]:
    import choix as library

    a, b = data["models"].T
    won = data["labels"] == 0
    pairs = list(zip(np.where(won, a, b).tolist(), np.where(won, b, a).tolist(), strict=True))

    def rate() -> dict[str, Any]:
        strengths = library.ilsr_pairwise(len(data["names"]), pairs, alpha=1e-6)
        return {"rating": (1000 + POINTS * (strengths - strengths.mean())).tolist()}

    return rate


WAYS: dict[str, Callable[[dict[str, np.ndarray]], Callable[[], dict[str, Any]]]] = {
    "200 refits, by battle, no style": bootstrap,
    "prefcli, by prompt, with style": prefcli,
    "prefcli, decided votes": lambda data: prefcli(decided(data)),
    "arena-rank, by battle, with style": lambda data: arena_rank(data, style=True),
    "arena-rank, decided votes": lambda data: arena_rank(decided(data), style=True),
    "choix, decided votes": lambda data: choix(decided(data)),
}


if __name__ == "__main__":
    main()

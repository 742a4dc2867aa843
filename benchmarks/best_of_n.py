"""What choosing the best of N answers gains, by the votes of a judge who has seen all answers.

    python benchmarks/best_of_n.py judged.parquet --encoder ./all-MiniLM-L6-v2 --folder best-of-n

For battles in which many models answered the same prompts. Prompts are split as in ``models.py``: runs are trained on
the battles of the training prompts. For every test prompt N of its answers are drawn at random, ``prefcli rank`` ranks
them, and the first one is judged by what no run has seen, the votes on the test prompts:

- win rate: the chosen answer's share in its own votes against other models' answers to this prompt, a tie being half.
  Who meets whom was drawn at random, so this estimates without bias how often it beats a random other answer, and a
  random choice has 0.5;
- rating: that of the model that wrote it, fitted to the votes on all test prompts (Davidson's model, in points). The
  choice sees texts only, so the votes' errors are not its own.

Intervals are 95 % bootstrap intervals over test prompts, with the ratings held fixed. The last tables say what a length
penalty costs, and whether the first answer is the best one as often as ``p_best`` says: for two answers by the votes
on them, for three by those triples of which the votes name a sole winner.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from models import draw, prefcli

from prefcli import metrics
from prefcli.battles import labels_of, texts_of
from prefcli.exploration import ratings
from prefcli.outcomes import TIE, A

SIZES = (2, 4, 8, 16)
PENALTIES = (0.0, 0.25, 0.5, 1.0, 2.0)
PENALISED_SIZE = 8
BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RUNS = {
    "features": ("--architecture", "features"),
    "reward": ("--architecture", "reward", "--text", "raw", "--warmup", "0.1"),
}


@dataclass(frozen=True)
class Question:
    """A test prompt with all its answers, and the votes on them."""

    prompt: str
    models: list[str]
    answers: list[str]
    votes: dict[tuple[int, int], list[float]]
    """Pair of positions, the smaller first -> shares of the first one: 1, 0, or 0.5 for a tie."""

    @property
    def win_rates(self) -> np.ndarray:
        """Each answer's mean share in its votes, ``[k]``."""
        shares: list[list[float]] = [[] for _ in self.answers]
        for (first, second), results in self.votes.items():
            shares[first] += results
            shares[second] += [1 - result for result in results]
        return np.array([np.mean(own) for own in shares])


Subset = tuple[int, np.ndarray]
"""A question's number, and positions of some of its answers."""


def questions_of(votes: pa.Table) -> list[Question]:
    """The test prompts with their answers, in the order of the file."""
    columns = [texts_of(votes[name]) for name in ("prompt", "response_a", "response_b")]
    found: dict[str, Question] = {}
    rows = zip(*columns, *(votes[name].to_pylist() for name in ("model_a", "model_b")), labels_of(votes), strict=True)
    for prompt, answer_a, answer_b, model_a, model_b, label in rows:
        question = found.setdefault(prompt, Question(prompt, [], [], {}))
        places = []
        for model, answer in ((model_a, answer_a), (model_b, answer_b)):
            if model not in question.models:
                question.models.append(model)
                question.answers.append(answer)
            places.append(question.models.index(model))
        share = 0.5 if label == TIE else float(label == A)
        first, second = sorted(places)
        question.votes.setdefault((first, second), []).append(share if places[0] == first else 1 - share)
    return list(found.values())


def model_ratings(votes: pa.Table) -> dict[str, float]:
    """Points of every model by the votes on the test prompts."""
    names = sorted({name for column in ("model_a", "model_b") for name in votes[column].to_pylist()})
    places = {name: place for place, name in enumerate(names)}
    a, b = (np.array([places[name] for name in votes[column].to_pylist()]) for column in ("model_a", "model_b"))
    strengths = ratings.fit(ratings.count_pairs(a, b, labels_of(votes), names)).strengths
    return {name: ratings.elo(strength) for name, strength in zip(names, strengths.tolist(), strict=True)}


class Ranker:
    """Ranks subsets of the test answers by a run, with ``prefcli rank``."""

    def __init__(self, name: str, args: argparse.Namespace, questions: Sequence[Question]) -> None:
        self.name, self.args, self.questions = name, args, questions
        self.is_reward = "reward" in RUNS[name]

    def rank(self, subsets: Sequence[Subset], *flags: object) -> list[dict[str, np.ndarray]]:
        """For every subset its ``scores`` and ``p_best``, in the order of its positions.

        A reward model reads every answer once; that of some answers is what it is among all.
        """
        if not self.is_reward:
            return self._run(subsets, *flags)
        everything = [(number, np.arange(len(q.answers))) for number, q in enumerate(self.questions)]
        whole = self._run(everything, *flags)
        parts = []
        for number, positions in subsets:
            own = {name: values[positions] for name, values in whole[number].items()}
            parts.append({**own, "p_best": own["p_best"] / own["p_best"].sum()})
        return parts

    def _run(self, subsets: Sequence[Subset], *flags: object) -> list[dict[str, np.ndarray]]:
        paths = [self.args.folder / f"{self.name}-{kind}.jsonl" for kind in ("questions", "ranked")]
        with paths[0].open("w") as file:
            for row, (number, positions) in enumerate(subsets):
                question = self.questions[number]
                answers = [question.answers[i] for i in positions]
                file.write(json.dumps({"id": str(row), "prompt": question.prompt, "responses": answers}) + "\n")
        started = time.monotonic()
        run = self.args.folder / self.name
        flags = (*flags, *self.args.rank_flags)
        prefcli(self.args, "rank", paths[0], "--model", run, "--output", paths[1], "--force", "--json", *flags)
        answers_ranked = sum(len(positions) for _, positions in subsets)
        print(
            f"{self.name}: {len(subsets):,} questions, {answers_ranked:,} answers, {time.monotonic() - started:.0f} s"
        )
        with paths[1].open() as file:
            rows = [json.loads(line) for line in file]
        return [{name: np.array(row[name]) for name in ("scores", "p_best")} for row in rows]


def train(name: str, args: argparse.Namespace, files: dict[str, Path]) -> None:
    run = args.folder / name
    if (run / "validation.parquet").exists():
        return
    flags = list(RUNS[name])
    if name != "features":
        flags += ["--encoder", args.encoder, "--max-length", str(args.tokens), "--lr", args.lr]
        flags += ["--precision", args.precision, "--epochs", str(args.epochs)]
    inputs = (files["train"], "--validation-file", files["validation"])
    result = json.loads(prefcli(args, "train", *inputs, *flags, "--output", run, "--force", "--json"))
    print(f"{name}: trained in {result['seconds']:.0f} s, {result['battles_per_second']:.0f} battles/s", flush=True)


Choice = Callable[[int, np.ndarray, int], int]
"""Question, positions, number of the draw -> the chosen position."""


def chosen_of(ranker: Ranker, subsets: Sequence[Subset], *flags: object) -> list[int]:
    """The answer that is ranked first, for every subset."""
    ranked = ranker.rank(subsets, *flags)
    return [int(positions[row["scores"].argmax()]) for (_, positions), row in zip(subsets, ranked, strict=True)]


def interval(values: np.ndarray, keys: np.ndarray, decimals: int) -> str:
    bounds = metrics.bootstrap_interval(values, groups=keys)
    extent = "" if bounds is None else f" ({bounds[0]:.{decimals}f} to {bounds[1]:.{decimals}f})"
    return f"{values.mean():.{decimals}f}{extent}"


def print_tables(args: argparse.Namespace, questions: Sequence[Question], points: dict[str, float]) -> None:
    """The gain of the best of N, and what a length penalty costs."""
    random = np.random.default_rng(0)
    subsets = {
        size: [(number, random.choice(len(q.answers), size, replace=False)) for number, q in enumerate(questions)
               for _ in range(args.draws)]
        for size in SIZES
    }  # fmt: skip
    rates = [question.win_rates for question in questions]
    rated = [np.array([points[model] for model in question.models]) for question in questions]
    lengths = [np.array([len(answer) for answer in question.answers]) for question in questions]
    rankers = {name: Ranker(name, args, questions) for name in args.runs}
    every = [subset for size in SIZES for subset in subsets[size]]
    choices: dict[str, list[int]] = {
        "longest answer": [int(p[lengths[q][p].argmax()]) for q, p in every],
        "best-rated model (knows the authors)": [int(p[rated[q][p].argmax()]) for q, p in every],
    }
    choices |= {name: chosen_of(ranker, every) for name, ranker in rankers.items()}
    sizes = np.array([len(positions) for _, positions in every])
    keys = np.array([number for number, _ in every])
    for title, values, decimals in (("win rate", rates, 3), ("rating of the model", rated, 0)):
        print(f"\n| {title} of the chosen answer | {' | '.join(f'N = {size}' for size in SIZES)} |")
        print("|---" * (1 + len(SIZES)) + "|")
        everyone = np.array([own.mean() for own in values])
        cell = interval(everyone, np.arange(len(questions)), decimals)
        print(f"| any (N = 1) | {cell} |" + " |" * (len(SIZES) - 1))
        for name, chosen in choices.items():
            own = np.array([values[q][i] for q, i in zip(keys, chosen, strict=True)])
            print(f"| {name} | {' | '.join(interval(own[sizes == s], keys[sizes == s], decimals) for s in SIZES)} |")
    penalised = subsets[PENALISED_SIZE]
    keys = np.array([number for number, _ in penalised])
    print(f"\n| N = {PENALISED_SIZE} | length penalty | win rate | characters, mean | median |\n|---|---|---|---|---|")
    all_lengths = np.concatenate(lengths)
    print(f"| any | | 0.5 | {all_lengths.mean():,.0f} | {np.median(all_lengths):,.0f} |")
    for name, ranker in rankers.items():
        for penalty in PENALTIES:
            chosen = chosen_of(ranker, penalised, "--length-penalty", penalty)
            own = np.array([rates[q][i] for q, i in zip(keys, chosen, strict=True)])
            long = np.array([lengths[q][i] for q, i in zip(keys, chosen, strict=True)])
            print(f"| {name} | {penalty} | {interval(own, keys, 3)} | {long.mean():,.0f} | {np.median(long):,.0f} |")


def decided_subsets(questions: Sequence[Question], size: int) -> Iterator[tuple[Subset, int]]:
    """Answers among which all pairs were voted on, and the place of the one that won against all others."""
    for number, question in enumerate(questions):
        votes = {pair: float(np.mean(shares)) for pair, shares in question.votes.items()}
        met = {i: {j for pair in votes if i in pair for j in pair if j != i} for i in range(len(question.answers))}
        groups = list(votes) if size == 2 else [
            (i, j, k) for i, j in votes for k in met[i] & met[j] if k > j
        ]  # fmt: skip
        for group in groups:
            wins = dict.fromkeys(group, 0)
            for first, second in combinations(group, 2):
                share = votes[first, second]
                wins[first] += share > 0.5
                wins[second] += share < 0.5
            best = max(wins, key=wins.__getitem__)
            if wins[best] == size - 1:
                yield (number, np.array(group)), group.index(best)


def print_calibration(args: argparse.Namespace, questions: Sequence[Question]) -> None:
    """Whether the first answer is the best as often as ``p_best`` says."""
    print("\n| answers | run | p_best of the first | questions | said | is the best |\n|---|---|---|---|---|---|")
    for size in (2, 3):
        decided = list(decided_subsets(questions, size))
        subsets = [subset for subset, _ in decided]
        keys = np.array([number for number, _ in subsets])
        for name in args.runs:
            ranked = Ranker(name, args, questions).rank(subsets)
            first = np.array([row["scores"].argmax() for row in ranked])
            said = np.array([row["p_best"][i] for row, i in zip(ranked, first, strict=True)])
            right = (first == np.array([best for _, best in decided])).astype(float)
            groups = [("all", np.ones(len(said), dtype=bool))]
            groups += [(f"{a} to {b}", (said >= a) & (said < b)) for a, b in pairwise(BINS)]
            for label, rows in groups:
                if rows.any():
                    observed = interval(right[rows], keys[rows], 3)
                    print(f"| {size} | {name} | {label} | {rows.sum():,} | {said[rows].mean():.3f} | {observed} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("battles", type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--folder", type=Path, default=Path("best-of-n"))
    parser.add_argument("--train", type=int, default=10**9, help="battles of the training prompts, at most")
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--test", type=int, default=10**9)
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt with one answer")
    parser.add_argument("--lr", default="1e-4")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--draws", type=int, default=20, help="subsets of every size for every prompt")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--rank-flags", nargs="*", default=[], help="for prefcli rank")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    files = draw(args)
    votes = pq.read_table(files["test"])
    questions = questions_of(votes)
    for name in args.runs:
        train(name, args, files)
    answers = sum(len(question.answers) for question in questions)
    print(f"{len(questions):,} test prompts, {answers:,} answers, {len(votes):,} votes")
    print_tables(args, questions, model_ratings(votes))
    print_calibration(args, questions)


if __name__ == "__main__":
    main()

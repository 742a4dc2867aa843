"""Synthetic battles for the demo and the tests, with a known best possible log loss.

Answers are neutral words mixed with liked and disliked ones. The vote is drawn from a known distribution over A, B and
tie, which depends on how many of each the two answers contain. Predicting that distribution scores
:attr:`Demo.best_log_loss`, and no model does better on average; a model that learns nothing scores the prior.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.errors import InputError
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.storage import files

TRAIN_BATTLES = 4000
TEST_BATTLES = 1000
SEED = 20240504

LIKED = ("accurate", "clear", "concrete", "example", "helpful", "precise", "reason", "step", "thorough", "verified")
DISLIKED = ("boring", "confused", "evasive", "lazy", "refuse", "repeat", "sloppy", "unsure", "vague", "wrong")
# fmt: off
NEUTRAL = (
    "answer", "apple", "bridge", "candle", "castle", "circle", "city", "cloud", "color", "corner", "country",
    "desert", "dinner", "door", "engine", "evening", "family", "farm", "field", "fire", "flower", "forest", "garden",
    "glass", "harbor", "history", "house", "island", "journey", "kitchen", "lake", "language", "letter", "light",
    "market", "meadow", "metal", "minute", "mirror", "morning", "mountain", "music", "night", "ocean", "office",
    "orange", "paper", "piano", "picture", "planet", "pocket", "potato", "question", "rabbit", "rain", "river",
    "road", "rocket", "salt", "school", "season", "shadow", "silver", "sister", "snow", "song", "spring", "star",
    "station", "stone", "story", "street", "summer", "sun", "table", "teacher", "theater", "ticket", "tiger", "tower",
    "train", "travel", "tree", "valley", "village", "violin", "voice", "wagon", "water", "weather", "window",
    "winter", "wood", "yellow",
)
# fmt: on
PROMPTS = (
    "Explain how a {} and a {} are related.",
    "Write a short story about a {} near the {}.",
    "What should I know about the {} before I visit the {}?",
    "Compare a {} with a {}.",
    "Give me three ideas for a {} with a {}.",
)
SKILLS = {
    "aurora-7b": 0.50, "basalt-13b": 0.58, "cirrus-70b": 0.68, "dune-3b": 0.35, "ember-chat": 0.45, "fjord-xl": 0.75,
}  # fmt: skip
STEEPNESS = 0.8
TIE_LEVEL = 0.35


@dataclass(frozen=True)
class Demo:
    """What :func:`write` has written."""

    train: Path
    test: Path
    """Without models and winners."""
    truth: Path
    """The test file's winners."""
    best_log_loss: float
    """Of the true probabilities on the test file."""


def write(folder: Path, *, train: int = TRAIN_BATTLES, test: int = TEST_BATTLES, seed: int = SEED) -> Demo:
    """Write ``train.csv``, ``test.csv`` and ``test_truth.csv`` in Kaggle's layout; the same bytes for the same seed.

    Raises
    ------
    InputError
        If there are other files of these names.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows, _, _ = _battles(random, train, first_id=1)
    paths = [folder / name for name in ("train.csv", "test.csv", "test_truth.csv")]
    _write_csv(paths[0], rows, ["id", "model_a", "model_b", "prompt", "response_a", "response_b", *WINNER_COLUMNS])
    rows, probabilities, labels = _battles(random, test, first_id=train + 1)
    _write_csv(paths[1], rows, ["id", "prompt", "response_a", "response_b"])
    _write_csv(paths[2], rows, ["id", *WINNER_COLUMNS])
    return Demo(paths[0], paths[1], paths[2], best_log_loss=metrics.log_loss(probabilities, labels))


def vote(liking_a: int, liking_b: int) -> NDArray[np.float64]:
    """The true probabilities of A, B and tie ``[3]``, given each answer's liked minus disliked words."""
    preference = STEEPNESS * (liking_a - liking_b) / 2
    return metrics.softmax(np.array([preference, -preference, TIE_LEVEL - 0.25 * abs(preference)]))


def _battles(
    random: np.random.Generator, count: int, first_id: int
) -> tuple[list[dict[str, str]], NDArray[np.float64], NDArray[np.int64]]:
    names = list(SKILLS)
    rows, distributions, labels = [], [], []
    prompts = [
        PROMPTS[random.integers(len(PROMPTS))].format(*random.choice(NEUTRAL, size=2, replace=False))
        for _ in range(max(1, count * 2 // 3))
    ]
    for number in range(count):
        a, b = random.choice(len(names), size=2, replace=False)
        turns = 2 if random.random() < 0.1 else 1
        prompt = [prompts[random.integers(len(prompts))] for _ in range(turns)]
        answers = [_answer(random, SKILLS[names[model]], turns) for model in (a, b)]
        probabilities = vote(answers[0][1], answers[1][1])
        label = int(random.choice(3, p=probabilities))
        rows.append(
            {
                "id": str(first_id + number),
                "model_a": names[a],
                "model_b": names[b],
                "prompt": _to_json(prompt),
                "response_a": _to_json(answers[0][0]),
                "response_b": _to_json(answers[1][0]),
                **{name: str(int(label == i)) for i, name in enumerate(WINNER_COLUMNS)},
            }
        )
        distributions.append(probabilities)
        labels.append(label)
    return rows, np.array(distributions), np.array(labels)


def _answer(random: np.random.Generator, skill: float, turns: int) -> tuple[list[str], int]:
    """The turns of an answer, and its liked minus disliked words."""
    signals = int(random.integers(3, 8))
    liked = int(random.binomial(signals, skill))
    words = [LIKED[i] for i in random.integers(len(LIKED), size=liked)]
    words += [DISLIKED[i] for i in random.integers(len(DISLIKED), size=signals - liked)]
    words += [NEUTRAL[i] for i in random.integers(len(NEUTRAL), size=24 - signals)]
    words = [words[i] for i in random.permutation(len(words))]
    sentences = [" ".join(words[i : i + 8]).capitalize() + "." for i in range(0, len(words), 8)]
    parts = np.array_split(np.array(sentences, dtype=object), turns)
    return [" ".join(part) for part in parts], 2 * liked - signals


def _to_json(turns: list[str]) -> str:
    return json.dumps(turns, separators=(",", ":"))


def _write_csv(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    with files.atomic(path, durable=False) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if path.exists() and files.sha256(path) != files.sha256(temporary):
            raise InputError(f"{path} is not the demo's, so it is not overwritten", hint="Name another folder.")

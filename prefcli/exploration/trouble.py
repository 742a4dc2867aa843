"""Battles to look at before training, each with a reason: repeated, contradictory, in a second file, mislabelled.

Label errors are found by confident learning (C. G. Northcutt, L. Jiang and I. L. Chuang, "Confident learning:
estimating uncertainty in dataset labels", Journal of Artificial Intelligence Research 70, 2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, int_column, texts_of
from prefcli.exploration import near
from prefcli.outcomes import OUTCOMES, A, B

PROBLEMS = {
    "prompt_in_test": "prompt also in the test file",
    "near_prompt_in_test": "prompt almost in the test file",
    "duplicate": "same battle as an earlier one",
    "near_duplicate": "almost the same battle",
    "contradictory": "same battle, opposite outcome",
    "label_error": "label probably wrong",
}
"""Kinds of problems, in the order in which they are written, and what they are."""
SALT = np.uint32(0x5BD1E995)
"""Keeps the 5-grams of prompts apart from those of answers, in the signature of a battle."""

Batches = Callable[[], Iterable[pa.RecordBatch]]
"""Gives the batches of a file's battles, from the first on, each time it is called."""
Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """A battle to look at, and why."""

    id: str
    problem: str
    """One of :data:`PROBLEMS`."""
    reason: str
    other_id: str | None = None
    """The battle that it repeats or contradicts; of a prompt in the test file, the battle there."""


@dataclass(frozen=True)
class Trouble:
    """How many battles have which problem."""

    counts: dict[str, int]
    """By kind; kinds that were not looked for are missing."""
    not_compared: int
    """Battles like so many others that they were compared exactly with the likeliest only."""


@dataclass(frozen=True)
class _Battles:
    """What stays in memory of a file."""

    ids: list[str]
    labels: Labels
    keys: NDArray[np.int64]
    """Of the prompts."""
    contents: list[tuple[int, int, int]]
    """Hashes of prompt, A and B."""
    signatures: near.Hashes
    """Of whole battles."""
    prompt_signatures: near.Hashes
    """Of prompts, if there is a test file."""

    def first_rows(self, values: Sequence[object]) -> dict[object, int]:
        """For each different value the first row that has it."""
        return {value: row for row, value in reversed(list(enumerate(values)))}


def find_problems(battles: Batches, test: Batches | None = None) -> tuple[list[Problem], Trouble]:
    """Find repeated and contradictory battles, and prompts that are in a second file too.

    Parameters
    ----------
    battles, test:
        The two files; each is read twice.

    Returns
    -------
    The problems, by kind, then in the order of the battles; and how many there are.
    """
    signer = near.Signatures()
    own = _read(battles(), signer, of_battles=True, of_prompts=test is not None)
    repeated = [*_duplicates(own), *_contradictory(own)]
    near_repeated, not_compared = _near_duplicates(own, battles, signer)
    kinds = ["duplicate", "near_duplicate", "contradictory"]
    shared: list[Problem] = []
    if test is not None:
        shared, more = _in_test(own, battles, test, signer)
        not_compared += more
        kinds = ["prompt_in_test", "near_prompt_in_test", *kinds]
    problems = sorted([*shared, *repeated, *near_repeated], key=lambda problem: list(PROBLEMS).index(problem.problem))
    counts = Counter(problem.problem for problem in problems)
    return problems, Trouble({kind: counts[kind] for kind in kinds}, not_compared)


def _read(
    batches: Iterable[pa.RecordBatch], signer: near.Signatures, *, of_battles: bool, of_prompts: bool
) -> _Battles:
    ids: list[str] = []
    contents: list[tuple[int, int, int]] = []
    labels, keys, signatures, prompt_signatures = [], [], [], []
    for batch in batches:
        prompts, *answers = (texts_of(batch.column(name)) for name in TEXT_FIELDS)
        ids += batch.column("id").to_pylist()
        labels.append(int_column(batch.column("label"), missing=-1))
        keys.append(int_column(batch.column("prompt_key")))
        contents += zip(map(hash, prompts), *(map(hash, texts) for texts in answers), strict=True)
        if of_battles:
            rows = zip(prompts, *answers, strict=True)
            signatures.append(signer.of(_union(map(near.ngrams, texts)) for texts in rows))
        if of_prompts:
            prompt_signatures.append(signer.of(map(near.ngrams, prompts)))
    none = np.empty((0, near.PERMUTATIONS), dtype=np.uint32)
    return _Battles(
        ids,
        np.concatenate(labels),
        np.concatenate(keys),
        contents,
        np.concatenate([none, *signatures]),
        np.concatenate([none, *prompt_signatures]),
    )


def _union(parts: Iterable[near.Hashes]) -> near.Hashes:
    prompt, a, b = parts
    return np.concatenate([prompt ^ SALT, a, b])


def _content(hashes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Equal for battles of the same prompt and the same two answers, in either order."""
    prompt, a, b = hashes
    return prompt, min(a, b), max(a, b)


def _duplicates(own: _Battles) -> Iterator[Problem]:
    firsts = own.first_rows(list(map(_content, own.contents)))
    for row, hashes in enumerate(own.contents):
        first = firsts[_content(hashes)]
        if first < row:
            order = "" if own.contents[first] == hashes else ", in the other order"
            yield Problem(own.ids[row], "duplicate", f"same prompt and answers{order}", own.ids[first])


def _contradictory(own: _Battles) -> Iterator[Problem]:
    """Battles whose other answer won elsewhere; ties contradict nothing, nor do identical answers."""
    won = [
        (_content(hashes), hashes[1 + label]) if label in (A, B) and hashes[1] != hashes[2] else None
        for hashes, label in zip(own.contents, own.labels.tolist(), strict=True)
    ]
    firsts = own.first_rows(won)
    for row, key in enumerate(won):
        if key is not None:
            content, winner = key
            loser = content[1] if winner == content[2] else content[2]
            if (other := firsts.get((content, loser))) is not None:
                outcome = OUTCOMES[own.labels[row]]
                yield Problem(own.ids[row], "contradictory", f"{outcome} won, there the other answer", own.ids[other])


def _near_duplicates(own: _Battles, battles: Batches, signer: near.Signatures) -> tuple[list[Problem], int]:
    """Different battles that are almost the same, each with the most similar earlier one."""
    rows = sorted(own.first_rows(list(map(_content, own.contents))).values())
    proposed, cut = signer.candidates(own.signatures[rows])
    pairs = {row: [rows[other] for other in others] for row, others in zip(rows, proposed, strict=True) if others}
    texts = _ngrams_of(battles(), {*pairs, *(other for others in pairs.values() for other in others)}, TEXT_FIELDS)
    return [
        Problem(own.ids[row], "near_duplicate", f"{value:.0%} of prompt and answers are the same", own.ids[other])
        for row, others in pairs.items()
        if (match := near.best_match(texts[row], ((other, texts[other]) for other in others)))
        for other, value in [match]
    ], cut


def _in_test(own: _Battles, battles: Batches, test: Batches, signer: near.Signatures) -> tuple[list[Problem], int]:
    """Battles whose prompt, or almost that prompt, is in the test file."""
    there = _read(test(), signer, of_battles=False, of_prompts=True)
    of_key = there.first_rows(there.keys.tolist())
    exact = [
        Problem(own.ids[row], "prompt_in_test", "same prompt", there.ids[of_key[key]])
        for row, key in enumerate(own.keys.tolist())
        if key in of_key
    ]
    # Each different prompt is compared once.
    prompts = {key: row for key, row in own.first_rows(own.keys.tolist()).items() if key not in of_key}
    rows, there_rows = sorted(prompts.values()), sorted(of_key.values())
    proposed, cut = signer.candidates(own.prompt_signatures[rows], there.prompt_signatures[there_rows])
    pairs = {row: [there_rows[o] for o in others] for row, others in zip(rows, proposed, strict=True) if others}
    texts = _ngrams_of(battles(), set(pairs), TEXT_FIELDS[:1])
    there_texts = _ngrams_of(test(), {other for others in pairs.values() for other in others}, TEXT_FIELDS[:1])
    matches = {
        int(own.keys[row]): match
        for row, others in pairs.items()
        if (match := near.best_match(texts[row], ((other, there_texts[other]) for other in others)))
    }
    almost = [
        Problem(own.ids[row], "near_prompt_in_test", f"{value:.0%} of the prompt is the same", there.ids[other])
        for row, key in enumerate(own.keys.tolist())
        if key in matches
        for other, value in [matches[key]]
    ]
    return [*exact, *almost], cut


def _ngrams_of(batches: Iterable[pa.RecordBatch], rows: set[int], names: Sequence[str]) -> dict[int, list[near.Hashes]]:
    """The different 5-grams of some battles' texts, by row."""
    texts: dict[int, list[near.Hashes]] = {}
    first = 0
    for batch in batches:
        here = sorted(row for row in rows if first <= row < first + batch.num_rows) if rows else []
        taken = batch.take(pa.array([row - first for row in here], pa.int64()))
        columns = [texts_of(taken.column(name)) for name in names]
        for row, parts in zip(here, zip(*columns, strict=True), strict=True):
            texts[row] = [np.unique(near.ngrams(text)) for text in parts]
        first += batch.num_rows
    return texts


def label_errors(ids: Sequence[str], labels: Labels, probabilities: Array) -> list[Problem]:
    """Battles whose label is probably wrong, the likeliest first.

    Confident learning: an outcome is likely for a battle if its probability is at least the mean probability of that
    outcome among the battles that have it as their label. Where the likeliest of the likely outcomes is not the label,
    the label is taken for wrong. They are ordered by the label's own probability, the lowest first.

    Parameters
    ----------
    ids, labels:
        Of the battles, shape ``[n]``.
    probabilities:
        Of each battle by a model that was not trained on it, shape ``[n, 3]``.
    """
    suggested = confident_outcomes(labels, probabilities)
    wrong = np.flatnonzero((suggested >= 0) & (suggested != labels))
    own = probabilities[wrong, labels[wrong]]
    problems = []
    for row in wrong[np.argsort(own, kind="stable")]:
        chances = ", ".join(f"{name} {p:.2f}" for name, p in zip(OUTCOMES, probabilities[row], strict=True))
        reason = f"labelled {OUTCOMES[labels[row]]}, a model that did not see it gives {chances}"
        problems.append(Problem(ids[row], "label_error", reason))
    return problems


def confident_outcomes(labels: Labels, probabilities: Array) -> Labels:
    """The likeliest outcome of those whose probability reaches their threshold, -1 where none does; shape ``[n]``.

    The threshold of an outcome is its mean probability among the battles with that label; an outcome that is no
    battle's label is never suggested.
    """
    thresholds = np.array(
        [probabilities[labels == outcome, outcome].mean() if (labels == outcome).any() else np.inf
         for outcome in range(len(OUTCOMES))]
    )  # fmt: skip
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)

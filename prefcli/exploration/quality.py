"""What is wrong with the data: empty, identical, repeated and contradictory battles, and prompts in a second file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcli.battles import TEXT_FIELDS, outcome_counts
from prefcli.exploration.measures import BattleStats, IntArray
from prefcli.outcomes import OUTCOMES, TIE, A, B


@dataclass(frozen=True)
class Agreement:
    """How far repeated votes on the same content agree; see :func:`agreement`."""

    pairs: int
    votes: int
    agree: float
    alpha: float | None
    contradictory: int


@dataclass(frozen=True)
class Overlap:
    """Prompts that occur in a second file as well."""

    test_battles: int
    shared_prompts: int
    battles: int
    """Battles of the first file whose prompt is in the second."""
    test_battles_known: int
    """Battles of the second file whose prompt is in the first."""


@dataclass(frozen=True)
class Problems:
    """What is wrong with the data; dicts count per field.

    ``duplicates`` counts battles beyond the first of the same prompt and the same two answers, in either order.
    """

    null_turns: dict[str, int]
    empty: dict[str, int]
    identical_answers: int
    identical_outcomes: tuple[int, int, int]
    duplicates: int
    contradictory: int
    self_battles: int
    overlap: Overlap | None


def problems(stats: BattleStats, models: IntArray, test_keys: IntArray | None) -> tuple[Problems, Agreement | None]:
    """Problems of the data, and the agreement of repeated votes.

    Parameters
    ----------
    models:
        Positions of the models A and B, -1 where unknown; shape ``[n, 2]``.
    test_keys:
        ``prompt_key`` of a second file's battles.
    """
    hash_a, hash_b = stats.answer_hash.T
    identical = hash_a == hash_b
    pieces = np.stack([stats.prompt_hash, np.minimum(hash_a, hash_b), np.maximum(hash_a, hash_b)], axis=1)
    content = np.array([hash(tuple(hashes)) for hashes in pieces.tolist()])
    # Votes on the same two answers are compared in one order of the answers.
    swap = (hash_a > hash_b) & ((stats.label == A) | (stats.label == B))
    label = np.where(swap, A + B - stats.label, stats.label)
    votes = agreement(content[~identical], label[~identical])
    outcomes = outcome_counts(stats.label[identical])
    counts = Problems(
        null_turns=dict(zip(TEXT_FIELDS, stats.nulls.sum(axis=0).tolist(), strict=True)),
        empty=dict(zip(TEXT_FIELDS, (stats.characters == 0).sum(axis=0).tolist(), strict=True)),
        identical_answers=int(identical.sum()),
        identical_outcomes=(int(outcomes[A]), int(outcomes[B]), int(outcomes[TIE])),
        duplicates=len(content) - len(np.unique(content)),
        contradictory=votes.contradictory if votes else 0,
        self_battles=int(((models[:, 0] == models[:, 1]) & (models[:, 0] >= 0)).sum()),
        overlap=_overlap(stats.prompt_key, test_keys) if test_keys is not None else None,
    )
    return counts, votes


def agreement(content: IntArray, label: IntArray) -> Agreement | None:
    """How far votes on the same two answers to the same prompt agree; None where nothing was judged twice.

    ``agree`` is the share of pairs of votes on the same content that are equal. ``alpha`` is Krippendorff's for
    nominal data, ``1 - D_observed / D_expected`` over the votes that can be paired (K. Krippendorff, "Content
    Analysis", 2004, chapter 11): 1 is perfect, 0 is chance. ``contradictory`` counts contents for which both answers
    won.

    Parameters
    ----------
    content:
        Equal for equal content; shape ``[n]``.
    label:
        Outcomes for one order of the answers, -1 where unknown; shape ``[n]``.
    """
    known = label >= 0
    unique, unit = np.unique(content[known], return_inverse=True)
    counts = np.zeros((len(unique), len(OUTCOMES)))
    np.add.at(counts, (unit, label[known]), 1)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return None
    votes = counts.sum(axis=1)
    equal_pairs = (counts * (counts - 1)).sum(axis=1)
    n, totals = votes.sum(), counts.sum(axis=0)
    totals[[A, B]] = totals[[A, B]].mean()  # which of the two answers is called A here is arbitrary
    observed = 1 - float((equal_pairs / (votes - 1)).sum() / n)
    expected = 1 - float((totals * (totals - 1)).sum() / (n * (n - 1)))
    return Agreement(
        pairs=len(counts),
        votes=int(n),
        agree=float(equal_pairs.sum() / (votes * (votes - 1)).sum()),
        alpha=1 - observed / expected if expected else None,
        contradictory=int(((counts[:, A] > 0) & (counts[:, B] > 0)).sum()),
    )


def _overlap(keys: IntArray, test_keys: IntArray) -> Overlap:
    shared = np.intersect1d(keys, test_keys)
    return Overlap(
        test_battles=len(test_keys),
        shared_prompts=len(shared),
        battles=int(np.isin(keys, shared).sum()),
        test_battles_known=int(np.isin(test_keys, shared).sum()),
    )

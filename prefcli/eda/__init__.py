"""Numbers about battles, as plain dataclasses. What they look like is decided elsewhere.

One pass over the batches keeps a few numbers per battle (:mod:`prefcli.eda.measures`); everything below is computed
from those. Every share comes with Wilson's interval, every rating with a bootstrap's (:mod:`prefcli.eda.ratings`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.battles import TEXT_FIELDS, int_column, outcome_counts
from prefcli.eda import ratings as rating_room
from prefcli.eda.effects import LengthBin, Rewarded, Share, TurnsRow, by_turns, length_curve, rewarded, share
from prefcli.eda.measures import SCRIPT_NAMES, Measured, measure
from prefcli.eda.ratings import ModelRating, Ratings
from prefcli.outcomes import OUTCOMES, TIE, A, B

Numbers = NDArray[np.int64]

RATING_GAPS = (0, 25, 50, 100, 200, 400, np.inf)
"""Bins of the difference between two ratings, in points."""
THREADS = 2
MAX_LENGTHS = (256, 512, 1024, 2048, 4096)
SPECIAL_TOKENS = 3
"""[CLS] prompt [SEP] answer [SEP]"""
SHOWN_MODELS = 20
"""Models in the head-to-head table."""
FEWEST_FOR_RATE = 30
"""A model needs that many battles to be ranked by win rate."""


@dataclass(frozen=True)
class PairCount:
    """How often two models met, whichever was A."""

    model_1: str
    model_2: str
    battles: int


@dataclass(frozen=True)
class ModelWins:
    """How a model fared. ``win_rate`` is wins per battle, ties not counted as wins."""

    model: str
    wins: int
    ties: int
    battles: int
    win_rate: float
    win_rate_ci: tuple[float, float]


@dataclass(frozen=True)
class Lengths:
    """Distribution of a field's length in characters, all turns together."""

    mean: float
    median: float
    p90: float
    longest: int


@dataclass(frozen=True)
class ClosenessBin:
    """Battles between models whose ratings are ``low`` to ``high`` points apart."""

    low: float
    high: float
    tied: Share
    expected: float
    """Share of ties that the fitted model expects there."""


@dataclass(frozen=True)
class Agreement:
    """Where the same two answers to the same prompt were judged more than once; see :func:`agreement`."""

    pairs: int
    votes: int
    agree: float
    alpha: float | None
    contradictory: int


@dataclass(frozen=True)
class HeadToHead:
    """How the most battled models fared against each other, best rated first.

    ``score[i][j]`` is the share of battles that i won against j, ties counting half; None where they never met.
    """

    models: tuple[str, ...]
    score: tuple[tuple[float | None, ...], ...]
    battles: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ScriptShare:
    """Battles whose prompt is mostly written in a script."""

    script: str
    battles: int
    share: float


@dataclass(frozen=True)
class Cut:
    """What a limit on (prompt, answer) would cut, by estimated tokens."""

    max_length: int
    sides_cut: float
    """Share of (prompt, answer) pairs longer than the limit."""
    battles_cut: float
    """Share of battles with at least one such pair."""
    tokens_lost: float
    """Share of all tokens beyond the limit."""


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
    """What is wrong with the data. Fields' names are keys where it is told per field.

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


@dataclass(frozen=True)
class Eda:
    """What ``prefcli eda`` reports."""

    battles: int
    labelled: int
    models: int
    outcomes: tuple[int, int, int]
    ties: int
    tie_share: float
    both_bad: int | None
    multi_turn: int
    null_turns: int
    empty_answers: int
    identical_answers: int
    prompts: int
    lengths: dict[str, Lengths]
    top_pairs: tuple[PairCount, ...]
    top_winners: tuple[ModelWins, ...]
    top_rates: tuple[ModelWins, ...]
    position: Share | None
    length_curve: tuple[LengthBin, ...]
    rewarded: tuple[Rewarded, ...]
    turns: tuple[TurnsRow, ...]
    agreement: Agreement | None
    scripts: tuple[ScriptShare, ...]
    cuts: tuple[Cut, ...]
    problems: Problems
    ratings: Ratings | None
    tie_closeness: tuple[ClosenessBin, ...]
    head_to_head: HeadToHead | None


def explore(
    batches: Iterable[pa.RecordBatch],
    top: int = 5,
    *,
    max_length: int = 512,
    test_keys: Numbers | None = None,
    rounds: int = rating_room.BOOTSTRAP_ROUNDS,
    seed: int = 0,
) -> Eda:
    """Everything about a file of battles, in one pass.

    Parameters
    ----------
    batches:
        Canonical record batches.
    top:
        How many pairs and models to list.
    max_length:
        A token limit to report about, besides :data:`MAX_LENGTHS`.
    test_keys:
        ``prompt_key`` of a second file's battles.
    rounds, seed:
        Of the ratings' bootstrap.
    """
    parts: list[Measured] = []
    names: dict[str, int] = {}
    sides: list[Numbers] = []
    for batch, measured in _measured(batches):
        parts.append(measured)
        sides.append(np.stack([_positions(batch, side, names) for side in ("model_a", "model_b")], axis=1))
    m = Measured.together(parts)
    model_a, model_b = np.concatenate(sides).T
    models = tuple(names)
    known = m.label >= 0
    tallies = outcome_counts(m.label)
    tied = int(tallies[TIE])
    met = rating_room.tally(model_a, model_b, m.label, models)
    rated = rating_room.rate(met, rounds=rounds, seed=seed) if len(met.counts) else None
    rating_of = {one.model: one for one in rated[0].models} if rated else {}
    fared = _fared(model_a, model_b, m.label, models)
    problems, agreed = _problems(m, model_a, model_b, test_keys)
    decided = int(tallies[A] + tallies[B])
    return Eda(
        battles=len(m.label),
        labelled=int(known.sum()),
        models=len(models),
        outcomes=(int(tallies[A]), int(tallies[B]), tied),
        ties=tied,
        tie_share=float(tied / known.sum()) if known.any() else 0.0,
        both_bad=int((m.both_bad == 1).sum()) if (m.both_bad >= 0).any() else None,
        multi_turn=int((m.turns > 1).sum()),
        null_turns=int(m.nulls.sum()),
        empty_answers=int((m.characters[:, 1:] == 0).sum()),
        identical_answers=problems.identical_answers,
        prompts=len(np.unique(m.prompt_key)),
        lengths={name: _distribution(m.characters[:, i]) for i, name in enumerate(TEXT_FIELDS)},
        top_pairs=_top_pairs(model_a, model_b, models, top),
        top_winners=tuple(sorted(fared, key=lambda one: (-one.wins, one.model))[:top]),
        top_rates=_top_rates(fared, top),
        position=share(int(tallies[A]), decided) if decided else None,
        length_curve=length_curve(m),
        rewarded=rewarded(m),
        turns=by_turns(m),
        agreement=agreed,
        scripts=_scripts(m),
        cuts=tuple(_cut(m, limit) for limit in sorted({*MAX_LENGTHS, max_length})),
        problems=problems,
        ratings=rated[0] if rated else None,
        tie_closeness=tie_closeness(met, rating_of, rated[1].log_nu) if rated else (),
        head_to_head=head_to_head(met, rating_of) if rated else None,
    )


def _measured(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, Measured]]:
    """Each batch with its measurements, in order; Arrow's kernels let go of the interpreter, so threads help."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[tuple[pa.RecordBatch, Future[Measured]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(measure, batch)))
            if len(waiting) > THREADS:
                first, future = waiting.popleft()
                yield first, future.result()
        for last, future in waiting:
            yield last, future.result()


# Models


def _positions(batch: pa.RecordBatch, side: str, names: dict[str, int]) -> Numbers:
    """Each battle's model as a position in ``names``, which grows; -1 where unknown."""
    column = batch.column(batch.schema.get_field_index(side))
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = np.array([names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()] or [-1])
    places = int_column(encoded.indices, missing=-1)
    return np.where(places >= 0, codes[places], -1)


def _top_pairs(a: Numbers, b: Numbers, names: tuple[str, ...], top: int) -> tuple[PairCount, ...]:
    known = (a >= 0) & (b >= 0)
    low, high = np.minimum(a, b)[known], np.maximum(a, b)[known]
    pairs, counts = np.unique(low * len(names) + high, return_counts=True)
    if not len(pairs):
        return ()
    enough = np.sort(counts)[-min(top, len(counts))]
    found = [
        PairCount(min(pair), max(pair), count)
        for pair, count in (
            ((names[code // len(names)], names[code % len(names)]), int(count))
            for code, count in zip(pairs, counts, strict=True)
            if count >= enough
        )
    ]
    return tuple(sorted(found, key=lambda pair: (-pair.battles, pair.model_1, pair.model_2))[:top])


def _fared(a: Numbers, b: Numbers, label: Numbers, names: tuple[str, ...]) -> list[ModelWins]:
    size = len(names)
    counts = np.zeros((3, size), dtype=np.int64)
    for side, won in ((a, A), (b, B)):
        for row, mask in enumerate((label == won, label == TIE, label >= 0)):
            counts[row] += np.bincount(side[mask & (side >= 0)], minlength=size)
    fared = []
    for name, (wins, ties, battles) in zip(names, counts.T.tolist(), strict=True):
        if battles:
            rate = share(wins, battles)
            fared.append(ModelWins(name, wins, ties, battles, rate.value, (rate.low, rate.high)))
    return fared


def _top_rates(fared: list[ModelWins], top: int) -> tuple[ModelWins, ...]:
    enough = [one for one in fared if one.battles >= FEWEST_FOR_RATE]
    return tuple(sorted(enough, key=lambda one: (-one.win_rate, one.model))[:top])


def tie_closeness(
    met: rating_room.Meetings, rating_of: dict[str, ModelRating], log_nu: NDArray[np.float64]
) -> tuple[ClosenessBin, ...]:
    """Share of ties by how close the two ratings are, beside what Davidson's model expects."""
    rating = np.array([rating_of[name].rating if name in rating_of else np.nan for name in met.models])
    gap = np.abs(rating[met.first] - rating[met.second])
    expected = rating_room.probabilities(gap / rating_room.ELO_PER_LOG_ODDS, log_nu)[:, TIE]
    total = met.counts.sum(axis=1)
    rows = []
    for low, high in itertools.pairwise(RATING_GAPS):
        here = (gap >= low) & (gap < high)
        n = int(total[here].sum())
        if n:
            mean = float((expected[here] * total[here]).sum() / n)
            rows.append(ClosenessBin(low, high, share(int(met.counts[here, TIE].sum()), n), mean))
    return tuple(rows)


def head_to_head(met: rating_room.Meetings, rating_of: dict[str, ModelRating]) -> HeadToHead:
    """Win shares between the :data:`SHOWN_MODELS` models with most battles."""
    busiest = sorted(rating_of.values(), key=lambda one: (-one.battles, one.model))[:SHOWN_MODELS]
    shown = sorted(busiest, key=lambda one: (-one.rating, one.model))
    row_of = {met.models.index(one.model): row for row, one in enumerate(shown)}
    size = len(shown)
    wins, battles = np.zeros((size, size)), np.zeros((size, size), dtype=np.int64)
    for first, second, counts in zip(met.first.tolist(), met.second.tolist(), met.counts, strict=True):
        if first in row_of and second in row_of:
            i, j = row_of[first], row_of[second]
            wins[i, j], wins[j, i] = counts[A] + counts[TIE] / 2, counts[B] + counts[TIE] / 2
            battles[i, j] = battles[j, i] = int(counts.sum())
    score = tuple(
        tuple(wins[i, j] / battles[i, j] if battles[i, j] else None for j in range(size)) for i in range(size)
    )
    return HeadToHead(tuple(one.model for one in shown), score, tuple(map(tuple, battles.tolist())))


# What is wrong with the data


def _problems(
    m: Measured, model_a: Numbers, model_b: Numbers, test_keys: Numbers | None
) -> tuple[Problems, Agreement | None]:
    same = m.answer_hash[:, 0] == m.answer_hash[:, 1]
    swapped = m.answer_hash[:, 0] > m.answer_hash[:, 1]
    content = _mixed(m.prompt_hash, m.answer_hash.min(axis=1), m.answer_hash.max(axis=1))
    # Outcomes of the same two answers are compared the same way round.
    label = np.where(swapped & (m.label != TIE) & (m.label >= 0), A + B - m.label, m.label)
    outcomes = outcome_counts(m.label[same])
    agreed = agreement(content[~same], label[~same])
    problems = Problems(
        null_turns={name: int(m.nulls[:, i].sum()) for i, name in enumerate(TEXT_FIELDS)},
        empty={name: int((m.characters[:, i] == 0).sum()) for i, name in enumerate(TEXT_FIELDS)},
        identical_answers=int(same.sum()),
        identical_outcomes=(int(outcomes[A]), int(outcomes[B]), int(outcomes[TIE])),
        duplicates=len(content) - len(np.unique(content)),
        contradictory=agreed.contradictory if agreed else 0,
        self_battles=int(((model_a == model_b) & (model_a >= 0)).sum()),
        overlap=_overlap(m.prompt_key, test_keys) if test_keys is not None else None,
    )
    return problems, agreed


def agreement(content: Numbers, label: Numbers) -> Agreement | None:
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
        Outcomes the same way round, -1 where unknown; shape ``[n]``.
    """
    known = label >= 0
    _, unit = np.unique(content[known], return_inverse=True)
    if not len(unit):
        return None
    counts = np.zeros((unit.max() + 1, len(OUTCOMES)))
    np.add.at(counts, (unit, label[known]), 1)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return None
    votes = counts.sum(axis=1)
    equal = (counts * (counts - 1)).sum(axis=1)
    n, totals = votes.sum(), counts.sum(axis=0)
    totals[[A, B]] = totals[[A, B]].mean()  # which of the two answers is called A here is arbitrary
    observed = 1 - float((equal / (votes - 1)).sum() / n)
    expected = 1 - float((totals * (totals - 1)).sum() / (n * (n - 1)))
    return Agreement(
        pairs=len(counts),
        votes=int(n),
        agree=float(equal.sum() / (votes * (votes - 1)).sum()),
        alpha=1 - observed / expected if expected else None,
        contradictory=int(((counts[:, A] > 0) & (counts[:, B] > 0)).sum()),
    )


def _mixed(*hashes: Numbers) -> Numbers:
    """Several 64-bit hashes as one; equal for equal ones (multiplication by an odd number loses nothing)."""
    mixed = np.zeros(len(hashes[0]), dtype=np.uint64)
    for values in hashes:
        mixed = (mixed ^ values.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed.astype(np.int64)


def _overlap(keys: Numbers, test_keys: Numbers) -> Overlap:
    shared = np.intersect1d(keys, test_keys)
    return Overlap(
        test_battles=len(test_keys),
        shared_prompts=len(shared),
        battles=int(np.isin(keys, shared).sum()),
        test_battles_known=int(np.isin(test_keys, shared).sum()),
    )


def _scripts(m: Measured) -> tuple[ScriptShare, ...]:
    counts = np.bincount(m.script, minlength=len(SCRIPT_NAMES))
    ranked = np.argsort(-counts, kind="stable")
    return tuple(
        ScriptShare(SCRIPT_NAMES[i], int(counts[i]), float(counts[i] / len(m.script))) for i in ranked if counts[i]
    )


def _cut(m: Measured, limit: int) -> Cut:
    """What a limit on prompt and answer together would cut, by the tokens estimated in :mod:`prefcli.eda.measures`."""
    sides = m.tokens[:, 1:] + m.tokens[:, :1] + SPECIAL_TOKENS
    over = np.maximum(sides - limit, 0)
    return Cut(
        limit, float((over > 0).mean()), float((over > 0).any(axis=1).mean()), float(over.sum() / max(sides.sum(), 1))
    )


def _distribution(values: Numbers) -> Lengths:
    return Lengths(
        mean=float(values.mean()),
        median=float(np.median(values)),
        p90=float(np.quantile(values, 0.9)),
        longest=int(values.max()),
    )

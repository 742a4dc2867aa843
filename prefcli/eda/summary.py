"""Everything that ``prefcli eda`` reports, from one pass over the battles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefcli.battles import outcome_counts
from prefcli.eda import effects, quality, texts
from prefcli.eda.measures import IntArray, measure_all
from prefcli.eda.models import (
    MIN_BATTLES_FOR_RATE,
    ClosenessBin,
    HeadToHead,
    ModelWins,
    PairCount,
    head_to_head,
    model_wins,
    tie_closeness,
    top_pairs,
)
from prefcli.eda.ratings import BOOTSTRAP_ROUNDS, Beats, GroupRatings, Ratings, count_pairs, rate
from prefcli.eda.shares import Share, share
from prefcli.outcomes import TIE, A, B


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
    lengths: dict[str, texts.Lengths]
    top_pairs: tuple[PairCount, ...]
    top_winners: tuple[ModelWins, ...]
    top_rates: tuple[ModelWins, ...]
    position: Share | None
    length_curve: tuple[effects.LengthBin, ...]
    rewarded: tuple[effects.Effect, ...]
    turns: tuple[effects.TurnsBin, ...]
    agreement: quality.Agreement | None
    scripts: tuple[texts.ScriptShare, ...]
    cuts: tuple[texts.Truncation, ...]
    problems: quality.Problems
    ratings: Ratings | None
    tie_closeness: tuple[ClosenessBin, ...]
    head_to_head: HeadToHead | None
    headline: tuple[str, ...] = ()
    """What the votes say, in sentences, the most important first."""
    beats: Beats | None = None
    by: tuple[GroupRatings, ...] = ()
    """Per value of ``--by``."""


def explore(
    batches: Iterable[pa.RecordBatch],
    top: int = 5,
    *,
    max_length: int = 512,
    test_keys: IntArray | None = None,
    rounds: int = BOOTSTRAP_ROUNDS,
) -> Eda:
    """Everything about a file of battles, in one pass.

    Parameters
    ----------
    batches:
        Canonical record batches.
    top:
        How many pairs and models to list.
    max_length:
        A token limit to report about, besides :data:`prefcli.eda.texts.LENGTH_LIMITS`.
    test_keys:
        ``prompt_key`` of a second file's battles.
    rounds:
        Of the ratings' bootstrap.
    """
    stats, models, names = measure_all(batches)
    outcomes = outcome_counts(stats.label)
    a_won, b_won, tied = (int(outcomes[outcome]) for outcome in (A, B, TIE))
    labelled = a_won + b_won + tied
    pairwise = count_pairs(models[:, 0], models[:, 1], stats.label, names)
    ratings = rate(pairwise, rounds=rounds)
    wins = model_wins(models, stats.label, names)
    rated_wins = [model for model in wins if model.battles >= MIN_BATTLES_FOR_RATE]
    problems, votes = quality.problems(stats, models, test_keys)
    return Eda(
        battles=len(stats.label),
        labelled=labelled,
        models=len(names),
        outcomes=(a_won, b_won, tied),
        ties=tied,
        tie_share=tied / labelled if labelled else 0.0,
        both_bad=int((stats.both_bad == 1).sum()) if (stats.both_bad >= 0).any() else None,
        multi_turn=int((stats.turns > 1).sum()),
        null_turns=sum(problems.null_turns.values()),
        empty_answers=problems.empty["response_a"] + problems.empty["response_b"],
        identical_answers=problems.identical_answers,
        prompts=len(np.unique(stats.prompt_key)),
        lengths=texts.lengths(stats),
        top_pairs=top_pairs(models, names, top),
        top_winners=tuple(sorted(wins, key=lambda model: (-model.wins, model.model))[:top]),
        top_rates=tuple(sorted(rated_wins, key=lambda model: (-model.win_rate, model.model))[:top]),
        position=share(a_won, a_won + b_won) if a_won + b_won else None,
        length_curve=effects.outcomes_by_length(stats),
        rewarded=effects.property_effects(stats),
        turns=effects.outcomes_by_turns(stats),
        agreement=votes,
        scripts=texts.scripts(stats),
        cuts=tuple(texts.truncation(stats, limit) for limit in sorted({*texts.LENGTH_LIMITS, max_length})),
        problems=problems,
        ratings=ratings,
        tie_closeness=tie_closeness(pairwise, ratings) if ratings else (),
        head_to_head=head_to_head(pairwise, ratings) if ratings else None,
    )

"""Everything that ``prefcli eda`` reports, from one pass over the battles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefcli import groups
from prefcli.battles import int_column, outcome_counts
from prefcli.exploration import effects, quality, texts
from prefcli.exploration.annotators import Annotators
from prefcli.exploration.headline import Battles, headline
from prefcli.exploration.judges import JudgeComparison
from prefcli.exploration.measures import BattleStats, IntArray, measure_all
from prefcli.exploration.models import (
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
from prefcli.exploration.ratings import Beats, GroupRatings, Ratings, Votes, beats, estimate, summarise
from prefcli.exploration.shares import Share, clustered_share
from prefcli.exploration.style import style_differences
from prefcli.exploration.trouble import Trouble
from prefcli.outcomes import TIE, A, B

MAX_GROUPS = 50
"""Groups of ``--by`` that are rated: those with most battles."""


@dataclass(frozen=True, repr=False)
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
    """The largest groups of ``--by``, at most :data:`MAX_GROUPS`."""
    groups_left_out: int = 0
    """Groups of ``--by`` that are not in ``by``."""
    ungrouped: int = 0
    """Battles without a group, whose cell is empty."""
    judge: JudgeComparison | None = None
    """With ``--judge``."""
    annotators: Annotators | None = None
    """With ``--annotator``."""
    trouble: Trouble | None = None
    """Battles with problems, if they were looked for (``--export``)."""

    def __repr__(self) -> str:
        counts = f"{self.battles:,} battles, {self.labelled:,} with an outcome, {self.models:,} models"
        return "\n".join([f"Eda({counts}, {self.tie_share:.1%} ties)", *(f"  {line}" for line in self.headline[:3])])


def explore(
    batches: Iterable[pa.RecordBatch],
    top: int = 5,
    *,
    max_length: int = 512,
    test_keys: IntArray | None = None,
    by: str | None = None,
) -> Eda:
    """Everything about a file of battles, in one pass.

    Parameters
    ----------
    batches:
        Canonical record batches.
    top:
        How many pairs and models to list.
    max_length:
        A token limit to report about, besides :data:`prefcli.exploration.texts.LENGTH_LIMITS`.
    test_keys:
        ``prompt_key`` of a second file's battles.
    by:
        What battles are grouped by, see :func:`prefcli.groups.of`.
    """
    group_names: list[pa.Array] = []
    stats, models, names = measure_all(batches if by is None else _with_group_names(batches, by, group_names))
    overall = _overall(stats)
    labelled, tied = sum(overall.outcomes), overall.outcomes[TIE]
    votes = _votes(stats, models, names)
    estimated = estimate(votes)
    ratings = summarise(estimated) if estimated else None
    pairwise = votes.pairs()
    wins = model_wins(models, stats.label, names)
    rated_wins = [model for model in wins if model.battles >= MIN_BATTLES_FOR_RATE]
    problems, agreement = quality.problems(stats, models, test_keys)
    by_group, groups_left_out = ((), 0) if by is None else _by_group(stats, models, names, group_names, by)
    ungrouped = sum(part.null_count for part in group_names)
    return Eda(
        battles=len(stats.label),
        labelled=labelled,
        models=len(names),
        outcomes=overall.outcomes,
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
        position=overall.position,
        length_curve=effects.outcomes_by_length(stats),
        rewarded=effects.property_effects(stats),
        turns=effects.outcomes_by_turns(stats),
        agreement=agreement,
        scripts=texts.scripts(stats),
        cuts=tuple(texts.truncation(stats, limit) for limit in sorted({*texts.LENGTH_LIMITS, max_length})),
        problems=problems,
        ratings=ratings,
        tie_closeness=tie_closeness(pairwise, ratings) if ratings else (),
        head_to_head=head_to_head(pairwise, ratings) if ratings else None,
        headline=headline(overall, estimated, ratings),
        beats=beats(estimated) if estimated else None,
        by=by_group,
        groups_left_out=groups_left_out,
        ungrouped=ungrouped,
    )


def _overall(stats: BattleStats) -> Battles:
    """What the headline says of all battles, whoever answered."""
    a_won, b_won, tied = outcome_counts(stats.label)[[A, B, TIE]].tolist()
    decided = (stats.label == A) | (stats.label == B)
    return Battles(
        battles=len(stats.label),
        outcomes=(a_won, b_won, tied),
        position=clustered_share(stats.label[decided] == A, stats.prompt_key[decided]) if decided.any() else None,
        longer=effects.longer_won(stats),
    )


def _votes(stats: BattleStats, models: IntArray, names: tuple[str, ...]) -> Votes:
    """The battles that can be rated. Those without a text in the prompt share none."""
    prompts = np.where(stats.characters[:, 0] > 0, stats.prompt_key, np.arange(len(stats.label)))
    return Votes.of(models, stats.label, names, prompts, style_differences(stats))


def _with_group_names(
    batches: Iterable[pa.RecordBatch], by: str, group_names: list[pa.Array]
) -> Iterator[pa.RecordBatch]:
    """The batches; the names of their groups are appended to ``group_names``."""
    for batch in batches:
        group_names.append(groups.of(batch, by))
        yield batch


def _by_group(
    stats: BattleStats, models: IntArray, names: tuple[str, ...], group_names: list[pa.Array], by: str
) -> tuple[tuple[GroupRatings, ...], int]:
    """Outcomes and ratings of the largest groups, and how many groups are left out. Battles without one have none."""
    encoded = pa.chunked_array(group_names, pa.string()).combine_chunks().dictionary_encode()
    codes = int_column(encoded.indices, missing=-1)
    counts = dict(zip(encoded.dictionary.to_pylist(), np.bincount(codes[codes >= 0]).tolist(), strict=True))
    code_of = {name: code for code, name in enumerate(counts)}
    largest = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_GROUPS]
    results = []
    for name in groups.in_order({name: counts[name] for name in largest}, by):
        inside = codes == code_of[name]
        part = stats.where(inside)
        overall = _overall(part)
        estimated = estimate(_votes(part, models[inside], names))
        ratings = summarise(estimated) if estimated else None
        results.append(
            GroupRatings(
                name=name,
                battles=counts[name],
                prompts=len(np.unique(part.prompt_key)),
                outcomes=overall.outcomes,
                ratings=ratings,
                headline=headline(overall, estimated, ratings),
            )
        )
    return tuple(results), len(counts) - len(largest)

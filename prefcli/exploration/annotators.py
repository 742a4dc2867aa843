"""Several people who judged the same battles: how far each agrees with the others, and on which battles they differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcli.exploration import quality
from prefcli.exploration.judges import (
    Estimate,
    Joined,
    Votes,
    agreement,
    confusion_cells,
    contents,
    estimate,
    share,
    swap_labels,
)
from prefcli.exploration.measures import IntArray
from prefcli.outcomes import OUTCOMES

MAX_ANNOTATORS = 100
"""Those with most votes are reported."""
MAX_CONTESTED = 10


@dataclass(frozen=True)
class Annotator:
    """How far somebody agrees with the others."""

    name: str
    votes: int
    agreement: Estimate
    """The share of the others' votes on the same battles that say the same; each own vote counts once."""
    with_judge: Estimate | None
    """The same with ``--judge``'s verdicts; None without a judge."""


@dataclass(frozen=True)
class ContestedBattle:
    """A battle on which votes differ."""

    id: str
    """Of its first row."""
    outcomes: tuple[int, int, int]
    """Votes for A, B and tie, in that row's order of the answers."""
    agreement: float
    """The share of pairs of votes that are equal."""


@dataclass(frozen=True)
class Annotators:
    """What ``eda --annotator`` reports."""

    column: str
    annotators: tuple[Annotator, ...]
    """Those with most votes first, at most :data:`MAX_ANNOTATORS`."""
    left_out: int
    """Annotators with fewer votes."""
    unnamed: int
    """Votes whose cell is empty; they count among the others' votes."""
    battles: int
    """With several votes."""
    unanimous: int
    pairwise: float | None
    """The share of pairs of votes on the same battle that are equal; None if no battle has several votes."""
    alpha: float | None
    """Krippendorff's, for nominal data."""
    contested: tuple[ContestedBattle, ...]
    """The :data:`MAX_CONTESTED` battles with the least agreement, those with more votes first."""


def compare(
    people: Votes, names: list[str | None], column: str, judge: tuple[Votes, Joined] | None = None
) -> Annotators:
    """The agreement of every annotator with the others, and with a judge.

    Parameters
    ----------
    people:
        The votes.
    names:
        Who cast each of them.
    column:
        Where the names were.
    judge:
        A judge's verdicts, and how they belong to the votes.
    """
    known = np.flatnonzero(people.stats.label >= 0)
    codes, reversed_ = contents(people.stats)
    labels = swap_labels(people.stats.label[known], reversed_[known])
    _, first, item = np.unique(codes[known], return_index=True, return_inverse=True)
    position = {name: i for i, name in enumerate(dict.fromkeys(name for name in names if name))}
    annotator = np.array([position.get(name or "", -1) for name in names])
    counts = np.bincount(annotator[known][annotator[known] >= 0], minlength=len(position))
    largest = sorted(position, key=lambda name: (-counts[position[name]], name))[:MAX_ANNOTATORS]
    votes = np.zeros((len(first), len(OUTCOMES)))
    np.add.at(votes, (item, labels), 1)
    keys = people.stats.prompt_key
    found = quality.agreement(codes[known], labels)
    cells = confusion_cells(people, *judge) if judge else None
    rows = []
    for name in largest:
        own = annotator == position[name]
        with_judge = None
        if judge is not None and cells is not None:
            with_judge = estimate(cells, keys[judge[1].vote], agreement, own[judge[1].vote])
        with_others = _with_others(own[known], item, labels, votes, keys[known])
        rows.append(Annotator(name, int(counts[position[name]]), with_others, with_judge))
    total = votes.sum(axis=1)
    return Annotators(
        column=column,
        annotators=tuple(rows),
        left_out=len(position) - len(largest),
        unnamed=int((annotator[known] < 0).sum()),
        battles=int((total > 1).sum()),
        unanimous=int(((total > 1) & (votes.max(axis=1) == total)).sum()),
        pairwise=found.agree if found else None,
        alpha=found.alpha if found else None,
        contested=_contested(people, votes, known[first], reversed_),
    )


def _with_others(own: np.ndarray, item: IntArray, labels: IntArray, votes: np.ndarray, keys: IntArray) -> Estimate:
    """Agreement of one annotator's votes with everybody else's on the same battles."""
    mine = np.zeros_like(votes)
    np.add.at(mine, (item[own], labels[own]), 1)
    others = (votes - mine)[item[own]]
    total = others.sum(axis=1)
    equal = others[np.arange(len(others)), labels[own]]
    shares = np.divide(equal, total, out=np.zeros(len(total)), where=total > 0)
    columns = np.stack([shares, np.ones(len(total))], axis=1)
    return estimate(columns, keys[own], share, total > 0)


def _contested(people: Votes, votes: np.ndarray, rows: IntArray, reversed_: np.ndarray) -> tuple[ContestedBattle, ...]:
    total = votes.sum(axis=1)
    several = np.flatnonzero(total > 1)
    agreed = (votes * (votes - 1)).sum(axis=1)[several] / (total * (total - 1))[several]
    order = several[np.lexsort((several, -total[several], agreed))]
    agreement_of = dict(zip(several.tolist(), agreed.tolist(), strict=True))
    contested = []
    for i in order[:MAX_CONTESTED].tolist():
        if agreement_of[i] < 1:
            a, b, tie = votes[i].astype(int).tolist()
            outcomes = (b, a, tie) if reversed_[rows[i]] else (a, b, tie)
            contested.append(ContestedBattle(people.ids[rows[i]].as_py(), outcomes, agreement_of[i]))
    return tuple(contested)

"""Several people who judged the same battles: how far each agrees with the others, and on which battles they differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefcli.eda import quality
from prefcli.eda.judges import Estimate, Joined, Votes, agreement, confusion_cells, contents, estimate, swap_labels
from prefcli.eda.measures import IntArray
from prefcli.outcomes import OUTCOMES

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
    """Those with most votes first."""
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
    annotator_names = sorted({name for name in names if name is not None})
    position = {name: i for i, name in enumerate(annotator_names)}
    annotator = np.array([position.get(names[row] or "", -1) for row in known.tolist()])
    votes = np.zeros((len(first), len(OUTCOMES)))
    np.add.at(votes, (item, labels), 1)
    found = quality.agreement(codes[known], labels)
    cells = confusion_cells(people, *judge) if judge else None
    order = sorted(position, key=lambda name: (-int((annotator == position[name]).sum()), name))
    return Annotators(
        column=column,
        annotators=tuple(
            Annotator(
                name,
                int((annotator == position[name]).sum()),
                _with_others(annotator == position[name], item, labels, votes, people.stats.prompt_key[known]),
                None if cells is None or judge is None else _with_judge(name, names, cells, people, judge[1]),
            )
            for name in order
        ),
        unnamed=int((annotator < 0).sum()),
        battles=int((votes.sum(axis=1) > 1).sum()),
        unanimous=int(((votes.sum(axis=1) > 1) & (votes.max(axis=1) == votes.sum(axis=1))).sum()),
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
    return estimate(columns, keys[own], lambda sums: np.asarray(sums[..., 0] / sums[..., 1]), total > 0)


def _with_judge(name: str, names: list[str | None], cells: np.ndarray, people: Votes, joined: Joined) -> Estimate:
    own = np.array([names[row] == name for row in joined.vote.tolist()], dtype=bool)
    return estimate(cells, people.stats.prompt_key[joined.vote], agreement, own)


def _contested(people: Votes, votes: np.ndarray, rows: IntArray, reversed_: np.ndarray) -> tuple[ContestedBattle, ...]:
    total = votes.sum(axis=1)
    several = np.flatnonzero(total > 1)
    share = (votes * (votes - 1)).sum(axis=1)[several] / (total * (total - 1))[several]
    order = several[np.lexsort((several, -total[several], share))]
    share_of = dict(zip(several.tolist(), share.tolist(), strict=True))
    contested = []
    for i in order[:MAX_CONTESTED].tolist():
        if share_of[i] < 1:
            a, b, tie = votes[i].astype(int).tolist()
            outcomes = (b, a, tie) if reversed_[rows[i]] else (a, b, tie)
            contested.append(ContestedBattle(people.ids[rows[i]].as_py(), outcomes, share_of[i]))
    return tuple(contested)

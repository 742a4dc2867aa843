"""Sources of votes: how often the voters of each call a tie, as a base that a model's logits are added to.

Voters differ in how often they tie, and some files cannot hold ties at all. A model that is trained on several sources
learns ``logits = base of the source + what the texts say``: the base is the logarithm of the source's own shares, those
of A and B equal, and where a source holds no tie its battles say nothing about ties. For a prediction the base is
chosen: a source by name, else the sources that can tie, pooled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.errors import InputError, did_you_mean, one_line, plural
from prefcli.outcomes import OUTCOMES, SWAPPED, TIE

Array = NDArray[np.float64]

NEVER = -50.0
"""Base of an outcome that a source cannot hold: its gradient vanishes, and float32 logits keep their precision."""
SMOOTHING = 30.0
"""Battles' worth of the pooled shares that each source's shares are smoothed with: a small source's own battles would
otherwise be predicted by their own outcomes in training, as no others are."""
POOLED_SMOOTHING = 3.0
"""Battles' worth of equal shares that the pooled ones are smoothed with."""
MAX_LISTED = 8
"""Sources that a message names."""


@dataclass(frozen=True)
class Sources:
    """The sources of a run's training battles."""

    names: tuple[str, ...]
    outcomes: Array
    """How many training battles of each had each outcome, soft labels counted by their shares; shape ``[s, 3]``."""

    @staticmethod
    def of(names: Sequence[str], targets: NDArray[np.floating]) -> Sources:
        """From each battle's source and its target probabilities ``[n, 3]``; the largest source comes first."""
        different, codes = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
        outcomes = np.zeros((len(different), len(OUTCOMES)))
        np.add.at(outcomes, codes, np.asarray(targets, dtype=np.float64))
        order = np.argsort(-outcomes.sum(axis=1), kind="stable")
        return Sources(tuple(str(different[i]) for i in order), outcomes[order].round(6))

    def __str__(self) -> str:
        shares = self.outcomes / np.maximum(self.outcomes.sum(axis=1, keepdims=True), metrics.MIN_MASS)
        described = [
            f"{one_line(name, 40)} {plural(round(total), 'battle')}, {f'{share:.0%} ties' if can_tie else 'no ties'}"
            for name, total, share, can_tie in zip(
                self.names, self.outcomes.sum(axis=1), shares[:, TIE], self.can_tie, strict=True
            )
        ]
        more = [f"{len(described) - MAX_LISTED:,} more"] if len(described) > MAX_LISTED else []
        return "; ".join([*described[:MAX_LISTED], *more])

    @functools.cached_property
    def can_tie(self) -> NDArray[np.bool_]:
        """Whether the voters of each source may call a tie; shape ``[s]``.

        Few battles without a tie do not show that they never do, if other sources hold ties.
        """
        holds = self.outcomes[:, TIE] >= metrics.MIN_MASS
        is_small = self.outcomes.sum(axis=1) < metrics.MIN_BATTLES_WITHOUT_TIE
        return np.asarray(holds | (is_small & holds.any()))

    def base(self, name: str | None = None) -> Array:
        """Logarithms of a source's shares, shape ``[3]``; of the sources that can tie where it is not one of the run's.

        A tie has :data:`NEVER` where it cannot happen.
        """
        equal = np.full(len(OUTCOMES), 1 / len(OUTCOMES))
        pooled = _shares(self.outcomes[self.can_tie].sum(axis=0), equal, POOLED_SMOOTHING)
        if name not in self.names:
            return np.log(pooled) if self.can_tie.any() else _without_ties()
        row = self.names.index(name)
        return np.log(_shares(self.outcomes[row], pooled, SMOOTHING)) if self.can_tie[row] else _without_ties()

    def bases(self, names: Sequence[str | None]) -> Array:
        """The base of each battle from the name of its source, shape ``[n, 3]``."""
        by_name = {name: self.base(name) for name in dict.fromkeys(names)}
        return np.array([by_name[name] for name in names]).reshape(len(names), len(OUTCOMES))

    def held_out_bases(self, names: Sequence[str | None], labels: NDArray[np.integer]) -> Array:
        """The base of each held-out battle, as :meth:`bases`.

        A source whose training battles hold no tie is not validated on ties, unless one of its held-out battles is a
        tie after all: then a tie gets :data:`prefcli.metrics.UNSEEN_PROBABILITY`.
        """
        bases = self.bases(names)
        never = bases[:, TIE] == NEVER
        surprising = {names[row] for row in np.flatnonzero(never & (labels == TIE)).tolist()}
        rows = [row for row, name in enumerate(names) if name in surprising and never[row]]
        rare = metrics.UNSEEN_PROBABILITY
        bases[rows] = np.log([(1 - rare) / 2, (1 - rare) / 2, rare])
        return bases

    def never_ties(self, name: str | None) -> bool:
        """Whether a prediction for this source, or for all pooled, knows nothing about ties."""
        return bool(self.base(name)[TIE] == NEVER)

    def check(self, name: str, where: str) -> None:
        """Refuse the name of a source that the run at ``where`` does not have.

        Raises
        ------
        InputError
            Naming those that it has.
        """
        if name not in self.names:
            listed = one_line(", ".join(self.names[:MAX_LISTED]), 200)
            more = f" and {len(self.names) - MAX_LISTED:,} more" if len(self.names) > MAX_LISTED else ""
            raise InputError(
                f"the run has no source {one_line(name, 60)}",
                where=where,
                hint=f"{did_you_mean(name, self.names)} Its sources are {listed}{more}.".strip(),
            )

    def describe(self, name: str | None) -> str:
        """The base of a prediction, in words."""
        share = float(np.exp(self.base(name)[TIE]))
        ties = "no ties" if self.never_ties(name) else f"{share:.1%} ties"
        if name is not None:
            return f"as source {one_line(name, 60)}: {ties}"
        tying = [name for name, can_tie in zip(self.names, self.can_tie, strict=True) if can_tie]
        if len(tying) == 1:
            return f"as the only one that can tie, {one_line(tying[0], 60)}: {ties}"
        return f"as {f'the {len(tying):,} that can tie, pooled' if tying else 'all of them'}: {ties}"

    def to_json(self) -> list[dict[str, Any]]:
        """What a run's ``config.json`` holds."""
        rows = zip(self.names, self.outcomes.tolist(), strict=True)
        return [{"name": name, "outcomes": outcomes} for name, outcomes in rows]

    @staticmethod
    def from_json(saved: Any) -> Sources:
        """What :meth:`to_json` gave.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is damaged.
        """
        names, outcomes = tuple(entry["name"] for entry in saved), np.array([e["outcomes"] for e in saved], np.float64)
        valid = outcomes.shape == (len(names), len(OUTCOMES)) and np.isfinite(outcomes).all() and (outcomes >= 0).all()
        if not names or not valid or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError(f"data.sources is {one_line(saved, 200)}")
        return Sources(names, outcomes)


def _shares(outcomes: Array, prior: Array, weight: float) -> Array:
    """Shares smoothed with ``weight`` battles' worth of the prior, the same for A and B."""
    totals = outcomes + weight * prior
    totals = (totals + totals[list(SWAPPED)]) / 2
    return np.asarray(totals / totals.sum())


def _without_ties() -> Array:
    return np.array([np.log(0.5), np.log(0.5), NEVER])

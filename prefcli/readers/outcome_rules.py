"""What the values of a column mean: ``--outcome`` and the outcomes of the layouts, in the same terms.

``vote: left=a, right=b, same=tie`` names values; ``score: <0=a, >0=b, 0=tie`` and ``score: 1..3=a`` compare numbers,
the first that fits counts; ``score_a,score_b: higher`` compares two columns. Of several columns with values all have to
agree, else the battle is a tie; ``vote_1,vote_2,vote_3 (majority): ...`` takes the most frequent outcome.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefcli.errors import InputError
from prefcli.outcomes import TIE, A, B
from prefcli.readers.cells import Location, excerpt
from prefcli.readers.paths import is_missing

Outcome = tuple[int | None, bool | None]
"""Label (None: unknown), and whether both answers are bad (None: not known)."""

UNKNOWN: Outcome = (None, None)
SKIP: Outcome = (-1, None)
"""The row is no battle."""

TARGETS: dict[str, Outcome] = {
    "a": (A, False),
    "b": (B, False),
    "tie": (TIE, False),
    "both_bad": (TIE, True),
    "unknown": UNKNOWN,
    "skip": SKIP,
}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON = re.compile(rf"(<=|>=|<|>)\s*({_NUMBER})")
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_EXAMPLE = "Write --outcome 'vote: left=a, right=b, same=tie' or --outcome 'score_a,score_b: higher'."


@dataclass(frozen=True)
class Clause:
    """Values that mean the same outcome: one, as text, or the numbers of an interval."""

    text: str
    target: str
    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    """Whether the interval is without its ends."""
    interval: bool = False

    def matches(self, value: str | float) -> bool:
        """Whether a value, as :func:`comparable` gives it, is among them."""
        if self.interval:
            if isinstance(value, str):
                return False
            return self.low < value < self.high if self.open else self.low <= value <= self.high
        return value == comparable(self.text)


@dataclass(frozen=True)
class OutcomeRule:
    """Columns, and what their values mean."""

    columns: tuple[str, ...]
    """Paths, as the user writes them."""
    clauses: tuple[Clause, ...] = ()
    better: str = ""
    """``higher`` or ``lower``, to compare two columns of numbers instead."""
    majority: bool = False

    @staticmethod
    def parse(text: str) -> OutcomeRule:
        """The rule that a text describes.

        Raises
        ------
        InputError
            If it cannot be understood.
        """
        names, colon, values = text.partition(":")
        majority = names.rstrip().endswith("(majority)")
        columns = tuple(name.strip() for name in names.rstrip().removesuffix("(majority)").split(","))
        if not colon or not all(columns) or not values.strip():
            raise InputError(f"--outcome: cannot read {excerpt(text, 60)}", hint=_EXAMPLE)
        if values.strip() in ("higher", "lower"):
            if len(columns) != 2:
                raise InputError(f"--outcome: {values.strip()} needs two columns", hint=_EXAMPLE)
            return OutcomeRule(columns, better=values.strip())
        pieces = re.findall(r'(?:"[^"]*"|[^,])+', values)
        return OutcomeRule(columns, tuple(map(_parse_clause, pieces)), majority=majority)

    @property
    def has_both_bad(self) -> bool:
        """Whether it distinguishes ties between bad answers."""
        return any(clause.target == "both_bad" for clause in self.clauses)

    @property
    def has_ties(self) -> bool:
        """Whether it can give a tie."""
        targets = {clause.target for clause in self.clauses}
        return bool(self.better) or len(self.columns) > 1 or bool(targets & {"tie", "both_bad"})

    def outcomes(self, columns: Sequence[Sequence[Any]], location: Location) -> list[Outcome]:
        """The outcome of each row.

        Parameters
        ----------
        columns:
            For each of the rule's columns its cells.
        location:
            Of the first row.

        Raises
        ------
        InputError
            At the first value that the rule does not name.
        """
        if self.better:
            pairs = zip(*columns, strict=True)
            return [self._compare(first, second, row, location) for row, (first, second) in enumerate(pairs)]
        known: dict[Any, Outcome] = {}
        read: list[list[Outcome]] = []
        for name, cells in zip(self.columns, columns, strict=True):
            of_column = []
            for row, cell in enumerate(cells):
                key = (type(cell), str(cell))
                if key not in known:
                    known[key] = self._outcome(cell, row, name, location)
                of_column.append(known[key])
            read.append(of_column)
        return read[0] if len(read) == 1 else [self._merge(votes) for votes in zip(*read, strict=True)]

    def _outcome(self, cell: Any, row: int, name: str, location: Location) -> Outcome:
        if is_missing(cell) or cell == "":
            return UNKNOWN
        if isinstance(cell, (list, dict)):
            raise location.error(f"expected an outcome, found {excerpt(cell)}", row=row, column=name)
        value = comparable(cell)
        for clause in self.clauses:
            if clause.matches(value):
                return TARGETS[clause.target]
        if isinstance(value, float) and math.isnan(value):
            return UNKNOWN
        raise location.error(
            f"unknown outcome {excerpt(cell)}",
            row=row,
            column=name,
            hint=f"Named are {', '.join(clause.text for clause in self.clauses)}; name others with --outcome.",
        )

    def _merge(self, votes: Sequence[Outcome]) -> Outcome:
        if SKIP in votes:
            return SKIP
        if not self.majority:
            if UNKNOWN in votes:
                return UNKNOWN
            return votes[0] if len({label for label, _ in votes}) == 1 else (TIE, False)
        counts = Counter(label for label, _ in votes if label is not None)
        if not counts:
            return UNKNOWN
        leading = [label for label, count in counts.items() if count == max(counts.values())]
        label = leading[0] if len(leading) == 1 else TIE
        ties = [bad for voted, bad in votes if voted == TIE]
        return label, label == TIE and bool(ties) and all(ties)

    def _compare(self, first: Any, second: Any, row: int, location: Location) -> Outcome:
        values = [number(cell, row, name, location) for cell, name in zip((first, second), self.columns, strict=True)]
        if values[0] is None or values[1] is None:
            return UNKNOWN
        return better(values[0], values[1], self.better == "higher")


def better(first: float, second: float, higher: bool) -> Outcome:
    """The outcome of two scores, or of two ranks where the lower one is better."""
    if first == second:
        return (TIE, False)
    return (A if (first > second) == higher else B, False)


def number(cell: Any, row: int, name: str, location: Location) -> float | None:
    """A cell as a number; None if it is empty.

    Raises
    ------
    InputError
        If it holds something else.
    """
    if is_missing(cell) or cell == "":
        return None
    value = comparable(cell) if isinstance(cell, (str, int, float)) and not isinstance(cell, bool) else ""
    if isinstance(value, str):
        raise location.error(f"expected a number, found {excerpt(cell)}", row=row, column=name)
    return None if math.isnan(value) else value


def comparable(cell: Any) -> str | float:
    """A value as it is compared: numbers as such, so that 1 is 1.0 and "1"; other text without case."""
    if isinstance(cell, bool):
        return str(cell).lower()
    text = str(cell).strip().lower()
    if re.fullmatch(_NUMBER, text) or text == "nan":
        return float(text)
    return text


def _parse_clause(text: str) -> Clause:
    value, equals, target = text.rpartition("=")
    value, target = value.strip(), target.strip().lower()
    if not equals or not value or target not in TARGETS:
        raise InputError(
            f"--outcome: cannot read {excerpt(text.strip())}",
            hint=f"{_EXAMPLE} A value means a, b, tie, both_bad, unknown or skip.",
        )
    if comparison := _COMPARISON.fullmatch(value):
        sign, bound = comparison[1], float(comparison[2])
        low, high = (bound, math.inf) if sign[0] == ">" else (-math.inf, bound)
        return Clause(value, target, low, high, open=len(sign) == 1, interval=True)
    if bounds := _RANGE.fullmatch(value):
        return Clause(value, target, float(bounds[1]), float(bounds[2]), interval=True)
    return Clause(value.strip('"'), target)

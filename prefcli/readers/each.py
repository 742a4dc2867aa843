"""Lists of answers -> pairs: ``--each`` and the layouts that hold several answers to one prompt.

``completions: text=response, model=model, score=overall_score`` names the list and where text, model and score are in
its items; ``rank=`` instead of ``score=`` is better when lower; ``text=.`` is the item itself; ``score=/ratings`` is
another list of the row, parallel to the answers; ``replies=`` are the user's replies to an answer, under which more
answers are found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prefcli.errors import InputError
from prefcli.readers.cells import Location, excerpt, list_names
from prefcli.readers.outcome_rules import Outcome, better, number
from prefcli.readers.paths import cell_at, is_missing

MAX_PAIRS_PER_LIST = 100

_KEYS = ("text", "model", "score", "rank", "replies")
_EXAMPLE = "Write --each 'completions: text=response, model=model, score=overall_score' (or rank=...)."


@dataclass(frozen=True)
class Pair:
    """Two answers of one list."""

    row: int
    context: tuple[Any, ...]
    """Answers and replies between the prompt and these answers, the first one an answer."""
    answers: tuple[Any, Any]
    models: tuple[Any, Any]
    outcome: Outcome
    number: int
    """Counted from 1 within the row."""


@dataclass(frozen=True)
class Each:
    """Which list holds the answers, and where text, model and score are."""

    list_path: str
    fields: tuple[tuple[str, str], ...]

    @staticmethod
    def parse(text: str, *, scored: bool = True) -> Each:
        """The rule that a text describes.

        Parameters
        ----------
        text:
            As ``--each`` takes it.
        scored:
            Whether the answers have to be scored, as those that make battles are.

        Raises
        ------
        InputError
            If it cannot be understood.
        """
        path, colon, rest = text.partition(":")
        fields: dict[str, str] = {}
        for item in rest.split(","):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or not value or key not in _KEYS or key in fields:
                raise InputError(f"--each: cannot read {excerpt(item.strip() or text, 60)}", hint=_EXAMPLE)
            fields[key] = value
        complete = bool(colon and path.strip()) and "text" in fields
        if not scored:
            if not complete or "replies" in fields or {"score", "rank"} <= fields.keys():
                what = "--each needs a list and text=, and no replies=: each row is one prompt with its answers"
                raise InputError(what, hint="Write --each 'completions: text=response, model=model'.")
        elif not complete or ("score" in fields) == ("rank" in fields):
            raise InputError("--each needs a list, text=, and either score= or rank=", hint=_EXAMPLE)
        return Each(path.strip(), tuple(fields.items()))

    @property
    def parallel(self) -> dict[str, str]:
        """Fields that are other lists of the row: name -> path."""
        return {key: path[1:] for key, path in self.fields if path.startswith("/")}

    def pairs(
        self, lists: Sequence[Any], parallel: dict[str, Sequence[Any]], location: Location
    ) -> tuple[list[Pair], int, int]:
        """The pairs of every row, how many rows have none, and how many pairs were left out.

        Raises
        ------
        InputError
            If a row holds no list, or an answer has no score.
        """
        pairs: list[Pair] = []
        rows_without = left_out = 0
        for row, cell in enumerate(lists):
            of_row = self._row(row, cell, {key: column[row] for key, column in parallel.items()}, location)
            first = list(itertools.islice(of_row, MAX_PAIRS_PER_LIST))
            rows_without += not first
            left_out += sum(1 for _ in of_row)
            pairs += first
        return pairs, rows_without, left_out

    def answers(self, row: int, cell: Any, beside: dict[str, Any], location: Location) -> list[dict[str, Any]]:
        """Text, model and score of each answer of a row; ``beside`` are the lists parallel to them.

        Raises
        ------
        InputError
            If the row holds no list, or the lists differ in length.
        """
        self._check_lists(row, cell, beside, location)
        return [self._fields(item, position, beside) for position, item in enumerate(cell)]

    def _check_lists(self, row: int, cell: Any, beside: dict[str, Any], location: Location) -> None:
        if not isinstance(cell, (list, tuple)):
            found = "nothing" if is_missing(cell) else excerpt(cell)
            raise location.error(f"expected a list of answers, found {found}", row=row, column=self.list_path)
        for key, values in beside.items():
            if not isinstance(values, (list, tuple)) or len(values) != len(cell):
                raise location.error(
                    f"expected a list of {len(cell)} values, one for each answer, found {excerpt(values)}",
                    row=row,
                    column=self.parallel[key],
                )

    def _row(self, row: int, cell: Any, beside: dict[str, Any], location: Location) -> Iterator[Pair]:
        self._check_lists(row, cell, beside, location)
        numbers = itertools.count(1)
        for context, items in self._lists(cell, ()):
            scored = [self._fields(item, position, beside) for position, item in enumerate(items)]
            scores = [self._score(fields, row, items, location) for fields in scored]
            for (a, score_a), (b, score_b) in itertools.combinations(zip(scored, scores, strict=True), 2):
                if score_a is None or score_b is None:
                    continue
                yield Pair(
                    row,
                    context,
                    (a["text"], b["text"]),
                    (a.get("model"), b.get("model")),
                    better(score_a, score_b, "score" in a),
                    next(numbers),
                )

    def _lists(self, items: Sequence[Any], context: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Sequence[Any]]]:
        """The list, and with ``replies`` the lists below it, each with what was said before."""
        fields = dict(self.fields)
        text, replies = fields["text"].split("."), fields.get("replies", "").split(".")
        pending = [(context, items)]
        while pending:
            context, items = pending.pop()
            yield context, items
            for item in items if "replies" in fields else ():
                for reply in cell_at(item, replies) or ():
                    if below := cell_at(reply, replies):
                        pending.append(((*context, cell_at(item, text), cell_at(reply, text)), below))

    def _fields(self, item: Any, position: int, beside: dict[str, Any]) -> dict[str, Any]:
        return {
            key: beside[key][position] if key in beside else item if path == "." else value_at(item, path)
            for key, path in self.fields
        }

    def _score(self, fields: dict[str, Any], row: int, items: Sequence[Any], location: Location) -> float | None:
        name = "score" if "score" in fields else "rank"
        score = number(fields[name], row, f"{self.list_path}, {name}", location)
        if score is None and len(items) > 1 and "replies" not in fields:
            keys = list_names(list(items[0])) if isinstance(items[0], dict) else "no names"
            raise location.error(
                f"an answer has no {name}",
                row=row,
                column=self.list_path,
                hint=f"Every answer of a list needs one. They have {keys}; name others with --each.",
            )
        return score


def value_at(item: Any, path: str) -> Any:
    """The value in an item of a list; None if it is not there, or the item is text."""
    try:
        return cell_at(item, path.split("."))
    except (ValueError, RecursionError):
        return None

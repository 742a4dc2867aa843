"""Outcomes under prefcli's own names: ``winner`` in words, Kaggle's three columns, soft labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS, TIE, WINNER_COLUMNS, A, B
from prefcli.readers.cells import Location, excerpt
from prefcli.readers.outcome_rules import TARGETS, UNKNOWN, Outcome
from prefcli.readers.paths import as_text, is_missing

MIN_SURE, MAX_DOUBTED = 0.9, 0.05
"""Soft labels of which one is at least the first, and that of the stated outcome at most the second, contradict it."""

_words = str.split
_NAMES = ("model", "response", "answer", "assistant", "output", "completion", "option")
_A = "a left [[a]] a>b a>>b b<a b<<a [[a>b]] [[a>>b]]"
_B = "b right [[b]] b>a b>>a a<b a<<b [[b>a]] [[b>>a]]"
_TIES = "tie tied draw equal same [[c]] a=b b=a [[a=b]] both_good tie_(inconsistent) tie_(both_good) tie_(bothgood)"
WINNERS: dict[str, Outcome] = {
    **dict.fromkeys([*(f"{name}_a" for name in _NAMES), *_words(_A)], (A, False)),
    **dict.fromkeys([*(f"{name}_b" for name in _NAMES), *_words(_B)], (B, False)),
    **dict.fromkeys(_words(_TIES), (TIE, False)),
    **dict.fromkeys(_words("both_bad bothbad tie_(bothbad) tie_(both_bad)"), (TIE, True)),
}
"""Spellings of a winner, as :func:`spelling` gives them."""

_EXPECTED = "Expected model_a, model_b, tie, both_bad (or a, b, draw, left, A>B), a model's name, or nothing."


def spelling(text: str) -> str:
    """A word for a winner without case, and with underscores for white space and hyphens."""
    text = re.sub(r"[\s\-]+", "_", text.strip().lower())
    return re.sub(r"_?([<>=]+)_?", r"\1", text)


def winners(
    cells: Sequence[Any],
    models: tuple[Sequence[str | None], Sequence[str | None]],
    own: Mapping[str, Outcome],
    column: str,
    location: Location,
) -> list[Outcome]:
    """A column ``winner`` in words; empty means unknown.

    Parameters
    ----------
    cells, models:
        The column, and the names of the two models, where they are known.
    own:
        More spellings: the names of the answers' columns in this file.
    column, location:
        The column's name in the file, and the place of its first row.

    Raises
    ------
    InputError
        If a word is unknown, or could be the name of a model as well as a side.
    """
    outcomes = []
    for row, (cell, *names) in enumerate(zip(cells, *models, strict=True)):
        if is_missing(cell) or cell == "":
            outcomes.append(UNKNOWN)
            continue
        text = as_text(cell)
        by_word = own.get(spelling(text)) or WINNERS.get(spelling(text))
        by_name = _model(text, names)
        if by_name is not None and by_word is not None and by_name[0] != by_word[0]:
            if not all(spelling(name or "") in WINNERS for name in names):
                raise location.error(
                    f"winner {excerpt(text)} is a side and also the name of a model",
                    row=row,
                    column=column,
                    hint="Say what it means with --outcome 'NAME: ...=a, ...=b', or leave the names out: "
                    "--columns model_a=,model_b=",
                )
            by_word = None
        outcome = by_word or by_name
        if outcome is None:
            rule = f"--outcome '{column}: {_to_complete(cells, own)}'"
            hint = f"{_EXPECTED} Other words: {rule}; not read: --columns {column}="
            raise location.error(f"unknown winner {excerpt(text)}", row=row, column=column, hint=hint)
        outcomes.append(outcome)
    return outcomes


MAX_WORDS = 6


def _to_complete(cells: Sequence[object], own: Mapping[str, Outcome]) -> str:
    """A rule of a column's words: the unknown ones, to be completed by what each means, and the others with it.

    A rule replaces the words that are known without one, so it must have them all.
    """
    texts = dict.fromkeys(as_text(cell)[:40] for cell in cells if not is_missing(cell) and cell != "")
    known = {text: own.get(spelling(text)) or WINNERS.get(spelling(text)) for text in texts}
    target = {outcome: name for name, outcome in TARGETS.items()}
    words = [f"{text}={target[outcome] if outcome else 'a|b|tie'}" for text, outcome in known.items()]
    words.sort(key=lambda word: not word.endswith("=a|b|tie"))
    return ", ".join(words[:MAX_WORDS]) + (", ..." if len(words) > MAX_WORDS else "")


def _model(text: str, names: Sequence[str | None]) -> Outcome | None:
    """Which of the two models the text names; None if neither, or both have that name."""
    named = [name is not None and name.strip().casefold() == text.strip().casefold() for name in names]
    return None if named[0] == named[1] else (A if named[0] else B, False)


_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def flags(cells: Sequence[str | None]) -> list[bool | None] | None:
    """A column of truth values, None where it is empty; None if it holds something else."""
    known = {cell: _FLAGS.get(cell.lower()) for cell in set(cells) if cell}
    if None in known.values():
        return None
    return [bool(known[cell]) if cell else None for cell in cells]


def one_hot_labels(columns: Sequence[Sequence[str | None]], location: Location) -> list[int | None]:
    """Kaggle's three winner columns -> label; all three empty means unknown.

    Raises
    ------
    InputError
        If a row does not have exactly one winner.
    """
    labels: list[int | None] = []
    for row, cells in enumerate(zip(*columns, strict=True)):
        if not any(cells):
            labels.append(None)
            continue
        flags = []
        for name, cell in zip(WINNER_COLUMNS, cells, strict=True):
            if (flag := _FLAGS.get((cell or "").lower())) is None:
                raise location.error(
                    f"expected 0 or 1, found {excerpt(cell or '')}",
                    row=row,
                    column=name,
                    hint=f"For probabilities as labels name the columns {', '.join(SOFT_LABEL_COLUMNS)}.",
                )
            flags.append(flag)
        if sum(flags) != 1:
            count = f"{sum(flags)} winners" if any(flags) else "no winner"
            raise location.error(
                f"{count}: {', '.join(f'{n}={c}' for n, c in zip(WINNER_COLUMNS, cells, strict=True))}",
                row=row,
                hint="Exactly one of the three winner columns must be 1.",
            )
        labels.append(flags.index(1))
    return labels


def soft_labels(columns: Sequence[Sequence[str | None]], location: Location) -> dict[str, pa.Array]:
    """Three columns of probabilities as float32; a row has all of them, summing to 1 within 1e-3, or none.

    Raises
    ------
    InputError
        If a row does not.
    """
    for row, cells in enumerate(zip(*columns, strict=True)):
        if not any(cells):
            continue
        total = 0.0
        for name, cell in zip(SOFT_LABEL_COLUMNS, cells, strict=True):
            try:
                value = float(cell or "nan")
            except ValueError:
                value = math.nan
            if not 0 <= value <= 1:
                raise location.error(
                    f"expected a probability, found {excerpt(cell) if cell else 'nothing'}", row=row, column=name
                )
            total += value
        if abs(total - 1) > 1e-3:
            raise location.error(
                f"{' + '.join(SOFT_LABEL_COLUMNS)} is {total:g}, not 1",
                row=row,
                hint="A row's soft labels are probabilities.",
            )
    return {
        name: pa.array([float(cell) if cell else None for cell in column], pa.float32())
        for name, column in zip(SOFT_LABEL_COLUMNS, columns, strict=True)
    }


def argmax_labels(soft: Mapping[str, pa.Array]) -> list[int | None]:
    """The most probable outcome of each row, None if two are equally probable."""
    return [_argmax(row) for row in zip(*(soft[name].to_pylist() for name in SOFT_LABEL_COLUMNS), strict=True)]


def _argmax(row: tuple[float | None, ...]) -> int | None:
    values = [value for value in row if value is not None]
    return row.index(max(values)) if values and values.count(max(values)) == 1 else None


def check_agreement(readings: Mapping[str, Sequence[int | None]], location: Location) -> None:
    """Refuse rows in which two columns name different outcomes.

    Parameters
    ----------
    readings:
        Name of the column -> labels.
    location:
        Of the first row.
    """
    (first, labels), *others = readings.items()
    for other, other_labels in others:
        for row, (one, two) in enumerate(zip(labels, other_labels, strict=True)):
            if one is not None and two is not None and one != two:
                raise location.error(
                    f"{first} says {OUTCOMES[one]}, {other} says {OUTCOMES[two]}",
                    row=row,
                    hint=f"Leave one of them out: --columns {'=,'.join(other.split(','))}= reads {first} alone.",
                )


def check_soft_labels(labels: Sequence[int | None], soft: Mapping[str, pa.Array], location: Location) -> None:
    """Refuse rows whose soft labels are sure of another outcome than the stated one."""
    rows = zip(labels, *(soft[name].to_pylist() for name in SOFT_LABEL_COLUMNS), strict=True)
    for row, (label, *probabilities) in enumerate(rows):
        if label is None or None in probabilities:
            continue
        if probabilities[label] <= MAX_DOUBTED + 1e-6 and max(probabilities) >= MIN_SURE - 1e-6:
            raise location.error(
                f"the outcome is {OUTCOMES[label]}, but {SOFT_LABEL_COLUMNS[label]} is {probabilities[label]:g}",
                row=row,
                column=SOFT_LABEL_COLUMNS[label],
                hint="Are the columns of the soft labels swapped? --columns p_a=,p_b=,p_tie= leaves them out.",
            )

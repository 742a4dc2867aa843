"""Which column holds the outcome: read if that is certain, else refused with the likely readings."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from prefcli.battles import describe_battle
from prefcli.errors import InputError
from prefcli.outcomes import SOFT_LABEL_COLUMNS, TIE, WINNER_COLUMNS, A, B
from prefcli.readers.cells import RawBatch, excerpt, list_names, missing_columns
from prefcli.readers.engine import Mapped
from prefcli.readers.file_columns import MAX_COLUMNS, FileColumns
from prefcli.readers.outcome_rules import UNKNOWN, Outcome, OutcomeRule, comparable
from prefcli.readers.outcomes_in_columns import WINNERS, spelling
from prefcli.readers.paths import ColumnPath, as_text, is_missing, normalise

_NAMES_OF_OUTCOMES = """
    winner label labels preferred preference choice vote verdict judgment judgement better outcome result
    preferred_response better_response preferred_answer better_answer human_preference
"""
OUTCOME_NAMES = frozenset(_NAMES_OF_OUTCOMES.split())
"""Names of a column that is read as the outcome if it holds words for a winner, and nothing else does."""

MIN_ROWS = 20
"""From which on it is noticed that one side always wins."""
MAX_VALUES = 6
"""That are spelled out in a hint."""
_OUTCOME_WORDS = re.compile(
    r"(^|_)(winner|win|chosen|labels?|prefers?|preferred|preferences?|choice|votes?|verdict|judge?ments?|better|safer|best|"
    r"outcome|results?|"
    r"ratings?|scores?|ranks?|ranking|annotator_?\d*|annotations?|selected|\w*vote)($|_)"
)


def find_outcome(mapped: Mapped, columns: FileColumns, needed: bool) -> tuple[Mapped, tuple[str, ...]]:
    """Complete how a file is read by its outcome.

    Parameters
    ----------
    mapped, columns:
        How the file is read so far; its columns.
    needed:
        Whether a file is refused whose outcome is not understood.

    Returns
    -------
    How it is read, and questions about columns that are not read although they look like an outcome.

    Raises
    ------
    InputError
        If what the outcome means would have to be guessed.
    """
    rule = columns.source.outcome or mapped.layout.outcome
    if rule:
        without_outcome, mapped = mapped, _with_rule(mapped, OutcomeRule.parse(rule), columns)
        if not columns.source.outcome:
            _check_rows_of_one_layout(mapped, OutcomeRule.parse(rule), columns)
            if needed and _has_another_scale(mapped, columns):
                raise _unclear(without_outcome, [mapped.rule_places[0][0].column], columns)
    elif not mapped.has_known_winner:
        mapped = _with_words(mapped, columns, needed)
    if columns.source.outcome or mapped.rule:
        return mapped, ()
    not_read = [name for name in columns.names if name not in mapped.columns]
    if mapped.has_known_winner:
        in_words = [name for name in not_read[:MAX_COLUMNS] if _are_words(name, mapped, columns)]
        return mapped, tuple(f"{name} is not read: the answers' columns say who won" for name in in_words)
    said = [place.column for name in ("winner", "label") for place in columns.given.get(name, ())]
    suspects = [name for name in dict.fromkeys([*said, *_suspects(not_read, columns)]) if name in not_read]
    if not mapped.has_outcome and suspects and needed:
        raise _unclear(mapped, suspects, columns)
    if mapped.has_outcome:
        return mapped, tuple(f"{name} is not read: another column holds the outcome" for name in suspects)
    return mapped, tuple(f"is {name} the outcome? {_how_to_read(name, columns)}" for name in suspects)


def _check_rows_of_one_layout(mapped: Mapped, rule: OutcomeRule, columns: FileColumns) -> None:
    """Refuse a file with first rows that have their outcome in another column than the layout's."""
    own = [columns.cells(places) for places in mapped.rule_places]
    for name in columns.free:
        if normalise(name) not in OUTCOME_NAMES or name in mapped.columns:
            continue
        for row, (other, *cells) in enumerate(zip(columns.column(name), *own, strict=True), start=1):
            if not is_missing(other) and other != "" and all(is_missing(cell) or cell == "" for cell in cells):
                raise InputError(
                    f"the outcome may be in two columns: {list_names([*rule.columns, name])}",
                    where=f"{columns.where}, row {row}",
                    hint=f"Are these rows of two layouts? If {name} is no outcome: --columns {name}=",
                )


def _has_another_scale(mapped: Mapped, columns: FileColumns) -> bool:
    """Whether one side wins all of many battles by several whole numbers, such as 0 and 1 where 1 and 2 are meant."""
    rule = mapped.rule
    if rule is None or len(rule.columns) > 1:
        return False
    cells = columns.cells(mapped.rule_places[0])
    numbers = {comparable(cell) for cell in cells if not is_missing(cell)}
    if len(cells) < MIN_ROWS or len(numbers) < 2 or not all(isinstance(n, float) and n.is_integer() for n in numbers):
        return False
    try:
        outcomes = rule.outcomes([cells], columns.location)
    except InputError:  # refused with its row when it is read
        return False
    return len({label for label, _ in outcomes} & {A, B}) == 1


def _with_rule(mapped: Mapped, rule: OutcomeRule, columns: FileColumns) -> Mapped:
    if mapped.has_known_winner:
        what = f"--outcome cannot be used with {mapped.layout.name}"
        raise columns.error(what, "There the columns or scores of the answers say which one won.")
    places = {name: found for name, found in mapped.places.items() if name not in ("winner", "label", *WINNER_COLUMNS)}
    rule_places = tuple(columns.places(path, "--outcome") for path in rule.columns)
    return dataclasses.replace(mapped, places=places, rule=rule, rule_places=rule_places)


def _with_words(mapped: Mapped, columns: FileColumns, needed: bool) -> Mapped:
    """With the column that holds words for a winner, if one has a known name; numbers are never guessed."""
    places = {name: found for name, found in mapped.places.items() if name != "label"}
    soft = [name for name in SOFT_LABEL_COLUMNS if name in places]
    if 0 < len(soft) < len(SOFT_LABEL_COLUMNS):
        if needed and not any(name in places for name in ("winner", *WINNER_COLUMNS)):
            missing = [name for name in SOFT_LABEL_COLUMNS if name not in places]
            hint = f"Soft labels are all three; or leave them out: --columns {','.join(f'{name}=' for name in soft)}"
            raise columns.error(missing_columns(missing, columns.all_names), hint)
        places = {name: found for name, found in places.items() if name not in SOFT_LABEL_COLUMNS}
    if "winner" in places:
        values = columns.values(places["winner"])
        if values and all(isinstance(comparable(value), float) for value in values):
            del places["winner"]
    mapped = dataclasses.replace(mapped, places=places)
    label = columns.given.get("label")
    names = [p.column for p in label] if label else [n for n in columns.free if normalise(n) in OUTCOME_NAMES]
    names = [name for name in names if name not in mapped.columns]
    in_words = [name for name in names if _are_words(name, mapped, columns)]
    if mapped.has_outcome:  # these have to say the same, and so have columns that later rows fill
        in_words += [name for name in names if _is_empty(name, columns)]
        return dataclasses.replace(mapped, more_winners=tuple((ColumnPath(name),) for name in in_words))
    if len(in_words) > 1:
        what = f"several columns hold words for a winner: {list_names(in_words)}"
        raise columns.error(what, f"Choose one: --columns winner={in_words[0]}")
    if not in_words:
        return mapped
    return dataclasses.replace(mapped, places={**places, "winner": (ColumnPath(in_words[0]),)})


def _are_words(name: str, mapped: Mapped, columns: FileColumns) -> bool:
    words = [spelling(str(value)) for value in columns.values((ColumnPath(name),))]
    return bool(words) and all(word in WINNERS or word in mapped.own_spellings for word in words)


def _is_empty(name: str, columns: FileColumns) -> bool:
    return all(is_missing(cell) or cell == "" for cell in columns.column(name))


def _suspects(names: Sequence[str], columns: FileColumns) -> list[str]:
    """Columns that look like an outcome: by name, or by their values."""
    suspects = []
    for name in names[:MAX_COLUMNS]:
        words = [spelling(str(value)) for value in columns.values((ColumnPath(name),))]
        parts = re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", name).lower()
        if _OUTCOME_WORDS.search(parts) or (words and all(word in WINNERS for word in words)):
            suspects.append(name)
    return suspects


def _unclear(mapped: Mapped, suspects: Sequence[str], columns: FileColumns) -> InputError:
    """The refusal of a file whose outcome would have to be guessed, with its first battle in words."""
    name = suspects[0]
    values = columns.values((ColumnPath(name),))
    what = f"what {name} means is not clear" + (f": it holds {_list_values(values)}" if values else "")
    readings, unmapped = _readings(name, values), f"{name}="
    for first, second in columns.pairs(("score", "rating", "reward", "votes", "likes", "rank")):
        if first in suspects and second in suspects:
            what = f"what {first} and {second} mean is not clear"
            readings, unmapped = [f"{first},{second}: higher", f"{first},{second}: lower"], f"{first}=,{second}="
    how = " or ".join(f"--outcome '{reading}'" for reading in readings or [_in_words(name, columns)])
    hint = f"Say it with {how}; or {name} is no outcome: --columns {unmapped}"
    where = f"{columns.where}, column {name}"
    return InputError(what + _first_battle(mapped, readings, columns), where=where, hint=hint)


def _first_battle(mapped: Mapped, readings: Sequence[str], columns: FileColumns) -> str:
    """The first battle in words, and who would win by each reading."""
    try:
        tried = [
            _convert_first(_with_rule(mapped, OutcomeRule.parse(reading), columns), columns) for reading in readings
        ]
        text = describe_battle(tried[0] if tried else _convert_first(mapped, columns), outcome=False)
    except (InputError, IndexError):  # it is not even a battle
        return ""
    said = [f"by {reading!r} {_winner(batch)}" for reading, batch in zip(readings, tried, strict=True)]
    return "; ".join(["", f"the first battle: {text}", *([", ".join(said)] if said else [])])


def _convert_first(mapped: Mapped, columns: FileColumns) -> pa.RecordBatch:
    raw = columns.peek(mapped.columns)
    first = RawBatch({name: column[:1] for name, column in raw.columns.items()}, min(1, raw.num_rows))
    return mapped.convert(first, columns.location)[0]


def _winner(batch: pa.RecordBatch) -> str:
    label = batch.column("label")[0].as_py()
    return "no outcome" if label is None else ("A wins", "B wins", "a tie")[label]


def _list_values(values: Sequence[Any]) -> str:
    shown = ", ".join(excerpt(value, 20).strip("'") for value in values[:5])
    return shown + (", ..." if len(values) > 5 else "")


def _readings(name: str, values: Sequence[Any]) -> list[str]:
    """The two likely meanings of a column of numbers."""
    if values and all(str(value).lower() in ("true", "false") for value in values):
        return [f"{name}: true=a, false=b", f"{name}: false=a, true=b"]
    present = {number for value in values if isinstance(number := comparable(value), float)}
    if not present or not all(isinstance(comparable(value), float) for value in values):
        return []
    for choices, first, second in (
        ({0.0, 1.0}, "1=a, 0=b", "0=a, 1=b"),
        ({1.0, 2.0}, "1=a, 2=b", "2=a, 1=b"),
        ({-1.0, 1.0}, "1=a, -1=b", "-1=a, 1=b"),
        ({-1.0, 0.0, 1.0}, "1=a, -1=b, 0=tie", "-1=a, 1=b, 0=tie"),
        ({0.0, 1.0, 2.0}, "0=a, 1=b, 2=tie", "1=a, 2=b, 0=tie"),
        ({1.0, 2.0, 3.0}, "1=a, 2=b, 3=tie", "1=a, 3=b, 2=tie"),
    ):
        if present <= choices:
            return [f"{name}: {first}", f"{name}: {second}"]
    low, high = min(present), max(present)
    middle = 0.0 if low < 0 < high else 0.5 if low >= 0 and high <= 1 else (low + high) / 2
    bound = f"{middle:g}"
    return [f"{name}: >{bound}=a, <{bound}=b, {bound}=tie", f"{name}: <{bound}=a, >{bound}=b, {bound}=tie"]


def _in_words(name: str, columns: FileColumns) -> str:
    """A rule for the values of a column; of those that are no words for a winner the user has to say the meaning."""
    steps = _steps_into(next((cell for cell in columns.column(name) if not is_missing(cell)), None))
    place = ColumnPath(name, steps)
    targets: dict[Outcome, str] = {(A, False): "a", (B, False): "b", (TIE, False): "tie", (TIE, True): "both_bad"}
    clauses = []
    for value in columns.values((place,))[:MAX_VALUES]:
        target = targets.get(WINNERS.get(spelling(str(value)), UNKNOWN), "...")
        clauses.append(f"{json.dumps(value, ensure_ascii=False) if ',' in str(value) else as_text(value)}={target}")
    return f"{place}: {', '.join(clauses) or '...=a, ...=b, ...=tie'}"


def _steps_into(cell: Any) -> tuple[str, ...]:
    """The way to the first value inside of lists and objects."""
    if isinstance(cell, list) and cell:
        return ("0", *_steps_into(cell[0]))
    if isinstance(cell, dict) and cell:
        key = "value" if "value" in cell else next(iter(cell))
        return (key, *_steps_into(cell[key]))
    return ()


def _how_to_read(name: str, columns: FileColumns) -> str:
    readings = _readings(name, columns.values((ColumnPath(name),))) or [_in_words(name, columns)]
    return f"--outcome '{readings[0]}' reads it, --columns {name}= says no"

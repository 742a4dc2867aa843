"""Rows with a prompt and two answers: Kaggle's two layouts, prefcli's own Parquet, and plain tables of any names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS, TIE, WINNER_COLUMNS, A, B
from prefcli.readers.cells import (
    Place,
    RawBatch,
    excerpt,
    lists_of_turns,
    soft_labels,
    strings,
    texts,
    turn_lists,
)
from prefcli.readers.layouts import Converted, Layout, converted, identifiers, models

WINNERS: dict[str, tuple[int, bool]] = {
    **dict.fromkeys(("model_a", "response_a", "a"), (A, False)),
    **dict.fromkeys(("model_b", "response_b", "b"), (B, False)),
    **dict.fromkeys(("tie", "draw"), (TIE, False)),
    **dict.fromkeys(("both_bad", "bothbad", "both bad", "tie (bothbad)", "tie (both bad)"), (TIE, True)),
}
"""Spellings of a winner (lower case) -> label, and whether the voter found both answers bad."""


def named_winners(raw: RawBatch, place: Place) -> dict[str, pa.Array]:
    """A ``winner`` column in words -> ``label`` and ``both_bad``; empty means unknown.

    The name of one of the two models is understood as well.
    """
    cells = texts(raw, "winner", place)
    names = [texts(raw, name, place) if name in raw else [None] * len(cells) for name in ("model_a", "model_b")]
    labels: list[int | None] = []
    bad: list[bool | None] = []
    for row, (cell, model_a, model_b) in enumerate(zip(cells, *names, strict=True)):
        if cell is None:
            labels.append(None)
            bad.append(None)
            continue
        found = WINNERS.get(cell.strip().lower())
        if found is None and model_a != model_b and cell in (model_a, model_b):
            found = (A if cell == model_a else B, False)
        if found is None:
            raise place.error(
                f"unknown winner {excerpt(cell)}",
                row=row,
                column="winner",
                hint="Expected model_a, model_b, tie, both_bad (or a, b, draw), a model's name, or nothing.",
            )
        labels.append(found[0])
        bad.append(found[1])
    return {"label": pa.array(labels, pa.int8()), "both_bad": pa.array(bad, pa.bool_())}


_ZERO_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "False": 0, "True": 1}


def _one_hot_winners(raw: RawBatch, place: Place) -> pa.Array:
    """Kaggle's three winner columns -> label; all three empty means unknown."""
    if missing := [name for name in WINNER_COLUMNS if name not in raw]:
        raise place.error(
            f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            hint="A labelled file has all three winner columns, an unlabelled one has none.",
        )
    cells = [strings(raw, name, place).to_pylist() for name in WINNER_COLUMNS]
    labels: list[int | None] = []
    for row, triple in enumerate(zip(*cells, strict=True)):
        if not any(triple):
            labels.append(None)
            continue
        values = [_ZERO_ONE.get(cell or "") for cell in triple]
        if None in values:
            column = values.index(None)
            raise place.error(
                f"expected 0 or 1, found {excerpt(triple[column] or '')}",
                row=row,
                column=WINNER_COLUMNS[column],
                hint=f"For probabilities as labels name the columns {', '.join(SOFT_LABEL_COLUMNS)}.",
            )
        if sum(values) != 1:  # type: ignore[arg-type]
            found = "no winner" if not any(values) else f"{sum(values)} winners"  # type: ignore[arg-type]
            raise place.error(
                f"{found}: {', '.join(f'{n}={c}' for n, c in zip(WINNER_COLUMNS, triple, strict=True))}",
                row=row,
                hint="Exactly one of the three winner columns must be 1.",
            )
        labels.append(values.index(1))
    return pa.array(labels, pa.int8())


def _label_numbers(raw: RawBatch, place: Place) -> pa.Array:
    """A ``label`` column: 0, 1, 2 or nothing."""
    cells = texts(raw, "label", place)
    known = {str(i): i for i in range(len(OUTCOMES))}
    for row, cell in enumerate(cells):
        if cell is not None and cell not in known:
            raise place.error(f"expected 0, 1 or 2, found {excerpt(cell)}", row=row, column="label")
    return pa.array([None if cell is None else known[cell] for cell in cells], pa.int8())


def _outcomes(raw: RawBatch, place: Place) -> dict[str, pa.Array]:
    """Labels, soft labels and ``both_bad`` from whichever columns tell them.

    Where only soft labels are given, the label is the most probable outcome, unknown where two are equally so.
    """
    columns: dict[str, pa.Array] = {}
    if "winner" in raw:
        columns |= named_winners(raw, place)
    elif any(name in raw for name in WINNER_COLUMNS):
        columns["label"] = _one_hot_winners(raw, place)
    elif "label" in raw:
        columns["label"] = _label_numbers(raw, place)
    if all(name in raw for name in SOFT_LABEL_COLUMNS):
        soft = soft_labels(raw, SOFT_LABEL_COLUMNS, place)
        columns |= soft
        if "label" not in columns:
            rows = zip(*(column.to_pylist() for column in soft.values()), strict=True)
            columns["label"] = pa.array([_most_probable(row) for row in rows], pa.int8())
    if "both_bad" in raw and pa.types.is_boolean(getattr(raw.columns["both_bad"], "type", pa.null())):
        columns["both_bad"] = raw.columns["both_bad"]
    return columns


def _most_probable(row: tuple[float | None, ...]) -> int | None:
    values = [value for value in row if value is not None]
    return row.index(max(values)) if values and values.count(max(values)) == 1 else None


def _convert_kaggle(raw: RawBatch, place: Place) -> Converted:
    columns: dict[str, Any] = {"id": identifiers(raw, place, "id")}
    surrogates = 0
    for name in TEXT_FIELDS:
        columns[name], repaired = turn_lists(raw, name, place)
        surrogates += repaired
    return converted({**columns, **models(raw, place), **_outcomes(raw, place)}, surrogates)


def _convert_generic(raw: RawBatch, place: Place) -> Converted:
    columns: dict[str, Any] = {"id": identifiers(raw, place, "id")}
    surrogates = 0
    for name in TEXT_FIELDS:
        columns[name], repaired = _plain_turns(raw, name, place)
        surrogates += repaired
    return converted({**columns, **models(raw, place), **_outcomes(raw, place)}, surrogates)


def _plain_turns(raw: RawBatch, name: str, place: Place) -> tuple[pa.Array, int]:
    """Plain text as a single turn; lists of turns as they are."""
    if not raw.is_nested(name):
        column = raw.columns[name]
        cells = column if isinstance(column, list) else strings(raw, name, place).to_pylist()
        return lists_of_turns([[cell] for cell in cells], name, place)
    if isinstance(raw.columns[name], list):
        rows = [cell if isinstance(cell, list) else [cell] for cell in raw.columns[name]]
        return lists_of_turns(rows, name, place)
    return turn_lists(raw, name, place)


def looks_like_turns(raw: RawBatch, place: Place) -> bool:
    """Whether the first prompt is written as a list of turns (Kaggle's layout) rather than as plain text."""
    if raw.is_nested("prompt"):
        return True
    cell = strings(raw.slice_first(), "prompt", place).to_pylist()[0] or ""
    return cell.lstrip().startswith("[")


_OUTCOME_COLUMNS = ("model_a", "model_b", *WINNER_COLUMNS, "label", *SOFT_LABEL_COLUMNS, "both_bad")

KAGGLE = Layout(
    name="kaggle",
    family="rows",
    summary="Kaggle's train.csv and test.csv: turns as JSON lists, winners one-hot",
    needs=("id", *TEXT_FIELDS),
    may_have=_OUTCOME_COLUMNS,
    convert=_convert_kaggle,
    without=("winner",),
    own_ids=True,
)

GENERIC = Layout(
    name="generic",
    family="rows",
    summary="prompt, response_a, response_b as plain text; outcome as winner, one-hot, label, or p_a, p_b, p_tie",
    needs=TEXT_FIELDS,
    may_have=("id", "winner", *_OUTCOME_COLUMNS),
    convert=_convert_generic,
    own_ids=True,
)

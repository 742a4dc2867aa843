"""Rows with a prompt and two answers: Kaggle's two layouts, prefcli's own Parquet, and generic tables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pyarrow as pa

from prefcli.battles import TEXT_FIELDS
from prefcli.outcomes import OUTCOMES, SOFT_LABEL_COLUMNS, TIE, WINNER_COLUMNS, A, B
from prefcli.readers.cells import (
    Location,
    RawBatch,
    excerpt,
    missing_columns,
    string_column,
    string_list,
    turns_array,
    turns_column,
)
from prefcli.readers.layouts import CountedBatch, Layout, build_batch, id_column, model_columns

_MODEL_COLUMNS = ("model_a", "model_b")

WINNERS: dict[str, tuple[int, bool]] = {
    **dict.fromkeys(("model_a", "response_a", "a"), (A, False)),
    **dict.fromkeys(("model_b", "response_b", "b"), (B, False)),
    **dict.fromkeys(("tie", "draw"), (TIE, False)),
    **dict.fromkeys(("both_bad", "bothbad", "both bad", "tie (bothbad)", "tie (both bad)"), (TIE, True)),
}
"""Spellings of a winner (lower case) -> label, and whether the voter found both answers bad."""


def winner_column(raw: RawBatch, location: Location) -> dict[str, pa.Array]:
    """A ``winner`` column in words -> ``label`` and ``both_bad``; empty means unknown.

    The name of one of the two models is also accepted.
    """
    cells = string_list(raw, "winner", location)
    models = [string_list(raw, name, location) if name in raw else [None] * len(cells) for name in _MODEL_COLUMNS]
    winners: list[tuple[int | None, bool | None]] = []
    for row, (cell, model_a, model_b) in enumerate(zip(cells, *models, strict=True)):
        if cell is None:
            winners.append((None, None))
            continue
        winner = WINNERS.get(cell.strip().lower())
        if winner is None and model_a != model_b and cell in (model_a, model_b):
            winner = (A if cell == model_a else B, False)
        if winner is None:
            raise location.error(
                f"unknown winner {excerpt(cell)}",
                row=row,
                column="winner",
                hint="Expected model_a, model_b, tie, both_bad (or a, b, draw), a model's name, or nothing.",
            )
        winners.append(winner)
    return {
        "label": pa.array([label for label, _ in winners], pa.int8()),
        "both_bad": pa.array([both_bad for _, both_bad in winners], pa.bool_()),
    }


_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "False": 0, "True": 1}


def _one_hot_labels(raw: RawBatch, location: Location) -> pa.Array:
    """Kaggle's three winner columns -> label; all three empty means unknown."""
    if missing := [name for name in WINNER_COLUMNS if name not in raw]:
        raise location.error(
            missing_columns(missing), hint="A labelled file has all three winner columns, an unlabelled one has none."
        )
    columns = [string_column(raw, name, location).to_pylist() for name in WINNER_COLUMNS]
    labels: list[int | None] = []
    for row, cells in enumerate(zip(*columns, strict=True)):
        if not any(cells):
            labels.append(None)
            continue
        flags = []
        for name, cell in zip(WINNER_COLUMNS, cells, strict=True):
            if (flag := _FLAGS.get(cell or "")) is None:
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
    return pa.array(labels, pa.int8())


def _integer_labels(raw: RawBatch, location: Location) -> pa.Array:
    """A ``label`` column: 0, 1, 2 or nothing."""
    cells = string_list(raw, "label", location)
    labels = {str(i): i for i in range(len(OUTCOMES))}
    for row, cell in enumerate(cells):
        if cell is not None and cell not in labels:
            raise location.error(f"expected 0, 1 or 2, found {excerpt(cell)}", row=row, column="label")
    return pa.array([None if cell is None else labels[cell] for cell in cells], pa.int8())


def _soft_labels(raw: RawBatch, location: Location) -> dict[str, pa.Array]:
    """Three columns of probabilities as float32; a row has all of them, summing to 1 within 1e-3, or none."""
    columns = [string_list(raw, name, location) for name in SOFT_LABEL_COLUMNS]
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
        name: pa.array([None if cell is None else float(cell) for cell in column], pa.float32())
        for name, column in zip(SOFT_LABEL_COLUMNS, columns, strict=True)
    }


def _outcome_columns(raw: RawBatch, location: Location) -> dict[str, pa.Array]:
    """Labels, soft labels and ``both_bad`` from whichever columns hold them.

    With soft labels alone, the label is the most probable outcome, or unknown if two are equally probable.
    """
    columns: dict[str, pa.Array] = {}
    if "winner" in raw:
        columns |= winner_column(raw, location)
    elif any(name in raw for name in WINNER_COLUMNS):
        columns["label"] = _one_hot_labels(raw, location)
    elif "label" in raw:
        columns["label"] = _integer_labels(raw, location)
    if all(name in raw for name in SOFT_LABEL_COLUMNS):
        soft = _soft_labels(raw, location)
        columns |= soft
        if "label" not in columns:
            rows = zip(*(column.to_pylist() for column in soft.values()), strict=True)
            columns["label"] = pa.array([_argmax(row) for row in rows], pa.int8())
    if "both_bad" in raw and pa.types.is_boolean(getattr(raw.columns["both_bad"], "type", pa.null())):
        columns["both_bad"] = raw.columns["both_bad"]
    return columns


def _argmax(row: tuple[float | None, ...]) -> int | None:
    values = [value for value in row if value is not None]
    return row.index(max(values)) if values and values.count(max(values)) == 1 else None


ReadTurns = Callable[[RawBatch, str, Location], tuple[pa.Array, int]]


def _convert(raw: RawBatch, location: Location, read_turns: ReadTurns) -> CountedBatch:
    columns = {"id": id_column(raw, location, "id")}
    fields = {name: read_turns(raw, name, location) for name in TEXT_FIELDS}
    return build_batch({**columns, **model_columns(raw, location), **_outcome_columns(raw, location)}, fields)


def _plain_turns(raw: RawBatch, name: str, location: Location) -> tuple[pa.Array, int]:
    """Plain text as a single turn; lists of turns unchanged."""
    column = raw.columns[name]
    if isinstance(column, list):
        return turns_array([cell if isinstance(cell, list) else [cell] for cell in column], name, location)
    if raw.is_nested(name):
        return turns_column(raw, name, location)
    return turns_array([[cell] for cell in string_column(raw, name, location).to_pylist()], name, location)


def looks_like_turns(raw: RawBatch, location: Location) -> bool:
    """Whether the first prompt is a list of turns (Kaggle's layout) rather than plain text."""
    if raw.is_nested("prompt"):
        return True
    first = RawBatch({"prompt": raw.columns["prompt"][:1]}, 1)
    cell = string_column(first, "prompt", location).to_pylist()[0] or ""
    return cell.lstrip().startswith("[")


_OUTCOME_COLUMNS = (*_MODEL_COLUMNS, *WINNER_COLUMNS, "label", *SOFT_LABEL_COLUMNS, "both_bad")

KAGGLE = Layout(
    name="kaggle",
    family="rows",
    summary="Kaggle's train.csv and test.csv: turns as JSON lists, winners one-hot",
    required=("id", *TEXT_FIELDS),
    optional=_OUTCOME_COLUMNS,
    convert=functools.partial(_convert, read_turns=turns_column),
    excluded=("winner",),
    keeps_ids=True,
)

GENERIC = Layout(
    name="generic",
    family="rows",
    summary="prompt, response_a, response_b as plain text; outcome as winner, one-hot, label, or p_a, p_b, p_tie",
    required=TEXT_FIELDS,
    optional=("id", "winner", *_OUTCOME_COLUMNS),
    convert=functools.partial(_convert, read_turns=_plain_turns),
    keeps_ids=True,
)

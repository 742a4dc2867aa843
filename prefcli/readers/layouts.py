"""What a layout is: the columns it needs, and how a batch of raw columns becomes battles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prefcli.battles import ReadCounts, make_batch
from prefcli.readers.cells import Location, RawBatch, first_null_row, string_column

ID_COLUMNS = ("id", "question_id", "prompt_id")
"""Names of columns that identify a battle or its prompt."""

CountedBatch = tuple[pa.RecordBatch, ReadCounts]


@dataclass(frozen=True)
class Layout:
    """One format that battles are published in."""

    name: str
    """As ``--format`` takes it."""
    family: str
    """What one battle is made of: ``rows``, ``conversations`` or ``pairs``. Columns of two families are ambiguous."""
    summary: str
    """One line for users."""
    required: tuple[str, ...]
    """Columns that a file of this layout must have."""
    optional: tuple[str, ...]
    """Columns that are read if present."""
    convert: Callable[[RawBatch, Location], CountedBatch]
    """Raw columns -> canonical batch."""
    excluded: tuple[str, ...] = ()
    """Columns that show that the file has another layout."""
    has_ties: bool = True
    """Whether a file of this layout can hold ties at all."""
    keeps_ids: bool = False
    """Whether ids are used unchanged; if not, repeated ones get a numbered suffix."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        return (*self.required, *self.optional)

    def matches(self, columns: set[str]) -> bool:
        """Whether a file with these columns may have this layout."""
        return set(self.required) <= columns and not set(self.excluded) & columns


def id_column(raw: RawBatch, location: Location, *names: str) -> pa.Array:
    """The first of the named columns that exists, as ids; without one, row numbers of the whole input."""
    for name in names:
        if name in raw:
            ids = string_column(raw, name, location)
            if ids.null_count:
                raise location.error("no id", row=first_null_row(ids), column=name)
            return ids
    first = location.rows_before + location.first_row
    return pa.array([str(number) for number in range(first, first + raw.num_rows)], pa.string())


def model_columns(raw: RawBatch, location: Location) -> dict[str, pa.Array]:
    """The columns ``model_a`` and ``model_b``, if the file has them."""
    return {name: string_column(raw, name, location) for name in ("model_a", "model_b") if name in raw}


def build_batch(columns: Mapping[str, Any], fields: Mapping[str, tuple[pa.Array, int]], **counts: int) -> CountedBatch:
    """A canonical batch with what was repaired.

    Parameters
    ----------
    columns:
        The columns that are not text.
    fields:
        For each text field its turns, and how many of them held lone surrogates.
    counts:
        What else of :class:`ReadCounts` the layout counted.
    """
    batch = make_batch({**columns, **{name: turns for name, (turns, _) in fields.items()}})
    label = batch.column(batch.schema.get_field_index("label"))
    return batch, ReadCounts(
        battles=batch.num_rows,
        labelled=batch.num_rows - label.null_count,
        surrogates=sum(surrogates for _, surrogates in fields.values()),
        null_turns=sum(turns.flatten().null_count for turns, _ in fields.values()),
        **counts,
    )

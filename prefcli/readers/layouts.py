"""What a layout is: which columns it needs, and how a raw batch becomes battles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prefcli.battles import TEXT_FIELDS, ReadCounts, make_batch
from prefcli.readers.cells import Place, RawBatch, first_null, strings

Converted = tuple[pa.RecordBatch, ReadCounts]


@dataclass(frozen=True)
class Layout:
    """One way the field writes battles down.

    Attributes
    ----------
    name:
        As ``--format`` takes it.
    family:
        What a battle is told by: ``rows``, ``conversations`` or ``pairs``; a file is of one family.
    summary:
        One line for people.
    needs:
        Columns without which a file is not of this layout.
    may_have:
        Columns that are read when they are there.
    without:
        Columns whose presence says that it is another layout.
    convert:
        Raw columns -> canonical batch.
    own_ids:
        Whether ids are used as they stand; if not, repeated ones get a number behind them.
    """

    name: str
    family: str
    summary: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    convert: Callable[[RawBatch, Place], Converted]
    without: tuple[str, ...] = ()
    own_ids: bool = False

    def fits(self, columns: set[str]) -> bool:
        """Whether a file with these columns may be of this layout."""
        return set(self.needs) <= columns and not set(self.without) & columns


def identifiers(raw: RawBatch, place: Place, *names: str) -> pa.Array:
    """The first of the columns that is there, as ids; the row's number in the input where none is."""
    for name in names:
        if name in raw:
            ids = strings(raw, name, place)
            if ids.null_count:
                raise place.error("no id", row=first_null(ids), column=name)
            return ids
    return pa.array([str(place.rows_before + place.first_row + row) for row in range(raw.num_rows)], pa.string())


def models(raw: RawBatch, place: Place) -> dict[str, pa.Array]:
    """The columns ``model_a`` and ``model_b`` where the file has them."""
    return {name: strings(raw, name, place) for name in ("model_a", "model_b") if name in raw}


def converted(columns: Mapping[str, Any], surrogates: int = 0, **counted: int) -> Converted:
    """Canonical columns as a batch, with what was repaired."""
    batch = make_batch(columns)
    label = batch.column(batch.schema.get_field_index("label"))
    return batch, ReadCounts(
        battles=batch.num_rows,
        labelled=batch.num_rows - label.null_count,
        surrogates=surrogates,
        null_turns=sum(columns[name].flatten().null_count for name in TEXT_FIELDS),
        **counted,
    )

"""Read battles from every supported file format. No other module knows formats.

:mod:`~prefcli.readers.containers` turns a file into raw columns. :mod:`~prefcli.readers.layouts` says in which columns
the published formats keep what, :mod:`~prefcli.readers.recognition` finds the one that a file has, and
:mod:`~prefcli.readers.engine` turns raw columns into battles. :mod:`~prefcli.readers.battle_file` streams them.

Every problem with a file is an :class:`~prefcli.errors.InputError` that names the file, the row (counted from 1, not
counting the header) and the column.
"""

from __future__ import annotations

from prefcli.readers.battle_file import (
    BattleFile,
    BattleTable,
    battles_from,
    check_has_ids,
    column_batches,
    open_battles,
    read_table,
)
from prefcli.readers.candidates import CandidateCounts, CandidateFile, CandidateTable, open_candidates, read_candidates
from prefcli.readers.layouts import LAYOUTS, Layout
from prefcli.readers.mapping import parse_columns, with_layout_file

__all__ = [
    "LAYOUTS",
    "BattleFile",
    "BattleTable",
    "CandidateCounts",
    "CandidateFile",
    "CandidateTable",
    "Layout",
    "battles_from",
    "check_has_ids",
    "column_batches",
    "open_battles",
    "open_candidates",
    "parse_columns",
    "read_candidates",
    "read_table",
    "with_layout_file",
]

"""Read battles from every supported file format. No other module knows formats.

:mod:`~prefcli.readers.containers` turns a file into raw columns. A :class:`Layout` says which columns a format needs
and how they become battles. :mod:`~prefcli.readers.battle_file` recognises the layout and streams the battles.

Every problem with a file is an :class:`~prefcli.errors.InputError` that names the file, the row (counted from 1, not
counting the header) and the column.
"""

from __future__ import annotations

from prefcli.readers.battle_file import LAYOUTS, BattleFile, battles_from, column_batches, open_battles, parse_columns
from prefcli.readers.layouts import Layout

__all__ = ["LAYOUTS", "BattleFile", "Layout", "battles_from", "column_batches", "open_battles", "parse_columns"]

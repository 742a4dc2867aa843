"""Files and tables to raw columns: every arrangement of JSON, every delimiter and encoding, every kind of table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefcli.readers.cells import parse_list_cell

# Cells


@pytest.mark.parametrize(
    "turns",
    [[], ["Hi", "there"], ["it's", 'a "q"', None], ["line\nbreak \\ '\"", "käse \u2028 \x07"], ["]", "', '", "[a]"]],
    ids=repr,
)
def test_a_list_is_read_from_a_cell_as_json_and_as_python_prints_it(turns: list[Any]) -> None:
    for spelling in (json.dumps(turns), repr(turns), f" {turns!r} "):
        assert parse_list_cell(spelling) == turns


@pytest.mark.parametrize(
    "cell", ["", "text", "[a]", "['a'", "['a' 'b']", "['a'] b", r"['\x0']", "[__import__('os')]", "[b'a']", '{"a": 1}']
)
def test_a_cell_that_spells_no_list_is_none(cell: str) -> None:
    assert parse_list_cell(cell) is None

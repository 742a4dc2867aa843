"""Whatever the input, prefcli keeps its promises: exit code, one to three lines, files whole or absent.

A few hundred of the inputs that ``benchmarks/faults/fuzz.py`` makes by the ten thousand, and tables of arbitrary JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

import promises
from promises import Bench

SEED = 2
INPUTS = 250
SHARES = 2
"""Tests that the inputs are shared among, so that they run side by side."""
VERBS = {verb: weight for verb, weight in promises.VERBS.items() if verb != "train"}
"""Training takes seconds; the benchmark does it."""
MAX_BYTES = 1 << 20


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return promises.make_bench(tmp_path_factory.mktemp("bench"), battles=60)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_promises_are_kept_on_hostile_and_damaged_files(tmp_path: Path, bench: Bench, share: int) -> None:
    broken = {}
    codes = set()
    for number in range(share, INPUTS, SHARES):
        case = promises.case_of(SEED, number, VERBS)
        if len(case.input.data) > MAX_BYTES:
            continue
        result = promises.try_case(case, tmp_path / str(number), bench)
        codes.add(result.code)
        if result.broken:
            broken[number] = (case.verb, case.input.kind, result.broken, result.err)
    assert not broken
    assert codes == {0, 2}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), values),
    max_leaves=5,
)
COLUMNS = [
    ["prompt", "response_a", "response_b", "winner", "id"],
    ["id", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"],
    ["prompt", "response_a", "response_b", "p_a", "p_b", "p_tie"],
    ["conversation_a", "conversation_b", "winner", "question_id"],
    ["conversation_a", "conversation_b", "judge", "turn"],
    ["chosen", "rejected", "prompt"],
]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), columns=st.sampled_from(COLUMNS))
def test_rows_of_arbitrary_json_are_read_or_refused(
    tmp_path: Path, cli: Callable[..., Result], data: st.DataObject, columns: list[str]
) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, JSON)), min_size=1, max_size=3))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = cli("preprocess", path, "--text", "raw", "--workers", 1)
    assert not list(promises.wrong_words(result.code, result.out, result.err))

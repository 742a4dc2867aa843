"""Benchmarks that are too long for the tests: what they count on still exists, and they count right."""

import importlib
import sys
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import phases


@pytest.mark.parametrize("place", [place for by_verb in phases.PHASES.values() for place in by_verb.values()])
def test_each_phase_is_a_function_that_exists(place):
    module, _, path = place.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert callable(found)


def test_a_phase_has_the_time_that_is_not_in_the_phases_inside_it(monkeypatch):
    clock = [0.0]

    def work(seconds):
        clock[0] += seconds

    monkeypatch.setattr(phases.Stopwatch, "_now", staticmethod(lambda: (clock[0], 2 * clock[0])))
    watch = phases.Stopwatch()
    inner = watch.wrap("inner", lambda: work(4))
    outer = watch.wrap("outer", lambda: (work(1), inner(), work(2), inner()))
    work(5)
    outer()
    work(6)
    watch.switch(lambda: None)
    seconds = {phase: row[:2] for phase, row in watch.rows.items()}
    assert seconds == {"everything else": [11, 22], "outer": [3, 6], "inner": [8, 16]}
    assert all(peak > 10 for _, _, peak in watch.rows.values())


def test_copies_of_battles_share_neither_texts_nor_ids():
    texts = {name: [f'["{name} {row}"]' for row in range(3)] for name in phases.TEXTS}
    table = pa.table({"id": [1, 2, 3], **texts})
    copies = pa.concat_tables(phases.copies(table, 8)).to_pydict()
    assert copies["id"] == list(range(8))
    assert copies["prompt"][0] == '["prompt 0 copy1"]'
    for name in phases.TEXTS:
        assert len(set(copies[name])) == 8

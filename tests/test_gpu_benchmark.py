"""``benchmarks/gpu.py``: fast paths beside transformers' own, the rows of every section, and failures."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu

from prefcli.encoders import deberta


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is measured, with few repetitions."""
    module = importlib.import_module("gpu_cases")
    for name, value in {"LOSSES": 3, "ROUNDS": 1}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(deberta, "UNPADDED_DEVICES", deberta.UNPADDED_DEVICES)  # it computes DeBERTa as on a GPU
    return module


@pytest.fixture
def run(cases: Any, tmp_path: Path) -> Callable[..., str]:
    """Runs a case in this process."""
    cases.write_battles(tmp_path / "battles.csv", 100, 0.5)
    setting = cases.Setting(tmp_path / "battles.csv", toy=True, device="cpu", seconds=0)

    def run_here(case: tuple[str, ...], seconds: float, on_row: Callable[[list[str]], None]) -> str:
        for row in cases.run(setting, *case):
            on_row(row)
        return ""

    return run_here


class WorkerHere:
    """A worker of ``lora_speed.py`` in this process."""

    process = SimpleNamespace(kill=lambda: None, wait=lambda: None)

    def __init__(self, arguments: list[str]) -> None:
        module = importlib.import_module("lora_speed")
        self.facts, self.ask = module.prepare_answers(module.parse(arguments[1:]))

    def read(self) -> Any:
        return self.facts


def number(cell: str) -> float:
    found = re.match(r"[\d.]+(e[+-]?\d+)?", cell)
    assert found, cell
    return float(found[0])


@pytest.mark.slow
def test_every_section_yields_its_rows(
    run: Callable[..., str], cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients and first losses of every fast path equal those of a plain loop over transformers' modules."""
    monkeypatch.setattr(importlib.import_module("lora_speed"), "Worker", WorkerHere)
    chosen = {
        "equality": ("equality", "fp32"), "speed": ("speed", "MiniLM"), "lora": ("lora", "joint sequence"),
        "features": ("overflow",), "profile": ("profile",),
    }  # fmt: skip
    for name, case in chosen.items():
        monkeypatch.setitem(gpu.SECTIONS, name, replace(gpu.SECTIONS[name], cases=(case,)))
    output = tmp_path / "bench-gpu.md"
    rows = dict(gpu.measure(list(chosen), output, "a machine", run, minutes=19))

    assert [row[0] for row in rows["equality"]] == list(cases.EQUALITY)
    for row in rows["equality"]:
        outputs, gradients, losses = map(number, row[2:5])
        assert (outputs < 1e-5, gradients < 3e-4, losses < 1e-5, row[-1]) == (True, True, True, "yes"), row
    measured = {(row[1], row[2]): number(row[3]) for row in rows["speed"][1:] if "not measured" not in row[3]}
    ways = [(what, way) for what in ("train", "predict") for way in ("Trainer", "prefcli")]
    assert set(measured) >= {*ways, ("predict, joint", "prefcli, cross-encoder")}
    assert min(measured.values()) > 0
    assert [row[1] for row in rows["lora"][:2]] == ["Trainer", "prefcli"]
    assert rows["features"][0][-1] == "yes"
    assert "1 skipped; the scale went from 65536 to 32768" in rows["features"][0][2]
    assert len(rows["profile"]) == 3
    assert 0 < sum(number(row[3]) for row in rows["profile"]) <= 100
    text = output.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"#### {section.title}" for section in gpu.SECTIONS.values()
    ]
    assert text.count("- **Machine.** a machine\n") == 5


def test_a_case_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {
        "raises": "print('@[\"a\", \"1|2\"]', flush=True)\nraise ValueError('no')",
        "hangs": "import time\ntime.sleep(60)",
        "is killed": "import os\nos.kill(os.getpid(), 9)",
        "works": "print('other output'); print('@[\"b\"]')",
    }
    section = replace(gpu.SECTIONS["profile"], cases=tuple((name,) for name in programs))
    monkeypatch.setitem(gpu.SECTIONS, "profile", section)

    def run(case: tuple[str, ...], seconds: float, on_row: Callable[[list[str]], None]) -> str:
        limit = 0.3 if case == ("hangs",) else seconds
        return gpu.run_case([sys.executable, "-S", "-c", programs[case[0]]], limit, on_row)

    output = tmp_path / "bench-gpu.md"
    output.write_text("#### Of another day\n\n| kept |\n", encoding="utf-8")
    [(_, rows)] = gpu.measure(["profile"], output, "a machine", run, minutes=19)
    assert rows == [
        ["a", "1|2"],
        ["raises", "not measured: ValueError: no"],
        ["hangs", "not measured: not finished within 0 s"],
        ["is killed", "not measured: SIGKILL ended the process"],
        ["b"],
    ]
    text = output.read_text(encoding="utf-8")
    assert text.startswith("#### Of another day\n\n| kept |\n\n#### On a GPU: what a training step costs\n")
    assert "\n| a | 1 2 | | |\n" in text.replace("  ", " ")
    [(_, rows)] = gpu.measure(["profile"], output, "a machine", run, minutes=0)
    assert rows == [[name, "not measured: the time was over"] for name in programs]

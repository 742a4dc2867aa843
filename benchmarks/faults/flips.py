"""Flip bytes of, and cut short, everything that is kept: ``python benchmarks/faults/flips.py [--flips 2000]``.

Small files are damaged at every single byte and cut at every length, larger ones at random places. Whatever is damaged
must be noticed, named, and rebuilt (stages), passed over for the one before it (checkpoints) or refused (runs, weights
kept by a training under way).
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import torch

from prefcli.data import synthetic
from prefcli.errors import ModelError, PrefcliError
from prefcli.models.neural import WEIGHTS
from prefcli.storage import files, runs
from prefcli.storage.workspace import StageWriter, Workspace
from prefcli.training import checkpoints, loop

EVERY_BYTE = 20_000
"""Files up to this size are damaged at every byte."""


def damages(path: Path, attempts: int, dice: random.Random) -> Iterator[bytes]:
    """The file's content, damaged in one place or cut, again and again."""
    whole = path.read_bytes()
    every = len(whole) <= EVERY_BYTE and len(whole) * 2 <= max(attempts, 2 * EVERY_BYTE)
    for number in range(2 * len(whole) if every else attempts):
        at = number // 2 if every else dice.randrange(len(whole))
        if number % 2:
            yield whole[:at]
        else:
            yield whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :]


def unnoticed(path: Path, attempts: int, dice: random.Random, noticed: Callable[[], bool]) -> tuple[int, int]:
    """How often the file was damaged, and how often nobody noticed; the file is whole again afterwards."""
    whole, tried, missed = path.read_bytes(), 0, 0
    for content in damages(path, attempts, dice):
        path.write_bytes(content)
        tried += 1
        if not noticed():
            missed += 1
            print(f"NOT NOTICED: {path.name}, {len(content)} bytes of {len(whole)}", flush=True)
        path.write_bytes(whole)
    return tried, missed


class Listener:
    """A reporter that keeps the last warning."""

    warning = ""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warning = text


def stages(folder: Path, attempts: int, dice: random.Random) -> tuple[int, int]:
    """A cached stage and its checksum: rebuilt, with the same rows, and the file named."""
    workspace = Workspace(folder)
    listener = Listener()

    def make() -> bool:
        def produce(writer: StageWriter) -> dict[str, int]:
            writer.write(pa.record_batch({"id": ["1", "2"], "text": ["one", "two"]}))
            return {"rows": 2}

        listener.warning = ""
        stage = workspace.stage("x", version=1, source="s", options={}, produce=produce, reporter=listener)
        rebuilt = not stage.reused and stage.path.name in listener.warning
        return rebuilt and stage.table()["text"].to_pylist() == ["one", "two"]

    make()
    (stage,) = workspace.stages.glob("*.parquet")
    (checksum,) = workspace.stages.glob("*.sha256")
    totals = [unnoticed(path, attempts, dice, make) for path in (stage, checksum)]
    return sum(t for t, _ in totals), sum(m for _, m in totals)


def held_checkpoints(folder: Path, attempts: int, dice: random.Random) -> tuple[int, int]:
    """Every file of the newest checkpoint: the one before it is used, the damaged one named."""
    module = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for step in (1, 2):
        random_states = {"0.cpu": torch.arange(16, dtype=torch.uint8)}
        state = {"position": {"steps": step}}
        held = checkpoints.Checkpoint(module.state_dict(), optimizer.state_dict(), random_states, state)
        checkpoints.save(folder, step, held)
    said: list[str] = []

    def passed_over() -> bool:
        said.clear()
        found = checkpoints.load_latest(folder, said.append)
        return found is not None and found.state["position"]["steps"] == 1 and "step-00000002" in said[0]

    tried = missed = 0
    for path in sorted(checkpoints.existing(folder)[-1].iterdir()):
        t, m = unnoticed(path, attempts, dice, passed_over)
        tried, missed = tried + t, missed + m
    return tried, missed


def whole_run(run: Path, attempts: int, dice: random.Random) -> tuple[int, int]:
    """Every file of a finished run that a prediction depends on, and the checksums themselves: refused."""

    def refused() -> bool:
        try:
            runs.verify(run)
        except ModelError:
            return True
        return False

    tried = missed = 0
    sealed = [
        path
        for path in sorted(run.iterdir())
        if path.is_file() and (path.name not in runs.UNSEALED or path.name == files.CHECKSUMS)
    ]
    for path in sealed:
        t, m = unnoticed(path, attempts // len(sealed), dice, refused)
        tried, missed = tried + t, missed + m
    return tried, missed


def kept_weights(run: Path, attempts: int, dice: random.Random) -> tuple[int, int]:
    """The best weights of a training under way, and what is known of them: refused when the training goes on."""

    def refused() -> bool:
        try:
            loop.kept_logits(run)
        except PrefcliError:
            return True
        return False

    totals = [unnoticed(run / name, attempts // 2, dice, refused) for name in (WEIGHTS, loop.KEPT)]
    return sum(t for t, _ in totals), sum(m for _, m in totals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="of the files that are too large for every byte")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write(folder, train=300, test=10)
        for recipe in (["--encoder", "tiny", "--output", "tiny"], ["--recipe", "fast", "--output", "features"]):
            command = [sys.executable, "-m", "prefcli", "train", "train.csv", *recipe]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        shutil.copytree(folder / "tiny", folder / "under-way")
        kinds: list[tuple[str, Callable[[Path, int, random.Random], tuple[int, int]], Path]] = [
            ("cached stage and its checksum", stages, folder / "workspace"),
            ("checkpoint of a training", held_checkpoints, folder / "checkpoints"),
            ("finished run, tiny", whole_run, folder / "tiny"),
            ("finished run, features", whole_run, folder / "features"),
            ("kept weights of a training under way", kept_weights, folder / "under-way"),
        ]
        print("| damaged | attempts | not noticed |\n|---|---|---|")
        for what, damage, place in kinds:
            tried, missed = damage(place, options.flips, dice)
            print(f"| {what} | {tried:,} | {missed} |", flush=True)
            bad += missed
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

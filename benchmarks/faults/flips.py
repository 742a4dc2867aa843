"""Flip bytes of every kind of file that prefcli keeps, and truncate it.

``python benchmarks/faults/flips.py [--flips 2000]``

Small files are damaged at every byte and cut at every length, larger ones at random places. Each damage must be noticed
and the file rebuilt (stages), skipped for the checkpoint before it (checkpoints) or refused (runs, weights kept by a
running training).
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


def damages(path: Path, attempts: int, rng: random.Random) -> Iterator[bytes]:
    """The file's content, damaged or cut at one place after the other."""
    content = path.read_bytes()
    every = len(content) <= EVERY_BYTE and len(content) * 2 <= max(attempts, 2 * EVERY_BYTE)
    for number in range(2 * len(content) if every else attempts):
        at = number // 2 if every else rng.randrange(len(content))
        if number % 2:
            yield content[:at]
        else:
            yield content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def unnoticed(path: Path, attempts: int, rng: random.Random, noticed: Callable[[], bool]) -> tuple[int, int]:
    """How often the file was damaged, and how often that was not noticed; afterwards the file is as before."""
    content, tried, missed = path.read_bytes(), 0, 0
    for damaged in damages(path, attempts, rng):
        path.write_bytes(damaged)
        tried += 1
        if not noticed():
            missed += 1
            print(f"NOT NOTICED: {path.name}, {len(damaged)} bytes of {len(content)}", flush=True)
        path.write_bytes(content)
    return tried, missed


class Listener:
    """A reporter that keeps the last warning."""

    warning = ""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warning = text


def stages(folder: Path, attempts: int, rng: random.Random) -> tuple[int, int]:
    """A cached stage and its checksum: rebuilt with the same rows, with a warning that names the file."""
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
    totals = [unnoticed(path, attempts, rng, make) for path in (stage, checksum)]
    return sum(t for t, _ in totals), sum(m for _, m in totals)


def newest_checkpoint(folder: Path, attempts: int, rng: random.Random) -> tuple[int, int]:
    """Every file of the newest checkpoint: the one before it is used, the damaged one named."""
    module = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for step in (1, 2):
        random_states = {"0.cpu": torch.arange(16, dtype=torch.uint8)}
        state = {"position": {"steps": step}}
        newest = checkpoints.Checkpoint(module.state_dict(), optimizer.state_dict(), random_states, state)
        checkpoints.save(folder, step, newest)
    warnings: list[str] = []

    def skipped() -> bool:
        warnings.clear()
        checkpoint = checkpoints.load_latest(folder, warnings.append)
        return checkpoint is not None and checkpoint.state["position"]["steps"] == 1 and "step-00000002" in warnings[0]

    tried = missed = 0
    for path in sorted(checkpoints.existing(folder)[-1].iterdir()):
        t, m = unnoticed(path, attempts, rng, skipped)
        tried, missed = tried + t, missed + m
    return tried, missed


def finished_run(run: Path, attempts: int, rng: random.Random) -> tuple[int, int]:
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
        t, m = unnoticed(path, attempts // len(sealed), rng, refused)
        tried, missed = tried + t, missed + m
    return tried, missed


def kept_weights(run: Path, attempts: int, rng: random.Random) -> tuple[int, int]:
    """The best weights of a running training and their record: refused when the training continues."""

    def refused() -> bool:
        try:
            loop.kept_logits(run)
        except PrefcliError:
            return True
        return False

    totals = [unnoticed(run / name, attempts // 2, rng, refused) for name in (WEIGHTS, loop.KEPT_RECORD)]
    return sum(t for t, _ in totals), sum(m for _, m in totals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="of the files that are too large for every byte")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
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
            ("checkpoint of a training", newest_checkpoint, folder / "checkpoints"),
            ("finished run, tiny", finished_run, folder / "tiny"),
            ("finished run, features", finished_run, folder / "features"),
            ("kept weights of a running training", kept_weights, folder / "under-way"),
        ]
        print("| damaged | attempts | not noticed |\n|---|---|---|")
        for what, damage, place in kinds:
            tried, missed = damage(place, options.flips, rng)
            print(f"| {what} | {tried:,} | {missed} |", flush=True)
            bad += missed
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

"""Kill every verb at random moments and call it again: ``python benchmarks/faults/kill.py [--kills 200]``.

For each verb, an undisturbed call gives the result and the duration. Then, again and again from the same inputs, the
command is started, killed after a random time within that duration (SIGKILL; its children go on), and called again,
unchanged. The second call must succeed and leave the same bytes, and no temporary file may be left. If the output was
complete before the kill, the second call may refuse it as "already exists" (``runs rm``: "no run at"); those are
counted separately.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefcli.data import synthetic

PREFCLI = [sys.executable, "-m", "prefcli"]


@dataclass(frozen=True)
class Verb:
    """A command, and the files whose bytes are its result."""

    name: str
    arguments: list[str]
    result: Callable[[Path], list[Path]]
    prints_result: bool = True
    """Whether what it prints is part of its result."""


def run_files(folder: Path) -> list[Path]:
    names = ("model.safetensors", "validation.parquet", "booster.txt", "config.json", "README.md", "SHA256SUMS")
    return sorted(path for path in folder.rglob("*") if path.name in names and "checkpoints" not in path.parts)


NEURAL = ["--encoder", "tiny", "--checkpoint-every", "4", "--eval-every", "9", "--epochs", "2", "--output", "run"]
VERBS = (
    Verb("eda", ["eda", "train.csv", "--report", "page.html"], lambda folder: [folder / "page.html"]),
    Verb("preprocess", ["preprocess", "big.csv"], lambda folder: sorted(folder.glob(".prefcli/stages/*.parquet"))),
    Verb("train, tiny", ["train", "train.csv", *NEURAL], lambda folder: run_files(folder / "run"), prints_result=False),
    Verb(
        "train, features in 2 folds",
        ["train", "train.csv", "--recipe", "fast", "--folds", "2", "--output", "run"],
        lambda folder: run_files(folder / "run"),
        prints_result=False,
    ),
    Verb("predict", ["predict", "test.csv", "-o", "p.csv"], lambda folder: [folder / "p.csv"], prints_result=False),
    Verb("runs rm", ["runs", "rm", "run", "--yes"], lambda folder: run_files(folder / "run"), prints_result=False),
    Verb(
        "rank",
        ["rank", "answers.jsonl", "-o", "ranked.jsonl", "--best", "best.parquet", "--force"],
        lambda folder: [*folder.glob("ranked.jsonl"), *folder.glob("best.parquet")],
        prints_result=False,
    ),
    Verb("score", ["score", "truth_as_guess.csv", "test_truth.csv", "--json"], lambda folder: []),
)


def start(verb: Verb, folder: Path, temporary: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*PREFCLI, *verb.arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(verb: Verb, folder: Path, stdout: str) -> dict[str, str]:
    result_files = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in verb.result(folder)}
    return {**result_files, "stdout": stdout} if verb.prints_result else result_files


def leftovers(*folders: Path) -> list[str]:
    """Temporary files, locks and marks of unfinished work."""
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".tmp", ".lock")
        or path.name.startswith((".prefcli-", "prefcli-"))
        or path.name == "unfinished"
    ]


def prepare(folder: Path, verb: Verb) -> Path:
    """The folder that the verb starts from: the files it reads, and for ``predict`` and ``rank`` a run."""
    start_at = folder / "start"
    start_at.mkdir(parents=True)
    synthetic.write(start_at, train=600, test=400)
    synthetic.write(folder / "more", train=6000, test=10)
    shutil.copy(folder / "more" / "train.csv", start_at / "big.csv")
    (start_at / "truth_as_guess.csv").write_text((start_at / "test_truth.csv").read_text(), encoding="utf-8")
    rows = ({"prompt": f"Question {i}?", "responses": ["A step.", f"Vague {i}.", "Sun."]} for i in range(200))
    (start_at / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if verb.name in ("predict", "rank", "runs rm"):
        arguments = [*PREFCLI, "train", "train.csv", "--recipe", "fast", "--output", "run"]
        subprocess.run(arguments, cwd=start_at, check=True, capture_output=True)
    return start_at


def try_verb(verb: Verb, kills: int, random_times: random.Random, folder: Path) -> dict[str, int]:
    counts = dict.fromkeys(("killed", "done before", "same result", "refused, complete", "failed", "left something"), 0)
    start_folder = prepare(folder, verb)
    work_folder, temporary = folder / "place", folder / "temporary"
    temporary.mkdir()

    def fresh() -> None:
        shutil.rmtree(work_folder, ignore_errors=True)
        shutil.copytree(start_folder, work_folder)

    fresh()
    started = time.monotonic()
    process = start(verb, work_folder, temporary)
    stdout, stderr = process.communicate()
    duration = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{verb.name}: the undisturbed call failed: {stderr}")
    wanted = outcome(verb, work_folder, stdout)
    while counts["killed"] < kills:
        fresh()
        process = start(verb, work_folder, temporary)
        try:
            process.communicate(timeout=random_times.uniform(0, duration))
            counts["done before"] += 1
            continue
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            counts["killed"] += 1
        process = start(verb, work_folder, temporary)
        stdout, stderr = process.communicate()
        refused = process.returncode == 2 and ("already exists" in stderr or "no run at" in stderr)
        result_files = outcome(verb, work_folder, wanted.get("stdout", "") if refused else stdout)
        if result_files != wanted or process.returncode not in ((0, 2) if refused else (0,)):
            counts["failed"] += 1
            print(f"{verb.name}: exit {process.returncode}: {stderr[-500:]}\n{result_files}\n{wanted}", flush=True)
        else:
            counts["refused, complete" if refused else "same result"] += 1
        if left := leftovers(work_folder, temporary):
            counts["left something"] += 1
            print(f"{verb.name}: left {left}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="over all verbs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verb", help="only the verbs whose name begins so")
    options = parser.parse_args()
    verbs = [verb for verb in VERBS if verb.name.startswith(options.verb or "")]
    random_times = random.Random(options.seed)
    print("| verb | killed | same result | output complete already | failed | left something |")
    print("|---|---|---|---|---|---|", flush=True)
    bad = 0
    for number, verb in enumerate(verbs):
        kills = options.kills * (number + 1) // len(verbs) - options.kills * number // len(verbs)
        with tempfile.TemporaryDirectory() as name:
            counts = try_verb(verb, kills, random_times, Path(name))
        print(
            f"| {verb.name} | {counts['killed']} | {counts['same result']} | {counts['refused, complete']} "
            f"| {counts['failed']} | {counts['left something']} |",
            flush=True,
        )
        bad += counts["failed"] + counts["left something"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

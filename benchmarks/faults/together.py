"""Two commands at once in one workspace, and many processes at one lock.

``python benchmarks/faults/together.py [--rounds 12]``. Each round starts every pair below once, the second command a
random time after the first. Together they must leave the same files as one after the other, no temporary file, and no
cache may be rebuilt.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attempts import Commands, Result, Table, strays, tree

from prefcli.data import synthetic

LOCKING = """
import sys
from pathlib import Path
from prefcli.storage import files
counter, inside = Path("counter"), Path("inside")
for _ in range(int(sys.argv[1])):
    with files.locked(Path("a.lock"), on_wait=lambda: None):
        inside.open("x").close()
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
        inside.unlink()
"""
TRAIN = "train train.csv --encoder tiny --epochs 1 --checkpoint-every 3"
FEATURES = "train train.csv --architecture features"
PREDICT = "predict test.csv --model {data}/run --force"
PAIRS = {
    "preprocess twice": ("preprocess train.csv", "preprocess train.csv"),
    "preprocess and train": ("preprocess train.csv", f"{FEATURES} --text nltk --output run"),
    "train twice, one output": (f"{TRAIN} --output run", f"{TRAIN} --output run"),
    "train twice, one output, --force": (f"{FEATURES} --output run --force", f"{FEATURES} --output run --force"),
    "train twice, no output": (FEATURES, FEATURES),
    "eda during preprocess": ("preprocess train.csv", "eda train.csv --report report.html --force"),
    "predict twice, one output": (f"{PREDICT} -o preds.csv", f"{PREDICT} -o preds.csv"),
    "predict .csv and .parquet": (f"{PREDICT} -o preds.csv", f"{PREDICT} -o preds.parquet"),
    "predict while train finishes": (f"{TRAIN} --output run", "predict test.csv --model run -o preds.csv"),
    "kill -9 of the first preprocess": ("preprocess train.csv", "preprocess train.csv"),
    "kill -9 of the first train": (f"{TRAIN} --output run", f"{TRAIN} --output run"),
}
REFUSALS = ("another prefcli is training into this folder", "already exists", "no run at", "has not finished",
            "unfinished", "has no config.json",
            "did not finish")  # fmt: skip


def slow_start(before: float) -> str:
    """Python that slows down writing stages, so that the second command finds the first one at work."""
    return f"""
import time
from prefcli.storage import workspace
write = workspace.StageWriter.write
def slowly(self, batch):
    time.sleep({before})
    write(self, batch)
workspace.StageWriter.write = slowly
"""


def comparable(folder: Path) -> dict[str, str]:
    """Files that must be the same in any order: names of runs contain the time, their cards the name."""
    kept = {}
    for name, digest in tree(folder).items():
        if "latest-" in name or "predictions/" in name or name.endswith(("README.md", "config.json", "SHA256SUMS")):
            continue
        kept[re.sub(r"runs/\d{8}-\d{6}-(\w+?)(-\d+)?/", r"runs/\1/", name)] = digest
    return kept


def alone(commands: Commands, data: Path, first: str, second: str) -> dict[str, str]:
    """What the two commands leave one after the other."""
    with fresh(data) as folder:
        for command in dict.fromkeys((first, second)):
            done = commands.run(*command.format(data=data).split(), folder=folder)
            if done.code:
                raise SystemExit(f"{command} failed alone: {done.err}")
        return comparable(folder)


class fresh:  # noqa: N801  (used as a function)
    """A folder with the inputs."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __enter__(self) -> Path:
        self.folder = Path(tempfile.mkdtemp(prefix="together-", dir=self.data.parent))
        for name in ("train.csv", "test.csv"):
            shutil.copy(self.data / name, self.folder)
        return self.folder

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder)


def meet(
    commands: Commands, data: Path, name: str, expected: dict[str, str], random_times: random.Random, seconds: float
) -> tuple[str, str]:
    """One pair at once: what happened, and what was wrong with it."""
    first, second = (command.format(data=data).split() for command in PAIRS[name])
    with fresh(data) as folder:
        slow = slow_start(random_times.choice([0.0, 0.2]))
        first_running = commands.start(*first, folder=folder, before=slow)
        time.sleep(random_times.choice([0.0, random_times.uniform(0, seconds)]))
        second_running = commands.start(*second, folder=folder, before=slow)
        if name.startswith("kill"):
            time.sleep(random_times.uniform(0, seconds))
            first_running.kill()
        results = [first_running.wait(), second_running.wait()]
        problems = list(complaints(name, results))
        refused = [r for r in results if r.code not in (0, -9)]
        if refused and not problems:  # the same command must succeed afterwards
            after = commands.run(*(second if results[1].code else first), folder=folder)
            if after.code and "already exists" not in after.err:
                problems.append(f"failed afterwards: {after.err[-200:]!r}")
        if (files_left := comparable(folder)) != expected:
            differ = sorted(k for k in {**files_left, **expected} if files_left.get(k) != expected.get(k))
            problems.append(f"another result: {differ[:4]}")
        if leftovers := strays(folder):
            problems.append(f"left {leftovers}")
    how = "one refused" if refused else ("one killed, the other complete" if results[0].code == -9 else "both complete")
    return how, "; ".join(problems)


def complaints(name: str, results: list[Result]) -> Iterator[str]:
    for done in results:
        if "rebuilding" in done.err:
            yield "a cache was rebuilt"
        if "Traceback" in done.err or (done.code not in (0, -9) and done.unclear()):
            yield f"unclear: {done.err[-300:]!r}"
        if done.code not in (0, -9) and not any(words in done.err for words in REFUSALS):
            yield f"failed: {done.err[-300:]!r}"
    if all(done.code not in (0, -9) for done in results):
        yield "both refused"


def lock(table: Table, processes: int, times: int) -> None:
    """Many processes count in one file, each time under the lock."""
    with tempfile.TemporaryDirectory(prefix="together-lock-") as folder:
        (Path(folder) / "counter").write_text("0")
        command = [sys.executable, "-c", LOCKING, str(times)]
        running = [subprocess.Popen(command, cwd=folder) for _ in range(processes)]
        codes = [process.wait() for process in running]
        count = int((Path(folder) / "counter").read_text())
        files_left = sorted(path.name for path in Path(folder).iterdir())
    correct = not any(codes) and count == processes * times and files_left == ["counter"]
    what = f"{processes} processes, each {times} times in one lock"
    table.add(what, f"counted to {count}", "" if correct else f"codes {codes}, counted to {count}, left {files_left}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pair", choices=list(PAIRS), action="append")
    options = parser.parse_args()
    random_times = random.Random(options.seed)
    table = Table()
    begun = time.monotonic()
    if not options.pair:
        for _ in range(3):
            lock(table, 20, 50)
    with tempfile.TemporaryDirectory(prefix="faults-together-") as name, Commands() as commands:
        data = Path(name) / "data"
        synthetic.write(data, train=200, test=100)
        trained = commands.run(*f"{TRAIN} --output run".split(), folder=data)
        if trained.code:
            raise SystemExit(trained.err)
        for pair in options.pair or PAIRS:
            started = time.monotonic()
            expected = alone(commands, data, *PAIRS[pair])
            seconds = time.monotonic() - started
            for _ in range(options.rounds):
                how, problem = meet(commands, data, pair, expected, random_times, seconds)
                table.add(pair, how, problem)
            print(f"{pair}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"{time.monotonic() - begun:.0f} s")
    table.finish()


if __name__ == "__main__":
    main()

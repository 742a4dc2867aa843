"""Two and more commands at once in one workspace, and many processes at one lock.

``python benchmarks/faults/together.py [--rounds 12]``. Each round starts every pair below once, the second command a
random moment after the first. What they leave must be what they leave when run alone, nothing may be left over, and
nobody may be told that a cache had to be rebuilt.
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
    """Every command makes its stage slowly, so that the other one meets it on the way."""
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
    """Files that must be the same however they came about: names of runs hold the time, their cards the name."""
    kept = {}
    for name, digest in tree(folder).items():
        if "latest-" in name or name.endswith(("README.md", "config.json", "SHA256SUMS")):
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
    commands: Commands, data: Path, name: str, expected: dict[str, str], moments: random.Random, seconds: float
) -> tuple[str, str]:
    """One pair at once: what happened, and what was wrong with it."""
    first, second = (command.format(data=data).split() for command in PAIRS[name])
    with fresh(data) as folder:
        slow = slow_start(moments.choice([0.0, 0.2]))
        one = commands.start(*first, folder=folder, before=slow)
        time.sleep(moments.choice([0.0, moments.uniform(0, seconds)]))
        other = commands.start(*second, folder=folder, before=slow)
        if name.startswith("kill"):
            time.sleep(moments.uniform(0, seconds))
            one.kill()
        results = [one.wait(), other.wait()]
        problems = list(complaints(name, results))
        refused = [r for r in results if r.code not in (0, -9)]
        if refused and not problems:  # the same command afterwards brings it to an end
            after = commands.run(*(second if results[1].code else first), folder=folder)
            if after.code and "already exists" not in after.err:
                problems.append(f"failed afterwards: {after.err[-200:]!r}")
        if (left := comparable(folder)) != expected:
            differ = sorted(k for k in {**left, **expected} if left.get(k) != expected.get(k))
            problems.append(f"another result: {differ[:4]}")
        if found := strays(folder):
            problems.append(f"left {found}")
    how = "one refused" if refused else ("one killed, the other whole" if results[0].code == -9 else "both whole")
    return how, "; ".join(problems)


def complaints(name: str, results: list[Result]) -> Iterator[str]:
    for done in results:
        if "rebuilding" in done.err:
            yield "told that a cache is rebuilt"
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
        left = sorted(path.name for path in Path(folder).iterdir())
    whole = not any(codes) and count == processes * times and left == ["counter"]
    what = f"{processes} processes, each {times} times in one lock"
    table.add(what, f"counted to {count}", "" if whole else f"codes {codes}, counted to {count}, left {left}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pair", choices=list(PAIRS), action="append")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    table = Table()
    begun = time.monotonic()
    if not options.pair:
        for _ in range(3):
            lock(table, 20, 50)
    with tempfile.TemporaryDirectory(prefix="faults-together-") as name, Commands() as commands:
        data = Path(name) / "data"
        synthetic.write(data, train=200, test=100)
        made = commands.run(*f"{TRAIN} --output run".split(), folder=data)
        if made.code:
            raise SystemExit(made.err)
        for pair in options.pair or PAIRS:
            started = time.monotonic()
            expected = alone(commands, data, *PAIRS[pair])
            seconds = time.monotonic() - started
            for _ in range(options.rounds):
                how, problem = meet(commands, data, pair, expected, moments, seconds)
                table.add(pair, how, problem)
            print(f"{pair}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"{time.monotonic() - begun:.0f} s")
    table.finish()


if __name__ == "__main__":
    main()

"""Every verb on a disk that fills up at every possible place, and on a read-only disk.

``python benchmarks/faults/disk.py [--verb NAME] [--sizes 20]`` (as root: it mounts file systems in memory). For each
verb, it finds how many pages the undisturbed command takes at most, and runs the command on disks of 20 sizes from
nothing to that. Between two sizes where it failed in different places it tries again, until the sizes are neighbours or
the places are the same. Each time the command must report what is missing, keep an older output and leave nothing else
behind; with more space, the same command must leave the same files as the undisturbed one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attempts import Commands, Result, SmallDisk, Table, refuse_without_root, small_disk, strays, tree

MAX_ATTEMPTS = 30
"""Sizes of a verb."""
MAX_FILES = 60
MESSAGE = re.compile(
    r"error: no space left on the disk: (about|more than) [\d.,]+ [kMG]B are needed, [\d.,]+ [kMG]B are free$"
)
SPILLING = "from prefcli.data import joining; joining.IN_MEMORY_ROWS = 500"
SMALL_DEMO = (
    "from prefcli.data import synthetic; write = synthetic.write; "
    "synthetic.write = lambda folder: write(folder, train=200, test=40)"
)


@dataclass(frozen=True)
class Verb:
    """A command that is to be run on the small disk, which is its folder.

    Attributes
    ----------
    arguments:
        ``{data}`` stands for the folder of the inputs.
    old:
        An output that is there before, and overwritten.
    kept:
        Whether it must be as it was after a failure.
    before:
        Python that is run first.
    compared:
        Which files must be those of the undisturbed command.
    """

    arguments: str
    old: str = ""
    kept: bool = True
    before: str = ""
    compared: Callable[[str], bool] = lambda name: True


FULL_BEFORE_FILE = """
from prefcli.storage import files
count, make_temporary, append = 0, files._temporary, files.append_line
def fill():
    global count
    count += 1
    if count == {number}:
        with open("filling", "wb", buffering=0) as stream:
            try:
                while stream.write(bytes(4096)): pass
            except OSError:
                pass
def temporary(folder):
    fill()
    return make_temporary(folder)
def append_line(path, line):
    fill()
    append(path, line)
files._temporary, files.append_line = temporary, append_line
"""
TRAIN = "train {data}/train.csv --output run"
TINY = f"{TRAIN} --encoder tiny --epochs 1 --checkpoint-every 3"
VERBS = {
    "eda --report": Verb("eda {data}/train.csv --report report.html --force", "report.html"),
    "preprocess": Verb("preprocess {data}/train.csv"),
    "train, tiny": Verb(TINY),
    "train, tiny, folds": Verb(f"{TINY} --folds 2"),
    "train, features": Verb(f"{TRAIN} --architecture features"),
    "train --force": Verb(f"{TRAIN} --architecture features --force", "run/config.json", kept=False),
    "predict .csv": Verb("predict {data}/test.csv --model {data}/run --output preds.csv --force", "preds.csv"),
    "predict .parquet": Verb("predict {data}/test.csv --model {data}/run -o preds.parquet --force", "preds.parquet"),
    "predict, features": Verb("predict {data}/test.csv --model {data}/features -o preds.csv --force", "preds.csv"),
    "rank": Verb(
        "rank {data}/answers.jsonl --model {data}/features -o ranked.jsonl --best best.parquet --force", "ranked.jsonl"
    ),
    "score": Verb("score {data}/many-preds.csv {data}/many-truth.csv", before=SPILLING),
    "demo": Verb(
        "demo synthetic --force", before=SMALL_DEMO,
        # Its run is named by the time it began.
        compared=lambda name: name.startswith("synthetic/") and not re.search("/runs/|latest-train", name),
    ),
}  # fmt: skip


def prepare(commands: Commands, data: Path) -> None:
    """Inputs and runs for the verbs that need them."""
    import numpy as np

    from prefcli.data import synthetic

    synthetic.write(data, train=200, test=400)
    synthetic.write(data / "other", train=10, test=10, seed=1)
    for name, how in (("run", ["--encoder", "tiny"]), ("features", ["--architecture", "features"])):
        arguments = ["train", "train.csv", "--output", name, *how]
        if commands.run(*arguments, folder=data).code:
            raise SystemExit("the training before the attempts failed")
    rows = ({"prompt": f"Question {i}?", "responses": ["A step.", f"Vague {i}.", "Sun."]} for i in range(400))
    (data / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    numbers = np.arange(4000)
    header = "id,winner_model_a,winner_model_b,winner_tie\n"
    (data / "many-preds.csv").write_text(header + "".join(f"{i},0.5,0.3,0.2\n" for i in numbers))
    (data / "many-truth.csv").write_text(header + "".join(f"{i},1,0,0\n" for i in numbers[::-1]))


def output_of(done: Result) -> str:
    """What a command printed, without times."""
    return re.sub(r"[\d,.]+ (s in all|(battles|answers)/s)|\d{8}-\d{6}", "", done.out)


class Attempts:
    """One verb on the small disk."""

    def __init__(self, commands: Commands, name: str, disk: SmallDisk, data: Path, table: Table) -> None:
        self.commands, self.name, self.verb = commands, name, VERBS[name]
        self.disk, self.data, self.table = disk, data, table
        self.old = f"an older output of {name}\n"

    def run(self, before: str = "") -> Result:
        arguments = self.verb.arguments.format(data=self.data).split()
        return self.commands.run(
            *arguments,
            folder=self.disk.path,
            before=self.verb.before + "\n" + before,
            TMPDIR=str(self.disk.path / "temporary"),
        )

    def clear(self) -> None:
        self.disk.leave(None)
        for path in self.disk.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.disk.path / "temporary").mkdir()
        (self.disk.path / "ballast").write_bytes(b"0")  # a size of 0 would be no limit
        if self.verb.old:
            path = self.disk.path / self.verb.old
            path.parent.mkdir(exist_ok=True)
            path.write_text(self.old)

    def left(self) -> dict[str, str]:
        return {name: digest for name, digest in tree(self.disk.path).items() if self.verb.compared(name)}

    def undisturbed(self) -> int:
        """Record what the command leaves and prints; returns the smallest number of pages that is enough."""
        self.clear()
        self.undisturbed_result = self.run()
        if self.undisturbed_result.code:
            raise SystemExit(f"{self.name} failed undisturbed: {self.undisturbed_result.err}")
        self.expected = self.left()
        low, high = 0, max(64, 2 * self.disk.pages)
        while low < high:
            middle = (low + high) // 2
            self.clear()
            self.disk.leave(middle)
            low, high = (low, middle) if self.run().code == 0 else (middle + 1, high)
        return high

    def attempt(self, pages: int, full_before_file: int = 0) -> str:
        """Run the command with this much space, then with plenty; returns where it failed the first time.

        With ``full_before_file`` the disk is filled just before that file is written.
        """
        self.clear()
        self.disk.leave(pages)
        failed = self.run(FULL_BEFORE_FILE.format(number=full_before_file) if full_before_file else "")
        filling = self.disk.path / "filling"
        if full_before_file and not filling.exists():
            return "done"
        filling.unlink(missing_ok=True)
        problems = []
        if failed.code == 0:
            if self.left() != self.expected or output_of(failed) != output_of(self.undisturbed_result):
                problems.append("exit 0, but another result")
            place = "succeeded"
        else:
            place = re.sub(r"[\d.]+ [kMG]B|run(?=/)|\d{8}-\d{6}", "", " ".join(failed.error_lines))
            if unclear := failed.unclear():
                problems.append(unclear)
            elif failed.code != 1 or not MESSAGE.match(failed.error_lines[0]):
                problems.append("does not report what is missing")
            elif not failed.error_lines[1:] or not failed.error_lines[1].strip().startswith("in "):
                problems.append("does not report where")
            if self.verb.old and self.verb.kept and (self.disk.path / self.verb.old).read_text() != self.old:
                problems.append("the older output has changed")
            if leftovers := strays(self.disk.path):
                problems.append(f"left {leftovers}")
            self.disk.leave(None)
            again = self.run()
            if again.code:
                problems.append(f"failed again with space: {again.err[-300:]!r}")
            elif self.left() != self.expected:
                differ = {k for k in {**self.left(), **self.expected} if self.left().get(k) != self.expected.get(k)}
                problems.append(f"another result with space: {sorted(differ)[:5]}")
            elif output_of(again) != output_of(self.undisturbed_result):
                problems.append("prints something else with space")
        if leftovers := strays(self.disk.path):
            problems.append(f"left {leftovers}")
        words = " | ".join(failed.error_lines) or failed.err[-300:]
        how = f"full before file {full_before_file}" if full_before_file else f"{pages} pages"
        self.table.add(
            self.name,
            "succeeded, the same" if failed.code == 0 else "refused clearly, then the same with space",
            f"{how}: {'; '.join(problems)} ({words})" if problems else "",
        )
        return place

    def everywhere(self, sizes: int) -> None:
        enough = self.undisturbed()
        print(f"{self.name}: {enough * 4} kB are enough", flush=True)
        begun = time.monotonic()
        tried = {round(i * enough / sizes) for i in range(sizes)} | {enough - 1, enough + 1}
        places = {pages: self.attempt(pages) for pages in sorted(tried) if pages >= 0}
        gaps = True
        while gaps and len(places) < MAX_ATTEMPTS:
            known = sorted(places)
            gaps = [(a, b) for a, b in itertools.pairwise(known) if b - a > 1 and places[a] != places[b]]
            for a, b in gaps[: MAX_ATTEMPTS - len(places)]:
                places[(a + b) // 2] = self.attempt((a + b) // 2)
        for number in range(1, MAX_FILES):
            place = self.attempt(enough + 8, number)
            if place == "done":
                break
            places[enough + 8 + number] = place
        print(
            f"  {len(places)} attempts, {len(set(places.values()))} places, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        for place in dict.fromkeys(places[pages] for pages in sorted(places)):
            print(f"    {place[:150]}")


def names_run_out(commands: Commands, disk: SmallDisk, data: Path, table: Table) -> None:
    """A disk with free space, but out of inodes."""
    for name in ("eda --report", "preprocess", "train, features", "predict .csv"):
        attempts = Attempts(commands, name, disk, data, table)
        attempts.clear()
        attempts.run()
        attempts.expected = attempts.left()
        for more in range(12):
            attempts.clear()
            disk.leave_names(more)
            failed = attempts.run()
            disk.leave_names(None)
            problem = ""
            if failed.code == 0 and attempts.left() != attempts.expected:
                problem = "exit 0, but another result"
            elif failed.code and (failed.unclear() or "cannot hold another file" not in failed.err):
                problem = f"{failed.unclear() or 'unclear'}: {failed.error_lines or failed.err[-300:]}"
            elif leftovers := strays(disk.path):
                problem = f"left {leftovers}"
            elif attempts.run().code or attempts.left() != attempts.expected:
                problem = "another result with space"
            table.add("no inodes left", "succeeded" if failed.code == 0 else "refused clearly", problem)


READ_ONLY = {
    # state of the workspace -> commands that must work, commands that must be refused
    "empty": ([], ["eda", "preprocess", "train", "predict"]),
    "battles cached": (["eda"], ["preprocess", "train", "predict"]),
    "preprocessed": (["eda", "preprocess"], ["train", "predict"]),
    "trained": (["eda", "preprocess", "predict", "predict -m"], ["train", "predict new.csv"]),
}
READ_ONLY_COMMANDS = {
    "eda": "eda {data}/train.csv",
    "preprocess": "preprocess {data}/train.csv",
    "train": "train {data}/train.csv --architecture features --text raw",
    "train, output elsewhere": "train {data}/train.csv --encoder tiny --epochs 1 --output {out}/run --force",
    "predict": "predict {data}/test.csv --output {out}/preds.csv --force",
    "predict -m": "predict {data}/test.csv --model {data}/run --output {out}/preds.csv --force",
    "predict new.csv": "predict {data}/other/test.csv --output {out}/preds.csv --force",
}


def read_only(commands: Commands, disk: SmallDisk, data: Path, table: Table) -> None:
    """A read-only workspace: commands whose stages are cached work, the others report that it is read-only."""
    out = Path(tempfile.mkdtemp(prefix="faults-out-"))
    disk.leave(None)
    for state, (works, refused) in READ_ONLY.items():
        for path in disk.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if state == "battles cached":
            commands.run("eda", data / "train.csv", folder=disk.path)
        elif state == "preprocessed":
            commands.run("preprocess", data / "train.csv", folder=disk.path)
        elif state == "trained":
            commands.run("preprocess", data / "train.csv", folder=disk.path)
            commands.run("train", data / "train.csv", "--encoder", "tiny", "--epochs", "1", folder=disk.path)
            commands.run("predict", data / "test.csv", "--output", out / "preds.csv", "--force", folder=disk.path)
        whole = (out / "preds.csv").read_bytes() if state == "trained" else b""
        before = tree(disk.path)
        disk.read_only(True)
        for command in (*works, *refused):
            arguments = READ_ONLY_COMMANDS[command].format(data=data, out=out).split()
            done = commands.run(*arguments, folder=disk.path)
            problem = ""
            if command in works and done.code:
                problem = f"refused: {done.err[-300:]}"
            elif command == "predict" and command in works and (out / "preds.csv").read_bytes() != whole:
                problem = "other predictions"
            elif state != "trained" and command == "predict" and done.code == 2:
                pass  # there is no run yet, which is reported first
            elif command in refused and (
                done.unclear() or done.code != 1 or "read-only" not in done.err or "--workspace" not in done.err
            ):
                problem = f"{done.unclear() or 'unclear'}: {done.err[-300:]}"
            table.add(
                f"read-only, {state}",
                "worked" if command in works else "refused clearly",
                f"{command}: {problem}" if problem else "",
            )
        # An output on the read-only disk, the workspace elsewhere.
        for command in ("eda {data}/train.csv --report r.html", "predict {data}/test.csv --model {data}/run -o p.csv",
                        "train {data}/train.csv --architecture features --output run", "demo synthetic"):  # fmt: skip
            arguments = command.format(data=data).split()
            elsewhere = str(out / "workspace")
            done = commands.run(*arguments, folder=disk.path, before=SMALL_DEMO, PREFCLI_WORKSPACE=elsewhere)
            clear = not done.unclear() and done.code == 1 and "read-only" in done.err
            table.add(f"read-only, {state}", "refused clearly", "" if clear else f"{command}: {done.err[-300:]}")
        disk.read_only(False)
        if tree(disk.path) != before:
            table.add(f"read-only, {state}", "", "something changed on the disk")
    shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", choices=[*VERBS, "names", "read-only"], action="append")
    parser.add_argument("--sizes", type=int, default=20)
    options = parser.parse_args()
    refuse_without_root()
    table = Table()
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="faults-disk-") as name,
        Commands() as commands,
        small_disk(Path(name) / "disk") as disk,
    ):
        data = Path(name) / "data"
        data.mkdir()
        prepare(commands, data)
        for verb in options.verb or [*VERBS, "names", "read-only"]:
            if verb == "names":
                names_run_out(commands, disk, data, table)
            elif verb == "read-only":
                read_only(commands, disk, data, table)
            else:
                Attempts(commands, verb, disk, data, table).everywhere(options.sizes)
    print(f"{time.monotonic() - begun:.0f} s")
    table.finish()


if __name__ == "__main__":
    main()

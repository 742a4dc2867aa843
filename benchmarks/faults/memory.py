"""Memory of very many battles, and the message when it runs out: ``python benchmarks/faults/memory.py FILE``.

The file's battles are repeated, with ids of their own, until there are ``--battles`` of them (default a million; as
CSV, in a temporary folder). ``preprocess``, ``predict`` and ``score`` of them are measured: seconds, and the peak of
the memory of all their processes together (resident; shared memory counts for each). 10,000 and 100,000 JSON
lines are answered through a pipe. Then a training is started under one address-space limit after the other: each must
succeed, or report that memory ran out and which option helps.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from prefcli.battles import texts_of
from prefcli.data import synthetic
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.readers import open_battles

PREFCLI = [sys.executable, "-m", "prefcli"]
PAGE = os.sysconf("SC_PAGE_SIZE")
LIMITS_MB = (2500, 2600, 2700, 2800, 2900, 3000, 3200, 3600, 4000, 5000, 6000, 8000, 10000, 12000)
"""With less, Python's libraries cannot be loaded, and some of them end the process."""


def repeated(file: Path, target: Path, battles: int) -> None:
    """The battles of a file over and over, single-turn, in Kaggle's columns."""
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "prompt", "response_a", "response_b", *WINNER_COLUMNS])
        written = 0
        while written < battles:
            for batch, _ in open_battles(file).batches():
                columns = [texts_of(batch.column(name)) for name in ("prompt", "response_a", "response_b")]
                labels = batch.column("label").to_pylist()
                for label, *texts in zip(labels, *columns, strict=True):
                    if written == battles:
                        return
                    row = [json.dumps([text]) for text in texts]
                    writer.writerow([written, *row, *(int(label == i) for i in range(3))])
                    written += 1


def resident(pid: int) -> int:
    """Bytes of a process and all its children."""
    total = 0
    try:
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    except (OSError, ValueError):
        pass  # it ended meanwhile
    return total


def measured(
    arguments: list[str], folder: Path, limit: Callable[[], None] | None = None
) -> tuple[int, float, int, str]:
    """Exit code, seconds, peak bytes of all processes, and stderr."""
    started = time.monotonic()
    process = subprocess.Popen(
        [*PREFCLI, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
        text=True,
    )
    stderr: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: stderr.extend(process.stderr))  # type: ignore[arg-type]
    reader.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    reader.join()
    return process.returncode, time.monotonic() - started, peak, "".join(stderr)


def many(file: Path, battles: int, folder: Path) -> int:
    """``preprocess``, ``predict``, ``score`` of very many battles."""
    synthetic.write(folder, train=2000, test=10)
    subprocess.run(
        [*PREFCLI, "train", "train.csv", "--recipe", "fast", "--output", "run"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    repeated(file, folder / "many.csv", battles)
    size = (folder / "many.csv").stat().st_size / 1e6
    print(
        f"{battles:,} battles, {size:,.0f} MB of CSV\n\n| command | s | peak MB, all processes |\n|---|---|---|",
        flush=True,
    )
    bad = 0
    for arguments in (
        ["preprocess", "many.csv"],
        ["predict", "many.csv", "--model", "run", "-o", "p.csv"],
        ["score", "p.csv", "many.csv"],
    ):
        code, seconds, peak, stderr = measured(arguments, folder)
        print(f"| {arguments[0]} | {seconds:.0f} | {peak / 1e6:,.0f} |", flush=True)
        if code:
            bad += 1
            print(f"exit {code}: {stderr[-1000:]}", flush=True)
    return bad


def lines(file: Path, folder: Path) -> int:
    """JSON lines through a pipe, ten times as many: answered one by one, with the same memory."""
    synthetic.write(folder, train=2000, test=10)
    train = [*PREFCLI, "train", "train.csv", "--recipe", "fast", "--output", "run"]
    subprocess.run(train, cwd=folder, check=True, capture_output=True)
    repeated(file, folder / "some.csv", 1000)
    with (folder / "some.csv").open(encoding="utf-8", newline="") as stream:
        block = "".join(json.dumps(row) + "\n" for row in csv.DictReader(stream))
    print("\n| JSON lines through a pipe | s | peak MB |\n|---|---|---|", flush=True)
    bad = 0
    for thousands in (10, 100):
        process = subprocess.Popen(
            [*PREFCLI, "predict", "-", "--output", "-", "--model", "run"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

        def send(pipe: IO[bytes], times: int) -> None:
            for _ in range(times):
                pipe.write(block.encode())
            pipe.close()

        assert process.stdin is not None
        assert process.stdout is not None
        threading.Thread(target=send, args=(process.stdin, thousands)).start()
        started, peak, answered = time.monotonic(), 0, 0
        for answered, _ in enumerate(process.stdout, start=1):
            if answered % 500 == 0:
                peak = max(peak, resident(process.pid))
        bad += process.wait() != 0 or answered != thousands * 1000
        print(f"| {answered:,} | {time.monotonic() - started:.0f} | {peak / 1e6:,.0f} |", flush=True)
    return bad


def little(file: Path, folder: Path) -> int:
    """Trainings in too little memory."""
    repeated(file, folder / "train.csv", 400)
    print("\n| address space, MB | exit | message |\n|---|---|---|", flush=True)
    bad = 0
    for limit in LIMITS_MB:

        def set_limit(size: int = limit << 20) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

        flags = ["--encoder", "tiny", "--max-length", "512", "--batch-size", "256", "--micro-batch", "256"]
        code, _, _, stderr = measured(
            ["train", "train.csv", "--text", "raw", *flags, "--output", f"run-{limit}"], folder, set_limit
        )
        lines = stderr.strip().splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith("error")), max(len(lines) - 1, 0))
        good = code == 0 or (code == 1 and "out of memory" in stderr and "--micro-batch" in stderr)
        bad += not good
        message = " / ".join(line.strip() for line in lines[start:])[:300] if code else ""
        print(f"| {limit} | {code} | {message} |{'' if good else ' <-- WRONG'}", flush=True)
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--battles", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["many", "lines", "little"])
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        for what in ("many", "lines", "little"):
            if options.only in (None, what):
                place = Path(name, what)
                place.mkdir()
                file = options.file.resolve()
                if what == "many":
                    bad += many(file, options.battles, place)
                else:
                    bad += (lines if what == "lines" else little)(file, place)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

"""Time and memory of complete commands: ``python benchmarks/pipeline.py [FILE]``.

FILE is any file of battles; without one 20,000 synthetic battles are made. Every command runs in a process of its own,
in a fresh workspace, several times; the median is printed, with the peak memory of the process and its children.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3


def measure(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with exit code {process.returncode}: {' '.join(arguments)}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="battles to use instead of synthetic ones")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if options.file is None:
            from prefcli.data import synthetic

            options.file = synthetic.write(root / "data", train=20_000, test=10).train
        file = str(options.file.resolve())
        prefcli = [sys.executable, "-m", "prefcli"]
        commands = {
            "python -c 'import typer, rich'": ([sys.executable, "-c", "import typer, rich"], False),
            "prefcli --help": ([*prefcli, "--help"], False),
            "prefcli eda FILE (first time)": ([*prefcli, "eda", file], True),
            "prefcli eda FILE (from the cache)": ([*prefcli, "eda", file], False),
            "prefcli preprocess FILE (read already)": ([*prefcli, "preprocess", file], False),
            "prefcli preprocess FILE (first time)": ([*prefcli, "preprocess", file], True),
        }
        times: dict[str, list[tuple[float, float]]] = {label: [] for label in commands}
        for repeat in range(options.repeats):
            shared = root / f"shared-{repeat}"
            shared.mkdir()
            for number, (label, (arguments, fresh)) in enumerate(commands.items()):
                folder = shared
                if fresh and "preprocess" in label:
                    folder = root / f"fresh-{repeat}-{number}"
                    folder.mkdir()
                times[label].append(measure(arguments, folder))
        print(f"{options.file.name}: {options.file.stat().st_size / 1e6:.0f} MB, {options.repeats} repeats")
        print("| command | median s | peak MB of its largest process |\n|---|---|---|")
        for label, measured in times.items():
            seconds = statistics.median(s for s, _ in measured)
            print(f"| `{label}` | {seconds:.2f} | {max(m for _, m in measured):.0f} |")


if __name__ == "__main__":
    main()

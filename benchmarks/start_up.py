"""How soon the command answers: ``python benchmarks/start_up.py``.

Helps and completions, each as a process of its own, beside a Python that imports typer and rich. Processes take turns;
the medians of their wall time and of their processor time are printed. The second hardly depends on other load.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

PREFCLI = [sys.executable, "-m", "prefcli"]
REFERENCE = "import typer, rich"
LINE = "prefcli train --re"
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "python": ([sys.executable, "-c", "pass"], {}),
    REFERENCE: ([sys.executable, "-c", "import typer, rich.console"], {}),
    "prefcli": (PREFCLI, {}),
    "prefcli train --help": ([*PREFCLI, "train", "--help"], {}),
    "completion in bash": (PREFCLI, {"_PREFCLI_COMPLETE": "complete_bash", "COMP_WORDS": LINE, "COMP_CWORD": "2"}),
    "completion in zsh": (PREFCLI, {"_PREFCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": LINE}),
    "completion in fish": (
        PREFCLI,
        {
            "_PREFCLI_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_ARGS": LINE,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    ),
}


def measure(command: list[str], variables: dict[str, str]) -> tuple[float, float]:
    """Seconds of wall time and of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, env={**os.environ, **variables}, capture_output=True, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, (command, variables) in COMMANDS.items():
            times[name].append(measure(command, variables))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    print("| | wall | processor | of typer and rich |\n|---|---|---|---|")
    for name, (wall, processor) in medians.items():
        print(
            f"| `{name}` | {wall * 1e3:.0f} ms | {processor * 1e3:.0f} ms | {processor / medians[REFERENCE][1]:.1f} |"
        )


if __name__ == "__main__":
    main()

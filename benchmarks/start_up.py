"""How soon the command answers: ``python benchmarks/start_up.py [--work]``.

Helps and completions, each as a process of its own, beside a Python that imports typer and rich; with ``--work``
instead trainings and predictions of a few battles, most of whose time is loading libraries, beside a Python that
imports the largest ones. ``--beside FOLDER`` measures another checkout in turn with this one. Processes take turns;
the medians of their wall time and of their processor time are printed. The second hardly depends on other load.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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

TINY = ["--encoder", "tiny", "--max-length", "32", "--max-steps", "2", "--force", "--output"]
WORK: dict[str, list[str]] = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import transformers' DeBERTa": [sys.executable, "-c", "import transformers.models.deberta_v2.modeling_deberta_v2"],
    "train, neural": [*PREFCLI, "train", "battles.csv", *TINY, "neural"],
    "predict, neural": [*PREFCLI, "predict", "battles.csv", "--model", "neural", "--output", "p.csv", "--force"],
    "train, features": [*PREFCLI, "train", "battles.csv", "--recipe", "fast", "--output", "features", "--force"],
    "predict, features": [*PREFCLI, "predict", "battles.csv", "--model", "features", "--output", "p.csv", "--force"],
}


def write_battles(path: Path, count: int = 100) -> None:
    """Battles that differ enough for a training."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    with path.open("w", encoding="utf-8") as file:
        file.write("id,prompt,response_a,response_b,winner\n")
        for i in range(count):
            texts = [" ".join(words[(i * k + j) % 10] for j in range(5 + (i + k) % 7)) for k in (1, 3, 7)]
            file.write(",".join([str(i), *texts, ("model_a", "model_b", "tie")[i % 3]]) + "\n")


def measure(command: list[str], variables: dict[str, str], folder: Path | None = None) -> tuple[float, float]:
    """Seconds of wall time and of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, env={**os.environ, **variables}, capture_output=True, check=True, cwd=folder)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--work", action="store_true", help="trainings and predictions instead of helps")
    parser.add_argument("--beside", type=Path, help="another checkout of prefcli")
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    checkouts = {"": here} | ({f" ({args.beside.name})": args.beside.resolve()} if args.beside else {})
    commands = {name: (command, {}) for name, command in WORK.items()} if args.work else COMMANDS
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_battles(folder / "battles.csv")
        for number in range(args.rounds + args.work):
            for what, (command, variables) in commands.items():
                for label, checkout in checkouts.items():
                    measured = measure(command, {**variables, "PYTHONPATH": str(checkout)}, folder)
                    if number or not args.work:  # the first round writes what later ones find in the workspace
                        times.setdefault(what + label, []).append(measured)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    reference = medians[next(iter(WORK)) if args.work else REFERENCE][1]
    print(f"| | wall | processor | of `{next(iter(WORK)) if args.work else REFERENCE}` |\n|---|---|---|---|")
    for name, (wall, processor) in medians.items():
        print(f"| `{name}` | {wall * 1e3:.0f} ms | {processor * 1e3:.0f} ms | {processor / reference:.1f} |")


if __name__ == "__main__":
    main()

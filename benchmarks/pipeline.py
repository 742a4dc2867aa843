"""Time and memory of complete commands: ``python benchmarks/pipeline.py [FILE]``.

FILE is any file of battles; without one 20,000 synthetic battles are made. Every command runs in a process of its own,
in a fresh workspace, several times; the median is printed, with the peak memory of the process and its children.
``--nested ROWS`` adds the reading of so many JSON lines of nested messages (0: none).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

REPEATS = 3
READ = """
import sys
from prefcli.readers import open_battles
sum(batch.num_rows for batch, _ in open_battles(__import__("pathlib").Path(sys.argv[1])).batches())
"""


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


def write_nested(path: Path, rows: int) -> Path:
    """Conversations of 1 to 3 turns as JSON lines, about 3 KB a row."""
    random = Random(0)
    words = ["alpha", "beta", "gamma", "river", "stone", "käse", "“quoted”", "line\nbreak", "tree", '"q"', "42"]

    def conversation(row: int, turns: int) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        texts = [f"question {row} {turn // 2}" if turn % 2 == 0 else answer() for turn in range(2 * turns)]
        return [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(texts)]

    def answer() -> str:
        return " ".join(random.choices(words, k=random.randint(20, 200)))

    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            turns = random.choice((1, 1, 2, 3))
            battle = {
                "question_id": f"q{row}",
                "model_a": "koala",
                "model_b": "vole",
                "winner": random.choice(("model_a", "model_b", "tie")),
                "conversation_a": conversation(row, turns),
                "conversation_b": conversation(row, turns),
                "meta": {"language": "English", "tags": [1, 2, 3]},
            }
            file.write(json.dumps(battle, ensure_ascii=row % 2 == 0) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="battles to use instead of synthetic ones")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--nested", type=int, default=200_000, metavar="ROWS")
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
        if options.nested:
            nested = write_nested(root / "nested.jsonl", options.nested)
            label = f"read {options.nested:,} JSON lines of nested messages, {nested.stat().st_size / 1e6:.0f} MB"
            commands[label] = ([sys.executable, "-c", READ, str(nested)], False)
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

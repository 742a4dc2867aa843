"""How good ``--estimate`` is: estimates and the real commands in turns, each from an empty workspace.

``python benchmarks/estimates.py FILE [--encoder FOLDER] [--rounds 3] [--only NAME ...]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(arguments: list[str]) -> tuple[dict[str, object], float, float]:
    """A command's JSON, its wall time, and the peak of its memory in MB."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([sys.executable, "-m", "prefcli", *arguments, "--json", "--quiet"], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        took = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{' '.join(arguments)} failed")
        out.seek(0)
        return json.loads(out.read()), took, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--encoder", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    at = Path(tempfile.mkdtemp())
    trained = at / "trained"
    run(["train", given.file, "--encoder", "tiny", "--limit", "300", "--workspace", str(trained)])
    train = ["train", given.file]
    commands = {
        "tiny, 1,000 battles": [*train, "--encoder", "tiny", "--limit", "1000"],
        "features, 2,000 battles": [*train, "--recipe", "fast", "--limit", "2000"],
        "predict, tiny, 2,000 battles": ["predict", given.file, "--limit", "2000"],
    }
    if given.encoder:
        commands["encoder, 400 battles, 128 tokens"] = [
            *train, "--encoder", given.encoder, "--limit", "400", "--max-length", "128",
        ]  # fmt: skip
    print(
        "| command | estimated s (interval) | real s | off by | the estimate took s | estimated MB | real MB | load |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, command in commands.items():
        if given.only and not any(word in name for word in given.only):
            continue
        off = []
        for number in range(given.rounds):
            places = [at / f"{number}-{what}" for what in ("estimate", "real")]
            for place in places:
                shutil.copytree(trained, place, ignore=shutil.ignore_patterns("stages"))
                latest = place / "latest-train.json"
                latest.write_text(latest.read_text().replace(str(trained.resolve()), str(place.resolve())))
            output = ["--output", str(at / f"{number}.csv")] if command[0] == "predict" else []
            guess, took, _ = run([*command, "--estimate", "--workspace", str(places[0])])
            real, _, peak = run([*command, *output, "--workspace", str(places[1])])
            estimate = guess["estimate"]
            assert isinstance(estimate, dict)
            kept, (low, high) = estimate["kept_seconds"], estimate["interval"]
            total = estimate["seconds"] + kept
            off.append(total / float(str(real["seconds"])) - 1)
            print(
                f"| {name} | {total:.1f} ({low + kept:.1f} to {high + kept:.1f}) | {real['seconds']:.1f} | "
                f"{off[-1]:+.0%} | {took:.1f} | "
                f"{estimate['memory_mb']:,.0f} | {peak:,.0f} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
            for place in places:
                shutil.rmtree(place)
            Path(at / f"{number}.csv").unlink(missing_ok=True)
        print(f"| {name}: median | | | {statistics.median(off):+.0%} | | | | |", flush=True)
    shutil.rmtree(at)


if __name__ == "__main__":
    main()

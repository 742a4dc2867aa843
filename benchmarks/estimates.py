"""How good ``--estimate`` is: estimates and the real commands in turns, each with an empty cache.

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
        seconds = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{' '.join(arguments)} failed")
        out.seek(0)
        return json.loads(out.read()), seconds, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--encoder", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    trained = root / "trained"
    run(["train", args.file, "--encoder", "tiny", "--limit", "300", "--workspace", str(trained)])
    train = ["train", args.file]
    commands = {
        "tiny, 1,000 battles": [*train, "--encoder", "tiny", "--limit", "1000"],
        "features, 2,000 battles": [*train, "--recipe", "fast", "--limit", "2000"],
        "predict, tiny, 2,000 battles": ["predict", args.file, "--limit", "2000"],
    }
    if args.encoder:
        commands["encoder, 400 battles, 128 tokens"] = [
            *train, "--encoder", args.encoder, "--limit", "400", "--max-length", "128",
        ]  # fmt: skip
    print("| command | estimated s (range) | real s | off by | estimating s | estimated MB | real MB | load |")
    print("|---|---|---|---|---|---|---|---|")
    for name, command in commands.items():
        if args.only and not any(word in name for word in args.only):
            continue
        errors = []
        for number in range(args.rounds):
            workspaces = [root / f"{number}-{what}" for what in ("estimate", "real")]
            for workspace in workspaces:
                shutil.copytree(trained, workspace, ignore=shutil.ignore_patterns("stages"))
                latest = workspace / "latest-train.json"
                latest.write_text(latest.read_text().replace(str(trained.resolve()), str(workspace.resolve())))
            output = ["--output", str(root / f"{number}.csv")] if command[0] == "predict" else []
            result, estimate_seconds, _ = run([*command, "--estimate", "--workspace", str(workspaces[0])])
            real, _, peak = run([*command, *output, "--workspace", str(workspaces[1])])
            estimate = result["estimate"]
            assert isinstance(estimate, dict)
            kept, (low, high) = estimate["kept_seconds"], estimate["interval"]
            total = estimate["seconds"] + kept
            errors.append(total / float(str(real["seconds"])) - 1)
            print(
                f"| {name} | {total:.1f} ({low + kept:.1f} to {high + kept:.1f}) | {real['seconds']:.1f} | "
                f"{errors[-1]:+.0%} | {estimate_seconds:.1f} | "
                f"{estimate['memory_mb']:,.0f} | {peak:,.0f} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
            for workspace in workspaces:
                shutil.rmtree(workspace)
            Path(root / f"{number}.csv").unlink(missing_ok=True)
        print(f"| {name}: median | | | {statistics.median(errors):+.0%} | | | | |", flush=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()

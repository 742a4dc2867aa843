"""Kill a training at random moments, resume it each time, and compare its bytes with those of an undisturbed one.

``python benchmarks/kill_and_resume.py [--kills 20] [--signal KILL]`` trains ``tiny`` on synthetic battles once without
disturbance; then again and again, killed after random times and resumed until it has finished, until it has been
killed ``--kills`` times. It prints in which state it was killed how often, and whether ``model.safetensors`` is
byte-identical. A run that was killed after its end, perhaps while its checkpoints were removed, cannot be resumed, and
must be complete.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prefcli.data import synthetic


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prefcli", "train", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal_number = getattr(signal, f"SIG{options.signal}")
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write(folder, train=1200, test=10)
        training = ["train.csv", "--encoder", "tiny", "--epochs", "2", "--checkpoint-every", "7", "--eval-every", "31"]
        started = time.monotonic()
        if start(folder, *training, "--output", "undisturbed").wait():
            raise SystemExit("the undisturbed training failed")
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.1f} s, model.safetensors {digest(folder / 'undisturbed')[:16]}")
        kills = finished = identical = 0
        states: dict[str, int] = {}
        round_ = 0
        while kills < options.kills:
            run = folder / f"killed-{round_}"
            round_ += 1
            while True:
                started_before = (run / "config.json").is_file()
                arguments = ["--resume", run.name] if started_before else [*training, "--output", run.name, "--force"]
                process = start(folder, *arguments)
                wait = moments.uniform(0.0, seconds) if kills < options.kills else None
                try:
                    code = process.wait(timeout=wait)
                except subprocess.TimeoutExpired:
                    checkpoints = len(list((run / "checkpoints").glob("step-*"))) if run.exists() else 0
                    process.send_signal(signal_number)
                    process.wait()
                    if not (run / "config.json").is_file():
                        state = "before its folder was complete"
                    elif not (run / "unfinished").is_file():
                        state = "after its end"
                    else:
                        state = "with checkpoints" if checkpoints else "before its first checkpoint"
                    kills += 1
                    states[state] = states.get(state, 0) + 1
                    continue
                if code and (code != 2 or (run / "unfinished").is_file()):
                    raise SystemExit(f"resuming failed with exit code {code}")
                if left := list((run / "checkpoints").glob("*")):
                    raise SystemExit(f"a finished run has {left}")
                finished += 1
                identical += digest(run) == digest(folder / "undisturbed")
                break
        print(f"{kills} times SIG{options.signal}: {', '.join(f'{n} {state}' for state, n in states.items())}")
        print(f"{finished} trainings finished after that, {identical} byte-identical to the undisturbed one")
        if identical != finished:
            raise SystemExit(1)


if __name__ == "__main__":
    main()

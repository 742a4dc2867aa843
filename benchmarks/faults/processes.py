"""Kill one of several processes: ``python benchmarks/faults/processes.py [--kills 6]``.

``torchrun``: a training of two ranks, and one of two nodes (two agents, one rendezvous), lose a rank by SIGKILL at a
random moment: the main one, another one, a whole node with its agent. The others must end within ``--within`` seconds
with an error that says so; the same command again must continue and end with the bytes of an undisturbed training.

Ray (where it is installed): ``predict_shards.py`` of ``docs/scale.md`` loses a worker (Ray must go on by itself), then
its driver (a second call must do only the shards that are missing). All predictions must be those of an undisturbed
call, to the byte, and nothing else may lie in their folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import scale_ray

from prefcli.data import synthetic

TRAIN = [
    "train", "train.csv", "--encoder", "tiny", "--max-length", "64", "--epochs", "2", "--checkpoint-every", "5",
    "--log-every", "1", "--output",
]  # fmt: skip
LOST = ("another of the 2 processes ended or cannot be reached", "Signal 9 (SIGKILL) received")
"""What prefcli says on another node, and torchrun where the process ran."""
VICTIMS = ("the main rank", "another rank", "a rank on the second node", "the second node")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(folder: Path, run: str, nodes: int) -> list[subprocess.Popen[bytes]]:
    """Two ranks, on one node or two."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *place, f"--nproc-per-node={2 // nodes}"]
    command += ["-m", "prefcli", *TRAIN, run]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL,
            stderr=(folder / f"{run}.{node}").open("ab"), start_new_session=True,
        )
        for node in range(nodes)
    ]  # fmt: skip


def children(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """The ranks that an agent started: rank -> process."""
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    ranks = {}
    for pid in map(int, listed.stdout.split()):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks.update({int(each[5:]): pid for each in variables if each.startswith(b"RANK=")})
    return ranks


def wait_until(condition: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not condition():
        if any(process.poll() is not None for process in processes):
            raise SystemExit("the command ended before it was killed")
        time.sleep(0.05)


def kill(victim: str, agents: list[subprocess.Popen[bytes]]) -> None:
    ranks = {rank: pid for agent in agents for rank, pid in children(agent).items()}
    if victim == "the second node":
        [agent] = [agent for agent in agents if 1 in children(agent)]
        agent.send_signal(signal.SIGKILL)
    os.kill(ranks[0 if victim == "the main rank" else 1], signal.SIGKILL)


def of_torchrun(folder: Path, options: argparse.Namespace) -> int:
    """Kill ranks; how many promises were broken."""
    moments = random.Random(options.seed)
    synthetic.write(folder, train=400, test=200)
    [undisturbed] = start(folder, "undisturbed", 1)
    if undisturbed.wait():
        raise SystemExit((folder / "undisturbed.0").read_text()[-3000:])
    expected, broken = digest(folder / "undisturbed" / "model.safetensors"), 0
    lines = (folder / "undisturbed" / "metrics.jsonl").read_text().count("\n")
    print("| killed | at step | the others ended after | with | again: the same bytes |\n|---|---|---|---|---|")
    for number in range(options.kills):
        victim, run = options.victims[number % len(options.victims)], f"killed-{number}"
        agents = start(folder, run, 2 if "node" in victim else 1)
        step, log = moments.randrange(1, lines - 2), folder / run / "metrics.jsonl"
        wait_until(lambda log=log, step=step: log.exists() and log.read_text().count("\n") >= step, agents)
        kill(victim, agents)
        killed = time.monotonic()
        codes = [agent.wait() for agent in agents]
        seconds = time.monotonic() - killed
        said = "".join((folder / f"{run}.{node}").read_text() for node in range(len(agents)))
        words = [sentence for sentence in LOST if sentence in said]
        again = [agent.wait() for agent in start(folder, run, len(agents))]
        same = not any(again) and digest(folder / run / "model.safetensors") == expected
        print(f"| {victim} | {step} of {lines} | {seconds:.1f} s | {'; '.join(words)} | {same} |", flush=True)
        broken += not (same and all(codes) and words and seconds < options.within)
    return broken


def of_ray(folder: Path) -> int:
    """Kill a worker of Ray, then the driver; how many promises were broken."""
    import prefcli

    synthetic.write(folder, train=400, test=200)
    run = prefcli.train(folder / "train.csv", recipe="fast", output=folder / "run", workspace=folder / "w").run
    shards = scale_ray.write_shards(folder / "train.csv", folder / "battles", 24_000, 2_000)

    def call(predictions: Path) -> subprocess.Popen[bytes]:
        predictions.mkdir(exist_ok=True)
        return scale_ray.start("predict_shards.py", folder, run, folder / "battles", predictions, 2)

    def done(predictions: Path) -> list[Path]:
        return sorted(predictions.glob("*.parquet"))

    def finish(process: subprocess.Popen[bytes], predictions: Path) -> bool:
        """Whether it ends well, with the predictions of the undisturbed call and nothing else."""
        if process.wait():
            print((folder / "predict_shards.py.log").read_text()[-3000:], file=sys.stderr)
            return False
        names = [shard.name for shard in shards]
        alike = [digest(path) == digest(folder / "undisturbed" / path.name) for path in done(predictions)]
        return all(alike) and sorted(path.name for path in predictions.iterdir()) == names

    undisturbed, worker, driver = (folder / name for name in ("undisturbed", "worker", "driver"))
    broken = int(not finish(call(undisturbed), undisturbed))

    process = call(worker)
    wait_until(lambda: len(done(worker)) >= 2, [process])
    os.kill(next(iter(scale_ray.ray_workers())), signal.SIGKILL)
    same = finish(process, worker)
    print(f"a worker killed after 2 of {len(shards)} shards: the call goes on by itself, the same bytes: {same}")
    broken += not same

    process = call(driver)
    wait_until(lambda: len(done(driver)) >= 3, [process])
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(10)  # Ray ends the workers of a driver that is gone
    there = {path: path.stat().st_mtime_ns for path in done(driver)}
    same = finish(call(driver), driver)
    untouched = all(path.stat().st_mtime_ns == written for path, written in there.items())
    report = re.findall(r"\d+ of \d+ shards to predict", (folder / "predict_shards.py.log").read_text())[-1]
    print(f"the driver killed: then {report}, those that were there untouched: {untouched}, the same bytes: {same}")
    return broken + (not same) + (not untouched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--within", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=VICTIMS)
    parser.add_argument("--only", choices=["torchrun", "ray"])
    options = parser.parse_args()
    folder, broken = Path(tempfile.mkdtemp()), 0
    if options.only in (None, "torchrun"):
        broken += of_torchrun(folder, options)
    if options.only in (None, "ray"):
        if importlib.util.find_spec("ray") is None:
            print('Ray is not installed, so its kills are left out: pip install "ray[data]"')
        else:
            broken += of_ray(folder / "ray")
    shutil.rmtree(folder)
    if broken:
        raise SystemExit(f"{broken} promises were broken")


if __name__ == "__main__":
    main()

"""A training step in several processes against one, at equal work: ``python benchmarks/processes.py FILE``.

``torchrun`` starts 1, 2 and 4 gloo ranks on this machine, one thread each. All take the same steps over the same
battles with the same ``--batch`` over all ranks, through ``prefcli.training.loop`` as ``prefcli train`` does. In each
process steps with and without exchange take turns: the latter compute the same share, but no gradients and no flags
are exchanged. Printed are medians over the steps of

- *step*: seconds of a whole step;
- *slowest share*: seconds that the slowest rank of the step computes;
- *exchange*: what the first has beyond the second;
- *uneven*: how much longer the slowest rank computes than all do on average. More ranks than cores share the cores, so
  there this says little.

A second table needs no clock: how many tokens more than the mean the rank with the most gets of a step, dealt out at
random and as ``prefcli`` does.

Then whole commands, ``--only commands``: ``prefcli train`` of ``tiny`` without dropout in 1, 2 and 4 ranks, sharded,
continued by another number of ranks, and on two nodes (two agents of ``torchrun`` with one rendezvous), each against
one process: largest differences of losses and predictions, and which ranks wrote into the run's folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from prefcli.data import synthetic

MINILM = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522,
}  # fmt: skip
"""The shape of all-MiniLM-L6-v2: 22.7 million parameters, 91 MB of gradients in float32."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def a_spec(options: argparse.Namespace, world: Any) -> Any:
    """The first battles of the file and a model of the asked shape, the same on every rank."""
    import pyarrow as pa
    import torch

    from prefcli import encoders
    from prefcli.battles import TEXT_FIELDS, texts_of
    from prefcli.compute import devices
    from prefcli.models import neural
    from prefcli.models.tokens import tokenise
    from prefcli.options import TrainOptions
    from prefcli.readers import open_battles
    from prefcli.reporting import SILENT
    from prefcli.training import loop

    read: list[Any] = []
    for batch, _ in open_battles(options.file).batches():
        read.append(batch)
        if sum(each.num_rows for each in read) >= options.battles:
            break
    batches = pa.Table.from_batches(read).slice(0, options.battles).to_batches()
    texts = (text for batch in batches for name in TEXT_FIELDS for text in texts_of(batch.column(name)))
    train_options = TrainOptions(batch_size=options.batch, max_length=options.max_length, precision="fp32", epochs=100)
    if options.encoder == "tiny":
        located = encoders.locate("tiny")
        tokenizer = encoders.make_tokenizer(located, list(texts))
        encoder = encoders.make_encoder(located, len(tokenizer), seed=0)
    else:
        tokenizer = encoders.train_tokenizer(texts, 2000)
        encoder = encoders.from_config(MINILM, seed=0)
    torch.manual_seed(0)
    model = neural.build(train_options, encoder, tokenizer, options.max_length, devices.place("cpu", "fp32"))
    battles = tokenise(tokenizer, iter(batches))
    targets = np.eye(3, dtype=np.float32)[battles.labels]
    folder = Path(tempfile.mkdtemp())
    return loop.FitSpec(model, battles, targets, None, train_options, folder, SILENT, world=world)


def work(options: argparse.Namespace) -> None:
    """One rank: time steps with and without exchange; the main rank prints the seconds of all."""
    from torch.nn.parallel import DistributedDataParallel

    from prefcli.compute.distributed import from_environment, process_group
    from prefcli.training import loop

    world = from_environment()
    with process_group(world):
        spec = a_spec(options, world)
        training = loop._Training(spec)
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for number in range(options.steps + 2):
            rows = spec.batch(0, number % spec.batches_per_epoch)
            passes = spec.prepare(rows)
            for way in seconds:
                world.barrier()
                started = time.perf_counter()
                lone = way == "without" and isinstance(training.module, DistributedDataParallel)
                with training.module.no_sync() if lone else contextlib.nullcontext():
                    training.step(rows, passes, logging=False)
                if way == "with":
                    training.exchange(0, time_is_up=False, checkpoint_due=False, logging=False)
                if number >= 2:  # the first ones warm up
                    seconds[way].append(time.perf_counter() - started)
        everyone = world.gather(seconds)
        shutil.rmtree(spec.folder)
    if world.is_main_process:
        whole, shares = (np.array([rank[way] for rank in everyone]) for way in ("with", "without"))
        print(json.dumps({
            "step": np.median(whole.max(axis=0)), "share": np.median(shares.max(axis=0)),
            "exchange": np.median(whole.max(axis=0) - shares.max(axis=0)),
            "uneven": np.median(shares.max(axis=0) / shares.mean(axis=0)) - 1,
        }))  # fmt: skip


def steps(options: argparse.Namespace) -> None:
    """The table of one step, every number of ranks in turn."""
    print(f"{options.batch} battles a step, {options.max_length} tokens a sequence at most, one thread a rank\n")
    print("| encoder | ranks | step | against one rank | slowest share | exchange | uneven |")
    print("|---|---|---|---|---|---|---|")
    for encoder in options.encoders:
        figures: dict[int, list[dict[str, float]]] = {ranks: [] for ranks in options.ranks}
        for _ in range(options.rounds):
            for ranks, rounds in figures.items():
                mine = [f"--{name}={getattr(options, name)}" for name in ("battles", "batch", "steps")]
                mine += [f"--max-length={options.max_length}", f"--encoder={encoder}", "--worker"]
                command = [*TORCHRUN, "--standalone", f"--nproc-per-node={ranks}", __file__, str(options.file), *mine]
                done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
                rounds.append(json.loads(done.stdout.splitlines()[-1]))
        base = statistics.median(each["step"] for each in figures[options.ranks[0]])
        for ranks, rounds in figures.items():
            step, share, exchange, uneven = (
                statistics.median(each[name] for each in rounds) for name in ("step", "share", "exchange", "uneven")
            )
            print(
                f"| {encoder} | {ranks} | {1e3 * step:.0f} ms | {base / step:.2f} times | {1e3 * share:.0f} ms "
                f"| {1e3 * exchange:.1f} ms ({exchange / step:.0%}) | {uneven:.0%} |"
            )


def tokens(options: argparse.Namespace) -> None:
    """The table of how evenly tokens are dealt out."""
    from prefcli.compute.distributed import World

    print(f"\n| ranks | {options.batch} battles of at most 512 tokens: most tokens, dealt at random | by length |")
    print("|---|---|---|")
    spec = a_spec(argparse.Namespace(**{**vars(options), "max_length": 512, "encoder": "tiny"}), World())
    for ranks in (2, 4, 8):
        spec.world, excess = World(0, ranks), []
        for number in range(spec.batches_per_epoch - 1):
            rows = spec.batch(0, number)
            for shares in ([rows[rank::ranks] for rank in range(ranks)], [spec.share(rows, r) for r in range(ranks)]):
                sums = [spec.lengths[share].sum() for share in shares]
                excess.append(max(sums) / np.mean(sums) - 1)
        print(f"| {ranks} | {np.mean(excess[::2]):.1%} | {np.mean(excess[1::2]):.1%} |")


def audited(log: Path, arguments: list[str]) -> None:
    """Run ``prefcli`` in this process, and note in a file which rank puts what into its place."""
    rank = os.environ.get("RANK", "0")

    def note(event: str, details: tuple[Any, ...]) -> None:
        if event == "os.rename":
            with log.open("a") as file:
                file.write(f"{rank} {os.fspath(details[1])}\n")

    sys.addaudithook(note)
    from prefcli.__main__ import main as prefcli

    sys.argv[1:] = arguments
    prefcli()


def launch(folder: Path, arguments: list[str], *, ranks: int = 1, nodes: int = 1) -> None:
    """Run ``prefcli`` in some processes, on one or more nodes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={port}"]
    command = [*TORCHRUN, *place, f"--nproc-per-node={ranks}", __file__, "--audited", *arguments]
    if ranks * nodes == 1:
        command = [sys.executable, __file__, "--audited", *arguments]
    agents = [
        subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(nodes)
    ]
    outputs = [agent.communicate()[0] for agent in agents]
    if any(agent.returncode for agent in agents):
        raise SystemExit(b"\n".join(outputs).decode()[-4000:])


def losses(run: Path) -> np.ndarray:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([value for each in records for key, value in each.items() if key.endswith("loss")])


def commands(options: argparse.Namespace) -> bool:
    """Whole trainings and predictions against those of one process; whether all agree."""
    folder = Path(tempfile.mkdtemp())
    synthetic.write(folder, train=options.battles // 4, test=200)
    train = ["train", "train.csv", "--encoder", "tiny", "--dropout", "0", "--precision", "fp32", "--lr", "1e-3"]
    train += ["--max-length", "64", "--log-every", "1", "--eval-every", "5", "--epochs", "2", "--checkpoint-every", "4"]
    train += ["--keep-checkpoints", "--quiet", "--output"]

    def predicted(run: str, **processes: int) -> np.ndarray:
        launch(
            folder,
            ["predict", "test.csv", "--model", run, "--output", "p.csv", "--force", "--quiet", "--precision", "fp32"],
            **processes,
        )
        return np.loadtxt(folder / "p.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3))

    launch(folder, [*train, "one"])
    expected, wanted, agree = losses(folder / "one"), predicted("one"), True
    print("\n| against one process | largest difference of a loss | of a probability | ranks that wrote |")
    print("|---|---|---|---|")
    started: dict[str, tuple[str, list[str], dict[str, int], dict[str, int] | None]] = {
        "2 ranks": ("two", [], {"ranks": 2}, None),
        "4 ranks": ("four", [], {"ranks": 4}, None),
        "2 ranks, sharded": ("sharded", ["--shard"], {"ranks": 2}, None),
        "2 nodes with 1 rank each": ("nodes", [], {"nodes": 2}, None),
        "1 rank, continued by 2": ("one-two", [], {}, {"ranks": 2}),
        "2 ranks, continued by 4": ("two-four", [], {"ranks": 2}, {"ranks": 4}),
        "4 ranks, continued by 1": ("four-one", [], {"ranks": 4}, {}),
        "4 ranks sharded, continued by 2": ("sharded-four", ["--shard"], {"ranks": 4}, {"ranks": 2}),
    }
    for name, (run, flags, first, then) in started.items():
        log = folder / "renamed"
        log.unlink(missing_ok=True)
        launch(folder, [*train, run, *flags], **first)
        if then is not None:  # as if it had been killed half-way
            written = sorted((folder / run / "checkpoints").glob("step-*"))
            for late in written[len(written) // 2 :]:
                shutil.rmtree(late)
            (folder / run / "SHA256SUMS").unlink()
            launch(folder, ["train", "--resume", run, "--quiet"], **then)
        lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
        ranks = sorted({rank for rank, path in lines if f"{run}/" in path})
        loss = np.abs(losses(folder / run) - expected).max()
        probability = max(np.abs(predicted(run, **each) - wanted).max() for each in ({}, first))
        agree &= bool(loss < 1e-5 and probability < 1e-5 and ranks == ["0"])
        print(f"| {name} | {loss:.1e} | {probability:.1e} | {', '.join(ranks)} |", flush=True)
    shutil.rmtree(folder)
    return agree


def main() -> None:
    if sys.argv[1:2] == ["--audited"]:
        audited(Path("renamed").absolute(), sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", choices=["steps", "tokens", "commands"])
    parser.add_argument("--battles", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--encoders", nargs="+", default=["tiny", "MiniLM's shape"])
    parser.add_argument("--encoder", default="tiny", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if options.only in (None, "steps"):
        steps(options)
    if options.only in (None, "tokens"):
        tokens(options)
    if options.only in (None, "commands") and not commands(options):
        raise SystemExit("they differ by more than 1e-5, or another rank than the main one wrote")


if __name__ == "__main__":
    main()

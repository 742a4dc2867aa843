"""DeBERTa by transformers and by prefcli, side by side: ``python benchmarks/deberta.py [--batch 4] [--length 512]``.

An encoder of DeBERTa-v3-small's shape with random weights, no padding, float32 (or bfloat16 by autocast where a way
says so). Each way of computing runs in a
process of its own (how freed memory is kept is a setting of the process). They take turns, so that other load on the
machine affects all of them; medians are printed. *Processor time* is summed over all threads; it varies less on a busy
machine. The floor is the time of the necessary operations at the rate of a plain float32 matrix product, by the faster
of PyTorch's two libraries, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

COMMAND_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""How threads wait: the prefcli command sets this for itself; the other ways use PyTorch's defaults."""

SHAPE: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 512, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "max_relative_positions": -1,
    "position_biased_input": False, "type_vocab_size": 0, "vocab_size": 128100,
}  # fmt: skip
WAYS = {
    "transformers": "as it is",
    "transformers, memory kept": "with prefcli.compute.memory.keep_freed_memory",
    "prefcli": "prefcli.encoders.deberta.accelerate and keep_freed_memory",
    "prefcli, bf16": "the same in bfloat16",
    "transformers, compiled": "torch.compile, memory kept",
    "prefcli, compiled": "the same of prefcli's encoder",
}
DEFAULT_WAYS = list(WAYS)[:4]
PRODUCT = (2048, 768, 3072)


def operations(batch: int, length: int) -> float:
    """Floating-point operations that one forward pass needs; a backward pass needs twice as many.

    The linear layers; per sequence Q Kᵀ and P V; for c2p and p2c products with as many relative vectors as there are
    distinct buckets; the projection of those, once per layer. A multiplication and an addition are two operations.
    """
    hidden, wide = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    buckets = min(2 * length - 1, 2 * SHAPE["position_buckets"])
    linear = 2 * batch * length * (4 * hidden**2 + 2 * hidden * wide)
    attention = 2 * batch * (2 * length**2 * hidden + 2 * length * buckets * hidden)
    relative = 2 * buckets * 2 * hidden**2
    return float(SHAPE["num_hidden_layers"] * (linear + attention + relative))


def make(way: str, dropout: float) -> Any:
    import torch
    from transformers import DebertaV2Config, DebertaV2Model

    from prefcli.compute import memory
    from prefcli.encoders import deberta

    if way != "transformers":
        memory.keep_freed_memory()
    torch.manual_seed(0)
    config = DebertaV2Config(**SHAPE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    encoder = DebertaV2Model(config)
    if way.startswith("prefcli"):
        reason = deberta.accelerate(encoder)
        if reason:
            raise SystemExit(reason)
    if way.endswith("compiled"):
        encoder.compile()
    return encoder


def passes(encoder: Any, batch: int, length: int, bf16: bool = False) -> dict[str, Callable[[], object]]:
    """What is timed."""
    import torch

    from prefcli.encoders.dense import fast_linear

    ids = torch.randint(3, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    left, right = torch.randn(PRODUCT[:2]), torch.randn(PRODUCT[2], PRODUCT[1])

    def forward() -> None:
        encoder.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            encoder(ids)

    def training() -> None:
        encoder.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = encoder(ids).last_hidden_state.square().mean()
        loss.backward()
        encoder.zero_grad(set_to_none=True)

    return {
        "forward": forward,
        "training": training,
        "product": lambda: [fast_linear(left, right) for _ in range(10)],
    }


def work(way: str, options: argparse.Namespace) -> None:
    """A process that does one pass for each line it reads and answers with wall and processor seconds."""
    encoder = make(way, options.dropout)
    timed = passes(encoder, options.batch, options.length, way.endswith("bf16"))
    print("ready", flush=True)
    for line in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        timed[line.strip()]()
        print(json.dumps([time.perf_counter() - started, time.process_time() - used]), flush=True)


def peak(way: str, options: argparse.Namespace) -> None:
    """A process that trains two steps and prints its peak memory and how much that is above the model's own, in MB."""
    encoder = make(way, options.dropout)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    training = passes(encoder, options.batch, options.length, way.endswith("bf16"))["training"]
    for _ in range(2):
        training()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([after / 1024, (after - before) / 1024]))


def differences(options: argparse.Namespace) -> None:
    """A process that prints the largest differences of outputs and gradients, relative to the largest value."""
    import torch

    from prefcli.encoders import deberta

    encoder = make("transformers", 0.0)
    ids = torch.randint(3, 1000, (min(options.batch, 2), options.length), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(*ids.shape, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(1))
    outputs, gradients = [], []
    for accelerated in (False, True):
        if accelerated:
            deberta.accelerate(encoder)
        hidden = encoder(ids).last_hidden_state
        (hidden * weights).sum().backward()
        outputs.append(hidden.detach())
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
        encoder.zero_grad(set_to_none=True)
    output = (outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max()
    worst = max(float((b - a).abs().max() / a.abs().max()) for a, b in zip(*gradients, strict=True))
    print(json.dumps([float(output), worst]))


def ask(arguments: list[str]) -> Any:
    return json.loads(subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE).stdout)


def measure(ways: list[str], arguments: list[str], repeats: int) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Wall and processor seconds of each pass, way by way, taking turns; the first round does not count."""
    workers = {
        way: subprocess.Popen(
            [sys.executable, *arguments, "--work", way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (COMMAND_ENVIRONMENT if way.startswith("prefcli") else {}),
        )
        for way in ways
    }
    times: dict[str, dict[str, list[tuple[float, float]]]] = {way: {} for way in ways}
    try:
        for worker in workers.values():
            assert worker.stdout is not None
            worker.stdout.readline()
        for number in range(repeats + 1):
            for name in ("product", "forward", "training"):
                for way, worker in workers.items():
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    worker.stdin.write(name + "\n")
                    worker.stdin.flush()
                    answer = json.loads(worker.stdout.readline())
                    if number:
                        times[way].setdefault(name, []).append((answer[0], answer[1]))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=DEFAULT_WAYS)
    parser.add_argument("--no-memory", action="store_true", help="leave out the measurement of peak memory")
    parser.add_argument("--work", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--peak", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--differences", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options)
    if options.peak:
        return peak(options.peak, options)
    if options.differences:
        return differences(options)

    shape = ["--batch", str(options.batch), "--length", str(options.length), "--dropout", str(options.dropout)]
    arguments = [__file__, *shape]
    output, gradient = ask([*arguments, "--differences"])
    print(f"largest relative difference to transformers: outputs {output:.1e}, any parameter's gradient {gradient:.1e}")
    times = measure(options.ways, arguments, options.repeats)
    memory = {} if options.no_memory else {way: ask([*arguments, "--peak", way]) for way in options.ways}

    product = 10 * 2 * PRODUCT[0] * PRODUCT[1] * PRODUCT[2]
    rates = [[product / t[kind] for way in options.ways for t in times[way]["product"]] for kind in (0, 1)]
    wall_rate, core_rate = (statistics.median(values) for values in rates)
    needed = {"forward": operations(options.batch, options.length)}
    needed["training"] = 3 * needed["forward"]
    print(
        f"batch {options.batch} of {options.length} tokens, dropout {options.dropout}, {options.repeats} rounds, "
        f"{os.cpu_count()} cores; a matrix product reaches {wall_rate / 1e9:.0f} GFLOP/s by the wall clock, "
        f"{core_rate / 1e9:.0f} GFLOP per second of processor time"
    )
    print(
        "| pass | way | wall s (lowest to highest) | processor s | times faster: wall, processor | share of the rate |"
    )
    print("|---|---|---|---|---|---|")
    base = options.ways[0]
    for name, count in needed.items():
        floor = count / wall_rate, count / core_rate
        print(f"| {name} | floor: {count / 1e9:.0f} GFLOP | {floor[0]:.2f} | {floor[1]:.2f} | | |")
        for way in options.ways:
            wall, used = (statistics.median(t[kind] for t in times[way][name]) for kind in (0, 1))
            first = [statistics.median(t[kind] for t in times[base][name]) for kind in (0, 1)]
            seconds = [t[0] for t in times[way][name]]
            print(
                f"| {name} | {way} | {wall:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {used:.2f} "
                f"| {first[0] / wall:.2f}, {first[1] / used:.2f} | {floor[0] / wall:.0%}, {floor[1] / used:.0%} |"
            )
    if memory:
        print("| way | peak MB of two training steps | above the model's own |\n|---|---|---|")
        for way, (total, above) in memory.items():
            print(f"| {way} | {total:.0f} | {above:.0f} |")
    return None


if __name__ == "__main__":
    main()

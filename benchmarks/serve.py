"""Load on ``prefcli serve``: ``python benchmarks/serve.py FILE [--model RUN] [--seconds 60]``.

64 clients ask at once over loopback, each for the next battle as soon as it has an answer: first a battle in each
request, then 16 and 64. Beside it, before and after, what ``prefcli predict`` computes of the same battles per second
(its own figure: without loading, reading and writing). Every answer is compared with predict's, both without
calibration, which predict fits without all battles of the file and serve without each one. Without ``--model`` a run
of ``--recipe fast`` is trained on the file. Prints one Markdown table; exit status 1 after an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

PREFCLI = [sys.executable, "-m", "prefcli"]
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


@dataclass
class Load:
    """What clients measured."""

    battles: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    difference: float = 0.0
    """The largest to predict's probabilities."""


class Client(asyncio.Protocol):
    """A connection that asks again as soon as it is answered, until the time is up."""

    def __init__(self, requests: list[tuple[bytes, int, np.ndarray]], first: int, load: Load, end: float) -> None:
        self.requests, self.next, self.load, self.end = requests, first, load, end
        self.buffer = bytearray()
        self.wanted = -1
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        request, self.count, self.expected = self.requests[self.next % len(self.requests)]
        self.next += 1
        self.started = time.perf_counter()
        self.transport.write(request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.wanted < 0 and (ends := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:ends]).lower()
            self.wanted = ends + 4 + int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        if 0 <= self.wanted <= len(self.buffer):
            self.answered(bytes(self.buffer))
            self.buffer.clear()
            self.wanted = -1
            if time.perf_counter() < self.end:
                self.ask()
            else:
                self.done.set_result(None)
                self.transport.close()

    def answered(self, answer: bytes) -> None:
        self.load.seconds.append(time.perf_counter() - self.started)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            self.load.errors += 1
            return
        self.load.battles += self.count
        value = json.loads(body)
        results = value.get("results", [value])
        found = np.array([[each[name] for name in WINNERS] for each in results])
        self.load.difference = max(self.load.difference, float(np.abs(found - self.expected).max()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.load.errors += 1
            self.done.set_result(None)


async def ask_for(
    port: int, requests: list[tuple[bytes, int, np.ndarray]], clients: int, seconds: float
) -> tuple[Load, float]:
    loop = asyncio.get_running_loop()
    load, started = Load(), time.perf_counter()
    connected = [
        await loop.create_connection(
            lambda n=n: Client(requests, n * len(requests) // clients, load, started + seconds), "127.0.0.1", port
        )
        for n in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in connected))
    return load, time.perf_counter() - started


def requests_of(battles: list[dict[str, list[str | None]]], expected: np.ndarray, size: int) -> list:
    """Requests with so many battles each, and what their answers should be."""
    requests = []
    for begin in range(0, len(battles) - size + 1, size):
        part = battles[begin : begin + size]
        body = json.dumps(part[0] if size == 1 else {"battles": part}).encode()
        fields = f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        head = f"POST /v1/compare HTTP/1.1\r\n{fields}\r\n\r\n".encode()
        requests.append((head + body, size, expected[begin : begin + size]))
    return requests


def predict(run: str, file: Path, scratch: Path) -> tuple[float, np.ndarray]:
    """Battles per second, and the probabilities."""
    output = scratch / "preds.parquet"
    command = ["predict", str(file), "--model", run, "--output", str(output), "--workspace", str(scratch / "ws")]
    flags = ["--no-calibration", "--force", "--json"]
    done = subprocess.run([*PREFCLI, *command, *flags], capture_output=True, check=True)
    import pyarrow.parquet as pq

    table = pq.read_table(output)
    return json.loads(done.stdout)["battles_per_second"], np.column_stack([table[name].to_numpy() for name in WINNERS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", help="a run; by default a fast one is trained on the file")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--battles", type=int, default=2000, help="different ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 64], help="battles in a request")
    args = parser.parse_args()
    from prefcli.readers import open_battles

    table = pa.Table.from_batches([batch for batch, _ in open_battles(args.file).batches()])
    table = table.slice(0, args.battles).select(["prompt", "response_a", "response_b"])
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        run = args.model
        if run is None:
            run = str(scratch / "run")
            trained = ["train", str(args.file), "--recipe", "fast", "--output", run, "--workspace", str(scratch / "ws")]
            subprocess.run([*PREFCLI, *trained, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        battles = table.to_pylist()
        file = scratch / "battles.jsonl"
        file.write_text("".join(json.dumps({"id": str(n), **battle}) + "\n" for n, battle in enumerate(battles)))
        _, expected = predict(run, file, scratch)  # which also fills the caches
        before = predict(run, file, scratch)[0]
        command = [*PREFCLI, "serve", run, "--port", "0", "--json", "--no-calibration", "--quiet"]
        started = time.perf_counter()
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        ready = time.perf_counter() - started
        loads = []
        for size in args.sizes:
            loads.append(
                (size, *asyncio.run(ask_for(port, requests_of(battles, expected, size), args.clients, args.seconds)))
            )
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
        predicted = statistics.mean([before, predict(run, file, scratch)[0]])
        print(
            "| battles a request | clients | battles/s | of predict's | p50 ms | p99 ms | requests | errors | apart |"
        )
        print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        for size, load, seconds in loads:
            rate = load.battles / seconds
            p50, p99 = np.percentile(load.seconds, [50, 99]) * 1000
            print(
                f"| {size} | {args.clients} | {rate:,.0f} | {rate / predicted:.0%} | {p50:,.0f} | {p99:,.0f} "
                f"| {len(load.seconds):,} | {load.errors} | {load.difference:.1e} |"
            )
        print(f"\npredict: {predicted:,.0f} battles/s; serve was ready after {ready:.1f} s, on {os.cpu_count()} cores")
    sys.exit(code or any(load.errors for _, load, _ in loads))


if __name__ == "__main__":
    main()

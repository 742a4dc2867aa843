"""Malformed requests, slow clients and closed sockets: ``python benchmarks/faults/serve.py RUN [--requests 10000]``.

``prefcli serve RUN`` gets random requests that no honest client sends, each over a connection of its own, then clients
that send a byte a second, then clients that hang up midway. No answer may be 5xx, memory may not grow, and a valid
battle has the same probabilities before, between and after. Prints one Markdown table; exit status 1 if something fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
BATTLE = {"prompt": "Name a fruit.", "response_a": "A cherry.", "response_b": "Bananas are yellow."}
TOGETHER = 32
MAX_SECONDS = 30.0
MAX_GROWTH_MB = 30.0


def http(
    method: str = "POST", path: str = "/v1/compare", body: bytes = b"", kind: str = "application/json", **headers: str
) -> bytes:
    """A request; ``headers`` replace the usual ones."""
    usual = {"host": "localhost", "content-type": kind, "content-length": str(len(body)), "connection": "close"}
    fields = {**usual, **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + body


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def broken_json(rng: random.Random) -> bytes:
    body = as_json(BATTLE)
    return http(
        body=rng.choice([body[: rng.randrange(len(body))], body + b"}", b"\xef\xbb\xbf{", b"'", b"{,}", b"nul"])
    )


def no_utf8(rng: random.Random) -> bytes:
    return http(body=as_json(BATTLE).replace(b"cherry", rng.randbytes(rng.randrange(1, 40)) + b"\xff"))


def wrong_types(rng: random.Random) -> bytes:
    wrong: list[object] = [None, 3, True, 1.5, {}, [], [[]], [{}], [1], {"a": []}, [["x"]], [None, 3], -0.0]
    value = {**BATTLE, rng.choice([*BATTLE, "details", "id", "more", "battles"]): rng.choice(wrong[3:])}
    return http(body=as_json(rng.choice([value, wrong[0], wrong[1], [value], "text"])))


def numbers(rng: random.Random) -> bytes:
    number = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "9" * 400, "-1e-999", "0x10", "1_0"])
    return http(body=f'{{"prompt": {number}, "response_a": "a", "response_b": "b"}}'.encode())


def nested(rng: random.Random) -> bytes:
    depth = rng.choice([500, 5_000, 100_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    inner = opening * depth + "1" + closing * depth
    return http(body=f'{{"prompt": {inner}, "response_a": "a", "response_b": "b"}}'.encode())


def wrong_method(rng: random.Random) -> bytes:
    method = rng.choice(
        ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "get", "G" * 300]
    )
    return http(method, rng.choice(["/v1/compare", "/v1/rank", "/v1/score"]), b"{}")


def wrong_path(rng: random.Random) -> bytes:
    path = rng.choice(
        ["/v1", "/v1/compare/", "//", "/../../etc/passwd", "/static/../app.py", "/static/%2e%2e%2fapp.py", "/%00",
         "/static/a%00b", "/%ff%fe", "/日本", "/%E6%97%A5", "/" + "a" * 5000, "/static/", "*", "http://evil/", "?", "/v1/\\"]
    )  # fmt: skip
    return http(rng.choice(["GET", "POST"]), path)


def giant_headers(rng: random.Random) -> bytes:
    size = rng.choice([10_000, 100_000, 1_000_000])
    many = {f"x{number}": "y" for number in range(size // 10)}
    return rng.choice([lambda: http(cookie="c" * size), lambda: http(**many), lambda: http(**{"x" * size: "y"})])()


def broken_headers(rng: random.Random) -> bytes:
    line = rng.choice(
        [b"no colon", b": empty", b"a b: c", b"x: \x00", b"x: \x01\xff", b"host: a\r\nhost: b", b"content-length: 5",
         b" folded: x", b"transfer-encoding: gzip, chunked, x", b"expect: 200-never", b"upgrade: h2c\r\nconnection: upgrade"]
    )  # fmt: skip
    return http(body=b"{}").replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n", 1)


def wrong_length(rng: random.Random) -> bytes:
    length = rng.choice(["-1", "1e3", "abc", "99999999999999999999", "5, 6", "+5", "0x10", " ", str(10**12), "2"])
    return http(body=as_json(BATTLE), content_length=length)


def chunked(rng: random.Random) -> bytes:
    head = http(body=b"", transfer_encoding="chunked").replace(b"content-length: 0\r\n", b"")
    chunk = rng.choice(
        [b"zz\r\n{}\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"ffffffffffffffffffff\r\n", b"2\r\n{}x\r\n0\r\n\r\n", b"0\r\n\r\n",
         b"2;" + b"e" * 20_000 + b"\r\n{}\r\n0\r\n\r\n", b"1\r\n{\r\n" * 50 + b"0\r\n\r\n"]
    )  # fmt: skip
    return head + chunk


def wrong_kind(rng: random.Random) -> bytes:
    kind = rng.choice(
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonp"]
    )
    return http(body=as_json(BATTLE), kind=kind)


def odd_text(rng: random.Random) -> bytes:
    text = rng.choice(['"\\ud800"', '"\\u0000"', '"\\udfff\\ud800"', '"\\ufffe"', '["\\ud83d", 1]', '"\\x"', '"a\nb"'])
    wrong = rng.choice(['"response_a": 1', '"response_a": "a"', '"responses": []', '"response_a": null'])
    return http(path=rng.choice(["/v1/compare", "/v1/rank"]), body=f'{{"prompt": {text}, {wrong}}}'.encode())


def too_large(rng: random.Random) -> bytes:
    if rng.random() < 0.9:
        return http(body=b"{}", content_length=str(rng.choice([5 << 20, 1 << 40])))
    return http(body=b" " * (5 << 20))


def wrong_host(rng: random.Random) -> bytes:
    return http(
        body=as_json(BATTLE), host=rng.choice(["evil.example", "", "localhost.evil", "[::1", "127.0.0.1@x", "é"])
    )


def too_many(rng: random.Random) -> bytes:
    body = rng.choice(
        [{"battles": [BATTLE] * 1025}, {"battles": []}, {"prompt": "a", "responses": ["b"] * 129}, {"battles": {}},
         {"prompt": ["a", "b"], "responses": [["c"], ["d", "e"]]}, {"prompt": [None] * 1000, "responses": ["a"]}]
    )  # fmt: skip
    return http(path="/v1/compare" if "battles" in body else "/v1/rank", body=as_json(body))


def no_http(rng: random.Random) -> bytes:
    return rng.choice([rng.randbytes(rng.randrange(1, 3000)), b"\r\n" * 100 + b"x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                       b"\x16\x03\x01\x02\x00\x01" + rng.randbytes(300), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])  # fmt: skip


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    broken_json, no_utf8, wrong_types, numbers, nested, wrong_method, wrong_path, giant_headers, broken_headers,
    wrong_length, chunked, wrong_kind, odd_text, too_large, wrong_host, too_many, no_http,
)  # fmt: skip


class Server:
    """``prefcli serve`` in a process of its own."""

    def __init__(self, run: str, *flags: str) -> None:
        command = [sys.executable, "-m", "prefcli", "serve", run, "--port", "0", "--json", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        started = self.process.stdout.readline()
        if not started:
            raise SystemExit(self.process.communicate()[1].decode())
        self.port = json.loads(started)["port"]

    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_SIZE / 2**20

    def stop(self) -> tuple[int, str]:
        """Exit status, and what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to raw bytes; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), MAX_SECONDS)
    except ConnectionError:  # closed before everything was read
        pass
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head.startswith(b"HTTP/1.1 ") else (0, answer)


async def attack(port: int, requests: int, watch: Callable[[int], None], seed: int) -> dict[str, Counter[int]]:
    """How often each kind of request got each status."""
    rng = random.Random(seed)
    statuses: dict[str, Counter[int]] = {kind.__name__: Counter() for kind in KINDS}
    numbers_left = iter(range(requests))

    async def client() -> None:
        for number in numbers_left:
            kind = KINDS[number % len(KINDS)]
            status, _ = await ask(port, kind(rng))
            statuses[kind.__name__][status] += 1
            if number % 500 == 0:
                watch(number)

    await asyncio.gather(*(client() for _ in range(TOGETHER)))
    return statuses


async def valid(port: int) -> tuple[dict[str, float], float]:
    """The answer to a valid battle, and how long it took."""
    started = time.perf_counter()
    status, body = await ask(port, http(body=as_json(BATTLE)))
    assert status == 200, (status, body)
    return json.loads(body), time.perf_counter() - started


async def be_slow(port: int, clients: int, seconds: float) -> tuple[int, float]:
    """How many of the clients that send a byte a second were cut off, and the slowest valid answer meanwhile."""

    async def slow(number: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = http(body=as_json(BATTLE)) if number % 2 else http(body=b" " * 2000)
        split = 0 if number % 2 else request.index(b"\r\n\r\n") + 4  # half of them send a head and then drip a body
        writer.write(request[:split])
        end = time.monotonic() + seconds
        for byte in range(split, len(request)):
            if time.monotonic() > end or reader.at_eof() or writer.is_closing():
                break
            writer.write(request[byte : byte + 1])
            await asyncio.sleep(1)
        cut_off = reader.at_eof() or bool(await asyncio.wait_for(reader.read(1), 5))
        writer.close()
        return cut_off

    slow_ones = [asyncio.create_task(slow(number)) for number in range(clients)]
    slowest = 0.0
    while not all(task.done() for task in slow_ones):
        slowest = max(slowest, (await valid(port))[1])
        await asyncio.sleep(0.2)
    cut = await asyncio.gather(*slow_ones, return_exceptions=True)
    return sum(one is True or isinstance(one, ConnectionError) for one in cut), slowest


async def hang_up(port: int, clients: int) -> None:
    """Clients that close their socket in the middle of a request, or before the answer."""
    request = http(body=as_json({"battles": [BATTLE] * 50}), connection="keep-alive")
    for number in range(clients):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request[: len(request) * (number % 5 + 1) // 5])
        await asyncio.sleep(0.001)
        writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=100, help="clients that send a byte a second")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    server = Server(args.run, "--header-timeout", "5", "--timeout", "4")
    memory: list[float] = []
    before = asyncio.run(valid(server.port))[0]
    warm = max(500, args.requests // 5)
    statuses = asyncio.run(
        attack(
            server.port, args.requests, lambda n: memory.append(server.resident_mb()) if n >= warm else None, args.seed
        )
    )
    between = asyncio.run(valid(server.port))[0]
    cut_off, slowest = asyncio.run(be_slow(server.port, args.slow, seconds=15))
    asyncio.run(hang_up(server.port, 500))
    after = asyncio.run(valid(server.port))[0]
    memory.append(server.resident_mb())
    code, said = server.stop()
    print("| requests | number | statuses |\n|---|--:|---|")
    for kind, counts in statuses.items():
        listed = ", ".join(f"{status or 'closed'}: {count:,}" for status, count in sorted(counts.items()))
        print(f"| {kind.replace('_', ' ')} | {counts.total():,} | {listed} |")
    growth = memory[-1] - memory[0]
    print(f"\n{args.slow} slow clients: {cut_off} cut off; the slowest valid answer meanwhile took {slowest:.2f} s")
    print(f"Memory: {memory[0]:.0f} MB after {warm:,} requests, {memory[-1]:.0f} MB at the end")
    failures = [
        *(f"{kind}: status {s}" for kind, counts in statuses.items() for s in counts if s >= 500),
        *(["a valid battle has other probabilities"] if not before == between == after else []),
        *([f"memory grew by {growth:.0f} MB"] if growth > MAX_GROWTH_MB else []),
        *([f"{args.slow - cut_off} slow clients were not cut off"] if cut_off < args.slow else []),
        *([f"exit status {code}"] if code else []),
        *([f"stderr: {said}"] if said.count("\n") > 1 else []),
    ]
    print("\n".join(failures) or "Nothing failed.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

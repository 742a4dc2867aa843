"""Hostile and damaged input files by the ten thousand, and whether the command keeps its promises on each.

``python benchmarks/faults/fuzz.py --inputs 20000 [--seed 0] [--workers 2]`` makes the inputs (``hostile_inputs.py``),
runs a command on each in worker processes, and checks exit code, messages and files (``promises.py``). A worker that
dies, or does not answer in time, has failed. Every failure is kept in a folder, with its command; the script ends with
a table, and with exit code 1 if there was a failure. ``--only NUMBER`` repeats one case and shows it. ``--bombs``
instead unpacks real bombs of 17 GiB, and ``--processes`` runs commands as separate processes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import io
import itertools
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile_inputs
import promises
from promises import Bench, Case

PATIENCE_SECONDS = 10.0
LARGE_PATIENCE_SECONDS = 60.0
"""For inputs of 50 MB."""
MAX_MEMORY_BYTES = 6 << 30
"""Of a worker's data: a file that needs more must be refused."""
CASES_A_WORKER = 1000
BOMB_BYTES = 17 << 30


class Worker:
    """A process that runs cases one after the other, watched from here."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0

    def ask(self, case: Case) -> dict[str, object]:
        """What became of a case: exit code, broken promises, seconds, the worker's peak memory."""
        if self._process is None or self._asked == CASES_A_WORKER:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin
        assert process.stdout
        self._asked += 1
        begun = time.monotonic()
        process.stdin.write(f"{case.number}\n".encode())
        process.stdin.flush()
        patience = LARGE_PATIENCE_SECONDS if len(case.input.data) > 10 << 20 else PATIENCE_SECONDS
        ready, _, _ = select.select([process.stdout], [], [], patience)
        answer = process.stdout.readline() if ready else b""
        if answer:
            return {**json.loads(answer), "seconds": time.monotonic() - begun}
        self.stop()
        died = f"died of signal {-process.returncode}" if ready else f"did not answer in {patience:g} s"
        promises.empty(self._folder / str(case.number))
        return {"code": None, "broken": [died], "seconds": time.monotonic() - begun, "megabytes": 0, "err": ""}

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, __file__, "--serve", str(self._folder), "--seed", str(self._seed)]
        with (self._folder / "workers.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout
        self._process.stdout.readline()  # it is ready
        self._asked = 0

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream and stream.close()
            self._process = None


def serve(folder: Path, seed: int) -> None:
    """Run in the worker: reads numbers of cases, writes results."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print by themselves
    from prefcli import pipeline  # noqa: F401

    bench = Bench(folder / "bench" / "run", folder / "bench" / "predictions.csv", folder / "bench" / "labels.csv")
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = promises.case_of(seed, int(line))
        place = folder / str(case.number)
        try:
            result = promises.try_case(case, place, bench)
            answer = {"code": result.code, "broken": result.broken, "err": result.err[-2000:]}
        except BaseException:
            answer = {"code": None, "broken": ["an exception left the command"], "err": traceback.format_exc()}
        promises.empty(place)
        answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(answer), file=answers, flush=True)


def fuzz(inputs: int, seed: int, workers: int, failures: Path) -> int:
    """Run the cases, print the table, and return the number of failures."""
    numbers = itertools.count()
    lock = threading.Lock()
    counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    slowest: list[tuple[float, int, str, str]] = []
    max_memory = 0
    begun = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        bench = promises.make_bench(folder / "bench")

        def work() -> None:
            nonlocal max_memory
            worker = Worker(folder, seed)
            with contextlib.closing(_Stopping(worker)):
                while (number := next(numbers)) < inputs:
                    case = promises.case_of(seed, number)
                    answer = worker.ask(case)
                    with lock:
                        count = counts[case.input.kind, case.verb]
                        count["attempts"] += 1
                        count[f"exit {answer['code']}"] += 1
                        slowest.append((float(str(answer["seconds"])), number, case.verb, case.input.kind))
                        slowest.sort(reverse=True)
                        del slowest[5:]
                        max_memory = max(max_memory, int(str(answer["megabytes"])))
                        if answer["broken"]:
                            count["failures"] += 1
                            keep(case, answer, failures, bench)
                        if number and number % 1000 == 0:
                            print(f"{number:,} inputs, {time.monotonic() - begun:,.0f} s", file=sys.stderr)

        with ThreadPoolExecutor(workers) as crew:
            for watched in [crew.submit(work) for _ in range(workers)]:
                watched.result()
    seconds = time.monotonic() - begun
    show(counts)
    failed = sum(count["failures"] for count in counts.values())
    print(f"\n{inputs:,} inputs in {seconds:,.0f} s, {failed:,} failures; peak of a worker {max_memory:,} MB")
    for took, number, verb, kind in slowest:
        print(f"slowest: {took:.1f} s, case {number}, {verb}, {kind}")
    return failed


class _Stopping:
    def __init__(self, worker: Worker) -> None:
        self.close = worker.stop


def keep(case: Case, answer: dict[str, object], failures: Path, bench: Bench) -> None:
    """Keep a failing input and report it."""
    folder = failures / str(case.number)
    folder.mkdir(parents=True, exist_ok=True)
    name = case.input.name if len(case.input.name) < 200 and "/" not in case.input.name else "input"
    (folder / os.fsencode(name).decode("ascii", "replace").replace("\ufffd", "_")).write_bytes(case.input.data)
    problems = "; ".join(map(str, answer["broken"])) if isinstance(answer["broken"], list) else ""
    command = " ".join(map(repr, case.command(Path("FOLDER"), bench)))
    place = f"place {case.input.place!r}, limits {case.input.limits}, output there before {case.exists}"
    (folder / "about.txt").write_text(
        f"{problems}\n{command}\n{place}\n\n{answer['err']}\n", encoding="utf-8", errors="replace"
    )
    print(f"case {case.number}: {case.verb}, {case.input.kind}: {problems}", file=sys.stderr)


def show(counts: dict[tuple[str, str], collections.Counter[str]]) -> None:
    """Kinds of input and verbs: attempts, exit codes, failures."""
    verbs = list(promises.VERBS)
    print("each cell: attempts, of them exit 0 / exit 2 / failures\n")
    print("| input | " + " | ".join(verbs) + " | all |")
    print("|---" * (len(verbs) + 2) + "|")
    total: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for kind in sorted({kind for kind, _ in counts}):
        row_total: collections.Counter[str] = collections.Counter()
        cells = []
        for verb in verbs:
            count = counts.get((kind, verb), collections.Counter())
            cells.append(_cell(count))
            row_total.update(count)
            total[verb].update(count)
            total["all"].update(count)
        print(f"| {kind} | " + " | ".join([*cells, _cell(row_total)]) + " |")
    print("| all | " + " | ".join(_cell(total[verb]) for verb in [*verbs, "all"]) + " |")


def _cell(count: collections.Counter[str]) -> str:
    if not count["attempts"]:
        return ""
    return f"{count['attempts']:,}: {count['exit 0']:,} / {count['exit 2']:,} / {count['failures']:,}"


def repeat(number: int, seed: int) -> int:
    """One case in this process, shown."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        bench = promises.make_bench(folder / "bench")
        case = promises.case_of(seed, number)
        print(
            case.verb,
            "|",
            case.input.kind,
            "|",
            repr(case.input.name),
            "|",
            len(case.input.data),
            "bytes",
            case.input.limits,
        )
        print(" ".join(case.command(folder / "case", bench)))
        begun = time.monotonic()
        result = promises.try_case(case, folder / "case", bench)
        print(result.err, result.out[:2000], f"exit {result.code}, {time.monotonic() - begun:.1f} s", sep="\n")
        print("\n".join(result.broken) or "every promise kept")
        return len(result.broken)


# Commands as processes of their own


AS_NOBODY = """
import os, sys
from prefcli.cli.main import run
if os.geteuid() == 0:
    run(sys.argv[1:])  # so that everything is imported: the user nobody cannot read the interpreter's folder
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(run(sys.argv[1:]))
"""


def in_process(
    arguments: list[str], folder: Path, *, as_nobody: bool = False, **more: object
) -> tuple[int, str, float, int]:
    """Exit code, stderr, seconds and peak megabytes of a command."""
    start = ["-c", AS_NOBODY] if as_nobody else ["-m", "prefcli"]
    errors = folder / "stderr"
    with errors.open("wb") as stream:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *start, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=stream,
            **more,  # type: ignore[call-overload]
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, errors.read_text(errors="replace"), time.monotonic() - begun, usage.ru_maxrss // 1024


def processes() -> int:
    """A handful of commands from the outside: places, rights, temporary folders, a killed process."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        random = hostile_inputs.Random(0)
        good = folder / "good.csv"
        good.write_bytes(hostile_inputs.as_csv(hostile_inputs.kaggle(random, 20)))
        closed = folder / "closed.csv"
        closed.write_bytes(good.read_bytes())
        closed.chmod(0)
        pipe = folder / "pipe"
        os.mkfifo(pipe)
        spool = folder / "spool"
        spool.mkdir()
        workspace = folder / "workspace"
        workspace.mkdir(mode=0o777)
        workspace.chmod(0o777)
        end = ["--workspace", str(workspace)]

        def check(what: str, arguments: list[str], expected: int, words: str = "", **more: object) -> None:
            nonlocal failed
            code, err, seconds, _ = in_process([*arguments, *end], folder, **more)
            promised = code == expected and words in err and "Traceback" not in err and "bug in prefcli" not in err
            failed += not promised
            message = " | ".join(line for line in err.splitlines() if line.startswith(("error", "  ")))
            print(f"{'as promised' if promised else 'FAILED'}: {what}: exit {code}, {seconds:.1f} s: {message}")

        check("a whole file", ["eda", str(good)], 0)
        check("a folder", ["eda", str(folder)], 2, "folder")
        check("no file", ["eda", "none.csv"], 2, "no such file")
        check("nothing", ["eda", "/dev/null"], 2, "empty")
        writer = threading.Thread(target=lambda: pipe.write_bytes(good.read_bytes()))
        writer.start()
        check("a pipe", ["eda", str(pipe)], 0)
        writer.join()
        with good.open("rb") as stream:
            check("standard input", ["eda", "-"], 0, stdin=stream)
        check("a name with escape sequences", ["eda", "\x1b[31m\n.csv"], 2, "\\x1b")
        check("a file without permission", ["eda", str(closed)], 2, "not readable", as_nobody=True)
        few = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))}
        check("an endless device, files of at most 1 MB", ["eda", "/dev/zero"], 1, "TMPDIR", **few)
        repeated = folder / "repeated.parquet"
        repeated.write_bytes(hostile_inputs.repeated_text(rows=100, length=100_000_000))
        little = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))}
        check("Parquet that asks for 30 GB of 2", ["eda", str(repeated)], 2, "memory", **little)
        environment = {**os.environ, "TMPDIR": str(spool)}
        command = [sys.executable, "-m", "prefcli", "eda", "-", *end]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(bytes(32 << 20))
            process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = list(spool.iterdir())
        failed += bool(left)
        print(
            f"{'FAILED' if left else 'as promised'}: killed while it read standard input, it left {left or 'nothing'}"
        )
    return failed


# Real bombs


def bombs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Small files that unpack to 17 GiB."""
    header = b"id,prompt,response_a,response_b,winner\n"
    answer = "It is a row like all others. " * 300
    row = f"1,What is this?,{answer},{answer},tie\n".encode()
    line = json.dumps({"prompt": "What is this?", "response_a": answer, "response_b": answer}).encode() + b"\n"
    fillings = {
        "zeros.csv": (b"", b"\0"),
        "newlines.csv": (header + row, b"\n"),
        "rows.csv": (header, row),
        "one-cell.csv": (header + row[:3], b"a"),
        "quotes.csv": (header, b'"'),
        "zeros.jsonl": (b"", b"\0"),
        "newlines.jsonl": (line, b"\n"),
        "rows.jsonl": (b"", line),
        "spaces.json": (b"[", b" "),
        "one-string.json": (b'[{"prompt": "', b"a"),
        "zeros.parquet": (b"", b"\0"),
        "magic.parquet": (b"PAR1", b"\0"),
    }
    for name, (head, unit) in fillings.items():
        block = gzip.compress(unit * ((256 << 20) // len(unit)), 1)
        path = folder / f"{name}.gz"
        path.write_bytes(gzip.compress(head) + block * (BOMB_BYTES // (256 << 20)))
        yield name + ".gz", path
        path.unlink()
    path = folder / "zeros.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("train.csv", "w", force_zip64=True) as stream,
    ):
        for _ in range(BOMB_BYTES >> 26):
            stream.write(bytes(1 << 26))
    yield "zeros.zip", path


def unpack_bombs(only: str) -> int:
    """Every bomb must end in a clear refusal, in bounded memory."""
    failed = 0
    print("| bomb | on disk, MB | exit | s | peak MB | error |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bombs-") as name:
        folder = Path(name)
        for what, path in bombs(folder):
            if only not in what:
                continue
            size = path.stat().st_size / 1e6
            workspace = folder / "workspace"
            code, err, seconds, megabytes = in_process(["eda", str(path), "--workspace", str(workspace)], folder)
            shutil.rmtree(workspace, ignore_errors=True)
            refused = code == 2 and not list(promises.wrong_words(code, "", err))
            failed += not refused
            message = next((line for line in err.splitlines() if line.startswith("error")), err[-200:])
            print(f"| {what} | {size:.0f} | {code} | {seconds:.0f} | {megabytes:,} | {message} |", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one case and show it")
    parser.add_argument("--processes", action="store_true", help="commands as processes of their own")
    parser.add_argument("--bombs", nargs="?", const="", metavar="NAME", help="real bombs, all or those named so")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, errors="backslashreplace", line_buffering=True)
    if options.serve is not None:
        serve(options.serve, options.seed)
    elif options.only is not None:
        sys.exit(bool(repeat(options.only, options.seed)))
    elif options.processes:
        sys.exit(bool(processes()))
    elif options.bombs is not None:
        sys.exit(bool(unpack_bombs(options.bombs)))
    else:
        sys.exit(bool(fuzz(options.inputs, options.seed, options.workers, options.failures)))


if __name__ == "__main__":
    main()

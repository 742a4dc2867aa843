"""What the fault benchmarks share: many commands in little time, small disks, and the table that is printed.

A prefcli command spends seconds on importing torch and then a fraction of a second on its work. So one process imports
everything, and every command is a fork of it with its own folder, environment, output, exit and clean-up.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
"""Bytes by which a file in a tmpfs grows."""
MAX_SECONDS = 120.0
STRAY = (".prefcli-", "prefcli-", "tmp")
"""Beginnings of the names of temporary files."""


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed; negative codes are signals."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        lines = self.err.splitlines()
        first = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return lines[first[0] :] if len(first) == 1 else []

    def unclear(self) -> str:
        """What is wrong with the error that this command printed; empty if nothing is."""
        if "Traceback" in self.err or "Exception ignored" in self.err:
            return "traceback"
        if self.code not in (1, 2):
            return f"exit code {self.code}"
        if not 1 <= len(self.error_lines) <= 3:
            return f"{len(self.error_lines)} lines of error"
        if "bug in prefcli" in self.err:
            return "unexpected exception"
        return ""


class RunningCommand:
    """A running command."""

    def __init__(self, pid: int, owner: Commands, folder: Path) -> None:
        self.pid, self._owner, self._folder = pid, owner, folder

    def wait(self) -> Result:
        code = self._owner.wait(self.pid)
        out, err = ((self._folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return Result(code, out, err)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Commands:
    """Starts commands as forks of one process that has everything imported; a context manager."""

    def __enter__(self) -> Commands:
        self._codes: dict[int, int] = {}
        self._messages: list[int] = []
        self._folders = tempfile.TemporaryDirectory(prefix="faults-")
        self._count = 0
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._started = -1
        self._read()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folders.cleanup()

    def start(self, *arguments: object, folder: Path, before: str = "", **environment: str) -> RunningCommand:
        """Start ``prefcli`` with some arguments in a folder; ``before`` is Python run first."""
        self._count += 1
        place = Path(self._folders.name) / str(self._count)
        place.mkdir()
        request = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "output": str(place),
            "before": before,
            "environment": environment,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        self._started = -1
        while self._started < 0:
            self._read()
        return RunningCommand(self._started, self, place)

    def run(self, *arguments: object, folder: Path, before: str = "", **environment: str) -> Result:
        return self.start(*arguments, folder=folder, before=before, **environment).wait()

    def wait(self, pid: int) -> int:
        while pid not in self._codes:
            self._read()
        return self._codes.pop(pid)

    def _read(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the process that starts commands is gone")
        message = json.loads(line)
        if "started" in message:
            self._started = message["started"]
        elif "ended" in message:
            self._codes[message["ended"]] = message["code"]


def serve() -> None:
    """Read commands from standard input, start each as a fork of this process, report how it ended."""
    import lightgbm  # noqa: F401
    import nltk  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rich.console
    import rich.table  # noqa: F401
    import torch  # noqa: F401
    import transformers

    # Looked up by name at the first use, which takes as long as importing torch.
    _ = transformers.AutoModel, transformers.AutoTokenizer, transformers.BertModel, transformers.PreTrainedTokenizerFast

    gc.collect()
    gc.freeze()
    requests, waiting = b"", {}
    send({"ready": os.getpid()})
    while True:
        ready, _, _ = select.select([0], [], [], 0.01)
        if ready:
            if not (block := os.read(0, 1 << 16)):
                return
            requests += block
        while b"\n" in requests:
            line, requests = requests.split(b"\n", 1)
            pid = os.fork()
            if pid == 0:
                run_command(json.loads(line))
            waiting[pid] = True
            send({"started": pid})
        for pid in list(waiting):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del waiting[pid]
                send({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def send(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def run_command(request: dict[str, Any]) -> None:
    """Run the requested command in this process; does not return."""
    from prefcli.cli import main

    for descriptor, name, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{request['output']}/out", os.O_WRONLY | os.O_CREAT),
        (2, f"{request['output']}/err", os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(name, mode, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    signal.alarm(int(MAX_SECONDS))
    sys.argv = ["prefcli", *request["arguments"]]
    exec(request["before"], {})
    code = main.run(request["arguments"])
    leave(code)


def leave(code: int) -> None:
    """End as an interpreter does, but without unloading modules, which takes two seconds in a fork."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


# Small disks


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[SmallDisk]:
    """A file system in memory whose size can be changed; unmounted when the block ends.

    Parameters
    ----------
    at:
        Where; an empty folder.
    """
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=0777", "none", at], check=True)
    try:
        yield SmallDisk(at)
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system in memory."""

    path: Path

    @property
    def pages(self) -> int:
        """Pages in use."""
        usage = os.statvfs(self.path)
        return (usage.f_blocks - usage.f_bfree) * usage.f_frsize // PAGE

    def leave(self, pages: int | None) -> None:
        """Leave room for this many more pages; None leaves plenty."""
        size = 256 << 20 if pages is None else (self.pages + pages) * PAGE
        self._remount(f"size={size}")

    def leave_names(self, names: int | None) -> None:
        """Leave room for this many more files, however small."""
        usage = os.statvfs(self.path)
        used = usage.f_files - usage.f_ffree
        self._remount(f"nr_inodes={100_000 if names is None else used + names}")

    def read_only(self, only: bool) -> None:
        self._remount("ro" if only else "rw")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)


def refuse_without_root() -> None:
    """Mounting needs it."""
    if os.geteuid() != 0:
        print("this needs root, for mount -t tmpfs", file=sys.stderr)
        raise SystemExit(2)


# Leftovers


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the digest of its content; without checkpoints' states, which contain times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "state.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def strays(*folders: Path) -> list[str]:
    """Temporary files and locks that were left behind."""
    names = (path for folder in folders for path in folder.rglob("*"))
    return [
        str(path)
        for path in names
        if (path.name.startswith(STRAY) and path.name != ".prefcli") or path.suffix in (".lock", ".tmp")
    ]


# The table


@dataclass
class Table:
    """What was tried, how often, and what happened, with the failures below."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, what: str, outcome: str, problem: str = "") -> None:
        """Count an attempt; with a problem it counts as failed, whatever the outcome."""
        self.outcomes.setdefault(what, Counter())["FAILED" if problem else outcome] += 1
        if problem:
            self.failures.append(f"{what}: {problem}")

    def finish(self) -> None:
        """Print everything; exit 1 if anything failed."""
        width = max(map(len, self.outcomes))
        total = 0
        for what, counted in self.outcomes.items():
            total += sum(counted.values())
            print(f"{what:{width}}  {sum(counted.values()):4}  {', '.join(f'{n} {how}' for how, n in counted.items())}")
        print(f"{'all':{width}}  {total:4}  {len(self.failures)} failed")
        for failure in self.failures[:40]:
            print(f"FAILED {failure}")
        raise SystemExit(1 if self.failures else 0)


def shown(arguments: Sequence[object]) -> str:
    return " ".join(str(argument) for argument in arguments)


if __name__ == "__main__":
    serve()

"""Unusual environments: no temporary folder, no home, a clock that jumps, no terminal, odd file names.

``python benchmarks/faults/surroundings.py [--part NAME]`` (as root, with setpriv and, for clocks, faketime). Every
command is a separate process, because much of this is read when modules are loaded.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from attempts import Result, Table, refuse_without_root, small_disk, strays

from prefcli.data import synthetic

PREFCLI = [sys.executable, "-m", "prefcli"]
ALL = (
    "eda train.csv --report report.html --force",
    "preprocess train.csv",
    "train train.csv --encoder tiny --epochs 1 --output tiny --force",
    "train train.csv --architecture features --output features --force",
    "train train.csv --encoder ./tiny-encoder --epochs 1 --output local --force",
    "predict test.csv --model tiny --output preds.csv --force",
    "predict test.csv --model features --output preds.parquet --force",
    "score preds.csv test_truth.csv",
)
SAVE_ENCODER = """
from prefcli import encoders
tokenizer = encoders.train_tokenizer(["some words and some more words"] * 9)
encoders.make_encoder(encoders.locate("tiny"), len(tokenizer), seed=0).save_pretrained("tiny-encoder")
tokenizer.save_pretrained("tiny-encoder")
"""
STRANGER = (
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups",
    # It must be able to read the interpreter, wherever that lies.
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
UNUSABLE = "from prefcli.data import joining; joining.IN_MEMORY_ROWS = 50\nfrom prefcli.cli.main import main; main()"


def call(
    command: str | list[str],
    folder: Path,
    *,
    wrapper: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    program: list[str] = PREFCLI,
    stdin: bytes | None = None,
    **environment: str,
) -> Result:
    arguments = command.split() if isinstance(command, str) else command
    variables = {k: v for k, v in os.environ.items() if k not in without} | {"OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [*wrapper, *program, *arguments], cwd=folder, env=variables, input=stdin, capture_output=True, timeout=180
    )
    return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def worked(done: Result) -> str:
    bad = done.code != 0 or "Traceback" in done.err or "Exception ignored" in done.err
    return f"exit {done.code}: {done.err[-400:]!r}" if bad else ""


def refused(done: Result, *words: str) -> str:
    missing = [word for word in words if word not in done.err]
    return f"{done.unclear() or missing or ''}: {done.err[-400:]!r}" if done.unclear() or missing else ""


def temporary_folders(folder: Path, table: Table) -> None:
    """None of the usual ones can be written, or the one that TMPDIR names is full."""
    with small_disk(folder / "full") as disk:
        (disk.path / "filling").write_bytes(b"0")
        disk.leave(1)  # enough for Python to take it for usable: otherwise it goes to /tmp
        full = str(disk.path)
        for command in ALL:
            table.add("TMPDIR full: needs none", "worked", worked(call(command, folder, TMPDIR=full)))
        score = ["score", "preds.csv", "test_truth.csv"]
        done = call(score, folder, program=[sys.executable, "-c", UNUSABLE], TMPDIR=full)
        table.add("TMPDIR full: many rows", "refused clearly", refused(done, full, "TMPDIR"))
        for verb in ("eda -", "preprocess -"):
            done = call(verb, folder, stdin=(folder / "train.csv").read_bytes(), TMPDIR=full)
            table.add("TMPDIR full: standard input", "refused clearly", refused(done, full, "TMPDIR"))
        if left := [
            name for name in os.listdir(disk.path) if name != "filling" and not name.startswith("torchinductor_")
        ]:  # torch's own
            table.add("TMPDIR full", "", f"left {left}")
    # Every usual folder is read-only, and so is the current one: a mount namespace of its own.
    read_only = "for d in /tmp /var/tmp /usr/tmp; do mount -t tmpfs -o ro none $d 2>/dev/null; done; "
    home = Path(tempfile.mkdtemp(prefix="faults-", dir="/var"))
    try:
        shutil.copytree(folder, home / "work")
        script = read_only + 'exec "$@"'
        wrapper = ("unshare", "--mount", "sh", "-c", script, "sh")
        for command in ALL:
            done = call(command, home / "work", wrapper=wrapper)
            table.add("no usual temporary folder: needs none", "worked", worked(done))
        locked = (
            read_only
            + f"mount --bind {home}/work {home}/work; mount -o remount,ro,bind {home}/work; "
            + (f'cd {home}/work; exec "$@"')
        )
        wrapper = ("unshare", "--mount", "sh", "-c", locked, "sh")
        done = call(score, home / "work", wrapper=wrapper, program=[sys.executable, "-c", UNUSABLE])
        table.add("no temporary folder at all: many rows", "refused clearly", refused(done, "TMPDIR"))
        done = call("eda -", home / "work", wrapper=wrapper, stdin=(folder / "train.csv").read_bytes())
        table.add("no temporary folder at all: standard input", "refused clearly", refused(done, "TMPDIR"))
        table.add(
            "no temporary folder at all: needs none", "worked", worked(call(score, home / "work", wrapper=wrapper))
        )
    finally:
        shutil.rmtree(home)


def homes(folder: Path, table: Table) -> None:
    """No home folder, or one that cannot be used, or a user that the system does not know."""
    hub = ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME")
    with small_disk(folder / "home") as disk:
        disk.read_only(True)
        kinds: dict[str, dict[str, object]] = {
            "HOME unset": {"without": ("HOME", *hub)},
            "HOME does not exist": {"without": hub, "HOME": "/nonexistent"},
            "HOME read-only": {"without": hub, "HOME": str(disk.path)},
        }
        kinds["user without an entry"] = {"without": ("HOME", "USER", "LOGNAME", *hub), "wrapper": STRANGER}
        for kind, how in kinds.items():
            # This user may replace what others made, otherwise files that it cannot remove would stay.
            for path in (folder, *(path for path in folder.rglob("*") if disk.path not in (path, *path.parents))):
                path.chmod(0o777 if path.is_dir() else 0o666)
            for command in ALL:
                table.add(kind, "worked", worked(call(command, folder, **how)))  # type: ignore[arg-type]
            done = call("train train.csv --encoder no/such-encoder", folder, HF_ENDPOINT="http://127.0.0.1:9", **how)  # type: ignore[arg-type]
            words = "HF_HOME" if kind == "user without an entry" else "network"
            table.add(f"{kind}: the hub", "refused clearly", refused(done, words))


def clocks(folder: Path, table: Table) -> None:
    """The clock jumps between commands, and while they run."""
    jump = """
import itertools, random, time
real, ticks = time.time, itertools.count()
time.time = lambda: real() + (-86400, 86400, 3e7, -3e7)[next(ticks) % 4]
from prefcli.cli.main import main; main()
"""
    names = set()
    for number, shift in enumerate(("-2y", "+0", "-1s", "+3y", "-1d", "@2024-02-29 23:59:59", "@2024-02-29 23:59:59")):
        place = folder / "clocks"
        if number == 0:
            place.mkdir()
            for name in ("train.csv", "test.csv", "test_truth.csv"):
                shutil.copy(folder / name, place)
        wrapper = ("faketime", "-f", shift)
        for command in ("preprocess train.csv", "train --architecture features", "predict test.csv --force"):
            done = call(command, place, wrapper=wrapper)
            problem = worked(done)
            if number and command.startswith("preprocess") and "reused from the cache" not in done.err:
                problem = "the cache was not reused"
            if re.search(r"-\d+(\.\d+)? s\b|-\d[\d,.]* battles/s|-\d+:\d\d", done.out + done.err):
                problem = f"a negative duration: {done.out}"
            table.add("the clock jumps between commands", "worked", problem)
        run_names = {path.name for path in (place / ".prefcli" / "runs").iterdir() if path.is_dir()}
        table.add(
            "the clock jumps: a run of its own", "worked", "" if len(run_names) == len(names) + 1 else f"{run_names}"
        )
        names = run_names
    for command in ALL:
        done = call(command, folder, program=[sys.executable, "-c", jump])
        negative = re.search(r"-\d+(\.\d+)? s\b|-\d[\d,.]* battles/s", done.out + done.err)
        table.add("the clock jumps during a command", "worked", worked(done) or (str(negative) if negative else ""))


def terminals(folder: Path, table: Table) -> None:
    """Closed or full streams, encodings with few characters, a deleted current folder."""
    for command in ALL:
        for how in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            script = ("sh", "-c", f'exec "$@" {how}', "sh")
            table.add(f"closed {how}", "worked", worked(call(command, folder, wrapper=script)))
        done = call(command, folder, wrapper=("sh", "-c", 'exec "$@" > /dev/full', "sh"))
        if not command.startswith(("train", "none")) or done.code:
            table.add("stdout is /dev/full", "refused clearly", refused(done, "standard output"))
        script = ("sh", "-c", 'exec "$@" 2> /dev/full', "sh")
        table.add("stderr is /dev/full", "worked", worked(call(command, folder, wrapper=script)))
    text = (
        (folder / "train.csv").read_text().replace("aurora-7b", "größe-模型-7b").replace("basalt-13b", "\u202eevil\x1b")
    )
    (folder / "names.csv").write_text(text, encoding="utf-8")
    for settings in (
        {"LANG": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"},
    ):
        for command in ("eda names.csv", "eda names.csv --json", "eda names.csv --report names.html --force",
                        "eda größe.csv", "preprocess names.csv --preview 2"):  # fmt: skip
            done = call(command, folder, **settings)
            problem = refused(done) if "größe.csv" in command else worked(done)
            table.add("an encoding without these characters", "worked or refused clearly", problem)
    for command in (
        "eda train.csv",
        "--version",
        f"eda {folder}/train.csv",
        f"score {folder}/preds.csv {folder}/test_truth.csv",
    ):
        gone = folder / "gone"
        gone.mkdir()
        script = ("sh", "-c", f'cd {gone}; rmdir {gone}; exec "$@"', "sh")
        done = call(command, folder, wrapper=script)
        fine = command in ("--version",) or command.startswith("score")
        table.add("a current folder that is gone", "worked or refused clearly", worked(done) if fine else refused(done))


def names(folder: Path, table: Table) -> None:
    """File names with every kind of character."""
    odd: list[bytes] = [b"with space", b"it's \"quoted\"", b"two\nlines", b"\xff\xfe not text", "größe 模型".encode(),
                        b"-dash", b"[bold]markup", b"$(id)", b"x" * 240, b"\x1b[31m red"]  # fmt: skip
    for name in odd:
        place = os.fsencode(folder / "odd")
        shutil.rmtree(place, ignore_errors=True)
        os.mkdir(place)
        table_in, table_out, run = (os.path.join(place, name + end) for end in (b".csv", b".preds.csv"[-10:], b""))
        shutil.copy(folder / "train.csv", table_in)
        commands: list[list[bytes]] = [
            [b"eda", table_in, b"--report", run + b".html"],
            [b"preprocess", table_in],
            [b"train", table_in, b"--architecture", b"features", b"--output", run],
            [b"train", b"--resume", run],
            [b"predict", os.fsencode(folder / "test.csv"), b"--model", run, b"--output", table_out],
            [b"score", table_out, os.fsencode(folder / "test_truth.csv")],
            [b"eda", table_in + b".missing"],
        ]
        for command in commands:
            done = call(command, folder, PREFCLI_WORKSPACE=str(folder / "odd" / "work"))  # type: ignore[arg-type]
            missing = command[-1].endswith(b".missing")
            table.add("an odd name", "worked or refused clearly", (refused if missing else worked)(done) and
                      f"{name[:30]!r} {command[0].decode()}: {(refused if missing else worked)(done)}")  # fmt: skip
    for length in (251, 255):
        long = "y" * length
        for command in (
            f"eda train.csv --report x{long[1:-5]}.html",
            f"train train.csv --architecture features -o {long}",
        ):
            table.add("a name of 255 bytes", "worked", worked(call(command, folder)))
        done = call(f"predict test.csv --model {long} -o {long[:-4]}.csv", folder)
        table.add("a name of 255 bytes", "worked", worked(done))
        for path in folder.glob("[xy]yyy*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = call(f"eda train.csv --report {'z' * 251}.html", folder)
    table.add("a name of 256 bytes", "refused clearly", refused(done, "too long"))


PARTS: dict[str, Callable[[Path, Table], None]] = {
    "temporary": temporary_folders,
    "home": homes,
    "clock": clocks,
    "terminal": terminals,
    "names": names,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append")
    options = parser.parse_args()
    refuse_without_root()
    table = Table()
    for part in options.part or PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-around-") as name:
            folder = Path(name)
            synthetic.write(folder, train=200, test=100)
            subprocess.run([sys.executable, "-c", SAVE_ENCODER], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            for command in ALL:
                if problem := worked(call(command, folder)):
                    raise SystemExit(f"{command} failed in the usual environment: {problem}")
            PARTS[part](folder, table)
            if run_names := strays(folder):
                table.add(part, "", f"left {run_names}")
        print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
    table.finish()


if __name__ == "__main__":
    main()

"""What prefcli promises for every input, and a check of one command on one hostile input."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import math
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

import hostile_inputs
import pyarrow.parquet as pq
from hostile_inputs import Hostile

VERBS = {
    "eda": 30,
    "eda --report": 10,
    "preprocess --text raw": 10,
    "preprocess --text nltk": 10,
    "predict": 20,
    "score, predictions": 10,
    "score, labels": 8,
    "train": 2,
}
"""The commands and how often each is run, in percent."""
MAX_LINE_LENGTH = 2000
"""Characters of a line of an error."""
OLD_OUTPUT = b"here before\n"
"""An output that was there before the command."""


@dataclass(frozen=True)
class Bench:
    """What the cases share: a trained run, and valid files of predictions and of labels."""

    run: Path
    predictions: Path
    labels: Path


@dataclass(frozen=True)
class Case:
    """One command on one input."""

    number: int
    verb: str
    input: Hostile
    output: str
    exists: bool
    force: bool

    def command(self, folder: Path, bench: Bench) -> list[str]:
        """The command line, its input lying in ``folder``."""
        file, output = str(where(self.input, folder)), str(folder / self.output)
        options = ["--workspace", str(folder / "workspace"), *(["--force"] if self.force else [])]
        match self.verb:
            case "eda":
                return ["eda", file, *options]
            case "eda --report":
                return ["eda", file, "--report", output, *options]
            case "predict":
                return ["predict", file, "--model", str(bench.run), "--output", output, "--workers", "1", *options]
            case "score, predictions":
                return ["score", file, str(bench.labels)]
            case "score, labels":
                return ["score", str(bench.predictions), file]
            case "train":
                return ["train", file, "--architecture", "features", "--output", output, *options]
        return [*self.verb.split(), file, "--workers", "1", *options[:2]]


@dataclass(frozen=True)
class Result:
    """How a command ended, and which promises it broke."""

    code: int
    out: str
    err: str
    broken: list[str]


def case_of(seed: int, number: int, verbs: dict[str, int] = VERBS) -> Case:
    """The case with this number; the same for the same seed."""
    random = Random(f"{seed}/{number}")
    verb = random.choices(list(verbs), list(verbs.values()))[0]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # input that is nested too deep for the command must be written first
    try:
        if verb.startswith("score"):
            hostile = hostile_inputs.score_file(random, labels=verb.endswith("labels"))
        else:
            hostile = hostile_inputs.battles(random)
    finally:
        sys.setrecursionlimit(limit)
    outputs = {"eda --report": "page.html", "predict": random.choice(("preds.csv", "preds.parquet")), "train": "run"}
    exists = verb in ("eda --report", "predict") and random.random() < 0.15
    return Case(number, verb, hostile, outputs.get(verb, ""), exists, exists and random.random() < 0.6)


# The input on the disk


def where(hostile: Hostile, folder: Path) -> Path:
    """The path of the input that the command is given."""
    special = {"null": Path("/dev/null"), "zero": Path("/dev/zero"), "stdin": Path("-")}
    below = folder / "input" / hostile.name
    return special.get(hostile.place, below / "below.csv" if hostile.place == "under a file" else below)


@contextlib.contextmanager
def laid(hostile: Hostile, folder: Path) -> Iterator[None]:
    """The input is at :func:`where`."""
    path = folder / "input" / hostile.name
    path.parent.mkdir()
    match hostile.place:
        case "" | "under a file":
            path.write_bytes(hostile.data)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "stdin":
            with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(hostile.data))):
                yield
            return
        case "fifo":
            with _fed(path, hostile.data):
                yield
            return
    yield


@contextlib.contextmanager
def _fed(path: Path, data: bytes) -> Iterator[None]:
    os.mkfifo(path)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as stream:
            stream.write(data)

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        yield
    finally:
        end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.close(end)
        writer.join()


@contextlib.contextmanager
def lowered(limits: dict[str, int]) -> Iterator[None]:
    """Lower the readers' limits, so that a bomb need not be large."""
    with contextlib.ExitStack() as stack:
        for name, value in limits.items():
            module, constant = name.split(".")
            reader_module = importlib.import_module(f"prefcli.readers.{module}")
            stack.enter_context(mock.patch.object(reader_module, constant, value))
        yield


# The command


def try_case(case: Case, folder: Path, bench: Bench) -> Result:
    """Run a case in an empty folder, in this process, and check its messages and files."""
    from prefcli.cli.main import run

    (folder / "temporary").mkdir(parents=True)
    output = folder / case.output
    if case.exists:
        output.write_bytes(OLD_OUTPUT)
    out, err = io.StringIO(), io.StringIO()
    with (
        laid(case.input, folder),
        lowered(case.input.limits),
        mock.patch("tempfile.tempdir", str(folder / "temporary")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(case.command(folder, bench))
    err_text = err.getvalue()
    broken = [*wrong_words(code, out.getvalue(), err_text), *wrong_files(case, code, folder)]
    return Result(code, out.getvalue(), err_text, broken)


def wrong_words(code: int, out: str, err: str) -> Iterator[str]:
    """Promises about exit code and messages that were broken."""
    if code not in (0, 2):
        yield f"exit code {code}"
    for word in ("Traceback", "This is a bug"):
        if word in err:
            yield f"{word} on stderr"
    lines = err.splitlines()
    begins = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
    if code == 0:
        if begins is not None:
            yield "an error, and exit code 0"
        if not out.strip():
            yield "no result on stdout"
        return
    if begins is None:
        yield "no error on stderr"
        return
    if len(lines) - begins > 3:
        yield f"an error of {len(lines) - begins} lines"
    for line in lines:
        if not line.isprintable():
            yield f"unprintable characters: {line[:80]!r}"
        if len(line) > MAX_LINE_LENGTH:
            yield f"a line of {len(line):,} characters: {line[:80]!r}"


def wrong_files(case: Case, code: int, folder: Path) -> Iterator[str]:
    """Promises about files that were broken."""
    output = folder / case.output
    for path in folder.rglob("*"):
        if path.name.endswith(".tmp") or path.parent == folder / "temporary":
            yield f"a temporary file was left: {path.relative_to(folder)}"
    stages = folder / "workspace" / "stages"
    names = {path.stem for path in stages.iterdir()} if stages.is_dir() else set()
    for name in names:
        data, digest = stages / f"{name}.parquet", stages / f"{name}.sha256"
        if not (data.exists() and digest.exists()):
            yield f"half a stage: {name}"
        elif hashlib.sha256(data.read_bytes()).hexdigest() != digest.read_text().split()[0]:
            yield f"a stage that does not match its digest: {name}"
    if code != 0 or (case.exists and not case.force):
        if case.exists and output.read_bytes() != OLD_OUTPUT:
            yield "the output that was there has changed"
        if case.exists and code == 0:
            yield "the output that was there did not stop the command"
        if case.output and not case.exists and output.exists():
            yield "there is an output, and an error"
        return
    rows = {name.partition("-")[0]: pq.read_metadata(stages / f"{name}.parquet").num_rows for name in names}
    if case.verb.startswith("preprocess") and rows.get("preprocess") != rows["battles"]:
        yield "not every battle was preprocessed"
    if case.verb == "eda --report":
        page = output.read_text(encoding="utf-8")
        if not page.endswith("</html>\n"):
            yield "the page is not whole"
        if "<script>alert" in page:
            yield "the page holds a script from the input"
    if case.verb == "predict":
        stage = next(stages.glob("battles-*.parquet"))
        yield from wrong_predictions(output, pq.read_table(stage, columns=["id"])["id"].to_pylist())
    if case.verb == "train":
        for name in ("config.json", "model.safetensors", "booster.txt", "README.md"):
            if not (output / name).is_file():
                yield f"the run has no {name}"


def wrong_predictions(path: Path, ids: list[str]) -> Iterator[str]:
    """What is wrong with a file of predictions: ids, order, probabilities."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream))
    else:
        table = pq.read_table(path)
        header, rows = table.column_names, [list(map(str, row.values())) for row in table.to_pylist()]
    if header not in (["id", *hostile_inputs.WINNERS], ["id", *hostile_inputs.WINNERS, "p_chosen"]):
        yield f"the columns are {header}"
    if [row[0] if row else None for row in rows] != ids:
        yield f"{len(rows)} rows, whose ids are not those of the {len(ids)} battles"
        return
    for row in rows:
        values = [float(cell) for cell in row[1:]]
        if (
            len(values) != len(header) - 1
            or not all(0 <= value <= 1 for value in values)
            or not math.isclose(sum(values[:3]), 1, abs_tol=1e-6)
        ):
            yield f"no probabilities: {row}"
            return


def empty(folder: Path) -> None:
    """Remove what a case left."""
    shutil.rmtree(folder, ignore_errors=True)


def make_bench(folder: Path, battles: int = 240) -> Bench:
    """A small run on synthetic battles that predicts in all cases, and valid files to score with."""
    from prefcli.cli.main import run
    from prefcli.data import synthetic

    hostile = synthetic.write(folder, train=battles, test=12)
    run_folder = folder / "run"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = [
            "--architecture",
            "features",
            "--output",
            str(run_folder),
            "--workspace",
            str(folder / "workspace"),
        ]
        if code := run(["train", str(hostile.train), *arguments]):
            raise SystemExit(f"the run could not be trained: exit code {code}")
    files = {"predictions": hostile_inputs.guesses, "labels": hostile_inputs.truth}
    for name, rows in files.items():
        (folder / f"{name}.csv").write_bytes(hostile_inputs.as_csv(rows(Random(0), 12)))
    return Bench(run_folder, folder / "predictions.csv", folder / "labels.csv")

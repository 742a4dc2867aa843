"""What the user sees of long work: bars on a terminal, few lines where there is none, and how far files are read."""

from __future__ import annotations

import gzip
import io
import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import battle, write_csv
from rich.console import Console as RichConsole

from prefcli import pipeline, readers
from prefcli.battles import Source
from prefcli.cli import train as train_verb
from prefcli.console import Console, Task, duration
from prefcli.data.synthetic import Demo
from prefcli.models.features.booster import BoosterSettings
from prefcli.options import PredictOptions, TrainOptions
from prefcli.pipeline import stages
from prefcli.pipeline.train import TrainResult
from prefcli.readers import containers, json_rows
from prefcli.reporting import OneOfSeveral, Silent
from prefcli.storage import runs
from prefcli.storage.workspace import Workspace


class Clock:
    """Seconds that pass only when a test moves them on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_training_of_a_day_writes_some_twenty_lines_where_there_is_no_terminal(clock, capsys) -> None:
    """Five folds of three epochs with 60 validations each; a step takes two seconds."""
    reporter = Console(clock=clock)
    steps = 24 * 3600 // 2
    with reporter.track("training", steps * 8) as progress:
        for step in range(steps):
            clock.now += 2
            progress.advance(8, "loss 1.0")
            if step % (steps // 900) == 0:
                with reporter.track("validating", 100) as validating:
                    validating.advance(100)
                progress.result(f"step {step}: validation log loss 1.0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 20
    assert [line.partition(":")[0] for line in lines].count("training") >= 8


def test_many_short_tasks_are_no_reason_for_lines(clock, capsys) -> None:
    reporter = Console(clock=clock)
    for number in range(1000):
        with reporter.track(f"reading file {number}", 1, "bytes") as progress:
            clock.now += 0.1
            progress.advance()
    assert len(capsys.readouterr().err.splitlines()) == 4  # after 10, 20, 40 and 80 of 100 seconds


def test_the_first_results_are_written_however_fast_they_come(clock, capsys) -> None:
    reporter = Console(clock=clock)
    with reporter.track("training", 10) as progress:
        for fold in range(1, 9):
            progress.result(f"fold {fold}")
    assert capsys.readouterr().err.splitlines() == [f"fold {fold}" for fold in range(1, 6)]


def test_a_line_has_count_share_rate_and_time_left(clock, capsys) -> None:
    reporter = Console(clock=clock)
    with reporter.track("training", 2700) as progress:
        clock.now = 30  # the first step takes long, and is not measured
        progress.advance(100)
        clock.now = 40
        progress.advance(500, "loss 1.0462")
    with reporter.track("reading votes.csv", 2e9, "bytes") as progress:
        progress.advance(5e8)
        clock.now = 3740
        progress.advance(5e8, "12,000 battles")
    assert capsys.readouterr().err.splitlines() == [
        "training: 100 of 2,700 battles (4%)",
        "reading votes.csv: 1.0 GB of 2.0 GB (50%), 135.1 kB/s, 2:03:20 left, 12,000 battles",
    ]


def task(clock: Clock, total: float | None = 1000, what: str = "training") -> Task:
    return Task(what, total, "battles", clock, Console(quiet=True, clock=clock))


def test_units_that_were_done_before_count_for_the_share_but_not_for_the_rate(clock) -> None:
    training = task(clock)
    training.skip(500)
    training.advance(10)
    clock.now = 10
    training.advance(90)
    assert (training.rate, training.seconds_left) == (9.0, pytest.approx(400 / 9))
    assert "600 of 1,000 battles (60%)" in training.line()


def test_time_left_goes_on_between_two_steps(clock) -> None:
    training = task(clock)
    training.advance(100)
    clock.now = 10
    training.advance(100)
    assert training.seconds_left == 80
    clock.now = 30
    assert training.seconds_left == 60
    clock.now = 500
    assert training.seconds_left == 0


def test_the_share_does_not_go_back_when_more_is_expected(clock) -> None:
    boosting = task(clock, 100)
    boosting.advance(50)
    clock.now = 1
    boosting.advance(1)
    assert "(51%)" in boosting.line()
    boosting.expect(1000)
    assert "(51%)" in boosting.line()
    assert boosting.seconds_left == 949
    boosting.expect(60)
    assert "(85%)" in boosting.line()


@pytest.mark.parametrize("width", [20, 50, 80, 120])
def test_a_bar_is_one_line_of_the_terminal_whatever_its_width(clock, width: int) -> None:
    """Also of a file with a long Chinese name, each character of which is two columns wide."""
    for what in ("boosting", "reading " + "投票数据/" * 9 + "train.csv"):
        for total in (1_000_000, None):
            training = task(clock, total, what)
            for _ in range(2):
                clock.now += 5
                training.advance(1234, "fold 2 of 5: loss 1.0462, lr 1.1e-05, and more than fits into a line " * 2)
                shown = RichConsole(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
                with shown.capture() as capture:
                    shown.print(training)
                [line] = capture.get().splitlines()
                assert shown.render_lines(line, pad=False) == [[*shown.render_lines(line, pad=False)[0]]]
                assert ("0%" if total else "1,2" if _ == 0 else "2,4") in line


def test_what_matters_most_is_what_a_narrow_terminal_shows(clock) -> None:
    training = task(clock, 2700)
    training.advance(100)
    clock.now = 10
    training.advance(500, "loss 1.0462, lr 1.1e-05")

    def shown(width: int) -> str:
        drawn = RichConsole(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        with drawn.capture() as capture:
            drawn.print(training)
        return re.sub("[━╸╺]+ +", "", capture.get().rstrip("\n")).rstrip()

    assert shown(120) == "training 22% 0:42 left 50 battles/s loss 1.0462, lr 1.1e-05"
    assert shown(80) == shown(120)
    assert shown(50) == "training 22% 0:42 left 50 battles/s"
    assert shown(30) == "training  22% 0:42 left"  # no room for a bar


def test_durations_are_short() -> None:
    assert list(map(duration, (0.4, 65, 3599, 3600, 200_000))) == [
        "0:00", "1:05", "59:59", "1:00:00", "2 days, 7:33:20",
    ]  # fmt: skip


def test_quiet_leaves_warnings(clock, capsys) -> None:
    reporter = Console(quiet=True, clock=clock)
    reporter.note("a note")
    reporter.warn("a warning")
    with reporter.track("training", 1) as progress:
        clock.now = 100
        progress.advance(1)
        progress.result("a result")
    assert capsys.readouterr().err == "warning: a warning\n"


def test_one_process_of_several_writes(cli, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    messages = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        messages[rank] = cli("train", "missing.csv", "--recipe", "fast").err
    assert messages["0"].splitlines()[0].startswith("recipe fast")
    assert messages["1"] == ""


def test_of_several_trainings_each_task_says_which_and_notes_are_not_repeated(clock, capsys) -> None:
    noted: set[str] = set()
    for number in (1, 2):
        reporter = OneOfSeveral(Console(clock=clock), number, 2, noted)
        reporter.note("train.csv: 240 battles")
        reporter.note(f"seed {number}")
        with reporter.track("training", 10) as progress:
            clock.now += 100
            progress.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "train.csv: 240 battles",
        "seed 1",
        "training (1 of 2): 10 of 10 battles (100%)",
        "seed 2",
        "training (2 of 2): 10 of 10 battles (100%)",
    ]


def test_what_is_written_while_a_bar_is_drawn_stands_above_it(tmp_path: Path) -> None:
    """On a real terminal, of which a reader sees only whole lines at the end: notes, and what libraries write."""
    code = (
        "import sys, time; from prefcli.console import Console\n"
        "reporter = Console()\n"
        "try:\n"
        "    with reporter.track('training', 4) as progress:\n"
        "        for step in range(3):\n"
        "            time.sleep(0.15); progress.advance(1, 'loss')\n"
        "            reporter.note(f'note {step}'); print(f'a library {step}', file=sys.stderr)\n"
        "        with reporter.track('validating', 9) as validating: validating.advance(9); time.sleep(0.15)\n"
        "        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt: print('error: interrupted', file=sys.stderr)\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "60"}
    subprocess.run([sys.executable, "-c", code], stderr=follower, stdout=follower, check=True, env=environment)
    os.close(follower)
    written = os.read(leader, 1 << 16).decode()
    os.close(leader)
    expected = [f"{what} {step}" for step in range(3) for what in ("note", "a library")]
    assert screen(written) == [*expected, "error: interrupted"]


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after what was written to it, of the sequences that rich uses."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[1A":
            row -= 1
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece[0] not in "\r\x1b":
            lines[row] += piece
    return [line.rstrip() for line in lines if line.strip()]


# Reading


class Followed(Silent):
    """Remembers tasks: what they are called, their totals and their steps."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float | None, list[float]]] = []
        self.expected: list[float] = []

    @contextmanager
    def track(self, what: str, total: float | None, unit: str = "battles") -> Iterator[object]:
        steps: list[float] = []
        self.tasks.append((what, total, steps))

        class Steps:
            result = staticmethod(lambda _: None)
            skip = staticmethod(lambda amount, note="": steps.append(amount))
            expect = staticmethod(self.expected.append)

            def advance(self, amount: float = 1, note: str = "") -> None:
                steps.append(amount)

        yield Steps()


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [{"response_a": [f"{number * 7919}" * 40]} for number in range(300)]
    rows = [battle(number, **fields) for number, fields in enumerate(texts)]
    return write_csv(tmp_path_factory.mktemp("reading") / "train.csv", rows)


def stored(csv_file: Path, folder: Path, name: str) -> Path:
    """The battles in another container."""
    path = folder / name
    table = pyarrow.csv.read_csv(csv_file)
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=40)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.csv", csv_file.read_bytes())
    elif ".jsonl" in name:
        text = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    else:
        path.write_bytes(csv_file.read_bytes().decode().encode("utf-16") if "16" in name else csv_file.read_bytes())
    return path


@pytest.mark.parametrize(
    "name", ["train.csv", "utf-16.csv", "train.jsonl", "train.jsonl.gz", "train.zip", "train.parquet"]
)
def test_reading_goes_by_the_bytes_of_the_file(name: str, csv_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(containers, "METERED_BYTES", 2048)
    monkeypatch.setattr(containers, "BLOCK_BYTES", 16384)
    monkeypatch.setattr(containers, "BATCH_ROWS", 50)
    monkeypatch.setattr(json_rows, "BLOCK_CHARS", 4096)
    path, followed = stored(csv_file, tmp_path, name), Followed()
    stages.read_stage(path, Workspace(tmp_path / "ws"), followed)
    size = path.stat().st_size
    names = ["scanning"] * ("json" in name) + ["checking", "reading"]
    assert [what for what, _, _ in followed.tasks] == [f"{verb} {path}" for verb in names]
    for what, total, steps in followed.tasks:
        assert total == size == sum(steps)
        assert min(steps) >= 0
        if not what.startswith("checking"):
            assert max(steps) < size, "in one step: not metered"


def test_a_row_longer_than_a_block_does_not_count_twice(tmp_path: Path, monkeypatch) -> None:
    """Arrow cannot read it, and the file is read again from its beginning in larger blocks."""
    monkeypatch.setattr(containers, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(containers, "METERED_BYTES", 512)
    rows = [battle(1), battle(2), battle(3, response_a=["long " * 2000]), battle(4)]
    path, followed = write_csv(tmp_path / "a.csv", rows), Followed()
    with followed.track("reading", None) as progress:
        assert sum(batch.num_rows for batch, _ in readers.open_battles(Source.of(path)).batches(progress)) == 4
    assert sum(followed.tasks[0][2]) == path.stat().st_size


def test_several_files_are_one_task(csv_file: Path, tmp_path: Path) -> None:
    second = write_csv(tmp_path / "b.csv", [battle(1000)])
    followed = Followed()
    stages.read_stage(Source((csv_file, second)), Workspace(tmp_path / "ws"), followed)
    [(_, total, steps)] = [task for task in followed.tasks if task[0].startswith("reading")]
    assert total == sum(steps) == csv_file.stat().st_size + second.stat().st_size


def test_every_task_of_a_command_ends_at_its_total(demo_files: Demo, tmp_path: Path, monkeypatch) -> None:
    """Also where a run has folds, each of which predicts every battle."""
    settings = BoosterSettings(8, 0.2, 10, 0.3, 5, 3)
    monkeypatch.setattr(BoosterSettings, "for_battles", lambda battles: settings)
    workspace, followed = Workspace(tmp_path / "ws"), Followed()
    options = TrainOptions(architecture="features", text="raw", folds=2)
    run = pipeline.train(demo_files.train, workspace, options, reporter=followed).run
    preds = tmp_path / "preds.csv"
    pipeline.predict(demo_files.test, workspace, preds, PredictOptions((str(run),)), reporter=followed)
    pipeline.score(preds, demo_files.truth, reporter=followed)
    pipeline.eda(demo_files.train, workspace, reporter=followed)
    tasks = {what.partition(" ")[0]: (total, sum(steps)) for what, total, steps in followed.tasks}
    assert tasks["predicting"] == (2 * 60, 2 * 60)
    assert tasks.keys() == {
        "checking", "reading", "normalising", "measuring", "boosting", "loading", "predicting", "scoring",
    }  # fmt: skip
    assert all(total == done for name, (total, done) in tasks.items() if name not in ("boosting", "loading"))
    assert followed.expected[-1] == pytest.approx(tasks["boosting"][1]), "the rounds of both folds, known at the end"


def test_a_fold_is_named_beside_the_bar_of_all_folds(demo_files: Demo, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Console, "_line_is_due", lambda self: True)
    settings = BoosterSettings(8, 0.2, 10, 0.3, 5, 3)
    monkeypatch.setattr(BoosterSettings, "for_battles", lambda battles: settings)
    options = TrainOptions(architecture="features", text="raw", folds=2)
    pipeline.train(demo_files.train, Workspace(tmp_path / "ws"), options, reporter=Console())
    lines = [re.sub(r"\d([\d.,:]*\d)?", "N", line) for line in capsys.readouterr().err.splitlines()]
    boosting = [line for line in lines if line.startswith("boosting: ")]
    assert boosting[-1] == "boosting: N of N rounds (N%), N/s, N left, fold N of N, networks"
    assert any(line.endswith("fold N of N, choosing rounds N/N") for line in boosting)
    assert sum(line.startswith("fold N of N: validation log loss N") for line in lines) == 2


def test_the_end_of_a_training_names_the_run_what_was_trained_and_where_it_lies(features_run: Path, capsys) -> None:
    score = replace(runs.validation_score(runs.read_validation(features_run), ()), log_loss_ci=(0.81239, 1.2))
    trained = TrainResult(features_run, None, score, 65.2, 123.45, (1.0, 1.0, 1.0), ())
    train_verb._print(trained, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        f"this model       {score.log_loss:.4f}  95 % interval 0.8124 to 1.2000",
        f"prior            {score.prior_log_loss:.4f}  class shares of the held-out battles",
    ]
    assert lines[-2:] == [
        "run run: features, text raw, on 216 battles", f"in {features_run}; 1:05 in all, 123.5 battles/s",
    ]  # fmt: skip


PICTURES = Path(__file__).parents[1] / "docs" / "images"


@pytest.mark.parametrize("name", ["session", "help", "eda", "progress", "train", "score"])
def test_pictures_of_terminals_need_nothing_from_the_network_and_stand_in_a_page(name: str) -> None:
    text = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert len(text) < 150_000
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not [word for word in ("@font-face", "@import", "url(h", "<script", "/tmp/") if word in text]
    pages = [PICTURES.parents[1] / "README.md", *PICTURES.parent.glob("*.md")]
    assert any(f"images/{name}.svg)" in page.read_text(encoding="utf-8") for page in pages)

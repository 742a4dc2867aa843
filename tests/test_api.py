"""prefcli from Python and through pipes: the same numbers as the command, nothing printed, clear exceptions."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import Result, battle, write_csv

import prefcli
from prefcli.data.synthetic import Demo
from prefcli.data.tables import read_probabilities
from prefcli.errors import InputError, ModelError
from prefcli.prediction import predictor

CLI = Callable[..., Result]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(features_run: Path) -> Path:
    return features_run


@pytest.fixture(scope="module")
def neural(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> Path:
    folder = tmp_path_factory.mktemp("neural")
    flags = {"encoder": "tiny", "limit": 60, "architecture": "cross-encoder"}
    return prefcli.train(demo_files.train, output=folder / "run", workspace=folder / "ws", **flags).run


@pytest.mark.slow
def test_the_examples_of_the_docs_run(demo_files: Demo, tmp_path: Path) -> None:
    for file in (demo_files.train, demo_files.test, demo_files.truth):
        shutil.copy(file, tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(examples) >= 6
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(examples)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("the model ") for line in lines), done.stderr  # warnings: the demo's battles are few


def test_importing_the_package_loads_no_dependency_and_writes_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; before = set(sys.modules); import prefcli; after = set(sys.modules) - before\n"
        "print(sorted(m for m in after if m.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "['prefcli', 'prefcli._version']", done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    assert {"load", "predict", "preprocess", "score", "train"} <= set(dir(prefcli))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prefcli.nothing  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("which", ["run", "neural"])
def test_loaded_runs_predict_what_the_command_predicts(
    cli: CLI, request: pytest.FixtureRequest, which: str, swap: bool, demo_files: Demo
) -> None:
    folder = request.getfixturevalue(which)
    flags = ["--swap-average"] if swap else []
    assert cli("predict", demo_files.test, "--model", folder, "-o", "p.parquet", *flags).code == 0
    _, expected = read_probabilities(Path("p.parquet"))
    judge = prefcli.load(folder, swap_average=swap)
    frame = pd.read_csv(demo_files.test)
    exact = {"atol": 0 if which == "run" else 1e-6}
    assert np.allclose(judge.predict(frame), expected, **exact)
    assert np.allclose(judge.predict(pyarrow.csv.read_csv(demo_files.test)), expected, **exact)
    assert np.allclose(judge.predict(frame.to_dict("records")), expected, **exact)
    row = frame.iloc[3]
    single = judge.predict(*(json.loads(row[name]) for name in ("prompt", "response_a", "response_b")))
    assert np.allclose(single, expected[3], atol=1e-6)
    assert single._fields == ("a", "b", "tie")
    assert sum(single) == pytest.approx(1)


def test_held_out_prompts_are_left_out_of_their_own_calibration(run: Path, demo_files: Demo, cli: CLI) -> None:
    held_out = set(pq.read_table(run / "validation.parquet")["id"].to_pylist())
    frame = pd.read_csv(demo_files.train, dtype={"id": str})
    own = frame[frame["id"].isin(held_out)].head(5)
    own.to_csv("own.csv", index=False)
    assert cli("predict", "own.csv", "--model", run, "-o", "p.csv").code == 0
    assert np.array_equal(prefcli.load(run).predict(own), read_probabilities(Path("p.csv"))[1])


def test_errors_are_exceptions_and_nothing_is_printed(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    judge = prefcli.load(run)
    judge.predict("Hi \ud83d!", "a", "b")
    for wrong in (3, ["no", "rows"], [], [{"prompt": "p"}], pd.DataFrame({"a": [1]}), None):
        with pytest.raises(InputError):
            judge.predict(wrong)  # type: ignore[call-overload]
    for wrong in (("p", 1, "b"), ("p", None, "b"), ("p", ["a", 2], "b")):
        with pytest.raises(InputError):
            judge.predict(*wrong)
    with pytest.raises(InputError, match="no run"):
        prefcli.load("nothing-there")
    with pytest.raises(InputError, match="no run"):
        prefcli.load(workspace=tmp_path)
    with pytest.raises(InputError, match="unknown option 'learning_speed'"):
        prefcli.train("train.csv", learning_speed=1)
    with pytest.raises(InputError, match="unknown option 'swap'"):
        prefcli.predict("test.csv", "p.csv", swap=True)
    with pytest.raises(InputError, match="--precision is 'quarter', not one of .*; --limit is 0, at least 1"):
        prefcli.predict("test.csv", "p.csv", precision="quarter", limit=0)
    shutil.copytree(run, tmp_path / "damaged")
    with (tmp_path / "damaged" / "booster.txt").open("a") as stream:
        stream.write("x")
    with pytest.raises(ModelError, match=r"booster\.txt is changed"):
        prefcli.load(tmp_path / "damaged")
    assert capsys.readouterr() == ("", "")


def test_score_of_arrays_and_what_it_refuses() -> None:
    score = prefcli.score([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]], [2, 1])
    assert score.log_loss == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 2)
    for probabilities, labels in (
        ([[0.2, 0.3, 0.6]], [0]),
        ([[0.2, 0.3, 0.5]], [3]),
        ([[0.2, 0.3, 0.5]], [0, 1]),
        ([[0.2, 0.3, 0.5]], [0.5]),
        ([[0.2, 0.8]], [0]),
        (np.empty((0, 3)), np.empty(0, int)),
    ):
        with pytest.raises(InputError):
            prefcli.score(probabilities, labels)


# Pipes


def lines_of(demo_files: Demo, count: int) -> list[bytes]:
    rows = pd.read_csv(demo_files.test, dtype={"id": str}).head(count).to_dict("records")
    return [json.dumps(row).encode() + b"\n" for row in rows]


@pytest.mark.slow
def test_a_line_is_answered_before_the_next_one_is_sent(run: Path, demo_files: Demo, tmp_path: Path) -> None:
    first, second = lines_of(demo_files, 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "prefcli", "predict", "-", "--output", "-", "--model", str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    answers = []
    for line in (first, second):
        process.stdin.write(line)
        process.stdin.flush()
        answers.append(json.loads(process.stdout.readline()))
    process.stdin.close()
    assert process.wait() == 0
    watchdog.cancel()
    assert [answer["id"] for answer in answers] == [json.loads(line)["id"] for line in (first, second)]
    assert list(tmp_path.iterdir()) == []


LINE = json.dumps({"prompt": "p", "response_a": "a", "response_b": "b"}).encode() + b"\n"


def wait_for_lines(run: Path, folder: Path, stdin: int, write_to: int) -> subprocess.Popen[bytes]:
    """A command that answered a line and waits for the next one; a terminal is its own, with Ctrl-C."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "prefcli", "predict", "-", "--output", "-", "--model", str(run), "--quiet"],
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, start_new_session=True,
        env=os.environ | {"TMPDIR": str(folder)},
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if os.isatty(stdin) else None,
    )  # fmt: skip
    os.write(write_to, LINE)
    assert process.stdout is not None
    assert b"winner_tie" in process.stdout.readline()
    return process


@pytest.mark.slow
def test_waiting_for_a_line_ends_by_signal_or_closed_pipe_without_an_abort(run: Path, tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    (reading, writing), (reading_2, writing_2) = os.pipe(), os.pipe()
    with ThreadPoolExecutor() as threads:
        started = [
            threads.submit(wait_for_lines, run, tmp_path / name, *descriptors)
            for name, *descriptors in (
                ("terminal", terminal, keyboard), ("pipe", reading, writing), ("closed", reading_2, writing_2),
            )
        ]  # fmt: skip
        at_terminal, at_pipe, at_closed_pipe = (future.result() for future in started)
    os.write(keyboard, b"\x03")
    assert (at_terminal.communicate(timeout=30)[1], at_terminal.returncode) == (b"error: interrupted\n", 130)
    at_pipe.send_signal(signal.SIGTERM)
    assert (at_pipe.communicate(timeout=30)[1], at_pipe.returncode) == (b"error: interrupted\n", 143)
    assert at_closed_pipe.stdout is not None
    at_closed_pipe.stdout.close()
    os.write(writing_2, LINE)
    assert (at_closed_pipe.wait(timeout=30), at_closed_pipe.stderr.read()) == (1, b"")  # type: ignore[union-attr]
    assert [file for folder in tmp_path.iterdir() for file in folder.iterdir()] == []
    for descriptor in (keyboard, terminal, reading, writing, reading_2, writing_2):
        os.close(descriptor)


def test_lines_are_read_as_they_arrive_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pieces(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read1(3)

    text = b"one\n\n  \nfour is longer\r\n5\nlast"
    expected = [(row, line) for row, line in enumerate(text.split(b"\n"), start=1) if line.strip()]
    monkeypatch.setattr(predictor, "MAX_TOGETHER", 2)
    for stream in (io.BytesIO(text), Pieces(text), io.BytesIO(text + b"\n")):
        parts = list(predictor._waiting_lines(stream))
        assert [line for part in parts for line in part] == expected
        assert max(map(len, parts)) <= 2
    monkeypatch.setattr(predictor, "MAX_ROW_BYTES", 10)
    with pytest.raises(InputError, match="a line is longer"):
        list(predictor._waiting_lines(Pieces(text)))


@pytest.mark.slow
def test_invalid_lines_get_an_error_in_their_place_and_are_counted(run: Path, demo_files: Demo, cli: CLI) -> None:
    good = lines_of(demo_files, 3)
    bad = [b"{broken\n", b"[1]\n", b'{"id": 7, "prompt": "p"}\n', b'{"prompt": "\xff"}\n', b"[" * 100_000 + b"\n"]
    Path("in.jsonl").write_bytes(
        b"\xef\xbb\xbf" + good[0] + bad[0] + b"\n" + bad[1] + good[1] + b"".join(bad[2:]) + good[2]
    )
    command = [sys.executable, "-m", "prefcli", "predict", "in.jsonl", "--output", "-", "--model", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert "5 of 8 lines are not valid battles" in done.stderr
    assert ["error" in answer for answer in answers] == [False, True, True, False, True, True, True, False]
    assert [answer["id"] for answer in answers if "error" in answer] == [None, None, "7", None, None]
    assert answers[4] == {"id": "7", "line": 6, "error": "missing columns response_a, response_b; found id, prompt"}
    assert cli("predict", demo_files.test, "--model", run, "-o", "p.csv").code == 0
    expected = dict(zip(*(x.tolist() for x in read_probabilities(Path("p.csv"))), strict=True))
    for answer in answers:
        if "error" not in answer:
            values = [answer[name] for name in ("winner_model_a", "winner_model_b", "winner_tie")]
            assert values == expected[answer["id"]]


@pytest.mark.slow
def test_many_lines_are_answered_in_order(neural: Path, demo_files: Demo) -> None:
    judge = prefcli.load(neural)
    sent = lines_of(demo_files, 60) * 10
    reading, writing = os.pipe()

    def send() -> None:
        with os.fdopen(writing, "wb") as stream:
            stream.writelines(sent)

    threading.Thread(target=send).start()
    with os.fdopen(reading, "rb") as stream:
        parts = list(judge.answers(stream))
    assert max(map(len, parts)) <= predictor.MAX_TOGETHER
    found = [answer.value["id"] for part in parts for answer in part]
    assert found == [json.loads(line)["id"] for line in sent]


def test_flags_that_need_files_are_refused_with_lines(cli: CLI, demo_files: Demo, run: Path) -> None:
    for flags in (["--json"], ["--limit", 3], ["--force"], ["--activation", "none"], ["--encoding", "cp1252"]):
        done = cli("predict", "-", "--output", "-", "--model", run, *flags)
        assert done.code == 2
        assert flags[0] in done.err
    assert "not called .jsonl" in cli("predict", demo_files.test, "--output", "-", "--model", run).err
    assert cli("predict", "none.jsonl", "--output", "-", "--model", run).code == 2


@pytest.mark.parametrize("name", ["p.csv", "p.parquet", "p.jsonl"])
def test_every_output_format_holds_the_same_probabilities(cli: CLI, run: Path, demo_files: Demo, name: str) -> None:
    assert cli("predict", demo_files.test, "--model", run, "-o", name).code == 0
    assert cli("predict", demo_files.test, "--model", run, "-o", "other.csv").code == 0
    found, expected = read_probabilities(Path(name)), read_probabilities(Path("other.csv"))
    assert found[0].tolist() == expected[0].tolist()
    assert np.array_equal(found[1], expected[1])
    assert "cannot tell the format" in cli("predict", demo_files.test, "--model", run, "-o", "p.xlsx").err


def test_tables_in_other_layouts_are_read(run: Path) -> None:
    judge = prefcli.load(run)
    talk = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    other = [talk[0], {"role": "assistant", "content": "No."}]
    chat = judge.predict([{"conversation_a": talk, "conversation_b": other}])
    assert np.array_equal(
        chat, judge.predict(pa.Table.from_pylist([{"conversation_a": talk, "conversation_b": other}]))
    )
    assert np.allclose(chat[0], judge.predict("Hi?", "Hello.", "No."))
    frame = pd.DataFrame({"id": [1, 2], "prompt": ["x", "y"], "response_a": ["a", None], "response_b": ["b", "c"]})
    assert judge.predict(frame).shape == (2, 3)


@pytest.mark.slow
def test_two_loaded_runs_blend_as_on_the_command_line(cli: CLI, run: Path, demo_files: Demo, tmp_path: Path) -> None:
    other = prefcli.train(demo_files.train, recipe="fast", output=tmp_path / "other", seed=0).run
    assert cli("predict", demo_files.test, "--model", run, "--model", other, "-o", "p.csv").code == 0
    blended = prefcli.load(run, other).predict(pd.read_csv(demo_files.test))
    assert np.allclose(blended, read_probabilities(Path("p.csv"))[1], atol=1e-12)
    path = write_csv(tmp_path / "one.csv", [battle(1, None)])
    assert prefcli.predict(path, tmp_path / "one.jsonl", models=[run]).battles == 1

"""Full and read-only disks and several commands at once, simulated; benchmarks/faults/ tries them for real."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from conftest import Result

from prefcli import pipeline
from prefcli.data import joining, synthetic
from prefcli.errors import ModelError, PrefcliError
from prefcli.options import PredictOptions, TrainOptions
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace


@pytest.fixture
def half_a_megabyte_free(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(f_bavail=500, f_frsize=1000, f_files=10, f_favail=5)
    monkeypatch.setattr(os, "statvfs", lambda path: usage)


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def write_and_fail(path: Path, size: int, error: Exception, needs: int | None = None) -> PrefcliError:
    with pytest.raises(PrefcliError) as caught, files.atomic(path, needs=needs) as temporary:
        temporary.write_bytes(bytes(size))
        raise error
    return caught.value


@pytest.mark.usefixtures("half_a_megabyte_free")
@pytest.mark.parametrize(
    ("needs", "size", "message"),
    [
        (None, 2_000_000, "more than 2.0 MB are needed, 0.5 MB are free"),
        (None, 0, "more than 0.5 MB are needed, 0.5 MB are free"),
        (3_000_000, 2_000_000, "about 3.0 MB are needed, 0.5 MB are free"),
        (27, 0, "about 0.1 kB are needed, 0.5 MB are free"),
    ],
)
def test_the_error_for_a_full_disk_says_what_is_needed_and_what_is_free(
    tmp_path: Path, needs: int | None, size: int, message: str
) -> None:
    (tmp_path / "old").write_text("old")
    problem = write_and_fail(tmp_path / "old", size, failing(errno.ENOSPC), needs)
    assert problem.what == f"no space left on the disk: {message}"
    assert problem.where == str(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
    assert os.listdir(tmp_path) == ["old"]


def test_a_disk_out_of_inodes_has_its_own_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(f_bavail=500, f_frsize=1000, f_files=10, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda path: usage)
    assert "inodes" in write_and_fail(tmp_path / "a", 0, failing(errno.ENOSPC), 10).what


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failing(errno.EDQUOT), "quota"),
        (failing(errno.EROFS), "read-only"),
        (failing(errno.EACCES), "no permission"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
        (RuntimeError("Error while serializing: Read-only file system (os error 30)"), "read-only"),
    ],
)
def test_other_disk_errors_have_their_own_messages_also_when_a_library_wraps_them(
    tmp_path: Path, error: Exception, message: str
) -> None:
    problem = write_and_fail(tmp_path / "a", 5, error)
    assert message in problem.what
    assert len(problem.lines()) == 3
    assert "--workspace" in problem.hint


def test_free_space_is_that_of_the_disk_mounted_at_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    usage = SimpleNamespace(f_bavail=1, f_frsize=1000, f_files=1, f_favail=1)
    monkeypatch.setattr(os, "statvfs", lambda path: asked.append(path) or usage)
    files.write_error(tmp_path, failing(errno.ENOSPC))
    assert asked == [tmp_path]


def test_a_full_temporary_folder_is_named_when_scoring_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        closed = False

        def write(self, data: object) -> int:
            raise failing(errno.ENOSPC)

        def close(self) -> None: ...
        def flush(self) -> None: ...
        def tell(self) -> int:
            return 0

    monkeypatch.setattr(joining, "IN_MEMORY_ROWS", 10)
    monkeypatch.setattr(joining.tempfile, "TemporaryFile", lambda **_: Full())
    rows = joining.Rows(pa.array([str(i) for i in range(100)]), np.zeros((100, 1)), 1)
    with pytest.raises(PrefcliError) as caught:
        joining.Join([rows], [rows])
    assert "no space left on the disk" in caught.value.what
    assert caught.value.where == str(tempfile.gettempdir())
    assert "TMPDIR" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["eda", "preprocess", "train"])
def test_a_disk_full_before_any_file_leaves_nothing_half_done(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    synthetic.write(tmp_path, train=60, test=5)
    more = {"eda": ["--report", "r.html"], "preprocess": [], "train": ["--architecture", "features", "-o", "run"]}
    make = files._temporary
    for number in (5, 9, 12, 40) if verb == "train" else range(1, 40):  # a training takes its time
        count = 0

        @contextlib.contextmanager
        def temporary(folder: Path, number: int = number) -> Iterator[Path]:
            nonlocal count
            count += 1
            with make(folder) as path:
                if count == number:
                    raise failing(errno.ENOSPC)
                yield path

        with monkeypatch.context() as patched:
            patched.setattr(files, "_temporary", temporary)
            done = cli(verb, "train.csv", *more[verb], "--workspace", f"work-{number}")
        if count < number:
            break
        assert done.code == 1
        assert done.err.splitlines()[-3].startswith("error: no space left on the disk")
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".lock")]
        assert cli(verb, "train.csv", *more[verb], "--workspace", f"work-{number}").code == 0
        for path in (tmp_path / "r.html", tmp_path / "run"):
            if path.exists():
                files.remove(path)
    assert count >= {"eda": 3, "preprocess": 5, "train": 12}[verb]


def test_an_unchanged_latest_result_is_not_written_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.remember("train", {"run": "a"})
    monkeypatch.setattr(files, "write_text", lambda *_: pytest.fail("written again"))
    workspace.remember("train", {"run": "a"})


def test_a_run_is_locked_once_whichever_link_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    again = runs.locked(tmp_path / "link")
    with runs.locked(tmp_path / "run"), pytest.raises(PrefcliError, match="another prefcli"), again:
        pass


def test_a_run_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    with runs.locked(tmp_path / ("y" * 255)):
        pass
    assert os.listdir(tmp_path) == []


def test_a_run_may_have_a_name_that_is_not_text(tmp_path: Path, workspace: Workspace) -> None:
    train = synthetic.write(tmp_path, train=60, test=5).train.rename(tmp_path / os.fsdecode(b"\xff.csv"))
    run = tmp_path / os.fsdecode(b"\xff run")
    pipeline.train(train, workspace, TrainOptions(architecture="features"), output=run)
    assert "\\udcff run" in (run / runs.CARD).read_text(encoding="utf-8")
    assert pipeline.predict(train, workspace, tmp_path / "preds.csv", PredictOptions((str(run),))).battles == 60


def test_an_unfinished_run_is_not_used_for_prediction(workspace: Workspace, tmp_path: Path) -> None:
    demo = synthetic.write(tmp_path, train=60, test=5)
    trained = pipeline.train(demo.train, workspace, TrainOptions(architecture="features"))
    (trained.run / runs.UNFINISHED).touch()
    with pytest.raises(ModelError, match="did not finish"):
        pipeline.predict(demo.test, workspace, tmp_path / "preds.csv", PredictOptions())
    assert not (tmp_path / "preds.csv").exists()


LOCKING = """
import sys
from pathlib import Path
from prefcli.storage import files
for _ in range(25):
    with files.locked(Path("a.lock"), on_wait=lambda: None):
        Path("inside").open("x").close()
        value = int(Path("counter").read_text())
        Path("counter").write_text(str(value + 1))
        Path("inside").unlink()
"""


def test_a_lock_that_is_removed_while_held_still_lets_one_process_in_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    crowd = [subprocess.Popen([sys.executable, "-c", LOCKING], cwd=tmp_path) for _ in range(5)]
    assert [process.wait() for process in crowd] == [0] * 5
    assert (tmp_path / "counter").read_text() == "125"
    assert os.listdir(tmp_path) == ["counter"]


@pytest.mark.slow
def test_the_same_preprocess_twice_at_once_makes_each_stage_once(tmp_path: Path) -> None:
    synthetic.write(tmp_path, train=60, test=5)
    command = [sys.executable, "-m", "prefcli", "preprocess", "train.csv"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    messages = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert not [words for words in messages if "rebuilding" in words or "error" in words]
    assert sum(words.count("read now") for words in messages) == 1
    assert len(list((tmp_path / ".prefcli" / "stages").iterdir())) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "arguments", "code"),
    [
        (">&-", "--version", 0),
        ("<&- >&- 2>&-", "score preds.csv truth.csv", 0),
        ("2> /dev/full", "score preds.csv truth.csv", 0),
        ("2> /dev/full", "eda missing.csv", 2),
        ("> /dev/full", "score preds.csv truth.csv", 1),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path: Path, how: str, arguments: str, code: int) -> None:
    header = "id,winner_model_a,winner_model_b,winner_tie\n"
    (tmp_path / "preds.csv").write_text(header + "1,0.5,0.3,0.2\n2,0.5,0.3,0.2\n")
    (tmp_path / "truth.csv").write_text(header + "1,1,0,0\n2,0,1,0\n")
    command = f"{sys.executable} -m prefcli {arguments} {how}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == code
    if how == "> /dev/full":
        assert done.stderr == "error: cannot write to standard output: No space left on device\n"
    else:
        assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_that_the_terminals_encoding_lacks_are_printed_all_the_same(tmp_path: Path, settings: dict) -> None:
    train = synthetic.write(tmp_path, train=60, test=5).train
    train.write_text(train.read_text().replace("aurora-7b", "größe-模型"), encoding="utf-8")
    command = [sys.executable, "-m", "prefcli", "eda", "train.csv"]
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", **settings}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0
    assert b"gr\\xf6\\xdfe-\\u6a21\\u578b" in done.stdout


def test_without_a_folder_for_temporary_files_standard_input_says_so(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []")

    def spool(**_: object) -> object:
        return none()

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", spool)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=None))
    done = cli("eda", "-")
    assert done.code == 1
    assert "no folder for temporary files" in done.err
    assert "TMPDIR" in done.err

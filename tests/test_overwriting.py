"""No verb replaces what it reads, whatever ``--force`` says and however the output names it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

import prefcli
from prefcli.data import synthetic
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.storage import files

CLI = Callable[..., Result]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return prefcli.train(demo_files.train, recipe="fast", limit=60, output=folder / "run", workspace=folder / "ws").run


def contents(*folders: Path) -> dict[Path, str]:
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize(
    "name", ["votes.csv", "./votes.csv", "../here/votes.csv", "link.csv", "hard.csv", "link/votes.csv"]
)
def test_a_file_is_recognised_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    Path("votes.csv").write_text("votes")
    Path("other.csv").write_text("votes")
    Path("link.csv").symlink_to("votes.csv")
    Path("hard.csv").hardlink_to("votes.csv")
    Path("link").symlink_to(here)
    with pytest.raises(InputError, match="is an input, votes.csv"):
        files.refuse_to_replace(Path(name), [Path("other.csv"), Path("votes.csv")])
    with pytest.raises(InputError, match="is an input"):
        files.refuse_to_replace(Path("votes.csv"), [Path(name)])
    files.refuse_to_replace(Path("other.csv"), [Path(name)])
    files.refuse_to_replace(Path("new.csv"), [Path(name)])


def test_an_archive_or_folder_that_holds_an_input_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(folder / "votes.zip", "w") as archive:
        archive.writestr("train.csv", "votes")
    member = folder / "votes.zip" / "data" / "train.csv"
    for output in (folder / "votes.zip", folder, tmp_path):
        with pytest.raises(InputError, match="holds an input"):
            files.refuse_to_replace(output, [member])
    files.refuse_to_replace(folder, [folder / "owner" / "encoder-of-the-hub"])
    files.refuse_to_replace(Path(os.devnull), [Path(os.devnull)])


@pytest.mark.slow
def test_no_verb_replaces_an_input(cli: CLI, run: Path, demo_files: Demo, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(demo_files.train.parent, data)
    train, test = data / "train.csv", data / "test.csv"
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    shutil.copy(train, copied / "votes.csv")
    before = contents(data, copied)
    predict = ["predict", "--model", copied, "--force", "--output"]
    for arguments in (
        [*predict, test, test],
        [*predict, train, test, "--calibrate", train],
        [*predict, copied / "validation.parquet", test],
        ["eda", train, "--report", train, "--force"],
        ["eda", train, "--test", test, "--report", test, "--force"],
        ["train", copied / "votes.csv", "--recipe", "fast", "--output", copied, "--force"],
        ["train", train, "--recipe", "fast", "--validation-file", copied / "votes.csv", "--output", copied, "--force"],
        ["train", train, "--encoder", copied, "--output", copied, "--force"],
    ):
        refused = cli(*arguments)
        assert refused.code == 2, arguments
        assert "an input" in refused.err, refused.err
    with pytest.raises(InputError, match="is an input"):
        prefcli.predict(iter([test]), test, models=[copied], force=True)
    assert contents(data, copied) == before


def test_the_encoder_tiny_is_built_in_also_where_a_run_has_its_name(
    run: Path, demo_files: Demo, cli: CLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "tiny")
    few = ("--limit", 40, "--max-steps", 1, "--max-length", 16)
    done = cli("train", demo_files.train, "--encoder", "tiny", "--output", "tiny", "--force", *few)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_redirected_input_and_output_are_recognised(run: Path, demo_files: Demo, tmp_path: Path) -> None:
    shutil.copy(demo_files.test, tmp_path / "test.csv")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "p", "response_a": "a", "response_b": "b"}\n')
    before = contents(tmp_path)
    predict = f"{sys.executable} -m prefcli predict --model {run} --output"
    for command in (f"{predict} test.csv - --force < test.csv", f"{predict} - lines.jsonl >> lines.jsonl"):
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "is an input" in done.stderr
    assert contents(tmp_path) == before


def test_the_demo_does_not_overwrite_other_votes(tmp_path: Path) -> None:
    synthetic.write(tmp_path, train=20, test=5)
    before = contents(tmp_path)
    synthetic.write(tmp_path, train=20, test=5)
    assert contents(tmp_path) == before
    (tmp_path / "train.csv").write_text("votes")
    with pytest.raises(InputError, match=r"train.csv is not the demo's"):
        synthetic.write(tmp_path, train=20, test=5)
    assert (tmp_path / "train.csv").read_text() == "votes"

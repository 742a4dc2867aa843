"""Caches are reused only for the same input and options and never when damaged; files are complete or absent."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefcli.errors import InputError, PrefcliError
from prefcli.options import TrainOptions
from prefcli.storage import files, runs
from prefcli.storage.workspace import Stage, StageWriter, Workspace


class Recorder:
    """A reporter that remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def make(
    workspace: Workspace, *, source: str = "abc", options: dict | None = None, version: int = 1, reporter=None
) -> Stage:
    def produce(writer: StageWriter) -> dict[str, int]:
        writer.write(pa.record_batch({"id": ["1", "2"], "value": [10, 20]}))
        writer.write(pa.record_batch({"id": ["3"], "value": [30]}))
        return {"rows": 3}

    return workspace.stage(
        "numbers",
        version=version,
        source=source,
        options=options or {"a": 1},
        produce=produce,
        reporter=reporter or Recorder(),
    )


def test_the_same_input_and_options_find_the_cache(workspace: Workspace) -> None:
    first, second = make(workspace), make(workspace)
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path
    assert second.table()["value"].to_pylist() == [10, 20, 30]
    assert [b.num_rows for b in second.batches()] == [2, 1]
    assert second.metadata["counts"] == {"rows": 3}
    assert second.metadata["options"] == {"a": 1}


@pytest.mark.parametrize("change", [{"source": "abd"}, {"options": {"a": 2}}, {"version": 2}])
def test_other_input_or_options_make_another_stage(workspace: Workspace, change: dict) -> None:
    make(workspace)
    assert not make(workspace, **change).reused


@pytest.mark.parametrize("position", [0, 5, 100, -1, -20])
def test_a_stage_with_a_flipped_byte_is_reported_and_rebuilt(workspace: Workspace, position: int) -> None:
    stage = make(workspace)
    content = bytearray(stage.path.read_bytes())
    content[position] ^= 0x10
    stage.path.write_bytes(content)
    recorder = Recorder()
    again = make(workspace, reporter=recorder)
    assert not again.reused
    assert again.table()["value"].to_pylist() == [10, 20, 30]
    assert str(stage.path) in recorder.warnings[0]
    assert make(workspace).reused


def test_a_truncated_cache_and_a_missing_checksum_are_rebuilt(workspace: Workspace) -> None:
    stage = make(workspace)
    stage.path.write_bytes(stage.path.read_bytes()[:50])
    assert not make(workspace).reused
    stage.path.with_suffix(".sha256").unlink()
    assert not make(workspace).reused
    assert make(workspace).reused


def test_a_stage_under_the_name_of_another_is_not_used(workspace: Workspace) -> None:
    first, other = make(workspace), make(workspace, source="other")
    other.path.write_bytes(first.path.read_bytes())
    other.path.with_suffix(".sha256").write_bytes(first.path.with_suffix(".sha256").read_bytes())
    assert not make(workspace, source="other").reused


def test_a_failure_while_making_a_stage_leaves_nothing(workspace: Workspace) -> None:
    def produce(writer: StageWriter) -> dict[str, int]:
        writer.write(pa.record_batch({"id": ["1"]}))
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError):
        workspace.stage("broken", version=1, source="x", options={}, produce=produce)
    assert list(workspace.stages.iterdir()) == []


def test_a_missing_stage_is_reported(workspace: Workspace) -> None:
    stage = make(workspace)
    stage.path.unlink()
    with pytest.raises(PrefcliError, match="gone"):
        workspace.open_stage(stage.path.name)


def test_a_remembered_name_never_leads_out_of_the_workspace(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.parquet").write_bytes(b"x")
    with pytest.raises(PrefcliError, match=r"stages.elsewhere\.parquet"):
        workspace.open_stage("../../elsewhere.parquet")


def test_the_latest_results_are_remembered_and_damaged_ones_ignored(workspace: Workspace) -> None:
    workspace.remember("train", {"run": "a"})
    workspace.remember("preprocess", {"stage": "b"})
    assert workspace.latest("train") == {"run": "a"}
    (workspace.root / "latest-train.json").write_text("{broken")
    assert workspace.latest("train") is None
    assert workspace.latest("preprocess") == {"stage": "b"}


def test_the_error_for_an_unknown_run_lists_the_known_ones(workspace: Workspace) -> None:
    (workspace.runs / "first-run").mkdir(parents=True)
    with pytest.raises(InputError) as error:
        workspace.find_run("other-run")
    assert "first-run" in error.value.hint


def test_an_atomic_file_replaces_the_old_one_only_when_done(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    with files.atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_temporary_files_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    code = "from prefcli.storage import files; from pathlib import Path; print(files._temporary_name(Path()))"
    ended = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not yet waited for
    assert ended.stdout is not None
    killed = ended.stdout.read().strip()
    with files.temporary_directory(tmp_path) as mine:
        living = mine.name
    machine, process = living[9:17], living.split("-")[2]
    number_taken = living.replace(process, f"{os.getpid()}.1")  # by this process, which began later
    of_parent = living.replace(process, str(os.getppid()))  # as earlier releases wrote it
    elsewhere, old_elsewhere, old_folder_elsewhere, used_elsewhere = (
        name.replace(machine, "0" * 8)[:-12] + f"{number:08x}.tmp"
        for number, name in enumerate((killed, killed, killed, of_parent))
    )
    foreign = ".x.1.tmp"
    for name in (killed, living, number_taken, of_parent, elsewhere, old_elsewhere, foreign):
        (tmp_path / name).write_text("")
    for name in (old_folder_elsewhere, used_elsewhere):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    two_days_ago = (time.time() - 2 * 86400,) * 2
    for name in (old_elsewhere, foreign, f"{old_folder_elsewhere}/file", old_folder_elsewhere, used_elsewhere):
        os.utime(tmp_path / name, two_days_ago)
    files.sweep(tmp_path)
    ended.communicate()
    kept = {living, of_parent, elsewhere, used_elsewhere, foreign}
    assert {path.name for path in tmp_path.iterdir()} == kept


CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
HOLD_AND_SWEEP = """
import sys
from pathlib import Path
from prefcli.storage import files

with files.temporary_directory(Path(sys.argv[1])):
    print("held", flush=True)
    input()
    files.sweep(Path(sys.argv[1]))
"""


def test_containers_with_one_host_name_leave_each_others_live_files_alone(tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0:
        pytest.skip("no containers can be made here")
    with files.temporary_directory(tmp_path) as outside:
        command = [*CONTAINER, sys.executable, "-c", HOLD_AND_SWEEP, str(tmp_path)]
        container = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert container.stdout is not None
        assert container.stdout.readline() == "held\n"
        files.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        container.communicate("sweep\n")
        assert container.returncode == 0
        assert list(tmp_path.iterdir()) == [outside]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefcliError) as error:
        files.write_text(tmp_path / "file" / "below.txt", "x")
    assert error.value.exit_code == 1


def test_the_lock_of_a_killed_process_is_removed(workspace: Workspace) -> None:
    stage = make(workspace)
    lock = stage.path.with_suffix(".lock")
    lock.write_text("")
    assert make(workspace).reused
    assert not lock.exists()


def test_a_folders_checksums_notice_every_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    assert files.checksum_mismatches(tmp_path) == {}
    files.write_checksums(tmp_path, ["one", "two", "never was there"])
    assert files.checksum_mismatches(tmp_path) == {}
    assert (
        subprocess.run(
            ["sha256sum", "--check", "--strict", files.CHECKSUMS], cwd=tmp_path, capture_output=True
        ).returncode
        == 0
    )
    (tmp_path / "one").write_text("One")
    (tmp_path / "two").unlink()
    assert files.checksum_mismatches(tmp_path) == {"one": "changed", "two": "gone"}
    content = (tmp_path / files.CHECKSUMS).read_bytes()
    for damaged in (b"", content[:-1], content[: content.index(b"\n") + 1], content.replace(b"  two", b"  ../two")):
        (tmp_path / files.CHECKSUMS).write_bytes(damaged)
        with pytest.raises(ValueError, match="SHA256SUMS"):
            files.checksum_mismatches(tmp_path)


def test_a_removed_folder_is_gone_and_a_removed_links_target_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(folder)
    files.remove(link)
    assert (folder / "file").read_text() == "kept"
    files.remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_change_of_json_with_a_checksum_is_noticed() -> None:
    text = files.with_checksum({"a": [1.5, None], "b": "c"})
    assert files.verify_checksum(text) == {"a": [1.5, None], "b": "c"}
    for damaged in (text.replace("1.5", "2.5"), text[:-1], "{}", "[]", text.replace("sha256", "sha512")):
        with pytest.raises(ValueError, match="it"):
            files.verify_checksum(damaged)


def test_json_has_no_nan_and_no_infinity() -> None:
    @dataclass
    class Result:
        path: Path
        values: tuple[float, ...]

    numbers = {"a": math.nan, "b": [1.5, -math.inf, {"c": np.float32("inf"), "d": np.int64(2), "e": np.float64("nan")}]}
    text = files.to_json({**numbers, "f": Result(Path("x"), (math.inf, 0.5))})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(text, parse_constant=refuse) == {
        "a": None, "b": [1.5, None, {"c": None, "d": 2, "e": None}], "f": {"path": "x", "values": [None, 0.5]},
    }  # fmt: skip
    with pytest.raises(TypeError):
        files.to_json(object())


@pytest.mark.slow
def test_an_infinite_number_of_an_encoders_configuration_survives_in_a_run_as_transformers_spells_it(
    tmp_path: Path,
) -> None:
    from transformers import AutoConfig, Mamba2Config

    original = Mamba2Config(hidden_size=32, num_heads=8, expand=2, head_dim=8)
    assert original.time_step_limit[1] == math.inf
    runs.write_config(tmp_path, TrainOptions(), original.to_dict())

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((tmp_path / runs.CONFIG).read_text(), parse_constant=refuse)
    assert list(runs.encoder_config(runs.read_config(tmp_path))["time_step_limit"]) == [0.0, math.inf]
    assert list(AutoConfig.from_pretrained(tmp_path).time_step_limit) == [0.0, math.inf]


def test_a_log_that_holds_nan_is_read_without_it(tmp_path: Path) -> None:
    lines = ('{"step": 1, "loss": NaN, "lr": 0.1}', '{"step": 2, "loss": Infinity}', '{"step": 3')
    (tmp_path / runs.METRICS).write_text("\n".join(lines))
    assert runs.read_metrics(tmp_path) == [{"step": 1, "lr": 0.1}, {"step": 2}]

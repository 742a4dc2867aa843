"""What trackers are told: everything the log is told, each step once, without touching the training."""

from __future__ import annotations

import json
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, start_process

from prefcli import pipeline
from prefcli.data import synthetic
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, NetworkError, PrefcliError
from prefcli.options import TRACKERS, TrainOptions, resolve
from prefcli.reporting import SILENT, Silent
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace
from prefcli.training import trackers

OPTIONS = TrainOptions(encoder="tiny", text="raw", max_length=48, batch_size=16, eval_every=4, checkpoint_every=3)
LINES = [{"step": step, "epoch": 0, "lr": 0.1, "loss": 1.0 / step, "grad_norm": 2.0} for step in range(1, 9)]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()  # it reads its environment once


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return synthetic.write(tmp_path_factory.mktemp("small"), train=120, test=5)


def in_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar in the event files of a run, by name and step; a step that is there twice is an error."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    held.Reload()
    found = {name: [(event.step, event.value) for event in held.Scalars(name)] for name in held.Tags()["scalars"]}
    assert all(len(dict(events)) == len(events) for events in found.values()), "a step is there twice"
    return {name: dict(events) for name, events in found.items()}


def in_wandb(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """History by name and step, and the configuration, of the only offline run in a run's folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    found: dict[str, dict[int, float]] = {}
    config: dict[str, Any] = {}
    for data in _entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        for name, value in _items(record.summary.update):
            if name.startswith(trackers.FINAL):
                found.setdefault(name, {})[-1] = value
        values = dict(_items(record.history.item))
        step = values.pop("_step", record.history.step.num)
        for name, value in values.items():
            assert step not in found.get(name, {}), "a step is there twice"
            found.setdefault(name, {})[step] = value
    return {name: steps for name, steps in found.items() if not name.startswith("_")}, config


def _entries(content: bytes) -> Iterator[bytes]:
    """The entries of a log in LevelDB's format (blocks of 32 KiB; checksum, length, kind, data), after W&B's header."""
    assert content.startswith(b":W&B")
    place, entry = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        entry += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield entry
            entry = b""


def _items(items: Any) -> list[tuple[str, Any]]:
    return [(".".join(item.nested_key) or item.key, json.loads(item.value_json)) for item in items]


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """``metrics.jsonl`` in the trackers' words."""
    found: dict[str, dict[int, float]] = {}
    for line in runs.read_metrics(folder):
        for name, told in trackers.NAMES.items():
            if name in line:
                found.setdefault(told, {})[line["step"]] = line[name]
    return found


def assert_tracked(found: Mapping[str, Mapping[int, float]], folder: Path) -> None:
    expected = logged(folder)
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "validation/log_loss"} <= set(expected)
    for name, steps in expected.items():
        assert found[name] == pytest.approx(steps, rel=1e-6), name


@pytest.mark.slow
def test_both_trackers_get_the_log_and_do_not_change_the_weights(
    tmp_path: Path, small: Demo, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", small.train, "--encoder", "tiny", "--text", "raw", "--max-length", "48", "--eval-every", "4")
    assert cli(*command, "-o", "plain").code == 0
    secret = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", secret)
    assert not (tmp_path / "plain" / "tensorboard").exists()
    assert not (tmp_path / "plain" / "wandb").exists()
    result = cli(*command, "-o", "tracked", "--tracker", "tensorboard", "--tracker", "wandb", "--json")
    assert result.code == 0, result.err
    assert "told no more" not in result.err
    folder, score = tmp_path / "tracked", result.json()["validation"]
    assert files.sha256(folder / "model.safetensors") == files.sha256(tmp_path / "plain" / "model.safetensors")
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()

    events = in_tensorboard(folder)
    assert_tracked(events, folder)
    history, config = in_wandb(folder)
    assert_tracked(history, folder)
    last = max(events["train/loss"])
    assert events["final/log_loss"][last] == pytest.approx(score["log_loss"], rel=1e-6)
    assert history["final/log_loss"] == {-1: pytest.approx(score["log_loss"])}
    assert config["encoder"] == "tiny"
    assert config["max_length"] == 48

    assert secret not in result.out + result.err
    assert not [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]

    runs.verify(folder)
    assert json.loads((folder / "config.json").read_text())["options"]["tracker"] == "tensorboard,wandb"
    predicted = cli("predict", small.test, "--model", folder, "-o", "p.csv")
    assert predicted.code == 0, predicted.err


@pytest.mark.slow
def test_after_a_kill_and_a_resume_every_step_is_tracked_once(
    tmp_path: Path, small: Demo, cli: Callable[..., Result]
) -> None:
    folder = tmp_path / "run"
    command = [
        "train", str(small.train), "--encoder", "tiny", "--text", "raw", "--max-length", "48", "--eval-every", "4",
        "--checkpoint-every", "3", "--log-every", "1", "--tracker", "tensorboard,wandb", "-o", str(folder),
    ]  # fmt: skip
    # After six steps and a validation: checkpoints at 3 and 6 were due, 6 is not written.
    killed = start_process(({"KILLED_AT_LINE": "7"}, command), output=tmp_path / "output")
    killed.join(timeout=120)
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "output.err").read_text()
    assert sorted(logged(folder)["train/loss"]) == [1, 2, 3, 4, 5, 6]
    assert list((folder / "tensorboard").iterdir())
    assert list((folder / "wandb").glob("offline-run-*"))
    assert cli("train", "--resume", folder).code == 0
    runs.verify(folder)
    assert sorted(logged(folder)["train/loss"]) == list(range(1, 8))
    assert_tracked(in_tensorboard(folder), folder)
    assert_tracked(in_wandb(folder)[0], folder)


@pytest.mark.slow
def test_each_fold_is_tracked_and_the_out_of_fold_score_belongs_to_the_run(
    tmp_path: Path, small: Demo, workspace: Workspace
) -> None:
    options = TrainOptions(**{**vars(OPTIONS), "tracker": "tensorboard", "folds": 2})
    made = pipeline.train(small.train, workspace, options, output=tmp_path / "run")
    for fold in ("fold-1", "fold-2"):
        assert_tracked(in_tensorboard(tmp_path / "run" / fold), tmp_path / "run" / fold)
    assert made.validation is not None
    whole = in_tensorboard(tmp_path / "run")
    assert whole["final/log_loss"][0] == pytest.approx(made.validation.log_loss, rel=1e-6)
    assert "train/loss" not in whole


@pytest.mark.slow
def test_a_model_without_steps_has_its_final_metrics_tracked(
    tmp_path: Path, demo_files: Demo, workspace: Workspace
) -> None:
    options = TrainOptions(architecture="features", tracker="tensorboard")
    made = pipeline.train(demo_files.train, workspace, options, output=tmp_path / "run")
    assert made.validation is not None
    events = in_tensorboard(tmp_path / "run")
    assert events["final/accuracy"][0] == pytest.approx(made.validation.accuracy, rel=1e-6)


@pytest.mark.parametrize("missing", TRACKERS)
def test_a_missing_package_is_reported_before_any_work(
    tmp_path: Path, small: Demo, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = cli("train", small.train, "--encoder", "tiny", "--tracker", missing, "-o", "run")
    assert result.code == 1
    assert (
        result.err
        == f"error: this training needs {missing}, which is not installed\n  Install: pip install {missing}\n"
    )
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / ".prefcli").exists()


def test_unknown_trackers_are_refused_and_a_list_may_be_given_either_way(tmp_path: Path) -> None:
    assert resolve({"tracker": "wandb, tensorboard,wandb"})[0].trackers == ("wandb", "tensorboard")
    assert resolve({})[0].trackers == ()
    for wrong in ("mlflow", "", "wandb,"):
        with pytest.raises(InputError, match="--tracker has .*not one of tensorboard, wandb"):
            resolve({"tracker": wrong})


def test_a_failing_tracker_is_disabled_with_a_warning_and_training_continues() -> None:
    class Failing:
        def begin(self, options: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None: ...
        def record(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError("the disk is full")

        def conclude(self, values: Mapping[str, float]) -> None: ...
        def close(self, *, failed: bool) -> None: ...

    class Hearing(Silent):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    reporter = Hearing()
    following = trackers.Trackers({"tensorboard": Failing()}, OPTIONS, reporter)
    following.begin()
    for line in LINES:
        following.record(line)
    following.conclude(None)
    following.close(failed=False)
    assert reporter.warnings == ["tensorboard failed and was disabled; training continues: the disk is full"]


@pytest.mark.slow
def test_wandb_without_a_key_gives_a_hint_and_prints_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    options = TrainOptions(tracker="wandb")
    with (
        pytest.raises(PrefcliError, match="cannot be used") as caught,
        trackers.tracking(tmp_path, options, "run", SILENT) as following,
    ):
        following.begin()
    assert "WANDB_MODE=offline" in caught.value.hint


def test_a_damaged_line_of_the_log_is_skipped(tmp_path: Path) -> None:
    tracker = trackers.TensorBoard(tmp_path)
    tracker.begin({}, [*LINES[:2], {"step": 3, "loss": "1.0", "lr": None}, LINES[3]])
    tracker.close(failed=False)
    assert sorted(in_tensorboard(tmp_path)["train/loss"]) == [1, 2, 4]


def test_wandb_that_cannot_be_reached_is_a_network_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def unreachable(**settings: Any) -> None:
        raise wandb.errors.CommError("Run initialization has timed out after 90.0 sec")

    monkeypatch.setattr(wandb, "init", unreachable)
    with (
        pytest.raises(NetworkError, match="timed out") as caught,
        trackers.tracking(tmp_path, TrainOptions(tracker="wandb"), "run", SILENT) as following,
    ):
        following.begin()
    assert "WANDB_MODE=offline" in caught.value.hint


def test_only_steps_that_the_service_lacks_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online: the service keeps what was sent before a kill, under the same id."""
    import wandb

    sent: list[int] = []
    identities: list[str] = []

    class Online:
        offline = False
        starting_step = 6

        def log(self, values: dict[str, float], step: int) -> None:
            sent.append(step)

        def finish(self, exit_code: int) -> None: ...

    def init(**settings: Any) -> Online:
        identities.append(settings["id"])
        assert settings["resume"] == "allow"
        return Online()

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        tracker = trackers.WandB(tmp_path, "run")
        tracker.begin({}, LINES)
        tracker.close(failed=True)
    assert sent == [6, 7, 8] * 2
    assert len(set(identities)) == 1

"""What an earlier release left in a folder works with this one: see tests/data/before/README.md."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Result

from prefcli.battles import make_batch
from prefcli.models import features
from prefcli.prediction import calibration
from prefcli.storage import runs

Cli = Callable[..., Result]
ARCHIVE = Path(__file__).parent / "data" / "before" / "before.tar.gz"
NEURAL = ("--encoder", "encoder", "--max-length", 48, "--epochs", 2, "--batch-size", 8, "--lr", 1e-2,
          "--validation", 0.25, "--precision", "fp32")  # fmt: skip
RUNS = ("features", "siamese", "cross-encoder", "adapters", "folds", "exported")


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")


def probabilities(file: str) -> np.ndarray:
    return np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_predicts_what_it_predicted_when_it_was_made(run: str, cli: Cli) -> None:
    moved = ("--encoder", "encoder") if run == "adapters" else ()
    done = cli("predict", "test.csv", "--model", f"runs/{run}", "--precision", "fp32", *moved, "--output", "now.csv")
    assert done.code == 0, done.err
    now = probabilities("now.csv")
    if run == "folds":  # then, a temperature fitted on single folds was applied to their mean
        held_out = runs.read_validation(Path("runs/folds"))
        now = calibration.calibrate([held_out.logits], held_out.labels, held_out.keys).apply([now])
    assert now == pytest.approx(probabilities(f"predictions/{run}.csv"), abs=1e-5 if run == "folds" else 1e-6)


def test_a_features_run_reads_other_scripts_as_when_it_was_made(tmp_path: Path) -> None:
    """The probabilities are those of the release that measured all texts as this run's training battles were."""
    thai, burmese, hindi, arabic, english = (
        "ภาษาไทยสวยงามมาก เด็กไปโรงเรียนทุกวัน", "မြန်မာဘာသာစကား။ ကျောင်းသားများ",
        "हिन्दी भाषा। हिन्दी भाषा, क्\u200dष। हिन्दी।", "مرحبا، عالم؟ مرحبا عالم", "plain words, plain words",
    )  # fmt: skip
    rows = [(thai, thai, burmese), (burmese, hindi, thai), (hindi, arabic, hindi), (english, english, burmese)]
    turns = pa.list_(pa.string())
    texts = zip(("prompt", "response_a", "response_b"), zip(*rows, strict=True), strict=True)
    columns = {name: pa.array([[text] for text in column], turns) for name, column in texts}
    battles = make_batch({"id": pa.array(["1", "2", "3", "4"]), **columns})
    run = features.load(Path("runs/features"))
    then = [
        [0.34378949, 0.42602823, 0.23018229],
        [0.35206954, 0.39347937, 0.25445110],
        [0.43911615, 0.34590293, 0.21498092],
        [0.36091002, 0.47156743, 0.16752255],
    ]
    assert np.exp(run.logits(battles)[0]) == pytest.approx(np.array(then), abs=1e-7)
    run.save(tmp_path / "copy")
    assert features.load(tmp_path / "copy").version == run.version == 2


@pytest.mark.slow
def test_battles_cached_by_an_earlier_release_are_read_again_once(cli: Cli) -> None:
    """The same file may give other battles today (``stages.READ_VERSION``); what was cached is left as it is."""
    stages = Path(".prefcli/stages")

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in stages.iterdir()}

    before = files()
    assert cli("preprocess", "train.csv", "--text", "raw").code == 0
    after = files()
    assert before.items() < after.items()
    assert cli("preprocess", "train.csv", "--text", "raw").code == 0
    assert files() == after


@pytest.mark.slow
def test_what_preprocess_left_is_trained_on(cli: Cli) -> None:
    """Under another normalisation today (regex is part of it), the stage is still opened by its name."""
    latest = json.loads(Path(".prefcli/latest-preprocess.json").read_text())
    preprocessed = sorted(Path(".prefcli/stages").glob("preprocess-*"))
    done = cli("train", *NEURAL, "--output", "again")
    assert done.code == 0, done.err
    assert json.loads(Path("again/config.json").read_text())["data"]["stage"] == latest["stage"]
    assert sorted(Path(".prefcli/stages").glob("preprocess-*")) == preprocessed


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--resume", "the same command"])
def test_an_interrupted_training_continues_to_the_weights_of_the_uninterrupted_one(way: str, cli: Cli) -> None:
    command = ("--resume", "runs/unfinished") if way == "--resume" else ("train.csv", *NEURAL, "--output",
                                                                         "runs/unfinished")  # fmt: skip
    done = cli("train", *command)
    assert done.code == 0, done.err
    assert "resumed at step 5" in done.err
    assert cli("predict", "test.csv", "--model", "runs/unfinished", "--output", "now.csv").code == 0
    assert probabilities("now.csv") == pytest.approx(probabilities("predictions/siamese.csv"), abs=1e-4)


@pytest.mark.slow
def test_a_runs_config_trains_another_one(cli: Cli) -> None:
    done = cli("train", "train.csv", "--config", "runs/features/config.json", "--output", "again")
    assert done.code == 0, done.err
    before, now = (json.loads(Path(run, "config.json").read_text()) for run in ("runs/features", "again"))
    assert before["options"]["recipe"] == "seed"
    renamed = {"recipe": "baseline"}
    assert before["options"] | renamed == {name: now["options"][name] for name in before["options"]}

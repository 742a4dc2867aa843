"""The five verbs together, as a user runs them: what they print, write, reuse and refuse."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Result, battle, start_process, write_csv

from prefcli import metrics
from prefcli.data import synthetic
from prefcli.data.synthetic import Demo
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.storage import runs
from prefcli.training import loop
from prefcli.training.experiment import not_better_than_prior

CLI = Callable[..., Result]
pytestmark = pytest.mark.slow


def predictions(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as stream:
        return {row["id"]: [float(row[name]) for name in WINNER_COLUMNS] for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo, bert_folder: Path) -> Path:
    """A workspace in which all five verbs ran once, through the pretrained-folder path."""
    from prefcli.cli.main import run

    root = tmp_path_factory.mktemp("trained") / ".prefcli"
    base = ["--workspace", str(root), "--quiet"]
    assert run(["preprocess", str(demo_files.train), *base]) == 0
    assert run(["train", "--encoder", str(bert_folder), "--max-length", "64", "--lr", "1e-3", *base]) == 0
    return root


def test_all_five_verbs_in_an_empty_folder(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    t = demo_files.train
    for arguments in (
        ["eda", t], ["preprocess", t], ["train", "--epochs", "1", "--encoder", "tiny"],
        ["predict", t, "--output", "preds.csv"], ["score", "preds.csv", t],
    ):  # fmt: skip
        done = cli(*arguments)
        assert done.code == 0, done.err
    stages = sorted(p.name.split("-")[0] for p in (tmp_path / ".prefcli" / "stages").glob("*.parquet"))
    assert stages == ["battles", "preprocess", "tokens"]
    found = predictions(tmp_path / "preds.csv")
    assert list(found) == [str(i) for i in range(1, 241)]
    for row in found.values():
        assert all(0 <= p <= 1 for p in row)
        assert math.isclose(sum(row), 1, abs_tol=1e-6)


def test_a_second_call_reuses_the_caches(cli: CLI, demo_files: Demo) -> None:
    first, second = cli("preprocess", demo_files.train), cli("preprocess", demo_files.train)
    assert "reused" not in first.err
    assert second.err.count("reused from the cache") == 2
    assert first.out == second.out
    assert "reused" not in cli("preprocess", demo_files.train, "--text", "raw").err.splitlines()[-1]


def test_a_changed_input_is_read_again(cli: CLI, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(1), battle(2)])
    assert cli("eda", path, "--json").json()["battles"] == 2
    write_csv(path, [battle(1), battle(2), battle(3)])
    assert cli("eda", path, "--json").json()["battles"] == 3


def test_the_preprocess_stage_keeps_the_battles_and_normalises_their_text(cli: CLI, tmp_path: Path) -> None:
    rows = [
        battle(7, 1, prompt=["What are the rivers?", None], response_a=[""], response_b=["The rivers were flooding."])
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    stage = pq.read_table(cli("preprocess", path).out.strip())
    assert stage.to_pylist() == [
        {
            "id": "7", "model_a": "left", "model_b": "right", "prompt": ["river", None], "response_a": [""],
            "response_b": ["river flooding"], "label": 1, "prompt_key": stage["prompt_key"][0].as_py(),
        }
    ]  # fmt: skip
    with pq.ParquetFile(cli("preprocess", path).out.strip()) as parquet:
        metadata = json.loads(parquet.metadata.metadata[b"prefcli"])
    assert metadata["stage"] == "preprocess"
    assert metadata["options"]["text"] == "nltk"
    assert metadata["counts"]["turns"] == 3


def test_preview_writes_nothing(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    done = cli("preprocess", demo_files.train, "--preview", "2")
    assert done.code == 0
    assert done.out.count("battle ") == 2
    assert done.out.count("before:") == 6
    assert not (tmp_path / ".prefcli").exists()


def test_the_number_of_workers_does_not_change_the_result(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    one = cli("preprocess", demo_files.train, "--workers", "1", "--workspace", tmp_path / "one").out.strip()
    two = cli("preprocess", demo_files.train, "--workers", "2", "--workspace", tmp_path / "two").out.strip()
    assert pq.read_table(one).equals(pq.read_table(two))


def test_texts_that_became_empty_are_reported(cli: CLI, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(1, response_a=["!!! ???"]), battle(2)])
    assert "1 answer without text after" in cli("preprocess", path).err


# train


def test_a_run_holds_its_artifacts_options_and_model_card(trained: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "model.safetensors", "tokenizer.json", "config.json", "README.md", "metrics.jsonl",
        "validation.parquet",
    }  # fmt: skip
    assert "checkpoints" not in names
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["max_length"] == 64
    assert config["options"]["epochs"] == 1
    assert config["origins"]["max_length"] == "flag"
    assert config["origins"]["epochs"] == "default"
    assert config["data"]["train_battles"] + config["data"]["held_out_battles"] == 240
    assert config["versions"]["torch"]
    card = (run / "README.md").read_text()
    assert "![Learning curves](curves.svg)" in card
    assert (
        f"best {min(m['validation_log_loss'] for m in runs.read_metrics(run) if 'validation_log_loss' in m):.4f}"
        in (run / "curves.svg").read_text()
    )
    validation = pq.read_table(run / "validation.parquet").to_pandas()
    loss = metrics.log_loss(validation[list(WINNER_COLUMNS)].to_numpy(), validation["label"].to_numpy())
    assert f"| log loss | {loss:.4f} " in card
    assert "share no prompt" in card
    assert not list(trained.rglob("*.pt")) + list(trained.rglob("*.bin")) + list(trained.rglob("*.pkl"))


def test_a_run_loads_without_its_encoder(trained: Path, demo_files: Demo, cli: CLI, tmp_path: Path) -> None:
    import shutil

    (run,) = (trained / "runs").iterdir()
    shutil.copytree(run, tmp_path / "elsewhere")
    config = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    config["options"]["encoder"] = "/gone/for/ever"
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(config))
    (tmp_path / "elsewhere" / "SHA256SUMS").unlink()
    for name, model in (("here.csv", run), ("there.csv", tmp_path / "elsewhere")):
        done = cli("predict", demo_files.test, "--model", model, "--output", name)
        assert done.code == 0, done.err
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()


def test_validation_probabilities_are_those_that_predict_gives(trained: Path, demo_files: Demo, cli: CLI) -> None:
    (run,) = (trained / "runs").iterdir()
    assert cli("predict", demo_files.train, "--model", run, "--output", "p.csv", "--no-calibration").code == 0
    found = predictions(Path("p.csv"))
    for row in pq.read_table(run / "validation.parquet").to_pylist():
        assert found[row["id"]] == pytest.approx([row[name] for name in WINNER_COLUMNS], abs=1e-5)


def test_train_prints_resolved_options_and_a_json_result(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, "--encoder", "tiny", "--limit", 120, "--json")
    assert done.code == 0, done.err
    result = done.json()
    assert set(result) == {
        "run", "encoder", "validation", "seconds", "battles_per_second", "outcomes", "unseen", "sources",
    }  # fmt: skip
    assert sum(result["outcomes"]) + result["validation"]["n"] == 120
    assert result["validation"]["n"] > 0
    assert {"log_loss", "prior_log_loss", "uniform_log_loss"} <= set(result["validation"])
    for said in ("fp32", "split by prompt", "limited to 120 battles", "built in", "nothing was cut"):
        assert said in done.err


def test_training_on_all_battles_says_that_there_is_no_validation_score(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.train, "--encoder", "tiny", "--limit", 64, "--validation", 0, "--json")
    assert done.code == 0, done.err
    assert done.json()["validation"] is None
    assert "nothing is held out" in done.err
    run = Path(done.json()["run"])
    assert "no honest figure" in (run / "README.md").read_text()
    assert cli("predict", demo_files.test).code == 0


def test_a_fold_that_is_interrupted_is_continued_as_part_of_its_run(
    cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "signals", lambda: nullcontext(lambda: signal.SIGINT))
    done = cli(
        "train", demo_files.train, "--encoder", "tiny", "--limit", 40, "--max-length", 32, "--folds", 2, "-o", "a run"
    )
    assert done.code == 130
    assert "Continue with: prefcli train --resume 'a run'\n" in done.err


def test_folds_predict_every_battle_by_a_model_that_did_not_see_it(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    done = cli("train", demo_files.train, "--encoder", "tiny", "--folds", 3, "--output", "folds", "--json")
    assert done.code == 0, done.err
    held_out = pq.read_table("folds/validation.parquet").to_pandas()
    assert sorted(held_out["id"], key=int) == [str(i) for i in range(1, 241)]
    assert done.json()["validation"]["n"] == 240
    for fold in (1, 2, 3):
        part = pq.read_table(f"folds/fold-{fold}/validation.parquet").to_pandas()
        merged = part.merge(held_out, on="id", suffixes=("", "_all"))
        assert len(merged) == len(part)
        assert np.allclose(merged[list(WINNER_COLUMNS)], merged[[f"{n}_all" for n in WINNER_COLUMNS]])
    # The run as a whole predicts with the mean of its folds.
    predict = ["predict", demo_files.test, "--no-calibration"]
    assert cli(*predict, "--model", "folds", "--output", "all.csv").code == 0
    parts = []
    for fold in (1, 2, 3):
        assert cli(*predict, "--model", f"folds/fold-{fold}", "--output", f"{fold}.csv").code == 0
        parts.append(list(predictions(Path(f"{fold}.csv")).values()))
    assert np.allclose(list(predictions(Path("all.csv")).values()), np.mean(parts, axis=0), atol=1e-6)


def test_interrupted_folds_continue(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    import shutil

    small = ["train", demo_files.train, "--encoder", "tiny", "--folds", 3, "--limit", 90, "--output", "folds"]
    assert cli(*small, "--keep-checkpoints").code == 0
    whole = Path("folds/validation.parquet").read_bytes()
    kept = Path("folds/fold-1/model.safetensors").stat().st_mtime_ns
    shutil.rmtree("folds/fold-3")
    Path("folds/validation.parquet").unlink()
    done = cli("train", "--resume", "folds")
    assert done.code == 0, done.err
    assert Path("folds/validation.parquet").read_bytes() == whole
    assert Path("folds/fold-1/model.safetensors").stat().st_mtime_ns == kept


def test_prompts_of_the_validation_file_are_left_out_of_training(cli: CLI, tmp_path: Path) -> None:
    rows = [battle(i, i % 3) for i in range(30)]
    train = write_csv(tmp_path / "train.csv", rows)
    other = write_csv(tmp_path / "other.csv", [battle(100 + i, i % 3, prompt=[f"question {i}"]) for i in range(5)])
    done = cli("train", train, "--encoder", "tiny", "--validation-file", other, "--output", "run", "--json")
    assert done.code == 0, done.err
    assert "5 training battles share a prompt" in done.err
    assert done.json()["validation"]["n"] == 5
    assert pq.read_table("run/validation.parquet")["id"].to_pylist() == ["100", "101", "102", "103", "104"]
    assert runs.read_config(tmp_path / "run")["data"]["train_battles"] == 25


def test_a_runs_own_config_reproduces_it(cli: CLI, demo_files: Demo) -> None:
    assert cli("train", demo_files.train, "--encoder", "tiny", "--limit", 80, "--seed", 4, "--output", "one").code == 0
    assert cli("train", demo_files.train, "--config", "one/config.json", "--output", "two").code == 0
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()


def test_a_configuration_file_is_read_and_flags_win(cli: CLI, demo_files: Demo) -> None:
    Path("run.toml").write_text('encoder = "tiny"\nbatch-size = 4\nlimit = 60\nlr = 1\n')
    done = cli("train", demo_files.train, "--config", "run.toml", "--lr", "0.001", "--output", "run")
    assert done.code == 0, done.err
    config = runs.read_config(Path("run"))
    assert config["options"]["batch_size"] == 4
    assert config["options"]["lr"] == 0.001
    assert (config["origins"]["batch_size"], config["origins"]["lr"], config["origins"]["seed"]) == (
        "file",
        "flag",
        "default",
    )


def test_all_problems_of_a_configuration_are_reported_at_once(cli: CLI, demo_files: Demo) -> None:
    Path("run.toml").write_text('encodr = "tiny"\nbatch_size = "four"\n')
    done = cli("train", demo_files.train, "--config", "run.toml")
    assert done.code == 2
    assert "encodr" in done.err
    assert "batch_size" in done.err
    done = cli("train", demo_files.train, "--lr", -1, "--architecture", "magic", "--epochs", 0)
    assert done.code == 2
    assert all(flag in done.err for flag in ("--lr", "--architecture", "--epochs"))


def test_training_without_a_file_takes_train_csv(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    done = cli("train", "--encoder", "tiny")
    assert done.code == 2
    assert "no train.csv here" in done.err
    (tmp_path / "train.csv").write_bytes(demo_files.train.read_bytes())
    assert cli("train", "--encoder", "tiny", "--limit", 60).code == 0


def test_a_missing_encoder_is_reported_before_any_work(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    done = cli("train", demo_files.train, "--encoder", "./nowhere")
    assert done.code == 2
    assert not (tmp_path / ".prefcli").exists()


def test_an_existing_run_is_not_overwritten(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    small = ["train", demo_files.train, "--encoder", "tiny", "--limit", 60, "--output"]
    assert cli(*small, "run").code == 0
    refused = cli(*small, "run")
    assert refused.code == 2
    assert "--force" in refused.err
    assert cli(*small, "run", "--force").code == 0
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    assert cli(*small, "precious", "--force").code == 2
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_the_same_command_continues_a_killed_training(cli: CLI, demo_files: Demo, tmp_path: Path) -> None:
    small = ["--encoder", "tiny", "--limit", 100, "--checkpoint-every", 2]
    assert cli("train", demo_files.train, *small, "--output", "whole").code == 0
    assert not Path("whole/unfinished").exists()
    process = start_process(({}, ["train", demo_files.train, *small, "--output", "killed"]), output=tmp_path / "output")
    while not list(Path("killed/checkpoints").glob("step-*")) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert Path("killed/unfinished").exists()
    half = cli("predict", demo_files.test, "--model", "killed", "-o", "half.csv")
    assert half.code == 1
    assert "did not finish" in half.err
    other = cli("train", demo_files.train, *small, "--lr", 1e-3, "--output", "killed")
    assert other.code == 2
    assert "unfinished run of other battles or options" in other.err
    again = cli("train", demo_files.train, *small, "--output", "killed")
    assert again.code == 0, again.err
    assert "unfinished: continuing it" in again.err
    for name in ("model.safetensors", "validation.parquet", "tokenizer_config.json"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    assert not Path("killed/unfinished").exists()
    assert not list(tmp_path.glob(".*lock"))
    finished = cli("train", demo_files.train, *small, "--output", "killed")
    assert finished.code == 2
    assert "already exists" in finished.err


def test_a_folder_that_another_training_uses_is_refused(cli: CLI, demo_files: Demo) -> None:
    from prefcli.storage import runs

    with runs.locked(Path("busy")):
        done = cli("train", demo_files.train, "--recipe", "fast", "--output", "busy")
    assert done.code == 1
    assert "another prefcli is training into this folder" in done.err


def test_runs_started_in_the_same_second_get_different_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefcli.options import TrainOptions
    from prefcli.storage import runs

    monkeypatch.setattr(runs.time, "strftime", lambda _: "20260101-000000")
    names = [runs.new_folder(tmp_path, TrainOptions(encoder="tiny")).name for _ in range(3)]
    assert names == [f"20260101-000000-siamese-tiny{more}" for more in ("", "-2", "-3")]


def test_a_changed_run_is_refused(cli: CLI, demo_files: Demo) -> None:
    assert cli("train", demo_files.train, "--recipe", "fast", "--output", "run").code == 0
    weights = Path("run/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-9] ^= 4
    weights.write_bytes(content)
    done = cli("predict", demo_files.test, "--model", "run", "-o", "p.csv")
    assert done.code == 1
    assert "model.safetensors is changed" in done.err
    assert not Path("p.csv").exists()


def test_resume_refuses_other_options(cli: CLI, trained: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    done = cli("train", "--resume", run, "--lr", 0.1)
    assert done.code == 2
    assert "--lr" in done.err


def test_resuming_with_other_validation_battles_is_refused(cli: CLI, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "t.csv", [battle(i, i % 3) for i in range(30)])
    other = write_csv(tmp_path / "v.csv", [battle(i, i % 3) for i in range(100, 130)])
    flags = ["--encoder", "tiny", "--validation-file", other, "--keep-checkpoints", "--output", "run"]
    assert cli("train", train, *flags).code == 0
    write_csv(other, [battle(i, 0) for i in range(100, 130)])
    done = cli("train", "--resume", "run")
    assert done.code == 2
    assert "validation battles this run was trained with have changed" in done.err


def test_resuming_a_run_whose_battles_have_changed_is_refused(cli: CLI, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(i, i % 3) for i in range(20)])
    assert cli("train", path, "--encoder", "tiny", "--keep-checkpoints", "--output", "run").code == 0
    for stage in (tmp_path / ".prefcli" / "stages").iterdir():
        stage.unlink()
    assert cli("train", "--resume", "run").code == 0  # preprocessed again from the same file
    for stage in (tmp_path / ".prefcli" / "stages").iterdir():
        stage.unlink()
    write_csv(path, [battle(i, i % 3) for i in range(21)])
    done = cli("train", "--resume", "run")
    assert done.code == 2
    assert "have changed" in done.err


def test_battles_of_a_single_prompt_cannot_be_split(cli: CLI, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [battle(i, i % 3, prompt=["the same"]) for i in range(12)])
    done = cli("train", path, "--encoder", "tiny")
    assert done.code == 2
    assert "--validation 0" in done.err


def test_a_model_no_better_than_the_prior_gets_a_warning(cli: CLI, tmp_path: Path) -> None:
    rows = [battle(i, i % 3, response_a=["same"], response_b=["same"]) for i in range(60)]
    path = write_csv(tmp_path / "a.csv", rows)
    assert "warning: the model is not clearly better than the prior" in cli("train", path, "--encoder", "tiny").err
    labels = np.arange(300) % 3
    assert "only the shares" in not_better_than_prior(np.full((300, 3), 1 / 3), labels)
    assert not_better_than_prior(np.eye(3)[labels] * 0.4 + 0.2, labels) == ""


def test_a_model_of_several_sources_must_be_better_than_their_shares() -> None:
    labels = np.array([0, 1] * 50 + [2] * 80 + [0, 1] * 10)
    base = np.array([[0.5, 0.5, 1e-9]] * 100 + [[0.1, 0.1, 0.8]] * 100)
    noise = np.random.default_rng(0).normal(0, 0.1, len(base))[:, None] * [1, -1, 0]
    noisy = base * np.exp(noise)
    noisy /= noisy.sum(axis=1, keepdims=True)
    assert not_better_than_prior(noisy, labels) == ""  # knowing the source is enough for the shares of all
    expected = -np.log(base)[np.arange(len(base)), labels].mean()
    said = not_better_than_prior(noisy, labels, base=base)
    assert said.startswith("the model is not clearly better than its sources' shares of ties alone (log loss ")
    assert said.endswith(f"against {expected:.4f})")
    assert not_better_than_prior(base, labels, base=base).endswith("its sources' shares of ties, whatever the texts")


def test_other_layouts_and_several_files_run_through_all_verbs(cli: CLI, tmp_path: Path) -> None:
    """Names of its own, two files, one of them JSONL: read, trained on, continued, predicted, previewed."""
    rows = [battle(i, i % 3) for i in range(60)]
    parts = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path, some in zip(parts, (rows[:40], rows[40:]), strict=True):
        with path.open("w") as stream:
            for row in some:
                record = {"question": row["prompt"][0], "left": row["response_a"][0], "right": row["response_b"][0]}
                winner = ("model_a", "model_b", "tie")[int(row["id"]) % 3]
                stream.write(json.dumps(record | {"winner": winner}) + "\n")
    names = ["--format", "generic", "--columns", "prompt=question,response_a=left,response_b=right"]
    assert "before: question 0" in cli("preprocess", parts[0], *names, "--preview", 1).out
    made = cli("preprocess", *parts, *names, "--json")
    assert made.json()["battles"] == 60, made.err
    assert cli("train", "--encoder", "tiny", "--keep-checkpoints", "--output", "run").code == 0
    for stage in (tmp_path / ".prefcli" / "stages").iterdir():
        stage.unlink()
    assert cli("train", "--resume", "run").code == 0
    assert cli("predict", *parts, *names, "--model", "run", "--output", "p.csv").code == 0
    assert len(predictions(Path("p.csv"))) == 60
    assert "one.jsonl and 1 more" in (tmp_path / "run" / "README.md").read_text()


def test_standard_input_is_read(
    cli: CLI, trained: Path, demo_files: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = (trained / "runs").iterdir()
    with demo_files.test.open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        done = cli("predict", "-", "--model", run, "--output", "p.csv")
    assert done.code == 0, done.err
    assert len(predictions(tmp_path / "p.csv")) == 60


# predict


def test_ids_keep_their_spelling_and_rows_their_order(cli: CLI, trained: Path, tmp_path: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    ids = ["007", "1e5", "NaN", "10", "9", "null", " x ", "é"]
    columns = ["id", "prompt", "response_a", "response_b"]
    path = write_csv(tmp_path / "test.csv", [battle(1, None, id=name) for name in ids], columns)
    assert cli("predict", path, "--model", run, "--output", "p.csv").code == 0
    assert list(predictions(Path("p.csv"))) == ids
    assert cli("predict", path, "--model", run, "--output", "p.parquet").code == 0
    assert pq.read_table("p.parquet")["id"].to_pylist() == ids


def test_swap_average_swaps_the_first_two_probabilities(
    cli: CLI, trained: Path, demo_files: Demo, tmp_path: Path
) -> None:
    (run,) = (trained / "runs").iterdir()
    with demo_files.test.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = ["id", "prompt", "response_a", "response_b"]
    swapped = [row | {"response_a": row["response_b"], "response_b": row["response_a"]} for row in rows]
    there = write_csv(tmp_path / "swapped.csv", swapped, columns)
    for path, name in ((demo_files.test, "a.csv"), (there, "b.csv")):
        assert cli("predict", path, "--model", run, "--swap-average", "--output", name).code == 0
    one, two = (np.array(list(predictions(Path(name)).values())) for name in ("a.csv", "b.csv"))
    assert np.allclose(one, two[:, [1, 0, 2]], atol=1e-6)


def test_raw_scores_are_refused_by_score_unless_renormalised(cli: CLI, trained: Path, demo_files: Demo) -> None:
    (run,) = (trained / "runs").iterdir()
    done = cli("predict", demo_files.test, "--model", run, "--activation", "none", "--output", "raw.csv")
    assert done.code == 0
    assert "not probabilities" in done.err
    raw = np.array(list(predictions(Path("raw.csv")).values()))
    plain = ["--model", run, "--output", "soft.csv", "--no-calibration"]
    assert cli("predict", demo_files.test, *plain).code == 0
    assert np.allclose(metrics.softmax(raw), list(predictions(Path("soft.csv")).values()), atol=1e-9)
    refused = cli("score", "raw.csv", demo_files.truth)
    assert refused.code == 2
    assert "--renormalize" in refused.err
    assert cli("score", "raw.csv", demo_files.truth, "--renormalize").code == 0


def test_an_existing_output_is_not_overwritten(cli: CLI, trained: Path, demo_files: Demo) -> None:
    (run,) = (trained / "runs").iterdir()
    Path("p.csv").write_text("precious")
    done = cli("predict", demo_files.test, "--model", run, "--output", "p.csv")
    assert done.code == 2
    assert Path("p.csv").read_text() == "precious"
    assert cli("predict", demo_files.test, "--model", run, "--output", "p.csv", "--force", "--limit", 3).code == 0
    assert len(predictions(Path("p.csv"))) == 3


def test_predict_takes_test_csv_from_the_competitions_zip(
    cli: CLI, trained: Path, demo_files: Demo, tmp_path: Path
) -> None:
    (run,) = (trained / "runs").iterdir()
    path = tmp_path / "competition.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in (("test.csv", demo_files.test), ("train.csv", demo_files.train)):
            archive.write(file, name)
        archive.writestr("sample_submission.csv", "id\n1\n")
    done = cli("predict", path, "--model", run, "--output", "p.csv")
    assert done.code == 0, done.err
    assert "test.csv" in done.err
    assert list(predictions(Path("p.csv"))) == [row["id"] for row in csv.DictReader(demo_files.test.open(newline=""))]
    shown = cli("eda", path, "--test", path, "--json")
    assert shown.json()["battles"] == 240
    assert "test.csv" in shown.err

    with zipfile.ZipFile(path, "a") as archive:
        archive.write(demo_files.test, "more/test.csv")
    refused = cli("predict", path, "--model", run, "--output", "q.csv")
    assert refused.code == 2
    assert "test.csv, train.csv, sample_submission.csv, more/test.csv" in refused.err


def test_predicting_without_a_run_hints_at_train(cli: CLI, demo_files: Demo) -> None:
    done = cli("predict", demo_files.test)
    assert done.code == 2
    assert "prefcli train" in done.err
    assert "no run at 'nope'" in cli("predict", demo_files.test, "--model", "nope").err
    assert cli("predict", demo_files.test, "--output", "p.xlsx").code == 2


# ablate, demo


def test_the_ablation_trains_each_model_once_and_scores_all_six_rows(cli: CLI, demo_files: Demo) -> None:
    small = [
        "ablate",
        demo_files.train,
        "--encoder",
        "tiny",
        "--limit",
        90,
        "--validation",
        0.3,
        "--output",
        "abl",
        "--json",
    ]
    done = cli(*small)
    assert done.code == 0, done.err
    rows = done.json()["rows"]
    assert [row["setting"]["reported"] for row in rows] == [1.04219, 1.07467, 1.04398, 1.07435, 1.35201, 1.58984]
    assert {"log_loss", "interval", "by_seed", "difference", "difference_interval"} <= set(rows[0])
    assert rows[0]["score"]["log_loss"] == rows[0]["log_loss"]
    assert len([p for p in Path("abl").iterdir() if p.is_dir()]) == 5
    # log-softmax before cross-entropy is no change at all, and raw scores are far worse than probabilities.
    assert rows[3]["log_loss"] == pytest.approx(rows[0]["log_loss"], abs=1e-5)
    assert rows[4]["log_loss"] > rows[2]["log_loss"]
    # Row 5 by hand: raw scores of the softmax model, clipped to [1e-15, 1] and divided by their sum.
    held_out = pq.read_table("abl/seed-0-softmax-1/validation.parquet").to_pandas()
    raw = np.clip(held_out[["logit_a", "logit_b", "logit_tie"]].to_numpy(), 1e-15, 1)
    raw = raw / raw.sum(axis=1, keepdims=True)
    assert rows[4]["log_loss"] == pytest.approx(-np.log(raw[np.arange(len(raw)), held_out["label"]]).mean())
    assert f"{rows[4]['difference']:.4f}" in done.json()["reading"]
    # Called again nothing is trained; with a run taken away, only that one.
    before = {p: p.stat().st_mtime_ns for p in Path("abl").glob("*/model.safetensors")}
    shutil.rmtree("abl/seed-0-softmax-1")
    assert cli(*small).json()["rows"] == rows
    changed = [p.parent.name for p in before if p.stat().st_mtime_ns != before[p]]
    assert changed == ["seed-0-softmax-1"]
    assert "## " not in Path("abl/ablation.md").read_text()


def test_the_demos_files_are_reproducible_and_its_best_score_is_plausible(tmp_path: Path) -> None:
    one, two = (synthetic.write(tmp_path / name, train=50, test=3000) for name in ("a", "b"))
    assert one.train.read_bytes() == two.train.read_bytes()
    # Nobody can do better on average: the entropy of the true probabilities is what the votes cost in the mean.
    assert 0.6 < one.best_log_loss < 1.0
    with one.test.open(newline="") as stream:
        assert next(csv.reader(stream)) == ["id", "prompt", "response_a", "response_b"]


def test_swapping_the_answers_of_the_demo_swaps_its_votes() -> None:
    a, b, tie = synthetic.vote(3, -1)
    assert synthetic.vote(-1, 3) == pytest.approx([b, a, tie])
    assert a > b
    assert a + b + tie == pytest.approx(1)


def test_a_training_that_fails_at_once_leaves_no_folder(cli: CLI, tmp_path: Path) -> None:
    one = write_csv(tmp_path / "one.csv", [battle(1, 0)])
    done = cli("train", one, "--recipe", "fast", "--output", "run")
    assert done.code == 2
    assert not Path("run").exists()
    assert cli("train", one, "--recipe", "fast").code == 2
    assert not list(Path(".prefcli/runs").iterdir())
    assert not list(tmp_path.glob("**/.*.lock"))


def test_ids_with_line_breaks_quotes_and_commas_survive_csv(tmp_path: Path) -> None:
    import pyarrow as pa

    from prefcli.data import tables

    names = ["", "a\rb", "a\nb", "\r\n", 'say "hi"', "a,b", " blank ", "007", "=cmd|' /C calc'!A0", "ünïcode"]
    values = np.random.default_rng(0).dirichlet([1, 1, 1], size=len(names))
    with tables.writer_for(tmp_path / "p.csv")(tmp_path / "p.csv") as append_rows:
        append_rows(pa.array(names), values)
    ids, found = tables.read_probabilities(tmp_path / "p.csv")
    assert ids.tolist() == names
    assert np.array_equal(found, values)
    assert [row[0] for row in csv.reader((tmp_path / "p.csv").open(newline=""))][1:] == names


def test_a_damaged_log_does_not_stop_a_resumed_training(cli: CLI, demo_files: Demo) -> None:
    flags = ["--encoder", "tiny", "--limit", 60, "--checkpoint-every", 2, "--keep-checkpoints", "--output", "run"]
    assert cli("train", demo_files.train, *flags).code == 0
    log = Path("run/metrics.jsonl")
    whole = log.read_bytes()
    log.write_bytes(b"\xff\xfe{half a line\n[1]\n" + whole)
    done = cli("train", "--resume", "run")
    assert done.code == 0, done.err
    assert log.read_bytes() == whole


def test_a_run_with_impossible_options_is_reported_as_damaged(cli: CLI, demo_files: Demo) -> None:
    assert cli("train", demo_files.train, "--recipe", "fast", "--output", "run").code == 0
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**config, "options": {**config["options"], "combine": "magic"}}))
    Path("run/SHA256SUMS").unlink()
    done = cli("train", "--resume", "run")
    assert done.code == 1
    assert "config.json is damaged" in done.err

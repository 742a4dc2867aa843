"""``prefcli runs``: every run is listed whatever its state, compared with others fairly, and removed whole."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from sklearn.metrics import log_loss
from typer.testing import CliRunner

import prefcli
from prefcli import metrics, pipeline
from prefcli.battles import Source
from prefcli.cli.main import app
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, ModelError, PrefcliError
from prefcli.options import TrainOptions, resolve
from prefcli.pipeline import runs_remove
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]
ARCHIVE = Path(__file__).parent / "data" / "before" / "before.tar.gz"
N = 400


def held_out(rows: Sequence[int], noise: float, seed: int = 0) -> runs.HeldOut:
    """Predictions of some of N battles (two for each prompt), which are worse the more noise they have."""
    labels = np.random.default_rng(7).integers(0, 3, N)[rows]
    logits = np.eye(3)[labels] + np.random.default_rng(seed).normal(0, noise, (len(rows), 3))
    return runs.HeldOut([f"b{row}" for row in rows], np.array(rows) // 2, logits, labels)


def make_run(folder: Path, predictions: runs.HeldOut | None, trained: Sequence[int] = (), **given: Any) -> Path:
    """A finished run without a model, which held out those battles and was trained on the prompts ``trained``."""
    options, origins = resolve({"architecture": "features", **given})
    folder.mkdir(parents=True)
    data = {
        "source": Source.of("votes.csv").to_json(),
        "source_sha256": "0" * 64,
        "text": options.normalisation,
        "train_battles": len(trained),
        "held_out_battles": len(predictions.ids) if predictions else 0,
        "outcomes": [1, 1, 1],
    }
    runs.write_config(folder, options, {"origins": origins, "resolved": {}, "data": data, "command": "prefcli train"})
    runs.write_training_prompts(folder, np.array(trained, dtype=np.int64))
    if predictions is not None:
        runs.write_validation(folder, predictions)
    (folder / "model.safetensors").write_bytes(b"weights")
    runs.seal(folder, trained=True)
    return folder


@pytest.fixture
def two(workspace: Workspace) -> Workspace:
    """Runs ``good`` and ``bad``, which held out the same battles."""
    rows = range(200)
    make_run(workspace.runs / "good", held_out(rows, 0.5), trained=range(100, 200))
    make_run(workspace.runs / "bad", held_out(rows, 1.5, seed=1), trained=range(100, 200), seed=3)
    workspace.remember("train", {"run": str((workspace.runs / "good").resolve())})
    return workspace


def by_name(workspace: Workspace) -> dict[str, pipeline.runs.RunSummary]:
    return {run.name: run for run in pipeline.list_runs(workspace)}


def test_the_list_has_the_figures_that_scikit_learn_computes(two: Workspace, cli: CLI) -> None:
    good = next(run for run in cli("runs", "--json").json()["runs"] if run["name"] == "good")
    truth = held_out(range(200), 0.5)
    expected = log_loss(truth.labels, metrics.softmax(truth.logits), labels=[0, 1, 2])
    assert good["log_loss"] == pytest.approx(expected)
    assert good["log_loss_ci"][0] < expected < good["log_loss_ci"][1]
    shares = np.bincount(truth.labels) / 200
    assert good["gain"] == pytest.approx(-(shares * np.log(shares)).sum() - expected)
    assert (good["held_out_battles"], good["train_battles"], good["data"]) == (200, 100, "votes.csv")
    assert good["is_latest"]
    sizes = [path.stat().st_size for path in (two.runs / "good").iterdir()]
    assert good["bytes"] == sum(sizes)


def test_a_damaged_or_unfinished_run_is_listed_and_hides_no_other(two: Workspace, cli: CLI) -> None:
    def damage(name: str, change: Callable[[Path], object]) -> None:
        change(shutil.copytree(two.runs / "bad", two.runs / name))

    def edited(folder: Path, **entries: object) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))

    damage("no-config", lambda folder: (folder / "config.json").unlink())
    damage("half-config", lambda folder: (folder / "config.json").write_text('{"options"'))
    damage("newer", lambda folder: edited(folder, format=99, options={"architecture": "mamba", "new": 1}))
    damage("odd-data", lambda folder: edited(folder, data=[1], origins=None, resolved="x"))
    damage("no-weights", lambda folder: (folder / "model.safetensors").unlink())
    damage("half-table", lambda folder: (folder / "validation.parquet").write_bytes(b"PAR1"))
    damage("half-sums", lambda folder: (folder / "SHA256SUMS").write_text("abc"))
    damage("no-logits", lambda folder: runs.write_validation(folder, held_out([0, 1], np.nan)))
    damage("unfinished", lambda folder: (folder / "unfinished").write_text(""))
    (two.runs / "a-file").write_text("")
    (two.runs / "empty").mkdir()
    (two.runs / "begun").mkdir()
    (two.runs / "begun" / "unfinished").write_text("")
    summaries = by_name(two)
    assert {name for name, run in summaries.items() if run.status == "finished"} == {"good", "bad", "odd-data"}
    assert {name for name, run in summaries.items() if run.status == "unfinished"} == {"unfinished", "begun"}
    damaged = {name: run.problem for name, run in summaries.items() if run.status == "damaged"}
    assert set(damaged) == set("no-config half-config newer no-weights half-table half-sums no-logits empty".split())
    assert damaged["newer"] == "the run was written by a newer prefcli"
    assert damaged["no-weights"] == "model.safetensors: gone"
    assert all(damaged.values())
    for name in summaries:
        assert pipeline.show_run(name, two).summary.name == name
    assert len(pipeline.diff_runs(list(summaries), two).runs) == len(summaries)
    assert cli("runs").out.count("  damaged: ") == 8
    assert cli("runs", "show", "newer").code == 0


def test_runs_of_an_earlier_release_are_listed_shown_and_compared(tmp_path: Path, cli: CLI) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    listed = {run["name"]: run for run in cli("runs", "runs", "--json").json()["runs"]}
    names = {f"runs/{name}" for name in ("features", "siamese", "cross-encoder", "adapters", "folds", "exported")}
    assert set(listed) == {*names, "runs/unfinished"}
    assert {name for name, run in listed.items() if run["status"] == "finished"} == names
    assert listed["runs/folds"]["train_battles"] == 80
    assert listed["runs/features"]["options"]["keep_checkpoints"] is False
    assert cli("runs", "--workspace", ".", "--json").json()["runs"][0]["name"] == "folds"
    assert "fold-1/model.safetensors" in cli("runs", "show", "runs/folds").out
    compared = cli("runs", "compare", "runs/siamese", "runs/features", "runs/folds", "--json").json()
    assert compared["battles"] == 20
    assert compared["scores"]["runs/siamese"]["log_loss"] == pytest.approx(listed["runs/siamese"]["log_loss"])


def test_runs_trained_into_other_places_are_listed_until_they_are_gone(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "my-run", held_out(range(40), 1.0))
    inside = make_run(workspace.runs / "inside", None)
    for run in (elsewhere, inside):
        workspace.record_run(run)
    assert set(by_name(workspace)) == {"my-run", "inside"}
    assert by_name(workspace)["inside"].log_loss is None
    shutil.rmtree(elsewhere)
    assert set(by_name(workspace)) == {"inside"}


def test_lists_are_sorted_and_filtered(two: Workspace, cli: CLI) -> None:
    make_run(two.runs / "small", held_out(range(200, 260), 0.1), text="light", architecture="siamese", encoder="tiny")
    os.utime(two.runs / "bad" / "config.json", (10, 10))

    def names(*arguments: str) -> list[str]:
        return [run["name"] for run in cli("runs", *arguments, "--json").json()["runs"]]

    assert names("--sort", "loss") == ["small", "good", "bad"]
    assert names("--sort", "gain") == ["small", "good", "bad"]
    assert names("--sort", "name") == ["bad", "good", "small"]
    assert names()[-1] == "bad"
    assert names("--architecture", "siamese") == ["small"]
    assert names("--where", "text=raw", "--where", "seed=3") == ["bad"]
    assert names("--where", "swap=false", "--where", "status=finished", "--where", "soft-weight=1") == names()
    assert names("--where", "text=nltk") == []
    assert names("--where", "limit=none") == names()
    for arguments, said in ((["--where", "colour=red"], "no 'colour'"), (["--where", "x"], "KEY=VALUE"),
                            (["--sort", "luck"], "luck"), (["nowhere"], "no run is there")):  # fmt: skip
        refused = cli("runs", *arguments)
        assert refused.code == 2
        assert said in refused.err
    assert "2 different sets of held-out battles" in cli("runs").err
    assert "different sets" not in cli("runs", "--architecture", "features").err


def test_options_are_read_before_and_after_the_command(two: Workspace, cli: CLI) -> None:
    root = str(two.root)
    for arguments in (["--workspace", root, "runs", "list"], ["runs", "--workspace", root, "list"],
                      ["runs", "list", "--workspace", root], ["runs", "--workspace", root]):  # fmt: skip
        done = cli(*arguments, "--json")
        assert [run["name"] for run in done.json()["runs"]] == ["good", "bad"] or len(done.json()["runs"]) == 2
    assert cli("runs", "--json", "show", "good").json()["summary"]["name"] == "good"
    assert "Commands:" in cli("runs", "--help").out
    assert "--sort" in cli("runs", "list", "--help").out
    assert cli("runs", "show").code == 2
    assert "prefcli runs show --help" in cli("runs", "show").err


def test_every_line_of_the_list_fits_a_terminal_of_80_columns(
    two: Workspace, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(
        two.runs / "20260101-120000-siamese-deberta-v3-small-and-more", held_out(range(40), 1), architecture="siamese"
    )
    monkeypatch.setattr("prefcli.cli.common.output_width", lambda: 80)
    lines = cli("runs", "--quiet").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("log loss" in line and "against the prior" in line for line in lines)


def test_show_has_the_options_that_differ_with_their_origin_and_checks_the_files(two: Workspace) -> None:
    details = pipeline.show_run("bad", two)
    changed = {option.name: option for option in details.options}
    assert set(changed) == {"architecture", "seed"}
    assert dataclasses.astuple(changed["seed"]) == ("seed", 3, 0, "flag")
    assert details.damage == ""
    assert set(details.files) == {path.name for path in (two.runs / "bad").iterdir()}
    (two.runs / "bad" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert "model.safetensors is changed" in pipeline.show_run("bad", two).damage
    with pytest.raises(InputError, match="no run at 'none'"):
        pipeline.show_run("none", two)


def test_diff_shows_what_differs_and_nothing_else(two: Workspace) -> None:
    difference = pipeline.diff_runs(["good", "bad"], two)
    assert difference.options == {"seed": [0, 3]}
    assert {"log_loss", "gain"} <= set(difference.figures)
    assert "prior_log_loss" not in difference.figures
    assert difference.data == difference.resolved == difference.versions == {}
    with pytest.raises(InputError, match="two different runs"):
        pipeline.diff_runs(["good", two.runs / "good"], two)


def test_a_comparison_is_paired_on_the_common_battles(workspace: Workspace, cli: CLI) -> None:
    make_run(workspace.runs / "a", held_out(range(200), 0.6))
    make_run(workspace.runs / "b", held_out(range(100, 300), 1.2, seed=1))
    compared = cli("runs", "compare", "a", "b", "--json").json()
    of_a, of_b = held_out(range(200), 0.6), held_out(range(100, 300), 1.2, seed=1)
    labels = of_a.labels[100:]
    expected = [
        log_loss(labels, metrics.softmax(logits), labels=[0, 1, 2]) for logits in (of_a.logits[100:], of_b.logits[:100])
    ]
    assert (compared["battles"], compared["prompts"]) == (100, 50)
    assert [compared["scores"][name]["log_loss"] for name in "ab"] == pytest.approx(expected)
    (difference,) = compared["differences"]
    assert (difference["a"], difference["b"]) == ("a", "b")
    assert difference["difference"] == pytest.approx(expected[0] - expected[1])
    assert difference["ci"][1] < 0
    assert difference["p"] < 0.05
    assert compared["best"] == "a"
    assert sum("not compared" in caution for caution in compared["cautions"]) == 2


def test_only_what_a_comparison_reads_is_checked(two: Workspace) -> None:
    (two.runs / "good" / "model.safetensors").write_bytes(b"other weights")
    assert pipeline.compare_runs(["good", "bad"], two).best == "good"
    runs.write_validation(two.runs / "good", held_out(range(200), 0.1))
    with pytest.raises(ModelError, match=r"validation\.parquet is changed"):
        pipeline.compare_runs(["good", "bad"], two)


def test_no_run_is_the_best_where_chance_explains_the_difference(workspace: Workspace, cli: CLI) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        make_run(workspace.runs / name, held_out(range(60), 1.0, seed=seed))
    assert pipeline.compare_runs(["a", "b"], workspace).best is None
    assert "no run is clearly better" in cli("runs", "compare", "a", "b").out


def test_runs_without_fair_common_battles_are_refused(workspace: Workspace, cli: CLI) -> None:
    make_run(workspace.runs / "a", held_out(range(40), 1.0), trained=range(20, 40))
    make_run(workspace.runs / "b", held_out(range(40, 80), 1.0), trained=range(20))
    refused = cli("runs", "compare", "a", "b")
    assert "error: a, b held out no battle in common" in refused.err
    assert "warning: a was trained on 20 of 20 prompts held out by b" in refused.err
    make_run(workspace.runs / "cheat", held_out(range(40), 0.1), trained=range(20))
    with pytest.raises(InputError, match="trained on the prompts of all 40 battles in common"):
        pipeline.compare_runs(["a", "cheat"], workspace)
    make_run(workspace.runs / "none", None)
    with pytest.raises(ModelError, match=r"no usable validation\.parquet"):
        pipeline.compare_runs(["a", "none"], workspace)


def test_battles_that_the_encoder_of_a_run_was_trained_on_are_not_compared(workspace: Workspace) -> None:
    first = make_run(workspace.runs / "first", held_out(range(200, 240), 1.0), trained=range(10))
    make_run(workspace.runs / "second", held_out(range(80), 0.5), architecture="siamese", encoder=str(first))
    make_run(workspace.runs / "third", held_out(range(80), 1.0, seed=1))
    compared = pipeline.compare_runs(["second", "third"], workspace)
    assert compared.battles == 60
    assert "20 battles in common left out: a run was trained on their prompts" in compared.cautions


def test_where_no_common_battle_is_a_tie_all_runs_are_scored_on_two_outcomes(workspace: Workspace) -> None:
    decided = [row for row in range(N) if held_out(range(N), 1).labels[row] != 2][:100]
    for name, noise in (("a", 0.5), ("b", 1.0)):
        make_run(workspace.runs / name, held_out(decided, noise))
    compared = pipeline.compare_runs(["a", "b"], workspace)
    assert compared.outcomes == 2
    truth = held_out(decided, 0.5)
    p = metrics.softmax(truth.logits)[:, :2]
    expected = log_loss(truth.labels, p / p.sum(axis=1, keepdims=True))
    assert compared.scores["a"].log_loss == pytest.approx(expected)
    assert compared.differences[0].difference == pytest.approx(expected - compared.scores["b"].log_loss)


# removing


def test_rm_removes_the_run_and_mends_the_record_of_the_latest(two: Workspace, cli: CLI) -> None:
    assert cli("runs", "rm", "good").code == 2  # there is no terminal to ask on
    assert (two.runs / "good").is_dir()
    removed = cli("runs", "rm", "good", "--yes", "--json")
    assert removed.json()["bytes"] > 0
    assert not (two.runs / "good").exists()
    assert two.latest("train") == {"run": str((two.runs / "bad").resolve())}
    assert "now takes bad" in removed.err
    assert cli("runs", "rm", "bad", "--yes").code == 0
    assert two.latest("train") is None
    assert list(two.runs.iterdir()) == []


def test_rm_refuses_a_run_that_is_being_trained_before_it_removes_any(two: Workspace, cli: CLI) -> None:
    (two.runs / "good" / "unfinished").write_text("")
    with runs.locked(two.runs / "good"):
        assert by_name(two)["good"].status == "training"
        refused = cli("runs", "rm", "bad", "good", "--yes")
    assert refused.code == 1
    assert "training into this folder" in refused.err
    assert {path.name for path in two.runs.iterdir()} == {"good", "bad"}
    assert by_name(two)["good"].status == "unfinished"


def test_rm_removes_a_link_and_not_what_it_leads_to(two: Workspace, tmp_path: Path) -> None:
    shutil.move(two.runs / "good", tmp_path / "precious")
    (two.runs / "good").symlink_to(tmp_path / "precious")
    (two.runs / "bad" / "data").symlink_to(tmp_path / "precious")
    pipeline.remove_runs(["good", "bad"], two)
    assert list(two.runs.iterdir()) == []
    assert (tmp_path / "precious" / "config.json").is_file()


def test_a_link_takes_no_bytes(two: Workspace, tmp_path: Path) -> None:
    shutil.move(two.runs / "good", tmp_path / "precious")
    (two.runs / "good").symlink_to(tmp_path / "precious")
    assert by_name(two)["good"].bytes > 0
    assert pipeline.remove_runs(["good"], two).bytes == 0


@pytest.mark.parametrize("name", ["..", ".", "precious", "a-file.csv", "", "hf://owner/name"])
def test_rm_removes_nothing_that_is_no_run(name: str, two: Workspace, tmp_path: Path, cli: CLI) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "a-file.csv").write_text("")
    assert cli("runs", "rm", name, "--yes").code == 2
    assert (tmp_path / "precious").is_dir()
    assert (tmp_path / "a-file.csv").is_file()


def test_rm_refuses_a_run_that_holds_the_current_folder(
    tmp_path: Path, cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "here", None)
    monkeypatch.chdir(tmp_path / "here")
    refused = cli("runs", "rm", ".", "--yes")
    assert refused.code == 2
    assert "holds" in refused.err
    assert (tmp_path / "here" / "config.json").is_file()


def test_a_killed_rm_leaves_no_part_of_a_run(two: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, **how: object) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files.shutil, "rmtree", killed)
        pipeline.remove_runs(["good"], two)
    assert set(by_name(two)) == {"bad"}
    with pytest.raises(InputError, match="no run at 'good'"):
        two.find_run("good")
    assert two.latest("train") == {"run": str((two.runs / "bad").resolve())}


def test_a_removal_that_the_system_refuses_keeps_the_run(two: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "no", str(path))

    monkeypatch.setattr(runs_remove.files, "remove", refuse)
    with pytest.raises(PrefcliError, match="no permission"):
        pipeline.remove_runs(["good"], two)
    assert two.latest("train") == {"run": str((two.runs / "good").resolve())}


def test_prune_lists_by_default_and_removes_checkpoints_of_finished_runs(two: Workspace, cli: CLI) -> None:
    for name in ("good", "bad", "bad/fold-1"):
        checkpoint = two.runs / name / "checkpoints" / "step-00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"x" * 1000)
    (two.runs / "good" / "unfinished").write_text("")
    make_run(two.runs / "kept", None, architecture="siamese", keep_checkpoints=True)
    (two.runs / "kept" / "checkpoints").mkdir()
    dry = cli("runs", "prune", "--json").json()
    assert (dry["bytes"], dry["removed"], len(dry["items"])) == (2000, False, 2)
    assert (two.runs / "bad" / "checkpoints").is_dir()
    assert by_name(two)["bad"].checkpoint_bytes == 2000
    assert cli("runs", "prune", "--yes").code == 0
    assert not list((two.runs / "bad").rglob("checkpoints"))
    assert (two.runs / "good" / "checkpoints").is_dir()
    assert (two.runs / "kept" / "checkpoints").is_dir()
    assert cli("runs", "prune").out == "nothing to remove\n"


def test_prune_removes_old_unfinished_runs_and_stages_that_nothing_continues_with(
    two: Workspace, demo_files: Demo
) -> None:
    used, unused = (pipeline.preprocess(demo_files.test, two, text=text).stage for text in ("light", "raw"))
    two.remember("preprocess", {"stage": used.path.name})
    table, trained_on = (prefcli.from_table([{"prompt": p}], workspace=two).paths[0] for p in ("x", "y"))
    config = json.loads((two.runs / "good" / "config.json").read_text())
    config["data"]["source"]["paths"] = [str(trained_on.absolute())]
    (two.runs / "good" / "config.json").write_text(json.dumps(config))
    (two.runs / "bad" / "unfinished").write_text("")
    assert not any("bad" in str(item.path) for item in pipeline.prune(two, unfinished_days=1).items)
    for path in [two.runs / "bad", *(two.runs / "bad").iterdir()]:
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    pruned = pipeline.prune(two, unfinished_days=1, stages=True, remove=True)
    assert pruned.removed
    assert not (two.runs / "bad").exists()
    assert (two.runs / "good").is_dir()
    assert used.path.exists()
    assert not unused.path.exists()
    assert not table.exists()
    assert trained_on.exists()
    assert {path.suffix for path in two.stages.iterdir()} == {".parquet", ".sha256"}
    assert pipeline.preprocess(demo_files.test, two, text="raw").stage.path == unused.path


# checkpoints


@pytest.mark.slow
def test_a_finished_run_has_no_checkpoints_and_nothing_to_continue(cli: CLI, demo_files: Demo) -> None:
    small = ("train", demo_files.train, "--encoder", "tiny", "--limit", 60, "--max-length", 32, "--max-steps", 2)
    assert cli(*small, "--output", "run").code == 0
    assert not Path("run/checkpoints").exists()
    refused = cli("train", "--resume", "run")
    assert refused.code == 2
    assert "nothing to continue" in refused.err
    assert "--config run/config.json" in refused.err
    assert "unfinished" not in {path.name for path in Path("run").iterdir()}
    assert cli(*small, "--keep-checkpoints", "--output", "kept").code == 0
    assert len(list(Path("kept").glob("checkpoints/step-*"))) == 1
    before = Path("kept/validation.parquet").read_bytes()
    Path("kept/validation.parquet").unlink()
    assert cli("train", "--resume", "kept").code == 0  # writes what is missing
    assert Path("kept/validation.parquet").read_bytes() == before
    assert [run["name"] for run in cli("runs", "--json").json()["runs"]] == ["kept", "run"]


@pytest.mark.slow
def test_a_kill_between_the_end_and_the_removal_of_checkpoints_is_harmless(
    cli: CLI, demo_files: Demo, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    options = TrainOptions(encoder="tiny", limit=60, max_length=32, max_steps=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runs, "remove_checkpoints", killed)
        pipeline.train(demo_files.train, workspace, options, output="run")
    (run,) = pipeline.list_runs(workspace)
    assert (run.status, run.is_latest) == ("finished", True)
    assert run.checkpoint_bytes > 0
    assert cli("predict", demo_files.test, "--limit", 3).code == 0
    assert cli("train", "--resume", "run").code == 0
    assert not Path("run/checkpoints").exists()


# completion


def words_of(line: str, shell: str) -> dict[str, str]:
    """The variables by which a shell asks what the last word of a line may be."""
    variables = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    return {"_PREFCLI_COMPLETE": f"complete_{shell}", **variables[shell]}


def offered(line: str, shell: str = "bash") -> set[str]:
    """What a shell is offered at the end of a line."""
    shown = CliRunner().invoke(app, prog_name="prefcli", env=words_of(line, shell)).stdout
    return set(shown.replace('"', " ").replace("(", " ").replace(")", " ").split())


@pytest.mark.slow
def test_completion_imports_nothing_heavy(two: Workspace) -> None:
    code = (
        "import sys; from prefcli.__main__ import main\n"
        "heavy = ('numpy', 'pyarrow', 'torch', 'rich', 'pydantic')\n"
        "try: main()\n"
        "finally: print([name for name in heavy if sys.modules.get(name)], file=sys.stderr)"
    )
    environment = {**os.environ, **words_of("prefcli runs show g", "fish")}  # which also shows descriptions
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("good\n", "[]\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_of_runs_complete_in_every_shell(shell: str, two: Workspace) -> None:
    (two.runs / ".hidden").mkdir()
    for line in ("runs show g", "predict x.csv --model g", "export g", "push g", "train --resume g", "runs rm g"):
        names = offered(f"prefcli {line}", shell)
        assert "good" in names, line
        assert not {"bad", ".hidden"} & names, line


def test_completion_knows_the_workspace_of_the_line(
    two: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make_run(tmp_path / "my-run", None)
    two.record_run(tmp_path / "my-run")
    assert offered("prefcli runs rm ") >= {"good", "bad", "my-run"}
    assert offered("prefcli train --resume b") == {"bad"}
    assert offered("prefcli runs ") >= {"list", "show", "diff", "compare", "rm", "prune"}
    monkeypatch.chdir(elsewhere)
    assert offered("prefcli push ") == set()
    assert offered(f"prefcli runs show --workspace {two.root} g") == {"good"}
    assert offered(f"prefcli --workspace {two.root} runs show g") == {"good"}
    monkeypatch.setenv("PREFCLI_WORKSPACE", str(two.root))
    assert offered("prefcli push g") == {"good"}


def test_runs_are_listed_from_python(two: Workspace) -> None:
    assert [run.name for run in prefcli.runs(sort="loss")] == ["good", "bad"]
    assert prefcli.runs(where={"seed": "3"})[0].log_loss_ci is not None

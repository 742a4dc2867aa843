"""What each verb recommends to do next: the commands fit what was seen, and each can be pasted and works."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, battle, write_csv

from prefcli.battles import Source
from prefcli.cli import next_steps
from prefcli.cli.common import Session
from prefcli.data.synthetic import Demo
from prefcli.options import TrainOptions
from prefcli.pipeline import best_partner
from prefcli.pipeline.train import find_data
from prefcli.rendering import advice
from prefcli.reporting import SILENT
from prefcli.storage import files, runs
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]


def commands_of(done: Result) -> list[str]:
    """The commands that were recommended; each stands below its reason."""
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    return [lines[number + 1].strip() for number, line in enumerate(lines) if line.startswith("Next: ")]


def run_all(cli: CLI, commands: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """Paste each command where the user is."""
    results = []
    for command in commands:
        with monkeypatch.context() as patch:
            if command.startswith("cd "):
                folder, command = command.removeprefix("cd ").split(" && ")
                patch.chdir(shlex.split(folder)[0])
            program, *arguments = shlex.split(command)
            assert program == "prefcli"
            results.append(cli(*arguments))
            assert results[-1].code == 0, (command, results[-1].err)
    return results


@pytest.fixture
def here(demo_files: Demo, features_run: Path, tmp_path: Path) -> Path:
    """A folder with train.csv, test.csv, labels, and a workspace whose latest run is ``one``."""
    Path("train.csv").write_text("".join(demo_files.train.read_text().splitlines(keepends=True)[:101]))
    shutil.copy(demo_files.test, "test.csv")
    shutil.copy(demo_files.truth, "labels.csv")
    workspace = Workspace(tmp_path / ".prefcli")
    shutil.copytree(features_run, workspace.runs / "one")
    workspace.remember("train", {"run": str(workspace.runs / "one")})
    config = json.loads((workspace.runs / "one/config.json").read_text())
    config["data"]["source"]["paths"] = [str(tmp_path / "train.csv")]
    (workspace.runs / "one/config.json").write_text(json.dumps(config))
    seal(workspace.runs / "one")
    return tmp_path


def seal(run: Path) -> None:
    names = list(files.read_checksums(run))
    files.write_checksums(run, names)


def make_partners(workspace: Workspace, *, noise: float = 1.5) -> None:
    """Runs ``one`` and ``two`` that held out the same battles, and see the outcome through noise of their own."""
    shutil.copytree(workspace.runs / "one", workspace.runs / "two")
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    for name in ("one", "two"):
        logits = np.eye(3)[labels] + rng.normal(size=(300, 3)) * noise
        keys = np.arange(300) + 10**6
        runs.write_validation(workspace.runs / name, runs.HeldOut([*map(str, keys)], keys, logits, labels, None))
        seal(workspace.runs / name)


def test_a_partner_is_recommended_where_its_blend_is_clearly_better(
    cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(here / ".prefcli")
    assert best_partner(workspace.runs / "one", workspace) is None  # no other run
    make_partners(workspace)
    partner = best_partner(workspace.runs / "one", workspace)
    assert partner is not None
    one, two = (runs.read_validation(workspace.runs / name) for name in ("one", "two"))
    labels, rows = one.labels, np.arange(300)

    def loss(logits: np.ndarray) -> float:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return float(-np.log(shifted / shifted.sum(axis=1, keepdims=True))[rows, labels].mean())

    log_p = [o.logits - np.log(np.exp(o.logits).sum(axis=1, keepdims=True)) for o in (one, two)]
    gain = loss((log_p[0] + log_p[1]) / 2) - min(loss(one.logits), loss(two.logits))
    assert (partner.run, partner.gain.difference) == ("two", pytest.approx(gain))
    assert partner.gain.ci is not None
    assert partner.gain.ci[1] < 0
    commands = commands_of(cli("runs", "compare", "one", "two"))
    assert set(shlex.split(commands[0])) == {"prefcli", "predict", "test.csv", "--model", "one", "two"}
    run_all(cli, commands, monkeypatch)
    assert len(Path("preds.csv").read_text().splitlines()) == 61
    done = cli("predict", "test.csv", "--output", "again.csv")
    assert "prefcli predict test.csv --model one --model two --output preds-2.csv" in commands_of(done)
    Path("test.csv").unlink()
    again = commands_of(cli("runs", "compare", "one", "two"))[0]
    assert set(again.split()) == {"prefcli", "runs", "compare", "one", "two"}


def test_no_blend_is_recommended_on_weak_evidence(here: Path) -> None:
    workspace = Workspace(here / ".prefcli")
    make_partners(workspace)
    copy = runs.read_validation(workspace.runs / "one")
    runs.write_validation(workspace.runs / "two", copy)
    seal(workspace.runs / "two")
    assert best_partner(workspace.runs / "one", workspace) is None  # the same predictions
    others = runs.HeldOut(copy.ids[:299], copy.keys[:299], copy.logits[:299][::-1], copy.labels[:299], None)
    runs.write_validation(workspace.runs / "two", others)
    seal(workspace.runs / "two")
    assert best_partner(workspace.runs / "one", workspace) is None  # other battles
    (workspace.runs / "two" / runs.VALIDATION).write_bytes(b"damaged")
    assert best_partner(workspace.runs / "one", workspace) is None
    assert best_partner(workspace.runs / "two", workspace) is None


def test_after_eda(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = [battle(i, i % 2, prompt=[f"q {i // 2}"], response_a=["same"]) for i in range(60)]
    write_csv(Path("my votes.csv"), repeated)
    commands = commands_of(cli("eda", "my votes.csv"))
    assert commands == [
        "prefcli train 'my votes.csv' --recipe fast",
        "prefcli eda 'my votes.csv' --export problems.csv",
    ]
    run_all(cli, commands, monkeypatch)
    done = cli("eda", "my votes.csv", "--report", "page.html")
    assert commands_of(done)[1] == "prefcli eda 'my votes.csv' --report page.html --export problems-2.csv --force"
    run_all(cli, commands_of(done)[1:], monkeypatch)
    commands = commands_of(cli("eda", "train.csv"))
    assert commands[1] == "prefcli eda train.csv --report eda.html"
    run_all(cli, commands[1:], monkeypatch)
    assert commands_of(cli("eda", "test.csv"))[0] == "prefcli predict test.csv"
    write_csv(Path("few.csv"), [battle(i, i % 3) for i in range(3)])
    assert commands_of(cli("eda", "few.csv")) == ["prefcli eda few.csv --report eda-2.html"]


def test_how_a_file_is_read_and_the_workspace_are_carried_over(
    cli: CLI, demo_files: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, *rows = demo_files.train.read_text().splitlines(keepends=True)
    header = header.replace("prompt,response_a,response_b", "问题,左,右", 1)
    Path("数据 1.csv").write_text(header + "".join(rows[:60]), encoding="gb18030")
    Path("数据 2.csv").write_text(header + "".join(rows[-60:]), encoding="gb18030")
    given = ["--columns", "prompt=问题,response_a=左,response_b=右", "--encoding", "gb18030", "--workspace", "my ws"]
    done = cli("eda", "数据 1.csv", *given)
    how = "'数据 1.csv' --columns 'prompt=问题,response_a=左,response_b=右' --encoding gb18030"
    assert commands_of(done) == [
        f"prefcli train {how} --recipe fast --workspace 'my ws'",
        "prefcli eda '数据 1.csv' --columns 'prompt=问题,response_a=左,response_b=右' --encoding gb18030 "
        "--workspace 'my ws' --report eda.html",
    ]
    trained, _ = run_all(cli, commands_of(done), monkeypatch)
    report, compare = commands_of(trained)
    assert report.startswith("prefcli report ")
    assert report.endswith(" --workspace 'my ws'")
    run_all(cli, [report, compare], monkeypatch)
    itself = cli("predict", "数据 1.csv", *given, "--output", "itself.csv")
    assert commands_of(itself) == []  # its score would mean nothing, and the page is there
    predicted = cli("predict", "数据 2.csv", *given)
    how = how.replace("1.csv", "2.csv")
    assert commands_of(predicted)[0] == f"prefcli score preds.csv {how} --workspace 'my ws'"
    (scored,) = run_all(cli, commands_of(predicted), monkeypatch)
    assert "--columns" in commands_of(scored)[0]
    run_all(cli, commands_of(scored), monkeypatch)
    monkeypatch.setenv("PREFCLI_WORKSPACE", "my ws")
    assert "--workspace" not in "".join(commands_of(cli("runs")))


def test_after_preprocess(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(cli("preprocess", "train.csv", "--preview", "2", "--text", "raw"))
    assert command == "prefcli preprocess train.csv --text raw"
    (done,) = run_all(cli, [command], monkeypatch)
    assert commands_of(done) == ["prefcli train", "prefcli train --recipe fast"]
    workspace = Workspace(here / ".prefcli")
    assert find_data(None, workspace, TrainOptions(), SILENT).text == "raw"  # what train without a file trains on
    assert commands_of(cli("preprocess", "test.csv")) == ["prefcli predict test.csv"]
    write_csv(Path("few.csv"), [battle(0)])
    assert commands_of(cli("preprocess", "few.csv")) == []  # nothing can be held out of it


def test_after_train_and_predict(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = cli("train", "train.csv", "--recipe", "fast", "--output", "runs/a b")
    predict, report = commands_of(trained)
    assert (predict, report) == ("prefcli predict test.csv", "prefcli report 'runs/a b'")
    predicted, reported = run_all(cli, [predict, report], monkeypatch)
    assert commands_of(reported) == []  # it recommends by itself
    assert "prefcli train train.csv --config 'runs/a b/config.json'" in reported.out
    assert commands_of(predicted) == ["prefcli report 'runs/a b'"]
    done = cli("runs", "show", "runs/a b")
    assert commands_of(done) == []  # the page is there
    write_csv(Path("new.csv"), [battle(i, i % 3) for i in range(40)])
    predicted = cli("predict", "new.csv", "--model", "one", "--output", "known.csv")
    assert commands_of(predicted) == ["prefcli score known.csv new.csv", "prefcli report one"]
    run_all(cli, commands_of(predicted), monkeypatch)
    for flags in (["--limit", "5"], ["--activation", "none"]):  # they cannot be scored against the whole file, or so
        part = cli("predict", "new.csv", "--model", "one", "--output", "part.csv", "--force", *flags)
        assert commands_of(part) == []
    Path("test.csv").unlink()
    everything = cli("train", "train.csv", "--recipe", "fast", "--validation", "0", "--output", "all")
    pair = f"prefcli compare {next_steps.PAIR}"
    assert commands_of(everything) == [pair]
    (compared,) = run_all(cli, [pair], monkeypatch)
    assert "answering with all" in compared.err
    config = json.loads(Path("all/config.json").read_text())
    config["options"]["encoder"] = "tiny"  # as where the default encoder could not be had
    Path("all/config.json").write_text(json.dumps(config))
    session = Session(Workspace(".prefcli"), SILENT, json=False, is_main_process=True)
    steps = next_steps.after_train(session, Path("all"), held_out=False)
    assert [step.command for step in steps] == ["prefcli train train.csv --recipe fast", pair]
    config["options"]["architecture"] = "reward"  # which fast does not train
    Path("all/config.json").write_text(json.dumps(config))
    assert next_steps.after_train(session, Path("all"), held_out=False)[0].command == pair
    config["options"]["architecture"] = "siamese"
    config["origins"]["encoder"] = "flag"
    Path("all/config.json").write_text(json.dumps(config))
    assert next_steps.after_train(session, Path("all"), held_out=False)[0].command == pair


def test_the_page_of_a_run_names_the_file_that_is_there(tmp_path: Path) -> None:
    facts = advice.RunFacts("r", "v.csv", TrainOptions(), (), 0.0, None, advice.command_words(Source("d/my test.csv")))
    assert facts.predict("--swap-average") == "prefcli predict 'd/my test.csv' --model r --swap-average"
    assert advice.find_test(Path("data/train.csv")) is None
    Path("data").mkdir()
    Path("data/test.parquet").write_bytes(b"")
    assert advice.find_test(Path("data/train.csv")) == Path("data/test.parquet")
    assert advice.find_test(tmp_path / "data/test.parquet") is None  # it is what was trained on


def test_after_score(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("predict", "train.csv", "--quiet").code == 0
    commands = commands_of(cli("score", "preds.csv", "train.csv", "--renormalize"))
    assert commands == [
        "prefcli score preds.csv train.csv --renormalize --report scores.html",
        "prefcli score preds.csv train.csv --renormalize --by length",
    ]
    run_all(cli, commands, monkeypatch)
    assert cli("predict", "test.csv", "--quiet", "--force").code == 0
    only_page = commands_of(cli("score", "preds.csv", "labels.csv"))  # the labels have no texts
    assert only_page == ["prefcli score preds.csv labels.csv --report scores-2.html"]
    run_all(cli, only_page, monkeypatch)
    both = cli("score", "preds.csv", "labels.csv", "--report", "x.html")
    assert commands_of(both) == []


def test_after_rank(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"q {i}", "responses": ["one answer", "another", "a third"]} for i in range(3)]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = commands_of(cli("rank", "answers.jsonl", "--model", "one"))
    assert commands == [
        "prefcli rank answers.jsonl --model one --best best.jsonl --force",
        "prefcli rank answers.jsonl --model one --pairs pairs.jsonl --force",
    ]
    run_all(cli, commands, monkeypatch)
    Path("test.csv").unlink()
    shutil.move("answers.jsonl", "test.jsonl")  # answers to rank, where battles to predict are looked for
    session = Session(Workspace(".prefcli"), SILENT, json=False, is_main_process=True)
    step = next_steps.after_train(session, here / ".prefcli/runs/one", held_out=True)[0]
    assert step.command == "prefcli rank test.jsonl --output ranked-2.jsonl"
    run_all(cli, [step.command], monkeypatch)


def test_after_runs(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands_of(cli("runs")) == ["prefcli report one"]
    assert commands_of(cli("runs", "--where", "text=light")) == []  # there are runs, but not such
    make_partners(Workspace(here / ".prefcli"))
    listed = commands_of(cli("runs"))
    assert sorted(listed[0].split()[3:]) == ["one", "two"]
    assert listed[0].startswith("prefcli runs compare ")
    assert commands_of(cli("runs", "diff", "one", "two")) == ["prefcli runs compare one two"]
    run_all(cli, listed[:1], monkeypatch)
    (shown,) = commands_of(cli("runs", "show", "one"))
    assert shown == "prefcli report one"
    (here / ".prefcli/runs/two/unfinished").write_text("")
    assert commands_of(cli("runs"))[0] == "prefcli train --resume two"
    assert commands_of(cli("runs", "show", "two")) == ["prefcli train --resume two"]
    (here / ".prefcli/runs/one/checkpoints").mkdir()
    (here / ".prefcli/runs/one/checkpoints/step-1").write_text("x")
    (prune,) = commands_of(cli("runs", "prune"))
    assert prune == "prefcli runs prune --yes"
    run_all(cli, [prune], monkeypatch)
    assert commands_of(cli("runs", "--workspace", "empty")) == [
        "prefcli train train.csv --recipe fast --workspace empty"
    ]
    Path("train.csv").unlink()
    Path("prefcli-demo").mkdir()
    assert commands_of(cli("runs", "--workspace", "empty"))[0].startswith("prefcli demo prefcli-demo-2")


def test_nothing_is_recommended_quietly_as_json_or_for_standard_input(
    cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["eda", "train.csv"], ["runs"], ["predict", "test.csv", "--force"]):
        assert not any("Next: " in cli(*arguments, flag).err for flag in ("--quiet", "--json"))
    stdin = io.TextIOWrapper(io.BytesIO(Path("train.csv").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert commands_of(cli("eda", "-")) == []


def test_after_export_ablate_and_demo(cli: CLI, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Workspace(".prefcli"), SILENT, json=False, is_main_process=True)
    run, export = session.workspace.runs / "one", Path("small export")
    shutil.copytree(run, export)
    commands = [step.command for step in next_steps.after_export(session, run, export)]
    assert commands == ["prefcli predict test.csv --model 'small export'", "prefcli runs diff one 'small export'"]
    run_all(cli, commands, monkeypatch)
    (step,) = next_steps.after_ablate(session, Path(".prefcli/runs"))
    assert "one" in run_all(cli, [step.command], monkeypatch)[0].out
    shutil.copytree(here / ".prefcli", "my demo/.prefcli")
    steps = next_steps.after_demo(session, Path("my demo"), run)
    assert [step.command for step in steps] == [
        "cd 'my demo' && prefcli report .prefcli/runs/one",
        "cd 'my demo' && prefcli train train.csv --recipe fast",
    ]
    run_all(cli, [steps[0].command], monkeypatch)  # the second is like one of the others

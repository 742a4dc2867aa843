"""What new users type wrongly: each mistake is said in a line or two with what to do, before any long work."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result, battle, write_csv

import prefcli
from prefcli import metrics
from prefcli.battles import ReadCounts, Source
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, plural
from prefcli.options import TrainOptions, read_config
from prefcli.pipeline.ablate import SETTINGS, Row, _describe, cells
from prefcli.readers import open_candidates
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]


@pytest.fixture
def train(demo_files: Demo) -> Path:
    return demo_files.train


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network must not even be asked."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def error_of(done: Result) -> list[str]:
    """The lines of the error, without "error: " and indentation."""
    lines = done.err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    return [line.removeprefix("error: ").strip() for line in lines[first:]]


@pytest.mark.parametrize("verb", ["eda", "score", "report"])
def test_a_page_that_is_not_html_is_refused_and_nothing_is_read(
    verb: str, cli: CLI, train: Path, features_run: Path
) -> None:
    Path("folder").mkdir()
    arguments = {
        "eda": ["eda", train, "--report"],
        "score": ["score", train, train, "--report"],
        "report": ["report", features_run, "--output"],
    }[verb]
    for name, expected in (
        ("x.pdf", ["the page is HTML, and x.pdf is not called .html", "Name it x.html. A browser prints it as PDF."]),
        ("page", ["the page is HTML, and page is not called .html", "Name it page.html."]),
        ("folder", ["folder is a folder, and the page is one file", "Name it: folder/page.html"]),
    ):
        done = cli(*arguments, name, "--force")
        assert (done.code, error_of(done)) == (2, expected)
        assert len(done.err.splitlines()) == 2
    assert [path.name for path in Path().iterdir()] == ["folder"]


def test_an_output_that_is_a_folder_or_in_a_file_is_refused_before_anything_is_read(
    cli: CLI, demo_files: Demo, features_run: Path
) -> None:
    Path("d.csv").mkdir()
    Path("d.jsonl").mkdir()
    Path("file").write_text("")
    for output, arguments in (
        ("d.csv", ["predict", demo_files.test, "--model", features_run, "--output"]),
        ("d.csv", ["eda", demo_files.train, "--export"]),
        ("d.jsonl", ["rank", demo_files.test, "--model", features_run, "--output"]),
    ):
        done = cli(*arguments, output, "--force")
        assert (done.code, error_of(done)) == (
            2,
            [f"{output} is a folder, and the output is a file", "Name a file in it."],
        )
        done = cli(*arguments, f"file/{output}")
        inside = f"file/{output} cannot be written: {Path('file').absolute()} is not a folder"
        assert (done.code, error_of(done)) == (2, [inside, "Choose another name."])
    done = cli("predict", demo_files.test, "--output", "preds.xlsx")
    assert error_of(done)[-1] == "Name it .csv, .parquet or .jsonl."


def test_a_missing_file_is_said_before_the_network_is_asked(cli: CLI, train: Path, no_network: None) -> None:
    remote = ["--model", "hf://owner/run"]
    for missing, arguments in (
        ("nope.csv", ["train", "nope.csv"]),
        ("nope.csv", ["train", "nope.csv", "--push-to", "me/run"]),
        ("nope.csv", ["train", "nope.csv", "--estimate"]),
        ("nope.csv", ["train", train, "--validation-file", "nope.csv"]),
        ("nope.csv", ["train", train, "--soft-labels", "nope.csv"]),
        ("nope.csv", ["ablate", "nope.csv"]),
        ("nope.csv", ["ablate", train, "--validation-file", "nope.csv"]),
        ("nope.csv", ["predict", "nope.csv", *remote]),
        ("nope.csv", ["predict", "nope.csv", *remote, "--estimate"]),
        ("nope.csv", ["predict", train, *remote, "--calibrate", "nope.csv"]),
        ("nope.jsonl", ["rank", "nope.jsonl", *remote]),
        ("nope.csv", ["eda", train, "--test", "nope.csv"]),
        ("nope.csv", ["eda", train, "--judge", "nope.csv"]),
        ("nope.csv", ["score", "nope.csv", train]),
        ("nope.csv", ["score", train, "nope.csv"]),
    ):
        done = cli(*arguments)
        assert (done.code, error_of(done)) == (2, ["no such file", f"in {missing}", "Check the path."]), arguments
        assert len(done.err.splitlines()) == 3, arguments
    Path("run").write_text("")
    assert error_of(cli("train", train, "--output", "run")) == ["run already exists", "Choose another --output."]
    assert "no battles to train on" in cli("train").err


def test_a_similar_file_is_similar_but_for_its_suffix(cli: CLI, train: Path) -> None:
    Path("prices.csv").write_text("")
    Path("votes.parquet").write_text("")
    for name, hint in (
        ("nope.csv", "Check the path."),
        ("price.csv", "Did you mean prices.csv?"),
        ("votes.csv", "Did you mean votes.parquet?"),
    ):
        assert error_of(cli("eda", name))[-1] == hint


def test_a_run_given_as_configuration_is_led_to_its_file(cli: CLI, train: Path) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    for name, hint in (("run", f"Name the file in it: {Path('run/config.json')}"), ("nope.toml", "Check the path.")):
        assert error_of(cli("train", train, "--config", name))[-1] == hint


def test_one_file_to_score_is_a_file_too_few(cli: CLI, train: Path) -> None:
    assert error_of(cli("score", train))[0] == "missing a file: predictions and labels are needed"


def test_a_file_of_a_similar_name_is_suggested_and_a_folder_names_its_file(cli: CLI, train: Path) -> None:
    Path("data").mkdir()
    Path("data/votes.csv").write_bytes(train.read_bytes())
    done = cli("eda", "data/vote.csv")
    assert error_of(done) == ["no such file", "in data/vote.csv", "Did you mean votes.csv?"]
    for arguments in (["eda", "data"], ["train", "data"], ["predict", "data"], ["score", "data", train]):
        expected = ["expected a file, found a folder", "in data", "Name a file: data/votes.csv."]
        assert error_of(cli(*arguments)) == expected, arguments
    Path("data/config.json").write_text('{"options": {}, "outcomes": []}')
    assert error_of(cli("predict", "data"))[2] == "It is a run: --model names runs."


def test_a_tilde_is_the_home_folder_in_flags_options_and_configurations(
    cli: CLI, train: Path, demo_files: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "train.csv").write_text("".join(train.read_text().splitlines(keepends=True)[:61]))
    assert cli("eda", "~/train.csv", "--report=~/page.html", "--workspace=~/ws", "--quiet").code == 0
    assert {path.name for path in home.iterdir()} == {"train.csv", "page.html", "ws"}
    write_csv(home / "later.csv", [battle(i, i % 3) for i in range(9)])
    (home / "run.toml").write_text('recipe = "fast"\nvalidation_file = "~/later.csv"\n')
    done = cli("train", "~/train.csv", "--config=~/run.toml", "--output=~/run", "--workspace=~/ws", "--json")
    assert Path(done.json()["run"]) == home / "run"
    done = cli("predict", demo_files.test, "--model=~/run", "--output=~/preds.csv", "--workspace=~/ws", "--json")
    assert done.json()["output"] == str(home / "preds.csv")
    assert Source("~/train.csv").paths == (home / "train.csv",)  # type: ignore[arg-type]  (as the API is called)
    assert Workspace("~/ws").root == home / "ws"
    assert TrainOptions(encoder="~/bert", soft_labels="~/p.csv").soft_labels == str(home / "p.csv")
    assert Source("~$votes.csv").paths == (Path("~$votes.csv"),)  # type: ignore[arg-type]  (Excel's lock files)
    assert not Path("~").exists()


def test_an_excel_file_is_named_with_the_way_out(cli: CLI, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile("votes.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    Path("old.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    for name in ("votes.xlsx", "old.xls"):
        for verb in ("eda", "train", "predict"):
            lines = error_of(cli(verb, name, *(["--recipe", "fast"] if verb == "train" else [])))
            if verb == "predict":  # there is no run yet, which is said first
                continue
            assert lines[0].startswith("this is an Excel file")
            assert lines[-1] == (
                "Save the sheet as CSV: in Excel by Save As, CSV UTF-8; or by "
                "pandas.read_excel(FILE).to_csv('votes.csv')."
            )


def test_a_configuration_that_is_another_file_is_said(cli: CLI, train: Path) -> None:
    kinds = "A configuration is a TOML file, such as epochs = 2, or the config.json in a run's folder."
    none = "not the configuration of a run: it has no options"
    for name, text, expected in (
        ("package.json", '{"name": "x", "version": "1.0.0"}', none),
        ("list.json", "[1, 2]", none),
        ("null.json", '{"options": null}', none),
        ("cut.json", '{"options": {', "not valid JSON: "),
        ("run.yaml", "epochs: 2\n", "not valid TOML: "),
    ):
        Path(name).write_text(text)
        done = cli("train", train, "--config", name)
        what, where, hint = error_of(done)
        assert (done.code, where, hint) == (2, f"in {name}", kinds)
        assert what.startswith(expected)
    Path("marked.toml").write_text("epochs = 2\n", encoding="utf-8-sig")  # as Windows' editor writes it
    assert read_config(Path("marked.toml")) == {"epochs": 2}


def test_a_preview_is_json_if_asked(cli: CLI) -> None:
    write_csv(Path("votes.csv"), [battle(1, prompt=["你好，世界", "The cats?"], response_a=["x" * 400])])
    done = cli("preprocess", "votes.csv", "--preview", 1, "--json")
    (preview,) = done.json()["preview"]
    assert preview["id"] == "1"
    assert preview["prompt"] == {"before": "你好，世界\nThe cats?", "after": "你好世界\ncat"}
    assert preview["response_a"]["before"] == "x" * 400  # not cut


def test_one_thing_is_not_many() -> None:
    assert [plural(n, "battle") for n in (0, 1, 2, 1200)] == ["0 battles", "1 battle", "2 battles", "1,200 battles"]
    assert [plural(n, "question has", "questions have") for n in (1, 2)] == ["1 question has", "2 questions have"]
    assert all(" rows " not in f" {text} " for text in ReadCounts(1, 1, 1, 1, 1, 1, 1, 1, 1).warnings())
    assert ReadCounts(skipped=2).warnings() == ["2 rows left out: no battles (no votes, or fewer than two answers)"]


def test_no_message_counts_one_battle_as_many(cli: CLI, features_run: Path) -> None:
    write_csv(Path("one.csv"), [battle(1, 0)])
    for arguments in (
        ["eda", "one.csv", "--all"],
        ["preprocess", "one.csv"],
        ["predict", "one.csv", "--model", features_run],
        ["score", "preds.csv", "one.csv"],
        ["eda", "one.csv", "--report", "page.html", "--export", "problems.csv", "--json"],
    ):
        done = cli(*arguments)
        assert done.code == 0, done.err
        texts = [done.err, Path("page.html").read_text() if "page.html" in arguments else done.out]
        for word in ("battles", "prompts", "models", "rows", "votes", "answers", "decided battles", "problems"):
            assert not any(f" 1 {word}" in f" {text}" for text in texts)


def test_a_difference_that_rounds_to_zero_has_no_sign() -> None:
    assert [metrics.signed(x) for x in (-1e-9, 4.9e-5, 0.0, -0.01234, 0.5)] == [
        "0.0000", "0.0000", "0.0000", "-0.0123", "+0.5000",
    ]  # fmt: skip
    assert metrics.signed_interval((-0.00001, 0.02)) == "0.0000 to +0.0200"
    score = prefcli.score([[0.5, 0.25, 0.25]] * 3, [0, 1, 2])
    tiny = metrics.Difference(n=3, prompts=3, difference=1e-6, ci=(5e-7, 2e-5), p=0.001, reason="")
    rows = [Row(setting, score, (), tiny) for setting in SETTINGS]
    claims = _describe(rows, "")
    assert "costs" not in claims
    assert claims.count("makes a difference of less than 0.0001 (0.0000 to 0.0000)") == 3
    assert "-0.0000" not in " ".join(map(str, np.ravel([cells(row) for row in rows])))


def test_an_unlabelled_file_is_named_where_outcomes_are_needed(cli: CLI, demo_files: Demo) -> None:
    done = cli("train", demo_files.test, "--recipe", "fast")
    assert done.code == 2
    assert error_of(done)[0] == "no battle has an outcome, so there is nothing to train on"
    assert json.loads(cli("eda", demo_files.test, "--json").out)["labelled"] == 0


def test_columns_of_other_names_are_proposed_by_their_texts(cli: CLI) -> None:
    rows = [
        {
            "编号": f"r{i}",
            "问题": f"天气如何 {i}",
            "模型": "m",
            "回答A": "今天是晴天",
            "回答B": "今天下雨了",
            "结果": "左",
        }
        for i in range(3)
    ]
    write_csv(Path("导出.csv"), rows, list(rows[0]))
    done = cli("eda", "导出.csv")
    option = "--columns 'prompt=问题,response_a=回答A,response_b=回答B'"
    assert error_of(done)[-1] == f"If these are prompt and answers, name them: {option}"
    assert cli("eda", "导出.csv", *shlex.split(option)).code == 0
    reversed_way = cli("eda", "导出.csv", "--columns", "问题=prompt,回答A=response_a,回答B=response_b")
    assert error_of(reversed_way)[-1] == "Did you mean prompt=问题? The known name comes first."


def test_text_in_another_encoding_names_it(cli: CLI) -> None:
    for name, text, encoding, proposed in (
        ("excel.csv", "问题,回答A,回答B\n你好,很好,不好\n", "gb18030", "gb18030 (if it is Chinese)"),
        ("windows.csv", "prompt,réponse_a,response_b\nx,y,z\n", "cp1252", "cp1252"),
        ("cell.csv", "prompt,response_a,response_b\n你好,很好,不好\n", "gb18030", "gb18030 (if it is Chinese)"),
        (
            "lines.jsonl",
            '{"prompt": "你好", "response_a": "很好", "response_b": "x"}\n',
            "gb18030",
            "gb18030 (if it is Chinese)",
        ),
    ):
        Path(name).write_text(text, encoding=encoding)
        hint = f"Save the file as UTF-8, or name its encoding: --encoding {proposed}"
        assert error_of(cli("eda", name))[-1] == hint, name


def test_predictions_given_for_battles_are_named(cli: CLI, train: Path) -> None:
    Path("submission.csv").write_text("id,winner_model_a,winner_model_b,winner_tie\n1,0.2,0.3,0.5\n")
    for verb in ("eda", "preprocess", "train"):
        done = cli(verb, "submission.csv", *(["--recipe", "fast"] if verb == "train" else []))
        assert error_of(done) == [
            "these are predictions, or labels, without prompts and answers",
            "in submission.csv",
            "Name the file of battles. Predictions are scored by: prefcli score PREDS LABELS",
        ]


def test_unknown_words_for_the_winner_are_listed_to_be_completed(cli: CLI) -> None:
    words = ["Model A is better", "Both equal", "Model A is better", "tie"]
    rows = [battle(i) | {"winner": word} for i, word in enumerate(words)]
    write_csv(Path("votes.csv"), rows, ["id", "prompt", "response_a", "response_b", "winner"])
    rule = "winner: Model A is better=a|b|tie, Both equal=a|b|tie, tie=tie"  # complete: it replaces the usual words
    assert f"Other words: --outcome '{rule}';" in error_of(cli("eda", "votes.csv"))[-1]
    completed = "winner: Model A is better=a, Both equal=tie, tie=tie"
    assert cli("eda", "votes.csv", "--outcome", completed, "--json").json()["labelled"] == 4


def test_files_without_outcomes_say_so_where_they_are_needed(cli: CLI, demo_files: Demo) -> None:
    done = cli("score", demo_files.truth, demo_files.test)
    assert error_of(done)[-1] == "Labels are battles with outcomes."
    done = cli("train", demo_files.test, "--recipe", "fast")
    assert error_of(done)[-1] == (
        "Train on battles with outcomes, such as train.csv. Is it in a column of another name? See --outcome."
    )
    Path("blank.csv").write_text("\nprompt,response_a,response_b\n")
    assert error_of(cli("eda", "blank.csv"))[-1] == "Remove it."


def test_a_folder_without_permission_is_said_before_anything_is_read(
    cli: CLI, demo_files: Demo, features_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who may write everywhere."""
    Path("closed").mkdir()
    allowed = os.access
    closed = Path("closed").absolute()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() != closed and allowed(path, mode))
    for arguments in (
        ["eda", demo_files.train, "--report", "closed/x.html"],
        ["eda", demo_files.train, "--export", "closed/new/x.csv"],
        ["predict", demo_files.test, "--model", features_run, "--output", "closed/x.csv"],
        ["report", features_run, "--output", "closed/x.html"],
    ):
        done = cli(*arguments)
        assert (done.code, error_of(done)[0]) == (1, "no permission to write")
        assert len(done.err.splitlines()) == 3


def test_until_ctrl_c_is_handled_nothing_but_the_package_is_imported() -> None:
    code = "import sys; before = set(sys.modules); import prefcli.__main__; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - {"__future__"} == {"prefcli", "prefcli.__main__", "prefcli._version"}


def test_an_address_and_a_file_named_twice_are_refused(cli: CLI) -> None:
    for address in ("https://example.com/train.csv", "hf://datasets/lmsys/votes", "s3://bucket/votes.jsonl"):
        assert error_of(cli("eda", address))[-1] == "Files are read from this machine: download it first."
    write_csv(Path("votes.csv"), [battle(1)], ["prompt", "response_a", "response_b", "winner_model_a"])
    Path("link.csv").symlink_to("votes.csv")
    for other in ("votes.csv", "./votes.csv", "link.csv"):  # without ids each battle would count twice
        assert error_of(cli("eda", "votes.csv", other))[-1] == "Name each of the files once."
    Path("answers.jsonl").write_text('{"prompt": "q", "responses": ["a", "b"]}\n')
    with pytest.raises(InputError, match="named twice"):
        open_candidates(Source(("answers.jsonl", "answers.jsonl")))  # type: ignore[arg-type]

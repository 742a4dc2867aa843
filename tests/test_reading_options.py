"""How files are read, said once: by flags, a file or Python, kept in stages and runs, and used again to predict."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import Result

import prefcli
from prefcli import pipeline
from prefcli.battles import Source
from prefcli.data import tables
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError, ModelError
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.readers import battles_from, open_battles
from prefcli.storage import runs
from prefcli.storage.workspace import Workspace

CLI = Callable[..., Result]
COLUMNS = "id=key,prompt=task.question,response_a=left,response_b=right"
OUTCOME = "vote: l=a, r=b, same=tie"


def own_rows(file: Path) -> list[dict[str, Any]]:
    """The demo's battles under names that no layout has."""
    rows = []
    for batch, _ in open_battles(file).batches():
        for row in batch.to_pylist():
            texts = {name: "\n".join(filter(None, row[name])) for name in ("prompt", "response_a", "response_b")}
            vote = None if row["label"] is None else ("l", "r", "same")[row["label"]]
            rows.append(
                {
                    "key": row["id"],
                    "task": {"question": texts["prompt"]},
                    "left": texts["response_a"],
                    "right": texts["response_b"],
                    "vote": vote,
                }
            )
    return rows


def write(path: Path, rows: list[dict[str, Any]], without: str = "") -> Path:
    kept = [{name: cell for name, cell in row.items() if name != without} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, demo_files: Demo) -> dict[str, Path]:
    """Votes and unlabelled battles under own names, and a run that was trained on the votes."""
    folder = tmp_path_factory.mktemp("own")
    votes = write(folder / "votes.jsonl", own_rows(demo_files.train))
    new = write(folder / "new.jsonl", own_rows(demo_files.test), without="vote")
    source = Source((votes,), columns=dict(part.split("=") for part in COLUMNS.split(",")), outcome=OUTCOME)
    run = prefcli.train(source, recipe="fast", output=folder / "run", workspace=folder / "ws").run
    return {"votes": votes, "new": new, "run": run, "workspace": folder / "ws"}


def probabilities(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: [float(row[name]) for name in WINNER_COLUMNS] for row in csv.DictReader(file)}


# The same from flags, a file and Python


def test_a_layout_file_says_the_same_as_flags_which_win(cli: CLI, own: dict[str, Path]) -> None:
    layout = Path("ours.toml")
    columns = "id = 'key'\nprompt = 'task.question'\nresponse_a = 'nowhere'\nresponse_b = 'right'\n"
    layout.write_text(f"outcome = '{OUTCOME}'\n[columns]\n{columns}")
    flags = cli("eda", own["votes"], "--columns", COLUMNS, "--outcome", OUTCOME, "--json").json()
    assert flags["labelled"] == 240
    assert cli("eda", own["votes"], "--layout", layout, "--columns", "response_a=left", "--json").json() == flags
    assert "nowhere" in cli("eda", own["votes"], "--layout", layout).err
    layout.write_text("outcom = 'x'\n")
    refused = cli("eda", own["votes"], "--layout", layout)
    assert refused.code == 2
    assert "Did you mean outcome?" in refused.err


@pytest.mark.parametrize("verb", ["eda", "preprocess", "train", "predict", "ablate", "score"])
def test_every_verb_that_takes_files_takes_the_options(cli: CLI, verb: str) -> None:
    text = cli(verb, "--help").out
    panel = text[text.index("\nReading the file:") :]
    for flag in ("--format", "--columns", "--outcome", "--each", "--encoding", "--layout"):
        assert panel.count(f"  {flag} ") == 1
        assert text.count(f"\n  {flag} ") == 1


def test_options_without_a_file_are_refused(cli: CLI) -> None:
    assert "--columns says how FILE is read" in cli("train", "--columns", "prompt=q").err
    assert "--outcome" in cli("train", "--resume", "run", "--outcome", "x: a=a").err


# Kept with stages and runs


def test_a_mapping_is_part_of_the_stage(own: dict[str, Path], workspace: Workspace) -> None:
    columns = dict(part.split("=") for part in COLUMNS.split(","))
    source = Source((own["votes"],), columns=columns, outcome=OUTCOME)
    other = Source((own["votes"],), columns=columns, outcome="vote: l=b, r=a, same=tie")
    stages = [pipeline.read_stage(part, workspace) for part in (source, other, source)]
    assert [stage.reused for stage in stages] == [False, False, True]
    labels = [stage.table(["label"])["label"].to_pylist() for stage in stages]
    assert labels[1] == [{0: 1, 1: 0}.get(label, label) for label in labels[0]]


def test_a_run_keeps_how_its_battles_were_read(own: dict[str, Path]) -> None:
    assert runs.reading_of(own["run"]) == {
        "columns": dict(part.split("=") for part in COLUMNS.split(",")),
        "outcome": OUTCOME,
    }


@pytest.mark.parametrize(
    "damage", [{"columns": 5}, {"columns": {"prompt": 1}}, {"columns": ["prompt"]}, {"outcome": 3}]
)
def test_a_damaged_record_of_how_battles_were_read_is_refused(own: dict[str, Path], damage: dict[str, Any]) -> None:
    config = json.loads((own["run"] / runs.CONFIG).read_text())
    config["data"]["source"] |= damage
    Path("damaged").mkdir()
    Path("damaged", runs.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        runs.reading_of(Path("damaged"))


@pytest.mark.slow
def test_a_run_begun_with_another_mapping_is_not_continued(own: dict[str, Path]) -> None:
    columns = dict(part.split("=") for part in COLUMNS.split(","))
    source = Source((own["votes"],), columns=columns, outcome=OUTCOME)
    run = prefcli.train(source, recipe="fast", limit=60, output="begun", workspace=own["workspace"]).run
    (run / runs.UNFINISHED).touch()
    other = Source((own["votes"],), columns=columns, outcome="vote: l=b, r=a, same=tie")
    with pytest.raises(InputError, match="other battles or options"):
        prefcli.train(other, recipe="fast", limit=60, output="begun", workspace=own["workspace"])
    assert prefcli.train(source, recipe="fast", limit=60, output="begun", workspace=own["workspace"]).run == run


@pytest.mark.slow
def test_predict_reads_new_battles_as_the_run_did_unless_their_columns_differ(
    cli: CLI, own: dict[str, Path], demo_files: Demo
) -> None:
    done = cli("predict", own["new"], "--model", own["run"], "--workspace", own["workspace"], "-o", "own.csv")
    assert done.code == 0, done.err
    assert "read as the run's training battles (--columns id=key,prompt=task.question" in done.err
    done = cli("predict", demo_files.test, "--model", own["run"], "--workspace", own["workspace"], "-o", "kaggle.csv")
    assert done.code == 0, done.err
    assert "recognised by its columns, which are not those of the run's training battles" in done.err
    named = ["--columns", COLUMNS, "--outcome", OUTCOME]
    done = cli("predict", own["new"], *named, "--model", own["run"], "--workspace", own["workspace"], "-o", "named.csv")
    assert done.code == 0, done.err
    assert probabilities(Path("own.csv")) == probabilities(Path("named.csv"))
    assert list(probabilities(Path("own.csv"))) == list(probabilities(Path("kaggle.csv")))


@pytest.mark.slow
def test_a_mapping_applies_to_every_file_of_a_command(cli: CLI, own: dict[str, Path]) -> None:
    flags = ["--columns", COLUMNS, "--outcome", OUTCOME]
    model = ["--model", own["run"], "--workspace", own["workspace"]]
    done = cli("predict", own["votes"], *flags, *model, "--calibrate", own["votes"], "-o", "p.csv")
    assert done.code == 2  # all of them share a prompt with the battles to predict: the file was read
    assert "prompt" in done.err
    assert cli("predict", own["votes"], *flags, *model, "-o", "p.csv").code == 0
    scored = cli("score", "p.csv", own["votes"], *flags, "--json").json()
    assert scored["n"] == 240
    without = cli("score", "p.csv", own["votes"], "--workspace", own["workspace"], "--json")
    assert "read as the run's training battles" in without.err
    assert without.json()["log_loss"] == scored["log_loss"]
    seen = cli("eda", own["votes"], *flags, "--test", own["new"], "--json")
    assert seen.code == 0, seen.err
    lines = own["votes"].read_text(encoding="utf-8").splitlines(keepends=True)
    Path("early.jsonl").write_text("".join(lines[:180]), encoding="utf-8")
    Path("late.jsonl").write_text("".join(lines[180:]), encoding="utf-8")
    trained = cli(
        "train", "early.jsonl", *flags, "--recipe", "fast", "--validation-file", "late.jsonl", "-o", "run", "--json"
    )
    assert trained.code == 0, trained.err
    assert trained.json()["validation"]["n"] == 60


# Tables and lines


def test_tables_and_lines_are_read_as_the_run_was_trained_or_as_is_said(own: dict[str, Path]) -> None:
    judge = prefcli.load(own["run"])
    rows = [json.loads(line) for line in own["new"].read_text().splitlines()][:5]
    plain = [{"prompt": row["task"]["question"], "response_a": row["left"], "response_b": row["right"]} for row in rows]
    expected = judge.predict(plain)
    np.testing.assert_array_equal(judge.predict(rows), expected)
    np.testing.assert_array_equal(judge.predict(pa.Table.from_pylist(rows)), expected)
    other = pd.DataFrame(plain).rename(columns={"prompt": "ask"})
    np.testing.assert_array_equal(judge.predict(other, columns={"prompt": "ask"}), expected)
    with pytest.raises(InputError, match="unknown column promt"):
        judge.predict(other, columns={"promt": "ask"})
    lines = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())
    answers = [answer.value for part in judge.answers(lines) for answer in part]
    assert [answer["id"] for answer in answers] == [row["key"] for row in rows]
    np.testing.assert_array_equal([[answer[name] for name in WINNER_COLUMNS] for answer in answers], expected)
    wrong = io.BytesIO(b'{"key": "x7", "left": "a"}\n{"left": "a"}\n{"id": 1, "id": 2}\n')
    assert [answer.value["id"] for part in judge.answers(wrong) for answer in part] == ["x7", None, None]
    swapped = Source((), columns={"prompt": "task.question", "response_a": "right", "response_b": "left"})
    lines.seek(0)
    answers = [answer.value for part in judge.answers(lines, swapped) for answer in part]
    back = judge.predict([{**row, "response_a": row["response_b"], "response_b": row["response_a"]} for row in plain])
    np.testing.assert_array_equal([[answer[name] for name in WINNER_COLUMNS] for answer in answers], back)


def test_a_line_of_several_battles_is_refused(own: dict[str, Path]) -> None:
    judge = prefcli.load(own["run"])
    row = {"prompt": "Hi?", "answers": [{"t": "a", "s": 1}, {"t": "b", "s": 2}, {"t": "c", "s": 3}]}
    lines = io.BytesIO(json.dumps(row).encode())
    (part,) = judge.answers(lines, Source((), each="answers: text=t, score=s"))
    assert "holds 3 battles" in part[0].value["error"]


# Which answer was chosen


def chosen_rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for row in own_rows(file):
        if row["vote"] != "same":
            sides = (row["left"], row["right"])
            first = row["vote"] == "l"
            chosen, rejected = sides[not first], sides[first]
            rows.append({"id": row["key"], "prompt": row["task"]["question"], "chosen": chosen, "rejected": rejected})
    return rows


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_of_chosen_and_rejected_say_which_answer_is_which(
    cli: CLI, own: dict[str, Path], demo_files: Demo, suffix: str
) -> None:
    rows = chosen_rows(demo_files.train)[:40]
    write(Path("pairs.jsonl"), rows)
    output = Path(f"p.{suffix}")
    done = cli("predict", "pairs.jsonl", "--model", own["run"], "--workspace", own["workspace"], "-o", output)
    assert done.code == 0, done.err
    read = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}
    table = read[suffix](output)
    assert list(table.columns) == ["id", *WINNER_COLUMNS, "p_chosen"]
    # Which side is which, from the texts alone.
    battles = [batch for batch, _ in open_battles(Path("pairs.jsonl")).batches()]
    answers = pa.Table.from_batches(battles).to_pylist()
    is_a = np.array([answer["response_a"] == [row["chosen"]] for answer, row in zip(answers, rows, strict=True)])
    assert 0 < is_a.sum() < len(is_a)
    a, b = table["winner_model_a"].to_numpy(), table["winner_model_b"].to_numpy()
    np.testing.assert_allclose(table["p_chosen"], np.where(is_a, a, b) / (a + b), rtol=1e-12)
    scored = cli("score", output, "pairs.jsonl", "--json").json() if suffix != "jsonl" else None
    if scored:
        assert scored["accuracy"] == pytest.approx((table["p_chosen"] > 0.5).mean(), abs=1e-12)


def test_lines_of_chosen_and_rejected_get_the_probability_of_the_chosen(own: dict[str, Path], demo_files: Demo) -> None:
    judge = prefcli.load(own["run"])
    rows = chosen_rows(demo_files.test)[:6] or chosen_rows(demo_files.train)[:6]
    lines = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())
    answers = [answer.value for part in judge.answers(lines) for answer in part]
    for row, answer in zip(rows, answers, strict=True):
        label = battles_from([row]).column("label")[0].as_py()
        won = answer[WINNER_COLUMNS[label]]
        lost = answer[WINNER_COLUMNS[1 - label]]
        assert answer["p_chosen"] == pytest.approx(won / (won + lost), rel=1e-12)


def test_the_probability_of_the_chosen_where_only_ties_are_possible_is_a_half() -> None:
    values = np.array([[0.2, 0.6, 0.2], [0.2, 0.6, 0.2], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(tables.probability_of_chosen(values, np.array([0, 1, 1])), [0.25, 0.75, 0.5])


def test_other_predictions_have_kaggles_columns_only(cli: CLI, own: dict[str, Path], demo_files: Demo) -> None:
    done = cli("predict", demo_files.test, "--model", own["run"], "--workspace", own["workspace"], "-o", "p.csv")
    assert done.code == 0
    assert Path("p.csv").read_text().splitlines()[0] == ",".join(["id", *WINNER_COLUMNS])

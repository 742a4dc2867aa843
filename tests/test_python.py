"""What a Python caller meets: typed options, logging, tables in memory, short texts of results, help."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import logging
import pydoc
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import battle

import prefcli
from prefcli import console, keywords, pipeline, reporting
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.options import PairOptions, PredictOptions, RankOptions, TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.storage.files import to_json

ROOT = Path(__file__).parent.parent
VERBS = [name for name in prefcli.__all__ if name.islower()]
SNIPPET = """\
from pathlib import Path
import prefcli
trained = prefcli.train("train.csv", epochs=1, encoder=Path("deberta"), recipe="fast", swap=True, workspace="w")
prefcli.predict("test.csv", "preds.csv", models=["run", Path("b")], swap_average=True, calibrate="held-out.csv")
prefcli.rank("answers.jsonl", "ranked.jsonl", method="mean-win", pairs="pairs.jsonl", pairs_select="all")
prefcli.estimate([{"prompt": "p"}], folds=5)
prefcli.ablate("train.csv", seeds=2, encoder="tiny")
prefcli.train("train.csv", recipe="fast", seeds=3, num_leaves=8)
prefcli.train("train.csv", epoch=1)  # wrong
prefcli.train("train.csv", epochs="1")  # wrong
prefcli.estimate("train.csv", architecture="siames")  # wrong
prefcli.ablate("train.csv", lr="fast")  # wrong
prefcli.ablate("train.csv", num_leaves=8)  # wrong
prefcli.train("train.csv", seeds="2")  # wrong
prefcli.predict("test.csv", "preds.csv", model="run")  # wrong
prefcli.rank("answers.jsonl", "ranked.jsonl", pairs_select="some")  # wrong
prefcli.nothing("train.csv")  # wrong
"""


@pytest.mark.slow
def test_mypy_checks_the_options_of_the_verbs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    package = [str(ROOT / "prefcli" / name) for name in ("__init__.py", "api.py", "keywords.py")]
    flags = ["--config-file=", "--no-incremental", "--cache-dir=/dev/null", "--follow-imports=skip"]
    out, err, _ = api.run([*flags, "snippet.py", *package])
    assert err == ""
    found = {int(line) for line in re.findall(r"^snippet\.py:(\d+): error", out, flags=re.M)}
    assert found == {number for number, line in enumerate(SNIPPET.splitlines(), 1) if "# wrong" in line}, out


def test_typed_keywords_are_those_of_the_options_and_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_keywords", ROOT / "docs" / "make_keywords.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert Path(keywords.__file__).read_text(encoding="utf-8") == made.text(), "run: make docs"
    of_pairs = {f"pairs_{field.name}" for field in dataclasses.fields(PairOptions)}
    for kind, options, more in (
        (keywords.TrainKeywords, TrainOptions, set()),
        (keywords.PredictKeywords, PredictOptions, set()),
        (keywords.RankKeywords, RankOptions, of_pairs),
    ):
        assert set(get_type_hints(kind)) == {field.name for field in dataclasses.fields(options)} | more


def test_help_lists_the_verbs_and_each_verb_describes_its_parameters() -> None:
    page = pydoc.plain(pydoc.render_doc(prefcli))
    for name in prefcli.__all__:
        assert re.search(rf"\b{name}\b", page.split("PACKAGE CONTENTS")[0]), name
        assert hasattr(prefcli, name)
    assert set(prefcli.__all__) <= set(dir(prefcli))
    for name in VERBS:
        verb = getattr(prefcli, name)
        described = inspect.getdoc(verb) or ""
        for parameter in inspect.signature(verb).parameters:
            is_described = re.search(rf"^[\w, ]*\b{parameter}\b[\w, ]*:", described, flags=re.M)
            assert is_described or "\nThose of :func:`train`." in described, f"{name}: {parameter}"
    assert (ROOT / "prefcli" / "py.typed").is_file()
    train = inspect.signature(prefcli.train)
    assert train.parameters["epochs"].default == TrainOptions().epochs
    assert "epochs:\n    Passes over the training battles." in (inspect.getdoc(prefcli.train) or "")
    assert "pairs_select" in inspect.signature(prefcli.rank).parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 1}, "unknown option 'epoch'\nDid you mean epochs?"),
        ({"epochs": "1"}, "epochs is '1', expected an integer"),
        ({"limit": 3.0, "swap": 1}, "limit is 3.0, expected an integer; swap is 1, expected true or false"),
        ({"encoder": 7}, "encoder is 7, expected a string"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], message: str, demo_files: Demo) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        prefcli.train(demo_files.train, **given)


def test_numbers_of_numpy_and_paths_are_options(demo_files: Demo) -> None:
    trained = prefcli.train(
        demo_files.train,
        recipe="fast",
        limit=np.int64(40),
        seed=np.uint8(3),
        output=Path("run"),
        validation=np.float64(0.2),
    )
    options = pipeline.show_run(trained.run).summary.options
    assert (options["limit"], options["seed"], options["validation"]) == (40, 3, 0.2)
    assert prefcli.predict(demo_files.test, "a.csv", models=Path("run")).models == ("run",)
    with pytest.raises(InputError, match="models is 3, expected names or folders of runs"):
        prefcli.predict(demo_files.test, "b.csv", models=3)


def test_notes_warnings_and_progress_are_records_of_logging(
    demo_files: Demo,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "LOGGED_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="prefcli"):
        prefcli.train(demo_files.train, recipe="fast", limit=40, output="run")
    records = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    assert any(r[:2] == ("prefcli", logging.INFO) and "split by prompt" in r[2] for r in records)
    assert any(r[:2] == ("prefcli", logging.WARNING) and r[2].startswith("the model ") for r in records)
    assert any(r[0] == "prefcli.progress" and r[1] == logging.INFO for r in records)
    assert {r[0] for r in records} == {"prefcli", "prefcli.progress"}
    caplog.clear()
    prefcli.train(demo_files.train, recipe="fast", limit=40, output="again", reporter=reporting.SILENT)
    assert not caplog.records
    assert logging.getLogger("prefcli").handlers == []
    assert capfd.readouterr() == ("", "")


def test_the_workspace_is_that_of_the_environment(
    demo_files: Demo, features_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFCLI_WORKSPACE", "elsewhere")
    for name in VERBS:
        parameters = inspect.signature(getattr(prefcli, name)).parameters
        assert name in ("demo", "preprocess_table", "report_scores") or parameters["workspace"].default is None
    prefcli.preprocess(demo_files.train, text="raw")
    trained = prefcli.train(recipe="fast", limit=40)
    assert trained.run.parent == Path("elsewhere/runs")
    assert [run.path for run in prefcli.runs()] == [trained.run]
    assert prefcli.load(trained.run.name).folders == (trained.run,)
    prefcli.predict(demo_files.train, "p.csv")
    assert prefcli.score("p.csv", demo_files.train).trained_on  # which the workspace remembers
    assert not Path(".prefcli").exists()
    assert prefcli.runs(workspace=".prefcli") == []


def test_tables_in_memory_are_read_as_files_are(demo_files: Demo, features_run: Path) -> None:
    frame = pd.read_csv(demo_files.train, dtype={"id": str})
    tables = {"frame": frame, "arrow": pa.Table.from_pandas(frame), "rows": iter(frame.to_dict("records"))}
    of_file = to_json(prefcli.eda(demo_files.train))
    for name, table in tables.items():
        assert to_json(prefcli.eda(table)) == of_file, name
    assert len(list(Path(".prefcli/tables").iterdir())) == 1
    test = pd.read_csv(demo_files.test)
    prefcli.predict(test, "table.csv", models=[features_run])
    prefcli.predict(demo_files.test, "file.csv", models=[features_run])
    assert Path("table.csv").read_bytes() == Path("file.csv").read_bytes()
    truth = pd.read_csv(demo_files.truth)
    assert prefcli.score("table.csv", truth) == prefcli.score("file.csv", demo_files.truth)
    source = prefcli.Source.of(demo_files.train, columns={"prompt": "prompt"})
    assert to_json(prefcli.eda(source, test=test)) == to_json(prefcli.eda(source, test=demo_files.test))
    renamed = prefcli.from_table(frame.rename(columns={"prompt": "q"}), columns={"prompt": "q"})
    assert to_json(prefcli.eda(renamed)) == of_file
    assert prefcli.eda(iter([demo_files.train])).battles == 240
    judged = prefcli.compare_judges(frame, judge=frame.head(100)).judge
    assert judged == prefcli.compare_judges(demo_files.train, judge=prefcli.from_table(frame.head(100))).judge
    for table in (frame, pa.Table.from_pandas(frame), {"id": ["1"]}, [{"id": "1"}]):
        with pytest.raises(InputError, match="a source is of files, not"):
            prefcli.Source.of(table)
    for nothing in ([], iter(()), frame.head(0)):
        with pytest.raises(InputError, match="there are no battles"):
            prefcli.eda(nothing)
    with pytest.raises(InputError, match="the table is int"):
        prefcli.train(42)


def test_a_table_of_predictions_has_the_columns_of_the_file_and_the_tables_index(
    demo_files: Demo, features_run: Path
) -> None:
    judge = prefcli.load(features_run)
    test = pd.read_csv(demo_files.test).sample(20, random_state=0)
    frame = judge.predict_frame(test)
    assert list(frame.columns) == ["id", *WINNER_COLUMNS]
    assert frame.index.equals(test.index)
    assert frame["id"].tolist() == test["id"].astype(str).tolist()
    assert np.array_equal(frame[list(WINNER_COLUMNS)].to_numpy(), judge.predict(test))
    rows = judge.predict_frame([{"prompt": "p", "response_a": "a", "response_b": "b"}])
    assert rows["id"].tolist() == ["1"]


def test_batches_of_a_table_are_predicted_one_by_one_as_the_file_is(demo_files: Demo, features_run: Path) -> None:
    judge, test = prefcli.load(features_run), pa.Table.from_pandas(pd.read_csv(demo_files.test))
    prefcli.predict(demo_files.test, "preds.parquet", models=[features_run])
    expected = pq.read_table("preds.parquet")
    batches = [*test.to_batches(max_chunksize=25), test.slice(0, 0)]
    predicted = pa.concat_tables([judge.predict_table(batch) for batch in batches])
    assert predicted.schema == expected.schema
    assert predicted["id"].equals(expected["id"])
    for name in WINNER_COLUMNS:
        assert np.allclose(predicted[name], expected[name], rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="there is no column id"):
        judge.predict_table(test.drop_columns(["id"]))
    renamed = test.rename_columns({"id": "vote", "prompt": "question"})
    mapped = judge.predict_table(renamed, columns={"id": "vote", "prompt": "question"})
    assert mapped["id"].equals(expected["id"])


def test_a_table_of_chosen_answers_has_their_probability_as_the_file_of_predictions(features_run: Path) -> None:
    rows = [{"id": str(n), "prompt": f"Question {n}?", "chosen": "Clear.", "rejected": "Vague"} for n in range(9)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prefcli.predict("pairs.jsonl", "preds.parquet", models=[features_run])
    judge, expected = prefcli.load(features_run), pq.read_table("preds.parquet")
    assert judge.predict_table(rows).equals(expected)
    none = pa.Table.from_pylist(rows).slice(0, 0)
    assert judge.predict_table(none).schema == expected.schema
    renamed = none.rename_columns({"chosen": "better"})
    assert judge.predict_table(renamed, columns={"chosen": "better"}).schema == expected.schema


def test_batches_normalised_one_by_one_are_read_as_the_preprocessed_file(demo_files: Demo) -> None:
    table = pa.Table.from_pandas(pd.read_csv(demo_files.train))
    batches = [prefcli.preprocess_table(batch, text="light") for batch in table.to_batches(max_chunksize=100)]
    pq.write_table(pa.concat_tables(batches), "light.parquet")
    expected = prefcli.preprocess(demo_files.train, text="light").stage
    again = prefcli.preprocess("light.parquet", text="raw").stage
    names = ["id", "model_a", "model_b", "prompt", "response_a", "response_b", "label"]
    assert again.table(names).equals(expected.table(names))
    with pytest.raises(InputError, match="there is no column id"):
        prefcli.preprocess_table(table.drop_columns(["id"]), text="light")


def test_columns_of_tables_are_scored_by_name_and_rows_by_id(demo_files: Demo, features_run: Path) -> None:
    truth = pd.read_csv(demo_files.truth)
    predicted = prefcli.load(features_run).predict_frame(pd.read_csv(demo_files.test))
    labels = truth[list(WINNER_COLUMNS)].to_numpy().argmax(axis=1)
    expected = prefcli.score(predicted[list(WINNER_COLUMNS)].to_numpy(), labels)
    assert prefcli.score(predicted[["winner_tie", "winner_model_b", "winner_model_a", "id"]], truth) == expected
    assert prefcli.score(predicted, labels.tolist()) == expected
    assert prefcli.score(pa.Table.from_pandas(predicted), pa.Table.from_pandas(truth)) == expected
    with pytest.raises(InputError, match="ids of predictions and labels are not the same"):
        prefcli.score(predicted, truth.iloc[::-1])
    with pytest.raises(InputError, match="labels must be integers"):
        prefcli.score(predicted, truth["winner_tie"].to_numpy() / 2)
    shifted = predicted[list(WINNER_COLUMNS)].to_numpy() * 2
    with pytest.raises(InputError, match="not a probability distribution"):
        prefcli.score(shifted, labels)
    assert prefcli.score(shifted, labels, renormalize=True).n == len(labels)


def test_results_print_as_one_or_few_short_lines(demo_files: Demo, features_run: Path) -> None:
    judge = prefcli.load(features_run)
    predicted = prefcli.predict(demo_files.test, "p.csv", models=[features_run])
    score = prefcli.score("p.csv", demo_files.truth)
    results = [
        judge, predicted, score, prefcli.eda(demo_files.train), prefcli.preprocess(demo_files.train),
        prefcli.runs(folders=[features_run])[0], prefcli.show_run(features_run),
        prefcli.report(features_run, "page.html"), prefcli.train(demo_files.train, recipe="fast", limit=40),
        judge.rank("p", [f"answer {number}" for number in range(50)]), judge.predict("p", "a", "b"),
        prefcli.compare_scores(["p.csv", demo_files.truth], demo_files.truth),
    ]  # fmt: skip
    for result in results:
        lines = repr(result).splitlines()
        assert len(lines) <= 4, repr(result)
        assert sum(map(len, lines)) < 700, repr(result)
    assert re.fullmatch(
        r"ScoreResult\(log_loss=0\.\d{4} \(95 % 0\.\d{4} to \d\.\d{4}\), prior_log_loss=1\.0\d{3}, accuracy=0\.\d{4}, "
        r"brier=0\.\d{4}, ece=0\.\d{4}, n=60, outcomes=3\)",
        repr(score),
    )
    assert repr(judge) == f"Predictor('{features_run}', swap_average=False, calibrated=True)"
    assert repr(results[3]).startswith("Eda(240 battles, 240 with an outcome, 6 models, ")
    assert repr(results[5]).startswith("Run('")


def test_scores_are_one_class_everywhere_and_json_keeps_its_keys(demo_files: Demo, features_run: Path) -> None:
    (run,) = prefcli.runs(folders=[features_run])
    report = prefcli.report(features_run, "page.html", by="turns")
    details = prefcli.show_run(features_run)
    for score in (run.score, details.validation, report.evaluation.score):
        assert isinstance(score, prefcli.Score)
        assert score.log_loss == run.log_loss
    listed = json.loads(to_json(run))
    assert listed["log_loss"] == run.log_loss
    assert listed["log_loss_ci"] == (run.log_loss_ci and list(run.log_loss_ci))
    assert listed["gain"] == pytest.approx(listed["prior_log_loss"] - listed["log_loss"])
    assert listed["outcomes"] == 3
    assert listed["score"]["accuracy"] == details.validation.accuracy
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.evaluation.score.n = 3


def test_resume_takes_no_other_options() -> None:
    for others in ({"source": "train.csv"}, {"epochs": 2}, {"output": "elsewhere"}):
        with pytest.raises(InputError, match="resume continues a run as it was"):
            prefcli.train(resume="run", **others)
    with pytest.raises(InputError, match="pairs_select is for a file of pairs"):
        prefcli.rank([battle()], "ranked.jsonl", pairs_select="all")

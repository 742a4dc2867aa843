"""The page of a run: its figures are scikit-learn's, its texts are inert, and it says what it lacks."""

from __future__ import annotations

import json
import math
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from browser import WIDTHS, needs_axe, needs_browser
from conftest import Result, battle, write_csv
from payloads import markup
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from test_report import PROBE, Checker

import prefcli
from prefcli import metrics
from prefcli.errors import InputError, ModelError
from prefcli.options import TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.readers import open_battles
from prefcli.rendering import advice, curves, evaluation, run_page, run_plots
from prefcli.rendering.advice import RunFacts
from prefcli.rendering.curves import Course, course_of
from prefcli.rendering.evaluation import BattleTexts, Details, Predictions, evaluate
from prefcli.rendering.plots import SHARES, Axis
from prefcli.rendering.run_page import RunPage
from prefcli.storage import runs

Cli = Callable[..., Result]
BEFORE = Path(__file__).parent / "data" / "before" / "before.tar.gz"


def predictions(n: int = 400, *, outcomes: int = 3, seed: int = 0, sure: float = 1.0) -> Predictions:
    """Outcomes drawn from random probabilities, which predict them; ``sure`` above 1 exaggerates these."""
    random = np.random.default_rng(seed)
    truth = (
        random.dirichlet(np.ones(3), n) if outcomes == 3 else np.pad(random.dirichlet(np.ones(2), n), ((0, 0), (0, 1)))
    )
    labels = np.array([random.choice(3, p=row) for row in truth])
    predicted = truth**sure
    predicted /= predicted.sum(axis=1, keepdims=True)
    return Predictions([f"b{i}" for i in range(n)], predicted, labels, np.arange(n) // 2, outcomes)


# The figures


def test_reliability_is_scikit_learns_calibration_curve() -> None:
    given = predictions()
    for outcome, bins in enumerate(evaluate(given, None).reliability):
        came = given.labels == outcome
        share, mean = calibration_curve(came, given.probabilities[:, outcome], n_bins=evaluation.RELIABILITY_BINS)
        assert [b.observed.value for b in bins] == pytest.approx(share.tolist())
        assert [b.predicted for b in bins] == pytest.approx(mean.tolist())
        assert sum(b.observed.n for b in bins) == len(came)
        for b in bins:
            assert b.low <= b.predicted <= b.high + 1e-12
            assert b.observed.low <= b.observed.value <= b.observed.high
    on_edges, came = np.array([0.1, 0.2, 0.4, 0.5, 0.8, 1.0]), np.array([1, 0, 1, 1, 0, 1], dtype=bool)
    share, _ = calibration_curve(came, on_edges, n_bins=evaluation.RELIABILITY_BINS)
    assert [b.observed.value for b in evaluation.reliability(on_edges, came)] == pytest.approx(share.tolist())
    assert evaluation.reliability(np.array([0.1]), came[:1])[0].high == pytest.approx(0.1)


def test_confusion_is_scikit_learns_and_its_diagonal_the_accuracy() -> None:
    given = predictions()
    counted = evaluate(given, None)
    expected = confusion_matrix(given.labels, given.probabilities.argmax(axis=1))
    assert np.array(counted.confusion) == pytest.approx(expected)
    assert np.trace(np.array(counted.confusion)) / 400 == pytest.approx(
        accuracy_score(given.labels, given.probabilities.argmax(axis=1))
    )


def test_equally_probable_outcomes_share_a_battle() -> None:
    equal = evaluation.confusion(
        np.array([[0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.8, 0.1]]), np.array([0, 2, 1])
    )
    assert np.array(equal) == pytest.approx(np.array([[0.5, 0.5, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]]))


def test_two_outcomes_are_shown_as_two() -> None:
    given = predictions(outcomes=2)
    counted = evaluate(given, None)
    assert len(counted.reliability) == 1
    assert np.shape(counted.confusion) == (2, 2)
    assert counted.score.uniform_log_loss == pytest.approx(math.log(2))
    text = shown(given)
    assert "There are two outcomes" in text
    assert "predicted 0.0%" not in text


def test_groups_have_the_figures_of_their_battles_and_name_what_is_left_out() -> None:
    given = predictions(100)
    names = ["long"] * 60 + ["short"] * 30 + ["rare"] * 5 + [None] * 5
    counted = evaluate(given, Details({"length": names, "script": ["Latin"] * 100}, {}))
    (grouping,) = counted.groupings  # one script tells nothing apart
    assert list(grouping.groups) == ["long", "short"]
    assert (grouping.left_out, grouping.battles_left_out) == (1, 10)
    for score, rows in zip(grouping.groups.values(), (slice(0, 60), slice(60, 90)), strict=True):
        expected = log_loss(given.labels[rows], given.probabilities[rows], labels=[0, 1, 2])
        assert score.log_loss == pytest.approx(expected)
        assert score.n == rows.stop - rows.start
    dots, axis = run_plots.groups(grouping)
    assert [dot.count for dot in dots] == ["n = 60", "n = 30"]
    assert axis.low <= min(dot.low for dot in dots) <= max(dot.high for dot in dots) <= axis.high
    assert "Not shown: 10 battles of smaller groups (1) or of none." in shown(given, Details({"length": names}, {}))


def test_the_most_surprising_battles_are_those_with_the_highest_losses() -> None:
    given = predictions()
    order = np.argsort(given.probabilities[np.arange(400), given.labels], kind="stable")[:20]
    surprising = evaluate(given, None).surprising
    assert [each.id for each in surprising] == [given.ids[row] for row in order]
    assert surprising[0].loss == pytest.approx(-math.log(given.probabilities[order[0], given.labels[order[0]]]))


@pytest.mark.parametrize(
    ("low", "high"), [(0.7, 1.1), (0.98, 0.981), (0, 0), (1.5, 1.5), (-3.0, 2.0), (0.0, 36.0), (1e-9, 2e-9)]
)
def test_axes_hold_every_value_and_few_round_ticks(low: float, high: float) -> None:
    axis = Axis.around(low, high, run_plots.LOSS_STEPS, ".4g")
    assert axis.low <= low <= high <= axis.high
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert (SHARES.at(0.25), SHARES.up(0.25), SHARES.at(7)) == ("25.00%", "75.00%", "100.00%")


# Learning curves


def test_a_small_last_batch_is_no_artefact() -> None:
    """103 battles in batches of 10, a line every 10 steps: the second is of 3 battles, with a high loss."""
    lines = [{"step": 10, "loss": 1.0}, {"step": 11, "loss": 9.0}]
    course = course_of(lines, train_battles=103, batch_size=10)
    assert course.training == [(10, 1.0), (11, pytest.approx((100 * 1.0 + 3 * 9.0) / 103))]
    assert curves._battles_until(11, 103, 10) == 103
    assert curves._battles_until(24, 103, 10) == 103 + 103 + 20


def test_the_smoothed_loss_is_the_weighted_mean_of_a_part_of_the_course() -> None:
    random = np.random.default_rng(0)
    steps = np.cumsum(random.integers(1, 11, 200))
    lines = [
        {"step": int(step), "loss": float(loss)} for step, loss in zip(steps, random.normal(1, 0.3, 200), strict=True)
    ]
    course = course_of(lines, train_battles=995, batch_size=10)  # 100 steps an epoch, the last of 5 battles
    sizes = np.tile([10] * 99 + [5], 40)[: steps[-1]]
    per_step = np.concatenate([np.full(n, line["loss"]) for n, line in zip(np.diff([0, *steps]), lines, strict=True)])
    window = sizes.sum() / curves.WINDOWS
    begins = np.concatenate([[0], steps])
    for step, mean in course.training:
        first = max(begin for begin in begins if sizes[:step].sum() - sizes[:begin].sum() >= window - 1e-9)
        expected = np.average(per_step[first:step], weights=sizes[first:step])
        assert mean == pytest.approx(expected)
    assert course.training[-1][0] == steps[-1]


def test_boosting_has_a_curve_of_its_inner_folds() -> None:
    course = course_of(
        [{"step": i, "inner_log_loss": 1 + (i - 70) ** 2} for i in range(1, 101)], train_battles=9, batch_size=16
    )
    assert course.boosting
    assert course.best == (70, 1)
    assert course.dots == [(70, 1)]
    assert course.description == "Log loss of the inner folds over 100 rounds of boosting, best 1.0000 at 70"
    assert "<circle" in curves.learning_curves(course, 1.1)


# What to try next


def facts(**changes: Any) -> RunFacts:
    options = TrainOptions(**changes.pop("options", {}))
    return RunFacts(**{"folder": "my run", "data": "train.csv", "options": options, "courses": [], "cut": 0.0,
                       "both_orders": None, **changes})  # fmt: skip


def commands_for(given: Predictions, **changes: Any) -> list[str]:
    return [each.command for each in advice.of_run(facts(**changes), evaluate(given, None), given)]


def test_good_figures_give_no_advice() -> None:
    assert commands_for(predictions(1000)) == []


def test_each_advice_follows_from_its_figure_and_its_command_exists(cli: Cli) -> None:
    rng = np.random.default_rng(1)
    noise = Predictions(
        [str(i) for i in range(400)], rng.dirichlet(np.ones(3) * 30, 400), rng.integers(0, 3, 400), None, 3
    )
    better = metrics.compare(rng.normal(0.9, 0.01, 100), np.ones(100))
    rising = Course([(10, 1.0)], [(10, 0.9), (40, 0.95)])
    falling = Course([(10, 1.0)], [(10, 0.95), (20, 0.9)])
    given = predictions(1000)
    good = evaluate(given, None)

    def command(**changes: Any) -> str:
        return advice.of_run(facts(**changes), good, given)[0].command

    overconfident = predictions(1000, sure=3)
    told = {
        "noise": commands_for(noise)[0],
        "orders": command(both_orders=better),
        "rising": command(courses=[rising], options={"epochs": 4}),
        "falling": command(courses=[falling], options={"epochs": 2}),
        "cut": command(cut=0.4),
        "rounds": command(reached_last_round=True),
        "few": commands_for(predictions(24))[0],
        "overconfident": commands_for(overconfident)[-1],
    }
    assert told == {
        "noise": "prefcli train train.csv --recipe fast",
        "orders": "prefcli predict test.csv --model 'my run' --swap-average",
        "rising": "prefcli train train.csv --config 'my run/config.json' --epochs 1",
        "falling": "prefcli train train.csv --config 'my run/config.json' --epochs 3",
        "cut": "prefcli train train.csv --config 'my run/config.json' --max-length 1024",
        "rounds": "prefcli train train.csv --recipe strong",
        "few": "prefcli train train.csv --config 'my run/config.json' --folds 5",
        "overconfident": "prefcli eda train.csv --export problems.csv --label-errors",
    }
    helps = {verb: cli(verb, "--help").out for verb in ("train", "predict", "eda")}
    for suggested in told.values():
        for flag in re.findall(r"--[\w-]+", suggested):
            assert flag in helps[suggested.split()[1]]


def test_the_hardest_group_is_named_if_its_interval_is_above_all_battles() -> None:
    given = predictions(1000)
    given.probabilities[:200] = given.probabilities[:200][:, [1, 2, 0]]  # wrong in one language
    names = ["Thai"] * 200 + ["Latin"] * 800
    hardest, *_ = advice.of_predictions("train.csv", evaluate(given, Details({"script": names}, {})), given)
    assert "'Thai'" in hardest.reason
    assert hardest.command == "prefcli eda train.csv --by script"


def test_names_of_files_stay_one_word_of_a_command() -> None:
    source = prefcli.Source.of("-rm votes;.csv", columns={"prompt": "a b"}, encoding="cp1252")
    assert advice.command_words(source) == "'./-rm votes;.csv' --columns 'prompt=a b' --encoding cp1252"


# The page


def shown(given: Predictions, details: Details | None = None, **changes: Any) -> str:
    return run_page.render(
        RunPage(**{"title": "Run x", "name": "x", "battles": "battles", **changes}), evaluate(given, details)
    )


@pytest.fixture(scope="module")
def hostile_page() -> str:
    """Every payload is an id, a model, a group, a text or a name on this page."""
    payloads = markup("http://127.0.0.1:9/")
    given = predictions(200)
    given = Predictions([f"{payloads[i % len(payloads)]}{i}" for i in range(200)], *list(vars(given).values())[1:])
    texts = {
        int(row): BattleTexts(
            payloads[number], payloads[-number], (payloads[number], None, ""), tuple(payloads[number : number + 4]),
            ("x" * 5000, payloads[number]),
        )
        for number, row in enumerate(given.surprising())
    }  # fmt: skip
    groups: list[str | None] = [payloads[i % 4] for i in range(200)]
    course = Course([(1, 1.1), (2, 1.0)], [(2, 1.05)])
    return shown(
        given,
        Details({"script": groups}, texts),
        title=f"Run {payloads[6]}",
        cautions=payloads[:3],
        advice=[advice.Advice(payloads[3], payloads[4])],
        courses=[("", course)],
        importances=[(payload, 1 / (1 + i)) for i, payload in enumerate(payloads)],
        facts=[("command", payload) for payload in payloads],
        calibration=payloads[8],
    )


def test_hostile_texts_are_inert(hostile_page: str) -> None:
    parsed = Checker(hostile_page)
    assert not {"script", "img", "link", "iframe", "object", "form", "embed", "base", "animate"} & set(parsed.tags)
    assert not any(name.startswith("on") or name in ("src", "style", "srcdoc") for name, _ in parsed.attributes)
    assert all((value or "").startswith("#") for name, value in parsed.attributes if name == "href")
    assert "default-src 'none'" in hostile_page


def test_long_texts_are_cut_with_a_mark_and_empty_and_null_turns_are_named(hostile_page: str) -> None:
    marks = re.findall(r'<span class="cut"> … ([\d,]+) more characters</span>', hostile_page)
    assert len(marks) == 20
    payloads = markup("http://127.0.0.1:9/")
    assert marks[0] == f"{5000 - run_plots.MAX_CHARACTERS + len(payloads[0]):,}"
    assert ">null<" in hostile_page
    assert ">empty<" in hostile_page
    assert run_plots.cut(["ab", None, "x" * run_plots.MAX_CHARACTERS]) == [
        ("ab", 0), (None, 0), ("x" * (run_plots.MAX_CHARACTERS - 2), 2)
    ]  # fmt: skip


def test_the_page_shows_the_figures() -> None:
    given = predictions()
    score = metrics.score(given.probabilities, given.labels, groups=given.keys)
    assert score.log_loss_ci is not None
    text = shown(given)
    assert "{:.4f} to {:.4f}".format(*score.log_loss_ci) in text
    for figure in (score.log_loss, score.prior_log_loss, score.uniform_log_loss, score.brier, score.ece):
        assert f"{figure:.4f}" in text
    assert f"{score.accuracy:.1%}" in text


@pytest.mark.slow
@needs_browser
def test_nothing_runs_in_a_browser_and_nothing_is_wider_than_a_phone(hostile_page: str, tmp_path: Path) -> None:
    pages = [(hostile_page, width) for width in WIDTHS]
    for probe in browser.results(tmp_path, pages, PROBE % "<img src=x"):
        assert probe == {"ran": 0, "images": 0, "scripts": 0, "shows": True, "wide": False}


@pytest.mark.slow
@needs_browser
@needs_axe
def test_axe_finds_no_fault_of_contrast_or_labels(hostile_page: str, tmp_path: Path) -> None:
    assert browser.axe_faults(tmp_path, [hostile_page]) == []


# Runs


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(BEFORE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def here(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with runs of every kind that an earlier release made, and its cached battles."""
    monkeypatch.chdir(earlier)
    return earlier


@pytest.mark.parametrize("run", ["features", "siamese", "cross-encoder", "adapters", "folds", "exported"])
def test_every_kind_of_run_has_a_page(run: str, here: Path) -> None:
    result = prefcli.report(f"runs/{run}", f"{run}.html")
    text = Path(f"{run}.html").read_text(encoding="utf-8")
    Checker(text)
    held_out = runs.read_validation(Path("runs", run))
    assert result.evaluation.score.n == len(held_out.ids)
    assert result.evaluation.score.log_loss == pytest.approx(
        log_loss(held_out.labels, metrics.softmax(held_out.logits), labels=[0, 1, 2])
    )
    assert len(result.evaluation.surprising) == 20
    assert all(each.texts is not None for each in result.evaluation.surprising)
    assert bool(result.importances) == (run == "features")
    has_course = run not in ("features", "exported")  # this release does not record boosting's, an export has none
    assert ("Learning curves" in text) == has_course
    assert result.missing == (() if has_course else ("The run recorded no learning curve.",))


def test_a_run_whose_battles_are_gone_or_changed_says_so(here: Path, tmp_path: Path, cli: Cli) -> None:
    workspace = tmp_path / "empty"  # the recorded file was in a folder of the earlier release
    done = cli("report", "runs/siamese", "--output", tmp_path / "page.html", "--workspace", workspace)
    assert done.code == 0, done.err
    assert "warning: Texts and groups of the held-out battles are missing: no such file" in done.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Texts and groups of the held-out battles are missing" in text
    assert "Error by group" not in text


@pytest.mark.parametrize("other", [{"prompt": ["another question"]}, {"winner": 1}, {"number": 99}], ids=str)
def test_another_battle_under_the_same_id_is_noticed(other: dict[str, Any], tmp_path: Path) -> None:
    rows = [battle(i, 0) for i in range(5)]
    given = next(iter(open_battles(write_csv(tmp_path / "a.csv", rows)).batches()))[0]
    predicted = Predictions([str(i) for i in range(5)], np.full((5, 3), 1 / 3), np.zeros(5, dtype=np.int64),
                            given.column("prompt_key").to_numpy(), 3)  # fmt: skip
    assert len(evaluation.read_details([given], predicted, None, "a.csv").texts) == 5
    rows[3] = battle(**{"number": 3, "winner": 0, **other})
    changed = next(iter(open_battles(write_csv(tmp_path / "b.csv", rows)).batches()))[0]
    with pytest.raises(InputError, match="battle 3 has another prompt or outcome|the first is 3"):
        evaluation.read_details([changed], predicted, None, "b.csv")


def test_an_unfinished_run_and_a_damaged_one_are_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did not finish"):
        prefcli.report("runs/unfinished", tmp_path / "page.html")
    damaged = shutil.copytree("runs/features", tmp_path / "damaged")
    held_out = runs.read_validation(damaged)
    held_out.logits[0] = 0
    runs.write_validation(damaged, held_out)
    with pytest.raises(ModelError, match=r"validation\.parquet is changed"):
        prefcli.report(damaged, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_page_is_written_here_and_not_over_another(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("report", here / "runs" / "siamese", "--workspace", here / ".prefcli", "--json")
    assert done.code == 0, done.err
    told = done.json()
    assert told["page"] == "siamese.html"
    assert {"score", "reliability", "confusion", "groupings", "surprising"} <= set(told["evaluation"])
    assert json.dumps(told["advice"])
    assert cli("report", here / "runs" / "siamese").code == 2
    assert cli("report", here / "runs" / "siamese", "--force").code == 0


@pytest.mark.slow
def test_new_runs_record_boosting_and_group_by_a_column_of_their_file(tmp_path: Path, cli: Cli) -> None:
    rows = [
        battle(
            i, i % 2, prompt=[f"question {i}"], response_a=["good " * (1 + i % 2)], language="de" if i % 4 < 2 else "en"
        )
        for i in range(90)
    ]
    path = write_csv(tmp_path / "votes.csv", rows, [*rows[0]])
    trained = cli("train", path, "--recipe", "fast", "--validation", 0.4, "--output", "run", "--json")
    assert trained.code == 0, trained.err
    records = runs.read_metrics(Path("run"))
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    result = prefcli.report("run", "page.html", by="language")
    assert result.evaluation.groupings[0].by == "language"
    assert result.evaluation.score.outcomes == 2
    assert result.evaluation.score.log_loss == pytest.approx(trained.json()["validation"]["log_loss"])
    assert result.missing == ()
    text = Path("page.html").read_text(encoding="utf-8")
    assert "rounds of boosting" in text
    assert "What the model looks at" in text
    with pytest.raises(InputError, match="nonsense"):
        prefcli.report("run", "page.html", by="nonsense", force=True)
    write_csv(path, rows[1:], [*rows[0]])
    shutil.rmtree(".prefcli")
    (missing,) = prefcli.report("run", "page.html", force=True).missing
    assert "the file has changed since the run was trained" in missing


@pytest.mark.slow
def test_held_out_battles_of_a_validation_file_are_found_again(tmp_path: Path, cli: Cli) -> None:
    """Of 40 battles boosting learns only the class shares, so there is nothing but these."""
    train = write_csv(tmp_path / "train.csv", [battle(i, i % 3) for i in range(40)])
    held_out = write_csv(tmp_path / "held.csv", [battle(i, i % 3, prompt=[f"held out {i}"]) for i in range(30)])
    arguments = ("--recipe", "fast", "--validation-file", held_out, "--output", "run")
    assert cli("train", train, *arguments).code == 0
    for _ in range(2):
        result = prefcli.report("run", "page.html", force=True)
        assert result.missing == ("The run recorded no learning curve.",)
        assert result.importances == []
        texts = result.evaluation.surprising[0].texts
        assert texts is not None
        assert texts.prompt[0].startswith("held out")
        shutil.rmtree(".prefcli")  # the file is read again
    write_csv(held_out, [battle(i, i % 3, prompt=[f"held out {i}"], response_a=["new"]) for i in range(30)])
    assert "has changed since" in prefcli.report("run", "page.html", force=True).missing[0]


@pytest.mark.slow
def test_a_run_that_held_nothing_out_is_refused_with_what_to_do(tmp_path: Path, cli: Cli) -> None:
    path = write_csv(tmp_path / "votes.csv", [battle(i, i % 3) for i in range(20)])
    assert cli("train", path, "--recipe", "fast", "--validation", 0, "--output", "run").code == 0
    done = cli("report", "run")
    assert done.code == 2
    assert "held no battles out" in done.err
    assert "score PREDS LABELS --report" in done.err


# score --report


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """``votes.csv``, its outcomes without texts, predictions in ``good.csv`` and (two battles fewer) ``bad.csv``."""
    rows = [battle(i, i % 3, prompt=[f"{'long ' * 100 * (i % 2)}question {i}"]) for i in range(60)]
    write_csv(tmp_path / "votes.csv", rows)
    columns = ["id", *WINNER_COLUMNS]
    write_csv(tmp_path / "outcomes.csv", rows, columns)
    for name, right, n in (("good", 0.6, 60), ("bad", 0.3, 58)):
        predicted = [
            {"id": str(i)} | {c: right if i % 3 == k else (1 - right) / 2 for k, c in enumerate(WINNER_COLUMNS)}
            for i in reversed(range(n))
        ]
        write_csv(tmp_path / f"{name}.csv", predicted, columns)
    return tmp_path


def test_score_writes_a_page_with_its_own_figures(scored: Path, cli: Cli) -> None:
    done = cli("score", "good.csv", "votes.csv", "--seed", 3, "--report", "page.html", "--json")
    assert done.code == 0, done.err
    assert done.json() == cli("score", "good.csv", "votes.csv", "--seed", 3, "--json").json()
    text = Path("page.html").read_text(encoding="utf-8")
    Checker(text)
    assert "60 battles of 60 prompts of votes.csv" in text
    assert f"{done.json()['log_loss']:.4f}" in text
    assert "question 59" in text
    assert "Learning curves" not in text
    again = cli("score", "good.csv", "votes.csv", "--report", "page.html")
    assert again.code == 2
    assert "--force" in again.err


def test_score_of_several_files_writes_a_page_about_the_best_on_common_battles(scored: Path, cli: Cli) -> None:
    done = cli("score", "bad.csv", "good.csv", "outcomes.csv", "--report", "page.html", "--json")
    assert done.code == 0, done.err
    text = Path("page.html").read_text(encoding="utf-8")
    assert "Predictions in good.csv" in text
    assert "58 battles of outcomes.csv" in text
    assert f"{done.json()['scores']['good.csv']['log_loss']:.4f}" in text
    assert f"{done.json()['differences'][0]['difference']:+.4f}" in text
    assert "Texts and groups are missing: outcomes.csv holds only outcomes." in text


def test_standard_input_cannot_be_read_twice(scored: Path, cli: Cli) -> None:
    done = cli("score", "good.csv", "-", "--report", "page.html")
    assert done.code == 2
    assert "standard input can be read once" in done.err

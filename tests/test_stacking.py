"""What `predict --calibrate` fits beyond temperature and tie shift, and `--temperature`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Result, battle, write_csv
from numpy.typing import NDArray
from scipy.optimize import minimize

import prefcli
from prefcli import metrics
from prefcli.battles import BATTLE_SCHEMA
from prefcli.data import synthetic
from prefcli.data.tables import read_probabilities
from prefcli.errors import InputError
from prefcli.prediction import calibration, stacking
from prefcli.prediction.stacking import Covariates, Stack

Array = NDArray[np.float64]


def votes(probabilities: Array, seed: int) -> NDArray[np.int64]:
    random = np.random.default_rng(seed)
    return (random.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=2)


def sample(n: int, seed: int = 0, sources: tuple[str, ...] = ("x", "y")) -> tuple[Array, Covariates]:
    random = np.random.default_rng(seed)
    probabilities = metrics.softmax(random.normal(size=(n, 3)))
    return probabilities, Covariates(random.normal(size=n), random.choice(np.array(sources, dtype=object), n))


def test_the_fit_is_the_most_probable_one() -> None:
    probabilities, battles = sample(150)
    labels = votes(probabilities, 1)
    fitted = stacking.fit(probabilities, labels, battles, ("x",), length=True)
    odds = np.log(probabilities[:, 2]) - np.log(probabilities[:, 0] + probabilities[:, 1])
    of_x = (battles.sources == "x").astype(float)

    def minus_log_posterior(values: Array) -> float:
        factor, factor_x, tie, tie_x, longer, apart = values
        factors = 1 + factor + factor_x * of_x
        logits = np.log(probabilities) * factors[:, None]
        logits[:, 0] += longer * battles.doublings / 2
        logits[:, 1] -= longer * battles.doublings / 2
        logits[:, 2] += tie + tie_x * of_x + (1 - factors) * odds.mean() + apart * np.abs(battles.doublings)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        deviations = np.array([0.5, 0.5, 2, 2, 0.3, 0.3])
        return float(-log_p[np.arange(150), labels].sum() + 0.5 * ((values / deviations) ** 2).sum())

    best = minimize(minus_log_posterior, np.zeros(6), method="BFGS").x
    factor, factor_x, tie, tie_x, longer, apart = best
    assert fitted.factors == pytest.approx((1 + factor + factor_x, 1 + factor), abs=1e-3)
    shifts = (tie + tie_x - (factor + factor_x) * odds.mean(), tie - factor * odds.mean())
    assert fitted.tie_shifts == pytest.approx(shifts, abs=1e-3)
    assert (fitted.longer, fitted.apart) == pytest.approx((longer, apart), abs=1e-3)


def test_sources_that_tie_differently_are_recovered_by_source() -> None:
    probabilities, battles = sample(4_000)
    assert battles.sources is not None
    shift = np.where(battles.sources == "x", 1.0, -1.5)
    truth = metrics.softmax(np.log(probabilities) + np.outer(shift, [0, 0, 1]))
    labels, keys = votes(truth, 2), np.arange(4_000) // 2
    two_numbers = calibration.calibrate([np.log(probabilities)], labels, keys, tie=True)
    fit = calibration.with_stack(two_numbers, probabilities, labels, keys, battles)
    assert fit.stack is not None
    assert fit.stack.sources == ("x", "y")
    predicted = fit.apply([probabilities], battles)
    for name in ("x", "y"):
        rows = battles.sources == name
        assert predicted[rows, 2].mean() == pytest.approx(truth[rows, 2].mean(), abs=0.02)
    assert np.abs(predicted - truth).mean() < 0.02
    best = metrics.log_loss(truth, labels)
    assert metrics.log_loss(predicted, labels) < best + 0.002
    assert metrics.log_loss(two_numbers.apply([probabilities]), labels) > best + 0.1
    assert "by source (x log-odds x" in str(fit)
    assert "the length of the answers not used: it does not help" in str(fit)


def test_voters_who_share_only_part_of_what_a_judge_rewards() -> None:
    """The judge likes long answers by 1 log-odds a doubling, these voters do not; the rest they share."""
    random = np.random.default_rng(4)
    n = 3_000
    shared, doublings = random.normal(size=n), random.normal(size=n)

    def outcome(log_odds: Array) -> Array:
        return metrics.softmax(np.stack([log_odds / 2, -log_odds / 2, np.full(n, -0.5)], axis=1))

    judge, people = outcome(shared + doublings), outcome(shared)
    labels, keys, battles = votes(people, 5), np.arange(n), Covariates(doublings)
    fit = calibration.calibrate([np.log(judge)], labels, keys, tie=True)
    fit = calibration.with_stack(fit, judge, labels, keys, battles)
    assert fit.stack is not None
    # Temperature and factor together scale the judge's logits: of length nothing must be left.
    scale = fit.weights[0] * fit.stack.factors[0]
    assert scale == pytest.approx(1, abs=0.1)
    assert fit.stack.longer == pytest.approx(-scale, abs=0.1)
    assert metrics.log_loss(fit.apply([judge], battles), labels) < metrics.log_loss(people, labels) + 0.002
    assert "log-odds for each doubling of an answer's length (cross-fitted log loss" in str(fit)


def test_what_does_not_help_is_not_used_and_costs_next_to_nothing_where_it_is_by_chance() -> None:
    lost, used = [], 0
    for seed in range(12):
        probabilities, battles = sample(100, seed)
        labels, keys = votes(probabilities, seed + 100), np.arange(100)
        plain = calibration.Calibration((1.0,), battles=100, before=metrics.log_loss(probabilities, labels), after=9.0)
        fit = calibration.with_stack(plain, probabilities, labels, keys, battles)
        used += fit.stack is not None
        unseen, others = sample(2_000, seed + 50)
        loss = -(unseen * np.log(fit.apply([unseen], others))).sum(axis=1).mean()
        lost.append(loss + (unseen * np.log(unseen)).sum(axis=1).mean())
        assert len(fit.stack_losses) == 2
        assert ("not used: it does not help" in str(fit)) or fit.stack is not None
    assert used < 7
    assert np.mean(lost) < 0.02, "100 battles: two numbers without priors lose about 0.01 as well"
    assert max(lost) < 0.05


@pytest.mark.parametrize("keeps_ties", [False, True])
def test_swapped_answers_have_exactly_swapped_probabilities(keeps_ties: bool) -> None:
    probabilities, battles = sample(500)
    stack = Stack(("x",), (1.3, 0.4), (0.7, -0.2), 0.3, -0.1, keeps_ties)
    swapped = Covariates(-battles.doublings, battles.sources)
    there, back = stack.apply(probabilities, battles), stack.apply(probabilities[:, [1, 0, 2]], swapped)
    assert np.array_equal(there, back[:, [1, 0, 2]])
    assert len(metrics.find_improper(there)) == 0


def test_a_sample_without_ties_leaves_each_battles_probability_of_a_tie() -> None:
    probabilities, battles = sample(600)
    decided = metrics.two_outcome(metrics.softmax(np.log(probabilities) + np.outer(battles.doublings, [1, -1, 0])))
    labels, keys = votes(decided, 3), np.arange(600)
    fit = calibration.calibrate([np.log(probabilities)], labels, keys, tie=True)
    fit = calibration.with_stack(fit, probabilities, labels, keys, battles)
    assert fit.stack is not None
    assert fit.stack.longer > 1
    before = calibration.Calibration(fit.weights, fit.tie_shift).apply([probabilities])
    assert np.array_equal(fit.apply([probabilities], battles)[:, 2], before[:, 2])
    assert "none of these battles are ties, so the share of ties is kept" in str(fit)
    assert "tie shift" not in str(fit.stack)


def test_nothing_is_tried_where_one_answer_always_wins_or_there_are_too_few_battles() -> None:
    probabilities, battles = sample(100)
    for labels, rows in ((np.zeros(100, dtype=int), np.arange(100)), (votes(probabilities, 1), np.arange(49))):
        data = (probabilities[rows], labels[rows], np.arange(len(rows)))
        fit = calibration.calibrate([np.log(data[0])], *data[1:], tie=True)
        assert calibration.with_stack(fit, *data, battles.take(rows)) is fit


def test_a_source_with_few_battles_is_treated_as_one_that_is_not_in_the_sample() -> None:
    sources = np.array(["x"] * 50 + ["y"] * 10 + ["few"] * 9, dtype=object)
    battles = Covariates(np.zeros(69), sources)
    assert battles.enough() == ("x", "y")
    assert battles.codes(("x", "y")).tolist() == [0] * 50 + [1] * 10 + [2] * 9
    assert Covariates(np.zeros(59), sources[10:]).enough() == ("x", "y")
    assert Covariates(np.zeros(50), sources[:50]).enough() == ()
    unknown = np.array([None] * 20 + ["x"] * 20 + ["y"] * 20, dtype=object)
    assert Covariates(np.zeros(60), unknown).enough() == ("x", "y")
    assert Covariates(np.zeros(3)).codes(()).tolist() == [0, 0, 0]


def test_lengths_are_counted_in_characters_over_all_turns() -> None:
    answers = [(["abc", "defg"], ["é" * 31]), ([None, ""], ["x" * 5_000]), ([""], [""])]
    rows = [{"id": str(i), "prompt": ["p"], "response_a": a, "response_b": b} for i, (a, b) in enumerate(answers)]
    batch = pa.RecordBatch.from_pylist(rows, schema=BATTLE_SCHEMA)
    assert stacking.count_doublings(batch).tolist() == [-2.0, -stacking.MAX_DOUBLINGS, 0.0]


@pytest.fixture
def by_source(tmp_path: Path) -> tuple[Path, Path]:
    """A sample and a file of two sources, in which "tie" always ties and "never" does not."""
    random = np.random.default_rng(1)

    def rows(first: int, count: int) -> list[dict[str, Any]]:
        rows = []
        for number in range(first, first + count):
            name = ("tie", "never")[number % 2]
            winner = 2 if name == "tie" and number % 8 else int(random.integers(2))
            texts = {f"response_{side}": [f"word {number} {side}"] for side in "ab"}
            rows.append({**battle(number, winner, prompt=[f"question {number}"], **texts), "who": name})
        return rows

    paths = []
    for name, first, count in (("sample", 10_000, 80), ("test", 20_000, 20)):
        data = rows(first, count)
        if name == "test":
            data[-1]["who"] = "someone else"
        paths.append(write_csv(tmp_path / f"{name}.csv", data, columns=list(data[0])))
    return paths[0], paths[1]


def test_predict_calibrates_by_source_and_says_so(
    features_run: Path, by_source: tuple[Path, Path], cli: Callable[..., Result], tmp_path: Path
) -> None:
    labelled, test = by_source
    arguments = ["predict", test, "--model", features_run, "--calibrate", labelled, "--workspace", tmp_path / "ws"]
    done = cli(*arguments, "--source", "who", "--output", tmp_path / "by-source.csv", "--json")
    assert done.code == 0, done.err
    predicted = done.json()
    assert set(predicted["stack"]["sources"]) == {"tie", "never"}
    assert "by source (never log-odds x" in predicted["calibration"]
    assert "by source (never log-odds x" in done.err
    assert "1 of 20 battles is of a source that the sample lacks" in done.err
    ties = read_probabilities(tmp_path / "by-source.csv")[1][:, 2]
    assert ties[0:18:2].min() > 0.7
    assert ties[1:19:2].max() < 0.3
    assert ties[1:19:2].max() < ties[19] < ties[0:18:2].min()
    (record,) = (tmp_path / "ws" / "predictions").glob("*.json")
    assert json.loads(record.read_text())["calibration"] == predicted["calibration"]

    done = cli(*arguments, "--source", "who", "--output", tmp_path / "first.csv", "--limit", 19)
    assert done.code == 0, done.err
    assert "of a source that the sample lacks" not in done.err  # the last battle is not predicted

    done = cli(*arguments, "--output", tmp_path / "alike.csv", "--json")
    assert "by source" not in done.err
    assert not (done.json()["stack"] or {"sources": {}})["sources"]


def test_a_temperature_divides_the_log_odds(
    features_run: Path, demo_files: synthetic.Demo, cli: Callable[..., Result], tmp_path: Path
) -> None:
    def predict(*options: object) -> Array:
        done = cli(
            "predict", demo_files.test, "--model", features_run, "--output", tmp_path / "p.csv", "--force", *options
        )
        assert done.code == 0, done.err
        assert ("calibration: temperature 2: as --temperature says" in done.err) == ("--temperature" in options)
        return read_probabilities(tmp_path / "p.csv")[1]

    plain = predict("--no-calibration")
    roots = np.sqrt(plain)
    expected = roots / roots.sum(axis=1, keepdims=True)
    assert predict("--temperature", 2) == pytest.approx(expected, abs=1e-6)
    predictor = prefcli.load(features_run, temperature=2)
    assert "temperature=2" in repr(predictor)
    text = {"prompt": "a question", "response_a": "one answer", "response_b": "another, longer one"}
    at_2 = np.sqrt(prefcli.load(features_run, calibrated=False).predict(**text))
    assert tuple(predictor.predict(**text)) == pytest.approx(at_2 / at_2.sum())


def test_a_temperature_scales_the_weights_of_a_blend() -> None:
    blend = calibration.Calibration((0.6, 0.2), 0.0, unseen=(2,)).at_temperature(4)
    assert blend.weights == pytest.approx((0.1875, 0.0625))
    assert blend.unseen == (2,)
    nothing = calibration.Calibration((0.0, 0.0)).at_temperature(4)
    assert nothing.weights == pytest.approx((0.125, 0.125))


@pytest.mark.parametrize("value", [0, -1, 101])
def test_a_temperature_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=f"--temperature is {value}"):
        prefcli.options.PredictOptions(temperature=value).check()


def test_raw_scores_have_no_temperature(features_run: Path, demo_files: synthetic.Demo, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--temperature needs probabilities: .* --activation none"):
        prefcli.predict(
            demo_files.test, tmp_path / "p.csv", models=[str(features_run)], temperature=2, activation="none"
        )

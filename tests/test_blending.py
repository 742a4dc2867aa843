"""What a temperature and weights are fitted on: the predictor that is used, and what is known of each run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.metrics import log_loss

from prefcli import metrics
from prefcli.errors import ModelError
from prefcli.options import TrainOptions
from prefcli.outcomes import SWAPPED
from prefcli.prediction import blending, calibration, inference
from prefcli.storage import runs

Array = NDArray[np.float64]


class Recorder:
    """A reporter that remembers what it is given."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.note, self.warn = self.notes.append, self.warnings.append


def votes(logits: Array, seed: int) -> NDArray[np.int64]:
    """Outcomes drawn from the probabilities that these logits stand for."""
    random = np.random.default_rng(seed)
    return (random.random((len(logits), 1)) > metrics.softmax(logits).cumsum(axis=1)).sum(axis=1).clip(max=2)


def independent_fit(logs: Array, labels: NDArray[np.int64], *, tie: bool) -> tuple[float, float]:
    """Temperature's inverse and tie shift, by another optimiser, without a gradient."""

    def loss(parameters: Array) -> float:
        combined = parameters[0] * logs
        combined[:, 2] += parameters[1] if tie else 0.0
        return float((np.log(np.exp(combined).sum(axis=1)) - combined[np.arange(len(labels)), labels]).mean())

    found = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12, "maxiter": 4000})
    return float(found.x[0]), float(found.x[1])


# what a fit finds


@pytest.mark.parametrize(("weight", "shift", "tie"), [(0.5, 1.0, 0.3), (2.0, -2.0, 0.3), (1.3, 30.0, 1e-12)])
def test_temperature_and_tie_shift_are_those_of_an_independent_fit(weight: float, shift: float, tie: float) -> None:
    """Also where the model's ties are smoothed (one value for all battles) or were driven to next to nothing."""
    random = np.random.default_rng(0)
    logs = np.log(metrics.softmax(random.normal(size=(3000, 3))))
    if tie < 0.1:
        logs = np.log(np.concatenate([metrics.softmax(logs[:, :2]) * (1 - tie), np.full((3000, 1), tie)], axis=1))
    labels = votes(weight * logs + [0, 0, shift], seed=1)
    fit = calibration.calibrate([logs], labels, np.arange(3000), tie=True)
    expected = independent_fit(logs + [0, 0, shift], labels, tie=True)
    assert fit.weights[0] == pytest.approx(weight, rel=0.15)
    assert fit.weights[0] == pytest.approx(expected[0], abs=2e-3)
    assert fit.tie_shift == pytest.approx(expected[1] + expected[0] * shift, abs=0.05)
    assert fit.remarks == ()


def test_without_ties_the_temperature_is_that_of_a_against_b_and_the_share_of_ties_stays() -> None:
    random = np.random.default_rng(0)
    logs = np.log(metrics.softmax(random.normal(size=(3000, 3))))
    labels = votes(np.concatenate([2 * logs[:, :2], np.full((3000, 1), -1e9)], axis=1), seed=1)
    fit = calibration.calibrate([logs], labels, np.arange(3000), tie=True)
    margin = logs[:, 0] - logs[:, 1]
    sign = np.where(labels == 0, 1, -1)
    slopes = np.linspace(1.5, 2.5, 2001)
    best = slopes[np.argmin([np.logaddexp(0, -sign * margin * slope).mean() for slope in slopes])]
    assert fit.weights[0] == pytest.approx(best, abs=1e-3)
    before = np.exp(logs)
    assert fit.apply([before])[:, 2].mean() == pytest.approx(before[:, 2].mean(), abs=1e-6)
    assert "none of these battles are ties, so the share of ties is kept" in str(fit)


@pytest.mark.parametrize(
    ("outcomes", "kept"), [((0, 2), "temperature"), ((1,), "temperature"), ((2,), "share of ties")]
)
def test_what_the_outcomes_cannot_tell_is_kept(outcomes: tuple[int, ...], kept: str) -> None:
    random = np.random.default_rng(0)
    logs = np.log(metrics.softmax(random.normal(size=(600, 3))))
    labels = np.array(outcomes)[random.integers(0, len(outcomes), 600)]
    fit = calibration.calibrate([logs], labels, np.arange(600), tie=True)
    assert fit.weights == (1.0,)
    assert any(kept in remark for remark in fit.remarks)
    if outcomes == (0, 2):
        assert fit.apply([np.exp(logs)])[:, 2].mean() == pytest.approx((labels == 2).mean(), abs=1e-4)
    else:
        assert fit.tie_shift == pytest.approx(0, abs=1e-6)


def test_a_fit_at_its_bound_says_so() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 3))
    against = calibration.calibrate([logits], votes(-3 * logits, seed=1), np.arange(400))
    assert against.weights[0] == pytest.approx(0, abs=1e-3)
    assert "the weight ended at the bound 0: the outcomes do not follow what the model prefers" in str(against)
    both = calibration.calibrate([logits, 2 * logits], votes(-3 * logits, seed=1), np.arange(400))
    assert both.weights == pytest.approx((0, 0), abs=1e-3)
    assert "all weights ended at the bound 0: the outcomes do not follow what any model prefers" in str(both)
    sure = calibration.calibrate([logits * 1e-4], logits.argmax(axis=1), np.arange(400))
    assert sure.weights[0] == pytest.approx(100)
    assert "bound 100" in str(sure)


# the predictor that is used


def a_run(
    folder: Path, logits: Array, labels: NDArray[np.int64], *, first_id: int = 0, swapped: Array | None = None,
    outcomes: tuple[float, ...] = (1, 1, 1), **options: Any,
) -> Path:  # fmt: skip
    """A run's folder with what blending reads."""
    config = {"data": {"outcomes": list(outcomes), "train_battles": 10}}
    runs.write_config(folder, TrainOptions(**options), config)
    ids = np.arange(first_id, first_id + len(labels))
    runs.write_validation(folder, runs.HeldOut([str(i) for i in ids], ids // 2, logits, labels, swapped))
    return folder


NOBODY = np.empty(0, dtype=np.int64)


def test_the_mean_over_folds_is_not_given_the_temperature_of_single_folds(tmp_path: Path) -> None:
    """Less certain than each fold, it would be too uncertain: 5 folds that see the outcomes through their own noise."""
    random = np.random.default_rng(0)
    truth = random.normal(size=(4000, 3)) * 1.5
    labels = votes(truth, seed=1)
    folds = [truth + random.normal(size=truth.shape) * 1.5 for _ in range(5)]
    single = np.array([folds[i % 5][i] for i in range(4000)])
    mean = np.mean([metrics.softmax(z) for z in folds], axis=0)
    run = a_run(tmp_path / "run", single[:2000], labels[:2000], folds=5)
    fit = blending.from_validation([run], NOBODY, Recorder())
    as_before = calibration.calibrate([single[:2000]], labels[:2000], np.arange(2000))
    used, before, plain = (metrics.log_loss(p[2000:], labels[2000:]) for p in (
        fit.apply([mean]), as_before.apply([mean]), mean
    ))  # fmt: skip
    assert used == pytest.approx(plain)
    assert used < before - 0.002
    assert "--calibrate FILE" in str(fit)


def test_with_both_orders_the_temperature_is_fitted_on_their_mean(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=(3000, 3))
    original, swapped = (truth * 2 + random.normal(size=truth.shape) * 2 for _ in range(2))
    labels = votes(truth, seed=1)
    run = a_run(tmp_path / "run", original, labels, swapped=swapped)
    mean = (metrics.softmax(original) + metrics.softmax(swapped)) / 2
    fits = [blending.from_validation([run], NOBODY, Recorder(), swap_average=both) for both in (False, True)]
    assert fits[0].weights[0] == pytest.approx(
        independent_fit(np.log(metrics.softmax(original)), labels, tie=False)[0], abs=1e-3
    )
    assert fits[1].weights[0] == pytest.approx(independent_fit(np.log(mean), labels, tie=False)[0], abs=1e-3)
    assert fits[1].weights[0] > fits[0].weights[0] + 0.05

    earlier = a_run(tmp_path / "earlier", original, labels)
    assert blending.from_validation([earlier], NOBODY, Recorder()).weights == fits[0].weights
    fit = blending.from_validation([earlier], NOBODY, Recorder(), swap_average=True)
    assert (fit.weights, fit.fitted) == ((1.0,), False)
    assert "one order" in str(fit)
    features = a_run(tmp_path / "features", original, labels, architecture="features")
    assert blending.from_validation([features], NOBODY, Recorder(), swap_average=True).weights == fits[0].weights


def test_weights_of_runs_with_folds_sum_to_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=(1000, 3)) * 1.5
    labels = votes(truth, seed=1)
    members = [truth + random.normal(size=truth.shape) * noise for noise in (1.0, 2.0)]
    folders = [a_run(tmp_path / str(i), z, labels, folds=5) for i, z in enumerate(members)]
    fit = blending.from_validation(folders, NOBODY, Recorder())
    logs = [np.log(metrics.softmax(z)) for z in members]
    grid = np.linspace(0, 1, 1001)
    losses = [metrics.log_loss(metrics.softmax(w * logs[0] + (1 - w) * logs[1]), labels) for w in grid]
    assert fit.fitted
    assert sum(fit.weights) == pytest.approx(1)
    assert fit.weights[0] == pytest.approx(grid[np.argmin(losses)], abs=2e-3)


# what is known of each run


def strong_and_weak(n: int) -> tuple[list[Array], NDArray[np.int64]]:
    """Calibrated log probabilities of two models that see the outcomes through noise of their own: 0.87 and 1.06."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    truth = random.normal(size=(n, 3)) * 1.2
    labels, models = votes(truth, seed=1), []
    for noise in (0.6, 3.0):
        signal = truth + random.normal(size=truth.shape) * noise
        models.append(LogisticRegression(C=1e6).fit(signal, labels).predict_log_proba(signal))
    return models, labels


def test_a_weak_run_does_not_worsen_a_strong_one_where_only_their_own_losses_are_known(tmp_path: Path) -> None:
    (strong, weak), labels = strong_and_weak(9000)
    halves = [np.arange(3000), np.arange(3000, 6000)]
    folders = [
        a_run(tmp_path / name, z[rows], labels[rows], first_id=int(rows[0]))
        for name, z, rows in zip(("strong", "weak"), (strong, weak), halves, strict=True)
    ]
    recorder = Recorder()
    blend = blending.from_validation(folders, NOBODY, recorder)
    parts, unseen = [metrics.softmax(z[6000:]) for z in (strong, weak)], labels[6000:]
    equal = metrics.log_loss(calibration.Calibration.equal(2).apply(parts), unseen)
    alone = metrics.log_loss(parts[0], unseen)
    assert metrics.log_loss(blend.apply(parts), unseen) < alone + 0.002 < equal - 0.03
    (note,) = [note for note in recorder.notes if "own validation log loss" in note]
    for z, rows, name in zip((strong, weak), halves, ("strong", "weak"), strict=True):
        assert f"{name} {log_loss(labels[rows], metrics.softmax(z[rows])):.4f}" in note


def test_equal_weights_warn_with_what_is_known(tmp_path: Path) -> None:
    (strong, weak), labels = strong_and_weak(300)
    known = a_run(tmp_path / "known", strong, labels)
    unknown = tmp_path / "unknown"
    runs.write_config(unknown, TrainOptions(), {})
    recorder = Recorder()
    assert blending.from_validation([known, unknown], NOBODY, recorder).weights == (0.5, 0.5)
    (warning,) = recorder.warnings
    assert "nothing was held out by unknown" in warning
    assert f"known {log_loss(labels, metrics.softmax(strong)):.4f}" in warning
    few = a_run(tmp_path / "few", weak[:20], labels[:20], first_id=1000)
    recorder = Recorder()
    assert blending.from_validation([known, few], NOBODY, recorder).weights == (0.5, 0.5)
    assert "fewer than 50 held-out battles of few" in recorder.warnings[0]


def test_equal_weights_leave_an_outcome_that_no_run_saw_at_its_probability(tmp_path: Path) -> None:
    """The geometric mean of runs that disagree would give it more."""
    logits = metrics.with_unseen(np.array([[4.0, -4.0, 0.0], [-4.0, 4.0, 0.0]]), (2,))
    folders = [a_run(tmp_path / name, logits, np.zeros(2, dtype=np.int64), outcomes=(5, 5, 0)) for name in "ab"]
    parts = [metrics.softmax(logits), metrics.softmax(logits[::-1])]
    for weights in (blending.from_validation(folders, NOBODY, Recorder()), blending.equal_weights(folders)):
        assert weights.weights == (0.5, 0.5)
        assert weights.apply(parts) == pytest.approx(np.tile([0.495, 0.495, 0.01], (2, 1)))
    seen = a_run(tmp_path / "c", logits, np.zeros(2, dtype=np.int64))
    assert blending.equal_weights([*folders, seen]).unseen == ()


def test_the_reason_is_said_where_all_held_out_prompts_are_predicted(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(60, 3))
    folder, recorder = a_run(tmp_path / "run", logits, votes(logits, seed=1)), Recorder()
    blending.from_validation([folder], np.arange(30), recorder)
    assert recorder.notes == [
        "60 validation battles of run with a prompt that is to be predicted: not fitted on",
        "calibration on validation battles: temperature 1: no battles to fit on",
    ]


def test_held_out_logits_that_are_no_numbers_are_left_out_and_named(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(500, 3))
    labels = votes(logits * 2, seed=1)
    expected = calibration.calibrate([logits[1:]], labels[1:], np.arange(1, 500) // 2)
    logits[0] = np.nan
    recorder = Recorder()
    fit = blending.from_validation([a_run(tmp_path / "run", logits, labels)], NOBODY, recorder)
    assert fit.weights == pytest.approx(expected.weights)
    assert "1 held-out battle of run with logits that are not finite numbers (the first is 0)" in recorder.warnings[0]


# predictions that are no numbers


class Fake:
    """A model that computes what it is given, but not a number for some ids."""

    def __init__(self, broken: str, value: float) -> None:
        self.broken, self.value = broken, value

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[Array, Array | None]:
        logits = np.zeros((batch.num_rows, 3))
        swapped = logits[:, SWAPPED].copy()
        (swapped if swap_average else logits)[batch.column("id").to_pylist().index(self.broken), 1] = self.value
        return logits, swapped if swap_average else None


@pytest.mark.parametrize("swap_average", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_battle_without_numbers_is_refused_by_name(value: float, swap_average: bool) -> None:
    batch = pa.record_batch({"id": ["x", "y", "z"]})
    with pytest.raises(ModelError, match="no finite numbers for 1 battle, the first is battle y") as refused:
        inference.predict_batch(inference.Member((Fake("y", value),), "raw"), batch, swap_average=swap_average)
    assert "--precision fp32" in refused.value.hint

"""Temperature, tie share and blending weights: right where the answer is known, and refused where they do not help."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.prediction import calibration
from prefcli.prediction.calibration import Calibration

Array = NDArray[np.float64]


def votes(logits: Array, seed: int) -> NDArray[np.int64]:
    """Outcomes drawn from the probabilities that these logits stand for."""
    random = np.random.default_rng(seed)
    return (random.random((len(logits), 1)) > metrics.softmax(logits).cumsum(axis=1)).sum(axis=1).clip(max=2)


def truth(n: int, seed: int = 0) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    logits = np.random.default_rng(seed).normal(size=(n, 3))
    return logits, votes(logits, seed + 1), np.arange(n) // 2


@pytest.mark.parametrize("temperature", [0.4, 1.6, 3.0])
def test_the_true_temperature_is_recovered(temperature: float) -> None:
    logits, labels, keys = truth(20_000)
    fit = calibration.calibrate([logits / temperature], labels, keys)
    assert fit.fitted
    assert fit.weights[0] == pytest.approx(temperature, rel=0.05)
    repaired = fit.apply([metrics.softmax(logits / temperature)])
    assert metrics.log_loss(repaired, labels) == pytest.approx(
        metrics.log_loss(metrics.softmax(logits), labels), abs=1e-3
    )
    assert fit.after < fit.before
    assert f"{1 / fit.weights[0]:.3f}" in str(fit)


def test_the_true_tie_shift_is_recovered_with_the_temperature() -> None:
    logits, labels, keys = truth(20_000)
    spoilt = (logits - [0, 0, 1.5]) / 2
    fit = calibration.calibrate([spoilt], labels, keys, tie=True)
    assert fit.weights[0] == pytest.approx(2, rel=0.05)
    assert fit.tie_shift == pytest.approx(1.5, abs=0.1)
    assert calibration.calibrate([spoilt], labels, keys).tie_shift == 0


def test_weights_agree_with_a_grid_search() -> None:
    logits, labels, keys = truth(3_000)
    random = np.random.default_rng(5)
    members = [logits + random.normal(size=logits.shape) * noise for noise in (0.8, 1.6)]
    fit = calibration.calibrate(members, labels, keys)
    grid = [
        (metrics.log_loss(metrics.softmax(a * members[0] + b * members[1]), labels), a, b)
        for a in np.arange(0, 1.5, 0.05)
        for b in np.arange(0, 1.5, 0.05)
    ]
    best, a, b = min(grid)
    assert fit.weights == pytest.approx((a, b), abs=0.05)
    blended = fit.apply([metrics.softmax(z) for z in members])
    assert metrics.log_loss(blended, labels) <= best + 1e-9
    assert fit.after < min(fit.members)


@pytest.mark.parametrize(("certainty", "prompts", "sum_is_one"), [(1.0, 12, True), (3.0, 1_500, False)])
def test_weights_get_another_sum_only_where_the_cross_fit_is_better_with_it(certainty, prompts, sum_is_one) -> None:
    logits, labels, _ = truth(3_000)
    keys = np.arange(3_000) % prompts
    random = np.random.default_rng(7)
    # A prompt's answers are all harder, or all easier, to tell apart than the models think.
    harder = np.exp(random.normal(size=(prompts, 1)) * 0.4)[keys]
    members = [certainty * harder * (logits + random.normal(size=logits.shape) * noise) for noise in (0.3, 0.9)]
    start = (0.5, 0.5)
    fit = calibration.calibrate(members, labels, keys, start=start)
    of_sum_one = calibration.calibrate(members, labels, keys, start=start, scale=False)
    assert (sum(fit.weights) == pytest.approx(1, abs=1e-6)) is sum_is_one
    assert fit.after == of_sum_one.after if sum_is_one else fit.after < of_sum_one.after


def test_a_random_member_gets_no_weight() -> None:
    logits, labels, keys = truth(4_000)
    noise = np.random.default_rng(8).normal(size=logits.shape) * 2
    fit = calibration.calibrate([logits, noise], labels, keys)
    assert fit.weights[1] == pytest.approx(0, abs=0.03)


def test_a_fit_that_does_not_help_on_unseen_battles_is_discarded() -> None:
    fitted = [calibration.calibrate([truth(60, seed)[0]], *truth(60, seed)[1:]).fitted for seed in range(30)]
    assert sum(fitted) < 25, "logits that are right already: a fit on 60 battles is mostly noise"
    for fit in (calibration.calibrate([z], y, k) for z, y, k in (truth(60, seed) for seed in range(30))):
        if not fit.fitted:
            assert fit.weights == (1.0,)
            assert fit.after >= fit.before
            assert "kept" in str(fit)


def test_with_few_battles_or_prompts_nothing_is_fitted() -> None:
    logits, labels, keys = truth(49)
    fit = calibration.calibrate([logits * 9], labels, keys)
    assert (fit.weights, fit.fitted, fit.battles) == ((1.0,), False, 49)
    assert "too few for a fit: 49 battles of 25 prompts, 50 battles of 5 prompts are needed" in str(fit)
    logits, labels, keys = truth(200)
    fit = calibration.calibrate([logits * 9, logits], labels, np.zeros(200, dtype=np.int64))
    assert fit.weights == (0.5, 0.5)
    assert "too few" in str(fit)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.floats(0, 3), min_size=1, max_size=3), st.floats(-3, 3), st.integers(1, 9)
)
def test_calibrating_swapped_answers_swaps_the_result(seed: int, weights: list[float], shift: float, n: int) -> None:
    members = [metrics.softmax(np.random.default_rng(seed + i).normal(size=(n, 3)) * 9) for i in range(len(weights))]
    mixing = Calibration(tuple(weights), shift)
    there, back = mixing.apply(members), mixing.apply([p[:, [1, 0, 2]] for p in members])
    assert np.allclose(there, back[:, [1, 0, 2]], atol=1e-12)
    assert len(metrics.find_improper(there)) == 0


def test_certain_probabilities_stay_finite() -> None:
    certain = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    mixed = Calibration((0.5, 0.5)).apply([certain, certain[::-1]])
    assert len(metrics.find_improper(mixed)) == 0
    assert Calibration.equal(1).apply([certain]).tolist() == certain.tolist()

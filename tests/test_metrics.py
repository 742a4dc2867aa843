"""Every metric against an independent source: scikit-learn, or a calculation by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from prefcli import metrics


def random_predictions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.dirichlet([1, 1, 0.5], size=n), random.integers(0, 3, n)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_log_loss_equals_scikit_learns_even_when_an_outcome_never_occurs(n: int, seed: int) -> None:
    probabilities, labels = random_predictions(n, seed)
    labels %= 1 + seed % 3
    expected = log_loss(labels, probabilities, labels=[0, 1, 2])
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_binary_log_loss_equals_scikit_learns_on_the_three_columns_laid_end_to_end() -> None:
    probabilities, labels = random_predictions(500)
    expected = log_loss(np.eye(3)[labels].ravel(), probabilities.ravel())
    assert metrics.binary_log_loss(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_a_zero_for_the_truth_is_clipped_as_scikit_learn_does_and_counted() -> None:
    probabilities = np.array([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    labels = np.array([0, 2])
    score = metrics.score(probabilities, labels)
    assert score.clipped == 1
    assert score.log_loss == pytest.approx(log_loss(labels, probabilities, labels=[0, 1, 2]), abs=1e-12)


def test_accuracy_and_brier_score() -> None:
    probabilities, labels = random_predictions(400)
    assert metrics.accuracy(probabilities, labels) == accuracy_score(labels, probabilities.argmax(axis=1))
    by_hand = np.mean(
        [sum((p[i] - (y == i)) ** 2 for i in range(3)) for p, y in zip(probabilities, labels, strict=True)]
    )
    assert metrics.brier(probabilities, labels) == pytest.approx(by_hand)


def test_calibration_error_by_hand() -> None:
    # Two bins: confidence 0.6 twice, right once -> gap 0.1; confidence 0.9 twice, right twice -> gap 0.1.
    probabilities = np.array([[0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    labels = np.array([0, 1, 0, 1])
    assert metrics.score(probabilities, labels).ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)


def test_the_prior_is_the_entropy_of_the_outcomes() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    shares = np.tile([0.5, 0.3, 0.2], (10, 1))
    assert metrics.prior_log_loss(labels) == pytest.approx(metrics.log_loss(shares, labels))
    assert metrics.prior_log_loss(np.zeros(4, dtype=int)) == 0.0


def test_the_log_loss_of_a_uniform_guess_is_the_logarithm_of_three() -> None:
    score = metrics.score(np.full((9, 3), 1 / 3), np.arange(9) % 3)
    assert score.log_loss == pytest.approx(math.log(3))
    assert score.uniform_log_loss == pytest.approx(math.log(3))


def test_the_interval_covers_the_mean_as_often_as_its_level_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = metrics.bootstrap_interval(random.exponential(1.0, 400), rounds=200, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_the_interval_of_many_values_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).exponential(1.0, 3 * metrics.BOOTSTRAP_MAX_UNITS + 7)
    low, high = metrics.bootstrap_interval(values)
    width = 2 * 1.96 * values.std() / math.sqrt(len(values))
    assert high - low == pytest.approx(width, rel=0.1)
    assert low < values.mean() < high


@pytest.mark.parametrize(
    "row",
    [[0.5, 0.5, 0.1], [math.nan, 0.5, 0.5], [math.inf, 0, 0], [-0.1, 0.6, 0.5], [1.1, -0.1, 0.0], [0.3, 0.3, 0.3]],
)
def test_rows_that_are_not_probabilities_are_found(row: list[float]) -> None:
    rows = np.array([[0.2, 0.3, 0.5], row, [0.0, 0.0, 1.0 + 5e-7 - 5e-7]])
    assert metrics.find_improper(rows).tolist() == [1]
    with pytest.raises(ValueError, match="row 1"):
        metrics.score(rows, np.zeros(3, dtype=int))


def test_a_sum_within_the_tolerance_is_accepted() -> None:
    assert metrics.find_improper(np.array([[0.2, 0.3, 0.5 + 9e-7]])).size == 0
    assert metrics.find_improper(np.array([[0.2, 0.3, 0.5 + 2e-6]])).size == 1


def test_softmax_does_not_overflow() -> None:
    assert metrics.softmax(np.array([[1e5, 0.0, -1e5]])).tolist() == [[1.0, 0.0, 0.0]]
    assert metrics.softmax(np.array([[1.0, 1.0, 1.0]]))[0] == pytest.approx([1 / 3] * 3)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 400), parts=st.integers(1, 7), seed=st.integers(0, 1000))
def test_a_stream_scores_like_all_its_parts_together(n: int, parts: int, seed: int) -> None:
    probabilities, labels = random_predictions(n, seed)
    expected = metrics.score(probabilities, labels)
    cuts = zip(np.array_split(probabilities, parts), np.array_split(labels, parts), strict=True)
    streamed = metrics.score_stream(cuts)
    assert streamed.log_loss_ci == expected.log_loss_ci
    for name in ("n", "log_loss", "binary_log_loss", "accuracy", "brier", "ece", "prior_log_loss", "clipped"):
        assert getattr(streamed, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


def test_the_interval_of_a_long_stream_matches_that_of_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BOOTSTRAP_MAX_UNITS", 500)
    probabilities, labels = random_predictions(30_000)
    expected = metrics.score(probabilities, labels).log_loss_ci
    cuts = zip(np.array_split(probabilities, 100), np.array_split(labels, 100), strict=True)
    assert metrics.score_stream(cuts).log_loss_ci == pytest.approx(expected, abs=2e-3)
    by_theory = 1.96 * metrics.losses(probabilities, labels).std() / np.sqrt(30_000)
    assert (expected[1] - expected[0]) / 2 == pytest.approx(by_theory, rel=0.15)


def test_scoring_no_battles_is_an_error() -> None:
    with pytest.raises(ValueError, match="no battles"):
        metrics.score_stream([])

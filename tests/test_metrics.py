"""Every metric against an independent source: scikit-learn, or a calculation by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from prefcli import bootstrap, metrics


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
    assert metrics.accuracy(probabilities, labels) == pytest.approx(
        accuracy_score(labels, probabilities.argmax(axis=1))
    )
    by_hand = np.mean(
        [sum((p[i] - (y == i)) ** 2 for i in range(3)) for p, y in zip(probabilities, labels, strict=True)]
    )
    assert metrics.brier(probabilities, labels) == pytest.approx(by_hand)


def test_accuracy_of_equal_probabilities_is_the_mean_over_the_ways_to_break_the_ties() -> None:
    random = np.random.default_rng(0)
    probabilities = np.array([[0.4, 0.4, 0.2], [1 / 3] * 3, [0.2, 0.4, 0.4], [0.5, 0.2, 0.3]])[
        random.integers(0, 4, 60)
    ]
    labels = random.integers(0, 3, 60)
    broken = probabilities + random.uniform(0, 1e-9, (4000, *probabilities.shape))
    expected = (broken.argmax(axis=2) == labels).mean()
    assert metrics.accuracy(probabilities, labels) == pytest.approx(expected, abs=0.005)
    for order in ([1, 0, 2], [2, 1, 0], [1, 2, 0]):
        relabelled = np.argsort(order)[labels]
        renamed, original = metrics.score(probabilities[:, order], relabelled), metrics.score(probabilities, labels)
        assert renamed.accuracy == pytest.approx(original.accuracy, abs=1e-12)
        assert renamed.ece == pytest.approx(original.ece, abs=1e-12)


def test_a_coin_flip_is_right_half_the_time_whatever_the_labels() -> None:
    coin = np.tile([0.5, 0.5, 0.0], (40, 1))
    for label in (0, 1):
        score = metrics.score(coin, np.full(40, label), outcomes=2)
        assert (score.accuracy, score.ece) == (0.5, 0.0)


def test_without_ties_two_outcomes_are_scored_as_scikit_learn_scores_a_binary_classifier() -> None:
    random = np.random.default_rng(2)
    probabilities, labels = random.dirichlet([2, 1, 1], size=500), (random.random(500) < 0.4).astype(int)
    p_b = probabilities[:, 1] / (probabilities[:, 0] + probabilities[:, 1])
    score = metrics.score(probabilities, labels)
    assert score.outcomes == 2
    assert score.log_loss == pytest.approx(log_loss(labels, p_b), abs=1e-12)
    assert score.binary_log_loss == pytest.approx(score.log_loss, abs=1e-12)
    assert score.brier == pytest.approx(2 * brier_score_loss(labels, p_b), abs=1e-12)
    assert score.accuracy == pytest.approx(accuracy_score(labels, p_b > 0.5))
    assert score.uniform_log_loss == pytest.approx(math.log(2))
    assert score.prior_log_loss == pytest.approx(log_loss(labels, np.full(500, labels.mean())))
    confidence, is_right = np.maximum(p_b, 1 - p_b), (p_b > 0.5) == labels
    bins = np.digitize(confidence, np.arange(1, 15) / 15, right=True)
    gaps = [abs((is_right - confidence)[bins == i].sum()) for i in range(15)]
    assert score.ece == pytest.approx(sum(gaps) / 500)
    assert metrics.score(probabilities, labels, outcomes=3).log_loss > score.log_loss


def test_a_tie_or_too_few_battles_make_three_outcomes() -> None:
    def outcomes(labels: list[int]) -> int:
        return metrics.score(np.full((len(labels), 3), 1 / 3), np.array(labels)).outcomes

    assert [outcomes([0] * n) for n in (29, 30, 200)] == [3, 2, 2]
    assert outcomes([0] * 200 + [2]) == 3
    with pytest.raises(ValueError, match="ties among the labels"):
        metrics.score(np.full((2, 3), 1 / 3), np.array([0, 2]), outcomes=2)
    with pytest.raises(ValueError, match="2 or 3"):
        metrics.score(np.full((2, 3), 1 / 3), np.array([0, 1]), outcomes=4)


def test_a_tie_late_in_a_stream_is_scored_like_one_at_its_beginning() -> None:
    probabilities, labels = random_predictions(300)
    labels = np.sort(labels)
    parts = [(probabilities[i : i + 50], labels[i : i + 50], None) for i in range(0, 300, 50)]
    streamed, expected = metrics.score_stream(parts), metrics.score(probabilities, labels)
    assert streamed.outcomes == 3
    assert streamed.log_loss == pytest.approx(expected.log_loss, abs=1e-12)
    assert streamed.log_loss_ci == pytest.approx(expected.log_loss_ci, abs=1e-12)


def test_where_only_a_tie_is_possible_two_outcomes_are_equally_probable() -> None:
    rows = metrics.two_outcome(np.array([[0.0, 0.0, 1.0], [0.1, 0.3, 0.6], [0.25, 0.75, 0.0]]))
    assert rows == pytest.approx(np.array([[0.5, 0.5, 0], [0.25, 0.75, 0], [0.25, 0.75, 0]]))


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


def coverage(draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray | None]], true_mean: float) -> float:
    """Share of 300 intervals, each of a new sample, hold the true mean."""
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        values, groups = draw(random)
        interval = metrics.bootstrap_interval(values, groups=groups, rounds=200, seed=seed)
        assert interval is not None
        hits += interval[0] <= true_mean <= interval[1]
    return hits / 300


def of_prompts(random: np.random.Generator, sizes: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Losses of prompts with 1 to 9 battles each, or as many as ``sizes``; alike within a prompt, with the mean 1."""
    sizes = sizes or random.integers(1, 10, 60).tolist()
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return random.normal(1, 0.3, len(sizes))[groups] + random.normal(0, 0.2, len(groups)), groups


def test_the_interval_covers_the_mean_as_often_as_its_level_says() -> None:
    assert 0.92 <= coverage(lambda random: (random.exponential(1.0, 400), None), 1.0) <= 0.98
    assert 0.92 <= coverage(of_prompts, 1.0) <= 0.98
    assert 0.91 <= coverage(lambda random: (random.normal(1, 1, bootstrap.MIN_UNITS), None), 1.0) <= 0.98
    assert coverage(lambda random: of_prompts(random, [50] * 3 + [1] * 60), 1.0) >= 0.92  # three hold most of them
    assert coverage(lambda random: (of_prompts(random)[0], None), 1.0) < 0.8  # what resampling battles gives


def test_there_is_no_interval_of_few_prompts_but_the_reason() -> None:
    probabilities, labels = random_predictions(300)
    few, enough = np.arange(300) % 19, np.arange(300) % 20
    score = metrics.score(probabilities, labels, groups=few)
    assert (score.prompts, score.log_loss_ci) == (19, None)
    assert score.log_loss_ci_reason == "no interval: 19 prompts, 20 are needed"
    assert metrics.score(probabilities, labels, groups=enough).log_loss_ci is not None
    assert metrics.score(probabilities[:1], labels[:1]).log_loss_ci_reason == "no interval: 1 battle, 20 are needed"
    own_prompts = metrics.score(probabilities[:19], labels[:19], groups=np.arange(19))
    assert own_prompts.log_loss_ci_reason == "no interval: 19 battles, 20 are needed"
    assert metrics.describe_battles(300, 1, "held-out battle") == "300 held-out battles of 1 prompt"


def test_equal_losses_have_no_interval_for_one_would_be_a_point() -> None:
    score = metrics.score(np.tile([0.7, 0.2, 0.1], (50, 1)), np.zeros(50, dtype=int), outcomes=3)
    assert (score.log_loss_ci, score.log_loss_ci_reason) == (None, "no interval: all battles have the same loss")


def test_many_prompts_in_parts_have_the_interval_of_all_prompts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels = random_predictions(20_000)
    groups = np.random.default_rng(1).integers(-(2**62), 2**62, 5000)[np.arange(20_000) % 5000]
    probabilities = probabilities[np.arange(20_000) % 5000]  # alike within a prompt
    labels = labels[np.arange(20_000) % 5000]
    expected = metrics.score(probabilities, labels, groups=groups)
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 1000)
    cuts = np.array_split(np.random.default_rng(2).permutation(20_000), 30)
    streamed = metrics.score_stream((probabilities[cut], labels[cut], groups[cut]) for cut in cuts)
    assert streamed.prompts == expected.prompts == 5000
    assert streamed.log_loss_ci is not None
    by_theory = 1.96 * metrics.losses(probabilities, labels).std() / np.sqrt(5000)
    for low, high in (streamed.log_loss_ci, expected.log_loss_ci):
        assert (high - low) / 2 == pytest.approx(by_theory, rel=0.08)


def test_the_interval_of_many_values_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).exponential(1.0, 3 * bootstrap.MAX_UNITS + 7)
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
    streamed = metrics.score_stream((p, y, None) for p, y in cuts)
    assert streamed.log_loss_ci == expected.log_loss_ci
    for name in ("n", "log_loss", "binary_log_loss", "accuracy", "brier", "ece", "prior_log_loss", "clipped"):
        assert getattr(streamed, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


def test_the_interval_of_a_long_stream_matches_that_of_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 500)
    probabilities, labels = random_predictions(30_000)
    expected = metrics.score(probabilities, labels).log_loss_ci
    cuts = zip(np.array_split(probabilities, 100), np.array_split(labels, 100), strict=True)
    assert metrics.score_stream((p, y, None) for p, y in cuts).log_loss_ci == pytest.approx(expected, abs=2e-3)
    by_theory = 1.96 * metrics.losses(probabilities, labels).std() / np.sqrt(30_000)
    assert (expected[1] - expected[0]) / 2 == pytest.approx(by_theory, rel=0.15)


def test_scoring_no_battles_is_an_error() -> None:
    with pytest.raises(ValueError, match="no battles"):
        metrics.score_stream([])

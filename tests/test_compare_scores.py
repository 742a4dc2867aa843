"""Paired differences of predictions: against scipy's and an analytic test, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from prefcli import metrics


def repeated_prompts(random: np.random.Generator, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each battle's prompt (1 to 4 battles of each), and an effect that the battles of a prompt share."""
    groups = np.repeat(np.arange(prompts), random.integers(1, 5, prompts))
    return groups, random.normal(size=prompts)[groups]


def test_a_difference_has_the_interval_and_p_value_of_students_paired_test() -> None:
    random = np.random.default_rng(1)
    a = random.normal(0.0, 1, 400)
    b = a + random.normal(0.08, 0.5, 400)
    difference = metrics.compare(a, b)
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval()
    assert difference.difference == pytest.approx((a - b).mean(), abs=1e-12)
    assert difference.ci == pytest.approx((low, high), abs=0.004)
    assert difference.p == pytest.approx(expected.pvalue, abs=0.006)
    assert 0.001 < expected.pvalue < 0.2


@pytest.mark.parametrize("shift", [0.0, 0.055, 0.06, 0.065, 0.07, 0.3])
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_out_zero(shift: float) -> None:
    random = np.random.default_rng(2)
    a = random.normal(0, 1, 30)
    a -= a.mean()
    difference = metrics.compare(a + shift * 6, np.zeros(30))
    assert difference.ci is not None
    assert difference.p is not None
    assert (difference.p < 0.05) == (difference.ci[0] > 0)


def test_swapping_the_two_models_negates_the_difference_and_keeps_p() -> None:
    random = np.random.default_rng(3)
    a, b = random.exponential(size=(2, 200))
    one_way, other_way = metrics.compare(a, b), metrics.compare(b, a)
    assert one_way.ci is not None
    assert other_way.ci is not None
    assert one_way.difference == -other_way.difference
    assert one_way.ci == pytest.approx((-other_way.ci[1], -other_way.ci[0]))
    assert one_way.p == pytest.approx(other_way.p)


def test_false_alarms_are_5_percent_and_intervals_cover_when_prompts_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "DIFFERENCE_ROUNDS", 400)
    random = np.random.default_rng(4)
    alarms, naive = [], []
    for seed in range(400):
        groups, shared = repeated_prompts(random, 60)
        a = shared + random.normal(size=len(groups))
        difference = metrics.compare(a, np.zeros(len(a)), groups, seed=seed)
        assert difference.ci is not None
        assert difference.prompts == 60
        alarms.append(not difference.ci[0] <= 0 <= difference.ci[1])
        naive.append((metrics.compare(a, np.zeros(len(a)), seed=seed).p or 1) < 0.05)
    assert 0.03 <= np.mean(alarms) <= 0.075  # 400 data sets: 5 % within 2.3 standard errors
    assert np.mean(naive) > 0.1  # battles resampled one by one, the test would not hold its level


def test_too_few_prompts_and_equal_predictions_have_no_p_value() -> None:
    values = np.random.default_rng(5).normal(size=100)
    few = metrics.compare(values, values * 2, np.repeat(np.arange(10), 10))
    assert (few.ci, few.p, few.prompts) == (None, None, 10)
    assert few.reason == "no interval: 10 prompts, 20 are needed"
    same = metrics.compare(values, values)
    assert (same.difference, same.ci, same.p) == (0.0, None, None)
    assert same.reason == metrics.SAME_DIFFERENCE


@pytest.mark.parametrize(
    ("a", "b", "groups", "message"),
    [
        (np.zeros(3), np.zeros(2), None, "same battles"),
        (np.zeros(0), np.zeros(0), None, "n >= 1"),
        (np.zeros(2), np.zeros(2), np.zeros(3, dtype=np.int64), "one group per battle"),
        (np.array([0, np.nan]), np.zeros(2), None, "battle 1 has a loss that is not finite"),
    ],
)
def test_losses_that_do_not_fit_together_are_refused(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.compare(a, b, groups)


def test_holms_p_values_are_those_of_the_definition() -> None:
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert metrics.holm([]) == []

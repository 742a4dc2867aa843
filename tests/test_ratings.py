"""Ratings agree with independent fits, recover known strengths, and caution where they cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from prefcli.eda import ratings
from prefcli.outcomes import TIE, A, B
from prefcli.rendering import eda_plots, tables

NAMES = tuple(f"m{i}" for i in range(8))


def simulate(n: int, nu: float, seed: int = 0) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Battles drawn from Davidson's model with known strengths."""
    random = np.random.default_rng(seed)
    strengths = np.linspace(-1.2, 1.4, len(NAMES))
    strengths -= strengths.mean()
    a = random.integers(len(NAMES), size=n)
    b = (a + random.integers(1, len(NAMES), size=n)) % len(NAMES)
    first, second = np.exp(strengths[a]), np.exp(strengths[b])
    tie = nu * np.sqrt(first * second)
    draw = random.random(n) * (first + second + tie)
    return a, b, np.where(draw < first, A, np.where(draw < first + second, B, TIE)), strengths


def test_without_ties_it_is_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    a, b, label, _ = simulate(6000, nu=0.7)
    decided = label != TIE
    a, b, label = a[decided], b[decided], label[decided]
    design = np.zeros((len(a), len(NAMES)))
    design[np.arange(len(a)), a] = 1
    design[np.arange(len(a)), b] = -1
    model = linear_model.LogisticRegression(C=1e8, fit_intercept=False, tol=1e-10, max_iter=2000)
    independent = model.fit(design, label == A).coef_[0]
    fitted = ratings.fit(ratings.count_pairs(a, b, label, NAMES))
    assert fitted.strengths == pytest.approx(independent - independent.mean(), abs=1e-3)
    assert fitted.log_nu == -np.inf


def test_with_ties_it_is_the_maximum_of_davidsons_likelihood() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    a, b, label, _ = simulate(6000, nu=0.8)

    def loss(x: NDArray) -> float:
        worth = np.exp(x[:-1])
        each = np.stack([worth[a], worth[b], np.exp(x[-1]) * np.sqrt(worth[a] * worth[b])], axis=1)
        return float(-np.log(each[np.arange(len(a)), label] / each.sum(axis=1)).sum())

    independent = optimize.minimize(loss, np.zeros(len(NAMES) + 1), method="BFGS", options={"gtol": 1e-4}).x
    fitted = ratings.fit(ratings.count_pairs(a, b, label, NAMES))
    assert fitted.strengths == pytest.approx(independent[:-1] - independent[:-1].mean(), abs=1e-3)
    assert fitted.log_nu == pytest.approx(independent[-1], abs=1e-3)


def test_known_strengths_lie_within_their_intervals() -> None:
    inside = 0
    for seed in range(5):
        a, b, label, strengths = simulate(3000, nu=0.8, seed=seed)
        rated = ratings.rate(ratings.count_pairs(a, b, label, NAMES), seed=seed)
        assert rated is not None
        for model in rated.models:
            true = ratings.elo(strengths[NAMES.index(model.model)])
            assert model.low < model.rating < model.high
            assert abs(model.rating - true) < 80
            inside += model.low <= true <= model.high
    assert inside >= 34  # of 40, at 95 % each


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """Two models, no ties: the log-odds of n wins in N have a standard error of sqrt(1/n + 1/(N - n))."""
    wins, losses = 300, 200
    label = np.repeat([A, B], [wins, losses])
    pairwise = ratings.count_pairs(np.zeros(500, int), np.ones(500, int), label, ("x", "y"))
    rated = ratings.rate(pairwise, rounds=2000)
    assert rated is not None
    best, worst = rated.models
    assert best.rating - worst.rating == pytest.approx(400 * np.log10(wins / losses), abs=0.1)
    width = 2 * 1.96 * np.sqrt(1 / wins + 1 / losses) * ratings.ELO_PER_LOG_ODDS / 2
    assert best.high - best.low == pytest.approx(width, rel=0.1)


def test_ratings_are_the_same_with_swapped_sides_and_differ_by_seed_only() -> None:
    a, b, label, _ = simulate(1000, nu=0.5)
    swapped = np.where(label == A, B, np.where(label == B, A, TIE))
    pairwise, mirrored = ratings.count_pairs(a, b, label, NAMES), ratings.count_pairs(b, a, swapped, NAMES)
    assert (pairwise.counts == mirrored.counts).all()
    rated, again, other = ratings.rate(pairwise, seed=3), ratings.rate(mirrored, seed=3), ratings.rate(pairwise, seed=4)
    assert rated is not None
    assert again is not None
    assert other is not None
    assert rated == again
    assert rated.models[0].low != other.models[0].low


def test_unknown_models_unknown_outcomes_and_self_battles_are_left_out() -> None:
    pairwise = ratings.count_pairs(
        np.array([0, -1, 0, 2]), np.array([1, 1, 1, 2]), np.array([A, A, -1, B]), ("x", "y", "z")
    )
    assert pairwise.counts.sum() == 1
    rated = ratings.rate(pairwise)
    assert rated is not None
    assert {model.model for model in rated.models} == {"x", "y"}
    assert ratings.rate(ratings.count_pairs(np.array([-1]), np.array([0]), np.array([A]), ("x",))) is None


def test_a_model_that_never_lost_gets_a_finite_rating_and_a_caution() -> None:
    a = np.array([0] * 20 + [1] * 30)
    b = np.array([1] * 20 + [2] * 30)
    label = np.array([A] * 20 + [A, B, TIE] * 10)
    rated = ratings.rate(ratings.count_pairs(a, b, label, ("winner", "x", "y")))
    assert rated is not None
    best = rated.models[0]
    assert best.model == "winner"
    assert np.isfinite([best.rating, best.high]).all()
    assert [model.model for model in rated.models if model.one_sided] == ["winner"]
    assert not rated.bounded
    assert "winner" in " ".join(rated.cautions())


def test_models_that_never_met_are_in_different_groups() -> None:
    a = np.array([0, 0, 2, 2] * 10)
    b = np.array([1, 1, 3, 3] * 10)
    label = np.array([A, B, A, TIE] * 10)
    rated = ratings.rate(ratings.count_pairs(a, b, label, ("a", "b", "c", "d")))
    assert rated is not None
    group = {model.model: model.group for model in rated.models}
    assert group["a"] == group["b"] != group["c"] == group["d"]
    assert rated.groups == 2
    assert "2 groups" in rated.cautions()[0]


def test_only_the_busiest_models_are_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratings, "MAX_MODELS", 4)
    a, b, label, _ = simulate(2000, nu=0.5)
    subset = a < 5
    rated = ratings.rate(ratings.count_pairs(a[subset], b[subset], label[subset], NAMES))
    assert rated is not None
    assert len(rated.models) == 4
    assert rated.left_out == 4
    assert "4 are not" in " ".join(rated.cautions())


@pytest.mark.parametrize("label", [A, TIE])
def test_battles_that_all_end_alike_give_equal_ratings(label: int) -> None:
    rated = ratings.rate(
        ratings.count_pairs(np.array([0, 1, 2]), np.array([1, 2, 0]), np.full(3, label), ("x", "y", "z"))
    )
    assert rated is not None
    assert [model.rating for model in rated.models] == pytest.approx([1000] * 3)


def test_a_model_of_few_battles_has_a_rating_without_an_interval() -> None:
    a, b = np.array([0] * 40 + [2]), np.array([1] * 40 + [1])
    rated = ratings.rate(ratings.count_pairs(a, b, np.array([A, B, TIE, B] * 10 + [A]), ("x", "y", "rare")))
    assert rated is not None
    intervals = {model.model: (model.low, model.high) for model in rated.models}
    assert intervals["rare"] == (None, None)
    assert all(low < high for low, high in (intervals["x"], intervals["y"]))
    _, rows = tables.ratings(rated, 3)
    assert "none: fewer than 20 battles" in {row[2] for row in rows}
    dots, axis = eda_plots.ratings(rated)
    assert axis.low <= min(dot.low for dot in dots)

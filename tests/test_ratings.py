"""Ratings agree with independent fits, recover known strengths, and caution where they cannot be compared."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prefcli.exploration import davidson, ratings
from prefcli.exploration.style import STYLE
from prefcli.outcomes import TIE, A, B
from prefcli.rendering import eda_plots, tables

NAMES = tuple(f"m{i}" for i in range(8))
TRUE = np.linspace(0.5, -0.5, 6)


def votes_of(a: Any, b: Any, label: Any, names: tuple[str, ...] = NAMES, **more: Any) -> ratings.Votes:
    return ratings.Votes.of(np.stack([a, b], axis=1), np.asarray(label), names, **more)


def rate(a: Any, b: Any, label: Any, names: tuple[str, ...] = NAMES, **more: Any) -> ratings.Ratings:
    rated = ratings.rate(votes_of(a, b, label, names, **more))
    assert rated is not None
    return rated


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
        for model in rate(a, b, label).models:
            true = ratings.elo(strengths[NAMES.index(model.model)])
            assert model.low < model.rating < model.high
            assert abs(model.rating - true) < 80
            inside += model.low <= true <= model.high
    assert inside >= 34  # of 40, at 95 % each


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """Two models, no ties: the log-odds of n wins in N have a standard error of sqrt(1/n + 1/(N - n))."""
    wins, losses = 300, 200
    best, worst = rate(np.zeros(500, int), np.ones(500, int), np.repeat([A, B], [wins, losses]), ("x", "y")).models
    assert best.rating - worst.rating == pytest.approx(400 * np.log10(wins / losses), abs=0.1)
    width = 2 * 1.96 * np.sqrt(1 / wins + 1 / losses) * ratings.ELO_PER_LOG_ODDS / 2
    assert best.high - best.low == pytest.approx(width, rel=0.01)


def test_the_covariance_is_the_sandwich_of_numerical_derivatives() -> None:
    """Scores and information by finite differences of the log-likelihood, summed by prompt."""
    a, b, label, _ = simulate(400, nu=0.8)
    random = np.random.default_rng(0)
    prompts, style = np.sort(random.integers(40, size=400)), random.normal(size=(400, 2))
    votes = votes_of(a, b, label, prompts=prompts, style=style)
    rows = votes.rows()
    fitted = davidson.fit(rows, covariates=votes.style)
    x = np.concatenate([fitted.strengths, [fitted.log_nu], fitted.coefficients])
    size = len(NAMES)

    def loss(x: NDArray) -> NDArray:
        difference = x[votes.first] - x[votes.second] + votes.style @ x[size + 1 :]
        each = np.stack([np.exp(difference / 2), np.exp(-difference / 2), np.full(400, np.exp(x[size]))])
        by_battle = np.log((each / each.sum(axis=0))[votes.labels, np.arange(400)])
        return np.bincount(votes.prompts, by_battle)

    steps = np.eye(len(x)) * 1e-4
    scores = np.stack([(loss(x + h) - loss(x - h)) / 2e-4 for h in steps], axis=1)
    hessian = np.stack(
        [
            [(loss(x + h + k) - loss(x + h - k) - loss(x - h + k) + loss(x - h - k)).sum() / 4e-8 for k in steps]
            for h in steps
        ]
    )
    inverse = np.linalg.inv(-hessian + davidson.PRIOR_PRECISION * np.eye(len(x)))
    clusters = len(np.unique(prompts))
    expected = inverse @ scores.T @ scores @ inverse * clusters / (clusters - 1)
    assert davidson.sandwich(rows, fitted, votes.prompts, votes.style) == pytest.approx(expected, rel=1e-3, abs=3e-5)


def test_intervals_agree_with_the_bootstrap_by_prompt() -> None:
    """Battles of a prompt that all go one way: the bootstrap draws prompts, and refits."""
    random = np.random.default_rng(1)
    a, b, label, _ = simulate(2000, nu=0.5)
    prompts = random.integers(100, size=2000)
    favoured = random.integers(len(NAMES), size=100)[prompts]
    label = np.where(a == favoured, A, np.where(b == favoured, B, label))
    pairwise = ratings.count_pairs(a, b, label, NAMES)
    by_prompt = np.zeros((100, *pairwise.counts.shape))
    row = {pair: i for i, pair in enumerate(zip(pairwise.first.tolist(), pairwise.second.tolist(), strict=True))}
    for x, y, outcome, prompt in zip(a.tolist(), b.tolist(), label.tolist(), prompts.tolist(), strict=True):
        by_prompt[prompt, row[min(x, y), max(x, y)], outcome if x < y or outcome == TIE else 1 - outcome] += 1
    drawn = np.stack([by_prompt[random.integers(100, size=100)].sum(axis=0) for _ in range(300)])
    refitted = ratings.fit(pairwise, drawn, tolerance=1e-2).strengths
    estimated = ratings.estimate(votes_of(a, b, label, prompts=prompts))
    independent = ratings.estimate(votes_of(a, b, label))
    assert estimated is not None
    assert independent is not None
    errors, too_small = (np.sqrt(np.diag(estimate.covariance)) for estimate in (estimated, independent))
    assert errors == pytest.approx(refitted.std(axis=0), rel=0.15)
    assert (too_small < 0.8 * errors).mean() > 0.8


def test_ratings_are_the_same_with_swapped_sides_and_for_any_order_of_battles() -> None:
    a, b, label, _ = simulate(1000, nu=0.5)
    prompts, style = np.arange(1000) % 50, np.random.default_rng(0).normal(size=(1000, 4))
    swapped = np.where(label == A, B, np.where(label == B, A, TIE))
    rated, again = (
        rate(a, b, label, prompts=prompts, style=style), rate(b, a, swapped, prompts=prompts, style=-style)
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(1000)
    shuffled = rate(a[order], b[order], label[order], prompts=prompts[order], style=style[order])
    for one, other, third in zip(rated.models, again.models, shuffled.models, strict=True):
        assert one.model == other.model == third.model
        for name in ("rating", "low", "high", "styled", "styled_low"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-6)
            assert getattr(one, name) == pytest.approx(getattr(third, name), abs=1e-6)


def test_unknown_models_unknown_outcomes_and_self_battles_are_left_out() -> None:
    a, b, label = np.array([0, -1, 0, 2]), np.array([1, 1, 1, 2]), np.array([A, A, -1, B])
    assert ratings.count_pairs(a, b, label, ("x", "y", "z")).counts.sum() == 1
    assert {model.model for model in rate(a, b, label, ("x", "y", "z")).models} == {"x", "y"}
    assert ratings.rate(votes_of([-1], [0], [A], ("x",))) is None


def test_a_model_that_never_lost_gets_a_finite_rating_and_a_caution_but_no_interval() -> None:
    a = np.array([0] * 20 + [1] * 30)
    b = np.array([1] * 20 + [2] * 30)
    rated = rate(a, b, np.array([A] * 20 + [A, B, TIE] * 10), ("winner", "x", "y"))
    best, *others = rated.models
    assert best.model == "winner"
    assert np.isfinite(best.rating)
    assert best.no_interval == "never lost"
    assert (best.low, best.rank_low, best.p_first) == (None, None, None)
    assert all(model.low is not None and model.rank_low == 1 and model.p_first is None for model in others)
    assert {model.rank_high for model in others} == {3}, "who never lost may be better or worse"
    assert [model.model for model in rated.models if model.one_sided] == ["winner"]
    assert not rated.bounded
    assert "winner" in " ".join(rated.cautions())


def test_two_models_of_which_one_won_or_tied_have_no_interval() -> None:
    """The likelihood grows without end with the strength and the ties' parameter together."""
    rated = rate(np.zeros(40, int), np.ones(40, int), np.repeat([A, TIE], [30, 10]), ("x", "y"))
    assert [model.no_interval for model in rated.models] == ["never lost", "never won"]
    assert all(model.one_sided for model in rated.models)
    assert not rated.bounded


def test_models_that_only_ever_beat_the_others_have_no_interval() -> None:
    """The two at the top beat each other, so neither is one-sided, but neither ever lost to the two below."""
    a, b = np.array([0] * 40 + [2] * 80 + [0] * 20), np.array([1] * 40 + [3] * 80 + [2] * 20)
    rated = rate(a, b, np.array([A, B] * 20 + [A, B] * 40 + [A] * 20), ("t1", "t2", "x", "y"))
    reasons = {model.model: model.no_interval for model in rated.models}
    assert reasons == {"t1": "set by the prior", "t2": "set by the prior", "x": None, "y": None}
    assert "never lost to any of the others" in rated.cautions()[0]


def test_models_that_never_met_are_ranked_in_groups_of_their_own() -> None:
    a, b = np.array([0, 0, 2, 2] * 40), np.array([1, 1, 3, 3] * 40)
    a, b = np.concatenate([a, [2] * 10]), np.concatenate([b, [3] * 10])
    votes = votes_of(a, b, np.array([A, B, A, TIE] * 40 + [B] * 10), ("a", "b", "c", "d"))
    estimated = ratings.estimate(votes)
    assert estimated is not None
    rated = ratings.summarise(estimated)
    assert [(model.group, model.rank) for model in rated.models] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert {model.model for model in rated.of_group(0)} == {"c", "d"}, "it has most battles"
    assert rated.groups == 2
    assert "2 groups" in rated.cautions()[0]
    for group in (0, 1):
        assert np.mean([model.rating for model in rated.of_group(group)]) == pytest.approx(1000)
        assert sum(model.p_first or 0 for model in rated.of_group(group)) == pytest.approx(1)
        assert max(model.rank_high or 0 for model in rated.of_group(group)) == 2
    table = ratings.beats(estimated)
    assert table.models[:2] == ("c", "d")
    assert table.probability[0][2] is table.probability[2][0] is table.probability[0][0] is None
    assert table.battles[0][2] == 0


def test_only_the_busiest_models_are_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratings, "MAX_MODELS", 4)
    a, b, label, _ = simulate(2000, nu=0.5)
    subset = a < 5
    rated = rate(a[subset], b[subset], label[subset])
    assert len(rated.models) == 4
    assert rated.left_out == 4
    assert "4 are not" in " ".join(rated.cautions())


@pytest.mark.parametrize("label", [A, TIE])
def test_battles_that_all_end_alike_give_equal_ratings(label: int) -> None:
    a, b = np.tile([0, 1, 2], 20), np.tile([1, 2, 0], 20)
    rated = rate(a, b, np.full(60, label), ("x", "y", "z"))
    assert [model.rating for model in rated.models] == pytest.approx([1000] * 3)
    if label == TIE:
        assert {model.no_interval for model in rated.models} == {"only ties"}


def test_a_model_of_few_battles_or_prompts_has_a_rating_without_an_interval() -> None:
    a, b = np.array([0] * 40 + [2] + [3] * 40), np.array([1] * 40 + [1] + [1] * 40)
    label = np.array([A, B, TIE, B] * 10 + [A] + [A, B] * 20)
    prompts = np.concatenate([np.arange(41), np.arange(40) % 19])
    rated = rate(a, b, label, ("x", "y", "rare", "repeated"), prompts=prompts)
    by_name = {model.model: model for model in rated.models}
    assert by_name["rare"].no_interval == "fewer than 20 battles"
    assert by_name["repeated"].no_interval == "fewer than 20 prompts"
    assert by_name["rare"].low is by_name["rare"].rank_low is by_name["repeated"].low is None
    assert all(by_name[name].low < by_name[name].high for name in ("x", "y"))
    assert {by_name[name].rank for name in ("x", "y")} == {1, 2}, "models of few battles come last"
    _, rows = tables.ratings(rated, 4)
    assert "none: fewer than 20 battles" in {row[3] for row in rows}
    dots, axis = eda_plots.ratings(rated)
    assert axis.low <= min(dot.low for dot in dots)


# Ranks and who beats whom


def test_the_probability_of_leading_is_that_of_the_normal_distribution() -> None:
    """Two models: it is Phi(difference / its standard error)."""
    labels = np.repeat([A, B], [53, 47])
    estimated = ratings.estimate(votes_of(np.zeros(100, int), np.ones(100, int), labels, ("x", "y")))
    assert estimated is not None
    best = ratings.summarise(estimated).models[0]
    gap = np.log(53 / 47)
    assert best.p_first == pytest.approx(NormalDist().cdf(gap / np.sqrt(1 / 53 + 1 / 47)), abs=0.02)
    table = ratings.beats(estimated)
    assert table.probability[0][1] == pytest.approx(0.53, abs=1e-4)
    assert table.low[0][1] == pytest.approx(1 - table.high[1][0])
    assert table.low[0][1] == pytest.approx(1 / (1 + np.exp(-(gap - 1.984 * np.sqrt(1 / 53 + 1 / 47)))), abs=2e-3)
    assert table.battles[0][1] == 100


def test_ranks_are_certain_where_differences_are_large_and_open_where_they_are_not() -> None:
    a, b, label, strengths = simulate(20_000, nu=0.5)
    rated = rate(a, b, label)
    assert [model.model for model in rated.models] == [NAMES[i] for i in np.argsort(-strengths)]
    assert all(model.rank == model.rank_low == model.rank_high for model in rated.models)
    random = np.random.default_rng(5)
    for model in rate(a[:300], b[:300], random.integers(3, size=300)).models:
        assert (model.rank_low, model.rank_high) == (1, 8)


def dependent(
    seed: int, n: int = 1500, prompts: int = 100, effect: float = 0.5
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Battles of 6 models that follow Davidson's model exactly, but those of a prompt favour the same models.

    Each battle's outcome comes from a uniform number that is correlated within the prompt (a Gaussian copula).
    """
    random = np.random.default_rng(seed)
    prompt = random.integers(prompts, size=n)
    a = random.integers(6, size=n)
    b = (a + random.integers(1, 6, size=n)) % 6
    taste = random.normal(size=(prompts, 6))
    shared = (taste[prompt, a] - taste[prompt, b]) / np.sqrt(2)
    latent = np.sqrt(0.5) * shared + np.sqrt(0.5) * random.normal(size=n)
    uniform = np.array([NormalDist().cdf(value) for value in latent])
    style = random.normal(size=n)
    difference = TRUE[a] - TRUE[b] + effect * style / np.sqrt((style**2).mean())
    p = davidson.probabilities(difference, 0.6)
    label = np.where(uniform < p[:, A], A, np.where(uniform < p[:, A] + p[:, TIE], TIE, B))
    return a, b, label, prompt, style


def test_intervals_of_ratings_differences_and_style_and_ranges_of_ranks_hold_the_truth() -> None:
    """The small version of benchmarks/ratings_coverage.py."""
    held: dict[str, list[bool]] = {"rating": [], "difference": [], "style": [], "rank": []}
    for seed in range(40):
        a, b, label, prompt, style = dependent(seed)
        differences = np.stack([style, *np.zeros((3, len(style)))], axis=1)
        estimated = ratings.estimate(votes_of(a, b, label, NAMES[:6], prompts=prompt, style=differences))
        assert estimated is not None
        assert estimated.styled is not None
        assert estimated.style is not None
        errors = np.sqrt(np.diag(estimated.styled.covariance))
        held["rating"] += (abs(estimated.styled.strengths - TRUE) <= estimated.critical * errors).tolist()
        effect = estimated.style.effects[0]
        held["style"].append(effect.low <= 0.5 <= effect.high)
        a, b, label, prompt, _ = dependent(seed, effect=0)
        estimated = ratings.estimate(votes_of(a, b, label, NAMES[:6], prompts=prompt))
        assert estimated is not None
        for i in range(5):
            gap, half_width = estimated.difference(i, i + 1)
            assert half_width is not None
            held["difference"].append(abs(gap - TRUE[i] + TRUE[i + 1]) <= half_width)
        for model in ratings.summarise(estimated).models:
            held["rank"].append(model.rank_low <= NAMES.index(model.model) + 1 <= model.rank_high)
    shares = {name: np.mean(values) for name, values in held.items()}
    assert all(shares[name] >= 0.9 for name in ("rating", "difference", "style")), shares
    assert shares["rank"] >= 0.95, shares
    assert min(shares["rating"], shares["difference"]) < 1, shares


# Style


def test_without_ties_style_control_is_logistic_regression_with_covariates() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    a, b, label, prompt, style = dependent(0, n=4000)
    decided = label != TIE
    a, b, label, prompt, style = (values[decided] for values in (a, b, label, prompt, style))
    differences = np.stack([style, *np.random.default_rng(0).normal(size=(3, len(style)))], axis=1)
    design = np.zeros((len(a), 6))
    design[np.arange(len(a)), a], design[np.arange(len(a)), b] = 1, -1
    scaled = differences / np.sqrt((differences**2).mean(axis=0))
    model = linear_model.LogisticRegression(C=1e8, fit_intercept=False, tol=1e-10, max_iter=2000)
    independent = model.fit(np.concatenate([design, scaled], axis=1), label == A).coef_[0]
    rated = rate(a, b, label, NAMES[:6], prompts=prompt, style=differences)
    strengths = {
        name: ratings.elo(value)
        for name, value in zip(NAMES[:6], independent[:6] - independent[:6].mean(), strict=True)
    }
    for model in rated.models:
        assert model.styled == pytest.approx(strengths[model.model], abs=0.5)
    assert rated.style is not None
    assert [effect.what for effect in rated.style.effects] == list(STYLE)
    assert [effect.coefficient for effect in rated.style.effects] == pytest.approx(independent[6:], abs=2e-3)


def test_a_model_that_wins_by_style_alone_loses_its_lead_at_equal_style() -> None:
    random = np.random.default_rng(0)
    a = random.integers(3, size=3000)
    b = (a + random.integers(1, 3, size=3000)) % 3
    longer = np.array([0.8, 0.0, -0.1])
    length = longer[a] - longer[b] + random.normal(0, 0.3, 3000)
    strength = np.array([-0.2, 0.2, 0.0])
    label = np.where(random.random(3000) < 1 / (1 + np.exp(-(strength[a] - strength[b] + 2 * length))), A, B)
    rated = rate(a, b, label, ("long", "good", "plain"), style=np.stack([length, *np.zeros((3, 3000))], axis=1))
    assert [model.model for model in rated.models] == ["long", "good", "plain"]
    assert [model.styled_rank for model in rated.models] == [3, 1, 2]
    assert rated.style is not None
    assert rated.style.effects[0].low > 0
    assert [effect.what for effect in rated.style.effects] == ["length"]


@pytest.mark.parametrize("kind", ["decides", "is the model", "is rare"])
def test_a_property_whose_effect_cannot_be_estimated_is_left_out_and_that_is_said(kind: str) -> None:
    a, b, label, prompt, style = dependent(3)
    won = np.where(label == A, 1.0, -1.0)
    headings = {
        "decides": np.where((label != TIE) & (np.arange(len(a)) % 10 == 0), won, 0.0),
        "is the model": (a == 0).astype(float) - (b == 0),
        "is rare": (np.arange(len(a)) < 19) * won,
    }[kind]
    zeros = np.zeros_like(style)
    rated = rate(a, b, label, NAMES[:6], prompts=prompt, style=np.stack([style, zeros, headings, zeros], axis=1))
    assert rated.style is not None
    assert [effect.what for effect in rated.style.effects] == ["length"]
    assert any(reason.startswith("headings (") for reason in rated.style.left_out)
    assert any("headings" in caution for caution in rated.cautions())


def test_without_any_difference_of_style_there_is_no_style_control() -> None:
    a, b, label, _, _ = dependent(0, n=200)
    rated = rate(a, b, label, NAMES[:6], style=np.zeros((200, 4)))
    assert rated.style is None
    assert {model.styled for model in rated.models} == {None}

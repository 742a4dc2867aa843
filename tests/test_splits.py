"""No prompt on both sides of a split, the same outcomes on both, and the same split for the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, battle, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from prefcli.data import splits

battles = st.integers(0, 2**32).flatmap(
    lambda seed: st.tuples(st.just(seed), st.integers(2, 400), st.integers(1, 60), st.floats(0.05, 0.6))
)


def random_battles(seed: int, n: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, prompts, n), random.integers(-1, 3, n)


@settings(max_examples=150, deadline=None)
@given(battles)
def test_no_prompt_of_the_validation_split_occurs_in_training(case: tuple[int, int, int, float]) -> None:
    seed, n, prompts, share = case
    groups, labels = random_battles(seed, n, prompts)
    train, held_out = splits.split_validation(groups, labels, share, seed)
    assert not set(groups[train]) & set(groups[held_out])
    assert sorted([*train, *held_out]) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(battles, st.integers(2, 6))
def test_every_battle_is_held_out_in_exactly_one_fold(case: tuple[int, int, int, float], folds: int) -> None:
    seed, n, prompts, _ = case
    groups, labels = random_battles(seed, n, prompts)
    parts = splits.split_folds(groups, labels, folds, seed)
    assert sorted(i for _, held_out in parts for i in held_out) == list(range(n))
    for train, held_out in parts:
        assert not set(groups[train]) & set(groups[held_out])


def test_both_sides_have_the_same_share_of_outcomes() -> None:
    random = np.random.default_rng(3)
    labels = random.choice(3, size=6000, p=[0.5, 0.3, 0.2])
    groups = random.integers(0, 3000, 6000)
    train, held_out = splits.split_validation(groups, labels, 0.1, 0)
    assert abs(len(held_out) / 6000 - 0.1) < 0.005
    for outcome in range(3):
        assert abs((labels[train] == outcome).mean() - (labels[held_out] == outcome).mean()) < 0.01


def test_the_seed_decides_the_split() -> None:
    groups, labels = random_battles(1, 500, 200)
    first, same, other = (splits.split_validation(groups, labels, 0.2, seed)[1].tolist() for seed in (5, 5, 6))
    assert first == same
    assert first != other


def test_holding_nothing_out_trains_on_everything() -> None:
    train, held_out = splits.split_validation(np.arange(5), np.zeros(5, dtype=int), 0.0, 0)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert held_out.size == 0


def test_a_prompt_of_many_battles_is_not_held_out_where_small_ones_fit_exactly() -> None:
    groups = np.concatenate([np.repeat([0, 1], [500, 300]), np.arange(2, 202)])
    labels = np.random.default_rng(0).integers(0, 3, 1000)
    _, held_out = splits.split_validation(groups, labels, 0.1, 0)
    assert len(held_out) == 100
    assert groups[held_out].min() >= 2


@pytest.mark.slow
def test_a_hold_out_of_another_size_than_asked_is_said(cli: Callable[..., Result], tmp_path: Path) -> None:
    rows = [battle(i, i % 3, prompt=[f"Q{min(i // 20, 2)}"]) for i in range(100)]  # 20, 20 and 60 battles of a prompt
    done = cli("train", write_csv(tmp_path / "votes.csv", rows), "--recipe", "fast")
    assert "80 battles of 2 prompts to train on, 20 battles of 1 prompt held out" in done.err
    assert "20% of the battles are held out instead of 10%" in done.err
    assert "20 held-out battles of 1 prompt" in done.out
    assert "no interval: 1 prompt, 20 are needed" in done.out
    card = next(Path(".prefcli/runs").glob("*/README.md")).read_text()
    assert "no interval: 1 prompt, 20 are needed" in card


@pytest.mark.slow
def test_battles_without_outcome_do_not_make_a_hold_out_look_too_small(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    """Of the 21 battles that are held out, 3 have an outcome."""
    rows = [battle(i, i % 3 if i % 10 == 0 else None) for i in range(200)]
    soft = [f"{i},0.2,0.3,0.5" for i in range(200)]
    Path("soft.csv").write_text("\n".join(["id,winner_model_a,winner_model_b,winner_tie", *soft]))
    done = cli("train", write_csv(tmp_path / "votes.csv", rows), "--recipe", "fast", "--soft-labels", "soft.csv")
    assert "3 battles of 3 prompts held out" in done.err
    assert "battles of a prompt stay together" not in done.err


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(0, 8))
def test_every_part_gets_a_group_if_there_are_enough(seed: int, parts: int, more: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.minimum(random.pareto(0.7, parts + more) * 3 + 1, 500).astype(int)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = random.integers(0, 3, len(groups))
    assert len(np.unique(splits.assign_parts(groups, labels, [1 / parts] * parts, seed))) == parts
    assert len(splits.split_validation(groups, labels, 0.02, seed)[1])


def imbalance(parts: list[np.ndarray], labels: np.ndarray, share: float) -> tuple[float, float]:
    """The largest error of a part's share, and of the share of an outcome within a part."""
    overall = np.bincount(labels, minlength=3) / len(labels)
    outcomes = [np.bincount(labels[part], minlength=3) / max(len(part), 1) for part in parts]
    return max(abs(len(part) / len(labels) - share) for part in parts), max(abs(o - overall).max() for o in outcomes)


@pytest.mark.parametrize("sizes", ["single", "geometric", "heavy-tailed", "uniform"])
def test_parts_are_as_balanced_as_scikit_learns(sizes: str) -> None:
    """Mean over random group sizes, shares of outcomes and numbers of folds; outcomes are alike within a group."""
    errors = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        count, folds = int(random.integers(30, 100)), int(random.integers(2, 11))
        draw = {
            "single": lambda n, random=random: np.ones(n, dtype=int),
            "geometric": lambda n, random=random: random.geometric(0.3, n),
            "heavy-tailed": lambda n, random=random: np.minimum(random.pareto(1.1, n) + 1, 300).astype(int),
            "uniform": lambda n, random=random: random.integers(1, 30, n),
        }[sizes]
        groups = np.repeat(np.arange(count), draw(count))
        chances = random.dirichlet(random.dirichlet([2, 2, 1]) * random.choice([0.5, 3, 50]) + 1e-3, size=count)
        labels = (random.random((len(groups), 1)) > chances[groups].cumsum(axis=1)[:, :2]).sum(axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an outcome may be rarer than there are folds
            sklearns = [part for _, part in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
                labels, labels, groups)]  # fmt: skip
        ours = [part for _, part in splits.split_folds(groups, labels, folds, seed)]
        validation = splits.split_validation(groups, labels, 1 / folds, seed)[1]
        errors.append([imbalance(parts, labels, 1 / folds) for parts in (sklearns, ours, sklearns[:1], [validation])])
    of_sklearn, of_ours, of_sklearns_first, of_validation = np.mean(errors, axis=0)
    assert (of_ours <= of_sklearn + 1e-3).all()
    assert (of_validation <= of_sklearns_first + 1e-3).all()

"""No prompt on both sides of a split, the same outcomes on both, and the same split for the same seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

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

"""The networks of `features`: gradients and steps as PyTorch's, exact symmetry, and a share only where they help."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prefcli.metrics import log_loss, softmax
from prefcli.models.features import booster, network
from prefcli.models.features.booster import BoosterData
from prefcli.models.features.network import Networks
from prefcli.outcomes import SWAPPED

COLUMNS = 6
SCORED = np.r_[300:400, 0:100]
FOLDS = [(np.arange(300), np.arange(300, 400)), (np.arange(100, 400), np.arange(100))]


@pytest.fixture(autouse=True, scope="module")
def _whole_networks(short_networks: dict[str, int]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in short_networks.items():
            patched.setattr(network, name, value)
        yield


def swapped(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of the prompt, of A, of B and of A - B, as the booster's are arranged."""
    return rows[:, [0, 1, 3, 2, 4, 5]] * np.float32([1, 1, 1, 1, -1, -1])


def data_of(
    battles: int, preference: NDArray[np.float64] | float, seed: int = 0, base: list[float] | None = None
) -> BoosterData:
    """Battles in both orders; the log-odds of A over B are ``preference`` times the last column's tanh."""
    random = np.random.default_rng(seed)
    rows = (random.standard_normal((battles, COLUMNS)) * 3).astype(np.float32)
    logits = np.zeros((battles, 3)) if base is None else np.tile(base, (battles, 1))
    logits[:, 0] += preference * np.tanh(rows[:, -1])
    uniform = random.random((battles, 1))
    targets = np.eye(3, dtype=np.float32)[(softmax(logits).cumsum(axis=1) < uniform).sum(axis=1)]
    bases = None if base is None else np.tile(base, (2 * battles, 1))
    return BoosterData(np.concatenate([rows, swapped(rows)]), np.concatenate([targets, targets[:, SWAPPED]]), bases)


def test_gradients_and_steps_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HIDDEN", (16, 8))
    monkeypatch.setattr(network, "INPUT_DROPOUT", 0.0)
    monkeypatch.setattr(network, "DROPOUT", 0.0)
    random = np.random.default_rng(1)
    layers = network._initial(random, COLUMNS)
    rows = random.standard_normal((8, COLUMNS)).astype(np.float32)
    targets, bases = random.dirichlet(np.ones(3), 8).astype(np.float32), random.standard_normal((8, 3))
    parameters = [torch.tensor(array, requires_grad=True) for array in layers]
    groups = [
        {"params": parameters[::2], "weight_decay": network.WEIGHT_DECAY},
        {"params": parameters[1::2], "weight_decay": 0.0},
    ]
    theirs, ours = torch.optim.AdamW(groups, lr=0.01), network._AdamW(layers)
    for _ in range(3):
        values = torch.tensor(rows)
        for weights, biases in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            values = torch.relu(values @ weights + biases)
        logits = values @ parameters[-2] + parameters[-1] + torch.tensor(bases, dtype=torch.float32)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(targets)).backward()
        gradients = network._gradients(rows, targets, bases, layers, random)
        for gradient, parameter in zip(gradients, parameters, strict=True):
            assert parameter.grad is not None
            np.testing.assert_allclose(gradient, parameter.grad.numpy(), atol=1e-6)
        theirs.step()
        ours.step(gradients, 0.01)
    for array, parameter in zip(layers, parameters, strict=True):
        np.testing.assert_allclose(array, parameter.detach().numpy(), atol=1e-5)


def test_dropout_keeps_the_mean_and_its_share() -> None:
    values = network._dropped(np.ones((400, 500), dtype=np.float32), 0.25, np.random.default_rng(0))
    assert (values == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert values.mean() == pytest.approx(1, abs=0.01)
    assert values.dtype == np.float32


def test_the_learning_rate_rises_and_falls_once() -> None:
    rates = [network._learning_rate(step / 100) for step in range(1, 101)]
    top = int(np.argmax(rates))
    assert top + 1 == 100 * network.RISING
    assert rates[top] == network.LEARNING_RATE
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[-1] == pytest.approx(0)


@pytest.fixture(scope="module")
def learnt() -> tuple[BoosterData, Networks, NDArray[np.float64]]:
    """Networks of a plain preference, beside a booster that knows nothing."""
    data = data_of(400, 3.0)
    networks, held_out = network.fit(data, FOLDS, np.zeros((400, 3)), SCORED, seed=0)
    assert networks is not None
    return data, networks, held_out


def test_a_preference_that_the_booster_has_not_found_is_learnt(
    learnt: tuple[BoosterData, Networks, NDArray[np.float64]],
) -> None:
    data, networks, held_out = learnt
    rows = np.concatenate([outside for _, outside in FOLDS])
    loss = data.battles(rows).with_scores(held_out[rows]).loss
    truth = np.zeros((200, 3))
    truth[:, 0] = 3 * np.tanh(data.rows[rows, -1])
    best = data.battles(rows).with_scores(truth).loss
    assert best < loss < best + 0.15 < np.log(3)
    assert networks.share > 0.5
    # Held out means that only the network of the fold has a say, with the share that was found.
    alone = dataclasses.replace(networks, layers=networks.layers[:1]).scores(data.rows[300:400], data.rows[700:])
    np.testing.assert_allclose(held_out[300:400], networks.share * alone, atol=1e-5)


def test_the_share_is_the_one_with_the_least_loss(learnt: tuple[BoosterData, Networks, NDArray[np.float64]]) -> None:
    data, networks, held_out = learnt
    rows = np.concatenate([outside for _, outside in FOLDS])
    booster = np.zeros((400, 3))
    booster[:, 0] = np.random.default_rng(5).standard_normal(400) * 0.2
    both, found = network.fit(data, FOLDS, booster, SCORED, seed=0)
    assert both is not None
    joined = [(1 - s) * booster[rows] + s * held_out[rows] / networks.share for s in network.SHARES]
    losses = [-(np.log(softmax(z)) * data.targets[rows]).sum(axis=1).mean() for z in joined]
    assert both.share == network.SHARES[np.argmin(losses)]
    np.testing.assert_allclose(found[rows], joined[int(np.argmin(losses))], atol=1e-9)


@pytest.mark.parametrize("base", [None, [0.0, 0.0, -1.0]], ids=["no base", "base"])
def test_noise_gives_no_networks(base: list[float] | None) -> None:
    booster = np.zeros((400, 3))
    networks, held_out = network.fit(data_of(400, 0.0, base=base), FOLDS, booster, SCORED, seed=0)
    assert networks is None
    assert held_out is booster


def test_a_base_is_not_learnt_again() -> None:
    base = [0.0, 0.0, -4.0]
    networks, held_out = network.fit(data_of(400, 3.0, base=base), FOLDS, np.zeros((400, 3)), SCORED, seed=0)
    assert networks is not None
    ties = held_out[:, 2] - held_out[:, :2].mean(axis=1)
    assert abs(ties[np.r_[0:100, 300:400]].mean()) < 1.5  # 4 would be in the base and in the networks


def test_swapping_swaps_exactly(learnt: tuple[BoosterData, Networks, NDArray[np.float64]]) -> None:
    data, networks, _ = learnt
    original, others = data.rows[:50], data.rows[400:450]
    scores = networks.scores(original, others)
    np.testing.assert_array_equal(networks.scores(others, original), scores[:, SWAPPED])
    given = networks.contributions(original, others)
    np.testing.assert_array_equal(networks.contributions(others, original), -given)
    np.testing.assert_allclose(given.sum(axis=1), scores[:, 0] - scores[:, 1], atol=0.02)
    assert (given[:, :2] == 0).all()  # the prompt is the same in both orders
    assert np.abs(given[:, -1]).mean() > 5 * np.abs(given[:, 2:5]).mean()


def test_the_same_seed_gives_the_same_networks_on_any_number_of_threads(
    learnt: tuple[BoosterData, Networks, NDArray[np.float64]],
) -> None:
    data, networks, held_out = learnt
    again, scores = network.fit(data, FOLDS, np.zeros((400, 3)), SCORED, seed=0, threads=1)
    assert again is not None
    np.testing.assert_array_equal(scores, held_out)
    for name, array in again.arrays().items():
        np.testing.assert_array_equal(array, networks.arrays()[name])
    other, _ = network.fit(data, FOLDS, np.zeros((400, 3)), SCORED, seed=7)
    assert other is not None
    assert (other.layers[0][0] != networks.layers[0][0]).any()


def test_a_battle_has_the_same_logits_whatever_is_predicted_with_it(
    learnt: tuple[BoosterData, Networks, NDArray[np.float64]],
) -> None:
    data, networks, held_out = learnt
    everything = networks.scores(data.rows[:400], data.rows[400:])
    for rows in (slice(0, 1), slice(63, 66), slice(7, 307)):
        np.testing.assert_array_equal(networks.scores(data.rows[:400][rows], data.rows[400:][rows]), everything[rows])
    alone = dataclasses.replace(networks, layers=networks.layers[:1]).scores(data.rows[300:301], data.rows[700:701])
    np.testing.assert_array_equal(networks.joined(np.zeros((1, 3)), alone), held_out[300:301])
    assert networks.scores(data.rows[:0], data.rows[:0]).shape == (0, 3)
    assert networks.contributions(data.rows[:0], data.rows[:0]).shape == (0, COLUMNS)


def test_columns_are_standardised_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data_of(40, 0.0).rows
    rows[:, 1] *= 1e6
    values = np.sign(rows) * np.log1p(np.abs(rows.astype(np.float64)))
    expected = ((values - values.mean(axis=0)) / values.std(axis=0)).clip(-4, 4)
    monkeypatch.setattr(booster, "CHUNK_ROWS", 7)
    networks = network._standardisation(rows)
    inputs = networks._standardised(network._compressed(rows))
    np.testing.assert_allclose(inputs, expected, atol=1e-4)
    np.testing.assert_allclose(networks.mean, values.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("battles", [37, 90, 640, 5000, 40_000])
def test_there_are_enough_steps_and_an_epoch_has_each_battle_at_most_once(battles: int) -> None:
    order, size = network._order(np.random.default_rng(0), np.arange(battles) + 7)
    steps, rest = divmod(len(order), size)
    assert rest == 0
    assert steps >= network.MIN_STEPS
    assert size <= network.MAX_BATCH
    assert set(order) <= set(range(7, battles + 7))
    for epoch in order.reshape(-1, battles - battles % size):
        assert len(set(epoch)) == len(epoch)


def test_each_step_has_both_orders_of_its_battles(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[np.ndarray] = []
    gradients = network._gradients

    def recorded(inputs: np.ndarray, targets: np.ndarray, *others: Any) -> network.Layers:
        steps.append(targets)
        return gradients(inputs, targets, *others)

    monkeypatch.setattr(network, "_gradients", recorded)
    network.fit(data_of(400, 3.0), FOLDS, np.zeros((400, 3)), SCORED, seed=0, threads=1)
    for targets in steps:
        np.testing.assert_array_equal(targets[: len(targets) // 2], targets[len(targets) // 2 :, SWAPPED])
    assert len({targets.tobytes() for targets in steps}) > network.MIN_STEPS


def test_the_share_is_found_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(400, 3.0)
    random = np.random.default_rng(0)
    booster_logits, network_logits = (np.log(data.targets[:400] + 0.4) * random.random((400, 1)) for _ in range(2))
    logits = [(1 - share) * booster_logits[SCORED] + share * network_logits[SCORED] for share in network.SHARES]
    losses = [log_loss(softmax(of_share), data.targets[SCORED].argmax(axis=1)) for of_share in logits]
    monkeypatch.setattr(booster, "CHUNK_ROWS", 7)
    share = network._best_share(data, SCORED, booster_logits, network_logits)
    assert 0 < share < 1
    assert share == network.SHARES[np.argmin(losses)]


def test_an_interruption_ends_all_networks_soon() -> None:
    calls = itertools.count(1)

    def progress(share: float) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        network.fit(data_of(400, 3.0), FOLDS, np.zeros((400, 3)), SCORED, seed=0, threads=1, progress=progress)
    assert next(calls) < network.MIN_STEPS, "the second network was trained to its end"


def test_progress_never_falls_and_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HIDDEN", (8, 4))
    shares: list[float] = []
    network.fit(data_of(400, 0.0), FOLDS, np.zeros((400, 3)), SCORED, seed=0, threads=2, progress=shares.append)
    assert shares == sorted(shares)
    assert shares.count(1) == 1


def test_threads_that_predict_at_once_leave_the_number_of_blas_threads_as_it_was() -> None:
    from threadpoolctl import ThreadpoolController

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()]

    entered = threading.Event()

    def second() -> None:
        with network.one_blas_thread():
            entered.set()

    before, other = threads(), threading.Thread(target=second)
    with network.one_blas_thread():
        other.start()
        assert not entered.wait(0.05)
        assert set(threads()) == {1}
    other.join()
    assert entered.is_set()
    assert threads() == before


def test_a_column_that_never_differs_counts_for_nothing() -> None:
    data = data_of(400, 3.0)
    data.rows[:, 0] = 12345.678
    networks, _ = network.fit(data, FOLDS, np.zeros((400, 3)), SCORED, seed=0)
    assert networks is not None
    assert networks.scale[0] == 0
    other = data.rows.copy()
    other[:, 0] = -5
    np.testing.assert_array_equal(
        networks.scores(other[:9], other[400:409]), networks.scores(data.rows[:9], data.rows[400:409])
    )


def test_saved_networks_are_checked(learnt: tuple[BoosterData, Networks, NDArray[np.float64]]) -> None:
    _, networks, _ = learnt
    arrays = networks.arrays()
    loaded = Networks.from_arrays(arrays, COLUMNS, count=2, share=networks.share)
    np.testing.assert_array_equal(loaded.layers[1][2], networks.layers[1][2])
    damaged = {**arrays, "network.0.2": np.full_like(arrays["network.0.2"], np.nan)}
    cut = {**arrays, "network.1.3": arrays["network.1.3"][:-1]}
    for wrong, count, share in ((arrays, 3, 0.5), (damaged, 2, 0.5), (cut, 2, 0.5), (arrays, 2, 1.5), (arrays, 0, 0.5)):
        with pytest.raises((ValueError, KeyError)):
            Networks.from_arrays(wrong, COLUMNS, count=count, share=share)
    with pytest.raises(ValueError, match="array of shape"):
        Networks.from_arrays(arrays, COLUMNS + 1, count=2, share=0.5)

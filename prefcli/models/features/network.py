"""Small neural networks on the booster's own columns: they err elsewhere than trees do, so both together are better.

A network has two hidden layers of rectified linear units. It is trained in NumPy, because a `features` run needs no
PyTorch, by AdamW with dropout, a learning rate that rises and falls once (https://arxiv.org/abs/1708.07120), and both
orders of each battle in every step. There is one for each inner fold, trained without the prompts of that fold, and a
prediction is their mean: so what they add to the booster is known without training them twice.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefcli.compute import memory
from prefcli.errors import plural
from prefcli.models.features.booster import BoosterData, Folds, Rows, Table, chunks
from prefcli.outcomes import OUTCOMES, SWAPPED
from prefcli.threads import map_in_threads, usable_cores

Array = NDArray[np.float64]
Layers = list[NDArray[np.float32]]
"""Of each layer in turn the weights ``[inputs, units]`` and the biases ``[units]``."""

HIDDEN = (512, 256)
"""Units of the hidden layers."""
EPOCHS = 4
MIN_STEPS = 200
"""With few battles there are more epochs, until there are so many steps."""
MIN_BATCH, MAX_BATCH = 32, 256
"""Battles of a step: a hundredth of all within these bounds."""
LEARNING_RATE = 1e-3
"""The highest; it is reached after a share :data:`RISING` of the steps."""
RISING = 0.3
EPSILON = np.float32(1e-8)
WEIGHT_DECAY = 0.1
INPUT_DROPOUT, DROPOUT = 0.25, 0.5
MAX_DEVIATIONS = 4.0
"""Columns are cut at so many standard deviations."""
BLOCK = 64
"""Rows of a matrix product in a prediction. Always as many, so that a battle has the same logits to the last bit,
whatever is predicted with it."""
PART = 8 * BLOCK
"""Rows that one thread predicts at a time."""
STEPS = 128
"""Of the way on which gradients are averaged, see :meth:`Networks.contributions`."""
SHARES = np.linspace(0, 1, 21)
"""Shares of the networks in the prediction that are tried."""
MIN_GAIN = 1e-3
"""Networks that improve the log loss of the inner folds by less are left out."""


@dataclass(frozen=True)
class Networks:
    """Trained networks of c columns."""

    mean: NDArray[np.float32]
    """Of each column's :func:`_compressed` values; shape ``[c]``."""
    scale: NDArray[np.float32]
    """One over their standard deviations; 0 where they never differ. Shape ``[c]``."""
    layers: tuple[Layers, ...]
    """Of each network."""
    share: float = 0.0
    """Of their logits in a prediction; the rest is the booster's."""

    def __str__(self) -> str:
        return f"{plural(len(self.layers), 'network')} with a share of {self.share:.2f} in the prediction"

    def scores(self, rows: Table, swapped: Table) -> Array:
        """Logits ``[n, 3]`` of n battles, the mean over networks and both orders of the answers."""

        def of_part(start: int) -> Array:
            original, others = (self._mean_logits(order[start : start + PART]) for order in (rows, swapped))
            return (original + others[:, SWAPPED]) / 2

        with one_blas_thread():
            parts = map_in_threads(of_part, range(0, len(rows), PART))
        return np.concatenate([np.empty((0, len(OUTCOMES))), *parts])

    def _mean_logits(self, rows: Table) -> Array:
        logits = np.empty((len(rows), len(OUTCOMES)))
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            inputs = np.zeros((BLOCK, rows.shape[1]), dtype=np.float32)
            inputs[: len(block)] = self._standardised(_compressed(block))
            outputs = [_forward(inputs, layers)[: len(block)] for layers in self.layers]
            logits[start : start + BLOCK] = np.mean(outputs, axis=0, dtype=np.float64)
        return logits

    def _standardised(self, values: Table) -> Table:
        """Values of :func:`_compressed`, changed in place."""
        values -= self.mean
        values *= self.scale
        return np.clip(values, -MAX_DEVIATIONS, MAX_DEVIATIONS, out=values)

    def contributions(self, rows: Table, swapped: Table) -> Array:
        """By how much each column moves the log-odds of A over B, the mean over both orders; shape ``[n, c]``.

        They are integrated gradients (https://arxiv.org/abs/1703.01365) from each battle's swapped row to its own, so
        their sum is about the log-odds, within what :data:`STEPS` steps approximate. Swapping negates them exactly.
        """
        with one_blas_thread():
            original, others = (self._standardised(_compressed(order)) for order in (rows, swapped))
            moved = [self._path(b, a) - self._path(a, b) for a, b in zip(original, others, strict=True)]
            return np.array(moved).reshape(rows.shape) / 4

    def _path(self, start: NDArray[np.float32], end: NDArray[np.float32]) -> Array:
        """Mean gradient of the log-odds on the way from one row to another, times the way; shape ``[c]``."""
        at = (np.arange(STEPS, dtype=np.float32)[:, None] + np.float32(0.5)) / STEPS
        points = start + at * (end - start)
        total = np.zeros(len(start))
        for layers in self.layers:
            hidden = [points]
            for weights, biases in zip(layers[:-2:2], layers[1:-2:2], strict=True):
                hidden.append(np.maximum(hidden[-1] @ weights + biases, 0))
            gradient = np.repeat((layers[-2][:, 0] - layers[-2][:, 1])[None], STEPS, axis=0)
            for values, weights in zip(hidden[:0:-1], layers[-4::-2], strict=True):
                gradient = (gradient * (values > 0)) @ weights.T
            total += gradient.mean(axis=0, dtype=np.float64)
        return total / len(self.layers) * (end - start)

    def joined(self, booster: Array, networks: Array) -> Array:
        """Logits of the booster and of the networks joined, each ``[n, 3]``."""
        return (1 - self.share) * booster + self.share * networks

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What is saved, beside the share."""
        layers = {
            f"network.{number}.{position}": array
            for number, network in enumerate(self.layers)
            for position, array in enumerate(network)
        }
        return {"network.mean": self.mean, "network.scale": self.scale, **layers}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]], columns: int, count: int, share: float) -> Networks:
        """The networks that :meth:`arrays` saved.

        Raises
        ------
        ValueError, KeyError
            If they are not those of so many networks of so many columns.
        """
        shapes = _shapes(columns)
        if not (0 < share <= 1 and 0 < count <= len(arrays)):
            raise ValueError(f"{count} networks with a share of {share}")
        layers = tuple([arrays[f"network.{number}.{i}"] for i in range(len(shapes))] for number in range(count))
        loaded = Networks(arrays["network.mean"], arrays["network.scale"], layers, share)
        for network in layers:
            expected = zip((loaded.mean, loaded.scale, *network), [(columns,), (columns,), *shapes], strict=True)
            for array, shape in expected:
                if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                    raise ValueError(f"a network has an array of shape {array.shape}, not finite ones of {shape}")
        return loaded


def fit(
    data: BoosterData,
    folds: Folds,
    booster: Array,
    scored: NDArray[np.intp],
    *,
    seed: int,
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[Networks | None, Array]:
    """Train a network for each inner fold, and find their share in a prediction.

    Parameters
    ----------
    data:
        What the booster is trained on.
    folds:
        Positions of the battles to train on and of those to evaluate on.
    booster:
        Its logits of battles that it did not see, without bases; shape ``[n, 3]``.
    scored:
        The positions of these battles, all of which are in the folds' second parts.
    seed:
        Of weights, order and dropout. The same seed gives the same networks on any number of threads.
    threads:
        Networks that are trained at once; 0 is as many as there are cores.
    progress:
        Called with the share of the work that is done.

    Returns
    -------
    The networks, None where they do not help; and the logits of the scored battles with them, shape ``[n, 3]``.
    """
    n = len(data.rows) // 2
    memory.return_freed_memory()  # the booster's data sets
    networks = _standardisation(data.rows)
    done = [0.0] * len(folds)
    lock, stopped = threading.Lock(), threading.Event()

    def train(number: int) -> Layers:
        def step_done(share: float) -> None:
            if stopped.is_set():
                raise CancelledError
            with lock:
                done[number] = share
                if progress is not None:
                    progress(sum(done) / len(folds))

        return _train(data, networks, folds[number][0], seed + number, step_done)

    with one_blas_thread(), ThreadPoolExecutor(min(threads or usable_cores(), len(folds))) as pool:
        try:
            layers = tuple(pool.map(train, range(len(folds))))
        except BaseException:
            stopped.set()  # or the pool would wait until all networks are trained
            raise
    held_out = np.zeros((n, len(OUTCOMES)))
    for network, (_, outside) in zip(layers, folds, strict=True):
        alone = replace(networks, layers=(network,))
        for chunk in chunks(len(outside)):
            part = outside[chunk]
            held_out[part] = alone.scores(data.rows[part], data.rows[part + n])
    share = _best_share(data, scored, booster, held_out)
    if share == 0:
        return None, booster
    networks = replace(networks, layers=layers, share=share)
    return networks, networks.joined(booster, held_out)


def _standardisation(rows: Rows) -> Networks:
    """Mean and scale of the columns, of networks without layers."""
    total, squares = 0.0, 0.0
    for chunk in chunks(len(rows)):
        total = total + _compressed(rows[chunk]).sum(axis=0, dtype=np.float64)
    mean = np.asarray(total) / len(rows)
    for chunk in chunks(len(rows)):
        squares = squares + np.square(_compressed(rows[chunk]) - mean).sum(axis=0)
    deviation = np.sqrt(np.asarray(squares) / len(rows))
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6)
    return Networks(mean.astype(np.float32), scale.astype(np.float32), ())


_BLAS = threading.Lock()


@functools.cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which a matrix product uses one thread: several wait for each other where cores are busy.

    The limit is the whole process's, so only one thread at a time is in this context: of two, the one that leaves last
    would restore the limit that the other had set.
    """
    with _BLAS, _thread_pools().limit(limits=1, user_api="blas"):
        yield


def _best_share(data: BoosterData, battles: NDArray[np.intp], booster: Array, networks: Array) -> float:
    """The share of the networks with the least log loss on held-out battles; 0 where they do not help.

    They must help by more than :data:`MIN_GAIN` and by more than one parameter does by chance: 1 / battles.
    """
    total, weight = np.zeros(len(SHARES)), 0.0
    for chunk in chunks(len(battles)):
        positions = battles[chunk]
        part, of_booster, of_networks = data.battles(positions), booster[positions], networks[positions]
        in_part = float(part.targets.sum())
        for number, share in enumerate(SHARES):
            total[number] += in_part * part.with_scores((1 - share) * of_booster + share * of_networks).loss
        weight += in_part
    losses = total / weight
    best = int(np.argmin(losses))
    return float(SHARES[best]) if losses[best] < losses[0] - max(MIN_GAIN, 1 / len(battles)) else 0.0


def _train(
    data: BoosterData, networks: Networks, battles: NDArray[np.integer], seed: int, step_done: Callable[[float], None]
) -> Layers:
    """A network of some of the battles; ``step_done`` is called with the share of steps done."""
    random = np.random.default_rng(seed)
    layers = _initial(random, len(networks.mean))
    optimizer = _AdamW(layers)
    order, size = _order(random, battles)
    n = len(data.rows) // 2
    steps = len(order) // size
    for number in range(1, steps + 1):
        chosen = order[(number - 1) * size : number * size]
        batch = np.concatenate([chosen, chosen + n])
        bases = None if data.bases is None else data.bases[batch]
        inputs = networks._standardised(_compressed(data.rows[batch]))
        gradients = _gradients(inputs, data.targets[batch], bases, layers, random)
        optimizer.step(gradients, _learning_rate(number / steps))
        step_done(number / steps)
    return layers


def _compressed(rows: Table) -> Table:
    """Counts and lengths on a logarithmic scale, with their sign."""
    values = np.log1p(np.abs(rows))
    return np.copysign(values, rows, out=values)


def _shapes(columns: int) -> list[tuple[int, ...]]:
    """Of a network's weights and biases."""
    sizes = (columns, *HIDDEN, len(OUTCOMES))
    return [shape for inputs, units in itertools.pairwise(sizes) for shape in ((inputs, units), (units,))]


def _initial(random: np.random.Generator, columns: int) -> Layers:
    """Uniform weights and biases, as PyTorch's linear layers begin."""
    sizes = (columns, *HIDDEN)
    bounds = [size**-0.5 for size in sizes for _ in range(2)]
    return [
        random.uniform(-bound, bound, shape).astype(np.float32)
        for bound, shape in zip(bounds, _shapes(columns), strict=True)
    ]


def _order(random: np.random.Generator, battles: NDArray[np.integer]) -> tuple[NDArray[np.int32], int]:
    """The battles of all steps one after the other, and how many are in a step. An epoch's last few are left out."""
    size = min(max(len(battles) // 100, MIN_BATCH), MAX_BATCH, len(battles))
    steps = len(battles) // size
    epochs = max(EPOCHS, math.ceil(MIN_STEPS / steps))
    # 32 bits, because a million battles in all epochs are many numbers, and several networks are trained at once.
    positions = battles.astype(np.int32)
    return np.concatenate([random.permutation(positions)[: steps * size] for _ in range(epochs)]), size


def _learning_rate(progress: float) -> float:
    if progress <= RISING:
        return LEARNING_RATE * progress / RISING
    return LEARNING_RATE * (1 + float(np.cos(np.pi * (progress - RISING) / (1 - RISING)))) / 2


def _forward(inputs: Table, layers: Layers) -> Table:
    *hidden, weights, biases = layers
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        inputs = np.maximum(inputs @ w + b, 0)
    return inputs @ weights + biases


def _gradients(
    inputs: Table,
    targets: NDArray[np.float32],
    bases: Array | None,
    layers: Layers,
    random: np.random.Generator,
) -> Layers:
    """Of the mean log loss of a batch, for each array of the layers; with dropout."""
    weights, biases = layers[::2], layers[1::2]
    values = [_dropped(inputs, INPUT_DROPOUT, random)]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        values.append(_dropped(np.maximum(values[-1] @ w + b, 0), DROPOUT, random))
    logits = values[-1] @ weights[-1] + biases[-1]
    if bases is not None:
        logits += bases.astype(np.float32)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient = (exponentials / exponentials.sum(axis=1, keepdims=True) - targets) / np.float32(len(inputs))
    gradients: Layers = []
    for number in reversed(range(len(weights))):
        gradients[:0] = [values[number].T @ gradient, gradient.sum(axis=0)]
        if number:
            # A unit that is 0, by itself or by dropout, passes nothing on.
            gradient = (gradient @ weights[number].T) * (values[number] > 0) / np.float32(1 - DROPOUT)
    return gradients


def _dropped(values: Table, share: float, random: np.random.Generator) -> Table:
    kept = random.random(values.shape, dtype=np.float32) >= share
    return values * kept / np.float32(1 - share)


class _AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101); biases do not decay."""

    def __init__(self, layers: Layers, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self._layers = layers
        self._betas = betas
        self._steps = 0
        self._moments = [(np.zeros_like(array), np.zeros_like(array)) for array in layers]

    def step(self, gradients: Layers, learning_rate: float) -> None:
        """Change the layers in place."""
        self._steps += 1
        rates = [np.float32(1 - beta) for beta in self._betas]
        corrections = [np.float32(1 - beta**self._steps) for beta in self._betas]
        for array, gradient, (first, second) in zip(self._layers, gradients, self._moments, strict=True):
            first += (gradient - first) * rates[0]
            second += (gradient * gradient - second) * rates[1]
            if array.ndim > 1:
                array *= np.float32(1 - learning_rate * WEIGHT_DECAY)
            array -= np.float32(learning_rate) * (first / corrections[0]) / (np.sqrt(second / corrections[1]) + EPSILON)

"""The linear model of words: which answer is better by the words and word pairs it has more of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefcli.models.features.booster import FitProgress, Folds
from prefcli.models.features.statistics import BUCKETS

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from prefcli.models.features.stored import Measured

Array = NDArray[np.float64]

RIDGE_PENALTY = 30.0
"""Of the squared weights, beside squared errors summed over battles."""
CG_STEPS = 12
"""Steps of conjugate gradients; more changed nothing."""
MIN_CURVATURE = 1e-300
"""Of several regressions one may be solved, and have nothing left to divide by, before the others are."""


def word_scores(words: csr_matrix, weights: NDArray[np.floating]) -> Array:
    """How much better A's words (:attr:`.statistics.Features.words`) are than B's by the weights of their buckets.

    Shape ``[n]``; ``[n, k]`` for k sets of weights, ``[BUCKETS, k]``. Negated exactly when A and B are swapped.
    """
    scale = _row_scale(words)
    return (words @ weights.astype(np.float64)) * (scale if weights.ndim == 1 else scale[:, None])


def _row_scale(words: csr_matrix) -> Array:
    """About one over each row's norm, so that long answers weigh no more than short ones."""
    squares = words.copy()
    squares.data = squares.data.astype(np.float64) ** 2
    return np.asarray(1 / np.sqrt(1 + np.asarray(squares.sum(axis=1)).ravel()))


def cross_fit(
    battles: Measured, margins_of: Callable[[NDArray[np.intp]], Array], folds: Folds, progress: FitProgress
) -> tuple[NDArray[np.float32], Array]:
    """Weights of the words, and scores of the training battles by models that did not see their prompts.

    ``margins_of`` gives what the battles at some positions are regressed on, as far as these battles alone tell it; of
    any number of targets, shape ``[n, k]``. ``folds`` are the positions of the battles to train on and of those to
    score. All regressions are solved together, so that the words are read once for all.
    """
    parts = [*(inside for inside, _ in folds), np.arange(len(battles))]
    is_inside = np.zeros((len(battles), len(parts)), dtype=bool)
    margins = None
    for number, inside in enumerate(parts):
        of_part = np.asarray(margins_of(inside))
        if margins is None:
            margins = np.zeros((len(battles), len(parts), *of_part.shape[1:]))
        margins[inside, number] = of_part
        is_inside[inside, number] = True
    assert margins is not None
    steps = len(folds) + 1
    weights = ridge(battles, margins, is_inside, lambda share: progress.words(steps * share))
    scores = np.zeros((len(battles), *margins.shape[2:]))
    for chunk, words in battles.word_chunks():
        for number, (_, outside) in enumerate(folds):
            rows = outside[(outside >= chunk.start) & (outside < chunk.stop)]
            scores[rows] = word_scores(words[rows - chunk.start], weights[:, number])
    progress.words(steps)
    return np.ascontiguousarray(weights[:, -1]), scores


def ridge(
    battles: Measured,
    margins: NDArray[np.floating],
    is_inside: NDArray[np.bool_],
    progress: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """Ridge regressions of margins on the words A has more of, rare words weighing more.

    Solved by conjugate gradients on the normal equations, chunk by chunk of the battles.

    Parameters
    ----------
    battles:
        All n of them.
    margins:
        Of p parts of the battles, perhaps of k targets: shape ``[n, p]`` or ``[n, p, k]``; 0 outside the part.
    is_inside:
        Which battles are in which part; shape ``[n, p]``.
    progress:
        Called with the share of the work that is done.

    Returns
    -------
    Weights, shape ``[BUCKETS, p]`` or ``[BUCKETS, p, k]``.
    """
    parts, targets = is_inside.shape[1], int(np.prod(margins.shape[2:]))
    occurrences, scale = _occurrences(battles, is_inside)
    battles_in_part = is_inside.sum(axis=0)
    rarity = np.sqrt(1 + np.log((1 + battles_in_part) / (1 + occurrences)))
    spread = np.repeat(rarity, targets, axis=1)
    columns = np.repeat(is_inside, targets, axis=1)

    def transposed(values_of: Callable[[slice, csr_matrix], Array]) -> Array:
        """The product of the transposed matrix with a vector for each column."""
        total = np.zeros_like(spread)
        for chunk, words in battles.word_chunks():
            total += words.T @ (values_of(chunk, words) * scale[chunk, None])
        return total * spread

    def of_margins(chunk: slice, _: csr_matrix) -> Array:
        return np.asarray(margins[chunk], dtype=np.float64).reshape(-1, parts * targets)

    def of_direction(chunk: slice, words: csr_matrix) -> Array:
        return np.asarray((words @ scaled) * scale[chunk, None] * columns[chunk])

    weights = np.zeros_like(spread)
    residual = transposed(of_margins)
    direction, size = residual.copy(), _dot(residual, residual)
    for step_number in range(CG_STEPS):
        if progress is not None:
            progress(step_number / CG_STEPS)
        if np.max(size) < 1e-12:
            break
        scaled = spread * direction
        image = transposed(of_direction) + RIDGE_PENALTY * direction
        step = size / np.maximum(_dot(direction, image), MIN_CURVATURE)
        weights += step * direction
        residual -= step * image
        before, size = size, _dot(residual, residual)
        direction = residual + size / np.maximum(before, MIN_CURVATURE) * direction
    return (weights * spread).astype(np.float32).reshape(-1, *margins.shape[1:])


def _occurrences(battles: Measured, is_inside: NDArray[np.bool_]) -> tuple[Array, Array]:
    """In how many battles of each part a bucket occurs, shape ``[BUCKETS, p]``; the scale of each battle's row."""
    from scipy.sparse import csr_matrix

    occurrences = np.zeros((BUCKETS, is_inside.shape[1]))
    scale = np.zeros(len(is_inside))
    for chunk, words in battles.word_chunks():
        scale[chunk] = _row_scale(words)
        is_in = csr_matrix((np.ones(words.nnz), words.indices, words.indptr), shape=words.shape)
        occurrences += is_in.T @ is_inside[chunk].astype(np.float64)
    return occurrences, scale


def _dot(a: Array, b: Array) -> Array:
    """Of the columns of two matrices."""
    return np.asarray(np.sum(a * b, axis=0))

"""The linear model of words: which answer is better by the words and word pairs it has more of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefcli.models.features.booster import FitProgress, Folds

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

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
    words: csr_matrix, margins_of: Callable[[NDArray[np.intp]], Array], folds: Folds, progress: FitProgress
) -> tuple[NDArray[np.float32], Array]:
    """Weights of the words, and scores of the training battles by models that did not see their prompts.

    ``margins_of`` gives what the battles at some positions are regressed on, as far as these battles alone tell it; of
    any number of targets, shape ``[n, k]``. ``folds`` are the positions of the battles to train on and of those to
    score.
    """
    everything = np.arange(words.shape[0])
    scores = np.empty(0)
    for number, (inside, outside) in enumerate(folds):
        progress.words(number)
        of_fold = word_scores(words[outside], ridge(words[inside], margins_of(inside)))
        scores = scores if number else np.zeros((len(everything), *of_fold.shape[1:]))
        scores[outside] = of_fold
    progress.words(len(folds))
    weights = ridge(words, margins_of(everything))
    progress.words(len(folds) + 1)
    return weights, scores


def ridge(words: csr_matrix, margins: NDArray[np.floating]) -> NDArray[np.float32]:
    """Ridge regression of the margins ``[n]`` on the words A has more of, rare words weighing more.

    With margins ``[n, k]`` k regressions at once, weights ``[BUCKETS, k]``.
    Solved by conjugate gradients on the normal equations. Sums are numpy's, not BLAS's or scipy's solver's, whose order
    of addition depends on the number of threads.
    """
    from scipy.sparse import diags

    occurrences = np.bincount(words.indices, minlength=words.shape[1])
    rarity = np.sqrt(1 + np.log((1 + words.shape[0]) / (1 + occurrences)))
    scaled = (diags(_row_scale(words)) @ words @ diags(rarity)).tocsr()
    transposed = scaled.T.tocsr()
    weights = np.zeros((words.shape[1], *margins.shape[1:]))
    residual = transposed @ margins
    direction, size = residual.copy(), _dot(residual, residual)
    for _ in range(CG_STEPS):
        if np.max(size) < 1e-12:
            break
        image = transposed @ (scaled @ direction) + RIDGE_PENALTY * direction
        step = size / np.maximum(_dot(direction, image), MIN_CURVATURE)
        weights += step * direction
        residual -= step * image
        before, size = size, _dot(residual, residual)
        direction = residual + size / np.maximum(before, MIN_CURVATURE) * direction
    return (weights.T * rarity).T.astype(np.float32)


def _dot(a: Array, b: Array) -> Array:
    """Of two vectors, or of the columns of two matrices."""
    return np.asarray(np.sum(a * b, axis=0))

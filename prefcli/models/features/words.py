"""The linear model of words: which answer is better by the words and word pairs it has more of."""

from __future__ import annotations

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


def word_scores(words: csr_matrix, weights: NDArray[np.floating]) -> Array:
    """How much better A's words (:attr:`.statistics.Features.words`) are than B's by the weights of their buckets.

    Shape ``[n]``. Negated exactly when A and B are swapped.
    """
    return (words @ weights.astype(np.float64)) * _row_scale(words)


def _row_scale(words: csr_matrix) -> Array:
    """About one over each row's norm, so that long answers weigh no more than short ones."""
    squares = words.copy()
    squares.data = squares.data.astype(np.float64) ** 2
    return np.asarray(1 / np.sqrt(1 + np.asarray(squares.sum(axis=1)).ravel()))


def cross_fit(
    words: csr_matrix, margins: NDArray[np.floating], folds: Folds, progress: FitProgress
) -> tuple[NDArray[np.float32], Array]:
    """Weights of the words, and scores of the training battles by models that did not see their prompts.

    ``margins`` are the probability of A minus that of B, shape ``[n]``; ``folds`` the positions of the battles to train
    on and of those to score.
    """
    scores = np.zeros(len(margins))
    for number, (inside, outside) in enumerate(folds):
        progress.words(number)
        scores[outside] = word_scores(words[outside], ridge(words[inside], margins[inside]))
    progress.words(len(folds))
    weights = ridge(words, margins)
    progress.words(len(folds) + 1)
    return weights, scores


def ridge(words: csr_matrix, margins: NDArray[np.floating]) -> NDArray[np.float32]:
    """Ridge regression of the margins on the words A has more of, rare words weighing more.

    Solved by conjugate gradients on the normal equations. Sums are numpy's, not BLAS's or scipy's solver's, whose order
    of addition depends on the number of threads.
    """
    from scipy.sparse import diags

    occurrences = np.bincount(words.indices, minlength=words.shape[1])
    rarity = np.sqrt(1 + np.log((1 + words.shape[0]) / (1 + occurrences)))
    scaled = (diags(_row_scale(words)) @ words @ diags(rarity)).tocsr()
    transposed = scaled.T.tocsr()
    weights = np.zeros(words.shape[1])
    residual = transposed @ margins
    direction, size = residual.copy(), _dot(residual, residual)
    for _ in range(CG_STEPS):
        if size < 1e-12:
            break
        image = transposed @ (scaled @ direction) + RIDGE_PENALTY * direction
        step = size / _dot(direction, image)
        weights += step * direction
        residual -= step * image
        before, size = size, _dot(residual, residual)
        direction = residual + size / before * direction
    return (weights * rarity).astype(np.float32)


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b))

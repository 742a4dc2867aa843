"""What the voters of one source want: a booster of their own beside the common one, and how much each counts.

The own booster is trained on the source's battles alone, so it never has to unlearn what others want. Both scores are
added with factors that are fitted to scores of held-out battles (stacking: D. Wolpert, "Stacked generalization", Neural
Networks 5, 1992): many battles of a source make its own booster count most, few leave the common one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefcli.models.features.booster import BoosterData, FitProgress, Folds, Trained

if TYPE_CHECKING:
    from lightgbm import Booster

Array = NDArray[np.float64]

MIN_BATTLES = 50
"""A source with fewer battles is predicted by the common booster alone."""
MIN_GAIN = 1e-3
"""So is one whose log loss on the inner folds the own booster improves by less, or by less than the two fitted factors
do by chance under their prior: about 1 / battles."""
PRIOR_FACTOR, FACTOR_DEVIATION = 0.5, 0.5
"""Mean and standard deviation of the normal prior of both factors, so that few battles give none that is extreme."""
MAX_FACTOR = 2.0


@dataclass(frozen=True)
class SourceBooster:
    """How the battles of one source are scored: ``common`` times the common scores plus ``own`` times its booster's."""

    booster: Booster
    common: float = 1.0
    own: float = 1.0


def fit(
    data: BoosterData,
    scores: Array,
    names: NDArray[np.object_],
    folds: Folds,
    train: Callable[..., Trained],
    progress: FitProgress,
) -> dict[str, SourceBooster]:
    """The boosters of the sources that have enough battles and gain from one.

    Parameters
    ----------
    data:
        All n battles; the bases are those of their sources.
    scores:
        The common booster's, each battle's by one that did not see its prompt; shape ``[n, 3]``.
    names:
        Each battle's source, shape ``[n]``.
    folds, train, progress:
        The inner folds of all battles; :func:`.booster.train` with all other arguments; kept up to date.
    """
    assert data.bases is not None
    boosters = {}
    for name, battles in Counter(names.tolist()).most_common():
        if battles < MIN_BATTLES:
            break
        rows = np.flatnonzero(names == name)
        own_folds = _within(rows, folds, len(names))
        if any(not len(part) for fold in own_folds for part in fold):
            continue
        progress = progress.for_source(str(name), len(rows), len(folds))
        trained = train(data.battles(rows), own_folds, progress=progress, cross_fit=True)
        parts = np.stack([scores[rows], trained.held_out])
        targets = data.targets[rows].astype(np.float64)
        factors, gain = stack(parts, data.bases[rows], targets)
        if gain > max(MIN_GAIN, 1 / battles):
            boosters[str(name)] = SourceBooster(trained.booster, *factors)
    return boosters


def _within(rows: NDArray[np.intp], folds: Folds, battles: int) -> Folds:
    """The folds of some of the battles, as positions among them."""
    position = np.full(battles, -1)
    position[rows] = np.arange(len(rows))
    in_source = [[position[part][position[part] >= 0] for part in fold] for fold in folds]
    return [(inside, outside) for inside, outside in in_source]


def stack(parts: Array, bases: Array, targets: Array) -> tuple[tuple[float, float], float]:
    """The most probable factors of the common and the own scores, and how far their log loss is below that of (1, 0).

    ``parts`` are both scores of n held-out battles, shape ``[2, n, 3]``; bases and targets have shape ``[n, 3]``.
    """
    from scipy.optimize import minimize

    def loss_and_gradient(factors: Array) -> tuple[float, Array]:
        z = bases + np.tensordot(factors, parts, axes=1)
        log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        residual = np.exp(log_p) * targets.sum(axis=1, keepdims=True) - targets
        return -float((targets * log_p).sum()), np.einsum("knj,nj->k", parts, residual)

    def penalised(factors: Array) -> tuple[float, Array]:
        loss, gradient = loss_and_gradient(factors)
        change = (factors - PRIOR_FACTOR) / FACTOR_DEVIATION
        return loss + float(change @ change) / 2, gradient + change / FACTOR_DEVIATION

    optimum = minimize(
        penalised, np.full(2, PRIOR_FACTOR), jac=True, method="L-BFGS-B", bounds=[(0.0, MAX_FACTOR)] * 2
    ).x
    common, own = optimum.tolist()
    gain = loss_and_gradient(np.array([1.0, 0.0]))[0] - loss_and_gradient(optimum)[0]
    return (common, own), gain / targets.sum()

"""What a model is taught of each battle: its outcome, a soft label, or a mixture of both.

Soft labels are probabilities of A, B and tie: votes counted, or another model's predictions (distillation, Hinton,
Vinyals & Dean, "Distilling the knowledge in a neural network", 2015; on battles nobody voted on, pseudo-labels). They
come as the columns ``p_a, p_b, p_tie`` of the battles or from a file of predictions joined by id. Numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefcli.outcomes import OUTCOMES


def training_targets(
    labels: NDArray[np.integer], soft: NDArray[np.floating], *, weight: float = 1.0, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Target distributions of the battles.

    Parameters
    ----------
    labels:
        Shape ``[n]``, -1 where there is no outcome.
    soft:
        Soft labels, shape ``[n, 3]``; rows of NaN where there is none.
    weight:
        Of the soft label where a battle has both.
    temperature:
        Soft labels are taken to the power ``1 / temperature`` and normalised.

    Returns
    -------
    Shape ``[n, 3]``, rows sum to 1; rows without either are zero and so weigh nothing.
    """
    known = labels >= 0
    targets = np.zeros((len(labels), len(OUTCOMES)), dtype=np.float64)
    targets[known, labels[known]] = 1
    given = has_soft(soft)
    sharpened = np.asarray(soft[given], dtype=np.float64) ** (1 / temperature)
    sharpened /= sharpened.sum(axis=1, keepdims=True)
    share = np.where(known[given], weight, 1.0)[:, None]
    targets[given] = share * sharpened + (1 - share) * targets[given]
    return targets.astype(np.float32)


def has_soft(soft: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows have a soft label, shape ``[n]``."""
    return ~np.isnan(soft).any(axis=1)


def no_soft(n: int) -> NDArray[np.float32]:
    """The soft labels of ``n`` battles that have none."""
    return np.full((n, len(OUTCOMES)), np.nan, dtype=np.float32)

"""From several models' probabilities to one calibrated set: blending weights, temperature, tie share.

All of it is one small model: ``softmax(sum_m w_m log p_m + t [tie])`` with weights at least 0. For one model ``w`` is
an inverse temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017); for several it is a weighted
logarithmic opinion pool (Genest & Zidek, "Combining probability distributions", Statistical Science 1, 1986) with its
temperature; ``t`` moves the share of ties, the one thing that differs most between one group of voters and another.
The loss is convex in all of them.

A fit is kept only if it helps on battles it has not seen: it is fitted on four fifths of the prompts and scored on the
fifth, five times. Who calls this must keep the battles to be predicted out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.data import splits
from prefcli.outcomes import OUTCOMES, TIE

Array = NDArray[np.float64]

FOLDS = 5
FEWEST_BATTLES = 50
"""With fewer battles nothing is fitted."""
SMALLEST = 1e-300
LARGEST_WEIGHT = 100.0
LARGEST_TIE_SHIFT = 20.0


@dataclass(frozen=True)
class Calibration:
    """How probabilities of one or several models become one set.

    Attributes
    ----------
    weights:
        Of each model's log probabilities.
    tie_shift:
        Added to the tie's log probability.
    fitted:
        Whether weights and shift come from a fit; otherwise the models have equal weights that sum to 1.
    battles:
        How many battles it was fitted (or tried) on.
    before, after:
        Cross-fitted log loss with equal weights, and with the fit; NaN where nothing was tried.
    members:
        Log loss of each model alone on the same battles.
    """

    weights: tuple[float, ...]
    tie_shift: float = 0.0
    fitted: bool = False
    battles: int = 0
    before: float = float("nan")
    after: float = float("nan")
    members: tuple[float, ...] = ()

    @staticmethod
    def equal(models: int, battles: int = 0) -> Calibration:
        """Equal weights: one model's probabilities as they are, several models' geometric mean."""
        return Calibration((1 / models,) * models, battles=battles)

    def apply(self, probabilities: Sequence[Array]) -> Array:
        """One set of probabilities ``[n, 3]`` from each model's, rows summing to 1."""
        if self.weights == (1.0,) and not self.tie_shift:
            return probabilities[0] / probabilities[0].sum(axis=1, keepdims=True)
        return metrics.softmax(_mixed([_logs(p) for p in probabilities], np.array([*self.weights, self.tie_shift])))

    def __str__(self) -> str:
        several = len(self.weights) > 1
        what = "blending weights" if several else "temperature"
        if not self.battles:
            return f"{'equal weights' if several else 'temperature 1'}: nothing to fit on"
        if not np.isfinite(self.after):
            kept = "equal weights" if several else "temperature 1"
            return f"{kept}: {self.battles:,} battles are too few to fit a {what.removesuffix('s')} on"
        figures = f"cross-fitted log loss {self.before:.4f} -> {self.after:.4f} on {self.battles:,} battles"
        if not self.fitted:
            return f"{'equal weights' if several else 'temperature 1'} kept: fitting does not help ({figures})"
        shift = f", tie shift {self.tie_shift:+.3f}" if self.tie_shift else ""
        if several:
            best = f"; the best model alone {min(self.members):.4f}"
            return f"weights {', '.join(f'{w:.3f}' for w in self.weights)}{shift} ({figures}{best})"
        return f"temperature {1 / max(self.weights[0], 1 / LARGEST_WEIGHT):.3f}{shift} ({figures})"


def calibrate(
    logits: Sequence[Array], labels: NDArray[np.integer], keys: NDArray[np.int64], *, tie: bool = False
) -> Calibration:
    """Fit weights (and with ``tie`` the tie's shift) on labelled battles, if that helps.

    Parameters
    ----------
    logits:
        For each model logits or log probabilities of the same battles, shape ``[n, 3]``.
    labels:
        Shape ``[n]``, all known.
    keys:
        Prompt of each battle: the parts of the cross-fit share none.
    tie:
        Whether the share of ties may change.
    """
    models, n = len(logits), len(labels)
    logs = [_logs(metrics.softmax(z)) for z in logits]
    if n < FEWEST_BATTLES or len(np.unique(keys)) < FOLDS:
        return Calibration.equal(models, n)
    start = np.array([1 / models] * models + [0.0])
    before = metrics.losses(metrics.softmax(_mixed(logs, start)), labels)
    after = np.empty(n)
    for train, held_out in splits.split_folds(keys, np.asarray(labels, dtype=np.int64), FOLDS, seed=0):
        found = _fit([z[train] for z in logs], labels[train], tie)
        after[held_out] = metrics.losses(metrics.softmax(_mixed([z[held_out] for z in logs], found)), labels[held_out])
    helps = bool(after.mean() < before.mean())
    final = _fit(logs, labels, tie) if helps else start
    return Calibration(
        weights=tuple(final[:-1].tolist()),
        tie_shift=float(final[-1]),
        fitted=helps,
        battles=n,
        before=float(before.mean()),
        after=float(after.mean()),
        members=tuple(metrics.log_loss(metrics.softmax(z), labels) for z in logs),
    )


def _logs(probabilities: Array) -> Array:
    return np.log(np.maximum(probabilities, SMALLEST))


def _mixed(logs: Sequence[Array], parameters: Array) -> Array:
    mixed = np.tensordot(parameters[:-1], np.stack(logs), axes=1)
    mixed[:, TIE] += parameters[-1]
    return np.asarray(mixed)


def _fit(logs: Sequence[Array], labels: NDArray[np.integer], tie: bool) -> Array:
    """Weights and tie shift of least log loss; shape ``[models + 1]``."""
    from scipy.optimize import minimize

    stacked = np.stack(logs)
    truth = np.eye(len(OUTCOMES))[labels]

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        probabilities = metrics.softmax(_mixed(logs, parameters))
        residual = (probabilities - truth) / len(labels)
        gradient = np.append(np.einsum("mnk,nk->m", stacked, residual), residual[:, TIE].sum() if tie else 0.0)
        return float(metrics.losses(probabilities, labels).mean()), gradient

    models = len(logs)
    bounds = [(0.0, LARGEST_WEIGHT)] * models + [(-LARGEST_TIE_SHIFT, LARGEST_TIE_SHIFT) if tie else (0.0, 0.0)]
    start = np.array([1 / models] * models + [0.0])
    return np.asarray(minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds).x)

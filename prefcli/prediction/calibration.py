"""Combine several models' probabilities into one calibrated set: blending weights, temperature, share of ties.

All of it is one small model: ``softmax(sum_m w_m log p_m + t [tie])`` with weights at least 0. For one model ``w`` is
an inverse temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017); for several it is a weighted
logarithmic opinion pool (Genest & Zidek, "Combining probability distributions", Statistical Science 1, 1986) with its
temperature; ``t`` moves the share of ties, which differs most between groups of voters. The loss is convex in all of
them.

A fit is kept only if it helps on unseen battles, as measured by five-fold cross-fitting over prompts. The caller must
leave out the battles that are to be predicted.
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
MIN_BATTLES = 50
"""With fewer battles nothing is fitted."""
MIN_PROBABILITY = 1e-300
MAX_WEIGHT = 100.0
MAX_TIE_SHIFT = 20.0


@dataclass(frozen=True)
class Calibration:
    """How to combine the probabilities of one or several models."""

    weights: tuple[float, ...]
    """Factors of each model's log probabilities."""
    tie_shift: float = 0.0
    """Added to the log probability of a tie."""
    fitted: bool = False
    """Whether weights and shift come from a fit; otherwise the models have equal weights that sum to 1."""
    battles: int = 0
    """How many battles the fit was tried on."""
    before: float | None = None
    after: float | None = None
    """Cross-fitted log loss with equal weights, and with the fit; None if no fit was tried."""
    members: tuple[float, ...] = ()
    """Log loss of each model alone on the same battles."""

    @staticmethod
    def equal(models: int, battles: int = 0) -> Calibration:
        """Equal weights: one model's probabilities as they are, several models' geometric mean."""
        return Calibration((1 / models,) * models, battles=battles)

    def apply(self, probabilities: Sequence[Array]) -> Array:
        """One set of probabilities ``[n, 3]`` from each model's, rows summing to 1."""
        if self.weights == (1.0,) and not self.tie_shift:
            return probabilities[0] / probabilities[0].sum(axis=1, keepdims=True)
        return metrics.softmax(_combine([_log(p) for p in probabilities], np.array([*self.weights, self.tie_shift])))

    def __str__(self) -> str:
        several = len(self.weights) > 1
        unfitted = "equal weights" if several else "temperature 1"
        if not self.battles:
            return f"{unfitted}: nothing to fit on"
        if self.before is None or self.after is None:
            return f"{unfitted}: {self.battles:,} battles are too few for a fit"
        figures = f"cross-fitted log loss {self.before:.4f} -> {self.after:.4f} on {self.battles:,} battles"
        if not self.fitted:
            return f"{unfitted} kept: fitting does not help ({figures})"
        shift = f", tie shift {self.tie_shift:+.3f}" if self.tie_shift else ""
        if several:
            weights = ", ".join(f"{weight:.3f}" for weight in self.weights)
            return f"weights {weights}{shift} ({figures}; the best model alone {min(self.members):.4f})"
        return f"temperature {1 / max(self.weights[0], 1 / MAX_WEIGHT):.3f}{shift} ({figures})"


def calibrate(
    logits: Sequence[Array], labels: NDArray[np.integer], keys: NDArray[np.int64], *, tie: bool = False
) -> Calibration:
    """Fit weights (and with ``tie`` the tie shift) on labelled battles, if that helps.

    Parameters
    ----------
    logits:
        For each model, logits or log probabilities of the same battles, shape ``[n, 3]``.
    labels:
        Shape ``[n]``, all known.
    keys:
        Prompt key of each battle; folds of the cross-fit share no prompt.
    tie:
        Whether the share of ties may change.
    """
    models, n = len(logits), len(labels)
    logs = [_log(metrics.softmax(z)) for z in logits]
    if n < MIN_BATTLES or len(np.unique(keys)) < FOLDS:
        return Calibration.equal(models, n)
    start = np.array([1 / models] * models + [0.0])
    before = metrics.losses(metrics.softmax(_combine(logs, start)), labels)
    after = np.empty(n)
    # The first rule of splits, so that earlier runs predict what they predicted.
    folds = splits.split_folds(keys, np.asarray(labels, dtype=np.int64), FOLDS, seed=0, version=1)
    for train, held_out in folds:
        parameters = _fit([z[train] for z in logs], labels[train], tie)
        probabilities = metrics.softmax(_combine([z[held_out] for z in logs], parameters))
        after[held_out] = metrics.losses(probabilities, labels[held_out])
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


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(probabilities, MIN_PROBABILITY))


def _combine(logs: Sequence[Array], parameters: Array) -> Array:
    """Weighted sum of log probabilities plus tie shift: unnormalised log probabilities, shape ``[n, 3]``."""
    combined = np.tensordot(parameters[:-1], np.stack(logs), axes=1)
    combined[:, TIE] += parameters[-1]
    return np.asarray(combined)


def _fit(logs: Sequence[Array], labels: NDArray[np.integer], tie: bool) -> Array:
    """Weights and tie shift that minimise the log loss; shape ``[models + 1]``."""
    from scipy.optimize import minimize

    stacked = np.stack(logs)
    targets = np.eye(len(OUTCOMES))[labels]

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        probabilities = metrics.softmax(_combine(logs, parameters))
        residual = (probabilities - targets) / len(labels)
        gradient = np.append(np.einsum("mnk,nk->m", stacked, residual), residual[:, TIE].sum() if tie else 0.0)
        return float(metrics.losses(probabilities, labels).mean()), gradient

    models = len(logs)
    bounds = [(0.0, MAX_WEIGHT)] * models + [(-MAX_TIE_SHIFT, MAX_TIE_SHIFT) if tie else (0.0, 0.0)]
    start = np.array([1 / models] * models + [0.0])
    return np.asarray(minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds).x)

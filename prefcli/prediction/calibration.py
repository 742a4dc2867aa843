"""Combine several models' probabilities into one calibrated set: blending weights, temperature, share of ties.

All of it is one small model: ``softmax(sum_m w_m log p_m + t [tie])`` with weights at least 0. For one model ``w`` is
an inverse temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017); for several it is a weighted
logarithmic opinion pool (Genest & Zidek, "Combining probability distributions", Statistical Science 1, 1986) with its
temperature; ``t`` moves the share of ties, which differs most between groups of voters. The loss is convex in all of
them.

Only what the outcomes can tell is fitted. Battles without a tie say nothing about the share of ties, and battles that
only one answer wins nothing about the temperature: such a share or temperature stays as it was.

A fit is kept only if it helps on unseen battles, as measured by five-fold cross-fitting over prompts. The caller must
leave out the battles that are to be predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import outcome_counts
from prefcli.data import splits
from prefcli.outcomes import OUTCOMES, TIE, A, B
from prefcli.prediction import stacking
from prefcli.prediction.stacking import MIN_PROBABILITY, Covariates, Stack

Array = NDArray[np.float64]
Labels = NDArray[np.integer]

FOLDS = 5
MIN_BATTLES = 50
"""With fewer battles nothing is fitted."""
MIN_STACK_GAIN = 1e-3
"""A small model on top is kept if it lowers the cross-fitted log loss by at least that."""
MAX_WEIGHT = 100.0
MAX_TIE_SHIFT = 20.0
"""Either way from the shift that makes a tie as probable as a win of A or B, on average over the battles of the fit."""
WEIGHT_TOLERANCE = 1e-3
"""How near to a bound a parameter counts as being there; for the upper bounds as a share of them."""


@dataclass(frozen=True)
class Calibration:
    """How to combine the probabilities of one or several models."""

    weights: tuple[float, ...]
    """Factors of each model's log probabilities."""
    tie_shift: float = 0.0
    """Added to the log probability of a tie."""
    fitted: bool = False
    """Whether weights and shift come from a fit."""
    battles: int = 0
    """How many battles the fit was tried on."""
    before: float | None = None
    after: float | None = None
    """Cross-fitted log loss with the weights before the fit, and with the fit; None if no fit was tried."""
    members: tuple[float, ...] = ()
    """Log loss of each model alone on the same battles."""
    unseen: tuple[int, ...] = ()
    """Outcomes that no model saw in training: they keep :data:`prefcli.metrics.UNSEEN_PROBABILITY`."""
    remarks: tuple[str, ...] = ()
    """Why there is no fit, what the outcomes did not tell, and what ended at a bound."""
    stack: Stack | None = None
    """What is changed after weights and shift, by source and by length of the answers; None if that does not help."""
    stack_losses: tuple[tuple[str, float], ...] = ()
    """What was tried on top of weights and shift, and its cross-fitted log loss on the same battles."""

    @staticmethod
    def equal(models: int, unseen: tuple[int, ...] = ()) -> Calibration:
        """Equal weights: one model's probabilities as they are, several models' geometric mean."""
        return Calibration((1 / models,) * models, unseen=unseen)

    def apply(self, probabilities: Sequence[Array], battles: Covariates | None = None) -> Array:
        """One set of probabilities ``[n, 3]`` from each model's, rows summing to 1.

        ``battles`` are needed where there is a :attr:`stack`.
        """
        combined = self._combined(probabilities)
        if self.stack is None:
            return combined
        assert battles is not None
        return self.stack.apply(combined, battles)

    def _combined(self, probabilities: Sequence[Array]) -> Array:
        if self.weights == (1.0,) and not self.tie_shift:
            return probabilities[0] / probabilities[0].sum(axis=1, keepdims=True)
        combined = _combine([_log(p) for p in probabilities], np.array([*self.weights, self.tie_shift]))
        return metrics.softmax(metrics.with_unseen(combined, self.unseen))

    def at_temperature(self, temperature: float) -> Calibration:
        """The same weights relative to each other, equal ones where all are 0, and their sum 1 / temperature."""
        relative = self.weights if any(self.weights) else (1.0,) * len(self.weights)
        total = sum(relative) * temperature
        weights = tuple(weight / total for weight in relative)
        return Calibration(weights, unseen=self.unseen, remarks=("as --temperature says",))

    def __str__(self) -> str:
        return "; ".join([self._weights_in_words(), *self._stack_in_words()])

    def _stack_in_words(self) -> list[str]:
        """What was kept of the small model on top, and what was not."""
        loss = self.after if self.fitted else self.before
        kept: list[str] = []
        words: list[str] = []
        for what, after in self.stack_losses:
            if _helps(loss, after):
                kept, loss = [*kept, f"{loss:.4f} -> {after:.4f}"], after
            else:
                words.append(f"{what} not used: it does not help ({loss:.4f} -> {after:.4f})")
        if self.stack is not None:
            words.insert(0, f"{self.stack} (cross-fitted log loss {', '.join(kept)})")
        return words

    def _weights_in_words(self) -> str:
        several = len(self.weights) > 1
        weights = ", ".join(f"{weight:.3f}" for weight in self.weights)
        temperature = f"{1 / self.weights[0]:.3f}" if self.weights[0] > 0 else "infinite"
        unfitted = f"weights {weights}" if several else f"temperature {temperature.removesuffix('.000')}"
        if several and len(set(self.weights)) == 1:
            unfitted = "equal weights"
        if self.before is None or self.after is None:
            return f"{unfitted}: {'; '.join(self.remarks) or 'nothing to fit on'}"
        remarks = "".join(f"; {remark}" for remark in self.remarks)
        figures = (
            f"cross-fitted log loss {self.before:.4f} -> {self.after:.4f} on {metrics.plural(self.battles, 'battle')}"
        )
        if not self.fitted:
            return f"{unfitted} kept: fitting does not help ({figures}){remarks}"
        shift = f", tie shift {metrics.signed(self.tie_shift, 3)}" if self.tie_shift else ""
        if several:
            return f"weights {weights}{shift} ({figures}; the best model alone {min(self.members):.4f}){remarks}"
        return f"temperature {temperature}{shift} ({figures}){remarks}"


def calibrate(
    logits: Sequence[Array],
    labels: Labels,
    keys: NDArray[np.int64],
    *,
    tie: bool = False,
    scale: bool = True,
    start: Sequence[float] | None = None,
    unseen: Sequence[int] = (),
) -> Calibration:
    """Fit weights (and the tie shift) on labelled battles, if that helps.

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
    scale:
        Whether the weights may have any sum, which is an inverse temperature; otherwise the sum stays 1. Those of
        several models get another sum only if the cross-fit is better with it: few prompts tell it worse than they
        tell the relation of the weights.
    start:
        Weights to be kept unless a fit is better; by default equal ones that sum to 1.
    unseen:
        Outcomes that no model saw in training. They keep their probability unless these battles have them.
    """
    models, n = len(logits), len(labels)
    weights = np.full(models, 1 / models) if start is None else np.asarray(start, dtype=np.float64)
    unseen = tuple(outcome for outcome in unseen if not (labels == outcome).any())
    prompts = len(np.unique(keys))
    if n < MIN_BATTLES or prompts < FOLDS:
        needed = f"{metrics.describe_battles(MIN_BATTLES, FOLDS)} are needed"
        few = f"too few for a fit: {metrics.describe_battles(n, prompts)}, {needed}" if n else "no battles to fit on"
        return Calibration(tuple(weights.tolist()), battles=n, unseen=unseen, remarks=(few,))
    logs = [_log(metrics.softmax(z)) for z in logits]
    initial = np.append(weights, 0.0)

    def losses(rows: NDArray[np.intp], parameters: Array) -> Array:
        combined = metrics.with_unseen(_combine([z[rows] for z in logs], parameters), unseen)
        return _losses(metrics.softmax(combined), labels, rows)

    def cross_fitted(scale: bool) -> float:
        after = np.empty(n)
        for train, held_out in _folds(keys, labels):
            parameters, _ = _fit([z[train] for z in logs], labels[train], initial, tie, scale)
            after[held_out] = losses(held_out, parameters)
        return float(after.mean())

    everything = np.arange(n)
    before = float(losses(everything, initial).mean())
    by_scale = {free: cross_fitted(free) for free in ((False, True) if scale and models > 1 else (scale,))}
    scale = min(by_scale, key=by_scale.__getitem__)
    helps = by_scale[scale] < before
    final, remarks = _fit(logs, labels, initial, tie, scale)
    if helps:
        remarks += _bounds(final, logs) if scale else ()
    else:
        final = initial
    alone = [float(losses(everything, np.append(row, 0.0)).mean()) for row in np.eye(models)]
    return Calibration(
        weights=tuple(final[:-1].tolist()),
        tie_shift=0.0 if TIE in unseen else float(final[-1]),
        fitted=helps,
        battles=n,
        before=before,
        after=by_scale[scale],
        members=tuple(alone),
        unseen=unseen,
        remarks=remarks,
    )


def with_stack(
    fit: Calibration, probabilities: Array, labels: Labels, keys: NDArray[np.int64], battles: Covariates
) -> Calibration:
    """The fit of one model's temperature and tie shift, with a small model on top where that helps.

    Tried are first parameters by source, where at least two have enough battles, then the length of the answers. Each
    is kept only if it lowers the log loss, cross-fitted with all that is below it, by :data:`MIN_STACK_GAIN`.

    Parameters
    ----------
    fit:
        What :func:`calibrate` gave for the same labels and keys.
    probabilities:
        The model's, shape ``[n, 3]``.
    labels, keys:
        As for :func:`calibrate`.
    battles:
        Sources and lengths.
    """
    a_wins, b_wins, _ = outcome_counts(labels).tolist()
    loss = fit.after if fit.fitted else fit.before
    if loss is None or not (a_wins and b_wins):
        return fit
    below = []
    for train, held_out in _folds(keys, labels):
        of_fold = fit
        if fit.fitted:
            parameters, _ = _fit([_log(probabilities[train])], labels[train], np.array([1.0, 0.0]), True, True)
            of_fold = dataclasses.replace(fit, weights=(float(parameters[0]),), tie_shift=float(parameters[1]))
        below.append((train, held_out, of_fold._combined([probabilities])))

    def cross_fitted(sources: Sequence[str], length: bool) -> float:
        after = np.empty(len(labels))
        for train, held_out, before in below:
            stack = stacking.fit(before[train], labels[train], battles.take(train), sources, length=length)
            after[held_out] = _losses(stack.apply(before[held_out], battles.take(held_out)), labels, held_out)
        return float(after.mean())

    sources, length, tried = battles.enough(), False, []
    if sources:
        tried.append(("by source", cross_fitted(sources, False)))
        helps = _helps(loss, tried[-1][1])
        sources, loss = (sources, tried[-1][1]) if helps else ((), loss)
    tried.append(("the length of the answers", cross_fitted(sources, True)))
    length = _helps(loss, tried[-1][1])
    fit = dataclasses.replace(fit, stack_losses=tuple(tried))
    if not (sources or length):
        return fit
    return dataclasses.replace(
        fit, stack=stacking.fit(fit._combined([probabilities]), labels, battles, sources, length=length)
    )


def _helps(before: float | None, after: float) -> bool:
    """Whether a small model on top is worth it."""
    return before is not None and after < before - MIN_STACK_GAIN


def _folds(keys: NDArray[np.int64], labels: Labels) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Of the cross-fit, by the first rule of splits, so that earlier runs predict what they predicted."""
    return splits.split_folds(keys, np.asarray(labels, dtype=np.int64), FOLDS, seed=0, version=1)


def _losses(probabilities: Array, labels: Labels, rows: NDArray[np.intp]) -> Array:
    """Log loss of some of the battles; without ties among all labels, that of A against B."""
    if not (labels == TIE).any():
        probabilities = metrics.two_outcome(probabilities)
    return metrics.losses(probabilities, labels[rows])


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(probabilities, MIN_PROBABILITY))


def _combine(logs: Sequence[Array], parameters: Array) -> Array:
    """Weighted sum of log probabilities plus tie shift: unnormalised log probabilities, shape ``[n, 3]``."""
    combined = np.tensordot(parameters[:-1], np.stack(logs), axes=1)
    combined[:, TIE] += parameters[-1]
    return np.asarray(combined)


def _fit(logs: Sequence[Array], labels: Labels, start: Array, tie: bool, scale: bool) -> tuple[Array, tuple[str, ...]]:
    """Weights and tie shift that minimise the log loss, shape ``[models + 1]``, and remarks on what was not fitted."""
    a_wins, b_wins, ties = outcome_counts(labels).tolist()
    weights_known = bool(a_wins and b_wins) and (scale or len(logs) > 1)
    tie_known = tie and bool(ties) and bool(a_wins or b_wins)
    remarks = []
    if not (a_wins and b_wins):
        kept = "weights are" if len(logs) > 1 else "temperature is"
        remarks.append(f"none of these battles is won by {'B' if a_wins else 'A'}, so the {kept} kept")
    if tie and not tie_known:
        remarks.append(f"{'all' if ties else 'none'} of these battles are ties, so the share of ties is kept")
    parameters = start.copy()
    if weights_known or tie_known:
        parameters = _minimise(logs, labels, start, weights_known, tie_known, scale)
    if not ties:
        parameters[-1] = _shift_that_keeps_ties(logs, start, parameters)
    return parameters, tuple(remarks)


def _minimise(
    logs: Sequence[Array], labels: Labels, start: Array, weights_known: bool, tie_known: bool, scale: bool
) -> Array:
    """Minimise the log loss over what is known; without ties among the labels, that of A against B."""
    from scipy.optimize import LinearConstraint, minimize

    models, columns = len(logs), len(OUTCOMES) if (labels == TIE).any() else TIE
    stacked = np.stack(logs)[..., :columns].copy()
    offsets = _tie_offsets(logs)
    if tie_known:
        # Weights and shift then hardly depend on one another, however improbable ties are.
        stacked[..., TIE] -= offsets[:, None]
    targets = np.eye(columns)[labels]

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        combined = np.tensordot(parameters[:-1], stacked, axes=1)
        if columns > TIE:
            combined[:, TIE] += parameters[-1]
        highest = combined.max(axis=1, keepdims=True)
        log_p = combined - highest - np.log(np.exp(combined - highest).sum(axis=1, keepdims=True))
        residual = (np.exp(log_p) - targets) / len(labels)
        gradient = np.append(np.einsum("mnk,nk->m", stacked, residual), residual[:, TIE:].sum())
        return -float((targets * log_p).sum() / len(labels)), gradient

    bounds = [(0.0, MAX_WEIGHT) if weights_known else (weight, weight) for weight in start[:-1].tolist()]
    begin = start.copy()
    if tie_known:
        begin[-1] += begin[:-1] @ offsets
        bounds.append((-MAX_TIE_SHIFT, MAX_TIE_SHIFT))
    else:
        bounds.append((start[-1], start[-1]))
    if scale or not weights_known:
        fit = minimize(
            loss_and_gradient, begin, jac=True, method="L-BFGS-B", bounds=bounds,
            options={"ftol": 1e-13, "gtol": 1e-8, "maxiter": 1000},
        )  # fmt: skip
    else:
        sum_of_weights = LinearConstraint(np.append(np.ones(models), 0.0), 1.0, 1.0)
        fit = minimize(
            loss_and_gradient, begin, jac=True, method="SLSQP", bounds=bounds, constraints=[sum_of_weights],
            options={"ftol": 1e-12, "maxiter": 1000},
        )  # fmt: skip
    found = np.asarray(fit.x)
    if tie_known:
        found[-1] -= found[:-1] @ offsets
    return found


def _tie_offsets(logs: Sequence[Array]) -> Array:
    """Each model's mean log odds of a tie."""
    return np.array([(z[:, TIE] - np.logaddexp(z[:, A], z[:, B])).mean() for z in logs])


def _shift_that_keeps_ties(logs: Sequence[Array], before: Array, after: Array) -> float:
    """The tie shift with which the weights ``after`` give ties the same mean probability as ``before``."""
    from scipy.optimize import brentq

    if np.array_equal(before, after):
        return float(before[-1])
    wanted = np.clip(metrics.softmax(_combine(logs, before))[:, TIE].mean(), MIN_PROBABILITY, 1 - metrics.CLIP)
    combined = _combine(logs, np.append(after[:-1], 0.0))
    log_odds = combined[:, TIE] - np.logaddexp(combined[:, A], combined[:, B])

    def excess(shift: float) -> float:
        return float((1 / (1 + np.exp(-np.clip(log_odds + shift, -700, 700)))).mean() - wanted)

    # Between the shifts at which no battle has as many ties as wanted and all have.
    aim = np.log(wanted / (1 - wanted))
    return float(brentq(excess, aim - log_odds.max() - 1, aim - log_odds.min() + 1))


def _bounds(parameters: Array, logs: Sequence[Array]) -> tuple[str, ...]:
    """Remarks on parameters that ended at a bound; for some of several models 0 is a weight like any other."""
    weights, remarks = parameters[:-1], []
    if weights.max() < WEIGHT_TOLERANCE:
        which, whose = ("all weights", "any model") if len(weights) > 1 else ("the weight", "the model")
        remarks.append(f"{which} ended at the bound 0: the outcomes do not follow what {whose} prefers")
    if weights.max() > MAX_WEIGHT * (1 - WEIGHT_TOLERANCE):
        remarks.append(f"a weight ended at its bound {MAX_WEIGHT:g}: no outcome is against what the model prefers")
    if abs(parameters[-1] + weights @ _tie_offsets(logs)) > MAX_TIE_SHIFT * (1 - WEIGHT_TOLERANCE):
        remarks.append(f"the tie shift ended at its bound {metrics.signed(parameters[-1], 3)}")
    return tuple(remarks)

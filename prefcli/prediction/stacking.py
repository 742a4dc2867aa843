"""A small model on top of calibrated probabilities: how the voters of a sample differ, by source and by length.

Other voters tie more or less often, source by source, and like longer answers more or less than those a run was trained
on. For a battle of source s whose answer A is longer by d doublings::

    log p' = f_s log p + t_s [tie] + longer d/2 ([A] - [B]) + apart |d| [tie]

normalised. All parameters have normal priors around "no change", so a source of few battles moves little (ridge
regression on what a model predicts: D. Wolpert, "Stacked generalization", Neural Networks 5, 1992). Swapping A and B
swaps the result exactly. A sample without ties says nothing about them: then each battle's probability of a tie stays,
and only A against B changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli import metrics
from prefcli.battles import SOURCE, FlatTurns
from prefcli.errors import one_line
from prefcli.outcomes import OUTCOMES, TIE, A, B

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.storage.workspace import Stage

Array = NDArray[np.float64]

ANSWERS = ("response_a", "response_b")
MIN_PROBABILITY = 1e-300
MIN_SOURCE_BATTLES = 10
"""A source with fewer battles in the sample is treated as one that is not in it."""
MAX_DOUBLINGS = 4.0
"""A longer answer counts as that many times twice as long at most."""
FACTOR_DEVIATION, TIE_DEVIATION, LENGTH_DEVIATION = 0.5, 2.0, 0.3
"""Standard deviations of the priors: of factors around 1, of tie shifts, and of log-odds for each doubling."""
MAX_LISTED = 8
"""Sources that a message names."""


@dataclass(frozen=True)
class Covariates:
    """What is known of n battles besides their predictions."""

    doublings: Array
    """By how many doublings A is longer than B, see :func:`count_doublings`; shape ``[n]``."""
    sources: NDArray[np.object_] | None = None
    """Whose votes they are, ``[n]``, where that is known."""

    @staticmethod
    def of(stage: Stage) -> Covariates:
        """Those of a stage's battles."""
        sources = stage.table([SOURCE])[SOURCE].to_numpy(zero_copy_only=False) if SOURCE in stage.columns else None
        return Covariates(np.concatenate([count_doublings(batch) for batch in stage.batches(list(ANSWERS))]), sources)

    def take(self, rows: NDArray[np.integer] | slice) -> Covariates:
        """Those of some of the battles."""
        return Covariates(self.doublings[rows], None if self.sources is None else self.sources[rows])

    def enough(self) -> tuple[str, ...]:
        """The sources that have enough battles, if at least two have."""
        if self.sources is None:
            return ()
        named = [source for source in self.sources.tolist() if source is not None]
        names, counts = np.unique(np.array(named, dtype=str), return_counts=True)
        names = names[counts >= MIN_SOURCE_BATTLES]
        return tuple(names.tolist()) if len(names) > 1 else ()

    def codes(self, names: Sequence[str]) -> NDArray[np.intp]:
        """Each battle's source as its position among the names; of another, their number."""
        if self.sources is None:
            return np.full(len(self.doublings), len(names))
        position = {name: number for number, name in enumerate(names)}
        return np.array([position.get(source, len(names)) for source in self.sources.tolist()], dtype=np.intp)


def count_doublings(batch: pa.RecordBatch) -> Array:
    """``log2`` of characters of A (and one more) over those of B, within :data:`MAX_DOUBLINGS`; shape ``[n]``."""
    import pyarrow.compute as pc

    turns = [FlatTurns.of(batch.column(name)) for name in ANSWERS]
    a, b = (np.log2(1 + side.per_battle(pc.utf8_length(side.texts))) for side in turns)
    return np.clip(a - b, -MAX_DOUBLINGS, MAX_DOUBLINGS)


@dataclass(frozen=True)
class Stack:
    """What is changed in calibrated probabilities."""

    sources: tuple[str, ...]
    factors: tuple[float, ...]
    """Of log probabilities: of each source, then of all others."""
    tie_shifts: tuple[float, ...]
    """Added to the log probability of a tie: of each source, then of all others."""
    longer: float = 0.0
    """Log-odds of A over B for each doubling of A's length."""
    apart: float = 0.0
    """Added to the log probability of a tie for each doubling that one answer is longer than the other."""
    keeps_ties: bool = False
    """Whether the probability of a tie stays as it is."""

    def apply(self, probabilities: Array, battles: Covariates) -> Array:
        """The changed probabilities ``[n, 3]``, rows summing to 1."""
        source, d = battles.codes(self.sources), battles.doublings
        logs = np.log(np.maximum(probabilities, MIN_PROBABILITY)) * np.array(self.factors)[source][:, None]
        logs[:, A] += self.longer / 2 * d
        logs[:, B] -= self.longer / 2 * d
        if self.keeps_ties:
            ties = probabilities[:, [TIE]]
            return np.concatenate([metrics.softmax(logs[:, [A, B]]) * (1 - ties), ties], axis=1)
        logs[:, TIE] += np.array(self.tie_shifts)[source] + self.apart * np.abs(d)
        return metrics.softmax(logs)

    def __str__(self) -> str:
        described = []
        if self.sources:
            rows = zip((*self.sources, "others"), self.factors, self.tie_shifts, strict=True)
            by_source = [
                f"{one_line(name, 40)} log-odds x {factor:.2f}"
                + ("" if self.keeps_ties else f", tie shift {metrics.signed(shift, 2)}")
                for name, factor, shift in rows
            ]
            if left := len(by_source) - MAX_LISTED:
                by_source = [*by_source[: MAX_LISTED - 1], f"{left + 1:,} more"] if left > 0 else by_source
            described.append(f"by source ({'; '.join(by_source)})")
        if self.longer:
            described.append(f"{metrics.signed(self.longer, 2)} log-odds for each doubling of an answer's length")
        return " and ".join(described)

    def to_json(self) -> dict[str, Any]:
        """Plain values, by name."""
        rows = zip(self.factors, self.tie_shifts, strict=True)
        values = [{"factor": factor, "tie_shift": shift} for factor, shift in rows]
        return {
            "sources": dict(zip(self.sources, values, strict=False)),
            "others": values[-1],
            "longer": self.longer,
            "apart": self.apart,
            "keeps_ties": self.keeps_ties,
        }


def fit(
    probabilities: Array, labels: NDArray[np.integer], battles: Covariates, sources: Sequence[str], *, length: bool
) -> Stack:
    """The most probable parameters (MAP) given labelled battles.

    Parameters
    ----------
    probabilities:
        As they are without the small model, shape ``[n, 3]``.
    labels, battles:
        The outcomes, shape ``[n]``, and what else is known of the battles.
    sources:
        Those that get parameters of their own.
    length:
        Whether the length of the answers matters.
    """
    from scipy.optimize import minimize

    keeps_ties = not (labels == TIE).any()
    columns = TIE if keeps_ties else len(OUTCOMES)
    logs = np.log(np.maximum(probabilities, MIN_PROBABILITY))[:, :columns]
    centre = 0.0 if keeps_ties else float((logs[:, TIE] - np.logaddexp(logs[:, A], logs[:, B])).mean())
    logs[:, TIE:] -= centre  # factor and tie shift then hardly depend on one another
    targets, source, d, k = np.eye(columns)[labels], battles.codes(sources), battles.doublings, len(sources) + 1
    # The last of the k factors and of the k tie shifts is of all battles, the others are added to it by source.
    with_source = np.zeros((len(labels), k))
    with_source[np.arange(len(labels)), source] = 1
    with_source[:, -1] = 1
    precisions = np.repeat(1 / np.square([FACTOR_DEVIATION, TIE_DEVIATION, LENGTH_DEVIATION]), [k, k, 2])

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        factors, shifts, (longer, apart) = parameters[:k], parameters[k : 2 * k], parameters[2 * k :]
        z = logs * (1 + with_source @ factors)[:, None]
        z[:, A] += longer / 2 * d
        z[:, B] -= longer / 2 * d
        z[:, TIE:] += (with_source @ shifts + apart * np.abs(d) + centre)[:, None]
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        residual = np.exp(log_p) - targets
        of_tie = residual[:, TIE:].sum(axis=1)
        gradient = np.concatenate([
            with_source.T @ (logs * residual).sum(axis=1), with_source.T @ of_tie,
            [(residual[:, A] - residual[:, B]) @ d / 2, of_tie @ np.abs(d)],
        ])  # fmt: skip
        penalty = precisions * parameters
        return float(-(targets * log_p).sum() + penalty @ parameters / 2), gradient + penalty

    free = [(None, None)]
    none = [(0.0, 0.0)]
    bounds = free * k + (none if keeps_ties else free) * k + (free if length else none)
    bounds += free if length and not keeps_ties else none
    optimum = minimize(
        loss_and_gradient, np.zeros(2 * k + 2), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000}
    )
    parameters = np.asarray(optimum.x)
    factors, shifts = (np.append(own[:-1] + own[-1], own[-1]) for own in (parameters[:k], parameters[k : 2 * k]))
    factors = np.maximum(1 + factors, 0.0)
    shifts = shifts + (1 - factors) * centre
    longer, apart = parameters[2 * k :].tolist()
    return Stack(tuple(sources), tuple(factors.tolist()), tuple(shifts.tolist()), longer, apart, keeps_ties)

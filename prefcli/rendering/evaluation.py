"""What a page shows of predictions: score, calibration, confusion, error by group, the most surprising battles.

Everything is computed from probabilities and outcomes by :mod:`prefcli.metrics`. Groups and texts need the battles
themselves, which :func:`read_details` takes from a stream: predictions do not hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import groups, metrics
from prefcli.battles import labels_of
from prefcli.errors import InputError, plural
from prefcli.exploration.shares import Share, share
from prefcli.outcomes import OUTCOMES

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

RELIABILITY_BINS = 10
MAX_SURPRISING = 20
GROUPINGS = ("length", "turns", "script", "models")
"""Those of :data:`prefcli.groups.COMPUTED`, in the order of the page."""
MAX_GROUPS = 12
"""Of one grouping, the largest."""
MIN_GROUP = 10
"""Smaller groups are not shown: their figures say nothing."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of n battles whose outcomes are known."""

    ids: Sequence[str]
    probabilities: Array
    """Shape ``[n, 3]``, as they are scored."""
    labels: NDArray[np.int64]
    keys: NDArray[np.int64] | None
    """Of the prompts; None where prompts are not known."""
    outcomes: int
    """How many are scored, see :class:`prefcli.metrics.Score`."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def losses(self) -> Array:
        """Log loss of each battle, shape ``[n]``."""
        return metrics.losses(self.probabilities, self.labels)

    def score(self, rows: Rows | None = None) -> metrics.Score:
        """Every metric, of all battles or of some."""
        rows = np.arange(len(self.ids)) if rows is None else rows
        keys = None if self.keys is None else self.keys[rows]
        return metrics.score(
            self.probabilities[rows], self.labels[rows], groups=keys, outcomes=self.outcomes, seed=self.seed
        )

    def surprising(self) -> Rows:
        """Rows of the battles with the highest losses, at most :data:`MAX_SURPRISING`, the highest first."""
        return np.argsort(-self.losses, kind="stable")[:MAX_SURPRISING]


@dataclass(frozen=True)
class BattleTexts:
    """What a battle says, turn by turn; a turn may be null."""

    model_a: str | None
    model_b: str | None
    prompt: tuple[str | None, ...]
    response_a: tuple[str | None, ...]
    response_b: tuple[str | None, ...]


@dataclass(frozen=True)
class Details:
    """What the battles themselves tell, beside their predictions."""

    groups: dict[str, list[str | None]]
    """By grouping, the name of each battle's group, in the order of the predictions."""
    texts: dict[int, BattleTexts]
    """Of some rows of the predictions."""


def read_details(batches: Iterable[pa.RecordBatch], predictions: Predictions, by: str | None, where: str) -> Details:
    """Groups of all predicted battles, and the texts of the most surprising ones.

    Parameters
    ----------
    batches:
        Canonical battles, the predicted ones among them.
    by:
        A grouping besides :data:`GROUPINGS`: what ``Source.by`` was when the battles were read.
    where:
        Which battles these are, for errors.

    Raises
    ------
    InputError
        If a predicted battle is missing, or has another prompt or outcome than it was predicted with.
    """
    row_of = {battle_id: row for row, battle_id in enumerate(predictions.ids)}
    names = dict.fromkeys([by, *GROUPINGS] if by else GROUPINGS)
    of_rows: dict[str, list[str | None]] = {name: [None] * len(row_of) for name in names}
    wanted = set(predictions.surprising().tolist())
    texts: dict[int, BattleTexts] = {}
    seen = np.zeros(len(row_of), dtype=bool)
    for batch in batches:
        positions, rows = _matches(batch, row_of)
        if not len(rows):
            continue
        part = batch.take(pa.array(positions))
        _check_same(part, rows, predictions, where)
        seen[rows] = True
        for name, values in of_rows.items():
            for row, group in zip(rows.tolist(), groups.of(part, name).to_pylist(), strict=True):
                values[row] = group
        for position, row in enumerate(rows.tolist()):
            if row in wanted:
                texts[row] = _texts(part, position)
    if not seen.all():
        missing = predictions.ids[int(np.argmin(seen))]
        raise InputError(
            f"{(~seen).sum():,} of {plural(len(seen), 'battle')} not found (the first is {missing})", where=where
        )
    return Details(of_rows, texts)


def _matches(batch: pa.RecordBatch, row_of: dict[str, int]) -> tuple[Rows, Rows]:
    """Positions in the batch of predicted battles, and their rows in the predictions."""
    rows = np.array([row_of.get(battle_id, -1) for battle_id in batch.column("id").to_pylist()], dtype=np.intp)
    positions = np.flatnonzero(rows >= 0)
    return positions, rows[positions]


def _check_same(part: pa.RecordBatch, rows: Rows, predictions: Predictions, where: str) -> None:
    """Refuse battles that have the ids of the predicted ones, but another prompt or outcome."""
    differ = labels_of(pa.Table.from_batches([part])) != predictions.labels[rows]
    if predictions.keys is not None:
        differ |= part.column("prompt_key").to_numpy() != predictions.keys[rows]
    if differ.any():
        battle_id = predictions.ids[int(rows[np.argmax(differ)])]
        raise InputError(
            f"battle {battle_id} has another prompt or outcome than the one that was predicted", where=where
        )


def _texts(batch: pa.RecordBatch, position: int) -> BattleTexts:
    names = ("model_a", "model_b", "prompt", "response_a", "response_b")
    model_a, model_b, *fields = (batch.column(name)[position].as_py() for name in names)
    return BattleTexts(model_a, model_b, *(tuple(turns or ()) for turns in fields))


@dataclass(frozen=True)
class ReliabilityBin:
    """Battles whose outcome was predicted with ``low`` to ``high``; see :func:`reliability`."""

    low: float
    high: float
    predicted: float
    """Mean of these probabilities."""
    observed: Share
    """How often the outcome came, with Wilson's interval."""


@dataclass(frozen=True)
class Grouping:
    """The error of each of the largest groups."""

    by: str
    groups: dict[str, metrics.Score]
    """By name; ``prior_log_loss`` is of the group's own shares of outcomes."""
    left_out: int
    """Smaller groups that are not listed."""
    battles_left_out: int
    """Battles of these, and of no group."""


@dataclass(frozen=True)
class Surprise:
    """A battle whose outcome was given a low probability."""

    id: str
    label: int
    probabilities: tuple[float, ...]
    """Of the outcomes that are scored."""
    loss: float
    texts: BattleTexts | None
    """None where the battle itself is not at hand."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that is computed from predictions for a page."""

    score: metrics.Score
    against_prior: metrics.Difference
    """Mean loss minus that of always predicting the class shares, battle by battle."""
    reliability: tuple[tuple[ReliabilityBin, ...], ...]
    """Of A, B and tie; of A alone where there are two outcomes."""
    confusion: tuple[tuple[float, ...], ...]
    """``confusion[true][predicted]``; where k outcomes are equally probable, each counts as 1/k."""
    groupings: tuple[Grouping, ...]
    surprising: tuple[Surprise, ...]


def evaluate(predictions: Predictions, details: Details | None) -> Evaluation:
    """Compute everything; without details there are no groups and no texts."""
    probabilities, labels = predictions.probabilities, predictions.labels
    shares = np.bincount(labels, minlength=len(OUTCOMES)) / len(labels)
    prior = metrics.losses(np.tile(shares, (len(labels), 1)), labels)
    scored = range(3) if predictions.outcomes == 3 else range(1)
    losses = predictions.losses
    texts = {} if details is None else details.texts
    return Evaluation(
        score=predictions.score(),
        against_prior=metrics.compare(losses, prior, predictions.keys),
        reliability=tuple(reliability(probabilities[:, outcome], labels == outcome) for outcome in scored),
        confusion=confusion(probabilities[:, : predictions.outcomes], labels),
        groupings=() if details is None else tuple(_groupings(predictions, details)),
        surprising=tuple(
            Surprise(
                predictions.ids[row],
                int(labels[row]),
                tuple(probabilities[row, : predictions.outcomes].tolist()),
                float(losses[row]),
                texts.get(row),
            )
            for row in predictions.surprising().tolist()
        ),
    )


def reliability(probabilities: Array, came: NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    """Predicted probability against observed share, in :data:`RELIABILITY_BINS` equal bins, without empty ones.

    The bins are those of scikit-learn's ``calibration_curve``. M. H. DeGroot & S. E. Fienberg, "The comparison and
    evaluation of forecasters", The Statistician 32 (1983).

    Parameters
    ----------
    probabilities, came:
        Of one outcome: what was predicted, and whether it came; shape ``[n]``.
    """
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    bin_of = np.searchsorted(edges[1:-1], probabilities)
    bins = []
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        observed = share(int(came[inside].sum()), int(inside.sum()))
        mean = float(probabilities[inside].mean())
        bins.append(ReliabilityBin(float(edges[number]), float(edges[number + 1]), mean, observed))
    return tuple(bins)


def confusion(probabilities: Array, labels: NDArray[np.int64]) -> tuple[tuple[float, ...], ...]:
    """How often each outcome was the most probable one, by the true outcome; the diagonal's share is the accuracy.

    Parameters
    ----------
    probabilities:
        Of the outcomes that are scored, shape ``[n, k]``.
    labels:
        Shape ``[n]``, values below k.
    """
    is_largest = probabilities == probabilities.max(axis=1, keepdims=True)
    predicted = is_largest / is_largest.sum(axis=1, keepdims=True)
    counts = metrics.one_hot(labels, probabilities.shape[1]).T @ predicted
    return tuple(tuple(row) for row in counts.tolist())


def _groupings(predictions: Predictions, details: Details) -> Iterable[Grouping]:
    """The groupings that have two groups to show."""
    for by, names in details.groups.items():
        sizes = Counter(name for name in names if name is not None)
        by_size = sorted(sizes, key=lambda name: -sizes[name])
        largest = [name for name in by_size[:MAX_GROUPS] if sizes[name] >= MIN_GROUP]
        if len(largest) < 2:
            continue
        group_of = np.array(names, dtype=object)
        ordered = groups.in_order({name: sizes[name] for name in largest}, by)
        scores = {name: predictions.score(np.flatnonzero(group_of == name)) for name in ordered}
        shown = sum(sizes[name] for name in largest)
        yield Grouping(by, scores, len(sizes) - len(largest), len(names) - shown)

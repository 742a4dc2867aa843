"""One battle judged with everything that is known of the judgement: both orders, what was cut, what moved it.

:class:`Comparison` is what :meth:`.predictor.Predictor.compare` returns. Its probabilities are those of ``predict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefcli import models
from prefcli.battles import TEXT_FIELDS
from prefcli.exploration import shares
from prefcli.exploration.shares import Share
from prefcli.models.features import names
from prefcli.outcomes import OUTCOMES, WINNER_COLUMNS, Probabilities
from prefcli.prediction import inference

if TYPE_CHECKING:
    import pyarrow as pa

    from prefcli.models.features.model import Contributions
    from prefcli.prediction.calibration import Calibration

MIN_RECORD, RECORD_WINDOW = 30, 0.05
"""Held-out battles whose lead differs by at most the latter say how often such a lead is right, if there are enough."""
MIN_LEAD = 0.1
"""A most probable outcome that is ahead of the next by less is too close to call."""
TOO_CLOSE = "too close to call"


@dataclass(frozen=True)
class Cut:
    """A field of which a run did not read everything."""

    run: str
    field: str
    """``prompt``, ``response_a`` or ``response_b``."""
    tokens: int
    """Of the field."""
    kept: int
    """Of them, how many were read."""


@dataclass(frozen=True)
class Contribution:
    """What one statistic of the texts did to the prediction of a run of the architecture ``features``.

    Attributes
    ----------
    name, description:
        Of the statistic, and what it is in words for users; ``prompt: ...`` is one of the prompt.
    unit:
        Of its values: ``count``, ``share`` (1 is all), ``yes/no`` (1 and 0) or ``number``.
    a, b:
        Its values for A and for B. One of the prompt, or of both answers together, has a single value, ``a``.
    log_odds:
        By how much it moves the log-odds of A over B, the mean over both orders of the answers: above 0 towards A.
        Swapping A and B negates it exactly.
    """

    name: str
    description: str
    unit: str
    a: float
    b: float | None
    log_odds: float


@dataclass(frozen=True)
class Comparison:
    """What runs say of one battle."""

    probabilities: Probabilities
    """As ``predict`` gives them for this battle."""
    orders: tuple[Probabilities, Probabilities]
    """With the answers as given; and with A and B swapped, swapped back."""
    cuts: tuple[Cut, ...] = ()
    """What was not read."""
    contributions: tuple[Contribution, ...] = ()
    """Of runs of the architecture ``features``, the largest first; their sum is the log-odds of A over B of these runs,
    times their weights, before the probabilities of both orders are averaged."""
    record: Share | None = None
    """Of the held-out battles with a :attr:`lead` like this one (:data:`RECORD_WINDOW`), the share whose most probable
    outcome was right; None if nothing was held out, or fewer than :data:`MIN_RECORD` are alike."""
    rewards: tuple[float, float] | None = None
    """Of A and of B, if all runs are reward models."""

    @property
    def agree(self) -> bool:
        """Whether the same outcome is the most probable one in both orders."""
        first, second = map(np.argmax, self.orders)
        return bool(first == second)

    @property
    def lead(self) -> float:
        """How far the most probable outcome is ahead of the next."""
        return float(_leads(np.array([self.probabilities]))[0])

    @property
    def verdict(self) -> str:
        """``A``, ``B`` or ``tie``, the most probable; or :data:`TOO_CLOSE`.

        It is too close to call if the two orders have different most probable outcomes, or if :attr:`lead` is below
        :data:`MIN_LEAD`.
        """
        if not self.agree or self.lead < MIN_LEAD:
            return TOO_CLOSE
        return OUTCOMES[int(np.argmax(self.probabilities))]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, under the names that ``prefcli compare --json`` has."""
        value: dict[str, Any] = dict(zip(WINNER_COLUMNS, self.probabilities, strict=True))
        value |= {
            "verdict": self.verdict,
            "orders": [list(order) for order in self.orders],
            "orders_agree": self.agree,
            "cuts": [asdict(cut) for cut in self.cuts],
            "contributions": [asdict(contribution) for contribution in self.contributions],
        }
        if self.record is not None:
            value["record"] = {"right": self.record.value, "ci": [self.record.low, self.record.high]}
            value["record"]["battles"] = self.record.n
        return value if self.rewards is None else value | {"rewards": list(self.rewards)}


@dataclass(frozen=True)
class Record:
    """What is known of predictions from battles that the runs held out, and that they predict as they predict others.

    Attributes
    ----------
    probabilities, labels, keys:
        The predictions of n battles ``[n, 3]``, their outcomes, and the keys of their prompts.
    """

    probabilities: NDArray[np.float64]
    labels: NDArray[np.integer]
    keys: NDArray[np.int64]

    def of(self, lead: float, key: int) -> Share | None:
        """The share of right predictions with such a lead, those of one prompt left out; see :data:`MIN_RECORD`."""
        alike = (np.abs(_leads(self.probabilities) - lead) <= RECORD_WINDOW) & (self.keys != key)
        if alike.sum() < MIN_RECORD:
            return None
        right = self.probabilities[alike].argmax(axis=1) == self.labels[alike]
        return shares.clustered_share(right, self.keys[alike])


def _leads(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the most probable outcome of each row is ahead of the next; shape ``[n]``."""
    ordered = np.sort(probabilities, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def compare_batch(
    members: Sequence[tuple[str, inference.Member, pa.RecordBatch]],
    calibrations: Sequence[Calibration],
    record: Record | None,
    *,
    swap_average: bool,
) -> list[Comparison]:
    """Judge a batch of battles.

    Parameters
    ----------
    members:
        For each run its name, the run, and the battles with its text normalisation.
    calibrations:
        Of each battle.
    record:
        Of the runs' held-out battles, if there are any.
    swap_average:
        Whether the probabilities are the mean over both orders of the answers.

    Returns
    -------
    One comparison per battle, without rewards.

    Raises
    ------
    NonFiniteError
        If a model computes something that is not a finite number.
    """
    by_run = [inference.predict_orders(member, batch) for _, member, batch in members]
    cuts = [_cuts(name, member, batch) for name, member, batch in members]
    contributions = [_contributions(member, batch) for _, member, batch in members]
    comparisons = []
    for row, calibration in enumerate(calibrations):
        own = [orders[:, row] for orders in by_run]
        as_given, swapped = (
            Probabilities(*calibration.apply([orders[[order]] for orders in own])[0].tolist()) for order in range(2)
        )
        probabilities = as_given
        if swap_average:
            probabilities = Probabilities(*calibration.apply([o.mean(axis=0, keepdims=True) for o in own])[0].tolist())
        compared = Comparison(
            probabilities,
            (as_given, swapped),
            tuple(cut for of_run in cuts for cut in of_run[row]),
            _in_order(contributions, calibration.weights, row),
        )
        key = members[0][2].column("prompt_key")[row].as_py()
        known = None if record is None else record.of(compared.lead, key)
        comparisons.append(replace(compared, record=known))
    return comparisons


def _cuts(name: str, member: inference.Member, batch: pa.RecordBatch) -> list[list[Cut]]:
    """What a run does not read of each battle. Its folds read the same."""
    model = models.unadjusted(member.models[0])
    if not hasattr(model, "kept_tokens"):  # statistics are of whole texts
        return [[] for _ in range(batch.num_rows)]
    tokens, kept = (counts.tolist() for counts in model.kept_tokens(batch))
    return [
        [Cut(name, *of_field) for of_field in zip(TEXT_FIELDS, *of_battle, strict=True) if of_field[1] > of_field[2]]
        for of_battle in zip(tokens, kept, strict=True)
    ]


def _contributions(member: inference.Member, batch: pa.RecordBatch) -> list[Contributions]:
    """Those of each of a run's models; of no model if they have none."""
    of_run = [models.unadjusted(model) for model in member.models]
    return [model.contributions(batch) for model in of_run if hasattr(model, "contributions")]


def _in_order(
    by_run: Sequence[Sequence[Contributions]], weights: Sequence[float], row: int
) -> tuple[Contribution, ...]:
    """The contributions to one battle, of all runs together, the largest first; those of 0 are left out."""
    log_odds: dict[str, float] = {}
    values: dict[str, tuple[float, float | None]] = {}
    for of_models, weight in zip(by_run, weights, strict=True):
        for each in of_models:
            amounts = (weight / len(of_models) * each.log_odds[row]).tolist()
            for name, (a, b), amount in zip(each.names, each.values[row].tolist(), amounts, strict=True):
                log_odds[name] = log_odds.get(name, 0.0) + amount
                values.setdefault(name, (a, None if np.isnan(b) else b))
    ordered = sorted((name for name in log_odds if log_odds[name]), key=lambda name: (-abs(log_odds[name]), name))
    return tuple(
        Contribution(name, names.describe(name), names.unit_of(name), *values[name], log_odds[name]) for name in ordered
    )

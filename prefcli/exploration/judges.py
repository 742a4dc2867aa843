"""An LLM judge against people: agreement, biases, and win rates of the judge corrected by the people's votes.

Both files hold battles. They are joined by id, or by content where that joins more votes: the same prompt and the same
two answers, in either order. Every interval is a bootstrap over prompts, but for the corrected win rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli import bootstrap, metrics
from prefcli.bootstrap import Array, Interval
from prefcli.errors import InputError, did_you_mean
from prefcli.exploration.measures import BattleStats, IntArray
from prefcli.outcomes import OUTCOMES, SWAPPED, TIE, A, B

DECIDED_CELLS = [y * len(OUTCOMES) + f for y in (A, B) for f in (A, B)]
UNRELIABLE = 0.01
"""Below this adjusted p-value the battles that people judged are not a random sample of the judge's."""


@dataclass(frozen=True)
class Votes:
    """The votes of one file, by people or by a judge."""

    ids: pa.ChunkedArray
    has_ids: bool
    """Whether the ids are the file's own."""
    stats: BattleStats
    models: IntArray
    """Models A and B as positions in ``names``, -1 where unknown; shape ``[n, 2]``."""
    names: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval by prompts."""

    value: float | None
    """None where nothing can be said: no battle counts."""
    ci: Interval | None
    n: int
    """Pairs of a vote and a verdict, or battles."""
    reason: str
    """Why there is no interval; else empty."""


@dataclass(frozen=True)
class Bias:
    """How often the first or the longer answer wins decided battles, in each file's own order of the answers."""

    what: str
    people: Estimate
    judge: Estimate
    difference: Estimate
    """The judge's share minus the people's."""


@dataclass(frozen=True)
class CorrectedWinRate:
    """A model's win rate, a tie as half a win, over all battles that the judge saw."""

    model: str
    battles: int
    """Of the judge."""
    people_battles: int
    """Of them, those that people judged too."""
    judge: float
    people: float
    """On their battles only."""
    corrected: float
    ci: Interval | None
    reason: str
    weight: float
    """How far the judge is relied on: 0 is the people's rate alone, 1 is their correction added to the judge's rate."""
    preference: Estimate
    """The judge's rate minus the people's on the same battles."""


@dataclass(frozen=True)
class JudgeComparison:
    """What ``eda --judge`` reports."""

    joined_by: str
    """``id`` or ``content``."""
    people_votes: int
    judge_verdicts: int
    """Labelled battles of each file."""
    joined_votes: int
    joined_verdicts: int
    """Those of them that have a counterpart in the other file."""
    swapped: int
    """Joined pairs whose answers stand in the other order in the judge's file; the verdict was swapped back."""
    other_battles: int
    """Shared ids of different battles: not joined by id."""
    edited_answers: int
    """Joined ids whose answers are not the same; which is which, the models' names say."""
    confusion: tuple[tuple[float, ...], ...]
    """People's outcome (rows: A, B, tie) by the judge's; a vote with several verdicts counts once in all."""
    agreement: Estimate
    decided_agreement: Estimate
    """Of pairs in which neither is a tie."""
    kappa: Estimate
    """Cohen's."""
    biases: tuple[Bias, ...]
    consistency: Estimate | None
    """How often the judge says the same in both orders of the answers; None if no battle was judged in both."""
    win_rates: tuple[CorrectedWinRate, ...]
    """Highest first; of models with at least one battle that people judged too."""
    self_preference: CorrectedWinRate | None
    """The judge's own model, if it was named."""
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """Pairs of a vote and a verdict on the same battle; both have an outcome."""

    by: str
    """``id`` or ``content``."""
    vote: IntArray
    """Rows of the people's file, shape ``[k]``."""
    verdict: IntArray
    """Rows of the judge's file, shape ``[k]``."""
    swapped: NDArray[np.bool_]
    """Whether the answers stand in the other order in the judge's file, shape ``[k]``."""
    other_battles: int = 0
    """Shared ids of different battles: they are not joined."""
    edited_answers: int = 0
    """Joined ids whose answers are not the same, but the prompt and the two models are."""

    @property
    def weight(self) -> Array:
        """1 / the number of verdicts on the vote's battle, so that every vote counts once; shape ``[k]``."""
        return np.asarray(1 / np.bincount(self.vote)[self.vote])


def compare(people: Votes, judge: Votes, joined: Joined, *, judge_model: str | None = None) -> JudgeComparison:
    """An LLM judge's verdicts beside people's votes.

    Agreement is the share of equal outcomes and Cohen's kappa (J. Cohen, "A coefficient of agreement for nominal
    scales", 1960). Win rates are corrected by prediction-powered inference with the power-tuning weight (A. N.
    Angelopoulos, J. C. Duchi and T. Zrnic, "PPI++: Efficient prediction-powered inference", 2023), which takes the
    battles that people judged for a random sample of the judge's.

    Parameters
    ----------
    people, judge, joined:
        Both files, and how they belong together.
    judge_model:
        The judge's own name among the models.

    Raises
    ------
    InputError
        If no model is called ``judge_model``.
    """
    if judge_model is not None and judge_model not in judge.names:
        hint = did_you_mean(judge_model, judge.names) or "--judge-model is one of the models of its battles."
        raise InputError(f"no model of the judge's battles is called {judge_model!r}", hint=hint)
    keys = people.stats.prompt_key[joined.vote]
    cells = confusion_cells(people, judge, joined)
    win_rates, cautions = _win_rates(judge, people, joined)
    if joined.other_battles:
        cautions.append(f"Ids that are in both files but of different battles, not joined: {joined.other_battles:,}.")
    if joined.edited_answers:
        cautions.append(f"Joined by id and models although the answers differ: {joined.edited_answers:,}.")
    self_preference = next((rate for rate in win_rates if rate.model == judge_model), None)
    if judge_model is not None and self_preference is None:
        cautions.append(f"People judged no battle of {judge_model}: nothing can be said about self-preference.")
    return JudgeComparison(
        joined_by=joined.by,
        people_votes=int((people.stats.label >= 0).sum()),
        judge_verdicts=int((judge.stats.label >= 0).sum()),
        joined_votes=len(np.unique(joined.vote)),
        joined_verdicts=len(np.unique(joined.verdict)),
        swapped=int(joined.swapped.sum()),
        other_battles=joined.other_battles,
        edited_answers=joined.edited_answers,
        confusion=tuple(map(tuple, cells.sum(axis=0).reshape(len(OUTCOMES), -1).tolist())),
        agreement=estimate(cells, keys, agreement),
        decided_agreement=estimate(cells, keys, _decided_agreement, np.any(cells[:, DECIDED_CELLS] > 0, axis=1)),
        kappa=estimate(cells, keys, kappa),
        biases=_biases(people, judge, joined),
        consistency=_consistency(judge),
        win_rates=win_rates,
        self_preference=self_preference,
        cautions=tuple(cautions),
    )


# Joining


def join(people: Votes, judge: Votes) -> Joined:
    """Pair votes and verdicts: by id, or by content if that joins more votes.

    Raises
    ------
    InputError
        If no battle has an outcome in both files.
    """
    joined = _join_by_content(people, judge)
    if people.has_ids and judge.has_ids:
        by_id = _join_by_id(people, judge)
        if len(by_id.vote) and len(by_id.vote) >= len(np.unique(joined.vote)):
            joined = by_id
    if not len(joined.vote):
        raise InputError(
            "no battle has an outcome in both files",
            hint="They are joined by id, or by the same prompt and answers: are these votes on the same battles?",
        )
    return joined


def _join_by_id(people: Votes, judge: Votes) -> Joined:
    """Battles of the same id and prompt, with the same two answers or, where these were edited, the same two models."""
    import pandas as pd

    rows = pd.Index(judge.ids.to_numpy()).get_indexer(people.ids.to_numpy())
    vote = np.flatnonzero(rows >= 0)
    verdict = rows[vote].astype(np.int64)
    own, other = people.stats.answer_hash[vote], judge.stats.answer_hash[verdict]
    straight, swapped = (own == other).all(axis=1), (own == other[:, ::-1]).all(axis=1)
    own_models, models = people.models[vote], _models_of(people, judge)[verdict]
    differ = own_models[:, 0] != own_models[:, 1]
    straight_models = (own_models == models).all(axis=1) & differ
    swapped_models = (own_models == models[:, ::-1]).all(axis=1) & differ
    edited = ~straight & ~swapped
    same = people.stats.prompt_key[vote] == judge.stats.prompt_key[verdict]
    same &= ~edited | straight_models | swapped_models
    is_swapped = np.where(edited, swapped_models, swapped & ~straight)
    known = same & (people.stats.label[vote] >= 0) & (judge.stats.label[verdict] >= 0)
    return Joined("id", vote[known], verdict[known], is_swapped[known], int((~same).sum()), int((known & edited).sum()))


def _models_of(people: Votes, judge: Votes) -> IntArray:
    """The judge's models as positions in the people's names; others are negative, unknown ones -3."""
    position = {name: i for i, name in enumerate(people.names)}
    in_people = np.array([*(position.get(name, -2) for name in judge.names), -3])  # -1, unknown, is the last
    return in_people[judge.models]


def _join_by_content(people: Votes, judge: Votes) -> Joined:
    (codes, reversed_), (judge_codes, judge_reversed) = contents(people.stats), contents(judge.stats)
    labelled = np.flatnonzero(judge.stats.label >= 0)
    order = labelled[np.argsort(judge_codes[labelled], kind="stable")]
    begin, end = (np.searchsorted(judge_codes[order], codes, side=side) for side in ("left", "right"))
    count = np.where(people.stats.label >= 0, end - begin, 0)
    vote = np.repeat(np.arange(len(codes)), count)
    within = np.arange(len(vote)) - np.repeat(np.cumsum(count) - count, count)
    verdict = order[begin[vote] + within]
    identical = people.stats.answer_hash[vote, 0] == people.stats.answer_hash[vote, 1]
    return Joined("content", vote, verdict, ~identical & (reversed_[vote] != judge_reversed[verdict]))


def contents(stats: BattleStats) -> tuple[IntArray, NDArray[np.bool_]]:
    """Equal numbers for the same prompt and the same two answers in either order; and whether they are reversed.

    The order of reference is that of the answers' hashes. Prompts are compared without case and white space.
    """
    a, b = stats.answer_hash.T
    code = stats.prompt_key.astype(np.uint64)
    for part in (np.minimum(a, b), np.maximum(a, b)):
        code = (code ^ (code >> np.uint64(29)) ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return code.astype(np.int64), a > b


def swap_labels(labels: IntArray, swapped: NDArray[np.bool_]) -> IntArray:
    """The labels, those of swapped answers for the other order; none may be unknown."""
    return np.where(swapped, np.array(SWAPPED)[labels], labels)


# Figures


def confusion_cells(people: Votes, judge: Votes, joined: Joined) -> Array:
    """For each pair its weight in the cell of its two outcomes: people's by judge's, shape ``[k, 9]``."""
    y = people.stats.label[joined.vote]
    f = swap_labels(judge.stats.label[joined.verdict], joined.swapped)
    cells = np.zeros((len(y), len(OUTCOMES) ** 2))
    cells[np.arange(len(y)), y * len(OUTCOMES) + f] = joined.weight
    return cells


def estimate(
    columns: Array, keys: IntArray, statistic: Callable[[Array], Array], counts: NDArray[np.bool_] | None = None
) -> Estimate:
    """A function of the columns' sums (last axis), with its bootstrap interval by prompts.

    Parameters
    ----------
    columns, keys:
        Shape ``[n, k]`` and each row's prompt.
    statistic:
        Takes sums ``[..., k]``.
    counts:
        Which rows the figure is about; None: all.
    """
    if counts is not None:
        columns, keys = columns[counts], keys[counts]
    if not len(columns):
        return Estimate(None, None, 0, "no battle counts")
    units = bootstrap.Units(columns.shape[1])
    units.add(keys, columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(units.sums[:, 1:].sum(axis=0)))
        drawn = units.resample()
        values = None if drawn is None else statistic(drawn[:, 1:])
    if not math.isfinite(value):
        return Estimate(None, None, len(columns), "no battle counts")
    if values is None:
        return Estimate(value, None, len(columns), metrics.too_few_units(len(columns), units.groups))
    values = values[np.isfinite(values)]
    if not len(values) or np.ptp(values) < bootstrap.SAME:
        return Estimate(value, None, len(columns), "no interval: all battles are alike")
    interval = bootstrap.percentile_interval(values, units.size)
    return Estimate(value, interval, len(columns), "")


def agreement(cells: Array) -> Array:
    return np.asarray(_diagonal(cells).sum(axis=-1) / cells.sum(axis=-1))


def _decided_agreement(cells: Array) -> Array:
    table = cells.reshape(*cells.shape[:-1], len(OUTCOMES), len(OUTCOMES))[..., :TIE, :TIE]
    return np.asarray((table[..., A, A] + table[..., B, B]) / table.sum(axis=(-2, -1)))


def kappa(cells: Array) -> Array:
    """Cohen's kappa of confusion tables, shape ``[..., 9]`` in rows: ``(agreement - chance) / (1 - chance)``."""
    table = cells.reshape(*cells.shape[:-1], len(OUTCOMES), len(OUTCOMES))
    total = cells.sum(axis=-1)
    chance = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / total**2
    return np.asarray((agreement(cells) - chance) / (1 - chance))


def _diagonal(cells: Array) -> Array:
    return cells[..., :: len(OUTCOMES) + 1]


def share(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _difference_of_shares(sums: Array) -> Array:
    return share(sums[..., :2]) - share(sums[..., 2:])


def _biases(people: Votes, judge: Votes, joined: Joined) -> tuple[Bias, ...]:
    """Position and length, of the joined votes and verdicts."""
    biases = []
    keys = people.stats.prompt_key[joined.vote]
    for what in ("the first answer wins", "the longer answer wins"):
        columns = []
        for votes, rows in ((judge, joined.verdict), (people, joined.vote)):
            label, characters = votes.stats.label[rows], votes.stats.characters[rows, 1:]
            counts = label != TIE
            winner = np.full(len(rows), A)
            if what.startswith("the longer"):
                counts = counts & (characters[:, 0] != characters[:, 1])
                winner = np.where(characters[:, 0] > characters[:, 1], A, B)
            columns += [joined.weight * counts * (label == winner), joined.weight * counts]
        table = np.stack(columns, axis=1)
        biases.append(
            Bias(
                what,
                people=estimate(table[:, 2:], keys, share, table[:, 3] > 0),
                judge=estimate(table[:, :2], keys, share, table[:, 1] > 0),
                difference=estimate(table, keys, _difference_of_shares),
            )
        )
    return tuple(biases)


def _consistency(judge: Votes) -> Estimate | None:
    """The share of equal verdicts among pairs of verdicts on the same two answers in opposite orders."""
    codes, reversed_ = contents(judge.stats)
    known = (judge.stats.label >= 0) & (judge.stats.answer_hash[:, 0] != judge.stats.answer_hash[:, 1])
    codes, reversed_ = codes[known], reversed_[known]
    labels = swap_labels(judge.stats.label[known], reversed_)
    _, first, item = np.unique(codes, return_index=True, return_inverse=True)
    tables = np.zeros((2, len(first), len(OUTCOMES)))
    np.add.at(tables, (reversed_.astype(int), item, labels), 1)
    pairs = tables[0].sum(axis=1) * tables[1].sum(axis=1)
    if not pairs.any():
        return None
    columns = np.stack([(tables[0] * tables[1]).sum(axis=1), pairs], axis=1)
    return estimate(columns, judge.stats.prompt_key[known][first], share, pairs > 0)


# Win rates


def power_tuned_mean(y: Array, f: Array, f_rest: Array) -> tuple[float, float]:
    """PPI++'s estimate of a mean, and its weight.

    Parameters
    ----------
    y, f:
        Truth and prediction of the sample, shape ``[n]``.
    f_rest:
        Predictions of the rest, shape ``[N]``. Without any, the weight is 0: the sample's mean.
    """
    n, rest = len(y), len(f_rest)
    variance = np.var(np.concatenate([f, f_rest]), ddof=1) if n + rest > 1 else 0.0
    if not rest or variance < bootstrap.SAME:
        return float(y.mean()), 0.0
    covariance = ((y - y.mean()) * (f - f.mean())).mean()
    weight = float(np.clip(covariance / ((1 + n / rest) * variance), 0, 1))
    return float(weight * f_rest.mean() + (y - weight * f).mean()), weight


def _win_rates(judge: Votes, people: Votes, joined: Joined) -> tuple[tuple[CorrectedWinRate, ...], list[str]]:
    """Every model's win rates, highest first, and what to know before believing them."""
    label, models = judge.stats.label, judge.models
    votes = np.bincount(joined.verdict, minlength=len(label))
    of_people = swap_labels(people.stats.label[joined.vote], joined.swapped)  # in the judge's order of the answers
    rows, scores_judge, scores_people = [], [], []
    usable = np.flatnonzero((label >= 0) & (models >= 0).all(axis=1) & (models[:, 0] != models[:, 1]))
    for side in (A, B):
        sums = np.bincount(joined.verdict, _score(of_people, side), minlength=len(label))
        rows.append(usable)
        scores_judge.append(_score(label[usable], side))
        scores_people.append(np.divide(sums, votes, out=np.full(len(label), np.nan), where=votes > 0)[usable])
    row, model = np.concatenate(rows), np.concatenate([models[usable, side] for side in (A, B)])
    f, y = np.concatenate(scores_judge), np.concatenate(scores_people)
    rates, p_values = [], []
    order = np.argsort(model, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(model[order])) + 1):
        if len(own) and np.isfinite(y[own]).any():
            name = judge.names[model[own[0]]]
            rates.append(_corrected(name, y[own], f[own], judge.stats.prompt_key[row[own]]))
            p_values.append(_p_of_another_sample(f[own], np.isfinite(y[own])))
    rates.sort(key=lambda rate: (-rate.corrected, rate.model))
    cautions = []
    if p_values and min(metrics.holm(p_values)) < UNRELIABLE:
        cautions.append(
            "The battles that people judged are not like the judge's other ones: the corrected win rates are those of "
            "a random sample, and may be wrong."
        )
    return tuple(rates), cautions


def _score(label: IntArray, side: int) -> Array:
    """1 for a win of the side, 1/2 for a tie."""
    return np.asarray((label == side) + 0.5 * (label == TIE), dtype=np.float64)


def _corrected(model: str, y: Array, f: Array, keys: IntArray) -> CorrectedWinRate:
    """A model's win rates. The interval is that of the estimate's influence values, summed by prompt."""
    known = np.isfinite(y)
    value, weight = power_tuned_mean(y[known], f[known], f[~known])
    influence = np.zeros(len(y))
    influence[known] = (y[known] - weight * f[known] - (y[known] - weight * f[known]).mean()) / known.sum()
    if weight:
        influence[~known] = weight * (f[~known] - f[~known].mean()) / (~known).sum()
    _, cluster = np.unique(keys, return_inverse=True)
    error = float(np.sqrt((np.bincount(cluster, influence) ** 2).sum()))
    prompts = len(np.unique(keys[known]))
    reason = metrics.too_few_units(int(known.sum()), prompts)
    if not reason and error < bootstrap.SAME:
        reason = "no interval: all battles are alike"
    half_width = bootstrap.expanded_quantile(bootstrap.Z95, prompts) * error
    both = np.stack([f[known], np.ones(known.sum()), y[known], np.ones(known.sum())], axis=1)
    return CorrectedWinRate(
        model=model,
        battles=len(y),
        people_battles=int(known.sum()),
        judge=float(f.mean()),
        people=float(y[known].mean()),
        corrected=value,
        ci=None if reason else (max(value - half_width, 0.0), min(value + half_width, 1.0)),
        reason=reason,
        weight=weight,
        preference=estimate(both, keys[known], _difference_of_shares),
    )


def _p_of_another_sample(f: Array, known: NDArray[np.bool_]) -> float:
    """Two-sided p-value that the judge rates the people's battles as it rates the rest (a z-test)."""
    sample, rest = f[known], f[~known]
    if len(sample) < bootstrap.MIN_UNITS or len(rest) < bootstrap.MIN_UNITS:
        return 1.0
    error = math.sqrt(sample.var(ddof=1) / len(sample) + rest.var(ddof=1) / len(rest))
    return math.erfc(abs(sample.mean() - rest.mean()) / error / math.sqrt(2)) if error else 1.0

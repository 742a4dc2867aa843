"""Several answers to one prompt -> their order, a score each, and the probability that each is the best.

A reward model reads each answer once, and its rewards are the scores. Any other model compares pairs of answers: all
of them up to a limit, above it those of a few random cycles through all answers. Davidson's model, the one of
:mod:`prefcli.exploration.davidson`, is then fitted to the pairs' probabilities as if each were one battle's shares;
its strengths are the scores. The probability to be the best is that of Plackett and Luce, ``softmax(strengths)`` of
the calibrated strengths (R. D. Luce, "Individual Choice Behavior", 1959; R. L. Plackett, "The Analysis of
Permutations", Applied Statistics 24, 1975): for two answers that of winning if there is no tie.

The order in which a question's answers stand in the file changes nothing but the decision between equal scores, which
goes to the earlier one. Before anything is computed the different answers of a question are sorted by their text, and
which of two is A is a function of their places in that order, such that each answer is A about as often as B.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefcli import metrics, models
from prefcli.battles import BATTLE_SCHEMA
from prefcli.errors import InputError, ModelError
from prefcli.exploration import davidson
from prefcli.options import RANK_METHODS
from prefcli.outcomes import SWAPPED, TIE, A, B
from prefcli.prediction import inference
from prefcli.prediction.calibration import Calibration
from prefcli.text import normalise_turns

if TYPE_CHECKING:
    from prefcli.compute.distributed import World
    from prefcli.storage.workspace import Stage

Array = NDArray[np.float64]
Turns = list[str | None]

DECIMALS = 6
"""Of scores: what is beyond them is rounding error of float32, and must not decide an order."""
CYCLES = 8
"""Of many answers each is compared with its two neighbours on that many random cycles through all of them."""
SEED = 0
"""Of these cycles."""
MAX_SHOWN = 10
"""Answers in the text of a ranking."""
QUESTIONS_TOGETHER = 64
PAIRS_TOGETHER = 2048
"""Pairs, or answers, that a model gets at a time at most."""
MAX_BYTES_TOGETHER = 32 << 20
"""Of the texts that a model gets at a time, unless a single pair has more: each pair has its own copy of the prompt."""
MIN_PAIR_PROBABILITY = 1e-6
"""Probabilities of pairs count as at least this in the fit, so that it has a maximum."""
PAIR_WEIGHT = 1e6
"""Battles that a pair counts as, so that the fit's prior (``exploration.ratings.PRIOR_PRECISION``) is next to nothing:
there is no noise of few battles to guard against."""
FIT_TOLERANCE = 1e-5
"""How far an answer's shares of wins and ties may be from those that the fit expects, in battles."""
MAX_FITS = 20
MAX_DENSE = 500
"""Answers of which Newton's method solves the system of all; of more, a sparse one is minimised step by step."""
MAX_MATRIX = 2000
"""Answers whose table of all pairs fits into memory."""
PAIRS_IN_MEMORY = 1 << 20
"""Whose probabilities are computed at a time for mean win probabilities."""
FIT_BYTES = 32 << 20
"""Of the systems that are solved together."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a model says of the different answers of one question, in their canonical order."""

    strengths: Array
    """Calibrated, in log-odds, ``[m]``."""
    log_nu: Array
    """Logarithm of Davidson's parameter for ties, ``[m]``; a pair has the mean of its two answers'. -inf: no ties."""
    unseen: tuple[int, ...] = ()
    """Outcomes that no model saw in training, see :func:`prefcli.metrics.with_unseen`; of rewards only."""
    first: NDArray[np.intp] | None = None  # [p], positions of the pairs that were compared, first < second
    second: NDArray[np.intp] | None = None  # [p]
    compared: Array | None = None  # [p, 3], calibrated probabilities of these pairs

    def between(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Array:
        """Probabilities of first, second and tie for pairs of positions of any shape; shape ``[..., 3]``."""
        half = (self.strengths[first] - self.strengths[second]) / 2
        logits = np.stack([half, -half, (self.log_nu[first] + self.log_nu[second]) / 2], axis=-1)
        probabilities = metrics.softmax(metrics.with_unseen(logits, self.unseen))
        if self.first is not None and self.second is not None and self.compared is not None and len(self.first):
            size = len(self.strengths)
            keys = self.first * size + self.second  # sorted
            swapped = first > second
            wanted = np.where(swapped, second * size + first, first * size + second)
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = self.compared[places]
            known = np.where(swapped[..., None], known[..., list(SWAPPED)], known)
            probabilities = np.where((keys[places] == wanted)[..., None], known, probabilities)
        return probabilities


@dataclass(frozen=True, eq=False, repr=False)
class Ranked:
    """The answers of one question, ranked."""

    id: str
    prompt: Turns
    responses: list[Turns]
    """As read, not normalised."""
    models: list[str | None] | None
    """Who gave the answers; None if the file does not say."""
    ranking: NDArray[np.intp]
    """Positions of the answers, best first, ``[k]``; of equal scores the earlier one first."""
    scores: Array
    """Rewards, strengths in log-odds with mean 0, or mean win probabilities, in the input's order, ``[k]``."""
    p_best: Array
    """Probability that the answer is the best one, in the input's order, ``[k]``; sums to 1."""
    comparison: Comparison
    distinct: NDArray[np.intp]
    """Position of each answer among the comparison's, ``[k]``; equal answers share one."""
    rewards: Array | None = None
    """Of reward models, what the scores are rounded from, ``[k]``."""

    def __repr__(self) -> str:
        listed = ", ".join(f"{self.scores[i]:.3f}" for i in self.ranking[:MAX_SHOWN])
        more = ", ..." if len(self.ranking) > MAX_SHOWN else ""
        return (
            f"Ranked({self.id!r}, ranking={self.ranking[:MAX_SHOWN].tolist()}{more}, scores of these [{listed}{more}], "
            f"p_best={self.p_best[self.best]:.3f})"
        )

    @property
    def best(self) -> int:
        """Position of the best answer."""
        return int(self.ranking[0])

    @functools.cached_property
    def probabilities(self) -> Array:
        """P(i preferred), P(j preferred), P(tie) of every pair, ``[k, k, 3]``; the diagonal is 0.5, 0.5, 0.

        Where a pair was not compared they are the fit's.

        Raises
        ------
        InputError
            If there are more than :data:`MAX_MATRIX` answers; :meth:`between` gives those of some pairs.
        """
        size = len(self.scores)
        if size > MAX_MATRIX:
            raise InputError(f"{size:,} answers are too many for a table of all pairs", where=f"question {self.id}")
        rows, columns = np.indices((size, size))
        table = self.between(rows, columns)
        table[np.arange(size), np.arange(size)] = (0.5, 0.5, 0.0)
        return table

    def between(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Array:
        """P(first preferred), P(second preferred), P(tie) for arrays of positions; shape ``[..., 3]``."""
        return self.comparison.between(self.distinct[first], self.distinct[second])

    def to_json(self) -> dict[str, object]:
        """The line of a file of rankings."""
        return {
            "id": self.id,
            "ranking": self.ranking.tolist(),
            "scores": self.scores.tolist(),
            "p_best": self.p_best.tolist(),
        }


@dataclass(frozen=True)
class RankRule:
    """How answers are ranked; see :class:`prefcli.options.RankOptions`."""

    method: str = "fit"
    all_pairs: int = 32
    swap_average: bool = False
    length_penalty: float = 0.0
    """What a score loses for each doubling of the answer's characters, in log-odds."""

    def __post_init__(self) -> None:
        if self.method not in RANK_METHODS:
            raise InputError(f"method is {self.method!r}, not one of {', '.join(RANK_METHODS)}")
        if not 2 <= self.all_pairs <= MAX_DENSE:
            raise InputError(f"all_pairs is {self.all_pairs}, expected 2 to {MAX_DENSE}")


def pairs_to_compare(answers: int, all_pairs: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """The pairs of so many answers that a model compares, sorted, and in which of them the second one is A.

    Up to ``all_pairs`` answers these are all pairs; of more, those of :data:`CYCLES` random cycles through all answers,
    which connect all of them. Each answer is A about as often as B.
    """
    if answers <= all_pairs:
        first, second = np.triu_indices(answers, 1)
        return first, second, (first + second) % 2 == 0
    random = np.random.default_rng(SEED)
    cycles = [random.permutation(answers) for _ in range(CYCLES)]
    a = np.concatenate(cycles)
    b = np.concatenate([np.roll(cycle, -1) for cycle in cycles])
    keys, places = np.unique(np.minimum(a, b) * answers + np.maximum(a, b), return_index=True)
    first, second = np.divmod(keys, answers)
    return first, second, a[places] > b[places]


def fit(answers: int, first: NDArray[np.intp], second: NDArray[np.intp], probabilities: Array) -> tuple[Array, Array]:
    """Davidson's model of pairs' probabilities: the strengths whose expected shares of outcomes are the given ones.

    Parameters
    ----------
    answers:
        How many there are, ``m``.
    first, second:
        The pairs' positions, ``[p]``; they connect all answers.
    probabilities:
        Of first, second and tie, of any number of questions, ``[q, p, 3]``.

    Returns
    -------
    Strengths in log-odds ``[q, m]`` with mean 0, and the logarithm of Davidson's parameter for ties ``[q]``.

    Raises
    ------
    ModelError
        If the fit does not converge.
    """
    if not len(first):
        return np.zeros((len(probabilities), answers)), np.full(len(probabilities), -np.inf)
    ties = bool(probabilities[..., TIE].any())
    shares = np.maximum(probabilities, MIN_PAIR_PROBABILITY)
    if not ties:
        shares[..., TIE] = 0
    shares /= shares.sum(axis=-1, keepdims=True)
    start = _least_squares(answers, first, second, shares, ties)
    solve = _newton if answers <= MAX_DENSE else _minimise
    for _ in range(MAX_FITS):
        start = solve(answers, first, second, shares, start)
        if _misfit(answers, first, second, shares, start).max(initial=0) < FIT_TOLERANCE:
            strengths, log_nu = start
            return strengths - strengths.mean(axis=1, keepdims=True), log_nu
    raise ModelError(
        "the strengths of the answers do not converge",
        hint="Are its probabilities all 0 and 1? Rank fewer answers at once.",
    )


def _signed_sums(answers: int, first: NDArray[np.intp], second: NDArray[np.intp], values: Array) -> Array:
    """Each answer's sum of a value per pair, negative where it is the second; ``[q, p]`` to ``[q, m]``."""
    places = np.arange(len(values))[:, None] * answers
    size = len(values) * answers
    sums = np.bincount((places + first).ravel(), values.ravel(), size)
    return np.asarray(sums - np.bincount((places + second).ravel(), values.ravel(), size)).reshape(-1, answers)


def _least_squares(
    answers: int, first: NDArray[np.intp], second: NDArray[np.intp], shares: Array, ties: bool
) -> tuple[Array, Array]:
    """Where the fit begins: of all pairs, the strengths whose differences are nearest to the log-odds."""
    log_odds = np.log(shares[..., A] / shares[..., B])
    degree = np.bincount(first, minlength=answers) + np.bincount(second, minlength=answers)
    strengths = _signed_sums(answers, first, second, log_odds) / (degree + 1)
    if not ties:
        return strengths, np.full(len(shares), -np.inf)
    return strengths, (np.log(shares[..., TIE]) - np.log(shares[..., [A, B]]).mean(axis=-1)).mean(axis=1)


def _misfit(
    answers: int, first: NDArray[np.intp], second: NDArray[np.intp], shares: Array, fitted: tuple[Array, Array]
) -> Array:
    """How far each answer's lead over the others, and the ties, are from what the fit expects; ``[q]``."""
    strengths, log_nu = fitted
    expected = davidson.probabilities(strengths[:, first] - strengths[:, second], np.exp(log_nu)[:, None])
    lead = (shares[..., A] - shares[..., B] - expected[..., A] + expected[..., B]) / 2
    of_answers = np.abs(_signed_sums(answers, first, second, lead)).max(axis=1)
    of_ties = np.abs((shares[..., TIE] - expected[..., TIE]).sum(axis=1)) / answers
    return np.maximum(of_answers, of_ties)


def _newton(
    answers: int, first: NDArray[np.intp], second: NDArray[np.intp], shares: Array, start: tuple[Array, Array]
) -> tuple[Array, Array]:
    pairwise = davidson.PairwiseCounts(tuple(map(str, range(answers))), first, second, PAIR_WEIGHT * shares.sum(axis=0))
    together = max(1, FIT_BYTES // (8 * 4 * (answers + 1) ** 2))
    strengths, log_nus = [], []
    for begin in range(0, len(shares), together):
        part = slice(begin, begin + together)
        begin_at = start[0][part], start[1][part]
        fitted = davidson.fit(pairwise, PAIR_WEIGHT * shares[part], start=begin_at, tolerance=1e-6)
        strengths.append(fitted.strengths)
        log_nus.append(fitted.log_nu)
    return np.concatenate(strengths), np.concatenate(log_nus)


def _minimise(
    answers: int, first: NDArray[np.intp], second: NDArray[np.intp], shares: Array, start: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The same maximum for many answers, of which few pairs are compared: in memory that grows with the pairs."""
    from scipy.optimize import minimize

    ties = bool(np.isfinite(start[1]).all())

    def loss_and_gradient(x: Array, wanted: Array) -> tuple[float, Array]:
        half = (x[first] - x[second]) / 2
        logits = np.stack([half, -half, np.full_like(half, x[-1] if ties else -np.inf)], axis=-1)
        log_sum = np.logaddexp.reduce(logits, axis=-1)
        expected = np.exp(logits - log_sum[:, None])
        tie_part = x[-1] * wanted[:, TIE].sum() if ties else 0.0
        loss = log_sum.sum() - (half * (wanted[:, A] - wanted[:, B])).sum() - tie_part
        lead = (expected[:, A] - expected[:, B] - wanted[:, A] + wanted[:, B]) / 2
        gradient = np.append(_signed_sums(answers, first, second, lead[None])[0], 0.0)
        gradient[-1] = (expected[:, TIE] - wanted[:, TIE]).sum() if ties else 0.0
        return float(loss), gradient

    fitted = [
        minimize(
            loss_and_gradient, np.append(s, nu if ties else 0.0), args=(wanted,), jac=True, method="L-BFGS-B",
            options={"ftol": 0.0, "gtol": FIT_TOLERANCE / 10, "maxiter": 5000, "maxfun": 10_000, "maxcor": 20},
        ).x
        for s, nu, wanted in zip(*start, shares, strict=True)
    ]  # fmt: skip
    x = np.array(fitted)
    return x[:, :-1], x[:, -1] if ties else np.full(len(x), -np.inf)


@dataclass(frozen=True, eq=False)
class _Questions:
    """A batch of questions whose different answers are numbered one after the other, each question's sorted."""

    batch: pa.RecordBatch
    answers: pa.Array
    """The different answers, ``list<string>``, ``[d]``."""
    question: NDArray[np.intp]
    """Row of each of them, ``[d]``."""
    offsets: NDArray[np.intp]
    """Where each question's begin, and the end, ``[n + 1]``."""
    distinct: list[NDArray[np.intp]]
    """For each question the position of each of its answers among its different ones."""

    @staticmethod
    def of(batch: pa.RecordBatch) -> _Questions:
        """The questions of a batch of candidates (:data:`prefcli.candidates.CANDIDATE_SCHEMA`)."""
        chosen: list[int] = []
        counts, distinct = [], []
        before = 0
        for answers in batch.column("responses").to_pylist():
            keys = [tuple((turn is not None, turn or "") for turn in turns) for turns in answers]
            first = {key: place for place, key in reversed(list(enumerate(keys)))}
            ordered = sorted(first)
            position = {key: number for number, key in enumerate(ordered)}
            distinct.append(np.array([position[key] for key in keys], dtype=np.intp))
            chosen += [before + first[key] for key in ordered]
            counts.append(len(ordered))
            before += len(keys)
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.intp)])
        answers = batch.column("responses").flatten().take(pa.array(chosen, pa.int64()))
        return _Questions(batch, answers, np.repeat(np.arange(len(counts)), counts), offsets, distinct)

    @property
    def sizes(self) -> NDArray[np.intp]:
        """How many different answers each question has, ``[n]``."""
        return np.diff(self.offsets)

    def normalised(self, text: str) -> tuple[pa.Array, pa.Array]:
        """Prompts ``[n]`` and different answers ``[d]`` with a text normalisation."""
        return normalise_turns(self.batch.column("prompt"), text), normalise_turns(self.answers, text)

    def length_penalties(self, per_doubling: float) -> Array:
        """What each different answer's score loses by its length, ``[d]``, see :func:`length_penalty`."""
        lengths = [sum(len(turn or "") for turn in turns) for turns in self.answers.to_pylist()]
        return length_penalty(np.array(lengths, dtype=np.float64), per_doubling)


def length_penalty(characters: Array, per_doubling: float) -> Array:
    """What a score loses by an answer's length: so many log-odds for each doubling, ``X * log2(1 + characters)``."""
    return per_doubling * np.log2(1 + characters)


def reads_answers_once(members: Sequence[inference.Member]) -> bool:
    """Whether all runs are reward models."""
    return all(models.has_rewards(model) for member in members for model in member.models)


def rank_batch(
    members: Sequence[inference.Member],
    batch: pa.RecordBatch,
    rule: RankRule,
    calibration_of: Callable[[int], Calibration],
    done: Callable[[int], None] | None = None,
) -> list[Ranked]:
    """Rank the answers of each question of a batch.

    Parameters
    ----------
    members:
        The runs. If all are reward models, the answers' scores are their rewards: of one run as they are, of several
        the sum of each run's, times its weight. (That is the reward of the blend: log probabilities of the blend are
        the same sum of the runs', and the log-odds of two answers the difference of their rewards.)
    batch:
        Questions as :data:`prefcli.candidates.CANDIDATE_SCHEMA` has them.
    rule:
        How they are ranked.
    calibration_of:
        Gives the calibration for the prompt key of a question.
    done:
        Called with the number of answers that each step finished; of pairwise models, of pairs.

    Raises
    ------
    NonFiniteError
        If a model computes something that is not a finite number.
    """
    questions = _Questions.of(batch)
    calibrations = [calibration_of(key) for key in batch.column("prompt_key").to_pylist()]
    compared: Iterator[tuple[Comparison, Array | None]]
    if reads_answers_once(members):
        compared = _by_reward(members, questions, calibrations, rule, done)
    else:
        compared = _by_pairs(members, questions, calibrations, rule, done)
    rows = zip(batch.select(["id", "prompt", "responses", "models"]).to_pylist(), questions.distinct, strict=True)
    return [
        _ranked(row, distinct, comparison, rewards, rule.method)
        for (row, distinct), (comparison, rewards) in zip(rows, compared, strict=True)
    ]


def pairs_compared(sizes: NDArray[np.integer], all_pairs: int) -> int:
    """How many pairs of answers pairwise models compare for questions with so many different answers each."""
    values, counts = np.unique(sizes, return_counts=True)
    return sum(
        int(count) * len(pairs_to_compare(int(size), all_pairs)[0]) for size, count in zip(values, counts, strict=True)
    )


def _ranked(
    row: dict[str, object], distinct: NDArray[np.intp], comparison: Comparison, rewards: Array | None, method: str
) -> Ranked:
    # In the canonical order, so that not even the last bits depend on that of the file.
    copies = np.bincount(distinct, minlength=len(comparison.strengths))
    weights = np.exp(comparison.strengths - comparison.strengths.max())
    p_best = (weights / (weights @ copies))[distinct]
    if method == "mean-win":
        scores = _mean_wins(comparison, copies)
    elif rewards is None:
        scores = comparison.strengths - comparison.strengths @ copies / len(distinct)
    else:
        scores = rewards
    scores = scores[distinct]
    scores = np.round(scores, DECIMALS) + 0.0  # no -0.0
    order = np.lexsort((np.arange(len(scores)), -scores))
    return Ranked(
        **row,  # type: ignore[arg-type]
        ranking=order,
        scores=scores,
        p_best=p_best,
        comparison=comparison,
        distinct=distinct,
        rewards=None if rewards is None else rewards[distinct],
    )


def _mean_wins(comparison: Comparison, copies: NDArray[np.intp]) -> Array:
    """Mean probabilities to win against the others, ties half, ``[m]``; ``copies`` says how many answers are equal."""
    size, total = len(copies), int(copies.sum())
    if total == 1:
        return np.full(1, 0.5)
    everyone = np.arange(size)
    wins = np.empty(size)
    rows = max(1, PAIRS_IN_MEMORY // size)
    for begin in range(0, size, rows):
        own = everyone[begin : begin + rows]
        p = comparison.between(*np.broadcast_arrays(own[:, None], everyone))
        won = p[..., A] + p[..., TIE] / 2
        won[np.arange(len(own)), own] = 0.5
        wins[own] = (won @ copies - 0.5) / (total - 1)
    return wins


def _by_reward(
    members: Sequence[inference.Member],
    questions: _Questions,
    calibrations: Sequence[Calibration],
    rule: RankRule,
    done: Callable[[int], None] | None,
) -> Iterator[tuple[Comparison, Array | None]]:
    """For each question its comparison, and the rewards of its different answers."""
    by_run = []
    for member in members:
        prompts, answers = questions.normalised(member.text)
        scores_of_parts = [np.empty((2, 0))]
        for part in _parts(_bytes_of(prompts)[questions.question] + _bytes_of(answers)):
            columns = {
                "prompt": prompts.take(pa.array(questions.question[part])),
                "response": answers[part.start : part.stop],
            }
            scores_of_parts.append(inference.answer_scores(member, pa.record_batch(columns), done=done))
        by_run.append(np.concatenate(scores_of_parts, axis=1))
    scores = np.stack(by_run, axis=1)
    penalties = questions.length_penalties(rule.length_penalty)
    for row, calibration in enumerate(calibrations):
        weights = np.asarray(calibration.weights)
        part = slice(questions.offsets[row], questions.offsets[row + 1])
        rewards, log_nus = scores[..., part]
        reported = (rewards[0] if len(members) == 1 else weights @ rewards) - penalties[part]
        strengths = reported * weights[0] if len(members) == 1 else reported
        unseen = tuple(outcome for outcome in calibration.unseen if outcome == TIE)
        log_nu = np.full_like(reported, -np.inf) if unseen else weights @ log_nus + calibration.tie_shift
        yield Comparison(strengths - strengths.mean(), log_nu, unseen), reported


def _by_pairs(
    members: Sequence[inference.Member],
    questions: _Questions,
    calibrations: Sequence[Calibration],
    rule: RankRule,
    done: Callable[[int], None] | None,
) -> Iterator[tuple[Comparison, Array | None]]:
    """For each question its comparison, from the probabilities of pairs of its different answers."""
    sizes = questions.sizes
    schemes = {int(size): pairs_to_compare(int(size), rule.all_pairs) for size in np.unique(sizes)}
    counts = [len(schemes[int(size)][0]) for size in sizes]
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.intp)])
    first, second, swapped = (
        np.concatenate([schemes[int(size)][part] for size in sizes]) if len(sizes) else np.empty(0, np.intp)
        for part in range(3)
    )
    row = np.repeat(np.arange(len(sizes)), counts)
    swapped = swapped.astype(bool) ^ (np.asarray(questions.batch.column("prompt_key")).astype(np.int64)[row] % 2 == 1)
    begin = questions.offsets[:-1][row]
    a = begin + np.where(swapped, second, first)
    b = begin + np.where(swapped, first, second)
    predictions = [_predict_pairs(member, questions, row, a, b, rule, done) for member in members]
    calibrated = _calibrate(predictions, [calibrations[i] for i in row.tolist()])
    calibrated = np.where(swapped[:, None], calibrated[:, list(SWAPPED)], calibrated)
    if rule.length_penalty:
        penalties = questions.length_penalties(rule.length_penalty)
        calibrated = _shift_log_odds(calibrated, penalties[begin + second] - penalties[begin + first])
    fitted: list[Comparison | None] = [None] * len(sizes)
    for size, (own_first, own_second, _) in schemes.items():
        rows = np.flatnonzero(sizes == size)
        shares = np.stack([calibrated[ends[i] : ends[i + 1]] for i in rows])
        strengths, log_nu = fit(size, own_first, own_second, shares)
        for number, i in enumerate(rows.tolist()):
            nus = np.full(size, log_nu[number])
            fitted[i] = Comparison(strengths[number], nus, (), own_first, own_second, shares[number])
    for comparison in fitted:
        assert comparison is not None
        yield comparison, None


def _shift_log_odds(probabilities: Array, shift: Array) -> Array:
    """Probabilities ``[p, 3]`` whose log-odds of first against second are larger by a shift ``[p]``.

    Davidson's parameter, ``P(tie) / sqrt(P(first) P(second))``, stays as it is.
    """
    shares = np.maximum(probabilities, np.finfo(np.float64).tiny)
    logits = np.log(shares) + np.stack([shift / 2, -shift / 2, np.zeros_like(shift)], axis=-1)
    shifted = metrics.softmax(logits)
    shifted[probabilities[:, TIE] == 0, TIE] = 0
    return np.asarray(shifted)


def _predict_pairs(
    member: inference.Member,
    questions: _Questions,
    row: NDArray[np.intp],
    a: NDArray[np.intp],
    b: NDArray[np.intp],
    rule: RankRule,
    done: Callable[[int], None] | None,
) -> Array:
    """One run's probabilities of pairs, ``[p, 3]``: answers ``a`` against ``b`` to the prompts of questions ``row``."""
    prompts, answers = questions.normalised(member.text)
    ids, keys = (questions.batch.column(name) for name in ("id", "prompt_key"))
    predictions = [np.empty((0, 3))]
    of_answers = _bytes_of(answers)
    for part in _parts(_bytes_of(prompts)[row] + of_answers[a] + of_answers[b]):
        rows = pa.array(row[part])
        columns = {
            "id": ids.take(rows),
            "prompt": prompts.take(rows),
            "response_a": answers.take(pa.array(a[part])),
            "response_b": answers.take(pa.array(b[part])),
            "prompt_key": keys.take(rows),
        }
        arrays = [columns.get(field.name, pa.nulls(len(rows), field.type)) for field in BATTLE_SCHEMA]
        battles = pa.RecordBatch.from_arrays(arrays, schema=BATTLE_SCHEMA)
        predictions.append(inference.predict_batch(member, battles, swap_average=rule.swap_average, done=done))
    return np.concatenate(predictions)


def _bytes_of(texts: pa.Array) -> NDArray[np.int64]:
    """How many bytes each of ``n`` texts, ``list<string>``, has in all its turns."""
    of_turns = np.asarray(pc.binary_length(texts.flatten()).fill_null(0), dtype=np.int64)
    up_to = np.concatenate([[0], np.cumsum(of_turns)])
    turns = np.asarray(pc.list_value_length(texts).fill_null(0), dtype=np.int64)
    ends = np.cumsum(turns)
    return np.asarray(up_to[ends] - up_to[ends - turns])


def _parts(sizes: NDArray[np.int64]) -> Iterator[slice]:
    """Rows of so many bytes in parts, of :data:`PAIRS_TOGETHER` and :data:`MAX_BYTES_TOGETHER` at most."""
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        room = ends[begin] - sizes[begin] + MAX_BYTES_TOGETHER
        stop = int(np.searchsorted(ends, room, side="right"))
        yield (part := slice(begin, min(max(stop, begin + 1), begin + PAIRS_TOGETHER, len(sizes))))
        begin = part.stop


def _calibrate(predictions: Sequence[Array], calibrations: Sequence[Calibration]) -> Array:
    """Each pair's probabilities ``[p, 3]``, as the calibration of its question makes them of the runs'."""
    calibrated = np.empty_like(predictions[0])
    begin = 0
    for _, group in itertools.groupby(calibrations, key=id):
        own = list(group)
        part = slice(begin, begin + len(own))
        calibrated[part] = own[0].apply([prediction[part] for prediction in predictions])
        begin += len(own)
    return calibrated


def stream(
    members: Sequence[inference.Member],
    stage: Stage,
    total: int,
    *,
    world: World,
    rule: RankRule,
    calibration: Calibration,
    done: Callable[[int], None] | None = None,
) -> Iterator[Ranked]:
    """Rank the first ``total`` questions of a stage, in order, on every rank.

    Of every ``world.size`` groups of :data:`QUESTIONS_TOGETHER` each rank ranks one, so that the numbers do not depend
    on how many ranks there are.
    """
    groups = _groups(stage, total)
    while waiting := list(itertools.islice(groups, world.size)):
        own = waiting[world.rank] if world.rank < len(waiting) else None
        ranked = [] if own is None else rank_batch(members, own, rule, lambda key: calibration, done)
        for of_rank in world.gather(ranked):
            yield from of_rank


def _groups(stage: Stage, total: int) -> Iterator[pa.RecordBatch]:
    """The first ``total`` questions of a stage, a few at a time."""
    left = total
    for batch in stage.batches():
        for begin in range(0, min(batch.num_rows, left), QUESTIONS_TOGETHER):
            yield batch.slice(begin, min(QUESTIONS_TOGETHER, left - begin))
        left -= batch.num_rows
        if left <= 0:
            return

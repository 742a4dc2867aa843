"""Author scores: how strong the models are that write answers like these.

Where training battles name the models that answered, votes on all of a model's answers say how strong it is (its
Davidson rating), far more surely than the few votes on a single answer. Which statistics and words strong models write
is learnt from these ratings, and the scores of new answers, whose authors need not be known, are columns for the
booster.

Nothing leaks: what scores a training battle was fitted, ratings included, on battles of other prompts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.errors import plural
from prefcli.exploration import davidson
from prefcli.models.features.booster import (
    SMALL_DATASET,
    FitProgress,
    Folds,
    Table,
    chunks,
    dataset,
    import_lightgbm,
)
from prefcli.models.features.statistics import BattleStatistics, Features
from prefcli.models.features.stored import Measured
from prefcli.models.features.words import word_scores
from prefcli.outcomes import SWAPPED, A, B

if TYPE_CHECKING:
    from lightgbm import Booster

Array = NDArray[np.float64]

MIN_MODELS = 5
"""With fewer rated models there are no author scores."""
MIN_MODEL_BATTLES = 30
"""A model with fewer battles is not rated."""
MAX_MODELS = 1000
"""Models that are rated, those with most battles; a bound for time and memory."""
ANSWER_SPREAD = 1.0
"""Standard deviation of the strengths of a model's answers about its own, in those of the models."""
MIN_SPREAD = 1e-9
"""Of the models' strengths, which are divided by it."""
ROUNDS = 300
HALVES = 2
MIN_SHARE = 0.1
"""Of :data:`.booster.SMALL_DATASET`, battles that each half of the prompts needs."""


def author_names(batch: pa.RecordBatch) -> NDArray[np.object_]:
    """Names of the models that wrote A and B, empty where unknown; shape ``[n, 2]``."""
    columns = []
    for name in ("model_a", "model_b"):
        encoded = batch.column(name).fill_null("").dictionary_encode()
        # Objects, because names are of any length; interned, because every batch has the same names.
        known = np.array([*map(sys.intern, encoded.dictionary.to_pylist()), ""], dtype=object)
        columns.append(known[encoded.indices.to_numpy(zero_copy_only=False)])
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Ratings:
    """Davidson's model of some battles, see :mod:`prefcli.exploration.davidson`."""

    strengths: Array
    """Of the rated models in log-odds from their mean, NaN for one without battles, and at the end NaN for others."""
    log_nu: float
    spread: float
    """Standard deviation of the strengths."""


@dataclass(frozen=True)
class Authors:
    """Who wrote the answers of n battles, as far as it is known and can be rated."""

    codes: NDArray[np.intp]
    """The models of A and B by number, -1 where not rated; shape ``[n, 2]``."""
    targets: NDArray[np.float32]
    """Of the battles, shape ``[n, 3]``."""
    models: int
    """How many are rated."""
    battles: int
    """How many battles are between two of them."""

    @staticmethod
    def of(names: NDArray[np.object_], targets: NDArray[np.float32]) -> Authors:
        """From the names of the models ``[n, 2]``, see :func:`author_names`.

        Rated are models of many battles that battles connect: ratings of models that never met, not even through
        others, do not compare.
        """
        known, codes = np.unique(names, return_inverse=True)
        codes = codes.reshape(names.shape)
        is_battle = (codes[:, 0] != codes[:, 1]) & (known[codes] != "").all(axis=1)
        counts = np.bincount(codes[is_battle].ravel(), minlength=len(known))
        most = np.argsort(-counts, kind="stable")[:MAX_MODELS]
        busy = np.zeros(len(known), dtype=bool)
        busy[most[counts[most] >= MIN_MODEL_BATTLES]] = True
        numbers = np.where(busy, np.cumsum(busy) - 1, -1)[codes]
        pairs = _pairs(numbers, targets, int(busy.sum()))
        rated = _connected(pairs)
        numbers = np.append(np.where(rated, np.cumsum(rated) - 1, -1), -1)[numbers]
        between = rated[pairs.first] & rated[pairs.second]
        return Authors(numbers, targets, int(rated.sum()), round(float(pairs.battles[between].sum())))

    def take(self, rows: NDArray[np.integer]) -> Authors:
        """Those of some of the battles."""
        return replace(self, codes=self.codes[rows], targets=self.targets[rows])

    def __str__(self) -> str:
        if self.suffice:
            return f"author scores from the ratings of {self.models:,} models"
        if not self.battles:
            return "no author scores: the battles name no models that can be rated"
        if self.models < MIN_MODELS:
            return f"no author scores: {plural(self.models, 'rated model')}, at least {MIN_MODELS} are needed"
        return f"no author scores: {self.battles:,} battles between rated models, at least {SMALL_DATASET:,} are needed"

    @property
    def suffice(self) -> bool:
        """Whether there are enough of them for author scores."""
        return self.models >= MIN_MODELS and self.battles >= SMALL_DATASET

    def cover(self, folds: Folds) -> bool:
        """Whether both halves of the prompts have enough rated battles, see :func:`halves`."""
        is_rated = np.asarray((self.codes >= 0).all(axis=1))
        return all(is_rated[half].sum() >= MIN_SHARE * SMALL_DATASET for half in halves(folds))

    def ratings(self, rows: NDArray[np.integer]) -> Ratings:
        """Of the models, by the votes on some of the battles alone, which may not connect all of them."""
        pairs = _pairs(self.codes[rows], self.targets[rows], self.models)
        fitted = davidson.fit(pairs)
        strengths = np.where(_connected(pairs), fitted.strengths, np.nan)
        spread = max(float(np.nanstd(strengths)), MIN_SPREAD)
        return Ratings(np.append(strengths - np.nanmean(strengths), np.nan), float(fitted.log_nu), spread)

    def margins(self, rows: NDArray[np.integer]) -> Array:
        """Rating of A's model minus that of B's by these battles alone, 0 where one is not rated; shape ``[n]``."""
        ratings = self.ratings(rows)
        a, b = ratings.strengths[self.codes[rows]].T
        return np.nan_to_num(a - b) / ratings.spread

    def answer_ratings(self, rows: NDArray[np.integer], answers: NDArray[np.integer]) -> Array:
        """Ratings of answers by these battles alone: those of their models, moved by the answers' own votes.

        An answer's strength lies about its model's with a normal prior, see :data:`ANSWER_SPREAD`; this is one step of
        Newton's method towards its most probable value. NaN where the model is not rated.

        Parameters
        ----------
        rows:
            Of n battles.
        answers:
            Numbers of A and B among the different answers, shape ``[n, 2]``.
        """
        codes, targets = self.codes[rows], self.targets[rows]
        ratings = self.ratings(rows)
        strengths = ratings.strengths[codes]
        a, b, tie = davidson.probabilities(strengths[:, 0] - strengths[:, 1], np.exp(ratings.log_nu)).T
        pull = np.nan_to_num((targets[:, A] - targets[:, B]) / 2 - (a - b) / 2)
        information = np.nan_to_num((1 - tie) / 4 - (a - b) ** 2 / 4)
        pulls = np.bincount(answers.ravel(), np.stack([pull, -pull], axis=1).ravel())
        prior = (ANSWER_SPREAD * ratings.spread) ** -2
        own = pulls / (prior + np.bincount(answers.ravel(), np.repeat(information, 2)))
        of_model = np.empty(len(own))
        of_model[answers.ravel()] = strengths.ravel()
        return np.asarray((of_model + own) / ratings.spread)


def _pairs(codes: NDArray[np.intp], targets: NDArray[np.float32], models: int) -> davidson.PairwiseCounts:
    """Outcomes of each pair of models, by the battles whose models both have a number."""
    is_battle = (codes >= 0).all(axis=1) & (codes[:, 0] != codes[:, 1])
    codes, outcomes = codes[is_battle], targets[is_battle].astype(np.float64)
    outcomes = np.where((codes[:, 0] > codes[:, 1])[:, None], outcomes[:, SWAPPED], outcomes)
    pairs, pair = np.unique(np.sort(codes, axis=1), axis=0, return_inverse=True)
    counts = np.zeros((len(pairs), outcomes.shape[1]))
    np.add.at(counts, pair.ravel(), outcomes)
    first, second = pairs.T
    return davidson.PairwiseCounts(tuple(map(str, range(models))), first, second, counts)


def _connected(pairs: davidson.PairwiseCounts) -> NDArray[np.bool_]:
    """The models of the largest group that battles connect: ratings of models that never met do not compare."""
    battles = pairs.per_model(pairs.battles, pairs.battles)
    if not len(pairs.battles):
        return np.zeros(len(pairs.models), dtype=bool)
    return np.asarray((davidson.connectivity(pairs, battles)[0] == 0) & (battles > 0))


def halves(folds: Folds) -> tuple[NDArray[np.intp], ...]:
    """The battles in two halves by prompt."""
    outside = [rows for _, rows in folds]
    return tuple(np.concatenate(outside[half::HALVES]) for half in range(HALVES))


@dataclass(frozen=True)
class AuthorModel:
    """What gives author scores."""

    boosters: tuple[Booster, ...]
    """Regressions of an answer's rating on the statistics of prompt and answer."""
    word_weights: NDArray[np.float32]
    """Of a regression of the difference of both models' ratings; shape ``[BUCKETS]``."""

    def scores(self, battles: Features, threads: int) -> Array:
        """Scores of A, of B, and of the words that A has more of; shape ``[n, 3]``."""
        of_words = word_scores(battles.words, self.word_weights)
        return np.column_stack([answer_scores(self.boosters, battles, threads), of_words])


@dataclass(frozen=True)
class _AnswerRows:
    """The statistics of prompt and answer, of some answers."""

    battles: Measured
    of_battle: NDArray[np.integer]
    side: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, positions: NDArray[np.integer]) -> Table:
        found = self.battles.statistics(self.of_battle[positions])
        answers = found.answers[np.arange(len(positions)), self.side[positions]]
        return np.concatenate([found.prompt, answers], axis=1)


def train_boosters(
    battles: Measured, authors: Authors, groups: NDArray[np.int64], folds: Folds, *, seed: int, threads: int,
    progress: FitProgress,
) -> tuple[tuple[Booster, ...], Array]:  # fmt: skip
    """Boosters that predict the rating of an answer, and such scores of the training battles ``[n, 2]``.

    Each booster has seen one half of the prompts and scores the battles of the other; a new battle's score is the mean.
    ``groups`` are equal for equal prompts; a model's answers to one prompt count as one.
    """
    lightgbm = import_lightgbm()
    scores, boosters = np.zeros((len(battles), 2)), []
    parameters = _parameters(seed, threads)
    both = halves(folds)
    for half, (inside, others) in enumerate(zip(both, both[::-1], strict=True)):
        progress.authors(half)
        written = np.stack([np.repeat(groups[inside], 2), authors.codes[inside].ravel()])
        _, first, answers, times = np.unique(
            written, axis=1, return_index=True, return_inverse=True, return_counts=True
        )
        ratings = authors.answer_ratings(inside, answers.reshape(-1, 2))
        rated = ~np.isnan(ratings)
        rows = _AnswerRows(battles, inside[first[rated] // 2], first[rated] % 2)
        data = dataset(rows, ratings[rated], parameters, weight=np.sqrt(times[rated]))
        boosters.append(lightgbm.train(parameters, data, ROUNDS))
        for chunk in chunks(len(others)):
            part = others[chunk]
            scores[part] = answer_scores(boosters[-1:], battles.statistics(part), threads)
    progress.authors(HALVES)
    return tuple(boosters), scores


def answer_scores(boosters: tuple[Booster, ...] | list[Booster], battles: BattleStatistics, threads: int) -> Array:
    """The mean of the boosters' scores of A and of B; shape ``[n, 2]``."""
    sides = [np.concatenate([battles.prompt, battles.answers[:, side]], axis=1) for side in (0, 1)]
    by_booster = [[np.asarray(booster.predict(side, num_threads=threads)) for side in sides] for booster in boosters]
    return np.asarray(np.mean(by_booster, axis=0).T)


def _parameters(seed: int, threads: int) -> dict[str, Any]:
    return {
        "objective": "regression", "num_leaves": 31, "learning_rate": 0.06, "min_data_in_leaf": 20,
        "feature_fraction": 0.3, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 5.0, "max_bin": 63,
        "deterministic": True, "force_col_wise": True, "seed": seed, "num_threads": threads, "verbosity": -1,
    }  # fmt: skip

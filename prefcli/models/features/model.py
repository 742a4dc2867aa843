"""Training, predicting, saving and loading of the `features` architecture, see :mod:`prefcli.models.features`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.data.splits import split_folds
from prefcli.errors import ModelError, one_line
from prefcli.metrics import softmax
from prefcli.models.features import booster as boosting
from prefcli.models.features import by_source, network, statistics
from prefcli.models.features.authors import AuthorModel, Authors, train_boosters
from prefcli.models.features.booster import BoosterData, Folds, Progress, Table
from prefcli.models.features.by_source import SourceBooster
from prefcli.models.features.names import (
    ANSWER_STATISTICS,
    AUTHOR_COLUMNS,
    COLUMNS,
    TEXT_STATISTICS,
    in_units,
    statistic_of,
)
from prefcli.models.features.network import Networks
from prefcli.models.features.statistics import BUCKETS, BattleStatistics, Features
from prefcli.models.features.stored import Measured
from prefcli.models.features.words import Array, cross_fit, word_scores
from prefcli.outcomes import OUTCOMES, SWAPPED
from prefcli.storage import files

if TYPE_CHECKING:
    from lightgbm import Booster

FORMAT = 1
BASE_FORMAT = 2
"""Of a model that a base is added to, so that a release which knows none refuses it."""
AUTHOR_FORMAT = 3
"""Of a model with author scores, and perhaps a base."""
NETWORK_FORMAT = 4
"""Of a model with networks, and perhaps author scores and a base."""
FORMATS = (FORMAT, BASE_FORMAT, AUTHOR_FORMAT, NETWORK_FORMAT)
BOOSTER, WEIGHTS, MANIFEST = "booster.txt", "model.safetensors", "features.json"
AUTHOR_BOOSTERS = ("authors-1.txt", "authors-2.txt")

MIN_BATTLES = 50
"""With fewer battles, or a single prompt, the model is only the prior."""
PRIOR_WEIGHT = 3.0
"""Battles' worth of equal shares that the prior is smoothed with."""
INNER_FOLDS = 4
"""Parts of the training battles, for cross-fitting and for finding the number of rounds."""
MIN_PROBABILITY = 1e-12
"""Keeps logarithms of probabilities finite."""


@dataclass(frozen=True)
class BattleSources:
    """The sources of n training battles."""

    names: NDArray[np.object_]
    bases: Array
    """Logits of each battle's source that the model's are added to, the same for A and B; shape ``[n, 3]``."""

    def take(self, rows: NDArray[np.integer]) -> BattleSources:
        """Those of some of the battles."""
        return BattleSources(self.names[rows], self.bases[rows])


@dataclass(frozen=True)
class Contributions:
    """What each statistic did to the predictions of n battles."""

    names: tuple[str, ...]
    """Of the k statistics, see :func:`.names.statistic_of`."""
    values: Array
    """Of the statistics for A and B; shape ``[n, k, 2]``. Where there is one for both, the second is NaN."""
    log_odds: Array
    """By how much each moves the log-odds of A over B; shape ``[n, k]``. Swapping A and B negates it exactly."""


@dataclass(frozen=True)
class FeaturesModel:
    """A trained model."""

    word_weights: NDArray[np.float32]
    """Weight of each bucket of :attr:`.statistics.Features.words`; shape ``[BUCKETS]``."""
    prior: Array
    """Probabilities of A, B and tie before anything is known; the first two are equal. Shape ``[3]``."""
    booster: Booster | None
    """LightGBM's model; None where the prior is all there is."""
    threads: int = 0
    """Of LightGBM when predicting; 0 is as many as there are cores."""
    curve: list[float] = field(default_factory=list)
    """Log loss of the inner folds after each round; empty in a model that was loaded."""
    lacks_base: bool = False
    """Whether a base is to be added to its logits, see :mod:`prefcli.storage.sources`."""

    by_source: Mapping[str, SourceBooster] = field(default_factory=dict)
    """What is added where a prediction is for one of these sources."""
    as_source: str | None = None
    """The source that :meth:`logits` predicts for; None for all of them."""
    version: int = statistics.VERSION
    """Of the statistics that it was trained on."""
    authors: AuthorModel | None = None
    """Gives author scores; None for a model without."""
    networks: Networks | None = None
    """Joined to the booster where they help."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the booster sees of a battle."""
        return COLUMNS if self.authors is None else (*COLUMNS, *AUTHOR_COLUMNS)

    def probabilities(self, battles: Measured) -> Array:
        """Probabilities ``[n, 3]``, the mean over both orders of the answers."""
        if self.booster is None or not len(battles):
            return np.tile(self.prior, (len(battles), 1))
        return np.concatenate([self._probabilities(battles.load(chunk)) for chunk in boosting.chunks(len(battles))])

    def _probabilities(self, battles: Features) -> Array:
        tables = self._tables(battles)
        assert self.booster is not None
        predicted = boosting.mean_over_orders(self.booster, *tables, num_threads=self.threads)
        predicted = np.maximum(predicted, MIN_PROBABILITY)
        if self.networks is None:
            return predicted
        logits = self.networks.joined(np.log(predicted), self.networks.scores(*tables))
        return np.maximum(softmax(logits), MIN_PROBABILITY)

    def scores(self, battles: Measured, sources: Sequence[str | None]) -> Array:
        """Logits ``[n, 3]`` that lack their base, the mean over both orders, for the source of each battle."""
        if self.booster is None or not len(battles):
            return np.zeros((len(battles), len(OUTCOMES)))
        parts = boosting.chunks(len(battles))
        return np.concatenate([self._scores(battles.load(chunk), [sources[row] for row in chunk]) for chunk in parts])

    def _scores(self, battles: Features, sources: Sequence[str | None]) -> Array:
        assert self.booster is not None
        original, swapped = self._tables(battles)
        options = {"num_threads": self.threads, "raw_score": True}
        scores = boosting.mean_over_orders(self.booster, original, swapped, **options)
        if self.networks is not None:
            scores = self.networks.joined(scores, self.networks.scores(original, swapped))
        for name, of_source in self.by_source.items():
            rows = np.flatnonzero([source == name for source in sources])
            if len(rows):
                own = boosting.mean_over_orders(of_source.booster, original[rows], swapped[rows], **options)
                scores[rows] = of_source.common * scores[rows] + of_source.own * own
        return scores

    def _tables(self, battles: Features) -> tuple[Table, Table]:
        scores = word_scores(battles.words, self.word_weights)
        authors = None if self.authors is None else self.authors.scores(battles, self.threads)
        return table(battles, scores, authors), table(battles, scores, authors, swapped=True)

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[Array, Array | None]:
        """Logits of a batch of battles, and with ``swap_average`` of the swapped ones.

        The second are a permutation of the first, because a prediction is already the mean over both orders.
        """
        battles = statistics.extract(batch, self.version)
        if self.lacks_base:
            logits = self.scores(battles, [self.as_source] * len(battles))
        else:
            logits = np.log(self.probabilities(battles))
        if done is not None:
            done(len(logits))
        return logits, logits[:, SWAPPED] if swap_average else None

    def contributions(self, batch: pa.RecordBatch) -> Contributions:
        """What each statistic did to the predictions of a batch of battles: the mean over both orders of the answers.

        The booster's are LightGBM's, exact Shapley values of the trees (Lundberg et al., "From local explanations to
        global understanding with explainable AI for trees", Nature Machine Intelligence 2, 2020): their sum over all
        statistics is the mean over both orders of the difference between the raw scores of A and B. Those of networks
        are added, see :meth:`.network.Networks.contributions`.
        """
        battles = statistics.extract(batch, self.version)
        original, swapped = self._tables(battles)
        columns: dict[str, list[int]] = {}
        for number, column in enumerate(self.columns):
            columns.setdefault(statistic_of(column), []).append(number)
        owner = np.empty(len(self.columns), dtype=np.intp)
        values = np.full((len(battles), len(columns), 2), np.nan)
        for number, (name, own) in enumerate(columns.items()):
            owner[own] = number
            sides = own[:2] if len(own) > 1 else own  # A, B, and then A - B
            values[:, number, : len(sides)] = in_units(name, original[:, sides])
        of_source = self.by_source.get(self.as_source or "")
        common = 1.0 if of_source is None else of_source.common
        of_networks = 0.0 if self.networks is None else self.networks.share
        boosters = [(self.booster, common * (1 - of_networks))]
        if of_source is not None:
            boosters.append((of_source.booster, of_source.own))
        log_odds = np.zeros((len(battles), len(columns)))
        if self.networks is not None:
            for row, by_column in enumerate(self.networks.contributions(original, swapped)):
                moved = np.bincount(owner, weights=by_column, minlength=len(columns))
                log_odds[row] += common * of_networks * moved
        for booster, factor in boosters:
            if booster is None:
                continue
            first, second = (boosting.contributions(booster, rows, self.threads) for rows in (original, swapped))
            for row in range(len(battles)):  # summed one by one, so that the other battles change no bit
                sums = [np.bincount(owner, weights=order[row], minlength=len(columns)) for order in (first, second)]
                log_odds[row] += factor * (sums[0] - sums[1]) / 2
        return Contributions(tuple(columns), values, log_odds)

    def importances(self) -> list[tuple[str, float]]:
        """Names of statistics and their shares of the booster's total gain, the largest first.

        A statistic's columns for A, for B and for their difference count together.
        """
        if self.booster is None:
            return []
        gains: dict[str, float] = {}
        for column, gain in zip(self.columns, self.booster.feature_importance("gain").tolist(), strict=True):
            name = statistic_of(column)
            gains[name] = gains.get(name, 0.0) + gain
        total = sum(gains.values()) or 1.0
        return sorted(((name, gain / total) for name, gain in gains.items() if gain), key=lambda pair: -pair[1])

    @property
    def _format(self) -> int:
        if self.networks is not None:
            return NETWORK_FORMAT
        return AUTHOR_FORMAT if self.authors else BASE_FORMAT if self.lacks_base else FORMAT

    def save(self, folder: Path) -> None:
        """Write the model's files into a folder, the manifest last: where it exists, the model is complete."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        boosters, deviations = {BOOSTER: self.booster}, {}
        for number, (name, of_source) in enumerate(self.by_source.items(), start=1):
            file = f"booster-{number}.txt"
            boosters[file] = of_source.booster
            deviations[file] = {"source": name, "common": of_source.common, "own": of_source.own}
        arrays = {"word_weights": self.word_weights, "prior": self.prior}
        if self.authors is not None:
            boosters |= dict(zip(AUTHOR_BOOSTERS, self.authors.boosters, strict=True))
            arrays["author_word_weights"] = self.authors.word_weights
        if self.networks is not None:
            arrays |= self.networks.arrays()
        for file, booster in boosters.items():
            files.write_text(folder / file, boosting.to_text(booster))
        with files.atomic(folder / WEIGHTS) as temporary:
            # Of an array that is a view of another one, safetensors would write that one's memory.
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        manifest = {
            "format": self._format,
            "features": self.version,
            "columns": list(self.columns),
            "boosted": self.booster is not None,
            "sha256": {name: files.sha256(folder / name) for name in dict.fromkeys((BOOSTER, WEIGHTS, *boosters))},
        }
        if self.lacks_base:
            manifest["deviations"] = deviations
        if self.networks is not None:
            manifest["networks"] = {"count": len(self.networks.layers), "share": self.networks.share}
        files.write_text(folder / MANIFEST, files.to_json(manifest, indent=1) + "\n")


def load(folder: Path, *, threads: int = 0, as_source: str | None = None) -> FeaturesModel:
    """The model that :meth:`FeaturesModel.save` wrote, to predict for a source or for all.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or was written by a prefcli that measures other features.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_manifest(manifest, folder)
        has_authors = _has_authors(manifest)
        lacks_base = "deviations" in manifest
        deviations = manifest["deviations"] if lacks_base else {}
        # LightGBM's parser may crash on damaged text, so checksums come first.
        for name in (BOOSTER, WEIGHTS, *deviations, *(AUTHOR_BOOSTERS if has_authors else ())):
            if Path(name).name != name or files.sha256(folder / name) != manifest["sha256"][name]:
                raise _unusable(f"{name} is damaged: it is not the file that was saved", folder)
        arrays = load_arrays((folder / WEIGHTS).read_bytes())
        weights, prior = arrays["word_weights"], arrays["prior"]
        if weights.shape != (BUCKETS,) or prior.shape != (len(OUTCOMES),):
            raise _unusable(f"{WEIGHTS} has arrays of other shapes than expected", folder)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise _unusable(f"{WEIGHTS} has numbers that are not finite", folder)
        columns = len(manifest["columns"])
        booster = _load_booster(folder, BOOSTER, columns) if manifest["boosted"] else None
        own = dict(_load_source(folder, name, columns, saved) for name, saved in deviations.items())
        authors = _load_authors(folder, arrays["author_word_weights"]) if has_authors else None
        networks = None
        if manifest["format"] == NETWORK_FORMAT:
            networks = Networks.from_arrays(arrays, columns, **manifest["networks"])
    except FileNotFoundError as error:
        raise _unusable(f"{Path(error.filename or folder).name} is missing", folder) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise _unusable(f"the model cannot be loaded: {one_line(error)}", folder) from None
    return FeaturesModel(
        weights,
        prior,
        booster,
        threads,
        lacks_base=lacks_base,
        by_source=own,
        as_source=as_source,
        version=manifest["features"],
        authors=authors,
        networks=networks,
    )


def _load_source(folder: Path, name: str, columns: int, saved: Any) -> tuple[str, SourceBooster]:
    """A source and its booster; one that an earlier release saved, by its name alone, is added to the common one."""
    saved = {"source": saved, "common": 1.0, "own": 1.0} if isinstance(saved, str) else saved
    common, own = float(saved["common"]), float(saved["own"])
    if not (0 <= common <= by_source.MAX_FACTOR and 0 <= own <= by_source.MAX_FACTOR):
        raise _unusable(f"{MANIFEST} is damaged: {name} has factors that are never fitted", folder)
    return str(saved["source"]), SourceBooster(_load_booster(folder, name, columns), common, own)


def _load_booster(folder: Path, name: str, columns: int, outputs: int = len(OUTCOMES)) -> Booster:
    try:
        return boosting.from_text((folder / name).read_text(encoding="utf-8"), columns=columns, outputs=outputs)
    except ValueError as error:
        raise _unusable(f"{name} {one_line(error)}", folder) from None


def _load_authors(folder: Path, word_weights: NDArray[np.float32]) -> AuthorModel:
    if word_weights.shape != (BUCKETS,):
        raise _unusable(f"{WEIGHTS} has arrays of other shapes than expected", folder)
    columns = len(TEXT_STATISTICS) + len(ANSWER_STATISTICS)
    return AuthorModel(tuple(_load_booster(folder, name, columns, 1) for name in AUTHOR_BOOSTERS), word_weights)


def _unusable(what: str, folder: Path) -> ModelError:
    return ModelError(what, where=str(folder), hint="Train it again.")


def _has_authors(manifest: dict[str, Any]) -> bool:
    saved = manifest.get("format")
    return saved == AUTHOR_FORMAT or (saved == NETWORK_FORMAT and len(manifest.get("columns", ())) > len(COLUMNS))


def _check_manifest(manifest: Any, folder: Path) -> None:
    if not isinstance(manifest, dict):
        raise _unusable(f"{MANIFEST} is damaged: it holds no JSON object", folder)
    columns = (*COLUMNS, *(AUTHOR_COLUMNS if _has_authors(manifest) else ()))
    for name, readable in (("format", FORMATS), ("features", statistics.VERSIONS), ("columns", (list(columns),))):
        if manifest.get(name) not in readable:
            values = "" if name == "columns" else f" ({manifest.get(name)}, here {readable[-1]})"
            raise _unusable(f"{MANIFEST} was written by another version of prefcli: its {name} differ{values}", folder)


def table(battles: BattleStatistics, scores: Array, authors: Array | None = None, *, swapped: bool = False) -> Table:
    """The booster's input, :data:`.names.COLUMNS` of n battles; shape ``[n, len(COLUMNS)]``, float32.

    ``scores`` are those of the battles' words, shape ``[n]``. With ``authors``, author scores of A and B and that of
    the words, shape ``[n, 3]``, :data:`.names.AUTHOR_COLUMNS` follow. Swapping A and B permutes their columns and
    negates those of A - B, exactly.
    """
    a, b = battles.answers[:, 0], battles.answers[:, 1]
    strengths = np.empty((len(battles), 0))
    if authors is not None:
        first, second, words = authors.T
        strengths = np.stack([first, second, first - second, words], axis=1)
    if swapped:
        a, b, scores = b, a, -scores
        strengths = strengths[:, [1, 0, 2, 3][: strengths.shape[1]]] * [1, 1, -1, -1][: strengths.shape[1]]
    columns = [battles.prompt, battles.pair, a, b, a - b, scores[:, None], strengths]
    return np.concatenate(columns, axis=1, dtype=np.float32)


@dataclass(frozen=True)
class _BattleRows:
    """The booster's input of n battles and then of the same battles swapped, see :func:`table`."""

    battles: Measured
    scores: Array
    authors: Array | None

    def __len__(self) -> int:
        return 2 * len(self.battles)

    def __getitem__(self, positions: NDArray[np.integer]) -> Table:
        is_swapped = positions >= len(self.battles)
        rows = np.empty((len(positions), self._of(positions[:0], swapped=False).shape[1]), dtype=np.float32)
        for swapped in (False, True):
            part = is_swapped == swapped
            if part.any():
                rows[part] = self._of(positions[part] - swapped * len(self.battles), swapped=swapped)
        return rows

    def _of(self, battles: NDArray[np.integer], *, swapped: bool) -> Table:
        authors = None if self.authors is None else self.authors[battles]
        return table(self.battles.statistics(battles), self.scores[battles], authors, swapped=swapped)


def fit(  # noqa: PLR0913 (what is known of the battles, and how to train)
    battles: Measured,
    targets: NDArray[np.float32],
    groups: NDArray[np.int64],
    *,
    authors: Authors | None = None,
    sources: BattleSources | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
) -> FeaturesModel:
    """Train a model.

    Parameters
    ----------
    battles:
        Of n training battles; on disk (:mod:`.stored`) they take no memory.
    targets:
        Probabilities of A, B and tie, shape ``[n, 3]``: one 1 a row for a vote, rows that sum to 1 for soft labels.
        Rows of zeros are left out.
    groups:
        Shape ``[n]``, equal for equal prompts. Battles of one prompt are never on both sides of an inner split.
    authors:
        Who wrote the answers, for a model with author scores (:mod:`.authors`), unless nearly all are to one prompt.
    sources:
        Of the battles, where there are several.
    seed:
        Of the inner splits and of LightGBM's sampling. The same seed gives the same model on any number of threads.
    threads:
        Of LightGBM; 0 is as many as there are cores.
    progress:
        Called with what is being done, how many rounds of the whole fit are done, and how many are expected.
    settings:
        Of the boosters, see :func:`.booster.train`.
    """
    prior = _prior(targets)
    lacks_base = sources is not None
    prior_only = FeaturesModel(np.zeros(BUCKETS, dtype=np.float32), prior, None, threads, lacks_base=lacks_base)
    labelled = np.flatnonzero(targets.any(axis=1))
    if len(labelled) < len(battles):
        battles, targets, groups = battles.take(labelled), targets[labelled], groups[labelled]
        sources = None if sources is None else sources.take(labelled)
        authors = None if authors is None else authors.take(labelled)
    if len(battles) < MIN_BATTLES or len(np.unique(groups)) < INNER_FOLDS:
        return prior_only
    folds = split_folds(groups, targets.argmax(axis=1).astype(np.int64), INNER_FOLDS, seed)
    folds = [fold for fold in folds if len(fold[1])]  # folds may be empty where one prompt has most battles
    if len(folds) < 2:
        return prior_only
    if authors is not None and not authors.cover(folds):
        authors = None
    fit_progress = boosting.FitProgress(
        len(battles),
        len(folds),
        progress or (lambda what, done, total: None),
        every_fold=lacks_base,
        authors=authors is not None,
        seeds=(settings or {}).get("seeds", 1),
    )
    weights, scores, author_model, author_scores = _fit_scores(
        battles, targets, groups, folds, authors, seed=seed, threads=threads, progress=fit_progress
    )
    rows = _BattleRows(battles, scores, author_scores)
    both_targets = np.concatenate([targets, targets[:, SWAPPED]])
    bases = None if sources is None else np.concatenate([sources.bases, sources.bases])
    data = BoosterData(rows, both_targets, bases)
    train = functools.partial(boosting.train, seed=seed, threads=threads, settings=settings)
    trained = train(data, folds, progress=fit_progress, cross_fit=lacks_base)
    scored = np.concatenate([outside for _, outside in trained.folds])
    networks, held_out = network.fit(
        data, folds, trained.held_out, scored, seed=seed, threads=threads, progress=fit_progress.networks
    )
    model = FeaturesModel(
        *(weights, prior, trained.booster, threads, trained.curve, lacks_base), authors=author_model, networks=networks
    )
    if sources is None:
        return model
    own = by_source.fit(data, held_out, sources.names, folds, train, fit_progress)
    return replace(model, by_source=own)


def _fit_scores(
    battles: Measured,
    targets: NDArray[np.float32],
    groups: NDArray[np.int64],
    folds: Folds,
    authors: Authors | None,
    **options: Any,
) -> tuple[NDArray[np.float32], Array, AuthorModel | None, Array | None]:
    """The weights of the words and the cross-fitted word scores ``[n]``; author scores ``[n, 3]`` and their model."""
    preferences = (targets[:, 0] - targets[:, 1]).astype(np.float64)
    progress = options["progress"]
    if authors is None:
        weights, scores = cross_fit(battles, lambda rows: preferences[rows], folds, progress)
        return weights, scores, None, None

    def margins_of(rows: NDArray[np.intp]) -> Array:
        return np.stack([preferences[rows], authors.margins(rows)], axis=1)

    weights, scores = cross_fit(battles, margins_of, folds, progress)
    boosters, of_answers = train_boosters(battles, authors, groups, folds, **options)
    model = AuthorModel(boosters, np.ascontiguousarray(weights[:, 1]))
    return np.ascontiguousarray(weights[:, 0]), scores[:, 0], model, np.column_stack([of_answers, scores[:, 1]])


def expected_rounds(battles: int, seeds: int = 1) -> float:
    """About how many rounds :func:`fit` takes for so many battles, see :class:`.booster.FitProgress`."""
    return boosting.FitProgress(battles, INNER_FOLDS, lambda what, done, total: None, seeds=seeds).expected


def most_rounds(battles: int, seeds: int = 1) -> float:
    """The same if the boosting goes on as long as it may."""
    return boosting.FitProgress(battles, INNER_FOLDS, lambda what, done, total: None, seeds=seeds).most


def _prior(targets: NDArray[np.float32]) -> Array:
    """Shares of the outcomes, smoothed, the same for A and B."""
    totals = targets.sum(axis=0, dtype=np.float64) + PRIOR_WEIGHT / len(OUTCOMES)
    totals = (totals + totals[list(SWAPPED)]) / 2
    return totals / totals.sum()

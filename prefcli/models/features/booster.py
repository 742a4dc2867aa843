"""LightGBM: its import, training with the number of rounds found by cross-validation, and loading of untrusted text."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prefcli.compute import memory
from prefcli.errors import PrefcliError, one_line
from prefcli.models.features.names import COLUMNS
from prefcli.outcomes import OUTCOMES, SWAPPED, A, B

if TYPE_CHECKING:
    from lightgbm import Booster

Table = NDArray[np.float32]
Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]
Progress = Callable[[str, float, float], None]
"""Called with what is being done, how many rounds of the whole fit are done, and how many it will probably have."""

SMALL_DATASET = 5000
"""With fewer battles the booster is simpler, and the number of rounds is the best over all inner folds, not some."""
CHOICE_FOLDS = 2
"""Inner folds over which the number of rounds is the best, from so many battles on; one alone varies by its double."""

MAX_BINS = 63
"""Of a column."""
BIN_ROWS = 1 << 17
"""Of more rows than this, so many are looked at for the bins of the columns."""
BYTES_OF_NUMBER, BYTES_OF_BIN = 9.0, 1.15
"""Memory for a number while bins are found, and afterwards: gradients and scores included, which are by row."""
CHUNK_ROWS = 8192
"""Rows that are in memory at a time as numbers, beside those of :data:`BIN_ROWS`."""

MAX_ROUNDS = 500
WORD_ROUNDS = 16
"""About how many rounds take as long as one step of the model of words, of which there is one more than inner folds."""
AUTHOR_ROUNDS = 12
"""About how many take as long as one of the two boosters of author scores."""
NETWORK_ROUNDS = 12
"""About how many take as long as one of the networks, of which there is one for each inner fold."""


@dataclass(frozen=True)
class BoosterSettings:
    """How the booster is trained, in LightGBM's own names."""

    num_leaves: int
    learning_rate: float
    min_data_in_leaf: int
    feature_fraction: float
    num_boost_round: int
    early_stopping_round: int
    lambda_l2: float = 5.0
    seeds: int = 1
    """Boosters of all battles, each with another seed, whose scores are averaged."""

    @staticmethod
    def for_battles(count: int) -> BoosterSettings:
        """Few battles are learned from in small steps by small trees."""
        if count < SMALL_DATASET:
            return BoosterSettings(8, 0.04, 20, 0.2, MAX_ROUNDS, 60)
        return BoosterSettings(31, 0.06, 100, 0.3, MAX_ROUNDS, 30)

    @staticmethod
    def usual_rounds(count: int) -> int:
        """How many rounds the best booster usually has, as found on 1,700 to 56,000 battles; for times left alone."""
        return 170 if count < SMALL_DATASET else round(0.8 * count**0.5)

    def parameters(self, seed: int, threads: int) -> dict[str, Any]:
        """For ``lightgbm.train``; the result does not depend on the number of threads."""
        return {
            "objective": "multiclass", "num_class": len(OUTCOMES), "num_leaves": self.num_leaves,
            "learning_rate": self.learning_rate, "min_data_in_leaf": self.min_data_in_leaf,
            "feature_fraction": self.feature_fraction, "bagging_fraction": 0.7, "bagging_freq": 1,
            "lambda_l2": self.lambda_l2, "max_bin": MAX_BINS, "deterministic": True, "force_col_wise": True,
            "seed": seed, "num_threads": threads, "verbosity": -1,
        }  # fmt: skip


def memory_of(battles: int) -> float:
    """About how many bytes the training on so many battles takes beside what it takes on few.

    Either the rows that bins are found on, as numbers and sorted by column, take most, or all rows as bins.
    """
    rows = 2 * battles
    return len(COLUMNS) * max(BYTES_OF_NUMBER * min(rows, BIN_ROWS), BYTES_OF_BIN * rows)


def import_lightgbm() -> Any:
    """LightGBM. Where the system lacks OpenMP's library (``libgomp``), as its wheel does, PyTorch's copy is used.

    Raises
    ------
    PrefcliError
        If there is no such library at all.
    """
    try:
        return importlib.import_module("lightgbm")
    except OSError:
        torch = importlib.util.find_spec("torch")
        for folder in (torch.submodule_search_locations or []) if torch else []:
            for path in Path(folder, "lib").glob("libgomp*.so*"):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightgbm"]:
        del sys.modules[name]  # what was imported before it failed
    try:
        return importlib.import_module("lightgbm")
    except OSError as error:
        raise PrefcliError(
            f"LightGBM cannot be loaded: {error}",
            hint="It needs OpenMP's library: apt-get install libgomp1, dnf install libgomp, or brew install libomp.",
        ) from None


class FitProgress:
    """How far a fit is: with the words, with choosing the number of rounds, with the final booster.

    It is counted in rounds on an inner fold; one on all battles is more by as many as they are more.
    How many rounds there will be is not known before they are chosen: until then about as many are expected as other
    data took, and after the first inner fold as many as there.
    """

    def __init__(
        self,
        battles: int,
        folds: int,
        report: Progress,
        *,
        every_fold: bool = False,
        authors: bool = False,
        before: float | None = None,
        seeds: int = 1,
    ) -> None:
        settings = BoosterSettings.for_battles(battles)
        self._report = self._unnamed = report
        self._words = (folds + 1) * WORD_ROUNDS
        self._before = self._words + authors * 2 * AUTHOR_ROUNDS if before is None else before
        self._choices = folds if battles < SMALL_DATASET or every_fold else min(CHOICE_FOLDS, folds)
        self._patience, self._max = settings.early_stopping_round, settings.num_boost_round
        self._best: float = min(BoosterSettings.usual_rounds(battles), self._max)
        self._found: list[int] = []
        self._finished = before or 0.0
        self._seeds, self._seed = seeds, 0
        self._networks = 0 if before is not None else folds * NETWORK_ROUNDS
        self._final = folds / (folds - 1)

    @property
    def expected(self) -> float:
        """Rounds of the whole fit as far as it is known now."""
        choices = (self._choices - len(self._found)) * min(self._best + self._patience, self._max)
        return max(self._finished, self._before) + choices + self._best * self._final * self._seeds + self._networks

    @property
    def most(self) -> float:
        """Rounds of the whole fit if no inner fold stops before the largest number, known before the fit begins."""
        return self._before + (self._choices + self._final * self._seeds) * self._max + self._networks

    def words(self, steps: float) -> None:
        """So much of the words' models is fitted, one of each inner fold and one of all battles."""
        self._finished = steps * WORD_ROUNDS
        self._report("words", self._finished, self.expected)

    def authors(self, steps: int) -> None:
        """So many of the two boosters of author scores are trained."""
        self._finished = self._words + steps * AUTHOR_ROUNDS
        self._report("author scores", self._finished, self.expected)

    def choosing(self) -> Callable[[Any], None]:
        """A LightGBM callback for one inner fold."""
        of_several = f" {len(self._found) + 1}/{self._choices}" if self._choices > 1 else ""
        lowest, best = math.inf, 0

        def report(environment: Any) -> None:
            nonlocal lowest, best
            done, loss = environment.iteration + 1, environment.evaluation_result_list[0][2]
            if loss < lowest:
                lowest, best = loss, done
            if not self._found:
                self._best = max(self._best, best)  # it goes on at least until no round was better for a while
            self._report(
                f"choosing rounds{of_several}", self._finished + done, max(self.expected, self._finished + done)
            )

        return report

    def chosen(self, curve: Sequence[float]) -> None:
        """An inner fold is done; its log loss after each round."""
        self._finished += len(curve)
        self._found.append(int(np.argmin(curve)) + 1)
        self._best = float(np.mean(self._found))

    def final(self, rounds: int) -> Callable[[Any], None]:
        """A LightGBM callback for the next of the boosters of all battles, one for each seed."""
        self._seed += 1
        before, seed = self._finished, self._seed
        self._finished += rounds * self._final
        total = self._finished + (self._seeds - seed) * rounds * self._final + self._networks
        of_several = f" {seed}/{self._seeds}" if self._seeds > 1 else ""

        def report(environment: Any) -> None:
            self._report(f"final fit{of_several}", before + (environment.iteration + 1) * self._final, total)

        return report

    def networks(self, share: float) -> None:
        """The boosters are trained, and such a share of the networks."""
        done = self._finished + share * self._networks
        self._report("networks", done, self._finished + self._networks)
        if share == 1:
            self._finished = done

    def for_source(self, name: str, battles: int, folds: int) -> FitProgress:
        """How far the fit of a source's own booster is, which begins when this one has ended."""
        progress = FitProgress(battles, folds, self._unnamed, every_fold=True, before=self._finished, seeds=self._seeds)
        progress._report = lambda what, done, total: self._unnamed(f"{name}, {what}", done, total)
        return progress


class Rows(Protocol):
    """A table that is computed, or read from disk, where it is asked for; an array is one too."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: NDArray[np.integer], /) -> Table: ...


@dataclass(frozen=True)
class _SelectedRows:
    """Those of a table at some positions."""

    rows: Rows
    positions: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, positions: NDArray[np.integer]) -> Table:
        return self.rows[self.positions[positions]]


def chunks(count: int) -> Iterator[NDArray[np.intp]]:
    """The positions of so many rows, :data:`CHUNK_ROWS` at a time; at least one chunk, perhaps empty."""
    for start in range(0, max(count, 1), CHUNK_ROWS):
        yield np.arange(start, min(start + CHUNK_ROWS, count))


@dataclass(frozen=True)
class BoosterData:
    """What a booster is trained on: n battles, then the same battles swapped."""

    rows: Rows
    """Of the shape ``[2n, len(COLUMNS)]``."""
    targets: NDArray[np.float32]
    """Shape ``[2n, 3]``."""
    bases: NDArray[np.float64] | None = None
    """Logits that the booster's are added to, shape ``[2n, 3]``."""

    def battles(self, positions: NDArray[np.integer]) -> BoosterData:
        """Some of the n battles, in both orders."""
        both = np.concatenate([positions, positions + len(self.rows) // 2])
        bases = None if self.bases is None else self.bases[both]
        return BoosterData(_SelectedRows(self.rows, both), self.targets[both], bases)

    def with_scores(self, scores: NDArray[np.float64]) -> BoosterData:
        """The same with logits ``[n, 3]`` of the n battles added to their bases."""
        both = np.concatenate([scores, scores[:, SWAPPED]])
        return replace(self, bases=both if self.bases is None else self.bases + both)

    @property
    def loss(self) -> float:
        """Log loss of the bases alone."""
        assert self.bases is not None
        log_probabilities = self.bases - np.logaddexp.reduce(self.bases, axis=1, keepdims=True)
        return float(-(self.targets * log_probabilities).sum() / self.targets.sum())

    def take(self, positions: NDArray[np.integer], parameters: Mapping[str, Any]) -> Any:
        """A LightGBM data set; a row occurs once for every outcome it has a share of, weighted by that share."""
        occurrence, labels = np.nonzero(self.targets[positions] > 0)
        positions = positions[occurrence]
        return dataset(
            _SelectedRows(self.rows, positions),
            labels,
            parameters,
            weight=self.targets[positions, labels],
            init_score=None if self.bases is None else self.bases[positions],
        )


def _in_memory(rows: Rows, positions: NDArray[np.integer]) -> Table:
    """The rows at some positions, read by chunks: what is computed on the way, and mapped from files, goes again."""
    table = np.empty((len(positions), rows[positions[:0]].shape[1]), dtype=np.float32)
    for chunk in chunks(len(positions)):
        table[chunk] = rows[positions[chunk]]
    return table


def dataset(rows: Rows, labels: NDArray[np.generic], parameters: Mapping[str, Any], **fields: Any) -> Any:
    """A LightGBM data set of a table, which it keeps as bins: a byte a number.

    The bins of more than :data:`BIN_ROWS` rows are found on a sample of so many; the rows are then added by chunks.
    """
    lightgbm = import_lightgbm()
    options = {"max_bin": MAX_BINS, "verbosity": -1}
    if len(rows) <= BIN_ROWS:
        return lightgbm.Dataset(_in_memory(rows, np.arange(len(rows))), labels, params=options, **fields)
    memory.return_freed_memory()
    sample = np.sort(np.random.default_rng(parameters["seed"]).choice(len(rows), BIN_ROWS, replace=False))
    # LightGBM leaves out columns that differ in so few rows that no split could be made.
    least = max(1, round(parameters["min_data_in_leaf"] * BIN_ROWS / len(rows)))
    binned = lightgbm.Dataset(_in_memory(rows, sample), params=options | {"min_data_in_leaf": least}).construct()

    class Chunks(lightgbm.Sequence):  # type: ignore[name-defined]
        batch_size = CHUNK_ROWS

        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, chunk: Any) -> Table:
            return rows[np.arange(chunk.start, chunk.stop)]

    return lightgbm.Dataset(Chunks(), labels, reference=binned, params=options, **fields)


@dataclass(frozen=True)
class Trained:
    """A trained booster, and what its inner folds say."""

    booster: Booster
    curve: list[float]
    """Log loss of the inner folds after each round."""
    folds: Folds
    """The inner folds that the number of rounds was chosen on."""
    held_out: NDArray[np.float64]
    """Scores of the battles that these folds hold out, by boosters that did not see their prompts, the mean over both
    orders; shape ``[n, 3]``, 0 for other battles."""


def train(
    data: BoosterData,
    folds: Folds,
    *,
    seed: int,
    threads: int,
    progress: FitProgress,
    cross_fit: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Trained:
    """A booster trained on all rows, for the number of rounds that was best on the inner folds.

    Parameters
    ----------
    data:
        The battles.
    folds:
        Positions of the battles to train on and of those to evaluate on.
    seed, threads:
        See :func:`.model.fit`.
    progress:
        Is kept up to date.
    cross_fit:
        Whether held-out scores of all battles are wanted, which takes all folds.
    settings:
        Fields of :class:`BoosterSettings` in place of those that the number of battles suggests.
    """
    lightgbm = import_lightgbm()
    battles = len(data.rows) // 2
    chosen = replace(BoosterSettings.for_battles(battles), **(settings or {}))
    parameters = chosen.parameters(seed, threads)
    curves: list[list[float]] = []
    boosters: list[Booster] = []
    used = folds if battles < SMALL_DATASET or cross_fit else folds[:CHOICE_FOLDS]
    for fold in used:
        # The mean over folds is looked at as far as the shortest curve goes.
        rounds = min(map(len, curves), default=chosen.num_boost_round)
        booster, curve = _train_on_fold(data, fold, parameters, replace(chosen, num_boost_round=rounds), progress)
        boosters.append(booster)
        curves.append(curve)
        progress.chosen(curve)
    length = min(map(len, curves))
    mean_curve = np.mean([curve[:length] for curve in curves], axis=0)
    best = int(mean_curve.argmin()) + 1
    held_out = _held_out_scores(boosters, data.rows, used, best, threads)
    del boosters
    everything = data.take(np.arange(len(data.rows)), parameters)
    by_seed = [
        lightgbm.train(parameters | {"seed": seed + number}, everything, best, callbacks=[progress.final(best)])
        for number in range(chosen.seeds)
    ]
    booster = by_seed[0] if chosen.seeds == 1 else mean_booster(by_seed)
    return Trained(booster, mean_curve.tolist(), used, held_out)


def _train_on_fold(
    data: BoosterData,
    fold: tuple[NDArray[np.intp], NDArray[np.intp]],
    parameters: Mapping[str, Any],
    settings: BoosterSettings,
    progress: FitProgress,
) -> tuple[Booster, list[float]]:
    """A booster of one inner fold, and its log loss after each round; the fold's data sets go when it returns."""
    lightgbm = import_lightgbm()
    battles = len(data.rows) // 2
    training, validation = (data.take(np.concatenate([part, part + battles]), parameters) for part in fold)
    curve: dict[str, dict[str, list[float]]] = {}
    callbacks = [
        lightgbm.record_evaluation(curve),
        progress.choosing(),
        lightgbm.early_stopping(settings.early_stopping_round, verbose=False),
    ]
    booster = lightgbm.train(
        dict(parameters), training, settings.num_boost_round, valid_sets=[validation], callbacks=callbacks
    )
    return booster, next(iter(curve["valid_0"].values()))


def _held_out_scores(
    boosters: list[Booster], rows: Rows, folds: Folds, rounds: int, threads: int
) -> NDArray[np.float64]:
    battles = len(rows) // 2
    scores = np.zeros((battles, len(OUTCOMES)))
    options = {"raw_score": True, "num_iteration": rounds, "num_threads": threads}
    for booster, (_, outside) in zip(boosters, folds, strict=True):
        for chunk in chunks(len(outside)):
            part = outside[chunk]
            scores[part] = mean_over_orders(booster, rows[part], rows[part + battles], **options)
    return scores


def mean_over_orders(booster: Booster, rows: Table, swapped: Table, **options: Any) -> NDArray[np.float64]:
    """Predictions ``[n, 3]`` of n battles, the mean with those of the swapped battles, swapped back."""
    original, others = (np.asarray(booster.predict(order, **options)) for order in (rows, swapped))
    return np.asarray((original + others[:, SWAPPED]) / 2)


def contributions(booster: Booster, rows: Table, threads: int) -> NDArray[np.float64]:
    """By how much each column moves the raw score of A against that of B; shape ``[n, len(COLUMNS)]``.

    Together with the difference of the expected scores, which is the same for every row, a row's sum is the difference
    of its scores.
    """
    shape = (len(rows), len(OUTCOMES), booster.num_feature() + 1)
    by_outcome = np.asarray(booster.predict(rows, pred_contrib=True, num_threads=threads)).reshape(shape)
    return np.asarray(by_outcome[:, A, :-1] - by_outcome[:, B, :-1])


def mean_booster(boosters: Sequence[Booster]) -> Booster:
    """One booster whose scores are the mean of those of some of the same shape: it holds all of their trees.

    Its leaves have the values of theirs divided by their number.
    """

    def scaled(line: re.Match[str]) -> str:
        values = np.array(line[2].split(" "), dtype=np.float64) / len(boosters)
        return f"{line[1]}={' '.join(map(repr, values.tolist()))}"

    texts = [to_text(booster).partition("\nend of trees") for booster in boosters]
    head, _, _ = texts[0][0].partition("Tree=0\n")
    trees = [tree for text, _, _ in texts for tree in re.split(r"(?m)^Tree=\d+\n", text)[1:]]
    trees = [re.sub(r"(?m)^(leaf_value|internal_value)=(.+)$", scaled, tree) for tree in trees]
    numbered = "".join(f"Tree={number}\n{tree.rstrip()}\n\n\n" for number, tree in enumerate(trees))
    head = re.sub(r"(?m)^tree_sizes=.*\n", "", head)
    return import_lightgbm().Booster(model_str=f"{head}{numbered}end of trees{texts[0][2]}")


def to_text(booster: Booster | None) -> str:
    """The booster in LightGBM's format, without the number of threads that trained it; empty for None."""
    text = "" if booster is None else str(booster.model_to_string())
    return re.sub(r"(?m)^\[num_threads: .*\]\n", "", text)


def from_text(text: str, *, columns: int = len(COLUMNS), outputs: int = len(OUTCOMES)) -> Booster:
    """The booster of so many columns and outputs in a text that may be damaged or malicious.

    Raises
    ------
    ValueError
        If it is; the message continues the file's name.
    """
    lightgbm = import_lightgbm()
    try:
        check_trees(text, columns=columns, outputs=outputs)
    except KeyError as error:
        raise ValueError(f"is damaged: it has no {error}") from None
    try:
        # With sizes, trees are read by several threads, and an error in one of them ends the process.
        booster: Booster = lightgbm.Booster(model_str=re.sub(r"(?m)^tree_sizes=.*\n", "", text))
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(f"is damaged: {one_line(error)}") from None
    if booster.num_feature() != columns or booster.num_model_per_iteration() != outputs:
        raise ValueError(f"is of another model: {booster.num_feature()} columns, not {columns}")
    return booster


def check_trees(text: str, *, columns: int = len(COLUMNS), outputs: int = len(OUTCOMES)) -> None:
    """Check that every tree is one: LightGBM follows the indices in a file unchecked, into any memory.

    Raises
    ------
    ValueError, KeyError
        If one is not.
    """
    head, *trees = re.split(r"(?m)^Tree=\d+\n", text.partition("\nend of trees")[0])
    values = _key_values(head)
    shape = (values["num_class"], values["num_tree_per_iteration"], values["max_feature_idx"])
    if shape != (str(outputs), str(outputs), str(columns - 1)) or len(trees) % outputs:
        raise ValueError(f"is of another model: {shape[2]} columns or {shape[0]} classes are not what was expected")
    for number, tree in enumerate(trees):
        if not _is_tree(_key_values(tree), columns):
            raise ValueError(f"is damaged or malicious: tree {number} is invalid")


def _is_tree(values: dict[str, str], columns: int) -> bool:
    (leaves,), (categories,) = _integers(values["num_leaves"]), _integers(values["num_cat"])
    if leaves < 1 or categories or values.get("is_linear", "0") != "0" or _count(values["leaf_value"]) != leaves:
        return False
    splits = leaves - 1
    if not splits:
        return True
    column, kind = _integers(values["split_feature"]), _integers(values["decision_type"])
    children = [_integers(values["left_child"]), _integers(values["right_child"])]
    if {splits} != {_count(values["threshold"]), len(column), len(kind), *map(len, children)}:
        return False
    # A split below another has a higher number, so no path is a circle. Leaves are numbered from -1 downwards. An odd
    # decision type is a categorical one, which prefcli never makes.
    inner, leaf = children >= np.arange(splits) + 1, np.less(children, 0)
    valid = (inner & np.less(children, splits)) | (leaf & np.greater_equal(children, -leaves))
    return bool(valid.all() and (column >= 0).all() and (column < columns).all() and not (kind & 1).any())


def _key_values(block: str) -> dict[str, str]:
    """Lines ``key=value``, each key once: LightGBM might take another of two than this check."""
    lines = [line.partition("=")[::2] for line in block.split("\n") if line]
    values = dict(lines)
    if len(values) < len(lines):
        raise ValueError("is damaged: a key occurs twice")
    return values


def _count(text: str) -> int:
    """How many numbers are in a line."""
    numbers = text.split(" ")
    return len(numbers) if all(numbers) else 0


def _integers(text: str) -> NDArray[np.int64]:
    """Integers as LightGBM reads them. Raises ValueError for anything else."""
    if not re.fullmatch(r"-?[0-9]{1,9}( -?[0-9]{1,9})*", text):
        raise ValueError("is damaged: a number is invalid")
    return np.array(text.split(" "), dtype=np.int64)

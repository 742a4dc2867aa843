"""The `features` architecture: no neural network, no download, minutes on a laptop.

Two learners share the work. A linear model scores answers by their words: what it is given is the difference between
A's and B's weights of words and word pairs, so exchanging the answers negates its score. A LightGBM booster predicts
A, B or tie from the statistics of the texts and that score. While training, the scores of the battles the booster
learns from come from models that have not seen their prompts (cross-fitting); otherwise it would trust them too much.

Every battle is trained on in both orders, and a prediction is the mean over both orders, so exchanging A and B
exchanges their probabilities exactly.

A folder holds ``booster.txt`` (LightGBM's own format), ``model.safetensors`` (the words' weights and the prior) and
``statistics.json`` (what must fit together). Nothing is pickled.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefcli.data.splits import split_folds
from prefcli.errors import ModelError, PrefcliError, one_line
from prefcli.models.features import statistics
from prefcli.models.features.statistics import ANSWER_STATISTICS, BUCKETS, PAIR_STATISTICS, TEXT_STATISTICS, Features
from prefcli.outcomes import OUTCOMES, SWAPPED
from prefcli.storage import files

if TYPE_CHECKING:
    from lightgbm import Booster
    from scipy.sparse import csr_matrix

Array = NDArray[np.float64]
Table = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done, and of how many."""

FORMAT = 1
BOOSTER, WEIGHTS, MANIFEST = "booster.txt", "model.safetensors", "features.json"

WORD_SCORE = "score of the words"
SIDES = ("A", "B", "A - B")
COLUMNS = (
    *(f"prompt: {name}" for name in TEXT_STATISTICS),
    *(f"pair: {name}" for name in PAIR_STATISTICS),
    *(f"{side}: {name}" for side in SIDES for name in ANSWER_STATISTICS),
    f"A - B: {WORD_SCORE}",
)
"""What the booster sees of a battle, see :func:`table`."""

MIN_BATTLES = 50
"""With fewer battles, or a single prompt, only the prior is learnt."""
PRIOR_WEIGHT = 3.0
"""Battles' worth of equal shares that the prior is smoothed with."""
INNER_FOLDS = 4
"""Parts of the training battles, for cross-fitting and for finding the number of rounds."""
SMALL_DATASET = 5000
"""Below, the booster is kept simpler and the number of rounds is the best over all inner folds, not over one."""
SMALLEST = 1e-12
"""A probability is never below, so that its logarithm is finite."""


@dataclass(frozen=True)
class Settings:
    """How the booster is trained; the names of LightGBM's parameters are in :meth:`parameters`."""

    leaves: int
    learning_rate: float
    fewest_in_leaf: int
    columns_per_tree: float
    most_rounds: int
    patience: int

    @staticmethod
    def of(battles: int) -> Settings:
        """By the number of training battles: few are learnt from in small steps by small trees."""
        if battles < SMALL_DATASET:
            return Settings(8, 0.04, 20, 0.2, 500, 60)
        return Settings(31, 0.06, 100, 0.3, 500, 30)

    def parameters(self, seed: int, threads: int) -> dict[str, Any]:
        """For ``lightgbm.train``; the result does not depend on the number of threads."""
        return {
            "objective": "multiclass", "num_class": len(OUTCOMES), "num_leaves": self.leaves,
            "learning_rate": self.learning_rate, "min_data_in_leaf": self.fewest_in_leaf,
            "feature_fraction": self.columns_per_tree, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 5.0,
            "max_bin": 63, "deterministic": True, "force_col_wise": True, "seed": seed, "num_threads": threads,
            "verbosity": -1,
        }  # fmt: skip


@dataclass(frozen=True)
class FeaturesModel:
    """A trained model.

    Attributes
    ----------
    word_weights:
        What each bucket of :attr:`.statistics.Features.words` is worth; shape ``[BUCKETS]``, float32.
    prior:
        Probabilities of A, B and tie before anything is known; the first two are equal. Shape ``[3]``.
    booster:
        LightGBM's model as text; None where the prior is all there is.
    threads:
        Of LightGBM when predicting; 0 is as many as there are cores.
    """

    word_weights: NDArray[np.float32]
    prior: Array
    booster: Booster | None
    threads: int = 0

    def probabilities(self, battles: Features) -> Array:
        """Probabilities ``[n, 3]``, the mean over both orders of the answers."""
        if self.booster is None or not len(battles):
            return np.tile(self.prior, (len(battles), 1))
        scores = word_scores(battles.words, self.word_weights)
        straight = self._boosted(table(battles, scores))
        exchanged = self._boosted(table(battles, scores, exchanged=True))
        return np.maximum((straight + exchanged[:, SWAPPED]) / 2, SMALLEST)

    def _boosted(self, rows: Table) -> Array:
        assert self.booster is not None
        return np.asarray(self.booster.predict(rows, num_threads=self.threads), dtype=np.float64)

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[Array, Array | None]:
        """Logarithms of the probabilities of a batch of battles, and with ``swap_average`` of the exchanged ones.

        The second are a permutation of the first: a prediction is the mean over both orders already.
        """
        logits = np.log(self.probabilities(statistics.extract(batch)))
        if done is not None:
            done(len(logits))
        return logits, logits[:, SWAPPED] if swap_average else None

    def importances(self) -> list[tuple[str, float]]:
        """What the booster looked at: names and shares of the total gain, the largest first.

        One statistic's columns for A, for B and for their difference count together.
        """
        if self.booster is None:
            return []
        gains: dict[str, float] = {}
        for column, gain in zip(COLUMNS, self.booster.feature_importance("gain").tolist(), strict=True):
            side, _, name = column.partition(": ")
            name = column if side == "prompt" else name
            gains[name] = gains.get(name, 0.0) + gain
        total = sum(gains.values()) or 1.0
        return sorted(((name, gain / total) for name, gain in gains.items() if gain), key=lambda pair: -pair[1])

    # Folders

    def booster_text(self) -> str:
        """The booster in LightGBM's format, without the number of threads that made it; empty where there is none."""
        text = "" if self.booster is None else str(self.booster.model_to_string())
        return re.sub(r"(?m)^\[num_threads: .*\]\n", "", text)

    def save(self, folder: Path) -> None:
        """Write the model's files into a folder, the manifest last: who finds it finds a whole model."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / BOOSTER, self.booster_text())
        with files.atomic(folder / WEIGHTS) as temporary:
            save_file({"word_weights": self.word_weights, "prior": self.prior}, temporary)
        manifest = {
            "format": FORMAT,
            "features": statistics.VERSION,
            "columns": list(COLUMNS),
            "boosted": self.booster is not None,
            "sha256": {name: files.sha256(folder / name) for name in (BOOSTER, WEIGHTS)},
        }
        files.write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def load(folder: Path, *, threads: int = 0) -> FeaturesModel:
    """The model that :meth:`FeaturesModel.save` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or was written by a prefcli that measures other features.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_versions(manifest, folder)
        # LightGBM's parser trusts what it reads and may crash on anything else: nothing damaged may reach it.
        for name in (BOOSTER, WEIGHTS):
            if files.sha256(folder / name) != manifest["sha256"][name]:
                raise _unusable(f"{name} is damaged: it is not the file that was saved", folder)
        arrays = load_arrays((folder / WEIGHTS).read_bytes())
        weights, prior = arrays["word_weights"], arrays["prior"]
        if weights.shape != (BUCKETS,) or prior.shape != (len(OUTCOMES),):
            raise _unusable(f"{WEIGHTS} has arrays of other shapes than expected", folder)
        booster = _booster((folder / BOOSTER).read_text(encoding="utf-8"), folder) if manifest["boosted"] else None
    except FileNotFoundError as error:
        raise _unusable(f"{Path(error.filename or folder).name} is missing", folder) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise _unusable(f"the model cannot be loaded: {one_line(error)}", folder) from None
    return FeaturesModel(weights, prior, booster, threads)


def _unusable(what: str, folder: Path) -> ModelError:
    return ModelError(what, where=str(folder), hint="Train it again.")


def _check_versions(manifest: Any, folder: Path) -> None:
    if not isinstance(manifest, dict):
        raise _unusable(f"{MANIFEST} is damaged: it holds no JSON object", folder)
    for name, ours in (("format", FORMAT), ("features", statistics.VERSION), ("columns", list(COLUMNS))):
        if manifest.get(name) != ours:
            told = "" if name == "columns" else f" ({manifest.get(name)}, here {ours})"
            raise _unusable(f"{MANIFEST} was written by another version of prefcli: its {name} differ{told}", folder)


def _lightgbm() -> Any:
    """The library. On a system without OpenMP's (``libgomp``), which its wheel lacks, PyTorch's copy of that serves.

    Raises
    ------
    PrefcliError
        If there is none at all.
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


def _booster(text: str, folder: Path) -> Booster:
    lightgbm = _lightgbm()
    try:
        _check_trees(text)
    except KeyError as error:
        raise _unusable(f"{BOOSTER} is damaged: it has no {error}", folder) from None
    except ValueError as error:
        raise _unusable(f"{BOOSTER} {one_line(error)}", folder) from None
    try:
        # With sizes, trees are read by several threads, and an error in one of them ends the process.
        booster: Booster = lightgbm.Booster(model_str=re.sub(r"(?m)^tree_sizes=.*\n", "", text))
    except lightgbm.basic.LightGBMError as error:
        raise _unusable(f"{BOOSTER} is damaged: {error}", folder) from None
    if booster.num_feature() != len(COLUMNS) or booster.num_model_per_iteration() != len(OUTCOMES):
        raise _unusable(f"{BOOSTER} is of another model: {booster.num_feature()} columns, not {len(COLUMNS)}", folder)
    return booster


def _check_trees(text: str) -> None:
    """Every tree is one: LightGBM follows indices as they stand there, into any memory. Raises ValueError otherwise."""
    head, *trees = re.split(r"(?m)^Tree=\d+\n", text.partition("\nend of trees")[0])
    told = _values(head)
    shape = (told["num_class"], told["num_tree_per_iteration"], told["max_feature_idx"])
    if shape != (str(len(OUTCOMES)), str(len(OUTCOMES)), str(len(COLUMNS) - 1)) or len(trees) % len(OUTCOMES):
        raise ValueError(f"is of another model: {shape[2]} columns or {shape[0]} classes are not what was expected")
    for number, tree in enumerate(trees):
        if not _is_tree(_values(tree)):
            raise ValueError(f"is damaged, or made to do harm: tree {number} is none")


def _is_tree(of: dict[str, str]) -> bool:
    (leaves,), (categories,) = _integers(of["num_leaves"]), _integers(of["num_cat"])
    if leaves < 1 or categories or of.get("is_linear", "0") != "0" or _count(of["leaf_value"]) != leaves:
        return False
    splits = leaves - 1
    if not splits:
        return True
    column, kind = _integers(of["split_feature"]), _integers(of["decision_type"])
    children = [_integers(of["left_child"]), _integers(of["right_child"])]
    if {splits} != {_count(of["threshold"]), len(column), len(kind), *map(len, children)}:
        return False
    # Splits are numbered as they were made: one below another has a higher number, so no path runs in a circle.
    # Leaves are numbered from -1 downwards; a decision of an odd kind is about categories, which there are none of.
    inner, leaf = children >= np.arange(splits) + 1, np.less(children, 0)
    reached = (inner & np.less(children, splits)) | (leaf & np.greater_equal(children, -leaves))
    return bool(reached.all() and (column >= 0).all() and (column < len(COLUMNS)).all() and not (kind & 1).any())


def _values(block: str) -> dict[str, str]:
    """Lines ``key=value``, each key once: which of two LightGBM would take is its own business."""
    lines = [line.partition("=")[::2] for line in block.split("\n") if line]
    found = dict(lines)
    if len(found) < len(lines):
        raise ValueError("is damaged: a key stands there twice")
    return found


def _count(text: str) -> int:
    """How many numbers stand in a line."""
    numbers = text.split(" ")
    return len(numbers) if all(numbers) else 0


def _integers(text: str) -> NDArray[np.int64]:
    """Whole numbers as LightGBM reads them, too. Raises ValueError for anything else."""
    if not re.fullmatch(r"-?[0-9]{1,9}( -?[0-9]{1,9})*", text):
        raise ValueError("is damaged: a number is none")
    return np.array(text.split(" "), dtype=np.int64)


# What the learners see


def table(battles: Features, scores: Array, *, exchanged: bool = False) -> Table:
    """:data:`COLUMNS` of n battles, as they are or with A and B exchanged; shape ``[n, len(COLUMNS)]``, float32.

    Exchanging permutes the columns of A and B and negates those of A - B, exactly.
    """
    a, b = battles.answers[:, 0], battles.answers[:, 1]
    if exchanged:
        a, b, scores = b, a, -scores
    return np.concatenate([battles.prompt, battles.pair, a, b, a - b, scores[:, None]], axis=1, dtype=np.float32)


def word_scores(words: csr_matrix, weights: NDArray[np.floating]) -> Array:
    """How much better A's words are than B's; shape ``[n]``. Negated exactly when A and B are exchanged."""
    return (words @ weights.astype(np.float64)) * _scale(words)


def _scale(words: csr_matrix) -> Array:
    """Of each row, so that long answers weigh no more than short ones: about one over its norm."""
    squares = words.copy()
    squares.data = squares.data.astype(np.float64) ** 2
    return np.asarray(1 / np.sqrt(1 + np.asarray(squares.sum(axis=1)).ravel()))


# Training


def fit(
    battles: Features,
    targets: NDArray[np.float32],
    groups: NDArray[np.int64],
    *,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> FeaturesModel:
    """Train a model.

    Parameters
    ----------
    battles:
        Of n training battles.
    targets:
        Probabilities of A, B and tie, shape ``[n, 3]``: one 1 a row for a vote, rows that sum to 1 for soft labels.
        Rows of zeros are left out.
    groups:
        Shape ``[n]``, equal for equal prompts. Battles of one prompt are never on both sides of an inner split.
    seed:
        Of the inner splits and of LightGBM's sampling. The same seed gives the same model on any number of threads.
    threads:
        Of LightGBM; 0 is as many as there are cores.
    progress:
        Told how far it is.
    """
    told = progress or (lambda what, done, total: None)
    prior = _prior(targets)
    nothing_more = FeaturesModel(np.zeros(BUCKETS, dtype=np.float32), prior, None, threads)
    taught = np.flatnonzero(targets.any(axis=1))
    if len(taught) < len(battles):
        battles, targets, groups = battles.take(taught), targets[taught], groups[taught]
    if len(battles) < MIN_BATTLES or len(np.unique(groups)) < INNER_FOLDS:
        return nothing_more
    folds = split_folds(groups, targets.argmax(axis=1).astype(np.int64), INNER_FOLDS, seed)
    folds = [fold for fold in folds if len(fold[1])]  # none may be left for some where one prompt has most battles
    if len(folds) < 2:
        return nothing_more
    margins = (targets[:, 0] - targets[:, 1]).astype(np.float64)
    weights, scores = _fit_words(battles.words, margins, folds, told)
    rows = np.concatenate([table(battles, scores), table(battles, scores, exchanged=True)])
    booster = _fit_booster(rows, np.concatenate([targets, targets[:, SWAPPED]]), folds, seed, threads, told)
    return FeaturesModel(weights, prior, booster, threads)


def _prior(targets: NDArray[np.float32]) -> Array:
    """Shares of the outcomes, smoothed, the same for A and B."""
    totals = targets.sum(axis=0, dtype=np.float64) + PRIOR_WEIGHT / len(OUTCOMES)
    totals = (totals + totals[list(SWAPPED)]) / 2
    return totals / totals.sum()


WORD_PENALTY = 30.0
"""Of the squared weights in the linear model of words, beside squared errors summed over battles."""
WORD_STEPS = 12
"""Of conjugate gradients; more changed nothing."""


def _fit_words(
    words: csr_matrix,
    margins: NDArray[np.floating],
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    progress: Progress,
) -> tuple[NDArray[np.float32], Array]:
    """Weights of the words, and scores of the training battles by models that did not see their prompts."""
    scores = np.zeros(len(margins))
    for number, (inside, outside) in enumerate(folds):
        progress("words", number, len(folds) + 1)
        scores[outside] = word_scores(words[outside], _ridge(words[inside], margins[inside]))
    progress("words", len(folds), len(folds) + 1)
    weights = _ridge(words, margins)
    progress("words", len(folds) + 1, len(folds) + 1)
    return weights, scores


def _ridge(words: csr_matrix, margins: NDArray[np.floating]) -> NDArray[np.float32]:
    """Ridge regression of "A won" minus "B won" on the words A has more of, rare words weighing more.

    Solved by conjugate gradients on the normal equations. Sums are numpy's and not BLAS's, whose order of addition
    depends on the number of threads.
    """
    from scipy.sparse import diags

    occurring = np.bincount(words.indices, minlength=words.shape[1])
    rarity = np.sqrt(1 + np.log((1 + words.shape[0]) / (1 + occurring)))
    scaled = (diags(_scale(words)) @ words @ diags(rarity)).tocsr()
    transposed = scaled.T.tocsr()
    weights = np.zeros(words.shape[1])
    residual = transposed @ margins
    direction, size = residual.copy(), _dot(residual, residual)
    for _ in range(WORD_STEPS):
        if size < 1e-12:
            break
        image = transposed @ (scaled @ direction) + WORD_PENALTY * direction
        step = size / _dot(direction, image)
        weights += step * direction
        residual -= step * image
        before, size = size, _dot(residual, residual)
        direction = residual + size / before * direction
    return (weights * rarity).astype(np.float32)


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b))


def _fit_booster(
    rows: Table,
    targets: NDArray[np.float32],
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    seed: int,
    threads: int,
    progress: Progress,
) -> Booster:
    """The booster on all rows (battles, then the same exchanged), for as many rounds as served the inner folds best."""
    lightgbm = _lightgbm()
    battles = len(rows) // 2
    settings = Settings.of(battles)
    parameters = settings.parameters(seed, threads)
    curves = []
    tried = folds if battles < SMALL_DATASET else folds[:1]
    for inside, outside in tried:
        learnt, held = (_dataset(rows, targets, np.concatenate([part, part + battles])) for part in (inside, outside))
        curve: dict[str, dict[str, list[float]]] = {}
        callbacks = [
            lightgbm.record_evaluation(curve),
            lightgbm.early_stopping(settings.patience, verbose=False),
            _told("rounds", settings.most_rounds, progress),
        ]
        lightgbm.train(parameters, learnt, settings.most_rounds, valid_sets=[held], callbacks=callbacks)
        curves.append(next(iter(curve["valid_0"].values())))
    length = min(map(len, curves))
    best = int(np.mean([curve[:length] for curve in curves], axis=0).argmin()) + 1
    everything = _dataset(rows, targets, np.arange(len(rows)))
    booster: Booster = lightgbm.train(parameters, everything, best, callbacks=[_told("training", best, progress)])
    return booster


def _dataset(rows: Table, targets: NDArray[np.float32], which: NDArray[np.integer]) -> Any:
    """A LightGBM data set in which a row stands once for every outcome it has a share of, weighing that share."""
    lightgbm = _lightgbm()
    place, labels = np.nonzero(targets[which] > 0)
    which = which[place]
    return lightgbm.Dataset(
        rows[which], labels, weight=targets[which, labels], params={"max_bin": 63, "verbosity": -1}, free_raw_data=True
    )


def _told(what: str, total: int, progress: Progress) -> Callable[[Any], None]:
    """A LightGBM callback that reports the round."""

    def after_round(environment: Any) -> None:
        progress(what, environment.iteration + 1, total)

    return after_round

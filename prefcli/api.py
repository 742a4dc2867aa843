"""prefcli from Python: the verbs as functions of plain arguments, and trained runs in memory.

Everything here is also a name of the package: ``prefcli.load``, ``prefcli.train``, ... Nothing prints; errors are
exceptions of :mod:`prefcli.errors`; notes, warnings and progress go to the standard library's ``logging``, or to a
``reporter``. ``workspace`` is the folder of caches and runs, by default ``$PREFCLI_WORKSPACE``, else ``.prefcli``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefcli import metrics, pipeline
from prefcli.battles import PathLike, SourceLike, TableLike
from prefcli.battles import Source as Source
from prefcli.console import LOGGING
from prefcli.console import Console as Console
from prefcli.data.tables import clip_and_renormalize
from prefcli.errors import InputError as InputError
from prefcli.errors import Interrupted as Interrupted
from prefcli.errors import ModelError as ModelError
from prefcli.errors import NetworkError as NetworkError
from prefcli.errors import PrefcliError as PrefcliError
from prefcli.exporting.merge import MergeResult
from prefcli.metrics import Score as Score
from prefcli.options import PairOptions, resolve, typed
from prefcli.options import PredictOptions as PredictOptions
from prefcli.options import RankOptions as RankOptions
from prefcli.options import TrainOptions as TrainOptions
from prefcli.outcomes import WINNER_COLUMNS
from prefcli.pipeline import compare_judges as compare_judges
from prefcli.pipeline import compare_runs as compare_runs
from prefcli.pipeline import compare_scores as compare_scores
from prefcli.pipeline import diff_runs as diff_runs
from prefcli.pipeline import eda as eda
from prefcli.pipeline import preprocess as preprocess
from prefcli.pipeline import preprocess_table as preprocess_table
from prefcli.pipeline import push as push
from prefcli.pipeline import remove_runs as remove_runs
from prefcli.pipeline import report_scores as report_scores
from prefcli.pipeline import show_run as show_run
from prefcli.pipeline.ablate import Ablation
from prefcli.pipeline.demo import DemoResult
from prefcli.pipeline.estimate import Estimate
from prefcli.pipeline.predict import PredictResult
from prefcli.pipeline.rank import RankResult
from prefcli.pipeline.report import ReportResult
from prefcli.pipeline.score import ScoreResult
from prefcli.pipeline.stages import source_of
from prefcli.pipeline.train import TrainResult
from prefcli.pipeline.tune import Tuning
from prefcli.prediction.comparison import Comparison as Comparison
from prefcli.prediction.pairs import PairFile
from prefcli.prediction.predictor import Predictor as Predictor
from prefcli.prediction.predictor import Text
from prefcli.reporting import Reporter
from prefcli.storage.workspace import Workspace

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prefcli.exporting.onnx import ExportResult
    from prefcli.keywords import AblateKeywords, PredictKeywords, RankKeywords, TrainKeywords

runs, prune_runs = pipeline.list_runs, pipeline.prune

Verb = TypeVar("Verb", bound=Callable[..., Any])
WorkspaceLike: TypeAlias = Workspace | PathLike | None


def _with_options(*kinds: type[TrainOptions | PredictOptions | PairOptions], see: str = "") -> Callable[[Verb], Verb]:
    """Show the options of some classes in a verb's signature and docstring, where ``help`` and notebooks look.

    ``see`` is a verb whose docstring has them already.
    """
    options = {getattr(kind, "PREFIX", "") + f.name: f for kind in kinds for f in dataclasses.fields(kind)}
    wrap = functools.partial(textwrap.fill, width=112, initial_indent="    ", subsequent_indent="    ")
    described = [f"{name}:\n{wrap(f.metadata['help'])}" for name, f in options.items()]

    def add(verb: Verb) -> Verb:
        signature = inspect.signature(verb)
        *own, _ = signature.parameters.values()  # the last one stands for the options
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for name, f in options.items()
            if name not in signature.parameters
        ]
        verb.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        lines = [f"Those of :func:`{see}`."] if see else described
        verb.__doc__ = "\n".join([inspect.cleandoc(verb.__doc__ or ""), "", "Options", "-------", *lines])
        return verb

    return add


def _typed(kind: type[TrainOptions | PredictOptions | PairOptions], given: Mapping[str, Any]) -> dict[str, Any]:
    hint = f"Options are the fields of prefcli.options.{kind.__name__}."
    return typed(kind, given, prefix=getattr(kind, "PREFIX", ""), hint=hint)


def load(  # noqa: PLR0913  (what the command line gives)
    *runs: PathLike,
    workspace: WorkspaceLike = None,
    device: str = "auto",
    precision: str = "auto",
    fast_attention: bool = True,
    encoder: PathLike | None = None,
    swap_average: bool = False,
    calibrated: bool = True,
    as_source: str | None = None,
    temperature: float | None = None,
) -> Predictor:
    """Load a trained run, or several that are blended.

    Parameters
    ----------
    runs:
        Folders of runs, names in the workspace, or names on the hub (``hf://owner/name``); none: the latest run.
    workspace:
        Where runs are found by name.
    device, precision, fast_attention, encoder, swap_average, calibrated, as_source, temperature:
        See :class:`prefcli.PredictOptions`.

    Raises
    ------
    InputError
        If there is no such run.
    ModelError
        If a run is damaged or cannot be loaded.
    NetworkError
        If the hub does not answer.
    """
    given = {
        "models": runs,
        "swap_average": swap_average,
        "calibrated": calibrated,
        "as_source": as_source,
        "temperature": temperature,
        "precision": precision,
        "device": device,
        "fast_attention": fast_attention,
        "encoder": encoder,
    }
    options = PredictOptions(**_typed(PredictOptions, given))
    options.check()
    return Predictor(pipeline.find_runs(Workspace.of(workspace), options.models), options)


def from_table(table: TableLike, *, workspace: WorkspaceLike = None, **reading: Any) -> Source:
    """Say how a table in memory is read; verbs that take files take what this returns.

    Parameters
    ----------
    table:
        A DataFrame (pandas or polars), a pyarrow Table, a ``datasets.Dataset``, rows as dictionaries, or a dictionary
        of columns. It is kept as JSON lines in the workspace.
    workspace:
        Where.
    reading:
        Fields of :class:`prefcli.Source`: ``columns={"prompt": "question"}``, ``outcome``, ``each``, ``by``, ...

    Raises
    ------
    InputError
        If it is no table, or empty.
    """
    return Source.of(source_of(table, Workspace.of(workspace)), **reading)


@overload
def score(
    predictions: PathLike, labels: SourceLike, *, outcomes: int | None = ..., renormalize: bool = ..., seed: int = ...,
    workspace: WorkspaceLike = ..., reporter: Reporter = ...,
) -> ScoreResult: ...  # fmt: skip


@overload
def score(
    predictions: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = ..., outcomes: int | None = ...,
    renormalize: bool = ..., seed: int = ...,
) -> Score: ...  # fmt: skip


def score(
    predictions: Any,
    labels: Any,
    *,
    groups: ArrayLike | None = None,
    outcomes: int | None = None,
    renormalize: bool = False,
    seed: int = 0,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
) -> Score:
    """Compute the metrics of ``prefcli score``, of a file of predictions or of arrays.

    Parameters
    ----------
    predictions:
        A file with ``id`` and the winner columns, joined with the labels by id. Or an array ``[n, 3]``: A, B, tie; rows
        sum to 1 within 1e-6. Or a DataFrame with the winner columns, in any order.
    labels:
        Of a file: battles with outcomes. Of an array: shape ``[n]``, 0 where A won, 1 where B won, 2 for a tie; or a
        DataFrame with the winner columns as 0 and 1, its rows in the order of the predictions.
    groups:
        Of arrays: shape ``[n]``, integers: battles of one group, such as those of one prompt, are resampled together
        for the interval. Of files they are the prompts.
    outcomes:
        2 scores the probabilities given that there is no tie, 3 as they are; None takes 2 if none of at least 30 labels
        is a tie.
    renormalize:
        Clip to [1e-15, 1] and divide by the sum first, as the competition's grader does.
    seed:
        Seed of the bootstrap.
    workspace:
        Of files: where it is recorded which runs made the predictions, to warn of battles they were trained on.
    reporter:
        Of files: receives warnings.

    Raises
    ------
    InputError
        If both do not fit together, values are not probabilities or labels, or one of two outcomes is a tie.
    """
    if isinstance(predictions, (str, Path)):
        if groups is not None:
            raise InputError("groups are of arrays: those of a file are its prompts", hint="Leave groups out.")
        return pipeline.score(
            predictions, labels, outcomes=outcomes, renormalize=renormalize, seed=seed,
            workspace=Workspace.of(workspace), reporter=reporter,
        )  # fmt: skip
    _check_same_ids(predictions, labels)
    try:
        values, truth = np.asarray(_winner_columns(predictions), dtype=np.float64), _labels(labels)
        if renormalize and values.ndim == 2:
            values = clip_and_renormalize(values)
        units = None if groups is None else np.asarray(groups, dtype=np.int64)
        return metrics.score(values, truth, groups=units, outcomes=outcomes, seed=seed)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None


def _winner_columns(table: Any) -> Any:
    """A table's winner columns in the order A, B, tie; anything else as it is."""
    if not set(WINNER_COLUMNS) <= set(_column_names(table)):
        return table
    return np.column_stack([np.asarray(table[name]) for name in WINNER_COLUMNS])


def _column_names(table: Any) -> list[str]:
    """Of a DataFrame, an Arrow table or a dataset; none of an array."""
    names = getattr(table, "column_names", None)  # the columns of an Arrow table are its values
    return list(map(str, getattr(table, "columns", ()) if names is None else names))


def _labels(labels: Any) -> NDArray[np.integer[Any]]:
    truth = np.asarray(_winner_columns(labels))
    if truth.ndim == 2 and truth.shape[1] == 3 and np.isin(truth, (0, 1)).all() and (truth.sum(axis=1) == 1).all():
        return np.asarray(truth.argmax(axis=1))
    if truth.dtype.kind not in "iu" or truth.ndim != 1 or not np.isin(truth, (0, 1, 2)).all():
        raise InputError(
            "labels must be integers: 0 (A won), 1 (B won), 2 (tie), one per battle",
            hint=f"Or a DataFrame with the columns {', '.join(WINNER_COLUMNS)}, a single 1 in each row.",
        )
    return truth


def _check_same_ids(predictions: Any, labels: Any) -> None:
    """Refuse two DataFrames whose rows are not the same battles."""
    if all("id" in _column_names(table) for table in (predictions, labels)):
        ours, theirs = (list(map(str, table["id"])) for table in (predictions, labels))
        if ours != theirs:
            raise InputError(
                "the ids of predictions and labels are not the same in the same order",
                hint="Sort or join both by id first.",
            )


@_with_options(TrainOptions)
def train(
    source: SourceLike | None = None,
    *,
    output: PathLike | None = None,
    resume: PathLike | None = None,
    force: bool = False,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[TrainKeywords],
) -> TrainResult:
    """Train a model on battles with outcomes; returns where its run is and how good it is.

    Parameters
    ----------
    source:
        A file or several, a :class:`prefcli.Source` that says how they are read, or a table in memory; by default what
        ``preprocess`` last left, else ``train.csv`` here.
    output, force:
        The run's folder, by default a new one in the workspace; whether to overwrite it.
    resume:
        A run to continue, by folder or name, with its own options.
    workspace, reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError
        If an option does not exist or its value is impossible, or the battles cannot be read.
    ModelError, NetworkError
        If the encoder cannot be had.
    Interrupted
        On Ctrl-C or SIGTERM, after a checkpoint: ``resume`` continues.
    """
    given = _typed(TrainOptions, options)
    if resume is not None and (given or source is not None or output is not None):
        raise InputError(
            "resume continues a run as it was, with its own battles, options and folder",
            hint="Leave out everything but resume, workspace and reporter.",
        )
    train_options, origins = resolve(given)
    place = Workspace.of(workspace)
    return pipeline.train(
        None if source is None else source_of(source, place),
        place,
        train_options,
        origins=origins,
        output=output,
        resume=resume,
        force=force,
        command="prefcli.train",
        reporter=reporter,
    )


@_with_options(TrainOptions, see="train")
def estimate(
    source: SourceLike | None = None,
    *,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[TrainKeywords],
) -> Estimate:
    """Estimate how long :func:`train` with the same arguments would take, and its memory.

    Parameters
    ----------
    source, workspace, reporter:
        As for :func:`train`.

    Raises
    ------
    InputError, ModelError, NetworkError
        As :func:`train` does.
    """
    train_options, _ = resolve(_typed(TrainOptions, options))
    place = Workspace.of(workspace)
    battles = None if source is None else source_of(source, place)
    return pipeline.estimate_training(battles, place, train_options, reporter=reporter)


@_with_options(TrainOptions, see="train")
def tune(
    source: SourceLike,
    *,
    trials: int = 20,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[TrainKeywords],
) -> Tuning:
    """Try settings on folds; ``prefcli.train(source, **options, **tuning.settings)`` trains with what is better.

    Parameters
    ----------
    source, workspace, reporter:
        As for :func:`train`. The same call goes on where one was stopped.
    trials:
        How many settings, the default among them. Those that ``options`` give are not tuned.

    Raises
    ------
    InputError, ModelError, NetworkError, Interrupted
        As :func:`train` does.
    MissingPackage
        If optuna is not installed.
    """
    given = _typed(TrainOptions, options)
    train_options, _ = resolve(given)
    return pipeline.tune(source, Workspace.of(workspace), train_options, trials=trials, fixed=given, reporter=reporter)


@_with_options(TrainOptions, see="train")
def ablate(
    source: SourceLike,
    *,
    seeds: int = 1,
    output: PathLike | None = None,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[AblateKeywords],
) -> Ablation:
    """Measure where softmax belongs: five trainings, six rows; see :func:`prefcli.pipeline.ablate`.

    Parameters
    ----------
    source, workspace, reporter:
        As for :func:`train`.
    seeds:
        How many times each model is trained: with ``seed``, the one after it, and so on.
    output:
        Folder of the runs and the table; by default in the workspace.

    Raises
    ------
    InputError
        If nothing is held out to score on, or the architecture has no loss on logits.
    """
    train_options, _ = resolve(_typed(TrainOptions, options))
    folder = None if output is None else Path(output)
    return pipeline.ablate(
        source, Workspace.of(workspace), train_options, seeds=seeds, output=folder, reporter=reporter
    )


@_with_options(PredictOptions)
def predict(
    source: SourceLike,
    output: PathLike,
    *,
    calibrate: SourceLike | None = None,
    force: bool = False,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[PredictKeywords],
) -> PredictResult:
    """Write probabilities for every battle of a file into a file, in memory that does not grow with them.

    ``prefcli.load(RUN).predict(table)`` gives them in memory.

    Parameters
    ----------
    source:
        Battles, with or without outcomes: files, a :class:`prefcli.Source`, or a table in memory.
    output, force:
        A file, CSV, JSON lines or Parquet by its name; whether to overwrite it.
    calibrate:
        Battles with outcomes to fit temperature and weights on, instead of the run's held-out ones.
    workspace, reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError, ModelError
        If options, battles or output do not allow it; if a run cannot be loaded.
    """
    return pipeline.predict(
        source,
        Workspace.of(workspace),
        output,
        PredictOptions(**_typed(PredictOptions, options)),
        calibrate=calibrate,
        force=force,
        reporter=reporter,
    )


@_with_options(PredictOptions)
def compare(
    prompt: Text,
    response_a: Text,
    response_b: Text,
    *,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[PredictKeywords],
) -> Comparison:
    """Judge two answers to a prompt: probabilities, both orders of the answers, what was cut, and what moved them.

    ``prefcli.load(RUN).compare(...)`` judges many without loading the run each time.

    Parameters
    ----------
    prompt, response_a, response_b:
        Text, or the turns of a conversation as a list.
    workspace, reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError, ModelError
        If options or texts do not allow it; if a run cannot be loaded.
    """
    row = {"prompt": prompt, "response_a": response_a, "response_b": response_b}
    return pipeline.compare(
        row,
        Workspace.of(workspace),
        PredictOptions(**_typed(PredictOptions, options)),
        reading=Source((), format="generic"),
        reporter=reporter,
    )


@_with_options(RankOptions, PairOptions)
def rank(
    source: SourceLike,
    output: PathLike,
    *,
    best: PathLike | None = None,
    pairs: PathLike | None = None,
    force: bool = False,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
    **options: Unpack[RankKeywords],
) -> RankResult:
    """Rank the answers to each prompt of a file, into a file.

    ``prefcli.load(RUN).rank(prompt, answers)`` ranks in memory.

    Parameters
    ----------
    source:
        Prompts with several answers each: files, a :class:`prefcli.Source`, or a table in memory.
    output, force:
        A file, JSON lines or Parquet by its name; whether to overwrite it.
    best, pairs:
        Also a file of the best answers, and one of preference pairs, which the options ``pairs_...`` are about.
    workspace, reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError, ModelError
        If options, answers or output do not allow it; if a run cannot be loaded.
    """
    of_pairs = {name: value for name, value in options.items() if name.startswith(PairOptions.PREFIX)}
    rank_options = RankOptions(
        **_typed(RankOptions, {name: value for name, value in options.items() if name not in of_pairs})
    )
    pair_options = PairOptions(**_typed(PairOptions, of_pairs))
    if of_pairs and pairs is None:
        raise InputError(f"{next(iter(of_pairs))} is for a file of pairs", hint="Name it: pairs=FILE.")
    pair_file = None if pairs is None else PairFile(Path(pairs), pair_options)
    return pipeline.rank(
        source, Workspace.of(workspace), output, rank_options,
        best=best, pairs=pair_file, force=force, reporter=reporter,
    )  # fmt: skip


@overload
def export(run: PathLike, *, onnx: PathLike, int8: bool = ..., force: bool = ...,
           workspace: WorkspaceLike = ..., reporter: Reporter = ...) -> ExportResult: ...  # fmt: skip


@overload
def export(run: PathLike, *, merged: PathLike, encoder: PathLike | None = ..., force: bool = ...,
           workspace: WorkspaceLike = ..., reporter: Reporter = ...) -> MergeResult: ...  # fmt: skip


def export(
    run: PathLike,
    *,
    onnx: PathLike | None = None,
    int8: bool = False,
    merged: PathLike | None = None,
    encoder: PathLike | None = None,
    force: bool = False,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
) -> ExportResult | MergeResult:
    """Convert a run; see :func:`prefcli.pipeline.export` and :func:`prefcli.pipeline.merge`.

    Parameters
    ----------
    run:
        A run's folder or name.
    onnx, int8:
        Folder for an ONNX export; whether to quantise its weights.
    merged, encoder:
        Folder for a run with adapters merged and folds averaged; where the encoder is now, if it has moved.
    force:
        Overwrite the folder.
    workspace, reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError
        Unless exactly one of ``onnx`` and ``merged`` is given and the run allows it.
    """
    if (onnx is None) == (merged is None):
        raise InputError("export makes one thing: onnx=DIR or merged=DIR", hint="Name one of them.")
    if merged is not None:
        folder = Workspace.of(workspace).find_run(run)
        encoder = None if encoder is None else str(encoder)
        return pipeline.merge(folder, Path(merged), encoder=encoder, force=force, reporter=reporter)
    assert onnx is not None
    return pipeline.export(run, Workspace.of(workspace), onnx, int8=int8, force=force, reporter=reporter)


def report(
    run: PathLike,
    output: PathLike | None = None,
    *,
    by: str | None = None,
    force: bool = False,
    workspace: WorkspaceLike = None,
    reporter: Reporter = LOGGING,
) -> ReportResult:
    """Write a page about a run: how good it is, where it fails, how it was trained, what to try next.

    Parameters
    ----------
    run:
        A run's folder or name.
    output, force:
        The page, by default ``NAME.html`` here; whether to overwrite it.
    by:
        Also group battles by this column of the training file.
    workspace, reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError
        If the run held no battles out, or the page exists.
    ModelError
        If the run is unfinished or damaged.
    """
    return pipeline.report(run, Workspace.of(workspace), output, by=by, force=force, reporter=reporter)


def demo(folder: PathLike = "prefcli-demo", *, force: bool = False, reporter: Reporter = LOGGING) -> DemoResult:
    """Write synthetic battles into a folder and run all verbs on them; see :func:`prefcli.pipeline.demo`.

    Parameters
    ----------
    folder, force:
        Where its files and its workspace are; whether to overwrite them.
    reporter:
        See :mod:`prefcli.api`.

    Raises
    ------
    InputError
        If the folder is not empty and ``force`` is not given.
    """
    return pipeline.demo(Path(folder), force=force, reporter=reporter)

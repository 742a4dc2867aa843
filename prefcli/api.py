"""prefcli from Python: the verbs as functions of plain arguments, and trained runs in memory.

Everything here but ``eda``, which is a module of the package, is also a name of the package itself: ``prefcli.load``,
``prefcli.train``, ... Nothing prints; errors are exceptions of :mod:`prefcli.errors`. ``workspace`` is the folder of
caches and runs, ``reporter`` receives notes, warnings and progress.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike

from prefcli import metrics, pipeline
from prefcli.battles import PathLike, SourceLike
from prefcli.battles import Source as Source
from prefcli.errors import InputError, did_you_mean
from prefcli.exporting.merge import MergeResult
from prefcli.metrics import Score
from prefcli.options import PairOptions, PredictOptions, RankOptions, TrainOptions, resolve
from prefcli.pipeline import compare_judges as compare_judges
from prefcli.pipeline import compare_scores as compare_scores
from prefcli.pipeline import eda as eda
from prefcli.pipeline import preprocess as preprocess
from prefcli.pipeline import push as push
from prefcli.pipeline.estimate import Estimate
from prefcli.pipeline.predict import PredictResult
from prefcli.pipeline.rank import RankResult
from prefcli.pipeline.report import ReportResult
from prefcli.pipeline.train import TrainResult
from prefcli.prediction.pairs import PairFile
from prefcli.prediction.predictor import Predictor
from prefcli.reporting import SILENT, Reporter
from prefcli.storage.workspace import WORKSPACE, Workspace

if TYPE_CHECKING:
    from prefcli.exporting.onnx import ExportResult

runs = pipeline.list_runs


def load(
    *runs: PathLike,
    workspace: PathLike = WORKSPACE,
    device: str = "auto",
    precision: str = "auto",
    fast_attention: bool = True,
    encoder: PathLike | None = None,
    swap_average: bool = False,
    calibrated: bool = True,
) -> Predictor:
    """Load a trained run, or several that are blended.

    Parameters
    ----------
    runs:
        Folders of runs, names in the workspace, or names on the hub (``hf://owner/name``); none: the latest run.
    device, precision, fast_attention, encoder, swap_average, calibrated:
        See :class:`prefcli.options.PredictOptions`.

    Raises
    ------
    InputError
        If there is no such run.
    ModelError
        If a run is damaged or cannot be loaded.
    NetworkError
        If the hub does not answer.
    """
    options = PredictOptions(
        models=tuple(map(str, runs)),
        swap_average=swap_average,
        calibrated=calibrated,
        precision=precision,
        device=device,
        fast_attention=fast_attention,
        encoder=None if encoder is None else str(encoder),
    )
    options.check()
    return Predictor(pipeline.find_runs(Workspace(workspace), options.models), options)


def score(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    outcomes: int | None = None,
    seed: int = 0,
) -> Score:
    """Compute the metrics of ``prefcli score`` for arrays.

    Parameters
    ----------
    probabilities:
        Shape ``[n, 3]``: A, B, tie; rows sum to 1 within 1e-6.
    labels:
        Shape ``[n]``: 0 where A won, 1 where B won, 2 for a tie.
    groups:
        Shape ``[n]``, integers: battles of one group, such as those of one prompt, are resampled together for the
        interval.
    outcomes:
        2 scores the probabilities given that there is no tie, 3 as they are; None takes 2 if none of at least 30 labels
        is a tie.
    seed:
        Seed of the bootstrap.

    Raises
    ------
    InputError
        If shapes do not match, values are not probabilities or labels, or one of two outcomes is a tie.
    """
    try:
        values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
        if truth.dtype.kind not in "iu" or truth.ndim != 1 or not np.isin(truth, (0, 1, 2)).all():
            raise InputError("labels must be integers: 0 (A won), 1 (B won), 2 (tie), one per battle")
        units = None if groups is None else np.asarray(groups, dtype=np.int64)
        return metrics.score(values, truth, groups=units, outcomes=outcomes, seed=seed)
    except ValueError as error:
        raise InputError(str(error)) from None


def train(
    source: SourceLike | None = None,
    *,
    output: PathLike | None = None,
    resume: PathLike | None = None,
    force: bool = False,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
    **options: Any,
) -> TrainResult:
    """Train a model; see :func:`prefcli.pipeline.train`.

    Parameters
    ----------
    source:
        Battles with outcomes; by default what ``preprocess`` last left.
    output, resume, force:
        The run's folder, a run to continue, whether to overwrite.
    options:
        The fields of :class:`prefcli.options.TrainOptions`: ``encoder="tiny"``, ``max_length=256``, ``recipe="fast"``.

    Raises
    ------
    InputError
        If an option does not exist or its value is impossible.
    """
    _check_names(options, TrainOptions)
    train_options, origins = resolve(options)
    return pipeline.train(
        source,
        Workspace(workspace),
        train_options,
        origins=origins,
        output=output,
        resume=resume,
        force=force,
        command="prefcli.train",
        reporter=reporter,
    )


def predict(
    source: SourceLike,
    output: PathLike,
    *,
    calibrate: SourceLike | None = None,
    force: bool = False,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
    **options: Any,
) -> PredictResult:
    """Write probabilities for every battle of a file into a file; see :func:`prefcli.pipeline.predict`.

    Parameters
    ----------
    options:
        The fields of :class:`prefcli.options.PredictOptions`: ``models=["my-run"]``, ``swap_average=True``, ...
    """
    _check_names(options, PredictOptions)
    options["models"] = tuple(map(str, options.get("models", ())))
    return pipeline.predict(
        source,
        Workspace(workspace),
        output,
        PredictOptions(**options),
        calibrate=calibrate,
        force=force,
        reporter=reporter,
    )


def rank(
    source: SourceLike,
    output: PathLike,
    *,
    best: PathLike | None = None,
    pairs: PathLike | None = None,
    force: bool = False,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
    **options: Any,
) -> RankResult:
    """Rank the answers to each prompt of a file, into a file; see :func:`prefcli.pipeline.rank`.

    Parameters
    ----------
    options:
        The fields of :class:`prefcli.options.RankOptions`: ``models=["my-run"]``, ``method="mean-win"``, ...; and those
        of :class:`prefcli.options.PairOptions` after ``pairs_``: ``pairs_select="all"``, ...
    """
    prefix = PairOptions.PREFIX
    of_pairs = {name.removeprefix(prefix): options.pop(name) for name in list(options) if name.startswith(prefix)}
    _check_names(of_pairs, PairOptions)
    _check_names(options, RankOptions)
    if of_pairs and pairs is None:
        raise TypeError(f"{prefix}{next(iter(of_pairs))} needs pairs=FILE")
    pair_file = None if pairs is None else PairFile(Path(pairs), PairOptions(**of_pairs))
    options["models"] = tuple(map(str, options.get("models", ())))
    return pipeline.rank(
        source, Workspace(workspace), output, RankOptions(**options),
        best=best, pairs=pair_file, force=force, reporter=reporter,
    )  # fmt: skip


@overload
def export(run: PathLike, *, onnx: PathLike, int8: bool = ..., force: bool = ...,
           workspace: PathLike = ..., reporter: Reporter = ...) -> ExportResult: ...  # fmt: skip


@overload
def export(run: PathLike, *, merged: PathLike, encoder: PathLike | None = ..., force: bool = ...,
           workspace: PathLike = ..., reporter: Reporter = ...) -> MergeResult: ...  # fmt: skip


def export(
    run: PathLike,
    *,
    onnx: PathLike | None = None,
    int8: bool = False,
    merged: PathLike | None = None,
    encoder: PathLike | None = None,
    force: bool = False,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
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

    Raises
    ------
    InputError
        Unless exactly one of ``onnx`` and ``merged`` is given and the run allows it.
    """
    if (onnx is None) == (merged is None):
        raise InputError("export makes one thing: onnx=DIR or merged=DIR", hint="Name one of them.")
    if merged is not None:
        folder = Workspace(workspace).find_run(run)
        encoder = None if encoder is None else str(encoder)
        return pipeline.merge(folder, Path(merged), encoder=encoder, force=force, reporter=reporter)
    assert onnx is not None
    return pipeline.export(run, Workspace(workspace), onnx, int8=int8, force=force, reporter=reporter)


def report(
    run: PathLike,
    output: PathLike | None = None,
    *,
    by: str | None = None,
    force: bool = False,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
) -> ReportResult:
    """Write a page about a run; see :func:`prefcli.pipeline.report`. Of predictions: ``pipeline.report_scores``."""
    return pipeline.report(run, Workspace(workspace), output, by=by, force=force, reporter=reporter)


def estimate(
    source: SourceLike | None = None, *, workspace: PathLike = WORKSPACE, reporter: Reporter = SILENT, **options: Any
) -> Estimate:
    """Estimate how long :func:`train` with the same arguments would take, and its memory; see ``train --estimate``."""
    _check_names(options, TrainOptions)
    return pipeline.estimate_training(source, Workspace(workspace), resolve(options)[0], reporter=reporter)


def _check_names(options: dict[str, Any], kind: type[TrainOptions | PredictOptions | PairOptions]) -> None:
    if unknown := sorted(set(options) - {field.name for field in fields(kind)}):
        raise InputError(
            f"there is no option {unknown[0]!r}",
            hint=did_you_mean(unknown[0], [field.name for field in fields(kind)])
            or f"Options are the fields of prefcli.options.{kind.__name__}.",
        )

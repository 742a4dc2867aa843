"""prefcli from Python: the verbs as functions of plain arguments, and trained runs in memory.

Everything here but ``eda``, which is a module of the package, is also a name of the package itself: ``prefcli.load``,
``prefcli.train``, ... Nothing prints; errors are exceptions of :mod:`prefcli.errors`. ``workspace`` is the folder of
caches and runs, ``reporter`` receives notes, warnings and progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike

from prefcli import metrics, pipeline
from prefcli.battles import Source
from prefcli.eda import Eda
from prefcli.errors import InputError
from prefcli.exporting.merge import MergeResult
from prefcli.metrics import Score
from prefcli.options import PredictOptions, TrainOptions, resolve
from prefcli.pipeline import PredictResult, PreprocessResult, TrainResult
from prefcli.pipeline.estimate import Estimate
from prefcli.prediction.predictor import Predictor
from prefcli.reporting import SILENT, Reporter
from prefcli.storage.hub import PushResult
from prefcli.storage.workspace import Workspace

if TYPE_CHECKING:
    from prefcli.exporting.onnx import ExportResult

PathLike = str | Path
WORKSPACE = ".prefcli"


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
    return Predictor(pipeline.find_runs(Workspace(Path(workspace)), options.models), options)


def score(probabilities: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0) -> Score:
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
    seed:
        Seed of the bootstrap.

    Raises
    ------
    InputError
        If shapes do not match, or values are not probabilities or labels.
    """
    try:
        values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
        if truth.dtype.kind not in "iu" or truth.ndim != 1 or not np.isin(truth, (0, 1, 2)).all():
            raise InputError("labels must be integers: 0 (A won), 1 (B won), 2 (tie), one per battle")
        units = None if groups is None else np.asarray(groups, dtype=np.int64)
        return metrics.score(values, truth, groups=units, seed=seed)
    except ValueError as error:
        raise InputError(str(error)) from None


def eda(
    source: PathLike | Sequence[PathLike],
    *,
    top: int = 5,
    report: PathLike | None = None,
    force: bool = False,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
) -> Eda:
    """Compute statistics of battles; see :func:`prefcli.pipeline.eda`."""
    page = None if report is None else Path(report)
    return pipeline.eda(
        _source(source), Workspace(Path(workspace)), top=top, report=page, force=force, reporter=reporter
    )


def preprocess(
    source: PathLike | Sequence[PathLike],
    *,
    text: str = "nltk",
    workers: int | None = None,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
) -> PreprocessResult:
    """Normalise the text of every battle and cache the result; see :func:`prefcli.pipeline.preprocess`."""
    return pipeline.preprocess(
        _source(source), Workspace(Path(workspace)), text=text, workers=workers, reporter=reporter
    )


def train(
    source: PathLike | Sequence[PathLike] | None = None,
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
    train_options, origins = _train_options(options)
    return pipeline.train(
        None if source is None else _source(source),
        Workspace(Path(workspace)),
        train_options,
        origins=origins,
        output=None if output is None else Path(output),
        resume=None if resume is None else str(resume),
        force=force,
        command="prefcli.train",
        reporter=reporter,
    )


def predict(
    source: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    calibrate: PathLike | Sequence[PathLike] | None = None,
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
        _source(source),
        Workspace(Path(workspace)),
        Path(output),
        PredictOptions(**options),
        calibrate=None if calibrate is None else _source(calibrate),
        force=force,
        reporter=reporter,
    )


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
        folder = Workspace(Path(workspace)).find_run(str(run))
        encoder = None if encoder is None else str(encoder)
        return pipeline.merge(folder, Path(merged), encoder=encoder, force=force, reporter=reporter)
    assert onnx is not None
    return pipeline.export(str(run), Workspace(Path(workspace)), Path(onnx), int8=int8, force=force, reporter=reporter)


def estimate(
    source: PathLike | Sequence[PathLike] | None = None,
    *,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Estimate:
    """Estimate how long :func:`train` with the same arguments would take, and its memory; see ``train --estimate``."""
    battles = None if source is None else _source(source)
    train_options, _ = _train_options(options)
    return pipeline.estimate_training(battles, Workspace(Path(workspace)), train_options, reporter=reporter)


def push(
    run: PathLike,
    name: str,
    *,
    private: bool = True,
    license: str | None = None,
    workspace: PathLike = WORKSPACE,
    reporter: Reporter = SILENT,
) -> PushResult:
    """Push a finished run to the hub as ``owner/name``; see :func:`prefcli.pipeline.push`."""
    return pipeline.push(
        str(run), name, Workspace(Path(workspace)), private=private, license=license, reporter=reporter
    )


def _train_options(options: dict[str, Any]) -> tuple[TrainOptions, dict[str, str]]:

    _check_names(options, TrainOptions)
    return resolve(options)


def _check_names(options: dict[str, Any], kind: type[TrainOptions | PredictOptions]) -> None:
    if unknown := sorted(set(options) - {field.name for field in fields(kind)}):
        raise InputError(
            f"there is no option {unknown[0]!r}", hint=f"Options are the fields of prefcli.options.{kind.__name__}."
        )


def _source(source: PathLike | Sequence[PathLike]) -> Source:

    paths = [source] if isinstance(source, (str, Path)) else source
    return Source(tuple(Path(path) for path in paths))

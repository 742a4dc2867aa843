"""``prefcli demo``: the whole pipeline on synthetic battles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefcli.errors import InputError
from prefcli.exploration import Eda
from prefcli.metrics import Score
from prefcli.options import PredictOptions, TrainOptions
from prefcli.pipeline.eda import eda
from prefcli.pipeline.predict import predict
from prefcli.pipeline.preprocess import preprocess
from prefcli.pipeline.score import score
from prefcli.pipeline.train import train
from prefcli.reporting import SILENT, Reporter
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class DemoResult:
    """What the demo printed figures of.

    ``best_log_loss`` is that of the true probabilities: no model can do better on average.
    """

    eda: Eda
    run: Path
    score: Score
    best_log_loss: float


def demo(folder: Path, *, force: bool = False, reporter: Reporter = SILENT) -> DemoResult:
    """Write synthetic battles into ``folder`` and run the pipeline on them with the built-in encoder.

    The workspace is there too. In fp32, so that the score does not depend on which precision the processor is good at.

    Raises
    ------
    InputError
        If the folder is not empty and ``force`` is not given.
    """
    from prefcli.data import synthetic

    options = TrainOptions(encoder="tiny", precision="fp32")
    options.require_packages("demo")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise InputError(f"{folder} already exists", hint="Name another folder, or overwrite it with --force.")
    workspace = Workspace(folder / ".prefcli")
    files = synthetic.write(folder)
    reporter.note(f"wrote {files.train}, {files.test} and {files.truth}")
    statistics = eda(files.train, workspace, reporter=reporter)
    preprocess(files.train, workspace, reporter=reporter)
    run = train(None, workspace, options, command="prefcli demo", reporter=reporter).run
    predictions = folder / "preds.csv"
    predict(files.test, workspace, predictions, PredictOptions(precision="fp32"), force=True, reporter=reporter)
    scored = score(predictions, files.truth, workspace=workspace, reporter=reporter)
    return DemoResult(statistics, run, scored, files.best_log_loss)

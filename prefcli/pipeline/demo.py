"""``prefcli demo``: the whole pipeline on synthetic battles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefcli import eda as eda_room
from prefcli import metrics
from prefcli.errors import InputError
from prefcli.options import PredictOptions, TrainOptions
from prefcli.pipeline.eda import eda
from prefcli.pipeline.predict import predict
from prefcli.pipeline.preprocess import preprocess
from prefcli.pipeline.score import score
from prefcli.pipeline.train import train
from prefcli.reporting import SILENT, Reporter
from prefcli.storage.workspace import Workspace


@dataclass(frozen=True)
class Demonstrated:
    """What the demo found."""

    eda: eda_room.Eda
    run: Path
    score: metrics.Score
    best_log_loss: float


def demo(folder: Path, workspace: Workspace, *, force: bool = False, reporter: Reporter = SILENT) -> Demonstrated:
    """Make synthetic battles in ``folder`` and run all five verbs on them with the built-in encoder.

    Raises
    ------
    InputError
        If the folder holds something and ``force`` is not given.
    """
    from prefcli.data import synthetic

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise InputError(f"{folder} already exists", hint="Name another folder, or overwrite it with --force.")
    made = synthetic.write(folder)
    reporter.note(f"wrote {made.train}, {made.test} and {made.truth}")
    found = eda(made.train, workspace, reporter=reporter)
    preprocess(made.train, workspace, reporter=reporter)
    trained = train(
        None, workspace, TrainOptions(encoder="tiny", precision="fp32"), command="prefcli demo", reporter=reporter
    )
    predictions = folder / "preds.csv"
    predict(made.test, workspace, predictions, PredictOptions(precision="fp32"), force=True, reporter=reporter)
    return Demonstrated(found, trained.run, score(predictions, made.truth), made.best_log_loss)

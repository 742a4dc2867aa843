"""``export``: a trained run as a folder that ONNX Runtime predicts with, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prefcli import readers
from prefcli.battles import PathLike, Source, labels_of, one_batch, user_path
from prefcli.data import synthetic
from prefcli.errors import InputError, ModelError, PrefcliError, require
from prefcli.options import TrainOptions
from prefcli.pipeline.train import data_of_run
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, runs
from prefcli.storage.workspace import Stage, Workspace
from prefcli.text import normalise_batch

if TYPE_CHECKING:
    from prefcli.exporting.onnx import ExportResult, Sample

MAX_HELD_OUT_BATTLES = 500
"""Held-out battles that the loss of int8 is measured on."""
MADE_UP_BATTLES = 48
MAX_WORDS = 1500


def export(
    run: PathLike,
    workspace: Workspace,
    folder: PathLike,
    *,
    int8: bool = False,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> ExportResult:
    """Export a run to ONNX and check that it predicts the same.

    It is checked on the run's held-out battles if their file is still there and unchanged, else on made-up battles of
    many lengths.

    Parameters
    ----------
    run, workspace:
        By folder or name; where runs and caches are.
    folder, force:
        Of the export; whether to replace an existing one.
    int8:
        Quantise the matrices.

    Raises
    ------
    InputError
        If the run has not one of the neural architectures, or ``folder`` holds something else.
    ModelError
        If it cannot be exported, or the export's predictions differ; then nothing is left.
    """
    folder = user_path(folder)
    files.refuse_to_overwrite(folder, force)
    source = workspace.find_run(run)
    runs.verify(source)
    _check_exportable(source, folder, force)
    from prefcli.exporting import onnx

    battles = Source.from_json(runs.read_config(source)["data"]["source"])
    files.refuse_to_replace(folder, [source, *battles.paths])
    samples = _samples(source, workspace, reporter)
    reporter.note(f"exporting {source.name} and comparing it with torch on {samples[0].name}")
    with reporter.track("exporting", None):
        result = onnx.export(source, folder, samples, int8=int8)
    reporter.note(
        f"probabilities differ from torch's by at most {result.largest_difference:.1e} "
        f"({result.compared:,} {result.sample})"
    )
    return result


def _check_exportable(run: Path, folder: Path, force: bool) -> None:
    """Refuse what cannot be exported, or not to this folder, before any work is done.

    Raises
    ------
    InputError
        If the run is not a neural one, or ``folder`` holds something else than an export.
    MissingPackage
        If a package is missing.
    """
    runtime = runs.runtime_of(runs.read_config(run))
    if runtime != "torch":
        features = "has the architecture features, which needs neither torch nor ONNX"
        reason = "is an exported run already" if runtime == "onnx" else features
        raise InputError(f"{run} {reason}", hint="Predict with it as it is.")
    if runs.read_config(run)["options"].get("lora_rank"):
        raise InputError(
            "the run holds adapters without the encoder's weights",
            where=str(run),
            hint=f"Merge both into one model first: prefcli export {run} --merged DIR, then export that.",
        )
    if folder.exists() or folder.is_symlink():
        files.refuse_to_overwrite(folder, force)
        if not _is_export(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"{folder} is not an exported run, so --force does not remove it", hint="Choose another.")
    require("exporting to ONNX", "torch", "transformers", "onnx", "onnxruntime", "onnxscript")


def _is_export(folder: Path) -> bool:
    try:
        return runs.runtime_of(runs.read_config(folder)) == "onnx"
    except ModelError:  # no run at all
        return False


def _samples(run: Path, workspace: Workspace, reporter: Reporter) -> list[Sample]:
    """For each of the run's models, battles that it was not trained on."""
    from prefcli.exporting.onnx import Sample

    config = runs.read_config(run)
    options = TrainOptions(**config["options"])
    members = runs.members(run)
    try:
        held_out = [runs.read_validation(member) for member in members]
        data = data_of_run(config["data"], options, workspace, reporter)
        count = max(MAX_HELD_OUT_BATTLES // len(members), 1)
        tables = [_select(data.validation or data.training, of_member, count) for of_member in held_out]
        if all(table.num_rows for table in tables):
            return [Sample(one_batch(table), labels_of(table)) for table in tables]
        reason = "they are not in the file"
    except PrefcliError as error:
        reason = error.what
    reporter.note(f"comparing on made-up battles, because the run's held-out ones were not found: {reason}")
    batch, _ = normalise_batch(_made_up_battles(), options.normalisation)
    return [Sample(batch, None)] * len(members)


def _select(stage: Stage, held_out: runs.HeldOut, count: int) -> pa.Table:
    """At most ``count`` of the held-out battles, evenly spread, with their texts."""
    rows = np.linspace(0, len(held_out.ids) - 1, min(count, len(held_out.ids))).round().astype(np.int64).tolist()
    selected = {(held_out.ids[row], int(held_out.keys[row])) for row in rows}
    batches = []
    for batch in stage.batches():
        pairs = zip(batch.column("id").to_pylist(), batch.column("prompt_key").to_pylist(), strict=True)
        batches.append(batch.filter(pa.array([pair in selected for pair in pairs])))
    table = pa.Table.from_batches(batches)
    return table.filter(pa.array(labels_of(table) >= 0))


def _made_up_battles() -> pa.RecordBatch:
    """Battles of the demo's words, with answers of 0 to :data:`MAX_WORDS` words; always the same."""
    random = np.random.default_rng(0)
    words = np.array((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))

    def text(size: int) -> list[str]:
        return [" ".join(random.choice(words, size=size).tolist())]

    rows = [
        {
            "prompt": text(5 + size // 10),
            "response_a": text(size),
            "response_b": text(int(random.integers(2 * size + 1))),
        }
        for size in (np.geomspace(1, MAX_WORDS, MADE_UP_BATTLES).astype(int) - 1).tolist()
    ]
    return readers.battles_from(rows, format="generic", name="the made-up battles")

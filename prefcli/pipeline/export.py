"""``export``: a trained run as a folder that ONNX Runtime predicts with, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prefcli import readers
from prefcli.battles import labels_of
from prefcli.data import synthetic
from prefcli.errors import PrefcliError
from prefcli.options import TrainOptions
from prefcli.pipeline.train import data_again
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import runs
from prefcli.storage.workspace import Stage, Workspace
from prefcli.text import normalise_batch

if TYPE_CHECKING:
    from prefcli.exporting.onnx import ExportResult, Sample

MOST_BATTLES = 500
"""Held-out battles that the loss of int8 is measured on."""
MADE_UP = 48
LONGEST_WORDS = 1500


def export(
    run: str,
    workspace: Workspace,
    folder: Path,
    *,
    int8: bool = False,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> ExportResult:
    """Export a run to ONNX and check that it predicts the same.

    It is checked on battles that the run held out, where they are still to be found as they were, else on made-up ones
    of all lengths.

    Parameters
    ----------
    run:
        By folder or name.
    workspace:
        Where runs and caches live.
    folder:
        Of the export.
    int8:
        Quantise the matrices.
    force:
        Replace an export that stands there.

    Raises
    ------
    InputError
        If the run is not one of the neural architectures, or something stands in the way.
    ModelError
        If it cannot be exported, or the export predicts something else; then nothing is left.
    """
    source = workspace.find_run(run)
    runs.verify(source)
    from prefcli.exporting import onnx

    onnx.refuse(source, folder, force)
    samples = _samples(source, workspace, reporter)
    reporter.note(f"exporting {source.name} and comparing it with torch on {samples[0].name}")
    made = onnx.export(source, folder, samples, int8=int8)
    reporter.note(
        f"probabilities differ from torch's by at most {made.largest_difference:.1e} ({made.compared:,} {made.sample})"
    )
    return made


def _samples(run: Path, workspace: Workspace, reporter: Reporter) -> list[Sample]:
    """For each of the run's models battles that it has not learnt from."""
    from prefcli.exporting.onnx import Sample

    config = runs.read_config(run)
    options = TrainOptions(**config["options"])
    members = runs.members(run)
    try:
        held_out = [runs.read_validation(member) for member in members]
        data = data_again(config["data"], options, workspace, reporter)
        most = max(MOST_BATTLES // len(members), 1)
        found = [_rows_of(data.validation or data.training, one, most) for one in held_out]
        if all(table.num_rows for table in found):
            return [Sample(table.combine_chunks().to_batches()[0], labels_of(table)) for table in found]
        reason = "they are not in the file"
    except PrefcliError as error:
        reason = error.what
    reporter.note(f"made-up battles stand in for those that the run held out: {reason}")
    batch, _ = normalise_batch(made_up(MADE_UP), options.normalisation)
    return [Sample(batch, None)] * len(members)


def _rows_of(stage: Stage, held_out: runs.HeldOut, most: int) -> pa.Table:
    """At most so many of the held-out battles, evenly spread, with their texts."""
    chosen = np.linspace(0, len(held_out.ids) - 1, min(most, len(held_out.ids))).round().astype(np.int64).tolist()
    keys = held_out.keys.tolist()
    wanted = {(held_out.ids[row], keys[row]) for row in chosen}
    parts = []
    for batch in stage.batches():
        names, prompts = batch.column("id").to_pylist(), batch.column("prompt_key").to_pylist()
        parts.append(batch.filter(pa.array([pair in wanted for pair in zip(names, prompts, strict=True)])))
    table = pa.Table.from_batches(parts)
    return table.filter(pa.array(labels_of(table) >= 0))


def made_up(count: int) -> pa.RecordBatch:
    """Battles of the demo's words, answers from none to :data:`LONGEST_WORDS` words; always the same."""
    random = np.random.default_rng(0)
    words = np.array((*synthetic.LIKED, *synthetic.DISLIKED, *synthetic.NEUTRAL))
    sizes = np.geomspace(1, LONGEST_WORDS, count).astype(int) - 1

    def text(size: int) -> list[str]:
        return [" ".join(random.choice(words, size=size).tolist())]

    rows = [
        {
            "prompt": text(5 + size // 10),
            "response_a": text(size),
            "response_b": text(int(random.integers(2 * size + 1))),
        }
        for size in sizes.tolist()
    ]
    return readers.battles_from(rows, format="generic", name="the made-up battles")

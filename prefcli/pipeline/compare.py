"""``compare``: one battle judged, with both orders of the answers, what was cut, and what moved it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefcli.battles import Source, int_column
from prefcli.options import PredictOptions
from prefcli.outcomes import OUTCOMES
from prefcli.pipeline.predict import count_trained_on, open_predictor
from prefcli.reporting import SILENT, Reporter
from prefcli.storage.workspace import Workspace

if TYPE_CHECKING:
    from prefcli.prediction.comparison import Comparison


def compare(
    row: Mapping[str, Any],
    workspace: Workspace,
    options: PredictOptions,
    *,
    reading: Source | None = None,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Judge one battle by the named runs, or by the one that ``train`` made last.

    Parameters
    ----------
    row:
        The battle, in any layout that prefcli reads: ``{"prompt": ..., "response_a": ..., "response_b": ...}``.
    workspace, options:
        Where runs are; how to predict. ``activation``, ``limit`` and ``workers`` are not used.
    reading:
        How the row is read, as a source of no files; by default as the run's training battles were.

    Raises
    ------
    InputError, ModelError
        If options or the battle do not allow it; if a run cannot be loaded.
    """
    from prefcli.prediction.predictor import has_chosen

    predictor = open_predictor(workspace, options, reporter)
    table = predictor.read(row, reading)
    if has_chosen(table):
        chosen = OUTCOMES[int(int_column(table.battles.column("label"))[0])]
        reporter.note(f"{chosen} is the answer that is called chosen")
    keys = table.battles.column("prompt_key").to_numpy()
    count_trained_on(predictor.folders, predictor.names, keys, reporter, so="it is probably too sure of it")
    return predictor.comparisons(table.battles)[0]

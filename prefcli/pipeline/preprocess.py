"""``prefcli preprocess``: text normalised once, cached for ``train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefcli import readers
from prefcli.battles import TEXT_FIELDS, PathLike, Source, SourceLike, texts_of
from prefcli.console import LOGGING
from prefcli.pipeline.stages import preprocess_stage, read_stage, show_first_battle, source_of
from prefcli.reporting import Reporter
from prefcli.storage.workspace import Stage, Workspace
from prefcli.text import check_normalisation, normalise_batch

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class PreprocessResult:
    """The stage that ``preprocess`` wrote, and what the normalisation did (as :class:`prefcli.text.TextCounts`)."""

    stage: Stage
    text: str
    counts: Mapping[str, Any]


def preprocess(
    source: SourceLike,
    workspace: Workspace | PathLike | None = None,
    *,
    text: str = "nltk",
    workers: int | None = None,
    reporter: Reporter = LOGGING,
) -> PreprocessResult:
    """Normalise the text of every battle; cached as the stage ``preprocess``, which ``train`` then finds.

    Parameters
    ----------
    source, workspace:
        Files of battles; where caches live.
    text:
        Name of a normalisation, see :data:`prefcli.text.NORMALISATIONS`.
    workers:
        Processes; by default one per core.
    reporter:
        Receives notes, warnings and progress.
    """
    check_normalisation(text)
    workspace = Workspace.of(workspace)
    source = source_of(source, workspace)
    battles = read_stage(source, workspace, reporter)
    show_first_battle(battles, reporter)
    stage = preprocess_stage(battles, workspace, text, workers=workers, reporter=reporter)
    digest = str(battles.metadata["input"])
    workspace.remember(
        "preprocess", {"stage": stage.path.name, "source": source.to_json(), "source_sha256": digest, "text": text}
    )
    return PreprocessResult(stage, text, stage.metadata["counts"])


def preprocess_table(
    table: Any,
    *,
    text: str = "nltk",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    outcome: str | None = None,
    each: str | None = None,
) -> pa.Table:
    """Battles of a table in memory with normalised text: for engines that map batches, as Ray and Spark do.

    Parameters
    ----------
    table:
        A pyarrow Table or RecordBatch, a DataFrame, or rows as dictionaries, in any layout that files may have.
    text:
        Name of a normalisation, see :data:`prefcli.text.NORMALISATIONS`.
    format, columns, outcome, each:
        How it is read, as :class:`prefcli.battles.Source` says it. What they leave open is found in each batch anew:
        where texts may look like lists, say ``format``.

    Returns
    -------
    The table of :mod:`prefcli.battles`, which every command reads from Parquet. Outcomes may be unknown.

    Raises
    ------
    InputError
        If a battle is not valid, there is none, or there is no column of ids: numbers that each batch counts anew are
        none.
    """
    import pyarrow as pa

    check_normalisation(text)
    read = readers.read_table(table, Source((), format, columns, outcome, each))
    readers.check_has_ids(read)
    return pa.Table.from_batches([normalise_batch(read.battles, text)[0]])


def preview(source: SourceLike, *, text: str, battles: int) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    """The ids of the first battles, and each field before and after normalisation, turns joined; nothing is cached."""
    check_normalisation(text)
    previews: list[tuple[str, dict[str, tuple[str, str]]]] = []
    for batch, _ in readers.open_battles(Source.of(source)).batches():
        before = batch.slice(0, battles - len(previews))
        after, _ = normalise_batch(before, text)
        columns = {name: (texts_of(before.column(name)), texts_of(after.column(name))) for name in TEXT_FIELDS}
        for row, battle_id in enumerate(before.column("id").to_pylist()):
            previews.append((battle_id, {field: (old[row], new[row]) for field, (old, new) in columns.items()}))
        if len(previews) == battles:
            break
    return previews

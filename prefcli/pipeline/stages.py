"""What every verb begins with: battles read, text treated, each a cached stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefcli import readers
from prefcli.battles import TEXT_FIELDS, ReadCounts, joined
from prefcli.readers import Source
from prefcli.reporting import SILENT, Reporter
from prefcli.workspace import Stage, StageWriter, Workspace

READ_VERSION = 1
"""Raise when the same file would be read into other battles."""
TREAT_VERSION = 1
"""Raise when the preprocess stage's columns change; changed text raises its treatment's own version."""


def read(source: Path | Source, workspace: Workspace, reporter: Reporter = SILENT) -> Stage:
    """The battles of a file (or of several) as the cached stage ``battles``.

    Raises
    ------
    InputError
        If a file is not one of battles.
    """
    source = Source.of(source)
    battle_file = readers.open_battles(source)

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        counts = ReadCounts()
        with reporter.track(f"reading {source}", None) as progress:
            for batch, counted in battle_file.batches():
                writer.write(batch)
                counts += counted
                progress.advance(batch.num_rows)
        return dataclasses.asdict(counts)

    stage = workspace.stage(
        "battles",
        version=READ_VERSION,
        source=battle_file.digest(),
        options=battle_file.options(),
        produce=produce,
        reporter=reporter,
    )
    counts = stage.metadata["counts"]
    how = f"{battle_file.description}; {'reused from the cache' if stage.reused else 'read now'}"
    reporter.note(f"{source}: {counts['battles']:,} battles, {counts['labelled']:,} with an outcome ({how})")
    for warning in ReadCounts(**counts).warnings():
        reporter.warn(f"{source}: {warning}")
    return stage


@dataclass(frozen=True)
class Preprocessed:
    """What ``preprocess`` made: the stage, and what the treatment did."""

    stage: Stage
    text: str
    source_sha256: str
    counts: Mapping[str, Any]


def preprocess(
    source: Path | Source,
    workspace: Workspace,
    *,
    text: str = "nltk",
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> Preprocessed:
    """Treat the text of every battle; cached as the stage ``preprocess``, and remembered for ``train``.

    Parameters
    ----------
    source:
        Files of battles.
    workspace:
        Where caches live.
    text:
        Name of a treatment, see :data:`prefcli.text.TREATMENTS`.
    workers:
        Processes; by default one per core.
    """
    from prefcli import text as text_room

    text_room.check(text)
    source = Source.of(source)
    battles = read(source, workspace, reporter)
    stage = treat(battles, workspace, text, workers=workers, reporter=reporter)
    digest = str(battles.metadata["input"])
    workspace.remember(
        "preprocess",
        {"stage": stage.path.name, "source": source.to_json(), "source_sha256": digest, "text": text},
    )
    return Preprocessed(stage, text, digest, stage.metadata["counts"])


def treat(
    battles: Stage, workspace: Workspace, text: str, *, workers: int | None = None, reporter: Reporter = SILENT
) -> Stage:
    """The battles with their text treated: the cached stage ``preprocess``."""
    from prefcli import text as text_room
    from prefcli.text import parallel

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        total = text_room.TextCounts()
        with reporter.track(f"treating text ({text})", battles.rows) as progress:
            started = time.monotonic()
            for batch, counts in parallel.treat_stream(battles.batches(), text, workers=workers):
                writer.write(batch)
                total += counts
                rate = total.bytes_in / 1e6 / max(time.monotonic() - started, 1e-9)
                progress.advance(batch.num_rows, f"{rate:.1f} MB/s")
        return dataclasses.asdict(total)

    stage = workspace.stage(
        "preprocess",
        version=TREAT_VERSION,
        source=battles.fingerprint,
        options=text_room.identity(text),
        produce=produce,
        reporter=reporter,
    )
    counts = stage.metadata["counts"]
    how = "reused from the cache" if stage.reused else "done"
    reporter.note(
        f"text treated as {text}: {counts['bytes_in'] / 1e6:.1f} -> {counts['bytes_out'] / 1e6:.1f} MB ({how})"
    )
    if counts["emptied_answers"]:
        reporter.warn(
            f"{counts['emptied_answers']:,} answers have no text left after the treatment {text} "
            f"({counts['emptied']:,} turns): only stop words, symbols or code"
        )
    return stage


@dataclass(frozen=True)
class Preview:
    """A battle's fields before and after the treatment, turns joined."""

    id: str
    fields: Mapping[str, tuple[str, str]]


def preview(source: Path | Source, *, text: str = "nltk", battles: int = 3) -> list[Preview]:
    """What a treatment does to the first battles; nothing is cached."""
    from prefcli import text as text_room

    text_room.check(text)
    shown: list[Preview] = []
    for batch, _ in readers.open_battles(Source.of(source)).batches():
        before = batch.slice(0, battles - len(shown))
        after, _ = text_room.treat_batch(before, text)
        columns = {name: (joined(before.column(name)), joined(after.column(name))) for name in TEXT_FIELDS}
        for row, name in enumerate(before.column("id").to_pylist()):
            shown.append(Preview(name, {field: (old[row], new[row]) for field, (old, new) in columns.items()}))
        if len(shown) == battles:
            break
    return shown

"""The first steps of every verb, each a cached stage: read the battles, normalise their text."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prefcli import groups, readers
from prefcli.battles import ReadCounts, Source, SourceLike, check_unique_ids, describe_battle, describe_reading
from prefcli.errors import InputError
from prefcli.metrics import plural
from prefcli.readers.cells import list_names
from prefcli.readers.tables import raw_table
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files
from prefcli.storage.workspace import Stage, StageWriter, Workspace
from prefcli.text import TextCounts, normalisation_identity
from prefcli.text.parallel import normalise_stream

READ_VERSION = 2
"""Raise it when the same file would give other battles."""
CANDIDATES_VERSION = 1
"""Raise it when the same file would give other questions."""
CHOSEN = "chosen"
"""Among a stage's options: whether the files say which answer was chosen, and a hash which of them is A."""
PREPROCESS_VERSION = 1
"""Raise it when the stage's columns change. Where the text changes, raise the normalisation's own version instead."""
INVENTED_IDS = "invented_ids"
"""A count of both stages, see :class:`ReadCounts`; None in stages made before there was one."""


def source_of(source: SourceLike, workspace: Workspace) -> Source:
    """Which files to read. A table in memory becomes a file of the workspace, so that its runs can be continued.

    Raises
    ------
    InputError
        If it is neither files nor a table.
    """
    if isinstance(source, (Source, str, Path)):
        return Source.of(source)
    if isinstance(source, Iterator):
        source = list(source)
    if isinstance(source, (list, tuple)) and source and all(isinstance(path, (str, Path)) for path in source):
        return Source.of(source)
    table = raw_table(source, "the table")
    if not table.num_rows:
        raise InputError("there are no battles", where="the table")
    names = list(table.columns)
    lines = [files.to_json(dict(zip(names, row, strict=True))) for row in zip(*table.columns.values(), strict=True)]
    text = "\n".join(lines) + "\n"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    path = workspace.tables / f"table-{digest[:12]}.jsonl"
    if not path.is_file():
        files.write_text(path, text)
    return Source.of(path)


def files_of(source: SourceLike, workspace: Workspace) -> SourceLike:
    """The same for :meth:`Source.like`: what is no source yet is read as another one is."""
    return source if isinstance(source, Source) else source_of(source, workspace).paths


def read_stage(
    source: SourceLike,
    workspace: Workspace,
    reporter: Reporter = SILENT,
    *,
    preferred: str = "train",
    outcomes: bool = True,
    usual: Mapping[str, Any] | None = None,
) -> Stage:
    """The battles of a file (or of several) as the cached stage ``battles``.

    Parameters
    ----------
    source, workspace:
        The files; where caches live.
    preferred, outcomes, usual:
        See :func:`prefcli.readers.open_battles`: ``usual`` is how the training files of a run were read.

    Raises
    ------
    InputError
        If a file is not one of battles, or an id occurs twice.
    """
    source = source_of(source, workspace)
    battle_file = readers.open_battles(source, preferred, outcomes=outcomes, usual=usual, reporter=reporter)
    report_reading(battle_file, source, usual, reporter)

    stage = workspace.stage(
        "battles",
        version=READ_VERSION,
        source=_digest(battle_file, reporter),
        options=battle_file.options() | {CHOSEN: battle_file.says_chosen},
        produce=functools.partial(_produce, battle_file, ReadCounts(), "battles", reporter),
        reporter=reporter,
    )
    _check_ids(stage, source, "battles")
    counts = stage.metadata["counts"]
    how = f"{battle_file.description}; {'reused from the cache' if stage.reused else 'read now'}"
    reporter.note(f"{source}: {plural(counts['battles'], 'battle')}, {counts['labelled']:,} with an outcome ({how})")
    if battle_file.not_read:
        reporter.note("; ".join([f"{source}: not read: {list_names(battle_file.not_read)}", *battle_file.questions]))
    for warning in ReadCounts(**counts).warnings():
        reporter.warn(f"{source}: {warning}")
    return stage


def candidate_stage(source: Source, workspace: Workspace, reporter: Reporter = SILENT) -> Stage:
    """The questions of a file (or of several) as the cached stage ``candidates``.

    Raises
    ------
    InputError
        If a file does not hold several answers to each prompt, or an id occurs twice.
    """
    candidate_file = readers.open_candidates(source, reporter)
    stage = workspace.stage(
        "candidates",
        version=CANDIDATES_VERSION,
        source=_digest(candidate_file, reporter),
        options=candidate_file.options(),
        produce=functools.partial(_produce, candidate_file, readers.CandidateCounts(), "questions", reporter),
        reporter=reporter,
    )
    _check_ids(stage, source, "questions")
    counts = readers.CandidateCounts(**stage.metadata["counts"])
    how = f"{candidate_file.description}; {'reused from the cache' if stage.reused else 'read now'}"
    reporter.note(f"{source}: {plural(counts.questions, 'question')}, {plural(counts.answers, 'answer')} ({how})")
    if candidate_file.not_read:
        reporter.note(f"{source}: not read: {list_names(candidate_file.not_read)}")
    for warning in counts.warnings():
        reporter.warn(f"{source}: {warning}")
    if counts.single:
        some = plural(counts.single, "question has", "questions have")
        of_all = "every question has" if counts.single == counts.questions else some
        reporter.warn(f"{source}: {of_all} one answer only: there is nothing to compare it with, its p_best is 1")
    return stage


def _digest(opened: readers.BattleFile | readers.CandidateFile, reporter: Reporter) -> str:
    """SHA-256 of the content, by which a cached stage is found."""
    with reporter.track(f"checking {opened.source}", opened.size, "bytes") as progress:
        return opened.digest(progress)


def _produce(
    opened: readers.BattleFile | readers.CandidateFile,
    counts: Any,
    unit: str,
    reporter: Reporter,
    writer: StageWriter,
) -> Mapping[str, Any]:
    """Read a file into a stage; what was counted, added up from ``counts``."""
    rows = 0
    with reporter.track(f"reading {opened.source}", opened.size, "bytes") as progress:
        for batch, batch_counts in opened.batches(progress):
            writer.write(batch)
            counts += batch_counts
            rows += batch.num_rows
            progress.advance(0, f"{rows:,} {unit}")
    return dataclasses.asdict(counts)


def report_reading(
    battle_file: readers.BattleFile, source: Source, usual: Mapping[str, Any] | None, reporter: Reporter
) -> None:
    """Report how battles are grouped, and whether a file that says nothing itself is read as a run's training battles.

    Those were read as ``usual`` says.
    """
    if usual and not source.is_described:
        as_usual = battle_file.source.is_described
        how = "read as" if as_usual else "recognised by its columns, which are not those of"
        reporter.note(f"{source}: {how} the run's training battles ({describe_reading(usual)})")
    if source.by is not None:
        reporter.note(f"{source}: {groups.describe(source.by, is_column=battle_file.groups_are_a_column)}")


def show_first_battle(battles: Stage, reporter: Reporter) -> None:
    """Report the first battle in words, so that the user sees who was asked what and who won."""
    first = next(battles.batches(), None)
    if first is not None and first.num_rows:
        reporter.note(f"the first battle: {describe_battle(first)}")


def _check_ids(stage: Stage, source: Source, what: str) -> None:
    """Refuse battles or questions with equal ids; first only hashes are compared, which take less memory."""
    ids = (batch.column("id").to_pylist() for batch in stage.batches(["id"]))
    hashes = np.concatenate([np.fromiter(map(hash, part), np.int64, len(part)) for part in ids])
    if len(np.unique(hashes)) < len(hashes):
        check_unique_ids(stage.table(["id"])["id"].to_pylist(), str(source), what)


def preprocess_stage(
    battles: Stage, workspace: Workspace, text: str, *, workers: int | None = None, reporter: Reporter = SILENT
) -> Stage:
    """The battles with their text normalised as ``text`` names it: the cached stage ``preprocess``."""

    def produce(writer: StageWriter) -> Mapping[str, Any]:
        total = TextCounts()
        with reporter.track(f"normalising text ({text})", battles.rows) as progress:
            started = time.monotonic()
            for batch, counts in normalise_stream(battles.batches(), text, workers=workers):
                writer.write(batch)
                total += counts
                rate = total.bytes_in / 1e6 / max(time.monotonic() - started, 1e-9)
                progress.advance(batch.num_rows, f"{rate:.1f} MB/s")
        return {**dataclasses.asdict(total), INVENTED_IDS: battles.metadata["counts"].get(INVENTED_IDS)}

    stage = workspace.stage(
        "preprocess",
        version=PREPROCESS_VERSION,
        source=battles.fingerprint,
        options=normalisation_identity(text),
        produce=produce,
        reporter=reporter,
    )
    counts = stage.metadata["counts"]
    how = "reused from the cache" if stage.reused else "done"
    reporter.note(
        f"text normalised as {text}: {counts['bytes_in'] / 1e6:.1f} -> {counts['bytes_out'] / 1e6:.1f} MB ({how})"
    )
    if counts["emptied_answers"]:
        reporter.warn(
            f"{plural(counts['emptied_answers'], 'answer')} without text after {text} normalisation "
            f"({plural(counts['emptied'], 'turn')}): only stop words, symbols or code"
        )
    return stage

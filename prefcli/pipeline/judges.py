"""``prefcli eda --judge`` and ``--annotator``: an LLM judge against people, and people against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from prefcli.battles import PathLike, Source, SourceLike
from prefcli.console import LOGGING
from prefcli.errors import InputError
from prefcli.exploration import annotators, judges
from prefcli.exploration.measures import measure_all
from prefcli.pipeline.stages import INVENTED_IDS, files_of, read_stage, source_of
from prefcli.reporting import Reporter
from prefcli.storage.workspace import Stage, Workspace


@dataclass(frozen=True)
class JudgeOptions:
    """What people's votes are compared with, see :func:`compare_judges`."""

    judge: SourceLike | None = None
    judge_model: str | None = None
    annotator: str | None = None

    def __post_init__(self) -> None:
        if self.judge_model is not None and self.judge is None:
            raise InputError("--judge-model needs a judge", hint="Name the judge's votes with --judge FILE.")


@dataclass(frozen=True)
class Judges:
    """What ``compare_judges`` returns."""

    judge: judges.JudgeComparison | None
    """None if no judge was named."""
    annotators: annotators.Annotators | None
    """None if no column of annotators was named."""


def compare_judges(
    people: SourceLike,
    workspace: Workspace | PathLike | None = None,
    *,
    judge: SourceLike | None = None,
    judge_model: str | None = None,
    annotator: str | None = None,
    reporter: Reporter = LOGGING,
) -> Judges:
    """Compare people's votes with an LLM judge's verdicts on the same battles, and with each other.

    Parameters
    ----------
    people, workspace:
        Battles with people's outcomes; where caches are.
    judge:
        Battles with the judge's outcomes, joined by id, or by prompt and answers in either order.
    judge_model:
        The judge's own name among the models, for its self-preference.
    annotator:
        Which column of the people's file says who voted.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        If no battle has an outcome in both files, or there is no such model or column.
    """
    options = JudgeOptions(judge, judge_model, annotator)
    workspace = Workspace.of(workspace)
    source = replace(source_of(people, workspace), by=annotator)
    return compare_stage(read_stage(source, workspace, reporter), source, options, workspace, reporter)


def compare_stage(
    people: Stage, source: Source, options: JudgeOptions, workspace: Workspace, reporter: Reporter
) -> Judges:
    """:func:`compare_judges` of battles that were read from ``source``, with ``by`` the annotator if one is named."""
    if options.judge is None and options.annotator is None:
        return Judges(None, None)
    if options.annotator is not None and not people.metadata["options"]["by"]["is_column"]:
        hint = "--annotator takes the column that says who voted."
        raise InputError(f"missing column {options.annotator}", where=str(source), hint=hint)
    votes = _votes(people)
    verdicts = joined = comparison = None
    if options.judge is not None:
        verdicts = _votes(
            read_stage(replace(source, by=None).like(files_of(options.judge, workspace)), workspace, reporter)
        )
        joined = judges.join(votes, verdicts)
        comparison = judges.compare(votes, verdicts, joined, judge_model=options.judge_model)
    if options.annotator is None:
        return Judges(comparison, None)
    names = people.table(["group"])["group"].to_pylist()
    if not any(names):
        raise InputError(f"nobody is named: {options.annotator} is empty", where=str(source))
    both = (verdicts, joined) if verdicts is not None and joined is not None else None
    return Judges(comparison, annotators.compare(votes, names, options.annotator, both))


def _votes(stage: Stage) -> judges.Votes:
    ids: list[pa.Array] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stage.batches():
            ids.append(batch.column("id"))
            yield batch

    stats, models, names = measure_all(batches())
    has_ids = not stage.metadata["counts"].get(INVENTED_IDS)
    return judges.Votes(pa.chunked_array(ids, pa.string()), has_ids, stats, models, names)

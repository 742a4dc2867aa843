"""``prefcli eda --export``: battles with problems, found and written with ids and reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefcli import metrics
from prefcli.battles import Source
from prefcli.errors import InputError
from prefcli.exploration import trouble
from prefcli.exploration.trouble import Problem, Trouble
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files, runs
from prefcli.storage.workspace import Stage, Workspace

FOLDS = 5
COLUMNS = tuple(field.name for field in dataclasses.fields(Problem))
SUFFIXES = (".csv", ".jsonl", ".parquet")


def check_export(path: Path) -> None:
    """Refuse a name whose ending says no format.

    Raises
    ------
    InputError
        If it does.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--export {path}: the name must end in {', '.join(SUFFIXES)}")


def find_problems(
    source: Source,
    workspace: Workspace,
    battles: Stage,
    test: Stage | None,
    *,
    label_errors: bool,
    reporter: Reporter = SILENT,
) -> tuple[list[Problem], Trouble]:
    """Every battle with a problem, and how many there are of each kind.

    Parameters
    ----------
    source, battles:
        The battles, and their stage.
    test:
        Battles of a second file.
    label_errors:
        Also look for wrong labels, by models that are trained on the others.
    """
    problems, found = trouble.find_problems(battles.batches, test.batches if test is not None else None)
    if found.not_compared:
        reporter.warn(
            f"{found.not_compared:,} battles are like so many others that they were compared with the likeliest only: "
            "there may be more near duplicates"
        )
    if label_errors:
        wrong = _label_errors(source, workspace, reporter)
        if wrong is not None:
            problems += wrong
            found = dataclasses.replace(found, counts={**found.counts, "label_error": len(wrong)})
    return problems, found


def _label_errors(source: Source, workspace: Workspace, reporter: Reporter) -> list[Problem] | None:
    """Battles whose label is probably wrong; None where no model is good enough to tell."""
    from prefcli.options import resolve
    from prefcli.pipeline.train import train
    from prefcli.training.experiment import not_better_than_prior

    options, _ = resolve({"recipe": "fast", "folds": FOLDS})
    with files.temporary_directory(workspace.root) as folder:
        run = train(
            dataclasses.replace(source, by=None),
            workspace,
            options,
            output=folder / "run",
            remember=False,
            reporter=reporter,
        ).run
        held_out, sources = runs.read_validation(run), runs.sources_of(runs.read_config(run))
    probabilities = metrics.softmax(held_out.logits)
    base = None
    if sources is not None and held_out.sources is not None:
        base = metrics.softmax(sources.held_out_bases(held_out.sources, held_out.labels))
    if problem := not_better_than_prior(probabilities, held_out.labels, held_out.keys, base=base):
        reporter.warn(f"no label errors are named: {problem}")
        return None
    return trouble.label_errors(held_out.ids, np.asarray(held_out.labels), probabilities)


def write_problems(problems: Sequence[Problem], path: Path) -> None:
    """Write problems as CSV, JSON lines or Parquet, by the file's name."""
    import pandas as pd

    table = pd.DataFrame([dataclasses.astuple(problem) for problem in problems], columns=list(COLUMNS), dtype="string")
    write: dict[str, Any] = {
        ".csv": lambda to: table.to_csv(to, index=False, lineterminator="\n"),
        ".jsonl": lambda to: table.to_json(to, orient="records", lines=True, force_ascii=False),
        ".parquet": lambda to: table.to_parquet(to, index=False),
    }
    with files.atomic(path) as temporary, temporary.open("wb") as stream:
        write[path.suffix.lower()](stream)

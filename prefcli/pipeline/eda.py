"""``prefcli eda``: statistics of battles, and the page that shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prefcli.battles import STANDARD_INPUT, PathLike, Source, SourceLike
from prefcli.eda import Eda, explore
from prefcli.errors import InputError
from prefcli.pipeline.eda_problems import check_export, find_problems, write_problems
from prefcli.pipeline.judges import Judges
from prefcli.pipeline.stages import read_stage, show_first_battle
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files
from prefcli.storage.workspace import WORKSPACE, Workspace


def eda(  # noqa: PLR0913  (what the command line gives)
    source: SourceLike,
    workspace: Workspace | PathLike = WORKSPACE,
    *,
    top: int = 5,
    test: SourceLike | None = None,
    max_length: int = 512,
    report: PathLike | None = None,
    export: PathLike | None = None,
    label_errors: bool = False,
    compared: Judges | None = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> Eda:
    """Statistics of battles, through the stage ``battles``.

    Parameters
    ----------
    source, workspace:
        One file or several, with ``Source.by`` also by group; where caches are.
    top:
        How many pairs and models to list.
    test:
        A second file; prompts that are in both are counted.
    max_length:
        A token limit to report about.
    report:
        HTML page to write.
    export:
        File for the battles with problems: CSV, JSON lines or Parquet by its name.
    label_errors:
        Also look for wrong labels, by models that are trained on the other battles.
    compared:
        What :func:`prefcli.pipeline.compare_judges` found, to be part of the statistics and of the page.
    force:
        Whether to overwrite the outputs.
    """
    if top < 1:
        raise InputError(f"--top is {top}, at least 1 is needed")
    if max_length < 1:
        raise InputError(f"--max-length is {max_length}, at least 1 is needed")
    workspace, source = Workspace.of(workspace), Source.of(source)
    test = None if test is None else dataclasses.replace(source, by=None).like(test)
    page_path, export_path = (None if path is None else Path(path) for path in (report, export))
    if export_path is not None:
        check_export(export_path)
    elif label_errors:
        raise InputError("--label-errors needs a file for them", hint="Name one: --export problems.csv.")
    if label_errors and STANDARD_INPUT in source.paths:
        raise InputError(
            "--label-errors reads the battles twice, and standard input has them once", hint="Name a file."
        )
    for path in filter(None, (page_path, export_path)):
        files.refuse_to_replace(path, [*source.paths, *(test.paths if test else ())])
        files.refuse_to_overwrite(path, force)
    battles = read_stage(source, workspace, reporter)
    show_first_battle(battles, reporter)
    test_keys = test_battles = None
    if test:
        test_battles = read_stage(test, workspace, reporter, preferred="test", outcomes=False)
        test_keys = test_battles.table(["prompt_key"])["prompt_key"].to_numpy()
    statistics = explore(battles.batches(), top, max_length=max_length, test_keys=test_keys, by=source.by)
    if compared is not None:
        statistics = dataclasses.replace(statistics, judge=compared.judge, annotators=compared.annotators)
    if export_path is not None:
        problems, trouble = find_problems(
            source, workspace, battles, test_battles, label_errors=label_errors, reporter=reporter
        )
        statistics = dataclasses.replace(statistics, trouble=trouble)
        write_problems(problems, export_path)
        reporter.note(f"wrote {export}: {len(problems):,} problems")
    if page_path is not None:
        from prefcli.rendering import page

        files.write_text(page_path, page.render(statistics, source.title))
        reporter.note(f"wrote {report}")
    return statistics

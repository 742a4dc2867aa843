"""``prefcli eda``: statistics of battles, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefcli.battles import PathLike, Source, SourceLike
from prefcli.eda import Eda, explore
from prefcli.errors import InputError
from prefcli.pipeline.stages import read_stage, show_first_battle
from prefcli.reporting import SILENT, Reporter
from prefcli.storage import files
from prefcli.storage.workspace import WORKSPACE, Workspace


def eda(
    source: SourceLike,
    workspace: Workspace | PathLike = WORKSPACE,
    *,
    top: int = 5,
    test: SourceLike | None = None,
    max_length: int = 512,
    report: PathLike | None = None,
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
    report, force:
        HTML page to write; whether to overwrite it.
    """
    if top < 1:
        raise InputError(f"--top is {top}, at least 1 is needed")
    if max_length < 1:
        raise InputError(f"--max-length is {max_length}, at least 1 is needed")
    workspace, source = Workspace.of(workspace), Source.of(source)
    test = None if test is None else replace(source, by=None).like(test)
    page_path = None if report is None else Path(report)
    if page_path is not None:
        files.refuse_to_replace(page_path, [*source.paths, *(test.paths if test else ())])
        files.refuse_to_overwrite(page_path, force)
    battles = read_stage(source, workspace, reporter)
    show_first_battle(battles, reporter)
    test_keys = None
    if test:
        test_battles = read_stage(test, workspace, reporter, preferred="test", outcomes=False)
        test_keys = test_battles.table(["prompt_key"])["prompt_key"].to_numpy()
    statistics = explore(battles.batches(), top, max_length=max_length, test_keys=test_keys, by=source.by)
    if page_path is not None:
        from prefcli.rendering import page

        files.write_text(page_path, page.render(statistics, source.title))
        reporter.note(f"wrote {report}")
    return statistics

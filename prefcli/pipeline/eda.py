"""``prefcli eda``: statistics of battles, and the page that shows them."""

from __future__ import annotations

import dataclasses

from prefcli.battles import STANDARD_INPUT, PathLike, SourceLike, user_path
from prefcli.console import LOGGING
from prefcli.errors import InputError, plural
from prefcli.exploration import Eda, explore
from prefcli.pipeline.eda_problems import check_export, find_problems, write_problems
from prefcli.pipeline.judges import JudgeOptions, compare_stage
from prefcli.pipeline.stages import files_of, read_stage, show_first_battle, source_of
from prefcli.reporting import Reporter, followed
from prefcli.storage import files
from prefcli.storage.paths import check_inputs, check_output, check_page
from prefcli.storage.workspace import Workspace


def eda(  # noqa: PLR0913  (what the command line gives)
    source: SourceLike,
    workspace: Workspace | PathLike | None = None,
    *,
    top: int = 5,
    test: SourceLike | None = None,
    max_length: int = 512,
    report: PathLike | None = None,
    export: PathLike | None = None,
    label_errors: bool = False,
    judges: JudgeOptions | None = None,
    force: bool = False,
    reporter: Reporter = LOGGING,
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
    judges:
        Also compare the votes with a judge's and with each other, as :func:`prefcli.pipeline.compare_judges` does.
    force:
        Whether to overwrite the outputs.
    reporter:
        Receives notes, warnings and progress.
    """
    if top < 1:
        raise InputError(f"--top is {top}, at least 1 is needed")
    if max_length < 1:
        raise InputError(f"--max-length is {max_length}, at least 1 is needed")
    workspace = Workspace.of(workspace)
    source = source_of(source, workspace)
    test = None if test is None else dataclasses.replace(source, by=None, source=None).like(files_of(test, workspace))
    page_path, export_path = (None if path is None else user_path(path) for path in (report, export))
    if export_path is not None:
        check_export(export_path)
    elif label_errors:
        raise InputError("--label-errors needs a file for them", hint="Name one: --export problems.csv.")
    judges = judges or JudgeOptions()
    annotator_is_read_apart = source.by is not None and judges.annotator not in (None, source.by)
    if STANDARD_INPUT in source.paths and (label_errors or annotator_is_read_apart):
        option = "--label-errors" if label_errors else "--annotator beside --by"
        raise InputError(f"{option} reads the battles twice, and standard input has them once", hint="Name a file.")
    others = [source_of(other, workspace) for other in (test, judges.judge) if other is not None]
    inputs = [*source.paths, *(path for other in others for path in other.paths)]
    check_inputs(inputs)
    if page_path is not None:
        check_page(page_path, inputs, force=force)
    if export_path is not None:
        check_output(export_path, inputs, force=force)
    voters = dataclasses.replace(source, by=judges.annotator)
    battles = read_stage(source if source.by is not None else voters, workspace, reporter)
    show_first_battle(battles, reporter)
    votes = read_stage(voters, workspace, reporter) if annotator_is_read_apart else battles
    compared = compare_stage(votes, voters, judges, workspace, reporter)
    test_keys = test_battles = None
    if test:
        test_battles = read_stage(test, workspace, reporter, preferred="test", outcomes=False)
        test_keys = test_battles.table(["prompt_key"])["prompt_key"].to_numpy()
    with reporter.track("measuring", battles.rows) as progress:
        batches = followed(battles.batches(), progress)
        statistics = explore(batches, top, max_length=max_length, test_keys=test_keys, by=source.by)
    statistics = dataclasses.replace(statistics, **vars(compared))
    if export_path is not None:
        problems, trouble = find_problems(
            source, workspace, battles, test_battles, label_errors=label_errors, reporter=reporter
        )
        statistics = dataclasses.replace(statistics, trouble=trouble)
        write_problems(problems, export_path)
        reporter.note(f"wrote {export}: {plural(len(problems), 'problem')}")
    if page_path is not None:
        from prefcli.rendering import page

        files.write_text(page_path, page.render(statistics, source.title))
        reporter.note(f"wrote {report}")
    return statistics

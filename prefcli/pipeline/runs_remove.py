"""``prefcli runs rm`` and ``prefcli runs prune``: runs, checkpoints and caches that are not needed any more."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefcli.battles import PathLike, Source
from prefcli.console import LOGGING
from prefcli.errors import InputError, PrefcliError
from prefcli.pipeline.runs import RunSummary, checkpoint_folders, find_run, latest_run, summarise, written
from prefcli.reporting import Reporter
from prefcli.storage import files, hub, runs
from prefcli.storage.run_names import run_folders, run_name
from prefcli.storage.workspace import Workspace

SECONDS_A_DAY = 24 * 3600


@dataclass(frozen=True)
class RemovedRuns:
    """What ``runs rm`` removed."""

    removed: tuple[RunSummary, ...]
    bytes: int
    latest: Path | None
    """The run that ``predict`` now takes without ``--model``; None if there is none."""


def plan_removal(names: Sequence[PathLike], workspace: Workspace | PathLike | None = None) -> list[RunSummary]:
    """What :func:`remove_runs` would remove; a link takes no bytes.

    Raises
    ------
    InputError
        If there is no such run, or it holds the current folder or the workspace.
    """
    workspace = Workspace.of(workspace)
    if on_hub := [name for name in names if str(name).startswith(hub.PREFIX)]:
        raise InputError(f"{on_hub[0]} is on the hub, and not removed from here", hint="Remove it on its page.")
    for place in {workspace.runs, *(Path(name).absolute().parent for name in names)}:
        files.sweep(place)  # what a removal that was killed left
    folders = list({folder.absolute(): folder for folder in (find_run(workspace, name) for name in names)}.values())
    for folder in folders:
        for place in (Path.cwd(), workspace.root.resolve()):
            if not folder.is_symlink() and folder.resolve() in (place, *place.parents):
                raise InputError(f"{folder} holds {place}, so it is not removed", hint="Remove it by other means.")
    summaries = (summarise(workspace, folder, scored=False) for folder in folders)
    return [dataclasses.replace(run, bytes=0) if run.path.is_symlink() else run for run in summaries]


def remove_runs(
    names: Sequence[PathLike], workspace: Workspace | PathLike | None = None, *, reporter: Reporter = LOGGING
) -> RemovedRuns:
    """Remove runs for good. Of a link only the link is removed.

    Each folder is renamed first, so that a removal that is killed leaves no part of a run under its name. The record of
    the latest run is set to the newest finished one that stays.

    Parameters
    ----------
    names, workspace:
        Runs by name or folder; where they are found by name.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError
        If there is no such run, or it holds the current folder or the workspace.
    PrefcliError
        If a run is being trained, or cannot be removed.
    """
    workspace = Workspace.of(workspace)
    planned = plan_removal(names, workspace)
    with contextlib.ExitStack() as locks:
        for run in planned:  # all of them before the first is removed
            locks.enter_context(runs.locked(run.path, "Wait until it is done, or stop it first."))
        record = workspace.latest("train")
        latest = _mend_latest(workspace, planned, reporter)  # first: a removal that is killed leaves no name of no run
        try:
            for run in planned:
                with files.as_write_errors(run.path):
                    files.remove(run.path)
                workspace.forget_run(run.path)
        except BaseException:
            if record is not None and Path(str(record.get("run"))).is_dir():
                workspace.remember("train", record)
            raise
    return RemovedRuns(tuple(planned), sum(run.bytes for run in planned), latest)


def _mend_latest(workspace: Workspace, removed: Sequence[RunSummary], reporter: Reporter) -> Path | None:
    """Record another run as the latest one, if that is removed; return the one that is recorded then."""
    gone, latest = {run.path.resolve() for run in removed}, latest_run(workspace)
    if latest not in gone:
        return latest
    for folder in sorted(run_folders(workspace.root), key=written, reverse=True):
        if runs.is_run(folder) and not runs.is_unfinished(folder) and folder.resolve() not in gone:
            workspace.remember("train", {"run": str(folder.resolve())})
            reporter.note(f"predict without --model now takes {run_name(workspace.root, folder)}")
            return folder
    workspace.forget("train")
    reporter.note("predict without --model has no run to take any more")
    return None


@dataclass(frozen=True)
class Prunable:
    """Something that is not needed any more."""

    path: Path
    what: str
    bytes: int


@dataclass(frozen=True)
class Pruned:
    """What ``runs prune`` finds, and whether it removed it."""

    items: tuple[Prunable, ...]
    bytes: int
    removed: bool


def prune(
    workspace: Workspace | PathLike | None = None,
    *,
    unfinished_days: float | None = None,
    stages: bool = False,
    remove: bool = False,
) -> Pruned:
    """Find, and perhaps remove, what is not needed: the checkpoints of finished runs, and more if asked.

    Those of a run that was trained with ``keep_checkpoints`` stay.

    Parameters
    ----------
    workspace:
        Where runs and caches are.
    unfinished_days:
        Also unfinished runs into which nothing was written for that many days.
    stages:
        Also cached stages, but for those that an unfinished run or the next ``train`` without a file reads, which are
        made again when they are needed; and tables in memory that were kept but no run was trained on.
    remove:
        Remove them; otherwise they are only listed.

    Raises
    ------
    PrefcliError
        If something cannot be removed.
    """
    workspace = Workspace.of(workspace)
    summaries = [summarise(workspace, folder, scored=False) for folder in run_folders(workspace.root)]
    items = [*_checkpoints(summaries), *_abandoned(summaries, unfinished_days)]
    if stages:
        pruned_runs = {item.path for item in items}
        items += _stages(workspace, [run for run in summaries if run.path not in pruned_runs])
    if remove:
        for item in items:
            _remove(workspace, item)
    return Pruned(tuple(items), sum(item.bytes for item in items), remove)


def _checkpoints(summaries: Sequence[RunSummary]) -> Iterator[Prunable]:
    for run in summaries:
        if run.status == "finished" and not run.options.get("keep_checkpoints"):
            for folder in checkpoint_folders(run.path):
                yield Prunable(folder, f"checkpoints of {run.name}, which is finished", files.size_of(folder))


def _abandoned(summaries: Sequence[RunSummary], days: float | None) -> Iterator[Prunable]:
    for run in summaries:
        if days is None or run.status != "unfinished":
            continue
        idle = time.time() - max(path.lstat().st_mtime for path in [run.path, *run.path.rglob("*")])
        if idle >= days * SECONDS_A_DAY:
            yield Prunable(run.path, f"unfinished run, idle for {idle / SECONDS_A_DAY:,.1f} days", run.bytes)


def _stages(workspace: Workspace, summaries: Sequence[RunSummary]) -> Iterator[Prunable]:
    if any(run.status == "training" for run in summaries):
        return  # it may be about to read any of them
    needed = {str((workspace.latest("preprocess") or {}).get("stage"))}
    for run in summaries:
        if run.status == "unfinished":
            with contextlib.suppress(PrefcliError, KeyError):
                needed.add(runs.read_config(run.path)["data"]["stage"])
    for path in sorted(workspace.stages.glob("*.parquet")):
        if path.name not in needed:
            yield Prunable(path, "cached stage", path.stat().st_size)
    trained_on = {Path(path).resolve() for run in summaries for path in _sources(run)}
    for path in sorted(workspace.tables.glob("*.jsonl")):
        if path.resolve() not in trained_on:
            yield Prunable(path, "table that no run was trained on", path.stat().st_size)


def _sources(run: RunSummary) -> Sequence[Path]:
    with contextlib.suppress(PrefcliError, KeyError, TypeError):
        return Source.from_json(runs.read_config(run.path)["data"]["source"]).paths
    return ()


def _remove(workspace: Workspace, item: Prunable) -> None:
    with files.as_write_errors(item.path):
        if item.path.parent in (workspace.stages, workspace.tables):
            item.path.unlink(missing_ok=True)  # first: a checksum without a file is harmless
            item.path.with_suffix(".sha256").unlink(missing_ok=True)
        elif item.path.name == runs.CHECKPOINTS:
            files.remove(item.path)
        else:
            remove_runs([item.path], workspace)

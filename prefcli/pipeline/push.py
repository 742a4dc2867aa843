"""``push``: upload a finished run to the Hugging Face hub."""

from __future__ import annotations

from prefcli.battles import PathLike
from prefcli.console import LOGGING
from prefcli.errors import plural
from prefcli.reporting import Reporter
from prefcli.storage import card, hub, runs
from prefcli.storage.workspace import Workspace


def push(
    run: PathLike,
    name: str,
    workspace: Workspace | PathLike | None = None,
    *,
    private: bool = True,
    license: str | None = None,
    reporter: Reporter = LOGGING,
) -> hub.PushResult:
    """Upload a finished run to the hub: all that prediction needs, its card and its log, no checkpoints.

    Parameters
    ----------
    run:
        By folder or name.
    name:
        ``owner/name``; created when missing; an existing run is replaced.
    private:
        Whether only its owner can see it.
    license:
        Written into the card: ``apache-2.0``, ``cc-by-4.0``, ...
    workspace:
        Where the run is found by name.
    reporter:
        Receives notes, warnings and progress.

    Raises
    ------
    InputError, ModelError, NetworkError
        If the run is damaged or unfinished, the login may not write there, or the hub does not accept it.
    """
    folder = Workspace.of(workspace).find_run(run)
    names = runs.published_files(folder)
    hub.check_push(name)
    if license is not None:
        for member in runs.all_folders(folder):
            card.set_license(member, license)
    reporter.note(f"pushing {plural(len(names), 'file')} of {folder} to {name} ({'private' if private else 'public'})")
    return hub.push(folder, names, name, private=private)

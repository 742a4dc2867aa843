"""``prefcli push``: a finished run onto the Hugging Face hub."""

from __future__ import annotations

from prefcli.reporting import SILENT, Reporter
from prefcli.storage import card, hub, runs
from prefcli.storage.workspace import Workspace


def push(
    run: str,
    name: str,
    workspace: Workspace,
    *,
    private: bool = True,
    license: str | None = None,
    reporter: Reporter = SILENT,
) -> hub.PushResult:
    """Bring a finished run to the hub: all that prediction needs, its card and its course, no checkpoints.

    Parameters
    ----------
    run:
        By folder or name.
    name:
        ``owner/name``; made when missing, a run that is there is replaced.
    private:
        Whether only its owner can see it.
    license:
        To be said in the card: ``apache-2.0``, ``cc-by-4.0``, ...

    Raises
    ------
    InputError, ModelError, NetworkError
        If the run is not whole, nobody is logged in who may write there, or the hub does not take it.
    """
    folder = workspace.find_run(run)
    names = runs.published_files(folder)
    hub.check_push(name)
    if license is not None:
        for member in runs.all_folders(folder):
            card.set_license(member, license)
    reporter.note(f"pushing {len(names)} files of {folder} to {name} ({'private' if private else 'public'})")
    return hub.push(folder, names, name, private=private)

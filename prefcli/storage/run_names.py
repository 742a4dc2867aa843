"""Which runs a workspace knows, by their folders alone: what lists of runs and the shell's completion share.

It imports no library, so that a completion is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

RUNS = "runs"
ELSEWHERE = "elsewhere"
"""Folder of records of runs that lie outside the workspace: a JSON file each, ``{"run": path}``."""


def default_root() -> Path:
    """The workspace where none is named: ``$PREFCLI_WORKSPACE``, by default ``.prefcli`` in the current folder."""
    return Path(os.environ.get("PREFCLI_WORKSPACE") or ".prefcli").expanduser()


def run_folders(root: Path) -> list[Path]:
    """Folders of the runs in a workspace, and of those trained from it into other places, by name.

    Whether they can be loaded is not looked at.
    """
    inside, outside = [], []
    with contextlib.suppress(OSError):
        inside = [path for path in (root / RUNS).iterdir() if path.is_dir() and not path.name.startswith(".")]
    with contextlib.suppress(OSError):
        records = list((root / ELSEWHERE).glob("*.json"))
        outside = [path for path in map(_recorded, records) if path is not None and _is_run(path)]
    return sorted(inside) + sorted(outside)


def run_name(root: Path, folder: Path) -> str:
    """What a run is called on the command line: its name in the workspace, else its path from here."""
    if folder.parent == root / RUNS:
        return folder.name
    path = os.path.relpath(folder)
    return str(folder) if path.startswith(os.pardir) else path


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "unfinished"))


def _recorded(record: Path) -> Path | None:
    try:
        return Path(json.loads(record.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

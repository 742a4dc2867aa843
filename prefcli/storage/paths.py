"""The paths that a command names, checked before any work is done: inputs that are there, outputs that can be written.

These checks come before what takes long or needs the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prefcli.errors import InputError, closest_name
from prefcli.storage import files, runs

PAGE_SUFFIXES = (".html", ".htm")
_ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf):/")
"""What the path of an address begins with: two slashes have become one."""
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz", ".zip")
"""Of the files in a folder that are proposed in place of it."""
MAX_LISTED = 1000
"""Files of a folder among which a similar name is looked for."""


def check_inputs(paths: Iterable[Path]) -> None:
    """Refuse input files that are not there, or are folders. ``-`` is standard input.

    Raises
    ------
    InputError
        With the most similar name in the folder, or a file of the named folder.
    """
    for path in paths:
        if path == Path("-") or os.path.isfile(path):
            continue
        try:
            is_folder = os.path.isdir(path)
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if any(parent.suffix.lower() == ".zip" and parent.is_file() for parent in path.parents):
                continue  # a file of an archive
            similar = _similar_name(path.name, _names_in(path.parent))
            hint = f"Did you mean {similar}?" if similar else "Check the path."
            if _ADDRESS.match(str(path)):
                hint = "Files are read from this machine: download it first."
            raise InputError("no such file", where=str(path), hint=hint) from None
        except (OSError, ValueError):
            continue  # those who read it say what is wrong
        if is_folder:
            inside = sorted(name for name in _names_in(path) if name.lower().endswith(TABLE_SUFFIXES))
            example = f": {path / inside[0]}" if inside else ""
            hint = "It is a run: --model names runs." if runs.is_run(path) else f"Name a file{example}."
            raise InputError("expected a file, found a folder", where=str(path), hint=hint)


def _similar_name(name: str, others: Iterable[str]) -> str:
    """The name that is most similar but for its suffix, the same suffix first; none: empty."""
    path = Path(name)
    by_stem = {Path(other).stem: other for other in sorted(others, key=lambda other: Path(other).suffix == path.suffix)}
    return by_stem.get(closest_name(path.stem, by_stem), "")


def check_different(paths: Sequence[Path], what: str = "the files") -> None:
    """Refuse a file that is named twice among ``what`` is read together.

    Raises
    ------
    InputError
        If one is.
    """
    resolved = [os.path.realpath(path) for path in paths]  # links may lead in a circle
    for number, path in enumerate(paths):
        if resolved[number] in resolved[:number]:
            raise InputError(f"{path} is named twice", hint=f"Name each of {what} once.")


def _names_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry, _ in zip(entries, range(MAX_LISTED), strict=False)]
    except OSError:
        return []


def check_output(path: Path, inputs: Iterable[Path], *, force: bool) -> None:
    """Refuse an output file that exists (unless ``force``), is an input or a folder, or cannot be made.

    Raises
    ------
    InputError
        If it is so.
    PrefcliError
        If there is no permission to write there.
    """
    files.refuse_to_replace(path, inputs)
    if path.is_dir():
        raise InputError(f"{path} is a folder, and the output is a file", hint="Name a file in it.")
    files.refuse_to_overwrite(path, force)
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise InputError(f"{path} cannot be written: {parent} is not a folder", hint="Choose another name.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise files.write_error(path, PermissionError(13, ""))


def check_page(path: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse a page that :func:`check_output` refuses, or whose name is not that of a page.

    Raises
    ------
    InputError, PrefcliError
        If it is so.
    """
    files.refuse_to_replace(path, inputs)
    if path.is_dir():
        raise InputError(f"{path} is a folder, and the page is one file", hint=f"Name it: {path / 'page.html'}")
    if path.suffix.lower() not in PAGE_SUFFIXES:
        hint = f"Name it {path.with_suffix('.html') if path.suffix else f'{path}.html'}."
        if path.suffix.lower() == ".pdf":
            hint += " A browser prints it as PDF."
        raise InputError(f"the page is HTML, and {path} is not called .html", hint=hint)
    check_output(path, (), force=force)

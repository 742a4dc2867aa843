"""What the user says about a file: the text of ``--columns``, and a file for ``--layout``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from prefcli.battles import Source
from prefcli.errors import InputError, did_you_mean, one_line
from prefcli.readers.layouts import CANDIDATE_COLUMNS, CANONICAL_COLUMNS

_ALL_COLUMNS = tuple(dict.fromkeys((*CANONICAL_COLUMNS, *CANDIDATE_COLUMNS)))
_EXAMPLE = "Write --columns prompt=question,response_a=left,... (a path: a.b.0; several joined: a+b; none: label=)."


def parse_columns(text: str) -> dict[str, str]:
    """``prompt=question,response_a=left`` as a mapping from canonical names to paths in the file.

    ``label=`` maps to nothing: the file has no such column, or it is not to be read.

    Raises
    ------
    InputError
        If it is not written so, or there is no such canonical name.
    """
    mapping: dict[str, str] = {}
    for item in text.split(","):
        name, equals, path = (part.strip() for part in item.partition("="))
        if not name or not equals:
            raise InputError(f"--columns: cannot read {item.strip()!r}", hint=_EXAMPLE)
        if name in mapping or (path and path in mapping.values()):
            raise InputError(f"--columns: {item.strip()} names a column for the second time")
        mapping[name] = path
    check_columns(mapping, _ALL_COLUMNS)
    return mapping


def check_columns(columns: Mapping[str, str], known: Collection[str] = CANONICAL_COLUMNS) -> None:
    """Refuse names that are not known; any column of the file may be mapped to nothing.

    Raises
    ------
    InputError
        Naming the first one.
    """
    if unknown := [name for name, path in columns.items() if path and name not in known]:
        path = columns[unknown[0]]
        other_way = f"Did you mean {path}={unknown[0]}? The known name comes first." if path in known else ""
        hint = other_way or f"{did_you_mean(unknown[0], known)} Known are {', '.join(known)}.".strip()
        raise InputError(f"--columns: unknown column {unknown[0]}", hint=hint)


def with_layout_file(source: Source, path: Path) -> Source:
    """A source with what a TOML file says: its own fields but for ``paths`` and ``by``, columns as a table.

    What the source says itself is preferred.

    Raises
    ------
    InputError
        If the file cannot be read, or says something else.
    """
    said = _read_toml(path)
    names = ("format", "outcome", "each", "encoding", "source", "columns")
    if unknown := sorted(set(said) - set(names)):
        hint = f"{did_you_mean(unknown[0], names)} Known are {', '.join(names)}.".strip()
        raise InputError(f"unknown key {unknown[0]}", where=str(path), hint=hint)
    columns = said.pop("columns", {})
    texts = [*said.items(), *(columns.items() if isinstance(columns, dict) else [("columns", None)])]
    if wrong := [name for name, value in texts if not isinstance(value, str)]:
        raise InputError(f"{wrong[0]} is not text", where=str(path), hint='Write outcome = "vote: left=a, right=b".')
    check_columns(columns, _ALL_COLUMNS)
    own = {name: getattr(source, name) for name in said if getattr(source, name) is not None}
    merged = {**columns, **(source.columns or {})}
    return dataclasses.replace(source, **{**said, **own}, columns=merged or None)


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the layout: {error.strerror or one_line(error)}", where=str(path)) from None
    except ValueError as error:
        raise InputError(f"not valid TOML: {one_line(error)}", where=str(path)) from None

"""Files that are whole or absent: atomic writes, digests, and the clean-up after a crash.

Every output of prefcli is written under a temporary name beside its place, flushed to disk, and renamed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from prefcli.errors import InputError, PrefcliError

_TEMPORARY = re.compile(r"^\..+\.(\d+)\.tmp$")


@contextlib.contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    The block may create a file or a folder there. On any error what it made is removed and ``path`` stays as
    it was. A folder that already stands at ``path`` is replaced by a new folder.

    Parameters
    ----------
    path:
        The final place; its folder is made when missing.
    durable:
        Flush to the disk before renaming, so that a power failure leaves the old file or the new one.

    Raises
    ------
    PrefcliError
        If the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in [temporary] if temporary.is_file() else [p for p in temporary.rglob("*") if p.is_file()]:
            file.chmod(0o666 & ~_umask())  # some writers make their files private
            if durable:
                _flush(file)
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed process left in ``folder``."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and not _alive(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """An existing output is never overwritten unless the user said so.

    Raises
    ------
    InputError
        If ``path`` exists and ``force`` is false.
    """
    if path.exists() and not force:
        raise InputError(f"{path} already exists", hint="Choose another name, or overwrite it with --force.")


def cannot_write(path: Path, error: OSError) -> PrefcliError:
    """The error for a write that failed: what, where, and what to do about this cause."""
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        free = _free_bytes(path)
        return PrefcliError(
            "no space left on the disk" + (f" ({free / 1e6:.1f} MB free)" if free is not None else ""),
            where=str(path),
            hint="Free some space, or move the workspace with --workspace DIR.",
        )
    if error.errno in (13, 1, 30):  # EACCES, EPERM, EROFS
        return PrefcliError(
            "no permission to write",
            where=str(path),
            hint="Choose another place, or move the workspace with --workspace DIR.",
        )
    return PrefcliError(f"cannot write: {error.strerror or error}", where=str(path))


def _free_bytes(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path.parent).free
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

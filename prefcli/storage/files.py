"""Files that are whole or absent: atomic writes, checksums, locks, and the clean-up after a crash.

Every output of prefcli is written under a temporary name beside its place, flushed to disk, and renamed. Temporary
names begin with ``.prefcli-`` and say which process made them, so that whoever comes next can sweep up after one that
was killed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prefcli.errors import InputError, PrefcliError, one_line

CHECKSUMS = "SHA256SUMS"
"""Checksums of a folder's files, as ``sha256sum --check`` reads them."""

_TEMPORARY = re.compile(r"^\.prefcli-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp$")


@contextlib.contextmanager
def atomic(path: Path, *, durable: bool = True, needs: int | None = None) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    The block may create a file or a folder there. On any error what it made is removed and ``path`` stays as
    it was. A folder that already stands at ``path`` is replaced by a new folder.

    Parameters
    ----------
    path:
        The final place; its folder is made when missing. What killed processes left beside it is swept up.
    durable:
        Flush to the disk before renaming, so that a power failure leaves the old file or the new one.
    needs:
        About how many bytes will be written, where that is known: said when the disk is full.

    Raises
    ------
    PrefcliError
        If the disk is full or the folder cannot be written.
    """
    with _explained(path, needs), _temporary(path.parent) as temporary:
        yield temporary
        for file in [temporary] if temporary.is_file() else [p for p in temporary.rglob("*") if p.is_file()]:
            file.chmod(0o666 & ~_umask())  # some writers make their files private
            if durable:
                _flush(file)
        if temporary.is_dir() and path.is_dir():
            remove(path)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)


@contextlib.contextmanager
def temporary_directory(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder``, gone when the block ends.

    Raises
    ------
    PrefcliError
        If the disk is full or the folder cannot be written.
    """
    with _explained(folder, None), _temporary(folder) as temporary:
        temporary.mkdir()
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    data = text.encode("utf-8", "backslashreplace")  # a file's name, told in a text, may hold bytes that are no letters
    with atomic(path, needs=len(data)) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log.

    Raises
    ------
    PrefcliError
        If the disk is full or the file cannot be written.
    """
    with _explained(path, None), path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def remove(path: Path) -> None:
    """Remove a file or folder; a crash on the way leaves nothing that looks like it, for it is renamed first.

    A symbolic link is removed, what it points to is not.
    """
    temporary = _temporary_name(path.parent)
    os.replace(path, temporary)
    _remove(temporary)


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed process of this machine left in ``folder``."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        match = _TEMPORARY.match(name)
        if match and match[1] == _machine() and not _alive(int(match[2])):
            _remove(folder / name)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Let only one process at a time into the block; the lock is a file at ``path``, gone afterwards.

    A process that is killed holds nothing. On file systems that know no locks the block runs unguarded.

    Parameters
    ----------
    path:
        Of the lock.
    waiting:
        Called when another process is in the block, which is then waited for. Without it nobody waits.

    Raises
    ------
    BlockingIOError
        If another process is in the block, and ``waiting`` was not given.
    PrefcliError
        If the lock cannot be made.
    """
    import filelock

    lock = filelock.FileLock(path)
    with _explained(path, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if waiting is None:
                raise BlockingIOError(f"another process holds {path}") from None
            waiting()
            lock.acquire()
        except NotImplementedError:
            pass
    try:
        yield
    finally:
        # While it is still held: whoever waits for it notices that it is gone, and makes a new one.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def remove_stale_lock(path: Path) -> None:
    """Remove a lock that nobody holds: one of a process that was killed."""
    if path.exists():
        with contextlib.suppress(BlockingIOError, PrefcliError), locked(path):
            pass


@contextlib.contextmanager
def spooling() -> Iterator[None]:
    """Failures of the system in the block are those of temporary files, unless they name another file.

    Raises
    ------
    PrefcliError
        If there is no folder for them, or no room in it.
    """
    try:
        yield
    except OSError as error:
        folder = temporary_folder()
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent != folder:
            raise
        if folder is None:
            raise PrefcliError(
                "no folder for temporary files: none of the usual ones can be written",
                hint="TMPDIR can name another folder.",
            ) from None
        problem = write_error(folder, error)
        raise PrefcliError(
            problem.what, where=problem.where, hint="It holds temporary files; TMPDIR can name another folder."
        ) from None


def temporary_folder() -> Path | None:
    """Where temporary files of this machine go; None where none of the usual places can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Keep the checksums of some files of a folder in :data:`CHECKSUMS`; those that are not there are left out."""
    there = sorted(name for name in names if (folder / name).is_file())
    lines = [f"{sha256(folder / name)}  {name}" for name in there]
    write_text(folder / CHECKSUMS, "\n".join([*lines, f"# {len(lines)} files", ""]))


def checksum_mismatches(folder: Path) -> dict[str, str]:
    """Files that are not what :data:`CHECKSUMS` says they were: name -> ``changed`` or ``gone``.

    Raises
    ------
    ValueError
        If the checksums themselves cannot be read.
    """
    found = {}
    for name, digest in read_checksums(folder).items():
        if not (folder / name).is_file():
            found[name] = "gone"
        elif sha256(folder / name) != digest:
            found[name] = "changed"
    return found


def read_checksums(folder: Path) -> dict[str, str]:
    """Names and digests that :data:`CHECKSUMS` tells; none where there are no checksums.

    Raises
    ------
    ValueError
        If they cannot be read.
    """
    try:
        lines = (folder / CHECKSUMS).read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        return {}
    *lines, end, nothing = lines if len(lines) > 1 else ["", ""]
    if nothing or end != f"# {len(lines)} files":
        raise ValueError(f"{CHECKSUMS} is not whole")
    told = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not name or Path(name).name != name:
            raise ValueError(f"{CHECKSUMS} is damaged")
        told[name] = digest
    return told


def with_checksum(value: dict[str, Any]) -> str:
    """JSON that says by itself whether it is whole, for :func:`verify_checksum`."""
    body = json.dumps(value, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})


def verify_checksum(text: str) -> dict[str, Any]:
    """What was given to :func:`with_checksum`.

    Raises
    ------
    ValueError
        If it is not whole.
    """
    try:
        outer = json.loads(text)
        whole = hashlib.sha256(outer["body"].encode()).hexdigest() == outer["sha256"]
        value = json.loads(outer["body"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is not whole: {error}") from None
    if not whole or not isinstance(value, dict):
        raise ValueError("it does not match its checksum")
    return value


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """An existing output is never overwritten unless the user said so.

    Raises
    ------
    InputError
        If ``path`` exists and ``force`` is false.
    """
    if path.exists() and not force:
        raise InputError(f"{path} already exists", hint="Choose another name, or overwrite it with --force.")


def write_error(path: Path, error: BaseException, *, needs: int | None = None, written: int = 0) -> PrefcliError:
    """The error for a write that failed: what, where, and what to do about this cause.

    Parameters
    ----------
    path:
        What was to be written.
    error:
        The failure; the system's number is also understood in the text of a library's own error.
    needs, written:
        Bytes it would have taken, where known, and those that were written before it failed and are gone again.
    """
    number = _error_number(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        room = _room(path)
        free = 0 if room is None else room.f_bavail * room.f_frsize
        size = f"about {_amount(needs)}" if needs is not None else f"more than {_amount(max(written, free))}"
        if number == errno.EDQUOT:
            what = f"your quota on the disk is used up{'' if needs is None else f': about {_amount(needs)} are needed'}"
        elif room is not None and room.f_files and not room.f_favail:
            what = "no room for another file on the disk, however small: the file system is out of inodes"
        else:
            what = f"no space left on the disk: {size} are needed" + (f", {_amount(free)} are free" if room else "")
        return PrefcliError(
            what,
            where=str(path),
            hint="Free some space, or write elsewhere (--workspace DIR moves caches and runs).",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PrefcliError(
            "no permission to write" if number != errno.EROFS else "cannot write: the file system is read-only",
            where=str(path),
            hint="Choose another place (--workspace DIR moves caches and runs).",
        )
    words = (os.strerror(number) if number else "") or one_line(error)
    return PrefcliError(f"cannot write: {words}", where=str(path))


@contextlib.contextmanager
def _explained(path: Path, needs: int | None) -> Iterator[None]:
    """Failures of the system, in whatever error a library wraps them, as errors of writing ``path``."""
    try:
        yield
    except (PrefcliError, BlockingIOError):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and _error_number(error) is None:
            raise
        raise write_error(path, error, needs=needs, written=getattr(error, "written", 0)) from error


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A temporary name in a folder, which is made when missing; whatever is made there is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    temporary = _temporary_name(folder)
    try:
        yield temporary
    except Exception as error:
        with contextlib.suppress(OSError, AttributeError):
            error.written = _size(temporary)  # type: ignore[attr-defined]
        raise
    finally:
        _remove(temporary)


def _temporary_name(folder: Path) -> Path:
    # Not to be guessed: in a folder that others may write to, a link could lie in wait there.
    return folder / f".prefcli-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _error_number(error: BaseException) -> int | None:
    """The system's error number; libraries written in other languages have it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := re.search(r"\b(?:os error|errno) (\d+)\b", str(error), re.IGNORECASE):
        return int(found[1])
    return errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else None


def _room(path: Path) -> os.statvfs_result | None:
    """What the file system says of itself; None where there are no such words."""
    for place in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError, AttributeError):
            return os.statvfs(place)
    return None


def _amount(size: int) -> str:
    """Bytes in words, rounded up: what is needed is never said to be nothing."""
    return f"{math.ceil(size / 1e5) / 10:.1f} MB" if size >= 1e5 else f"{math.ceil(size / 100) / 10:.1f} kB"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@functools.cache
def _machine() -> str:
    """This machine, or this container, in a folder that several share."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

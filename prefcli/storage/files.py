"""Files that are complete or absent: atomic writes, checksums, locks, and cleaning up after a crash.

Every output of prefcli is written under a temporary name beside its final path, flushed to disk, and renamed.
Temporary names begin with ``.prefcli-`` and name the process that made them, so that the next process can remove what
a killed one left.
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
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from prefcli.errors import InputError, PrefcliError, one_line

CHECKSUMS = "SHA256SUMS"
"""Checksums of a folder's files, as ``sha256sum --check`` reads them."""

_TEMPORARY = re.compile(r"^\.prefcli-([0-9a-f]{8})-(\d+)(?:\.(\d+))?-[0-9a-f]{8}\.tmp$")
"""Groups: the machine, the process, and when that began, which earlier releases did not write."""
MAX_IDLE_SECONDS = 24 * 3600.0
"""A temporary file of another machine or container is taken for a killed process's if nothing was written for so long.
"""


@contextlib.contextmanager
def atomic(path: Path, *, durable: bool = True, needs: int | None = None) -> Iterator[Path]:
    """A temporary path beside ``path`` that is renamed to ``path`` when the block ends without an error.

    The block creates a file or a folder there. On any error it is removed and ``path`` stays as it was. A new folder
    replaces an existing one.

    Parameters
    ----------
    path:
        The final path; its parent folder is made when missing. Files that killed processes left there are removed.
    durable:
        Flush to the disk before renaming, so that a power failure leaves the old file or the new one.
    needs:
        About how many bytes will be written, if known: reported when the disk is full.

    Raises
    ------
    PrefcliError
        If the disk is full or the folder cannot be written.
    """
    with as_write_errors(path, needs), _temporary(path.parent) as temporary:
        yield temporary
        for file in _files_in(temporary):
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
    """A temporary folder inside ``folder``, removed when the block ends. Raises what :func:`atomic` raises."""
    with as_write_errors(folder), _temporary(folder) as temporary:
        temporary.mkdir()
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Write a small text file by :func:`atomic`."""
    data = text.encode("utf-8", "backslashreplace")  # a file name in the text may hold bytes that are not characters
    with atomic(path, needs=len(data)) as temporary:
        temporary.write_bytes(data)


def to_json(value: Any, *, indent: int | None = None, non_finite: Callable[[float], Any] = lambda number: None) -> str:
    """A value as JSON: dataclasses become objects of their fields and ``JSON_PROPERTIES``, paths text.

    JSON has no NaN and no infinity, though Python writes them: they become what ``non_finite`` says, null by default.
    """

    def finite(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in fields(value)]
            return {name: finite(getattr(value, name)) for name in (*names, *getattr(value, "JSON_PROPERTIES", ()))}
        if isinstance(value, Mapping):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return non_finite(value) if isinstance(value, float) and not math.isfinite(value) else value

    def plain(value: Any) -> Any:
        return finite(value.item()) if hasattr(value, "item") else os.fspath(value)  # a number of NumPy, or a path

    return json.dumps(finite(value), indent=indent, allow_nan=False, default=plain)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log. Raises what :func:`atomic` raises."""
    with as_write_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def remove(path: Path) -> None:
    """Remove a file or folder, or a symbolic link but not its target.

    It is renamed first, so that a crash does not leave part of it under its name.
    """
    temporary = _temporary_name(path.parent)
    os.replace(path, temporary)
    _remove(temporary)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, 0 if it is not there; links are not followed."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in ``folder``.

    Whether a process of another machine or container lives is not known: its files go after :data:`MAX_IDLE_SECONDS`.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _is_abandoned(path):
                _remove(path)


@contextlib.contextmanager
def locked(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Let only one process at a time into the block; the lock is a file at ``path``, removed afterwards.

    The lock of a killed process is free. On file systems without locks the block runs unguarded. ``on_wait`` is called
    before waiting for another process in the block, and may raise instead; without it, nothing waits.

    Raises
    ------
    BlockingIOError
        If another process is in the block and ``on_wait`` is not given.
    PrefcliError
        If the lock cannot be made.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        with as_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if on_wait is None:
                    raise BlockingIOError(f"another process holds {path}") from None
                on_wait()
                lock.acquire()
            except NotImplementedError:
                pass
        yield
    finally:
        with contextlib.suppress(OSError, filelock.Timeout):
            with contextlib.suppress(NotImplementedError):
                lock.acquire(timeout=0)  # a signal may have come between making the file and locking it
            # Removed while it is held: a process that waits for it notices that it is gone and makes a new one.
            path.unlink(missing_ok=True)
        lock.release(force=True)


def remove_stale_lock(path: Path) -> None:
    """Remove the lock of a killed process."""
    if path.exists():
        with contextlib.suppress(BlockingIOError, PrefcliError), locked(path):
            pass


@contextlib.contextmanager
def temporary_file_errors() -> Iterator[None]:
    """Turn the system's errors in the block into errors about temporary files, unless they name another file.

    Raises
    ------
    PrefcliError
        If there is no folder for temporary files, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        try:
            folder = Path(tempfile.gettempdir())
        except OSError:
            folder = None
        if error.filename is not None and Path(os.fsdecode(error.filename)).parent != folder:
            raise
        if folder is None:
            raise PrefcliError(
                "no folder for temporary files: none of the usual ones is writable",
                hint="TMPDIR can name another folder.",
            ) from None
        problem = write_error(folder, error)
        problem.hint = "It holds temporary files; TMPDIR can name another folder."
        raise problem from None


def sha256(path: Path, done: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file's content; ``done`` is called with the number of bytes of every step."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            if done is not None:
                done(len(block))
    return digest.hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of some files of a folder into :data:`CHECKSUMS`; missing files are left out."""
    lines = [f"{sha256(folder / name)}  {name}" for name in sorted(names) if (folder / name).is_file()]
    write_text(folder / CHECKSUMS, "\n".join([*lines, f"# {len(lines)} files", ""]))


def checksum_mismatches(folder: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Files, all or those of some names, that do not match :data:`CHECKSUMS`: name -> ``changed`` or ``gone``.

    Raises
    ------
    ValueError
        If the checksums themselves cannot be read.
    """
    mismatches = {}
    for name, digest in read_checksums(folder).items():
        if names is not None and name not in names:
            continue
        if not (folder / name).is_file():
            mismatches[name] = "gone"
        elif sha256(folder / name) != digest:
            mismatches[name] = "changed"
    return mismatches


def read_checksums(folder: Path) -> dict[str, str]:
    """The file names and digests in :data:`CHECKSUMS`; empty if the folder has no checksums.

    Raises
    ------
    ValueError
        If they cannot be read.
    """
    try:
        lines = (folder / CHECKSUMS).read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        return {}
    *lines, last_line, rest = lines if len(lines) > 1 else ["", ""]
    if rest or last_line != f"# {len(lines)} files":
        raise ValueError(f"{CHECKSUMS} is incomplete")
    digests = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not name or Path(name).name != name:
            raise ValueError(f"{CHECKSUMS} is damaged")
        digests[name] = digest
    return digests


def with_checksum(value: dict[str, Any]) -> str:
    """JSON that contains its own checksum, for :func:`verify_checksum`."""
    body = json.dumps(value, sort_keys=True)  # text inside of JSON, and read by Python alone: it may hold NaN
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})


def verify_checksum(text: str) -> dict[str, Any]:
    """The value given to :func:`with_checksum`.

    Raises
    ------
    ValueError
        If the text is incomplete or does not match its checksum.
    """
    try:
        outer = json.loads(text)
        matches = hashlib.sha256(outer["body"].encode()).hexdigest() == outer["sha256"]
        value = json.loads(outer["body"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is incomplete: {error}") from None
    if not matches or not isinstance(value, dict):
        raise ValueError("it does not match its checksum")
    return value


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Raise InputError if an output exists already and ``force`` is false."""
    if path.exists() and not force:
        raise InputError(f"{path} already exists", hint="Choose another name, or overwrite it with --force.")


def refuse_to_replace(output: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError if writing ``output`` would replace a file that the same command reads, whatever ``force`` says.

    It would if it is that file by any name or link, the archive or folder that the file is in, or the file that is
    redirected to standard input, ``-``.
    """
    if not output.is_file() and not output.is_dir():
        return  # nothing is there, or a device
    for path in inputs:
        place = Path(os.path.realpath("/dev/stdin" if path == Path("-") else path))  # links may lead in a circle
        if not place.exists() and not any(parent.is_file() for parent in place.parents):
            continue  # neither a file nor a member of an archive, such as the name of an encoder on the hub
        for part in (place, *place.parents):
            with contextlib.suppress(OSError):
                if os.path.samefile(output, part):
                    raise InputError(
                        f"{output} cannot be the output: it {'is' if part == place else 'holds'} an input, {path}",
                        hint="Choose another name for the output.",
                    )


def write_error(path: Path, error: BaseException, *, needs: int | None = None, written: int = 0) -> PrefcliError:
    """The error for a failed write: what, where, and what to do about it.

    Parameters
    ----------
    path:
        What was to be written.
    error:
        The failure. The system's error number is also found in the text of a library's own error.
    needs, written:
        Bytes of the complete file, if known, and those written before the failure.
    """
    number = _error_number(error)
    hint = ""
    if number in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space, or write elsewhere (--workspace DIR moves caches and runs)."
        disk = _disk_usage(path)
        free = 0 if disk is None else disk.f_bavail * disk.f_frsize
        if number == errno.EDQUOT:
            what = f"your disk quota is used up{'' if needs is None else f': about {amount(needs)} are needed'}"
        elif disk is not None and disk.f_files and not disk.f_favail:
            what = "the disk cannot hold another file, however small: the file system is out of inodes"
        else:
            size = f"about {amount(needs)}" if needs is not None else f"more than {amount(max(written, free))}"
            what = f"no space left on the disk: {size} are needed" + (f", {amount(free)} are free" if disk else "")
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "cannot write: the file system is read-only" if number == errno.EROFS else "no permission to write"
        hint = "Choose another place (--workspace DIR moves caches and runs)."
    else:
        what = f"cannot write: {(os.strerror(number) if number else '') or one_line(error)}"
    return PrefcliError(what, where=str(path), hint=hint)


@contextlib.contextmanager
def as_write_errors(path: Path, needs: int | None = None) -> Iterator[None]:
    """Turn the system's errors, also those wrapped by a library, into errors of writing ``path``."""
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
    """An unused path in a folder, which is made when missing; what the block makes at this path is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    temporary = _temporary_name(folder)
    try:
        yield temporary
    except Exception as error:
        with contextlib.suppress(OSError, AttributeError):
            error.written = sum(file.stat().st_size for file in _files_in(temporary))  # type: ignore[attr-defined]
        raise
    finally:
        _remove(temporary)


def _temporary_name(folder: Path) -> Path:
    # Not predictable: in a folder that others can write to, somebody could put a link at this path.
    process = f"{os.getpid()}.{_start_of(os.getpid())}"
    return folder / f".prefcli-{_machine()}-{process}-{secrets.token_hex(4)}.tmp"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _files_in(path: Path) -> list[Path]:
    """A file itself, or the files of a folder and its subfolders."""
    return [file for file in (path, *path.rglob("*")) if file.is_file()]


def _error_number(error: BaseException) -> int | None:
    """The system's error number; libraries written in other languages mention it only in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if match := re.search(r"\b(?:os error|errno) (\d+)\b", str(error), re.IGNORECASE):
        return int(match[1])
    return errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else None


def _disk_usage(path: Path) -> os.statvfs_result | None:
    """Free space and inodes where ``path`` is or would be; None where the system does not report them."""
    for existing in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError, AttributeError):
            return os.statvfs(existing)
    return None


def amount(size: int) -> str:
    """Bytes in words, rounded up: what is needed is never 0.0."""
    return f"{math.ceil(size / 1e5) / 10:,.1f} MB" if size >= 1e5 else f"{math.ceil(size / 100) / 10:.1f} kB"


def _flush(path: Path) -> None:
    if os.name == "nt":  # it flushes neither folders nor files that are open for reading
        return
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
    """Identifies this machine or container in a folder that several share.

    Containers may have the same host name, and number their processes alike: their process namespaces differ. So do
    machines' boots, where they have the name in common.
    """
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # not on Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def _start_of(pid: int) -> int:
    """When a process of this machine began, in ticks since the machine did.

    0 where the system does not say, -1 of a process that has ended and is only remembered for its parent.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = stat.rpartition(")")[2].split()
    return -1 if state == "Z" else int(fields[18])


def _alive(pid: int, start: int) -> bool:
    """Whether a process of this machine lives; another one may have got its number since, unless ``start`` is 0."""
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return not start or _start_of(pid) in (0, start)


def _is_abandoned(path: Path) -> bool:
    """Whether a path is a temporary file of a process that was killed."""
    if not (match := _TEMPORARY.match(path.name)):
        return False
    if match[1] == _machine():
        return not _alive(int(match[2]), int(match[3] or 0))
    with contextlib.suppress(OSError):  # removed meanwhile
        return _idle_seconds(path) > MAX_IDLE_SECONDS
    return False


def _idle_seconds(path: Path) -> float:
    """For how long nothing was written to a file, or to any file of a folder."""
    return time.time() - max(file.stat().st_mtime for file in (path, *path.rglob("*")))

"""The Hugging Face hub: models and runs found there, runs brought there, and what is said when it cannot be.

The only room that uses the network, and only for a name that a user gave. The search goes from near to far: the hub's
local cache, then a five-second check whether the hub answers and knows the name, only then a download of the files that
are needed. Nothing that comes from there is run. Tokens are the affair of the hub's own library (``hf auth login``,
``HF_TOKEN``): they are neither read nor told here.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefcli.errors import InputError, ModelError, NetworkError, PrefcliError, one_line
from prefcli.storage import files

PREFIX = "hf://"
"""What a run's name on the hub begins with."""
CACHED, DOWNLOADED = "the hub's local cache", "downloaded from the hub"
SOURCES = (CACHED, DOWNLOADED)
"""How what :func:`find` gives was found."""
CHECK_SECONDS = 5.0
ANSWER_SECONDS = 30.0
SLOWEST_UPLOAD = 100_000
"""Bytes a second below which an upload counts as stuck."""

RUN_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.parquet", f"*{files.CHECKSUMS}")
"""Files of a run that prediction may need; neither its log nor its card."""
NOT_OF_A_RUN = ("checkpoints/*", "*/checkpoints/*", "*.py", "*.bin")

T = TypeVar("T")


@dataclass(frozen=True)
class PushResult:
    """Where a run was brought to."""

    url: str
    files: int


def find(
    name: str,
    what: str,
    *,
    whole: Callable[[Path], bool],
    patterns: Sequence[str],
    instead: str,
    revision: str | None = None,
    without: Sequence[str] = (),
    network: bool = True,
) -> tuple[Path, str]:
    """The files of a model of the hub: those in the local cache, else downloaded.

    Parameters
    ----------
    name:
        ``owner/name``.
    what:
        ``encoder`` or ``run``: what messages call it.
    whole:
        Whether a folder of the cache holds all that is needed.
    patterns, without:
        The files to download, and those not to.
    instead:
        What else a user could do, as one sentence.
    revision:
        Branch, tag or commit; by default the main branch.
    network:
        Whether the hub may be asked: only for a name that the user gave, not for one read from a file.

    Returns
    -------
    The folder with the files, and how it was found, one of :data:`SOURCES`.

    Raises
    ------
    InputError
        If it is no name.
    ModelError
        If the hub does not know it or does not let us have it.
    NetworkError
        If the hub cannot be reached.
    PrefcliError
        If there is no place for the hub's cache.
    """
    with quiet():
        import huggingface_hub as hub
        from huggingface_hub import constants, errors

        needed: dict[str, Any] = {
            "revision": revision, "allow_patterns": list(patterns), "ignore_patterns": list(without),
        }  # fmt: skip
        cached = None
        try:
            Path(constants.HF_HUB_CACHE).expanduser()
        except RuntimeError:  # neither HOME nor an entry for the user
            raise PrefcliError(
                f"the hub's library has no folder to keep the {what} {name} in: this user has no home",
                hint=f"Set HF_HOME to a folder. {instead}",
            ) from None
        try:
            cached = Path(hub.snapshot_download(name, local_files_only=True, **needed))
        except errors.LocalEntryNotFoundError:
            pass
        except errors.HFValidationError:
            raise InputError(
                f"{name!r} is neither a folder nor a model name", hint=f"A name is owner/name. {instead}"
            ) from None
        with suppress(OSError, ValueError):
            if cached is not None and whole(cached):
                return cached, CACHED
        if not network:
            raise NetworkError(f"the {what} {name} is not in the hub's local cache", hint=instead)
        if constants.HF_HUB_OFFLINE:
            raise NetworkError(
                f"the {what} {name} is not in the hub's local cache, and HF_HUB_OFFLINE forbids asking for it",
                hint=instead,
            )
        with _explained(name, what, instead, f"and the {what} {name} is not on this machine"):
            hub.HfApi().model_info(name, revision=revision, timeout=CHECK_SECONDS)
            folder = hub.snapshot_download(name, **needed)
    return Path(folder), DOWNLOADED


def find_run(name: str) -> Path:
    """A run of the hub, ``hf://owner/name`` or ``hf://owner/name@revision``, with its files as they were sealed.

    Raises
    ------
    InputError, ModelError, NetworkError
        As :func:`find`; also if what is there is no run, or not the run that was pushed.
    """
    match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^@]+))?", name.removeprefix(PREFIX))
    if match is None:
        raise InputError(f"{name!r} is no run of the hub", hint=f"Name it {PREFIX}owner/name.")
    folder, _ = find(
        match[1],
        "run",
        whole=lambda folder: not _faults(folder),
        patterns=RUN_PATTERNS,
        without=NOT_OF_A_RUN,
        instead="Name the folder of a run that is on this machine.",
        revision=match[2],
    )
    try:
        faults = _faults(folder)
    except (OSError, ValueError) as error:
        faults = [str(error)]
    if faults:
        raise ModelError(
            f"what the hub has as {match[1]} is no whole run of prefcli: {', '.join(faults[:3])}",
            where=str(folder),
            hint="Ask its owner to push the run again (prefcli push RUN owner/name).",
        )
    return folder


def _faults(folder: Path) -> list[str]:
    """What keeps a folder from being a run whose every file is the one that was sealed; nothing when it is one."""
    told = [folder, *sorted(path for path in folder.glob("fold-*") if path.is_dir())]
    faults = []
    for one in told:
        if not (one / files.CHECKSUMS).is_file():
            faults.append(f"{one.name if one != folder else 'it'} has no {files.CHECKSUMS}")
            continue
        faults += [f"{name} is {how}" for name, how in files.checksum_mismatches(one).items()]
        faults += [
            f"{path.name} is not in {files.CHECKSUMS}"
            for path in sorted(one.iterdir())
            if path.suffix in (".json", ".safetensors", ".txt", ".model", ".parquet")
            and path.is_file()
            and path.name not in files.read_checksums(one)
        ]
    return faults


# Pushing


def check_push(name: str) -> None:
    """Whether a push to ``owner/name`` has a chance: the name, the login and what it may, before any work is done.

    Raises
    ------
    InputError
        If it is no name of this form.
    ModelError
        If nobody is logged in, or whoever is may not write there.
    NetworkError
        If the hub cannot be reached.
    """
    with quiet():
        from huggingface_hub import HfApi, constants, errors
        from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise InputError("a run is pushed to owner/name", hint="Letters, digits, '-', '_' and '.', and one '/'.")
    if constants.HF_HUB_OFFLINE:
        raise NetworkError("HF_HUB_OFFLINE forbids pushing to the hub", hint="Unset it, or push later: prefcli push.")
    with quiet(), _explained(name, "account of", "Nothing was pushed.", f"so {name} would get nothing"):
        try:
            account = _within(CHECK_SECONDS, HfApi().whoami)
        except errors.LocalTokenNotFoundError:
            raise ModelError("nobody is logged in to the hub", hint="Log in with: hf auth login.") from None
    owner = name.partition("/")[0]
    orgs = account.get("orgs") if isinstance(account, dict) else None
    if not isinstance(account, dict) or not isinstance(orgs or [], list):
        raise NetworkError("the hub did not say who is logged in", hint="Try again later.")
    mine = [account.get("name"), *(org.get("name") for org in orgs or [] if isinstance(org, dict))]
    if owner not in mine:
        raise ModelError(
            f"who is logged in to the hub cannot write to {owner}/: {', '.join(str(one) for one in mine if one)}",
            hint="Choose one of these as the owner, or log in as somebody else: hf auth login.",
        )
    token = (account.get("auth") or {}).get("accessToken") or {}
    if isinstance(token, dict) and token.get("role") == "read":
        raise ModelError("the hub's token can only read", hint="Make one that can write, then: hf auth login.")


def push(folder: Path, names: Sequence[str], name: str, *, private: bool = True) -> PushResult:
    """Bring some files of a folder to ``owner/name``, which is made when missing; a run that is there is replaced.

    Parameters
    ----------
    folder:
        Of the run.
    names:
        The files, relative to it.
    name:
        ``owner/name``.
    private:
        Whether only its owner can see it.

    Raises
    ------
    InputError
        If something else is there, or it is public and was meant to be private.
    ModelError, NetworkError
        If the hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    size = sum((folder / one).stat().st_size for one in names)
    with (
        quiet(),
        _explained(name, "repository", "The run on this machine is as it was.", f"so {name} got nothing", "take"),
    ):
        from huggingface_hub import HfApi

        api = HfApi()
        url = _within(ANSWER_SECONDS, lambda: api.create_repo(name, private=private, exist_ok=True))
        there = api.model_info(name, timeout=ANSWER_SECONDS)
        held = {sibling.rfilename for sibling in there.siblings or []} - {".gitattributes", "README.md"}
        if held and files.CHECKSUMS not in held:
            raise InputError(f"{name} holds something that is no run of prefcli", hint="Choose another name.")
        if private and there.private is False:
            raise InputError(f"{name} is public already", hint="Say --public, or choose another name.")
        _within(
            ANSWER_SECONDS * 4 + size / SLOWEST_UPLOAD,
            lambda: api.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=list(names),
                delete_patterns=["*"] if held else None,
                commit_message="A run of prefcli",
            ),
        )
    return PushResult(str(url), len(names))


# What goes wrong


@contextmanager
def quiet() -> Iterator[None]:
    """The hub's progress bars, advice and telemetry are off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported
    from huggingface_hub.utils import disable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _explained(name: str, what: str, instead: str, then: str, deed: str = "give") -> Iterator[None]:
    """The hub's and the transport's errors in one sentence each."""
    from huggingface_hub import errors

    try:
        yield
    except (PrefcliError, MemoryError):
        raise
    except errors.GatedRepoError:
        raise ModelError(
            f"the {what} {name} is gated: its owner must let you in",
            hint="Ask for access on its page, then log in with: hf auth login.",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"the {what} {name} has no such revision", hint=instead) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"the hub knows no model {name} (or it is private and you are not logged in)",
            hint=f"Check the spelling. {instead}",
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            why = "it does not know the token" if status == 401 else "this login may not do that"
            raise ModelError(
                f"the hub refuses ({status}): {why} ({what} {name})", hint=f"Log in with: hf auth login. {instead}"
            ) from None
        raise NetworkError(
            f"the hub did not {deed} the {what} {name}: {one_line(error)}", hint=f"Try again later. {instead}"
        ) from None
    except Exception as error:  # the transport's own errors, which differ from release to release
        raise NetworkError(
            f"no network: the hub cannot be reached ({type(error).__name__}), {then}",
            hint=f"Check the network. {instead}",
        ) from None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives, if it does within the time: the hub's library waits for ever where no limit can be told it.

    Raises
    ------
    TimeoutError
        If it does not. The call is then left to itself, in a thread that does not keep the process.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=work, name="prefcli-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    value, error = found[0]
    if error is not None:
        raise error
    return value

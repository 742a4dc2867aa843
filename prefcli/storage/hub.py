"""The Hugging Face hub: finding encoders and runs there, pushing runs, and explaining what goes wrong.

The only module that uses the network, and only for a name that the user gave. The search order is: the hub's local
cache; a check that the hub answers within five seconds and knows the name; a download of the needed files. Nothing that
is downloaded is executed. Tokens are handled by huggingface_hub (``hf auth login``, ``HF_TOKEN``).
"""

from __future__ import annotations

import glob
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefcli.errors import InputError, ModelError, NetworkError, PrefcliError, one_line
from prefcli.storage import files, runs

PREFIX = "hf://"
"""What a run's name on the hub begins with."""
CACHED, DOWNLOADED = "the hub's local cache", "downloaded from the hub"
INSTALLED = "the hub's files from the installed package"
SOURCES = (CACHED, DOWNLOADED, INSTALLED)
"""What the words begin with that say where files of the hub were found."""
CHECK_SECONDS = 5.0
"""How long the hub may take to say whether it knows a name: looking up its address and connecting included."""
ANSWER_SECONDS = 30.0
MIN_UPLOAD_SPEED = 100_000
"""Bytes a second; a slower upload counts as stuck."""

T = TypeVar("T")


@dataclass(frozen=True)
class PushResult:
    """Where a run was pushed to, and how many files."""

    url: str
    files: int


def run_names(models: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """What runs are called: those of the hub by their name there, others by their folder.

    Parameters
    ----------
    models:
        As the user named them; none: the latest run.
    folders:
        Where they are.
    """
    models = models or [""] * len(folders)
    return [name if name.startswith(PREFIX) else folder.name for name, folder in zip(models, folders, strict=True)]


@dataclass(frozen=True)
class NeededFiles:
    """Which of a repository's files are downloaded."""

    patterns: Sequence[str]
    ignore_patterns: Sequence[str]
    """Files that match one of these are not needed."""
    choose: Callable[[Sequence[str]], Sequence[str]] | None = None
    """Given the names of all files, those to download; by default what matches the patterns."""


RUN_FILES = NeededFiles(
    ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.parquet", f"*{files.CHECKSUMS}"),
    ("checkpoints/*", "*/checkpoints/*", "*.py", "*.bin"),
)
"""Files of a run that prediction may need; neither its log nor its card."""


def find(
    name: str,
    what: str,
    *,
    is_complete: Callable[[Path], bool],
    needed: NeededFiles,
    hint: str,
    revision: str | None = None,
    network: bool = True,
) -> tuple[Path, str]:
    """The files of a model of the hub: from the local cache, else downloaded.

    Parameters
    ----------
    name:
        ``owner/name``.
    what:
        ``encoder`` or ``run``, for messages.
    is_complete:
        Whether a folder of the cache has all files that are needed.
    needed:
        The files to download.
    hint:
        What else the user could do, as one sentence.
    revision:
        Branch, tag or commit; by default the main branch.
    network:
        Whether the hub may be asked: only for a name that the user gave, not for one read from a file.

    Returns
    -------
    The folder with the files, and how it was found: :data:`CACHED` or :data:`DOWNLOADED`.

    Raises
    ------
    InputError
        If ``name`` is not a valid name.
    ModelError
        If the hub does not know the model, refuses access or does not have all of its files; or if there is no folder
        for the hub's cache.
    NetworkError
        If the hub cannot be reached.
    """
    with quiet():
        import huggingface_hub as hub
        from huggingface_hub import constants, errors

        arguments: dict[str, Any] = {
            "revision": revision,
            "allow_patterns": list(needed.patterns),
            "ignore_patterns": list(needed.ignore_patterns),
        }
        try:
            Path(constants.HF_HUB_CACHE).expanduser()
        except RuntimeError:  # neither HOME nor an entry for the user
            raise ModelError(
                f"no folder for the hub's cache of the {what} {name}: this user has no home",
                hint=f"Set HF_HOME to a folder. {hint}",
            ) from None
        try:
            cached = Path(hub.snapshot_download(name, local_files_only=True, **arguments))
            if is_complete(cached):
                return cached, CACHED
        except errors.LocalEntryNotFoundError:
            pass
        except errors.HFValidationError:
            raise InputError(
                f"{name!r} is neither a folder nor a model name", hint=f"A name is owner/name. {hint}"
            ) from None
        if not network or constants.HF_HUB_OFFLINE:
            reason = ", and HF_HUB_OFFLINE forbids asking for it" if network else ""
            raise NetworkError(f"the {what} {name} is not in the hub's local cache{reason}", hint=hint)
        with _as_prefcli_errors(name, what, hint, f"and the {what} {name} is not on this machine"):
            # The library's own limit is one for each address of the hub, and not for looking them up.
            repository = _with_timeout(
                CHECK_SECONDS, lambda: hub.HfApi().model_info(name, revision=revision, timeout=CHECK_SECONDS)
            )
            if needed.choose is not None:
                chosen = needed.choose([sibling.rfilename for sibling in repository.siblings or []])
                arguments["allow_patterns"] = [glob.escape(file) for file in chosen]
            return Path(hub.snapshot_download(name, **arguments)), DOWNLOADED


def find_run(name: str) -> Path:
    """The folder of a run of the hub, ``hf://owner/name`` or ``hf://owner/name@revision``, its checksums verified.

    Raises
    ------
    InputError, ModelError, NetworkError
        As :func:`find`; also if it is not a run, or its files are not those that were pushed.
    """
    match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^@]+))?", name.removeprefix(PREFIX))
    if match is None:
        raise InputError(f"{name!r} is not the name of a run on the hub", hint=f"Use {PREFIX}owner/name.")
    folder, _ = find(
        match[1],
        "run",
        is_complete=lambda folder: _damage(folder) is None,
        needed=RUN_FILES,
        hint="Use the folder of a run on this machine.",
        revision=match[2],
    )
    if damage := _damage(folder):
        raise ModelError(
            f"{match[1]} on the hub is not a complete run of prefcli: {damage.what}",
            where=damage.where,
            hint="Ask its owner to push the run again (prefcli push RUN owner/name).",
        )
    return folder


def _damage(folder: Path) -> ModelError | None:
    """Why a folder is not a run whose every file has a matching checksum."""
    try:
        runs.verify(folder, strict=True)
    except ModelError as error:
        return error
    return None


def check_push(name: str) -> None:
    """Check the name, the login and its permissions, before any work for a push is done.

    Raises
    ------
    InputError
        If the name does not have the form ``owner/name``.
    ModelError
        If nobody is logged in, or the login may not write there.
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
    with quiet(), _as_prefcli_errors(name, "account of", "Nothing was pushed.", f"so nothing can be pushed to {name}"):
        try:
            account = _with_timeout(CHECK_SECONDS, HfApi().whoami)
        except errors.LocalTokenNotFoundError:
            raise ModelError("nobody is logged in to the hub", hint="Log in with: hf auth login.") from None
        owner = name.partition("/")[0]
        writable = [account["name"], *(organisation["name"] for organisation in account.get("orgs") or [])]
        if owner not in writable:
            raise ModelError(
                f"this login of the hub cannot write to {owner}/, only to {', '.join(writable)}",
                hint="Choose one of these as the owner, or log in as another user: hf auth login.",
            )
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise ModelError("the hub's token can only read", hint="Create one that can write, then: hf auth login.")


def push(folder: Path, names: Sequence[str], name: str, *, private: bool = True) -> PushResult:
    """Upload files of a run to ``owner/name``, which is created when missing; an existing run is replaced.

    The file ``names`` are relative to the run's ``folder``. What is ``private`` only its owner can see.

    Raises
    ------
    InputError
        If something else is there, or it is public and ``private`` is asked for.
    ModelError, NetworkError
        If the hub does not accept it.
    """
    size = sum((folder / file).stat().st_size for file in names)
    hint = "The run on this machine is unchanged."
    with quiet(), _as_prefcli_errors(name, "repository", hint, f"so nothing was pushed to {name}", "accept"):
        from huggingface_hub import HfApi

        api = HfApi()
        url = _with_timeout(ANSWER_SECONDS, lambda: api.create_repo(name, private=private, exist_ok=True))
        repository = api.model_info(name, timeout=ANSWER_SECONDS)
        existing = {sibling.rfilename for sibling in repository.siblings or []} - {".gitattributes", "README.md"}
        if existing and files.CHECKSUMS not in existing:
            raise InputError(f"{name} holds something that is not a run of prefcli", hint="Choose another name.")
        if private and repository.private is False:
            raise InputError(f"{name} is public already", hint="Use --public, or choose another name.")
        _with_timeout(
            ANSWER_SECONDS * 4 + size / MIN_UPLOAD_SPEED,
            lambda: api.upload_folder(
                repo_id=name,
                folder_path=folder,
                allow_patterns=list(names),
                delete_patterns=["*"] if existing else None,
                commit_message="A run of prefcli",
            ),
        )
    return PushResult(str(url), len(names))


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the hub's progress bars, warnings and telemetry; afterwards they are as the caller had them."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, telemetry, disabled = logger.level, constants.HF_HUB_DISABLE_TELEMETRY, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        (disable_progress_bars if disabled else enable_progress_bars)()


@contextmanager
def _as_prefcli_errors(name: str, what: str, advice: str, consequence: str, verb: str = "give") -> Iterator[None]:
    """Turn the errors of the hub's library and of the network into one sentence each."""
    from huggingface_hub import errors

    try:
        yield
    except (PrefcliError, MemoryError):
        raise
    except errors.GatedRepoError:
        raise ModelError(
            f"the {what} {name} is gated: access must be requested",
            hint="Request access on its page, then log in with: hf auth login.",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"the {what} {name} has no such revision", hint=advice) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"the hub knows no model {name} (or it is private and you are not logged in)",
            hint=f"Check the spelling. {advice}",
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            reason = "it does not know the token" if status == 401 else "this login may not do that"
            raise ModelError(
                f"the hub refuses ({status}): {reason} ({what} {name})", hint=f"Log in with: hf auth login. {advice}"
            ) from None
        raise NetworkError(
            f"the hub did not {verb} the {what} {name}: {one_line(error)}", hint=f"Try again later. {advice}"
        ) from None
    except Exception as error:  # of the HTTP library, which differs between releases
        raise NetworkError(
            f"no network: the hub cannot be reached ({type(error).__name__}), {consequence}",
            hint=f"Check the network. {advice}",
        ) from None


def _with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, for functions of the hub's library that take no timeout.

    After a TimeoutError the call goes on in a thread that does not keep the process alive.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name="prefcli-hub", daemon=True).start()
    return result.result(seconds)

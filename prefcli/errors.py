"""The errors that prefcli raises, each with a message, a place and a hint.

The command line prints an error in one to three lines and exits with its ``exit_code``; a Python caller catches it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A question with the most similar of the names, or nothing; to be used as a hint."""
    closest = closest_name(name, candidates)
    return f"Did you mean {closest}?" if closest else ""


def closest_name(name: str, candidates: Iterable[str]) -> str:
    """The most similar of the names, whatever their case, white space, hyphens and underscores; none: empty."""
    import difflib

    def key(text: str) -> str:
        return re.sub(r"[\s_-]+", "_", text.strip().lower())

    by_key = {key(candidate): candidate for candidate in candidates}
    return next((by_key[close] for close in difflib.get_close_matches(key(name), by_key, 1)), "")


def plural(n: int, what: str, several: str = "") -> str:
    """A count and its noun: ``1 prompt``, ``1,200 prompts``; ``several`` where more changes than an s at the end."""
    return f"{n:,} {what if n == 1 else several or what + 's'}"


def one_line(value: object, limit: int = 200) -> str:
    """A value's text on one line of at most ``limit`` characters; an error without a text gives its type's name."""
    text = " ".join(str(value).split())
    if not text and isinstance(value, BaseException):
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate",
    "cannot allocate",
    "not enough memory",
    "bad_alloc",
    "failed to map segment",
    "could not create a primitive",
    "could not create a memory object",
)
"""Messages of torch, safetensors, the dynamic loader and oneDNN when memory runs out; they do not raise MemoryError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


class PrefcliError(Exception):
    """Something could not be done (no network, disk full, a run that does not exist).

    Parameters
    ----------
    what:
        What went wrong: lower case, no full stop.
    where:
        File, row, column; empty where it does not apply.
    hint:
        What to do about it: one sentence.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The error as one to three lines of text: what, where, what to do."""
        return [line for line in (self.what, self.where and f"in {self.where}", self.hint) if line]


class InputError(PrefcliError):
    """The input or the usage is wrong: exit code 2."""

    exit_code = 2


class NetworkError(PrefcliError):
    """The network was needed and could not be used."""


class ModelError(PrefcliError):
    """An encoder or a run could not be found or loaded."""


class MissingPackage(PrefcliError):  # noqa: N818  (as PackageNotFoundError of importlib)
    """A package is not installed that only some verbs and options need."""


REQUIREMENTS = {"transformers": '"transformers[sentencepiece]"', "prometheus_client": "prometheus-client"}
"""What ``pip install`` gets for a module, as a shell reads it, where that is not the module's name."""


def require(user: str, *modules: str, otherwise: str = "") -> None:
    """Check that packages are installed, without importing them.

    Parameters
    ----------
    user:
        What needs them: the beginning of the error.
    modules:
        Their names in an import.
    otherwise:
        A sentence on what does without them.

    Raises
    ------
    MissingPackage
        With the one line that installs those which are missing.
    """
    from importlib.util import find_spec

    if missing := [name for name in modules if find_spec(name) is None]:
        names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        be = "is" if len(missing) == 1 else "are"
        requirements = " ".join(REQUIREMENTS.get(name, name) for name in missing)
        hint = " ".join(filter(None, (otherwise, f"Install: pip install {requirements}")))
        raise MissingPackage(f"{user} needs {names}, which {be} not installed", hint=hint)


class Diverged(PrefcliError):  # noqa: N818  (what happened, as with the two others)
    """A training computes no finite numbers any more."""


class Interrupted(PrefcliError):  # noqa: N818  (not a failure)
    """A signal stopped the work; what was done is saved.

    ``exit_code`` is 128 plus the signal's number, as in shells: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, signal_number: int, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.exit_code = 128 + signal_number

"""What can go wrong, in words a user can act on.

Every error that prefcli foresees is a :class:`PrefcliError`: it says what happened, where, and what to do.
The command line prints it in one to three lines and exits with its ``exit_code``; a Python caller catches it.
"""

from __future__ import annotations


def one_line(value: object, limit: int = 200) -> str:
    """A value's text on one line of at most ``limit`` characters; an error without a text gives its type's name."""
    text = " ".join(str(value).split())
    if not text and isinstance(value, BaseException):
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


class PrefcliError(Exception):
    """Something could not be done (no network, disk full, a run that does not exist).

    Parameters
    ----------
    what:
        One sentence: what went wrong.
    where:
        File, row, column; empty where it does not apply.
    hint:
        One sentence: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.where and f"in {self.where}", self.hint) if part)

    def lines(self) -> list[str]:
        """The error as one to three lines of text: what, where, what to do."""
        return [line for line in (self.what, self.where and f"in {self.where}", self.hint) if line]


class InputError(PrefcliError):
    """The input or the usage is wrong: exit code 2."""

    exit_code = 2


class NetworkError(PrefcliError):
    """Something had to come from the network, and the network did not answer."""


class ModelError(PrefcliError):
    """An encoder or a run could not be found or loaded."""


class Interrupted(PrefcliError):  # noqa: N818  (it is no failure)
    """A signal stopped the work; what was done so far is saved.

    ``exit_code`` is 128 plus the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, signal_number: int, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.exit_code = 128 + signal_number

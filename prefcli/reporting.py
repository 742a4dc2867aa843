"""The interface by which modules report progress and warnings without printing.

The pipeline takes a :class:`Reporter`; the command line passes one that writes to stderr, a Python caller gets
:data:`SILENT` by default.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A running task of known or unknown length."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more units are done; ``note`` replaces the text beside the bar."""


class Reporter(Protocol):
    """Receives notes, warnings and progress."""

    def note(self, text: str) -> None:
        """Report something the user wants to know."""

    def warn(self, text: str) -> None:
        """Report something the user must not miss."""

    def track(
        self, what: str, total: float | None, unit: str = "battles", done: float = 0
    ) -> AbstractContextManager[Progress]:
        """Report the progress of ``what`` towards ``total`` units, ``done`` of which were finished before."""


class _NoProgress:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


class Silent:
    """A reporter that reports nothing."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def track(
        self, what: str, total: float | None, unit: str = "battles", done: float = 0
    ) -> AbstractContextManager[Progress]:
        return nullcontext(_NoProgress())


SILENT: Reporter = Silent()


def visible(text: str) -> str:
    """Text from a file, safe to print in a terminal: control characters are escaped."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)

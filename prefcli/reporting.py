"""How the rooms below the command line tell what they are doing, without printing.

The pipeline takes a :class:`Reporter`; the command line passes one that writes to stderr, a Python caller gets
:data:`SILENT` by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """A running piece of work of known or unknown length."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more units are done; ``note`` replaces what is said beside the bar."""


class Reporter(Protocol):
    """Hears notes, warnings and progress."""

    def note(self, text: str) -> None:
        """Something the user wants to know."""

    def warn(self, text: str) -> None:
        """Something the user must not miss."""

    @contextmanager
    def track(self, what: str, total: float | None, unit: str = "battles", done: float = 0) -> Iterator[Progress]:
        """Progress of ``what`` towards ``total`` units, ``done`` of them finished before."""
        yield _Nothing()


class _Nothing:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    @contextmanager
    def track(self, what: str, total: float | None, unit: str = "battles", done: float = 0) -> Iterator[Progress]:
        yield _Nothing()


SILENT: Reporter = Silent()


def visible(text: str) -> str:
    """Text from a file made safe for a terminal: control characters shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)

"""The interface by which modules report progress and warnings without printing.

The pipeline takes a :class:`Reporter`; the command line passes a :class:`prefcli.console.Console`, which writes to
stderr, a Python caller gets :data:`prefcli.console.LOGGING` by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

Batch = TypeVar("Batch", bound=Sized)


class Progress(Protocol):
    """A running task of known or unknown length."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more units are done; ``note`` replaces the text beside the bar."""

    def skip(self, amount: float, note: str = "") -> None:
        """``amount`` units do not count for the rate: they were done before, are not needed or unlike the others."""

    def expect(self, total: float) -> None:
        """The task will probably have ``total`` units."""

    def result(self, text: str) -> None:
        """Report an intermediate result, one of many perhaps, such as a validation."""


class Reporter(Protocol):
    """Receives notes, warnings and progress."""

    def note(self, text: str) -> None:
        """Report something the user wants to know."""

    def warn(self, text: str) -> None:
        """Report something the user must not miss."""

    def track(self, what: str, total: float | None, unit: str = "battles") -> AbstractContextManager[Progress]:
        """Report the progress of ``what`` towards ``total`` units; tasks may be inside of others."""


class _NoProgress:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass

    def skip(self, amount: float, note: str = "") -> None:
        pass

    def expect(self, total: float) -> None:
        pass

    def result(self, text: str) -> None:
        pass


NO_PROGRESS: Progress = _NoProgress()


class Silent:
    """A reporter that reports nothing."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def track(self, what: str, total: float | None, unit: str = "battles") -> AbstractContextManager[Progress]:
        return nullcontext(NO_PROGRESS)


SILENT: Reporter = Silent()


class OneOfSeveral:
    """A reporter for one of several like works: its tasks say which, and what those before said is not repeated."""

    def __init__(self, reporter: Reporter, number: int, total: int, noted: set[str]) -> None:
        self._reporter, self._noted = reporter, noted
        self._which = f" ({number} of {total})" if total > 1 else ""

    def note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._reporter.note(text)

    def warn(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._reporter.warn(text)

    def track(self, what: str, total: float | None, unit: str = "battles") -> AbstractContextManager[Progress]:
        return self._reporter.track(f"{what}{self._which}", total, unit)


def followed(batches: Iterable[Batch], progress: Progress) -> Iterator[Batch]:
    """The batches; when the next one is asked for, ``progress`` advances by the rows of the one before."""
    for batch in batches:
        yield batch
        progress.advance(len(batch))


def visible(text: str) -> str:
    """Text from a file, safe to print in a terminal: control characters are escaped."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)

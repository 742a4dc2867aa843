"""Reporters: on stderr, with progress bars on a terminal and few lines elsewhere; and to the standard ``logging``.

Where it is piped, however long a command takes, progress is a line after ten seconds and one each time that the whole
time has doubled. Intermediate results (validations, folds) are the same after the first few, which are always written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from prefcli.reporting import NO_PROGRESS, visible

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

    from prefcli.reporting import Progress, Reporter

FIRST_LINE_SECONDS = 10.0
MAX_RESULTS, MAX_RESULTS_PIPED = 20, 5
"""Intermediate results that are written however fast they come."""
BAR_WIDTHS = {120: 30, 80: 10, 0: 8}
"""Columns of the bar on a terminal that has so many at least."""
MIN_NOTE_WIDTH = 12

LOGGER = logging.getLogger("prefcli")
PROGRESS_LOGGER = logging.getLogger("prefcli.progress")
LOGGED_SECONDS = 10.0
"""Between two records of progress."""


class Console:
    """Notes, warnings and progress on stderr.

    Parameters
    ----------
    quiet:
        Write only warnings.
    clock:
        Seconds, for rates and times left.
    """

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console as RichConsole

        self._console = RichConsole(stderr=True, highlight=False, emoji=False)
        self._is_terminal = self._console.is_terminal
        self._quiet = quiet
        self._clock = clock
        self._started = clock()
        self._next_line = FIRST_LINE_SECONDS
        self._results = 0
        self._tasks: list[Task] = []
        self._live: Any = None

    def note(self, text: str) -> None:
        """Write something the user wants to know."""
        if not self._quiet:
            self._print(text, "dim")

    def warn(self, text: str) -> None:
        """Write something the user must not miss."""
        self._print(f"warning: {text}", "yellow")

    @contextmanager
    def track(self, what: str, total: float | None, unit: str = "battles") -> Iterator[Progress]:
        """A bar, or lines now and then; a task inside of another has a bar below it."""
        if self._quiet:
            yield NO_PROGRESS
            return
        task = Task(what, total, unit, self._clock, self)
        self._tasks.append(task)
        try:
            with self._shown():
                yield task
        finally:
            self._tasks.remove(task)

    def result(self, text: str) -> None:
        """Write an intermediate result, unless there have been many."""
        self._results += 1
        always = self._results <= (MAX_RESULTS if self._is_terminal else MAX_RESULTS_PIPED)
        if self._line_is_due() or always:
            self.note(text)

    def advanced(self, task: Task) -> None:
        """A task has advanced: a line is due now and then if there is no terminal."""
        if not self._is_terminal and self._line_is_due():
            self.note(task.line())

    def _line_is_due(self) -> bool:
        elapsed = self._clock() - self._started
        due = elapsed >= self._next_line
        if due:
            self._next_line = 2 * elapsed
        return due

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show the bars of all tasks while the first one lasts."""
        if not self._is_terminal or self._live is not None:
            yield
            return
        from rich.console import Group
        from rich.live import Live

        def bars() -> Group:
            return Group(*self._tasks)

        self._live = Live(get_renderable=bars, console=self._console, refresh_per_second=8, transient=True)
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def _print(self, text: str, style: str) -> None:
        """Words are wrapped at a terminal's width; piped, a message is one line."""
        style = style if self._is_terminal else ""
        self._console.print(visible(text), markup=False, style=style, soft_wrap=not self._is_terminal)


class Logging:
    """A reporter: the logger ``prefcli`` gets warnings and notes, ``prefcli.progress`` how far a task is."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __repr__(self) -> str:
        return "prefcli.console.LOGGING"

    def note(self, text: str) -> None:
        """Log something the user wants to know: INFO."""
        LOGGER.info("%s", text)

    def warn(self, text: str) -> None:
        """Log something the user must not miss: WARNING."""
        LOGGER.warning("%s", text)

    def result(self, text: str) -> None:
        """Log an intermediate result: INFO."""
        LOGGER.info("%s", text)

    def track(self, what: str, total: float | None, unit: str = "battles") -> AbstractContextManager[Progress]:
        """Log how far a task is, now and then: INFO."""
        return nullcontext(Task(what, total, unit, time.monotonic, self))

    def advanced(self, task: Task) -> None:
        """A task has advanced."""
        if time.monotonic() - self._last >= LOGGED_SECONDS:
            self._last = time.monotonic()
            PROGRESS_LOGGER.info("%s", task.line())


LOGGING: Reporter = Logging()


class TaskOwner(Protocol):
    """A reporter of tasks."""

    def advanced(self, task: Task) -> None:
        """A task has advanced."""

    def result(self, text: str) -> None:
        """A task has an intermediate result."""


class Task:
    """A running task: how far it is, how fast, and how long it will take."""

    def __init__(self, what: str, total: float | None, unit: str, clock: Callable[[], float], owner: TaskOwner) -> None:
        self._what, self._total, self._unit = visible(what), total, unit
        self._clock, self._owner = clock, owner
        self._done = self._timed = 0.0
        """Units that are done, and those of them that the rate is measured on."""
        self._begun = self._last = clock()
        self._advanced = False
        self._shown = 0.0
        self._note = ""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more units are done; ``note`` replaces the text beside the bar."""
        self._last = self._clock()
        self._done += amount
        if self._advanced:
            self._timed += amount
        else:
            # What is done first also starts threads, fills caches and the like: rates would be too low for long.
            self._advanced, self._begun = True, self._last
        self._note = visible(note) or self._note
        self._owner.advanced(self)

    def skip(self, amount: float, note: str = "") -> None:
        """``amount`` units do not count for the rate: they were done before, are not needed or unlike the others."""
        self._done += amount
        self._note = visible(note) or self._note

    def expect(self, total: float) -> None:
        """The task will probably have ``total`` units; what the bar shows does not go back."""
        self._total = total

    def result(self, text: str) -> None:
        """An intermediate result: a line of its own, unless there have been many."""
        self._owner.result(text)

    @property
    def rate(self) -> float:
        """Units a second; 0 before it can be known."""
        seconds = self._last - self._begun
        return self._timed / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None before it can be known."""
        if not self._total or not self.rate:
            return None
        return max(0.0, (self._total - self._done) / self.rate - (self._clock() - self._last))

    def _share(self) -> float:
        """The part that is done; never less than it was before."""
        if self._total:
            self._shown = max(self._shown, min(1.0, self._done / self._total))
        return self._shown

    def line(self) -> str:
        """How far the task is: ``training: 1,200 of 2,700 battles (44%), 90.1/s, 0:16 left, loss 1.0``."""
        is_bytes = self._unit == "bytes"
        of_total = f" of {self._amount(self._total)}" if self._total else ""
        percent = f" ({self._share():.0%})" if self._total else ""
        parts = [f"{self._what}: {self._amount(self._done)}{of_total}{'' if is_bytes else f' {self._unit}'}{percent}"]
        if self.rate:
            parts.append(self._rate("" if is_bytes else "/s"))
        if (left := self.seconds_left) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join([*parts, self._note] if self._note else parts)

    def _amount(self, value: float) -> str:
        from rich.filesize import decimal

        return decimal(int(value)) if self._unit == "bytes" else f"{value:,.0f}"

    def _rate(self, suffix: str) -> str:
        if self._unit == "bytes":
            return f"{self._amount(self.rate)}/s"
        return f"{self.rate:,.{1 if self.rate < 10 else 0}f}{suffix}"

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> RenderResult:
        """The bar in one line of the terminal, with as much beside it as there is room for."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = f"{self._share():4.0%}" if self._total else self._amount(self._done) if self._done else "..."
        parts = [done]
        if (left := self.seconds_left) is not None:
            parts.append(f"{duration(left)} left")
        if self.rate:
            parts.append(self._rate(f" {self._unit}/s"))
        room = options.max_width - 1
        name = Text(self._what)
        name.truncate(max(room - len(parts[0]) - 1, 1), overflow="ellipsis")
        room -= name.cell_len
        cells: list[Any] = [name]
        while len(parts) > 1 and sum(len(part) + 1 for part in parts) > room:
            parts.pop()
        room -= sum(len(part) + 1 for part in parts)
        width = next(width for columns, width in BAR_WIDTHS.items() if options.max_width >= columns)
        if self._total and room > width:
            cells.append(ProgressBar(total=1.0, completed=self._share(), width=width))
            room -= width + 1
        cells += map(Text, parts)
        if self._note and room > min(MIN_NOTE_WIDTH, len(self._note)):
            note = Text(self._note, style="dim")
            note.truncate(room - 1, overflow="ellipsis")
            cells.append(note)
        grid = Table.grid(padding=(0, 1, 0, 0))
        for _ in cells:
            grid.add_column(no_wrap=True)
        grid.add_row(*cells)
        yield grid


def duration(seconds: float) -> str:
    """``0:05``, ``12:30``, ``1:02:03``, ``2 days, 3:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else str(timedelta(minutes=minutes, seconds=rest))

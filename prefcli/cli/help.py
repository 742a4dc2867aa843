"""The screens of ``--help``: what a verb does, its usage, its options in panels, examples.

They are written as plain text here because rich, which Typer would use, takes longer to load than a help may take.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from prefcli.options import FIRST_PANEL, TRAIN_PANELS

GENERAL = "General"
READING = "Reading the file"
PAIRS = "Training pairs"
PANELS = ("Arguments", "Options", *TRAIN_PANELS, PAIRS, READING, GENERAL)
"""Of a verb's options, in the order in which they are shown."""

MAX_WIDTH = 100
MIN_WIDTH = 40
NARROW = 64
"""In narrower terminals descriptions stand below what they describe."""
MAX_NAME = 26
"""A longer name of an option has a line for itself."""


class Row(NamedTuple):
    """An option, an argument or a command."""

    names: str
    value: str
    """What stands for an option's value."""
    text: str

    @property
    def name(self) -> str:
        return f"{self.names} {self.value}".rstrip()


def page(command: Any, ctx: Any) -> str:
    """The help of a command of Typer or of a group of commands."""
    width = max(MIN_WIDTH, min(shutil.get_terminal_size().columns, MAX_WIDTH))
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    description, *details = ["\n".join(_wrap(text, width)) for text in paragraphs]
    blocks = [description, usage(ctx), *details]
    for panels in (_commands(command, ctx), _options(command, ctx)):
        sizes = [len(row.name) for rows in panels.values() for row in rows]
        column = 4 + max((size for size in sizes if size <= MAX_NAME), default=0)
        for title, rows in panels.items():
            blocks.append("\n".join([f"{title}:", *(line for row in rows for line in _lines(row, column, width))]))
    blocks.append(command.epilog or "")
    return "\n\n".join(_with_bold_heading(block) for block in blocks if block)


def usage(ctx: Any) -> str:
    """The line of usage: required arguments bare, others in brackets."""
    command = ctx.command
    parts = ["[OPTIONS]"]
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            name = _value_name(parameter)
            several = "..." if parameter.nargs == -1 else ""
            parts.append(name + several if parameter.required else f"[{name}]{several}")
    if hasattr(command, "commands"):
        parts += ["COMMAND" if ctx.parent is None else "[COMMAND]", "[ARGS]..."]
    return f"Usage: {ctx.command_path} {' '.join(parts)}"


def short(command: Any) -> str:
    """What a command does, on one line: the first line of its help."""
    return str(command.help or "").strip().partition("\n")[0]


def _commands(command: Any, ctx: Any) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for name in command.list_commands(ctx) if hasattr(command, "commands") else ():
        each = command.commands[name]
        panels.setdefault(each.rich_help_panel or "Commands", []).append(Row(name, "", short(each)))
    return panels


def _options(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """Arguments and options by panel. A group of commands has one panel of options; the only one is called so."""
    panels: dict[str, list[Row]] = {title: [] for title in PANELS}
    for parameter in command.get_params(ctx):
        default = GENERAL if parameter.name == "help" else "Options"
        panel = getattr(parameter, "rich_help_panel", None) or default
        if parameter.param_type_name == "argument":
            panel = "Arguments"
        elif hasattr(command, "commands"):
            panel = "Options"
        panels[panel].append(_row(parameter))
    if not panels["Options"] and not panels[FIRST_PANEL]:
        panels = {
            "Options" if title == GENERAL else title: rows for title, rows in panels.items() if title != "Options"
        }
    return {title: rows for title, rows in panels.items() if rows}


def _row(parameter: Any) -> Row:
    text = parameter.help or ""
    if parameter.param_type_name == "argument":
        names, value = _value_name(parameter) + ("..." if parameter.nargs == -1 else ""), ""
    else:
        spellings = (", ".join(sorted(parameter.opts, key=len)), ", ".join(parameter.secondary_opts))
        names = " / ".join(filter(None, spellings))
        value = "" if parameter.is_flag else _value_name(parameter)
    default = spell(parameter.default) if parameter.show_default else ""
    return Row(names, value, f"{text} [default: {default}]" if default else text)


def spell(default: Any) -> str:
    """A default as the help shows it: nothing where there is none."""
    if default is None or default is False or default == ():
        return ""
    if isinstance(default, Enum):
        return str(default.value)
    return "on" if default is True else f"{default:g}" if isinstance(default, float) else str(default)


def _value_name(parameter: Any) -> str:
    """What stands for a value: the given name, else the values of an enumeration, else one for the type."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = type(parameter.default)
    if issubclass(kind, Enum):
        return "|".join(each.value for each in kind)
    return "PATH" if issubclass(kind, Path) else {int: "N", float: "X"}.get(kind, "TEXT")


def _lines(row: Row, column: int, width: int) -> Iterator[str]:
    """A row as lines: names to the left and text to the right, or the text below where there is no room beside."""
    below = width < NARROW or len(row.name) + 4 > column
    if width < NARROW:
        column = 6
    text = _wrap(row.text, width - column)
    first, *rest = _wrap(row.name, width - 2)
    if text and not below:
        first = f"{first:<{column - 2}}{text.pop(0)}"
    yield "  " + first.replace(row.names, _styled(row.names, CYAN), 1)
    yield from (" " * 6 + line for line in rest)
    yield from (" " * column + line for line in text)


NO_BREAK = "\N{NO-BREAK SPACE}"
SHORT_DEFAULT = re.compile(r"\[default: [^]]{1,24}\]")
"""It stands on one line."""


def _wrap(text: str, width: int) -> list[str]:
    text = SHORT_DEFAULT.sub(lambda match: match[0].replace(" ", NO_BREAK), " ".join(text.split()))
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


BOLD, CYAN = "1", "36"
HEADING = re.compile(r"Usage:|[^\n]+:(?=\n)")


def _with_bold_heading(block: str) -> str:
    heading = HEADING.match(block)
    return _styled(heading[0], BOLD) + block[heading.end() :] if heading else block


def _styled(text: str, code: str) -> str:
    """The text in a colour, on a terminal that shows colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\033[{code}m{text}\033[0m"

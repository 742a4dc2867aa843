"""What a server process imports once, so that processes of ``prefcli`` forked from it start at once (see conftest.py).

Importing torch and transformers takes longer than what the tests do in several processes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import transformers.models.auto.modeling_auto
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama  # noqa: F401

from prefcli import api, encoders  # noqa: F401
from prefcli.cli.main import run
from prefcli.models import neural, reward  # noqa: F401
from prefcli.storage import files
from prefcli.training import experiment, fit_neural  # noqa: F401


def die_at_line(number: int) -> None:
    """Kill this process right after it wrote a line of a log."""
    append, lines = files.append_line, []

    def append_and_die(path: Path, line: str) -> None:
        append(path, line)
        lines.append(line)
        if len(lines) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    files.append_line = append_and_die


def call(
    commands: Sequence[tuple[Mapping[str, str], Sequence[str]]],
    folder: Path,
    variables: Mapping[str, str],
    output: Path,
) -> None:
    """Run commands until one fails, in ``folder``; what they print is in ``output``, with ``.out`` and ``.err``.

    Each command has environment variables of its own; ``KILLED_AT_LINE`` is for :func:`die_at_line`.
    """
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        stream = os.open(output.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    for own, arguments in commands:
        os.environ.update(own)
        if line := os.environ.get("KILLED_AT_LINE"):
            die_at_line(int(line))
        if code := run([*arguments]):
            sys.exit(code)

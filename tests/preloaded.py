"""What a server process imports once, so that processes of ``prefcli`` forked from it start at once (see conftest.py).

Importing torch and transformers takes longer than what the tests do in several processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import transformers.models.auto.modeling_auto
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama  # noqa: F401

from prefcli import api, encoders  # noqa: F401
from prefcli.cli.main import run
from prefcli.models import neural, reward  # noqa: F401
from prefcli.training import experiment, fit_neural  # noqa: F401


def call(
    commands: Sequence[tuple[Mapping[str, str], Sequence[str]]],
    folder: Path,
    variables: Mapping[str, str],
    output: Path,
) -> None:
    """Run commands until one fails, in ``folder``; what they print is in ``output``, with ``.out`` and ``.err``.

    Each command has environment variables of its own.
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
        if code := run([*arguments]):
            sys.exit(code)

"""What the shell completes, in the shells themselves where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_runs import offered
from typer.completion import get_completion_script

from prefcli import groups
from prefcli.cli.completion import FORMATS, GROUPS
from prefcli.readers import LAYOUTS

VALUES = [
    ("train --recipe ", {"baseline", "fast", "strong"}),
    ("train x.csv --architecture s", {"siamese"}),
    ("train --text ", {"nltk", "light", "raw"}),
    ("train --device c", {"cpu", "cuda"}),
    ("train --tracker ", {"tensorboard", "wandb"}),
    ("train --precision=b", {"bf16"}),
    ("rank x --pairs-layout t", {"trl", "trl-text"}),
    ("preprocess x --text l", {"light"}),
    ("score a b --outcomes ", {"auto", "2", "3"}),
    ("score a b --by ", {"script", "length", "turns", "models"}),
    ("eda x --format ara", set()),
    ("eda x --format are", {"arena"}),
    ("runs --sort ", {"when", "name", "loss", "gain", "size"}),
    ("runs list --architecture f", {"features"}),
    ("tra", {"train"}),
    ("eda ", set()),
]


@pytest.mark.parametrize(("line", "values"), VALUES, ids=[line for line, _ in VALUES])
def test_values_of_options_complete(line: str, values: set[str]) -> None:
    assert offered(f"prefcli {line}") == values


def test_encoders_complete_by_name_and_by_folder(tmp_path: Path) -> None:
    for folder in ("tinier", "models/bert [1]"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").touch()
    (tmp_path / "tiny-notes").mkdir()
    assert offered("prefcli train --encoder ") == {"minilm", "tiny", "tinier"}
    assert offered("prefcli train --encoder t") == {"tiny", "tinier"}
    assert offered("prefcli train --encoder models/") == {"models/bert", "[1]"}  # one name, at its space
    assert offered("prefcli train --encoder x") == set()


def test_names_that_completion_keeps_are_those_of_the_code() -> None:
    assert tuple(layout.name for layout in LAYOUTS) == FORMATS
    assert tuple(groups.COMPUTED) == GROUPS


ASK = {
    "bash": """COMP_WORDS=(prefcli train --recipe ""); COMP_CWORD=3
        _prefcli_completion prefcli; printf '%s\\n' "${COMPREPLY[@]}" """,
    # Without a terminal zsh completes nothing: what its function hands to _arguments is shown.
    "zsh": """_arguments() { print -r -- "$@" }; words=(prefcli train --recipe ""); CURRENT=4; _prefcli_completion""",
    "fish": """complete -C "prefcli train --recipe " """,
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ASK)
def test_each_installed_shell_completes_by_the_script_that_it_gets(shell: str, tmp_path: Path) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "bin" / "prefcli"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prefcli "$@"\n')
    command.chmod(0o755)
    script = get_completion_script(prog_name="prefcli", complete_var="_PREFCLI_COMPLETE", shell=shell)
    stub = "compdef() { : }\n" if shell == "zsh" else ""
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [program, "-c", f"{stub}{script}\n{ASK[shell]}"], env=environment, capture_output=True, text=True, check=False
    )
    for value, summary in (("baseline", "original notebook"), ("fast", "minutes"), ("strong", "GPU")):
        assert value in done.stdout, done.stderr
        assert (summary in done.stdout) == (shell != "bash")

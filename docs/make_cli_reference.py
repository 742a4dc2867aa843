"""Write docs/cli.md from the command's own help, and the table of layouts: ``python docs/make_cli_reference.py``.

``make docs`` does the same.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

PAGE = Path(__file__).parent / "cli.md"
FORMATS = Path(__file__).parent / "formats.md"

HEAD = """# Command line reference

Made from `--help` by `make docs`; a test fails when it is stale.

Results go to stdout, everything else (progress, notes, warnings) to stderr; with `--json` stdout is one JSON object.
Exit codes: 0 done; 1 could not be done (no network, disk full); 2 wrong input or usage; 130 and 143 interrupted.
An error is one to three lines: what, where, what to do; `--debug` shows where in the code it happened.

`prefcli --install-completion` lets bash, zsh and fish complete commands, options, their values, and names of runs.
"""


def page() -> str:
    """The reference as Markdown."""
    os.environ["COLUMNS"] = "90"  # what fits beside the site's navigation
    from prefcli.cli.main import COMMANDS, PANELS

    parts = [HEAD, screen("")]
    title = ""
    for verb, panel in PANELS.items():
        if panel != title:
            title = panel
            parts.append(f"## {title}\n")
        parts += [
            f"### prefcli {name}\n\n{screen(name)}"
            for name in (verb, *(f"{verb} {each}" for each in COMMANDS.get(verb, ())))
        ]
    return "\n".join(parts)


def screen(name: str) -> str:
    """The help of a command, as a block."""
    from prefcli.cli.main import run

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        run([*name.split(), "--help"])
    return f"```text\n{text.getvalue()}```\n"


def formats() -> str:
    """The page of formats with the table of layouts as the code has it."""
    from prefcli.readers import LAYOUTS

    rows = ["| `--format` | what | where |", "|---|---|---|"]
    for layout in LAYOUTS:
        columns = ",".join(f"{name}={path}" for name, path in layout.columns.items() if name != path)
        where = [columns, layout.each, layout.outcome]
        rows.append(f"| `{layout.name}` | {layout.summary} | {'<br>'.join(f'`{text}`' for text in where if text)} |")
    before, _, rest = FORMATS.read_text(encoding="utf-8").partition("<!-- layouts -->\n")
    return "\n".join(
        [before + "<!-- layouts -->", *rows, "<!-- end of layouts -->" + rest.partition("<!-- end of layouts -->")[2]]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    FORMATS.write_text(formats(), encoding="utf-8")

"""Names of runs for the shell's completion. It must be quick, so it imports nothing heavy and loads no run."""

from __future__ import annotations

from pathlib import Path

import typer

from prefcli.storage.run_names import default_root, run_folders, run_name


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names that begin so; none where the shell should complete a path."""
    root = find_root(ctx)
    return [name for name in (run_name(root, folder) for folder in run_folders(root)) if name.startswith(incomplete)]


def find_root(ctx: typer.Context) -> Path:
    """The workspace: from the verb's own options, else those given before the verb, else the environment."""
    given = (context.params.get("workspace") for context in (ctx, ctx.find_root()))
    root = next(filter(None, given), None)
    return default_root() if root is None else Path(root).expanduser()

"""What the shell completes: values of options, encoders, names of runs.

It must be quick, so it imports nothing heavy and loads no run.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import typer

from prefcli.options import ENCODER_ALIASES
from prefcli.storage.run_names import default_root, run_folders, run_name

FORMATS = (
    *("prefcli", "mt-bench", "arena", "search-arena", "vote-log", "mt-bench-pairs", "openai-preference", "nemo-rl"),
    *("ultrafeedback", "nectar", "stack-exchange", "oasst", "distilabel", "distilabel-input", "ms-swift"),
    *("ms-swift-messages", "ms-swift-query", "llama-factory-output", "reward-bench-2", "helpsteer3", "helpsteer2"),
    *("safe-rlhf", "shp", "alpaca-eval", "llmbar", "judgebench", "webgpt", "pandalm", "summarize"),
    *("preference-collection", "kaggle", "generic", "preferences", "lists"),
)
"""Names of the layouts: their table imports NumPy and Arrow."""
GROUPS = ("script", "length", "turns", "models")
"""What ``--by`` takes of any file; their functions import NumPy."""


def complete_values(
    values: Iterable[str], summaries: Mapping[str, str] | None = None
) -> Callable[[str], list[tuple[str, str]]]:
    """A completion for an option with these values, which shells show with what they mean."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(value, (summaries or {}).get(value, "")) for value in values if value.startswith(incomplete)]

    return complete


def complete_encoder(incomplete: str) -> list[str]:
    """Names of encoders without a folder, and folders that hold one; none where the shell should complete a path."""
    folders = [path.rstrip("/") for path in glob.glob(glob.escape(incomplete) + "*/")]
    encoders = sorted(folder for folder in folders if Path(folder, "config.json").is_file())
    return [name for name in (*ENCODER_ALIASES, "tiny") if name.startswith(incomplete)] + encoders


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names that begin so; none where the shell should complete a path."""
    root = find_root(ctx)
    return [name for name in (run_name(root, folder) for folder in run_folders(root)) if name.startswith(incomplete)]


def find_root(ctx: typer.Context) -> Path:
    """The workspace: from the verb's own options, else those given before the verb, else the environment."""
    given = (context.params.get("workspace") for context in (ctx, ctx.find_root()))
    root = next(filter(None, given), None)
    return default_root() if root is None else Path(root).expanduser()

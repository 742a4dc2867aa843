"""The command ``prefcli``: its verbs, and how errors become one to three lines and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli._version import __version__
from prefcli.cli import ablate, common, demo, eda, export, predict, preprocess, push, score, train
from prefcli.errors import PrefcliError, one_line

app = typer.Typer(
    name="prefcli",
    help="Predict which of two LLM answers a person prefers: from raw votes to calibrated probabilities.",
    epilog="Start with: prefcli demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = {
    "eda": eda,
    "preprocess": preprocess,
    "train": train,
    "predict": predict,
    "export": export,
    "score": score,
    "push": push,
    "ablate": ablate,
    "demo": demo,
}
for name, verb in VERBS.items():
    app.command(name=name, epilog=verb.EXAMPLES)(verb.run)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"prefcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    ctx.obj = {"workspace": workspace, "quiet": quiet, "debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 could not be done, 2 wrong input or usage, 130 interrupted."""
    _prepare_streams()
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except Exception as error:  # --debug: the traceback names what files hold
        import traceback

        print(*map(common.visible, traceback.format_exc().rstrip("\n").split("\n")), sep="\n", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.exit(code)


class _Heedless(io.FileIO):
    """Where messages go. What cannot be said (a full disk, a reader that went away) is not worth failing for."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _prepare_streams() -> None:
    """Make streams that the caller closed lead nowhere, standard output know all letters, standard error never fail."""
    # In this order each takes its own number again, which the next file that is opened would otherwise get.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # LANG=C has no letters for names in other languages
    try:
        messages = io.BufferedWriter(_Heedless(sys.stderr.fileno(), "w", closefd=False))
    except (OSError, ValueError):  # somebody put another object there
        return
    sys.stderr = io.TextIOWrapper(messages, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    # Threads that wait for each other by spinning cost little on an idle machine and, on one that is shared, were
    # measured to slow training down ten times; sleeping costs a few per cent at most. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # ... but not at once: the next piece of work mostly comes within microseconds, and waking a thread takes longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # Numpy's own linear algebra is only asked to solve small systems here, which its threads make slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = app(args=arguments, prog_name="prefcli", standalone_mode=False)
        sys.stdout.flush()
        return _fail(130, "interrupted") if code == 130 else int(code or 0)
    except PrefcliError as error:
        if "--debug" in arguments:
            raise
        return _fail(error.exit_code, *error.lines())
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        # The reader of our output went away (prefcli ... | head): nothing to say, and nobody to say it to.
        _drop_output()
        return 1
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(error, arguments)


OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate",
    "cannot allocate",
    "bad_alloc",
    "failed to map segment",
    "could not create a primitive",
    "could not create a memory object",
)
"""How libraries say that memory ran out, where they do not raise MemoryError: torch, the system's loader, oneDNN."""
LESS_MEMORY = {
    "train": "Try a smaller --micro-batch or --max-length, or --gradient-checkpointing.",
    "ablate": "Try a smaller --micro-batch or --max-length, or --gradient-checkpointing.",
    "preprocess": "Try --workers 1.",
    "predict": "Try --workers 1, or one --model at a time.",
}


def _explain(error: Any, arguments: list[str]) -> int:
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the usage errors of Typer's parser
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "prefcli"
        message = one_line(error.format_message(), 1000)
        return _fail(error.exit_code, message, f"Try: {path} --help") if message else int(error.exit_code)
    if type(error).__name__ == "Abort":
        return _fail(130, "interrupted")
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        verb = next((argument for argument in arguments if argument in VERBS), "")
        return _fail(1, "out of memory", LESS_MEMORY.get(verb, "Free some memory, or use a larger machine."))
    if isinstance(error, OSError):
        from prefcli.storage.files import write_error

        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            _drop_output()
            return _fail(1, f"cannot write to standard output: {os.strerror(error.errno)}")
        return _fail(1, *write_error(Path(error.filename or "."), error).lines())
    return _fail(
        1,
        f"unexpected {type(error).__name__}: {one_line(error, 300)}",
        "This is a defect of prefcli; the same command with --debug shows where it happened.",
    )


def _drop_output() -> None:
    """Let what was not yet printed go, so that the end of the process does not try again."""
    with contextlib.suppress(OSError, ValueError):  # in tests it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(code: int, *lines: str) -> int:
    """Say what went wrong; of several processes under ``torchrun`` the first one speaks."""
    if os.environ.get("RANK", "0") != "0":
        return code
    sys.stdout.flush()
    for number, line in enumerate(lines):
        print(("error: " if number == 0 else "  ") + common.visible(line), file=sys.stderr)
    return code

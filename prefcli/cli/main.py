"""The command ``prefcli``: its verbs, and how errors become one to three lines and an exit code."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli._version import __version__
from prefcli.cli import (
    ablate,
    common,
    compare,
    demo,
    eda,
    export,
    predict,
    preprocess,
    push,
    rank,
    report,
    runs,
    score,
    serve,
    train,
)
from prefcli.cli.flags import RootGroup, VerbCommand, VerbGroup
from prefcli.cli.help import GENERAL, usage
from prefcli.errors import MissingPackage, PrefcliError, did_you_mean, is_out_of_memory, one_line, require


class Root(RootGroup):
    """The verbs in the order of :data:`GROUPS`; Typer puts those with commands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)


app = typer.Typer(
    name="prefcli",
    cls=Root,
    help="Predict which of two LLM answers a person prefers: from raw votes to calibrated probabilities.",
    epilog="Start here:\n"
    "  prefcli demo                           all verbs on synthetic battles\n"
    "  prefcli eda train.csv                  what the votes of a file say\n"
    "  prefcli train train.csv --recipe fast  a first model, in minutes\n\n"
    "prefcli COMMAND --help shows a command's options and examples.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
GROUPS = {
    "From votes to probabilities": (eda, preprocess, train, compare, predict, score, rank, serve),
    "Runs": (runs, report, export, push),
    "Try and measure": (demo, ablate),
}
"""The verbs as the help groups them."""
PANELS = {module.__name__.rpartition(".")[2]: title for title, modules in GROUPS.items() for module in modules}
VERBS = {module.__name__.rpartition(".")[2]: module for modules in GROUPS.values() for module in modules}
COMMANDS = {"runs": runs.COMMANDS}
"""The commands of verbs that have some."""
for name, verb in VERBS.items():
    if commands := COMMANDS.get(name):
        group = typer.Typer(cls=VerbGroup, help=verb.__doc__, epilog=verb.EXAMPLES, rich_markup_mode=None)
        for command_name, function in commands.items():
            group.command(name=command_name, cls=VerbCommand)(function)
        app.add_typer(group, name=name, rich_help_panel=PANELS[name])
    else:
        app.command(name=name, epilog=verb.EXAMPLES, cls=VerbCommand, rich_help_panel=PANELS[name])(verb.run)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"prefcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    workspace: common.WorkspaceOption = None,
    quiet: common.QuietOption = False,
    debug: common.DebugOption = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
            rich_help_panel=GENERAL,
        ),
    ] = False,
) -> None:
    ctx.obj = {**(ctx.obj or {"arguments": ()}), "workspace": workspace, "quiet": quiet}  # run() looks for --debug


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 success, 1 failure, 2 wrong input or usage, 130 interrupted."""
    _prepare_streams()
    _stop_on_signals()
    _start_sooner()
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except Exception as error:  # only with --debug
        import traceback

        # Messages may quote files, whose content must not reach the terminal as control sequences.
        print(*map(common.visible, traceback.format_exc().rstrip("\n").split("\n")), sep="\n", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    if code > 128:  # interrupted, and cleaned up: what still waits in another thread or at exit does not count
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _start_sooner() -> None:
    """Settings of the whole process that make heavy libraries load faster; not for a Python that only imports us."""
    # LightGBM imports scikit-learn where it finds it, and with it most of SciPy; nothing here uses them.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    # torch and transformers make a million objects that stay; to look for cycles in them takes a seventh of the start.
    gc.set_threshold(10_000, 50, 50)


STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the process at once by default, and then leave its temporary files behind."""


class _Stopped(SystemExit):
    """A signal of :data:`STOPPING` came."""

    code: int


def _stop_on_signals() -> None:
    """Leave by an exception when a signal comes, so that temporary files and locks are removed."""

    def stop(number: int, frame: Any) -> None:
        raise _Stopped(128 + number)

    if "RANK" in os.environ:  # a process of torchrun may be waiting for others in C++, which no exception interrupts
        return
    for number in STOPPING:
        if signal.getsignal(number) == signal.SIG_DFL:  # not ignored, as nohup does
            signal.signal(number, stop)
    sys.unraisablehook = _raise_again


def _raise_again(unraisable: Any) -> None:
    """Python ignores exceptions in destructors: one that a signal raised there is raised once more, elsewhere."""
    if isinstance(unraisable.exc_value, (KeyboardInterrupt, _Stopped)):
        number = getattr(unraisable.exc_value, "code", 128 + signal.SIGINT) - 128
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
    else:
        sys.__unraisablehook__(unraisable)


class _LenientFile(io.FileIO):
    """A file that ignores write errors: a full disk or a closed pipe must not turn a message into a failure."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _prepare_streams() -> None:
    """Replace closed streams by null devices, let stdout escape what it cannot encode, and let stderr never fail."""
    # Opened in this order, each gets its own file descriptor back, which the next opened file would otherwise take.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (open until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # with LANG=C it cannot encode names in other scripts
    try:
        messages = io.BufferedWriter(_LenientFile(sys.stderr.fileno(), "w", closefd=False))
    except (OSError, ValueError):  # replaced by an object that is not a file
        return
    sys.stderr = io.TextIOWrapper(messages, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    # Threads that spin while they wait cost little on an idle machine, but slowed training ten times on a shared one;
    # sleeping costs a few per cent at most. Both variables are read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # They spin briefly first: the next task mostly arrives within microseconds, and waking a thread takes longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # In bfloat16 on a CPU oneDNN and PyTorch each keep up to 1,024 matrix products, one for every shape, and texts of
    # many lengths make many shapes. Only the last ones are soon needed again.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    # NumPy solves only small linear systems here, which threads make slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if "_PREFCLI_COMPLETE" in os.environ:
        # Typer renders descriptions by rich where it finds it, which takes longer than a completion may.
        sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    try:
        code = app(args=arguments, prog_name="prefcli", standalone_mode=False, obj={"arguments": arguments})
        sys.stdout.flush()
        return _fail(130, "interrupted") if code == 130 else int(code or 0)
    except PrefcliError as error:
        if "--debug" in arguments:
            raise
        return _fail(error.exit_code, *error.lines())
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except _Stopped as stopped:
        return _fail(stopped.code, "interrupted")
    except BrokenPipeError:
        # The reader of the output is gone, as in prefcli ... | head.
        _discard_output()
        return 1
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(error, arguments)


MEMORY_HINTS = {
    "train": "Try a smaller --micro-batch or --max-length, or --gradient-checkpointing.",
    "ablate": "Try a smaller --micro-batch or --max-length, or --gradient-checkpointing.",
    "preprocess": "Try --workers 1.",
    "predict": "Try --workers 1, or one --model at a time.",
    "compare": "Try one --model at a time.",
    "rank": "Try one --model at a time, or fewer answers to a prompt.",
}


def _explain(error: Any, arguments: list[str]) -> int:
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _fail(error.exit_code, *_usage_lines(error, _verb_in(arguments)))
    if type(error).__name__ == "Abort":
        return _fail(130, "interrupted")
    if isinstance(error, ModuleNotFoundError) and error.name:
        try:
            require(f"prefcli {_verb_in(arguments)}".rstrip(), error.name.partition(".")[0])
        except MissingPackage as missing:
            return _fail(1, *missing.lines())
    if is_out_of_memory(error):
        return _fail(
            1, "out of memory", MEMORY_HINTS.get(_verb_in(arguments), "Free some memory, or use a larger machine.")
        )
    if isinstance(error, OSError):
        from prefcli.storage.files import write_error

        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            _discard_output()
            return _fail(1, f"cannot write to standard output: {os.strerror(error.errno)}")
        return _fail(1, *write_error(Path(error.filename or "."), error).lines())
    return _fail(
        1,
        f"unexpected {type(error).__name__}: {one_line(error, 300)}",
        "This is a bug in prefcli; add --debug to see where it happened.",
    )


def _verb_in(arguments: list[str]) -> str:
    return next((argument for argument in arguments if argument in VERBS), "")


def _usage_lines(error: Any, verb: str) -> list[str]:
    """A usage error of Typer as lines: what is wrong, a similar option or the usage, and where help is."""
    context = getattr(error, "ctx", None)
    path = f"prefcli {verb}".strip() if context is None else context.command_path
    hint = f"Try: {path} --help"
    if context is not None and hasattr(error, "possibilities"):
        flags = [flag for each in context.command.get_params(context) for flag in (*each.opts, *each.secondary_opts)]
        similar = did_you_mean(error.option_name, [flag for flag in flags if flag.startswith("--")])
        return [f"no such option: {error.option_name}", f"{similar} {hint}".strip()]
    if hasattr(error, "param_type") and error.param is not None:
        missing = error.param.metavar
        if missing == "PREDS":  # of one file it is not known which of the two it is
            missing = "a file: predictions and labels are needed"
        return [f"missing {missing}", usage(context), hint]
    what = one_line(error.format_message(), 1000).rstrip(".")
    return [what[:1].lower() + what[1:], hint]


def _discard_output() -> None:
    """Discard output that is still buffered, so that it is not written again when the process ends."""
    with contextlib.suppress(OSError, ValueError):  # stdout may not be a file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _record_error(path: Path, lines: Sequence[str]) -> None:
    """Write an error as ``torch.distributed.elastic``'s ``record`` does, so that torchrun shows it with the rank."""
    text = "\n".join(map(common.visible, lines))
    message = {"message": lines[0], "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):
        path.write_text(json.dumps({"message": message}), encoding="utf-8")


def _fail(code: int, *lines: str) -> int:
    """Print an error to stderr; under ``torchrun`` only the main process does, and all give it to torchrun's report."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        _record_error(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), lines)
    if os.environ.get("RANK", "0") != "0":
        return code
    sys.stdout.flush()
    for number, line in enumerate(lines):
        print(("error: " if number == 0 else "  ") + common.visible(line), file=sys.stderr)
    return code

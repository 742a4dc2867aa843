"""What the verbs share: common options, a reporter that writes to stderr, and how results are printed."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli.completion import FORMATS, GROUPS, complete_encoder, complete_values, find_root
from prefcli.cli.completion import complete_run as complete_run
from prefcli.cli.help import GENERAL, READING
from prefcli.reporting import SILENT, visible

if TYPE_CHECKING:
    from prefcli.battles import Source as Reading
    from prefcli.metrics import Interval, NamedDifference
    from prefcli.pipeline.estimate import Estimate
    from prefcli.reporting import Reporter
    from prefcli.storage.workspace import Workspace

else:
    Reading = Any  # the verbs' signatures are looked at for --help, which imports neither NumPy nor Arrow

GeneralOption = functools.partial(typer.Option, rich_help_panel=GENERAL)
ReadingOption = functools.partial(typer.Option, rich_help_panel=READING)

WorkspaceOption = Annotated[
    Path | None,
    GeneralOption(
        "--workspace", metavar="DIR", help="Folder of caches and runs. [default: .prefcli, or $PREFCLI_WORKSPACE]"
    ),
]
QuietOption = Annotated[bool, GeneralOption("--quiet", "-q", help="Print only results, warnings and errors.")]
DebugOption = Annotated[bool, GeneralOption("--debug", help="Show a traceback when something goes wrong.")]
JsonOption = Annotated[bool, GeneralOption("--json", help="Print the result as one JSON object.")]
ESTIMATE_HELP = "Time a sample, print the expected time and memory, and stop."
EstimateOption = Annotated[bool, typer.Option("--estimate", help=ESTIMATE_HELP)]
ForceOption = Annotated[bool, GeneralOption("--force", help="Overwrite an existing output.")]
FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE", help="Battles: CSV, TSV, JSON, JSONL or Parquet, also .gz and .zip; or - for standard input."
    ),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="RUN",
        autocompletion=complete_run,
        help="A run's folder or name, or hf://owner/name; repeat it to blend several. [default: the latest run]",
    ),
]
CalibrationOption = Annotated[
    bool,
    typer.Option(
        "--calibration/--no-calibration",
        help="Fit a temperature, and weights of several runs, on held-out battles; kept only if that helps.",
    ),
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="COLUMN",
        autocompletion=complete_values(GROUPS),
        help="Also by group: a column of the file, a path into one, or script, length, turns or models.",
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME|DIR",
        help="Where the encoder of a LoRA run is now, if it has moved.",
        autocompletion=complete_encoder,
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name.", autocompletion=complete_run)]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, metavar="N", help="Processes for text normalisation. [default: all cores]"),
]

STANDARD_OUTPUT = Path("-")
PIPED_WIDTH = 500


@dataclass(frozen=True)
class Session:
    """What all commands need: where caches and runs are, where messages go, and how to print results."""

    workspace: Workspace
    reporter: Reporter
    json: bool
    is_main_process: bool
    """Whether this process prints results (of several under ``torchrun``)."""
    quiet: bool = False
    arguments: tuple[str, ...] = ()
    """The command line after ``prefcli``."""


def open_session(
    ctx: typer.Context,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,  # main.run looks for it
) -> Session:
    """From the verb's own options, else those given before the verb, else the environment."""
    from prefcli.compute.distributed import from_environment
    from prefcli.console import Console
    from prefcli.storage.workspace import Workspace

    root = workspace or find_root(ctx)
    quiet = quiet or ctx.obj["quiet"]
    is_main_process = from_environment().is_main_process
    reporter: Reporter = Console(quiet=quiet) if is_main_process else SILENT
    return Session(Workspace(root), reporter, json, is_main_process, quiet, tuple(ctx.obj["arguments"]))


def open_reading(
    format: Annotated[
        str | None,
        ReadingOption(
            "--format",
            metavar="NAME",
            help="A layout's name, see docs/formats.md. [default: by columns]",
            autocompletion=complete_values(FORMATS),
        ),
    ] = None,
    columns: Annotated[
        str | None,
        ReadingOption(
            "--columns",
            metavar="KNOWN=PATH,...",
            help="Where prompt, answers and the like are: prompt=question,response_a=answers.0.text.",
        ),
    ] = None,
    outcome: Annotated[
        str | None,
        ReadingOption(
            "--outcome",
            metavar="RULE",
            help="What the values of a column mean: 'vote: left=a, right=b, same=tie', 'score_a,score_b: higher'.",
        ),
    ] = None,
    each: Annotated[
        str | None,
        ReadingOption(
            "--each",
            metavar="RULE",
            help="A list of answers whose pairs are battles: 'answers: text=text, model=model, score=rating'.",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        ReadingOption("--encoding", metavar="NAME", help="Of text that is not UTF-8: cp1252, latin-1, gb18030, ..."),
    ] = None,
    source: Annotated[
        str | None,
        ReadingOption(
            "--source",
            metavar="COLUMN",
            help="Which column says whose votes the battles are. [default: each of several files is a source]",
        ),
    ] = None,
    layout: Annotated[
        Path | None,
        ReadingOption("--layout", metavar="FILE.toml", help="These options from a file; flags win."),
    ] = None,
) -> Reading:
    """How every FILE of a command is read, as a source of no files: as the options say, else as ``--layout`` does."""
    from prefcli.battles import Source
    from prefcli.readers import parse_columns, with_layout_file

    reading = Source((), format, parse_columns(columns) if columns else None, outcome, each, encoding, source=source)
    return with_layout_file(reading, layout) if layout else reading


def examples(*lines: str) -> str:
    """A verb's examples, for the end of its help."""
    return "Examples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def json_lines(files: Sequence[Path], refused: Sequence[str]) -> Iterator[IO[bytes]]:
    """Standard input, or a file of JSON lines, as a stream that is answered line by line on standard output.

    Parameters
    ----------
    files:
        One file, ``-`` for standard input.
    refused:
        Given flags that cannot be used with it.

    Raises
    ------
    InputError
        If there are such flags or several files, or the file is not one of JSON lines.
    """
    from prefcli.errors import InputError
    from prefcli.storage.files import refuse_to_replace

    if refused:
        raise InputError(f"--output - answers line by line: it cannot be combined with {', '.join(refused)}")
    refuse_to_replace(Path("/dev/stdout"), files)  # answers appended to the lines would be read as lines
    if len(files) != 1:
        raise InputError("--output - reads one stream of lines", hint="Give one FILE, or - for standard input.")
    if files[0] == STANDARD_OUTPUT:
        yield sys.stdin.buffer
        return
    if files[0].suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(
            f"--output - answers JSON lines, but {files[0]} is not called .jsonl",
            hint="Name another --output, or give JSON lines.",
        )
    try:
        stream = files[0].open("rb")
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=str(files[0])) from None
    with stream:
        yield stream


def print_json(value: Any) -> None:
    """Print a dictionary or a dataclass as one JSON object."""
    from prefcli.storage.files import to_json

    sys.stdout.write(to_json(value) + "\n")


def print_result(session: Session, result: Any, *lines: str) -> None:
    """Print what a verb did: a JSON object with ``--json``, else in words. Under ``torchrun`` one process prints."""
    if session.is_main_process and session.json:
        print_json(result)
    elif session.is_main_process:
        for line in lines:
            say(line)


def say(text: str) -> None:
    """Print a line. Names may come from files, so control characters are escaped."""
    print(visible(text))


def print_text(text: str, style: str = "") -> None:
    """Print sentences, wrapped at the width of a terminal."""
    from rich.text import Text

    _print(Text(visible(text), style=style))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: text to the left, numbers to the right. A last column without a heading holds remarks.

    A cell of rich text is shown as it is, so nothing of a file may be in it.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=any(columns), box=None, pad_edge=False)
    for number, name in enumerate(columns):
        remarks = number == len(columns) - 1 and not name
        table.add_column(name, justify="left" if number == 0 or remarks else "right", overflow="fold")
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else Text(visible(_cell(value))) for value in row))
    _print(Text(visible(title), style="bold"), table)
    print()


def interval(ends: Interval | None, missing: str = "-") -> str:
    """Both ends of an interval of a log loss."""
    return missing if ends is None else "{:.4f} to {:.4f}".format(*ends)


def print_differences(differences: Sequence[NamedDifference]) -> None:
    """Print the paired differences of log losses, and why some have no interval."""
    from prefcli import metrics

    rows = [
        [each.a, each.b, metrics.signed(each.difference), "-" if each.ci is None else metrics.signed_interval(each.ci),
         "-" if each.p is None else f"{each.p:.4f}" if each.p >= 0.001 else "< 0.001"]
        for each in differences
    ]  # fmt: skip
    title = "Differences of log loss on the same battles (negative: the first is better)"
    print_table(title, ["first", "second", "difference", "95 %", "p"], rows)
    if reasons := sorted({each.reason for each in differences if each.reason}):
        say("; ".join(reasons))


def _print(*parts: Any) -> None:
    """Print what rich renders. Piped, each row or sentence is on one line, whatever its width."""
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=PIPED_WIDTH, soft_wrap=True)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def output_width() -> int:
    """Columns of the terminal on stdout; piped, lines may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH


def print_estimate(estimate: Estimate, session: Session) -> None:
    """What a command will take: seconds by part, the range to expect, memory."""
    if not session.is_main_process:
        return
    if session.json:
        print_json({"estimate": estimate})
        return
    names = {"around": "loading and the like"}
    rows = [[names.get(part, part), f"{seconds:,.1f}"] for part, seconds in estimate.parts.items()]
    print_table(f"Seconds with the encoder {estimate.encoder}" if estimate.encoder else "Seconds", ["", ""], rows)
    total, low, high = (_duration(seconds) for seconds in (estimate.seconds, *estimate.interval))
    say(
        f"{total} in all, probably {low} to {high} at the machine's current load; "
        f"{estimate.timed:,} of {estimate.pieces:,} were timed"
    )
    if estimate.kept_seconds >= 0.1:
        say(f"{_duration(estimate.kept_seconds)} more went into reading, text and tokens: they are cached now")
    processes = f" in each of {estimate.processes} processes" if estimate.processes > 1 else ""
    cuda = "" if estimate.cuda_mb is None else f", {estimate.cuda_mb:,.0f} MB on the GPU"
    say(f"{estimate.memory_mb:,.0f} MB of memory{processes} at the peak{cuda}")


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else str(timedelta(seconds=int(seconds)))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{round(value, 4) + 0.0:.4f}"  # not "-0.0000"
    return str(value)

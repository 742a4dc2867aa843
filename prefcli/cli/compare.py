"""``prefcli compare``: one battle judged, and what the judgement rests on."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefcli.cli import common
from prefcli.cli.flags import command, given_options
from prefcli.errors import InputError, one_line
from prefcli.options import PredictOptions
from prefcli.outcomes import OUTCOMES, TIE

if TYPE_CHECKING:
    from prefcli.prediction.comparison import Comparison, Contribution

EXAMPLES = common.examples(
    'prefcli compare --prompt "Name a red fruit." --a "A cherry." --b "A banana."',
    "prefcli compare --prompt-file q.txt --a-file a.md --b-file b.md -m my-run",
)
FIELDS = {"prompt": "prompt", "a": "response_a", "b": "response_b"}
"""The flags of texts, and the fields of a battle that they are."""
MAX_SHOWN = 8
"""Statistics in the output for people."""
MAX_TEXT_BYTES = 64 << 20
MAX_BAR = 40
Given = Mapping[str, tuple[str | None, Path | None]]
"""Of each of :data:`FIELDS` its text and its file."""
MARKERS = {
    "prompt": "===== Prompt: write below this line, and leave the three lines with ===== as they are =====",
    "response_a": "===== Answer A =====",
    "response_b": "===== Answer B =====",
}
"""Lines of the file that the editor shows."""


def _text_option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="TEXT", help=f"{what}: text, or a JSON list of turns.")


def _file_option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}-file", metavar="FILE", help=f"{what} from a file in UTF-8; - for standard input.")


OF_FILES = ("source", "each", "outcome", "encoding", "activation", "limit", "workers")
"""Options that make no sense for one battle."""


@command(PredictOptions, without=("models", "calibrated", *OF_FILES))
def run(
    session: common.Session,
    reading: common.Reading,
    prompt: Annotated[str | None, _text_option("prompt", "The prompt")] = None,
    a: Annotated[str | None, _text_option("a", "Answer A")] = None,
    b: Annotated[str | None, _text_option("b", "Answer B")] = None,
    prompt_file: Annotated[Path | None, _file_option("prompt", "The prompt")] = None,
    a_file: Annotated[Path | None, _file_option("a", "Answer A")] = None,
    b_file: Annotated[Path | None, _file_option("b", "Answer B")] = None,
    model: common.ModelsOption = None,
    calibration: common.CalibrationOption = True,
    **flags: Any,
) -> None:
    """Judge two answers to one prompt, and show why.

    Shows the probabilities of A, B and tie (those of predict), both orders of the answers, what was cut, and of the
    architecture features the statistics that moved them most.

    Without texts it reads a battle as a JSON object from standard input, or opens $EDITOR where that is a terminal.

    It is too close to call if the two orders of the answers have different most probable outcomes, or if the most
    probable outcome is less than 10 percentage points ahead of the next.
    """
    from prefcli import pipeline
    from prefcli.compute import memory

    memory.keep_freed_memory()
    texts = {"prompt": (prompt, prompt_file), "a": (a, a_file), "b": (b, b_file)}
    options = PredictOptions(tuple(model or ()), calibrated=calibration, **given_options(flags))
    pipeline.find_runs(session.workspace, options.models)  # before anybody writes a text in vain
    with _battle(texts, session) as row:
        compared = pipeline.compare(row, session.workspace, options, reading=reading, reporter=session.reporter)
    if session.json:
        common.print_result(session, compared.to_json())
    elif session.is_main_process:
        _print(compared)


@contextmanager
def _battle(texts: Given, session: common.Session) -> Iterator[Mapping[str, Any]]:
    """The battle in flags and files; without any, that on standard input, or in an editor."""
    if any(given is not None for pair in texts.values() for given in pair):
        yield _from_flags(texts)
    elif not sys.stdin.isatty():
        yield _from_standard_input()
    else:
        path = Path(tempfile.mkdtemp(prefix="prefcli-compare-"), "battle.md")
        try:
            yield _from_editor(path)
        except BaseException:
            if path.exists():
                session.reporter.warn(f"what was written is kept in {path}")
            raise
        shutil.rmtree(path.parent)


def _from_standard_input() -> Mapping[str, Any]:
    from prefcli.readers.json_rows import loads

    try:
        value = loads(_decoded(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input"))
    except (ValueError, RecursionError) as error:
        hint = "Give --prompt, --a and --b, or a JSON object with prompt, response_a and response_b on standard input."
        raise InputError(f"no battle: {one_line(error, 160)}", where="standard input", hint=hint) from None
    if not isinstance(value, dict):
        raise InputError("expected a JSON object", where="standard input")
    return value


def _from_flags(texts: Given) -> dict[str, str]:
    if missing := [f"--{name}" for name, (text, file) in texts.items() if text is None and file is None]:
        raise InputError(f"no {' and no '.join(missing)}", hint="A battle is a prompt and two answers.")
    if twice := [name for name, (text, file) in texts.items() if text is not None and file is not None]:
        raise InputError(f"both --{twice[0]} and --{twice[0]}-file are given, one is needed")
    if sum(file == common.STANDARD_OUTPUT for _, file in texts.values()) > 1:
        raise InputError("standard input can be only one of the files")
    return {FIELDS[name]: _read(file) if text is None and file else str(text) for name, (text, file) in texts.items()}


def _read(path: Path) -> str:
    """A file's text, without the line break at its end."""
    if path == common.STANDARD_OUTPUT:
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    else:
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_TEXT_BYTES + 1)
        except OSError as error:
            raise InputError(f"cannot read the file: {error.strerror}", where=str(path)) from None
    return _decoded(data, str(path)).removesuffix("\n").removesuffix("\r")


def _decoded(data: bytes, where: str) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"more than {MAX_TEXT_BYTES >> 20} MiB", where=where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: byte {error.start}", where=where) from None


def _from_editor(path: Path) -> dict[str, str]:
    """The texts that the user writes between the markers of a new file."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    path.write_text("".join(f"{marker}\n\n" for marker in MARKERS.values()), encoding="utf-8")
    try:
        failed = subprocess.call([*shlex.split(editor), str(path)])
    except (OSError, ValueError) as error:
        hint = "Set EDITOR, or give --prompt, --a and --b."
        shutil.rmtree(path.parent)
        raise InputError(f"the editor {editor} cannot be started: {one_line(error)}", hint=hint) from None
    if failed:
        raise InputError(f"the editor {editor} ended with exit code {failed}", where=str(path))
    return _between_markers(path)


def _between_markers(path: Path) -> dict[str, str]:
    lines = _decoded(path.read_bytes(), str(path)).split("\n")
    places = [number for number, line in enumerate(lines) if line.rstrip() in MARKERS.values()]
    if [lines[place].rstrip() for place in places] != list(MARKERS.values()):
        hint = "Give the texts by --prompt-file, --a-file and --b-file."
        raise InputError("the three lines with ===== are not all there, once and in order", where=str(path), hint=hint)
    parts = zip(places, [*places[1:], len(lines)], strict=True)
    texts = ["\n".join(lines[begin + 1 : end]).strip() for begin, end in parts]
    if not any(texts):
        shutil.rmtree(path.parent)
        raise InputError("nothing was written", hint="Write the prompt and both answers below their lines, and save.")
    return dict(zip(MARKERS, texts, strict=True))


def _print(compared: Comparison) -> None:
    """What people read of a comparison."""
    from rich.text import Text

    room = max(min(common.output_width() - 16, MAX_BAR), 4)
    common.print_table(
        _verdict(compared),
        ["", "", ""],
        [
            [name, f"{share:.1%}", Text(_block() * round(share * room), style=style)]
            for name, share, style in zip(OUTCOMES, compared.probabilities, ("cyan", "magenta", "yellow"), strict=True)
        ],
    )
    _print_orders(compared)
    if (record := compared.record) is not None:
        common.print_text(
            f"Of {record.n:,} held-out battles with such a lead, {record.value:.0%} had the most probable outcome "
            f"({record.low:.0%} to {record.high:.0%})"
        )
    for cut in compared.cuts:
        field = {"prompt": "the prompt", "response_a": "answer A", "response_b": "answer B"}[cut.field]
        common.print_text(f"Of {field} {cut.kept:,} of {cut.tokens:,} tokens were read by {cut.run}", style="yellow")
    if compared.rewards is not None:
        common.print_text("Rewards: A {:.4f}, B {:.4f}".format(*compared.rewards))
    if compared.contributions:
        _print_contributions(compared.contributions)


def _verdict(compared: Comparison) -> str:
    from prefcli.prediction.comparison import MIN_LEAD, TOO_CLOSE

    if compared.verdict != TOO_CLOSE:
        return "Probably a tie" if compared.verdict == OUTCOMES[TIE] else f"{compared.verdict} is preferred"
    if not compared.agree:
        return "Too close to call: the two orders of the answers disagree"
    points = 100 * compared.lead
    return f"Too close to call: the first is {points:.1f} points ahead of the next, less than {100 * MIN_LEAD:g}"


def _print_orders(compared: Comparison) -> None:
    first, second = (OUTCOMES[max(range(len(order)), key=order.__getitem__)] for order in compared.orders)
    if compared.orders[0] == compared.orders[1]:
        common.print_text("Both orders of the answers have the same probabilities")
        return
    title = f"Both orders of the answers say {first}" if compared.agree else f"As given {first}, swapped {second}"
    rows = [
        [name, *(f"{share:.1%}" for share in order)]
        for name, order in zip(("as given", "swapped"), compared.orders, strict=True)
    ]
    common.print_table(title, ["", *OUTCOMES], rows)


def _print_contributions(contributions: Sequence[Contribution]) -> None:
    """The largest, and the sum of the others."""
    shown, others = contributions[:MAX_SHOWN], contributions[MAX_SHOWN:]
    largest = abs(shown[0].log_odds)
    rows = [
        [each.description, _values(each), f"{each.log_odds:+.3f}",
         f"{'A' if each.log_odds > 0 else 'B'} {_block() * round(8 * abs(each.log_odds) / largest)}"]
        for each in shown
    ]  # fmt: skip
    if others:
        rows.append([f"{len(others)} others", "", f"{sum(each.log_odds for each in others):+.3f}", ""])
    rows.append(["together", "", f"{sum(each.log_odds for each in contributions):+.3f}", ""])
    print()
    common.print_table("What moved it, in log-odds of A over B", ["statistic", "A / B", "log-odds", ""], rows)


def _values(of: Contribution) -> str:
    """``A / B``, or the one value of the prompt or of both answers together."""

    def spell(value: float) -> str:
        if of.unit == "yes/no":
            return "yes" if value else "no"
        return f"{value:.1%}" if of.unit == "share" else f"{value:,.{0 if of.unit == 'count' else 2}f}"

    return spell(of.a) if of.b is None else f"{spell(of.a)} / {spell(of.b)}"


def _block() -> str:
    """What bars are made of, where standard output can show it."""
    try:
        "█".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "#"
    return "█"

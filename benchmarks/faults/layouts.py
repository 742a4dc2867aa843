"""Thousands of damaged preference files whose battles are known: each must be read right, or refused.

``python benchmarks/faults/layouts.py [--files 2000] [--seed 0]`` writes random battles in a known layout, changes the
file (columns renamed, dropped, added, mixed with another layout's; values respelled, nulled, of another type; sides
swapped), reads it, and compares. A file counts as misread if a question, an answer or an outcome is not what was
written, or if it is read without its outcome and without the column being named. The table says how often each change
was read right, read without an outcome that nobody could recognise, or refused. ``--only NUMBER`` shows one file, what
became of it, and what it should be. The exit code is 1 if a file was misread or an error was no ``PrefcliError``.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import string
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import layouts  # of tests/, not this file
import pyarrow as pa
from layouts import TIE, A, B, Battle, Known, Row

from prefcli import readers
from prefcli.battles import Source
from prefcli.errors import PrefcliError

Truth = list[list[Battle]]
"""For each battle that must be read, the battles that it may be read as."""

OUTCOME_WORDS = ("winner", "vote", "label", "preference", "preferred", "verdict", "judgment", "choice")
NEAR_NAMES = {
    "prompt": ("Prompt", "prompts", "question_text", "user_prompt", "promt"),
    "response_a": ("Response_A", "answer_a", "responseA", "response_1"),
    "response_b": ("Response_B", "answer_b", "responseB", "response_2"),
    "winner": ("Winner", "vote", "win", "preferred_model", "result"),
    "chosen": ("Chosen", "accepted", "chosen_text", "better"),
    "rejected": ("Rejected", "declined", "rejected_text", "worse"),
    "label": ("labels", "Label", "gold", "target"),
}


@dataclass
class File:
    """A file in the making: its rows, and what it may be read as."""

    known: Known
    battles: list[Battle]
    rows: list[Row]
    truths: list[Truth]
    """The file as a whole may be read as any of these."""
    container: str = "jsonl"
    must_name: str = ""
    """A column that has to be among those not read, unless the file is read right."""
    contradicts: bool = False
    """Whether that column has other outcomes, so that it has to be named in any case."""


def parts_of(known: Known) -> dict[str, set[str]]:
    """Which parts of a battle each column holds, found by changing one part and looking which columns change."""
    rng = random.Random(1)
    battle = replace(layouts.battle(rng, known.holds), outcome=A, both_bad=False)
    battle = replace(battle, prompts=("One\ntwo",), a=("Three",), b=("Four",), system="Five" * known.holds.system)
    changes: dict[str, list[dict[str, Any]]] = {
        "prompt": [{"prompts": ("Other\ntwo",)}, {"prompts": ("One\nother",)}],
        "answer": [{"a": ("Other",)}, {"b": ("Other",)}],
        "outcome": [{"outcome": B}] + [{"outcome": TIE}] * known.holds.ties,
        "system": [{"system": "Other"}] * known.holds.system,
        "history": [],
    }
    if known.holds.turns != "one":
        changes["history"] = [{"prompts": ("Zero", *battle.prompts), "a": ("Z", *battle.a), "b": ("Z", *battle.b)}]
    before = known.row(battle, 1)
    return {
        column: {
            part
            for part, values in changes.items()
            for value in values
            if known.row(replace(battle, **value), 1).get(column) != before[column]
        }
        for column in before
    }


PARTS = {known.name: parts_of(known) for known in layouts.LAYOUTS}


def columns_with(known: Known, *parts: str) -> list[str]:
    return [column for column, held in PARTS[known.name].items() if held & set(parts)]


def exact(known: Known, battles: Sequence[Battle]) -> Truth:
    return [[part] for battle in battles for part in known.truth(battle)]


def poorer(battle: Battle, parts: set[str]) -> list[Battle]:
    """The battle without some of its parts, in every way that a reader may leave them out."""
    versions = [battle]
    if "system" in parts:
        versions += [replace(b, system="") for b in versions]
    if "history" in parts and len(battle.prompts) > 1:
        versions += [replace(b, prompts=b.prompts[-1:], a=b.a[-1:], b=b.b[-1:]) for b in versions]
    if "prompt" in parts:
        pieces = [b.prompts[-1].partition("\n") for b in versions]
        cut = [replace(b, prompts=(*b.prompts[:-1], p[0])) for b, p in zip(versions, pieces, strict=True)]
        cut += [replace(b, prompts=(*b.prompts[:-1], p[2])) for b, p in zip(versions, pieces, strict=True) if p[2]]
        versions += cut
    return versions


def without(known: Known, battles: Sequence[Battle], parts: set[str]) -> Truth:
    return [poorer(part, parts) for battle in battles for part in known.truth(battle)]


def unlabelled(truth: Truth) -> Truth:
    return [[replace(battle, outcome=None) for battle in versions] for versions in truth]


# Changes


def junk_name(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=3)) + str(rng.randrange(100))


def new_name(rng: random.Random, column: str) -> str:
    near = [*NEAR_NAMES.get(column, ()), column.upper(), column.title(), column + "s", column[:-1] or "c", f" {column}"]
    return rng.choice([junk_name(rng), junk_name(rng), *near])


def lost_column(file: File, column: str, name: str | None) -> None:
    """What may be read after a column is gone, or is called otherwise."""
    known, parts = file.known, PARTS[file.known.name][column]
    optional = parts & {"system", "history"} if "prompt" in parts or parts <= {"system", "history"} else set()
    if "prompt" in parts and len(columns_with(known, "prompt")) > 1:
        optional |= {"prompt"}
    if column == "turn":  # how many turns an MT-Bench judge saw
        file.truths.append([[battle] for battle in file.battles])
    if optional:
        file.truths.append(without(known, file.battles, optional))
    if "outcome" in parts and known.sided and "answer" not in parts:
        others = [other for other in columns_with(known, "outcome") if other != column]
        looks_like_outcome = name and (
            any(word in name.lower() for word in OUTCOME_WORDS) or spells_outcome(file, name)
        )
        if not others and not looks_like_outcome:
            file.truths.append(unlabelled(exact(known, file.battles)))
    file.must_name = name or ""


def spells_outcome(file: File, column: str) -> bool:
    """Whether the values of a column are words for outcomes, so that its name does not matter."""
    words = {word.lower() for spelling in layouts.SPELLINGS.values() for word in spelling}
    values = [row.get(column) for row in file.rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, str) and value.lower() in words for value in values)


def rename(rng: random.Random, file: File) -> None:
    column = rng.choice(list(file.rows[0]))
    name = new_name(rng, column)
    if name in file.rows[0]:
        return
    file.rows = [{name if key == column else key: value for key, value in row.items()} for row in file.rows]
    lost_column(file, column, name)


def drop(rng: random.Random, file: File) -> None:
    column = rng.choice(list(file.rows[0]))
    for row in file.rows:
        row.pop(column, None)
    lost_column(file, column, None)


def add_noise(rng: random.Random, file: File) -> None:
    name = rng.choice([junk_name(rng), "topic", "source", "language", "annotator", "comment", "split", "notes", "ip"])
    values: list[Any] = [rng.choice(["x", "A comment on B.", 3, 0.5, None, ["a"], {"k": 1}, True]) for _ in file.rows]
    for row, value in zip(file.rows, values, strict=True):
        row.setdefault(name, value)


def add_outcome(rng: random.Random, file: File) -> None:
    """Another outcome column, which agrees with the file's own or contradicts it."""
    agrees = rng.random() < 0.5
    spelling = rng.choice(list(layouts.SPELLINGS.values()))
    name = rng.choice(["winner", "preferred", "vote", "label"])
    if name in file.rows[0] or not file.known.sided or len(exact(file.known, file.battles)) != len(file.battles):
        return add_noise(rng, file)
    outcomes = [battle.outcome for battle in file.battles]
    shown = outcomes if agrees else [None if o is None else rng.choice([x for x in (A, B) if x != o]) for o in outcomes]
    for row, outcome in zip(file.rows, shown, strict=False):
        row[name] = None if outcome is None else spelling[outcome]
    if not agrees and file.known.name == "soft labels":  # the vote is the outcome, whatever was probable
        shown_battles = [replace(b, outcome=o, both_bad=False) for b, o in zip(file.battles, shown, strict=True)]
        file.truths.append(exact(file.known, shown_battles))
    elif not agrees:
        file.must_name, file.contradicts = name, True
    return None


def add_answers(rng: random.Random, file: File) -> None:
    """A third answer, or another text beside the question."""
    name = rng.choice(["response_c", "reference", "answer", "explanation", "rationale", "critique", "output"])
    for row in file.rows:
        row.setdefault(name, layouts.text(rng))


def respell(rng: random.Random, file: File) -> None:
    """The same outcomes in other words."""
    columns = [c for c in columns_with(file.known, "outcome") if "answer" not in PARTS[file.known.name][c]]
    if not columns:
        return add_noise(rng, file)
    spellings = [
        *layouts.SPELLINGS.values(),
        ("first", "second", "neither"),
        ("model_1", "model_2", "tie"),
        ("assistant_a", "assistant_b", "equal"),
        ("a is better", "b is better", "same"),
        ("[[A]]", "[[B]]", "[[C]]"),
        (" A ", " b ", "TIE "),
    ]
    if not any(isinstance(row.get(c), (int, float)) for row in file.rows for c in columns):
        # Other numbers than the layout's own would mean something else in it.
        spellings += [("1", "2", "0"), ("0", "1", "2"), ("1", "-1", "0")]
    words = rng.choice(spellings)
    numbers = rng.random() < 0.3 and words[0].lstrip("-").isdigit()
    for battle, row in zip(file.battles, file.rows, strict=False):
        for column in columns:
            if battle.outcome is not None and not isinstance(row.get(column), (dict, list)):
                row[column] = int(words[battle.outcome]) if numbers else words[battle.outcome]
    return None


def scale(rng: random.Random, file: File) -> None:
    """Numeric outcomes on another scale: the layout's own meaning must not be forced on them."""
    columns = [c for c in columns_with(file.known, "outcome") if "answer" not in PARTS[file.known.name][c]]
    numeric = [c for c in columns if all(isinstance(row.get(c), (int, float)) for row in file.rows)]
    if not numeric or len(columns) > 1:
        return respell(rng, file)
    for battle, row in zip(file.battles, file.rows, strict=False):
        row[numeric[0]] = (5, 9, 7)[battle.outcome or 0]
    return None


def swap_sides(rng: random.Random, file: File) -> None:
    """All battles the other way around."""
    flipped = {A: B, B: A}
    file.battles = [
        replace(b, a=b.b, b=b.a, models=b.models[::-1], outcome=flipped.get(b.outcome, b.outcome))  # type: ignore[arg-type]
        for b in file.battles
    ]
    file.rows = rows_of(file.known, file.battles)
    file.truths = [exact(file.known, file.battles)]


def shuffle_columns(rng: random.Random, file: File) -> None:
    names = list(dict.fromkeys(name for row in file.rows for name in row))
    rng.shuffle(names)
    file.rows = [{name: row[name] for name in names if name in row} for row in file.rows]


def change_case(rng: random.Random, file: File) -> None:
    if file.known.extra_rows:  # these would keep their names
        return add_noise(rng, file)
    form = rng.choice([str.upper, str.title, str.capitalize])
    file.rows = [{form(name): value for name, value in row.items()} for row in file.rows]
    return None


def null_cell(rng: random.Random, file: File) -> None:
    """One row without a value in one column, or without the column."""
    number = rng.randrange(len(file.battles))
    column = rng.choice(list(file.rows[number]))
    cell = file.rows[number][column]
    if rng.random() < 0.3:
        del file.rows[number][column]
    else:
        nothing: list[Any] = [None, None, ""] if file.container == "csv" else [None, None, "", [], {}]
        file.rows[number][column] = rng.choice(nothing)
    parts = PARTS[file.known.name][column]
    truth: Truth = []
    for index, battle in enumerate(file.battles):
        for part in file.known.truth(battle):
            versions = blanked(part, parts) if index == number else [part]
            truth.append([*versions, battle] if index == number and column == "turn" else versions)
    file.truths = [truth]
    if "answer" in parts and isinstance(cell, list):  # no answers: no pairs
        file.truths.append(exact(file.known, [b for index, b in enumerate(file.battles) if index != number]))


def blanked(battle: Battle, parts: set[str]) -> list[Battle]:
    """The battle with nothing instead of some of its parts."""
    versions = poorer(battle, parts)
    if "prompt" in parts:
        versions += [replace(b, prompts=prompts) for b in versions for prompts in ((*b.prompts[:-1], ""), ("",))]
    if "answer" in parts:
        versions += [replace(b, a=a) for b in versions for a in ((*b.a[:-1], ""), ("",))]
        versions += [replace(b, b=answer) for b in versions for answer in ((*b.b[:-1], ""), ("",))]
    if "outcome" in parts and "answer" not in parts:
        versions += [replace(b, outcome=None) for b in versions]
    return versions


def change_type(rng: random.Random, file: File) -> None:
    """Values of a column in another type that means the same, or nonsense that must not become battles."""
    column = rng.choice(list(file.rows[0]))
    changes = [as_text, as_json_text, as_float]
    change = rng.choice(changes if file.container == "csv" else [*changes, in_list])
    for row in file.rows:
        row[column] = change(row.get(column))


def as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def as_json_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def in_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def break_type(rng: random.Random, file: File) -> None:
    """A number or an object where one answer or question should be: refused, or read as the number's text."""
    number = rng.randrange(len(file.battles))
    known = file.known
    columns = [c for c in columns_with(known, "prompt", "answer") if isinstance(file.rows[number].get(c), str)]
    if not columns or len(known.truth(file.battles[number])) > 1 or file.container == "csv":
        return add_noise(rng, file)
    column = rng.choice(columns)
    file.rows[number][column] = {"text": file.rows[number][column], "n": 1}
    return None


def mix(rng: random.Random, file: File) -> None:
    """Columns of two layouts beside each other, of the same battles or of others."""
    other = rng.choice(layouts.LAYOUTS)
    if other.options or other.extra_rows:
        return add_noise(rng, file)
    same = rng.random() < 0.5
    holdable = [replace(b, outcome=b.outcome if b.outcome in (A, B) else A, both_bad=False) for b in file.battles]
    holdable = [replace(b, prompts=b.prompts[-1:], a=b.a[-1:], b=b.b[-1:], system="") for b in holdable]
    others = holdable if same else layouts.battles(rng, other.holds, len(file.battles))
    if same:
        file.battles, file.rows = holdable, rows_of(file.known, holdable)
        file.truths = [exact(file.known, holdable)]
    added = rows_of(other, others)
    shared = set(added[0]) & set(file.rows[0])
    held = [c for c in shared if any(PARTS[known.name][c] for known in (other, file.known))]
    if any(row[c] != extra[c] for c in held for row, extra in zip(file.rows, added, strict=True)):
        return add_noise(rng, file)
    if {"system", "system_prompt", "history"} & (set(added[0]) - set(file.rows[0])):
        return add_noise(rng, file)  # these go before any prompt
    whole = [{"instruction", "input"} <= set(row) for row in (file.rows[0], added[0], {**file.rows[0], **added[0]})]
    if any(whole) and not all(whole[:2]):
        return add_noise(rng, file)  # instruction and input together are another prompt
    file.rows = [{**extra, **row} for row, extra in zip(file.rows, added, strict=True)]
    file.truths = [exact(file.known, file.battles), exact(other, others)]
    if other.truth is not file.known.truth and any(c in shared for c in columns_with(other, "answer")):
        file.truths += [exact(file.known, file.battles)]
    return None


def concatenate(rng: random.Random, file: File) -> None:
    """Rows of two layouts one after the other."""
    other = rng.choice(layouts.LAYOUTS)
    if other.options or other.extra_rows:
        return add_noise(rng, file)
    more = layouts.battles(rng, other.holds, 3)
    file.rows = file.rows + rows_of(other, more)
    parts = [(file.known, file.battles), (other, more)]
    file.truths = [[versions for known, battles in parts for versions in exact(known, battles)]]
    # Where some rows have a winner and others probabilities, these are kept as such.
    soft = [unlabelled(exact(*part)) if part[0].name == "soft labels" else exact(*part) for part in parts]
    file.truths += [soft[0] + soft[1]]
    return None


CHANGES: tuple[Callable[[random.Random, File], None], ...] = (
    rename,
    rename,
    rename,
    drop,
    drop,
    add_noise,
    add_outcome,
    add_outcome,
    add_answers,
    respell,
    respell,
    scale,
    swap_sides,
    shuffle_columns,
    change_case,
    null_cell,
    null_cell,
    null_cell,
    change_type,
    change_type,
    break_type,
    mix,
    mix,
    concatenate,
)


# Reading and judging


def rows_of(known: Known, battles: Sequence[Battle]) -> list[Row]:
    return [copy.deepcopy(known.row(battle, number)) for number, battle in enumerate(battles)]


def make(number: int, seed: int) -> tuple[str, File]:
    """The file of that number, and the name of its change."""
    rng = random.Random(f"{seed}/{number}")
    known = rng.choice([known for known in layouts.LAYOUTS if not known.options])
    battles = layouts.battles(rng, known.holds, 4)
    container = rng.choice(["jsonl", "jsonl", "json", "csv", "parquet", "json by columns"])
    file = File(known, battles, rows_of(known, battles), [exact(known, battles)], container)
    change = rng.choice(CHANGES)
    change(rng, file)
    if rng.random() < 0.2:
        shuffle_columns(rng, file)
    file.rows += list(known.extra_rows)
    return change.__name__, file


def write(folder: Path, file: File) -> Path:
    """The file in its container; as JSON lines if Arrow has no type for a column."""
    try:
        return layouts.write(folder / f"file{layouts.suffix(file.container)}", file.rows, file.container)
    except pa.ArrowException:
        return layouts.write(folder / "file.jsonl", file.rows, "jsonl")


def verdict(file: File, path: Path) -> tuple[str, str]:
    """``right``, ``without outcome``, ``refused`` or ``MISREAD``, and the details."""
    try:
        opened = readers.open_battles(Source((path,)))
        rows = [row for batch, _ in opened.batches() for row in batch.to_pylist()]
    except PrefcliError as error:
        return "refused", "\n".join(error.lines())
    except Exception:
        return "CRASH", traceback.format_exc()
    details = f"read as {opened.description}\nnot read: {', '.join(opened.not_read)}\n"
    details += "\n".join(str(layouts.as_read(row, file.known.sided)) for row in rows)
    for index, truth in enumerate(file.truths):
        if fits(file, truth, rows):
            if (index or file.contradicts) and file.must_name and file.must_name not in opened.not_read:
                return "MISREAD", f"{details}\n{file.must_name} is not named as unread"
            lost = any(row["label"] is None for row in rows) and all(b.outcome is not None for b in file.battles)
            return ("without outcome" if index and lost else "right"), details
    return "MISREAD", details


def fits(file: File, truth: Truth, rows: Sequence[Row]) -> bool:
    """Whether the rows are these battles; without sides if either layout knows none."""
    if len(truth) != len(rows):
        return False
    for sided in (file.known.sided, False):
        found = [layouts.as_read(row, sided) for row in rows]
        if all(
            any(read == layouts.canonical(battle, sided) for battle in versions)
            for read, versions in zip(found, truth, strict=True)
        ):
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged preference files whose battles are known.")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="show one file")
    arguments = parser.parse_args()
    numbers = range(arguments.files) if arguments.only is None else [arguments.only]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    misread = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            change, file = make(number, arguments.seed)
            path = write(Path(folder), file)
            outcome, details = verdict(file, path)
            counts[change][outcome] += 1
            if outcome in ("MISREAD", "CRASH"):
                misread.append(number)
                print(f"{outcome}: file {number}, {file.known.name}, {change}: --seed {arguments.seed} --only {number}")
            if arguments.only is not None:
                print(file.container, *map(json.dumps, file.rows), outcome, details, "it is", sep="\n")
                print("\n".join(str(layouts.canonical(b[0], file.known.sided)) for b in file.truths[0]))
    columns = ("right", "without outcome", "refused", "MISREAD", "CRASH")
    print(f"{'change':<18}" + "".join(f"{name:>17}" for name in columns))
    for change in sorted(counts):
        print(f"{change:<18}" + "".join(f"{counts[change][name]:>17,}" for name in columns))
    total = sum(counts.values(), collections.Counter())
    print(f"{'all':<18}" + "".join(f"{total[name]:>17,}" for name in columns))
    print(f"{len(numbers):,} files in {time.monotonic() - started:.0f} s; {len(misread)} misread or crashed")
    return 1 if misread else 0


if __name__ == "__main__":
    sys.exit(main())

"""Situations in which the right answer is known: is any other answer given without a word?

``python benchmarks/faults/silent.py [--situations N] [--seed 0] [--only silent_files]`` runs the situations of the
modules beside it, ``silent_*.py``. Each gives names and functions; a function makes its files, asks prefcli, compares
the answer with an independent calculation, and ends in ``right``, ``refused`` (an error of prefcli's own that says what
is wrong), or ``silent: ...``. Any other exception is a defect. The script prints a table by kind and what was neither
right nor refused, and ends with exit code 1 if there was any. ``--refused`` names what was refused too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from prefcli.errors import PrefcliError, one_line

RIGHT, REFUSED, SILENT, DEFECT = ENDINGS = ("right", "refused", "silent", "defect")
Situation = tuple[str, Callable[[], str]]
"""A name, whose part before a colon is its kind; and what ends in one of the first three of :data:`ENDINGS`."""
MAX_SECONDS = 120.0
"""A situation that takes longer is reported."""


def modules() -> list[str]:
    """The modules of situations beside this file."""
    return sorted(path.stem for path in Path(__file__).parent.glob("silent_*.py"))


def situations(names: list[str], folder: Path, seed: int) -> Iterator[Situation]:
    """Those of each module, its name before the kind."""
    for name in names:
        below = folder / name
        below.mkdir()
        for situation, run in importlib.import_module(name).situations(below, seed):
            yield f"{name.removeprefix('silent_')}, {situation}", run


def end(run: Callable[[], str]) -> str:
    """How a situation ends; what it prints is not shown."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            ending = run()
    except PrefcliError:
        return REFUSED
    except Exception as error:
        return f"{DEFECT}: {type(error).__name__}: {one_line(error, 300)}"
    return ending if ending.partition(":")[0] in ENDINGS else f"{DEFECT}: it ended in {ending!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--situations", type=int, metavar="N", help="the first N of each module; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=modules(), help="one module")
    parser.add_argument("--refused", action="store_true", help="name the refused situations")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    failures = []
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for module in [options.only] if options.only else modules():
            chosen = itertools.islice(situations([module], Path(name), options.seed), options.situations)
            for situation, run in chosen:
                started = time.monotonic()
                ending = end(run)
                kind = situation.partition(":")[0]
                counts.setdefault(kind, Counter())[ending.partition(":")[0]] += 1
                if ending == REFUSED and options.refused:
                    print(situation, flush=True)
                if ending not in (RIGHT, REFUSED):
                    failures.append(f"{situation}: {ending}")
                if (seconds := time.monotonic() - started) > MAX_SECONDS:
                    print(f"{situation}: {seconds:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(["| kind | situations | right | refused | silent | defect |", "|---|---|---|---|---|---|"]))
    for kind, endings in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {kind} | {endings.total()} | {' | '.join(str(endings[ending]) for ending in ENDINGS)} |")
    print("".join(f"{failure}\n" for failure in failures), end="")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

"""Where ``train --recipe fast`` and ``predict`` spend time and memory: ``python benchmarks/phases.py FILE``.

N battles are made of FILE by repeating it. Each copy has ids of its own, and ends every text with a word of its own, so
that no text occurs twice, a copy's prompts are other prompts, and battles are split by prompt as ever. Outcomes stay,
so a held-out battle is easier than a new one would be: the log loss says nothing, and boosting goes on for longer than
on so many different battles.

Both commands run in a process of their own, with functions of the package wrapped to time them. A phase's seconds are
without those of the phases inside it; processor time is that of all threads. Its peak is the kernel's largest resident
size of the process while the phase lasted (Linux: ``VmHWM``, reset when it begins); "whole tree" is the largest sum
over the process and its children, looked at every 0.1 s, pages that they share counted for each.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PHASES = {
    "train": {
        "reading": "prefcli.pipeline.train:read_stage",
        "preprocessing (raw)": "prefcli.pipeline.train:preprocess_stage",
        "selecting and splitting": "prefcli.pipeline.train:select",
        "measuring": "prefcli.training.fit_features:FeaturesFitter.__init__",
        "words": "prefcli.models.features.model:cross_fit",
        "author scores": "prefcli.models.features.model:train_boosters",
        "binning": "lightgbm:Dataset.construct",
        "final fit": "prefcli.models.features.booster:train",
        "rounds on inner folds": "lightgbm:train",
        "networks": "prefcli.models.features.network:fit",
        "saving": "prefcli.models.features.model:FeaturesModel.save",
        "scoring held-out battles": "prefcli.models.features.model:FeaturesModel.probabilities",
        "artifacts": "prefcli.training.experiment:_finish",
    },
    "predict": {
        "reading": "prefcli.pipeline.predict:read_stages",
        "loading the model": "prefcli.prediction.inference:open_runs",
        "measuring": "prefcli.models.features.statistics:extract",
        "words and author scores": "prefcli.models.features.model:FeaturesModel._tables",
        "trees": "prefcli.models.features.booster:mean_over_orders",
        "networks": "prefcli.models.features.network:Networks.scores",
    },
}
"""What a phase is called, and the function that it is."""
TEXTS = ("prompt", "response_a", "response_b")
ROUNDS = "PHASES_MAX_ROUNDS"


class Stopwatch:
    """Seconds and peak memory of nested phases of this process, in the order in which they began."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}
        self._stack = ["everything else"]
        self._since = self._now()
        reset_peak()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def switch(self, change: Callable[[], Any]) -> None:
        """Charge what went by to the current phase, then change the stack."""
        now = self._now()
        row = self.rows.setdefault(self._stack[-1], [0.0, 0.0, 0.0])
        row[0] += now[0] - self._since[0]
        row[1] += now[1] - self._since[1]
        row[2] = max(row[2], peak_mb())
        change()
        self.rows.setdefault(self._stack[-1], [0.0, 0.0, 0.0])
        reset_peak()
        self._since = self._now()

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            is_same = self._stack[-1] == phase or (phase == "rounds on inner folds" and "valid_sets" not in kwargs)
            if is_same or threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            self.switch(lambda: self._stack.append(phase))
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(self._stack.pop)

        return timed


def peak_mb() -> float:
    """The largest resident size since :func:`reset_peak`; where there is no ``/proc``, since the start."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def run_timed(verb: str, arguments: list[str]) -> None:
    """Run a command in this process, and print its phases as rows of a Markdown table."""
    from prefcli.cli.main import main as command
    from prefcli.models.features import booster

    booster.MAX_ROUNDS = int(os.environ.get(ROUNDS, booster.MAX_ROUNDS))
    watch = Stopwatch()
    for phase, place in PHASES[verb].items():
        module_name, _, path = place.partition(":")
        owner = importlib.import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, watch.wrap(phase, getattr(owner, name)))
    code: Any = 0
    try:
        command([verb, *arguments])
    except SystemExit as stop:
        code = stop.code
    watch.switch(lambda: None)
    for phase, (wall, used, peak) in watch.rows.items():
        print(f"| {verb} | {phase} | {wall:.1f} | {used:.1f} | {peak:,.0f} |")
    print(f"| {verb} | largest of these | | | {max(row[2] for row in watch.rows.values()):,.0f} |")
    sys.exit(code)


class TreeMemory(threading.Thread):
    """The largest sum of resident sizes of a process and its children, in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self._pid = pid
        self._stopped = threading.Event()

    def run(self) -> None:
        import psutil

        while not self._stopped.wait(0.1):
            try:
                process = psutil.Process(self._pid)
                family = [process, *process.children(recursive=True)]
                self.peak = max(self.peak, sum(member.memory_info().rss for member in family) / 1e6)
            except psutil.Error:
                continue

    def stop(self) -> float:
        self._stopped.set()
        self.join()
        return self.peak


def copies(table: pa.Table, battles: int) -> Iterator[pa.Table]:
    """So many battles, as changed copies of a table of Kaggle's layout."""
    for number, start in enumerate(range(0, battles, len(table)), start=1):
        part = table.slice(0, battles - start)
        part = part.set_column(part.schema.get_field_index("id"), "id", pa.array(range(start, start + len(part))))
        for name in TEXTS:
            changed = pc.replace_substring_regex(part[name], r'"\]$', f' copy{number}"]', max_replacements=1)
            part = part.set_column(part.schema.get_field_index(name), name, changed)
        yield part


def write_battles(source: Path, target: Path, battles: int) -> None:
    """Write the file that is measured: Parquet with a row group for each copy, or CSV."""
    from pyarrow import csv

    table = pq.read_table(source) if source.suffix == ".parquet" else csv.read_csv(source)
    schema = table.schema.remove_metadata()
    writer = csv.CSVWriter(target, schema) if target.suffix == ".csv" else pq.ParquetWriter(target, schema)
    with writer:
        for part in copies(table, battles):
            writer.write_table(part.cast(schema))


def measure(verb: str, arguments: list[str], folder: Path, threads: int) -> None:
    """Run a command in a process of its own; its table and its totals are printed."""
    environment = dict(os.environ) | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, str(Path(__file__).resolve()), "--child", verb, "--workspace", str(folder / "ws"), *arguments],
        environment,
    )
    tree = TreeMemory(pid)
    tree.start()
    _, status, usage = os.wait4(pid, 0)
    peak, seconds = tree.stop(), time.perf_counter() - started
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{verb} failed with exit code {code}")
    used = usage.ru_utime + usage.ru_stime
    print(f"| {verb} | all, whole tree | {seconds:.1f} | {used:.1f} | {peak:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="battles in Kaggle's layout, Parquet or CSV")
    parser.add_argument("--battles", type=int, default=55_968)
    parser.add_argument("--csv", action="store_true", help="measure a CSV file, not Parquet")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--max-rounds", type=int, help="of boosting, where memory alone is measured")
    parser.add_argument("--only", choices=["train", "predict"], help="predict needs --folder with a trained run")
    parser.add_argument("--folder", type=Path, help="keep file, workspace and run here")
    options = parser.parse_args()
    if options.max_rounds:
        os.environ[ROUNDS] = str(options.max_rounds)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="phases-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = folder / f"battles-{options.battles}.{'csv' if options.csv else 'parquet'}"
        if not file.exists():
            write_battles(options.file, file, options.battles)
        print(f"{options.battles:,} battles, {file.stat().st_size / 1e6:,.0f} MB")
        print("| command | phase | seconds | of processor | peak MB |\n|---|---|---|---|---|", flush=True)
        if options.only != "predict":
            run = ["--recipe", "fast", "--output", str(folder / "run"), "--force"]
            measure("train", [str(file), *run], folder, options.threads)
        if options.only != "train":
            predictions = ["--output", str(folder / "predictions.parquet"), "--force"]
            measure("predict", [str(file), "--model", str(folder / "run"), *predictions], folder, options.threads)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_timed(sys.argv[2], sys.argv[3:])
    else:
        main()

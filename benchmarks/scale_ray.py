"""Shards of Parquet predicted by Ray Data: ``python benchmarks/scale_ray.py FILE [--battles 1000000] [--workers 2]``.

Writes ``--battles`` battles as shards of 50,000: those of the file again and again, with ids and texts that differ. A
run of ``--recipe fast`` on the file's first 10,000 predicts them by ``predict_shards.py`` as ``docs/scale.md`` shows
it. Checked: every shard has its rows, in order; those of one shard are what ``prefcli predict`` writes, to 1e-6.
Printed: rates of Ray and of plain ``prefcli predict`` on one shard, and the largest memory of a worker. Needs
``pip install "ray[data]"``. With ``--spark`` the page's Spark program predicts the same shards (needs ``pyspark`` and
Java 17).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
TEXTS = ("prompt", "response_a", "response_b")
SHARD_ROWS = 50_000
PREFCLI = [sys.executable, "-m", "prefcli"]
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "PYSPARK_PYTHON": sys.executable,
}  # fmt: skip


def example(name: str) -> str:
    """A program that the page shows under its name."""
    [code] = re.findall(
        rf"^`{re.escape(name)}`:\n\n(?:<!--[^>]*-->\n)?```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S
    )
    return code


def read(file: Path) -> pa.Table:
    """The battles of any file as prefcli reads them, without outcomes."""
    from prefcli.readers import open_battles

    table = pa.Table.from_batches([batch for batch, _ in open_battles(file).batches()])
    return table.select(["id", *TEXTS])


def variant(battles: pa.Table, number: int) -> pa.Table:
    """The same battles with other ids and slightly other texts: another word at the end of each field's last turn."""
    columns = [pc.binary_join_element_wise(pc.cast(battles["id"], pa.string()), str(number), "-")]
    for name in TEXTS:
        turns = battles[name].combine_chunks()
        flat = turns.flatten()
        changed = pc.if_else(pc.is_valid(flat), pc.binary_join_element_wise(flat, f"(variant {number})", " "), flat)
        columns.append(pa.ListArray.from_arrays(turns.offsets, changed))
    return pa.table(columns, names=["id", *TEXTS])


def write_shards(file: Path, folder: Path, battles: int, rows: int = SHARD_ROWS) -> list[Path]:
    """Shards of battles, no two of which are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    source, shards, waiting, written = read(file), [], pa.table({}), 0
    for number in range(-(-battles // len(source))):
        more = variant(source, number).slice(0, battles - number * len(source))
        waiting = pa.concat_tables([waiting, more]) if number else more
        last = written + len(waiting) >= battles
        while len(waiting) >= rows or (last and len(waiting)):
            shards.append(folder / f"shard-{len(shards):05}.parquet")
            pq.write_table(waiting.slice(0, rows), shards[-1], row_group_size=4096)
            written += min(rows, len(waiting))
            waiting = waiting.slice(rows)
    return shards


def start(name: str, folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a program of the page in a process of its own."""
    program = folder / name
    program.write_text(example(name))
    command = [sys.executable, str(program), *map(str, arguments)]
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)


def ray_workers() -> dict[int, str]:
    """Ray's processes of this user that run tasks, and what they are called."""
    named = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if command.startswith("ray::") and "IDLE" not in command and "PredictShard" in command:
            named[int(process.name)] = command
    return named


class PeakMemory(threading.Thread):
    """Watches the workers; ``peak`` is the largest that one of them had, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._stopped = 0, threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(1.0):
            for pid in ray_workers():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                if found := re.search(r"VmHWM:\s+(\d+)", status):
                    self.peak = max(self.peak, 1024 * int(found[1]))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def check(shards: list[Path], predictions: Path) -> None:
    """Every shard is there, with its rows in order."""
    for shard in shards:
        ids, predicted = pq.read_table(shard, columns=["id"])["id"], pq.read_table(predictions / shard.name)
        if not predicted["id"].equals(ids):
            raise SystemExit(f"{shard.name}: {len(predicted)} predictions of {len(ids)} battles, or in another order")


def largest_difference(predictions: Path, sample: Path) -> float:
    """Between the probabilities of a file and those of the same ids in a folder, in whatever order they are there."""
    expected = pq.read_table(sample).to_pandas().set_index("id")
    found = pq.read_table(predictions).to_pandas().set_index("id").loc[expected.index]
    return float(np.abs(found.to_numpy() - expected.to_numpy()).max())


def by_engine(name: str, shards: list[Path], folder: Path, run: Path, workers: int) -> float:
    """Seconds that a program of the page takes for all shards, its start included."""
    (folder / "preds").mkdir(exist_ok=True)
    started = time.monotonic()
    if start(name, folder, run, shards[0].parent, folder / "preds", workers).wait():
        raise SystemExit((folder / f"{name}.log").read_text()[-3000:])
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--battles", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=SHARD_ROWS, help="battles in a shard")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on with what is there")
    parser.add_argument("--spark", action="store_true", help="by Spark instead of Ray")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    name = "predict_spark.py" if options.spark else "predict_shards.py"

    run = folder / "run"
    train = [*PREFCLI, "--quiet", "--workspace", str(folder / "workspace"), "train", str(options.file)]
    if not run.exists():
        subprocess.run([*train, "--recipe", "fast", "--limit", "10000", "--output", str(run)], check=True)
    shards = sorted((folder / "battles").glob("*.parquet"))
    if not shards:
        shards = write_shards(options.file, folder / "battles", options.battles, options.shard)
    total = sum(pq.read_metadata(shard).num_rows for shard in shards)
    size = sum(shard.stat().st_size for shard in shards)
    print(f"{total:,} battles in {len(shards)} shards, {size / 1e6:,.0f} MB of Parquet", flush=True)

    memory = PeakMemory()
    memory.start()
    seconds = by_engine(name, shards, folder, run, options.workers)
    memory.stop()

    sample = folder / "sample.parquet"
    predict = [*PREFCLI, "--quiet", "--workspace", str(folder / "workspace"), "predict", str(shards[-1])]
    started = time.monotonic()
    subprocess.run(
        [*predict, "--model", str(run), "--output", str(sample), "--force"], env=ENVIRONMENT, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    plain = pq.read_metadata(sample).num_rows / (time.monotonic() - started)
    if options.spark:
        ids = pq.read_table(folder / "preds")["id"]
        if len(ids) != total or len(pc.unique(ids)) != total:
            raise SystemExit(f"Spark wrote {len(ids)} predictions of {total} battles")
    else:
        check(shards, folder / "preds")
    difference = largest_difference(folder / "preds", sample)
    print(f"all rows there; largest difference from prefcli predict on one shard {difference:.1e}")
    if difference > 1e-6:
        raise SystemExit(1)
    largest = "not measured" if options.spark else f"{memory.peak / 1e6:,.0f} MB"
    print(
        f"{'Spark' if options.spark else 'Ray'}, {options.workers} workers: {seconds:,.0f} s, {total / seconds:,.0f} "
        f"battles/s, {options.workers * seconds / 3600 * 1e6 / total:.2f} core-hours for a million; "
        f"largest worker {largest}; prefcli predict, one core, one shard: {plain:,.0f} battles/s"
    )


if __name__ == "__main__":
    main()

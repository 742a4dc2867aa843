"""Whether cost grows in proportion to the number of battles: ``python benchmarks/scaling.py FILE``.

Cuts the file into its first eighth, quarter, half and all of it (or into the ``--sizes`` that are named), and runs on
each, in processes of their own and in fresh workspaces: `preprocess` (reading included), tokenising into the cache, and
`predict` with a siamese (`tiny`, or the ``--encoder`` that is named) and with `features` (both trained on a few battles
here). Prints seconds per thousand battles and peak memory: both
should stay level, memory where the work streams.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefcli.readers import open_battles

TOKENISE = """
import sys
from pathlib import Path
import numpy as np
from prefcli import encoders, pipeline
from prefcli.reporting import SILENT
from prefcli.data.selection import TrainingData, no_soft_labels
from prefcli.models.token_cache import cached_tokens
from prefcli.storage.workspace import Workspace
file, folder, root = map(Path, sys.argv[1:])
workspace = Workspace(root)
stage = pipeline.preprocess(file, workspace, text="raw").stage
rows = np.arange(stage.rows)
pool = TrainingData(((stage, rows),), [""] * len(rows), rows * 0, rows, no_soft_labels(len(rows)))
cached_tokens(pool, encoders.load_tokenizer(folder), workspace, SILENT, by_turn=False)
"""


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds, and peak megabytes of the largest process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command[:6])}\n{errors.decode()}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--encoder", default="tiny", help="encoder of the siamese")
    parser.add_argument("--predict-length", type=int, default=64, help="--max-length of the siamese")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of battles, instead of parts of the file")
    parser.add_argument("--only", default="", help="only work whose name contains this")
    args = parser.parse_args()
    battles = pa.Table.from_batches([batch for batch, _ in open_battles(args.file).batches()])
    prefcli = [sys.executable, "-m", "prefcli"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = {}
        for size in args.sizes or [len(battles) // share for share in (8, 4, 2, 1)]:
            files[size] = root / f"{size}.parquet"
            pq.write_table(battles.slice(0, size), files[size])
        train = [*prefcli, "train", str(next(iter(files.values()))), "--limit", "1500", "--text", "raw"]
        neural = ["--encoder", args.encoder, "--max-length", str(args.predict_length), "--max-steps", "2"]
        measure([*train, *neural, "--output", "neural"], root)
        measure([*train, "--recipe", "fast", "--output", "features"], root)
        commands = {
            "preprocess (nltk), reading included": lambda file, ws: [*prefcli, "--workspace", ws, "preprocess", file],
            "reading and tokenising": lambda file, ws: [sys.executable, "-c", TOKENISE, file, str(root / "neural"), ws],
            "predict, siamese, preprocessed before": lambda file, ws: _predict(prefcli, file, ws, "neural"),
            "predict, features, preprocessed before": lambda file, ws: _predict(prefcli, file, ws, "features"),
        }
        print("| work | battles | seconds | seconds per thousand battles | peak MB |\n|---|---|---|---|---|")
        for what, command in commands.items():
            if args.only not in what:
                continue
            for count, file in files.items():
                workspace = root / f"ws-{count}-{what[:4]}"
                if what.startswith("predict"):
                    # Preprocessing has a row of its own.
                    measure([*prefcli, "--workspace", str(workspace), "preprocess", str(file), "--text", "raw"], root)
                seconds, memory = measure(command(str(file), str(workspace)), root)
                print(
                    f"| {what} | {count:,} | {seconds:.1f} | {seconds / count * 1000:.3f} | {memory:.0f} |", flush=True
                )


def _predict(prefcli: list[str], file: str, workspace: str, run: str) -> list[str]:
    return [*prefcli, "--workspace", workspace, "predict", file, "--model", run, "--output", "p.parquet", "--force"]


if __name__ == "__main__":
    main()

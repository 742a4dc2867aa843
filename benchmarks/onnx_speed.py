"""Exported runs beside torch: ``python benchmarks/onnx_speed.py FILE [RUN...]``.

Each neural run is exported in float32 and in int8, then the same battles are predicted, tokenising included, by torch
as prefcli computes it, by torch with transformers' own attention, and by ONNX Runtime in both precisions. The ways take
turns in one process; the median of the rounds is printed, and the largest difference of a probability to torch's, in
both orders of the answers, on more battles. Text is taken raw, because normalising it takes the same time in all ways.
Without a run, small ones with the built-in encoder are trained on the file; ``--deberta`` trains one step of a siamese
with an encoder of DeBERTa-v3-small's shape and random weights instead, whose predictions say little and whose speed is
that of the real one. ``--openvino`` computes the graph by OpenVINO too, where it is installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import pyarrow as pa
from peers import SHAPES

from prefcli import encoders, metrics, models, pipeline
from prefcli.battles import TEXT_FIELDS, texts_of
from prefcli.compute import devices
from prefcli.models import Model
from prefcli.models.exported import GRAPH
from prefcli.options import TrainOptions
from prefcli.readers import open_battles
from prefcli.storage.workspace import Workspace

OPENVINO = {"OpenVINO, fp32": "f32", "OpenVINO, bf16": "bf16"}
ORDER = ("torch", "torch, transformers' own layers", "torch, bf16", "ONNX Runtime, fp32", "ONNX Runtime, int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--deberta", action="store_true", help="a run of DeBERTa-v3-small's shape")
    parser.add_argument("--max-length", type=int, default=256, help="of that run")
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--battles", type=int, default=32, help="timed in every round")
    parser.add_argument("--compared", type=int, default=500, help="on which probabilities are compared")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    battles = pa.Table.from_batches([batch for batch, _ in open_battles(args.file).batches()])
    with tempfile.TemporaryDirectory() as scratch:
        runs = [*args.runs, *([deberta_run(args, battles, Path(scratch))] if args.deberta else [])]
        for number, run in enumerate(runs or tiny_runs(args.file, Path(scratch))):
            report(run, ways_of(run, Path(scratch) / str(number), args.openvino), battles, args)


def tiny_runs(file: Path, scratch: Path) -> list[Path]:
    runs = [scratch / "siamese", scratch / "cross-encoder"]
    for run in runs:
        options = TrainOptions(encoder="tiny", architecture=run.name, limit=300, text="raw")
        pipeline.train(file, Workspace(scratch / "workspace"), options, output=run, remember=False)
    return runs


def deberta_run(args: argparse.Namespace, battles: pa.Table, scratch: Path) -> Path:
    folder, run = scratch / "encoder", scratch / "DeBERTa-v3-small's shape"
    texts = [text for name in TEXT_FIELDS for text in texts_of(battles.column(name)[:2000].combine_chunks())]
    tokenizer = encoders.train_tokenizer(texts, 30_000)
    encoder = encoders.from_config({**SHAPES["DeBERTa-v3-small"], "vocab_size": len(tokenizer)}, seed=0)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = TrainOptions(
        encoder=str(folder), limit=64, max_steps=1, max_length=args.max_length, text="raw", validation=0
    )
    pipeline.train(args.file, Workspace(scratch / "workspace"), options, output=run, remember=False)
    return run


class OpenVinoSession:
    """A graph in OpenVINO, called as ONNX Runtime's session is."""

    def __init__(self, graph: Path, precision: str) -> None:
        import openvino

        self._graph = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self._graph(inputs)[0]]


def ways_of(run: Path, scratch: Path, openvino: bool) -> dict[str, Model]:
    workspace = Workspace(scratch / "workspace")
    for precision in ("fp32", "int8"):
        pipeline.export(str(run), workspace, scratch / precision, int8=precision == "int8")
    auto = devices.DeviceRequest("cpu", "auto")
    models_in_order = [
        models.load(run, devices.DeviceRequest("cpu", "fp32")),
        models.load(run, devices.DeviceRequest("cpu", "fp32"), fast_attention=False),
        models.load(run, devices.DeviceRequest("cpu", "bf16")),
        models.load(scratch / "fp32", auto),
        models.load(scratch / "int8", auto),
    ]
    ways = dict(zip(ORDER, models_in_order, strict=True))
    for name, precision in OPENVINO.items() if openvino else ():
        ways[name] = models.load(scratch / "fp32", auto)
        ways[name].session = OpenVinoSession(scratch / "fp32" / GRAPH, precision)
    return ways


def report(run: Path, ways: dict[str, Model], battles: pa.Table, args: argparse.Namespace) -> None:
    timed_battles = evenly(battles, args.battles)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, model in ways.items():
            seconds = timed(lambda model=model: model.logits(timed_battles))  # type: ignore[misc]
            if number:
                times[name].append(seconds)
    compared_battles = evenly(battles, args.compared)
    predictions = {name: probabilities(ways[name], compared_battles) for name in ways if name != ORDER[1]}
    print(f"\n{run.name}: {timed_battles.num_rows} battles of {args.file.name}, {args.rounds} rounds\n")
    print(f"| way | battles/s (lowest to highest) | times torch | largest difference on {args.compared} battles |")
    print("|---|---|---|---|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        low, high = timed_battles.num_rows / max(seconds), timed_battles.num_rows / min(seconds)
        rates = f"{timed_battles.num_rows / middle:.1f} ({low:.1f} to {high:.1f})"
        difference = f"{np.abs(predictions[name] - predictions[ORDER[0]]).max():.1e}" if name not in ORDER[:2] else ""
        faster = statistics.median(times[ORDER[0]]) / middle
        print(f"| {name} | {rates} | {faster:.2f} | {difference} |", flush=True)


def evenly(table: pa.Table, count: int) -> pa.RecordBatch:
    rows = np.linspace(0, table.num_rows - 1, min(count, table.num_rows)).astype(np.int64)
    return table.take(pa.array(rows)).combine_chunks().to_batches()[0]


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def probabilities(model: Model, battles: pa.RecordBatch) -> np.ndarray:
    """In both orders, shape ``[2, n, 3]``."""
    logits, swapped_logits = model.logits(battles, swap_average=True)
    assert swapped_logits is not None
    return np.stack([metrics.softmax(logits), metrics.softmax(swapped_logits)])


if __name__ == "__main__":
    main()

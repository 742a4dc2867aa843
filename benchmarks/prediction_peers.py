"""Prediction beside the peers, from text to probabilities: ``python benchmarks/prediction_peers.py FILE``.

One joint sequence "prompt, A, B" of at most 512 tokens through an encoder of DeBERTa-v3-small's shape (random weights),
in float32, by sentence-transformers' ``CrossEncoder``, by ``pairjudge``, and by prefcli's `cross-encoder`; tokenising
included. They take turns in one process on the same battles; the median of the rounds is printed. Peers that are not
installed are left out (``pip install sentence-transformers pairjudge``).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow as pa
from training_speed import SHAPE

from prefcli.battles import TEXT_FIELDS, texts_of
from prefcli.readers import open_battles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--battles", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=128_100)
    args = parser.parse_args()
    batch = next(iter(open_battles(args.file).batches()))[0]
    step = max(1, batch.num_rows // args.battles)
    batch = batch.take(pa.array(range(0, step * args.battles, step)))
    ways = {name: make(args, batch) for name, make in MAKERS.items()}
    times: dict[str, list[float]] = {name: [] for name, way in ways.items() if way}
    for number in range(args.rounds + 1):
        for name in times:
            started = time.perf_counter()
            ways[name]()  # type: ignore[misc]
            if number:
                times[name].append(time.perf_counter() - started)
    print(f"{args.battles} battles of {args.file.name}, {args.rounds} rounds")
    print("| way | battles/s (lowest to highest) | prefcli is times faster |\n|---|---|---|")
    ours = statistics.median(times["prefcli"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        rates = f"{args.battles / middle:.2f} ({args.battles / max(seconds):.2f} to {args.battles / min(seconds):.2f})"
        print(f"| {name} | {rates} | {middle / ours:.2f} |")


def tokenizer_of(batch: pa.RecordBatch) -> Any:
    from prefcli import encoders

    return encoders.train_tokenizer((text for name in TEXT_FIELDS for text in texts_of(batch.column(name))), 30_000)


def classifier(args: argparse.Namespace) -> Any:
    """The encoder with transformers' own classification head: what the peers load."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = {**SHAPE, "vocab_size": args.vocabulary, "num_labels": 3}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))


def cross_encoder(args: argparse.Namespace, batch: pa.RecordBatch) -> Callable[[], Any] | None:
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import CrossEncoder

    folder = tempfile.mkdtemp()
    classifier(args).save_pretrained(folder)
    tokenizer_of(batch).save_pretrained(folder)
    model = CrossEncoder(folder, num_labels=3, max_length=512, device="cpu", local_files_only=True)
    prompts, a, b = (texts_of(batch.column(name)) for name in TEXT_FIELDS)
    pairs = [(prompt, f"{answer_a}\n{answer_b}") for prompt, answer_a, answer_b in zip(prompts, a, b, strict=True)]
    return lambda: model.predict(pairs, batch_size=16, show_progress_bar=False, apply_softmax=True)


def pairjudge(args: argparse.Namespace, batch: pa.RecordBatch) -> Callable[[], Any] | None:
    if importlib.util.find_spec("pairjudge") is None:
        return None
    import pandas as pd
    from pairjudge.judge import PairwiseJudge
    from pairjudge.packing import PackerConfig

    judge = PairwiseJudge(classifier(args).eval(), tokenizer_of(batch), PackerConfig(max_length=512))
    frame = pd.DataFrame({name: batch.column(name).to_pylist() for name in TEXT_FIELDS})
    frame.insert(0, "id", batch.column("id").to_pylist())
    return lambda: judge.predict_proba(frame)


def prefcli(args: argparse.Namespace, batch: pa.RecordBatch) -> Callable[[], Any] | None:
    from prefcli import encoders
    from prefcli.compute import devices
    from prefcli.models import neural
    from prefcli.options import TrainOptions
    from prefcli.prediction.inference import Member, predict_batch

    tokenizer = tokenizer_of(batch)
    encoder = encoders.from_config({**SHAPE, "vocab_size": args.vocabulary})
    options = TrainOptions(architecture="cross-encoder", truncation="head-tail")
    model = neural.build(options, encoder, tokenizer, 512, devices.place("cpu", "fp32"))
    return lambda: predict_batch(Member((model,), "raw"), batch)


MAKERS = {"sentence-transformers CrossEncoder": cross_encoder, "pairjudge": pairjudge, "prefcli": prefcli}

if __name__ == "__main__":
    main()

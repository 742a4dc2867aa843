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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from peers import SHAPES

from prefcli.battles import TEXT_FIELDS, texts_of
from prefcli.readers import open_battles


def main() -> None:
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000", "HF_HUB_OFFLINE": "1"}.items():
        os.environ.setdefault(name, value)  # before torch and the hub's library are imported
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--battles", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=128_100)
    args = parser.parse_args()
    batch = next(iter(open_battles(args.file).batches()))[0]
    step = max(1, batch.num_rows // args.battles)
    batch = batch.take(pa.array(range(0, step * args.battles, step)))
    from prefcli.compute import devices

    shape = SHAPES["DeBERTa-v3-small"] | {"vocab_size": args.vocabulary}
    setting = Setting(shape, tokenizer_of(batch), devices.place("cpu", "fp32"))
    ways = {name: make(setting) for name, make in MAKERS.items()}
    times: dict[str, list[float]] = {name: [] for name, way in ways.items() if way}
    for number in range(args.rounds + 1):
        for name in times:
            started = time.perf_counter()
            ways[name](batch)  # type: ignore[misc]
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


@dataclass(frozen=True)
class Setting:
    """What is computed, and where."""

    shape: dict[str, Any]
    tokenizer: Any
    placement: Any
    batch: int = 16
    """Sequences in a pass of the peers."""
    max_length: int = 512


Predict = Callable[[pa.RecordBatch], Any]


def classifier(setting: Setting) -> Any:
    """The encoder with transformers' own classification head: what the peers load."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = setting.shape | {"num_labels": 3}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))


def cross_encoder(setting: Setting) -> Predict | None:
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import CrossEncoder

    with tempfile.TemporaryDirectory() as folder:
        classifier(setting).save_pretrained(folder)
        setting.tokenizer.save_pretrained(folder)
        device = str(setting.placement.device)
        model = CrossEncoder(folder, num_labels=3, max_length=setting.max_length, device=device, local_files_only=True)
    model.to(setting.placement.dtype)

    def predict(batch: pa.RecordBatch) -> Any:
        fields = (texts_of(batch.column(name)) for name in TEXT_FIELDS)
        pairs = [(prompt, f"{a}\n{b}") for prompt, a, b in zip(*fields, strict=True)]
        return model.predict(pairs, batch_size=setting.batch, show_progress_bar=False, apply_softmax=True)

    return predict


def pairjudge(setting: Setting) -> Predict | None:
    if importlib.util.find_spec("pairjudge") is None:
        return None
    import pandas as pd
    from pairjudge.judge import PairwiseJudge
    from pairjudge.packing import PackerConfig

    judge = PairwiseJudge(classifier(setting).eval(), setting.tokenizer, PackerConfig(max_length=setting.max_length))

    def predict(batch: pa.RecordBatch) -> Any:
        frame = pd.DataFrame({name: batch.column(name).to_pylist() for name in ("id", *TEXT_FIELDS)})
        return judge.predict_proba(frame)

    return predict


def prefcli(setting: Setting) -> Predict | None:
    from prefcli import encoders
    from prefcli.models import neural
    from prefcli.options import TrainOptions
    from prefcli.prediction.inference import Member, predict_batch

    options = TrainOptions(architecture="cross-encoder", truncation="head-tail")
    encoder = encoders.from_config(setting.shape)
    model = neural.build(options, encoder, setting.tokenizer, setting.max_length, setting.placement)
    return lambda batch: predict_batch(Member((model,), "raw"), batch)


MAKERS = {"sentence-transformers CrossEncoder": cross_encoder, "pairjudge": pairjudge, "prefcli": prefcli}

if __name__ == "__main__":
    main()

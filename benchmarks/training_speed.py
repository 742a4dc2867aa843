"""Training and prediction in battles per second, three ways side by side: ``python benchmarks/training_speed.py FILE``.

The same siamese design (one encoder reads prompt and answer A, prompt and answer B; masked means, one linear layer) on
the same battles, in float32:

- *notebook*: plain PyTorch and transformers, every sequence padded to the longest length allowed;
- *Trainer*: Hugging Face's ``Trainer``, batches grouped by length and padded to their longest (needs ``accelerate``);
- *prefcli*: ``prefcli.training.loop.forward_backward``, ``update`` and ``NeuralModel.logits_from_tokens`` as they are,
  with and without ``prefcli.encoders.deberta.accelerate`` (the latter as *prefcli, transformers' attention*).

Each way is a process of its own. They take turns, each given the same battles in a round; medians over the rounds are
printed. *Processor time* is summed over all threads; it varies less on a busy machine. The encoder has
DeBERTa-v3-small's shape and random weights unless a folder is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np

from prefcli.models.tokens import TokenisedBattles

COMMAND_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""How threads wait: the prefcli command sets this for itself; the other ways use PyTorch's defaults."""

SHAPE: dict[str, Any] = {
    "model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"], "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
WAYS = ("notebook", "Trainer", "prefcli", "prefcli, transformers' attention")
LEARNING_RATE = 2e-5
STEP = 16
"""Battles in an optimizer step, of every way; notebook and Trainer take them in pieces of ``--batch``."""
PRODUCT = (2048, 768, 3072)


def prepare(options: argparse.Namespace) -> tuple[Any, TokenisedBattles, Any]:
    """Tokenizer, battles and encoder, the same in every process."""
    from prefcli import encoders
    from prefcli.battles import TEXT_FIELDS, texts_of
    from prefcli.models.tokens import tokenise
    from prefcli.readers import open_battles

    batches, count = [], 0
    for batch, _ in open_battles(options.file).batches():
        batches.append(batch.slice(0, options.limit - count))
        count += batches[-1].num_rows
        if count >= options.limit:
            break
    if options.encoder:
        located = encoders.locate(options.encoder)
        tokenizer = encoders.load_tokenizer(located.folder)
        encoder = encoders.make_encoder(located, len(tokenizer), seed=0)
    else:
        texts = (text for batch in batches for name in TEXT_FIELDS for text in texts_of(batch.column(name)))
        tokenizer = encoders.train_tokenizer(texts, options.merges)
        encoder = encoders.from_config({**SHAPE, "vocab_size": options.vocabulary}, seed=0)
    return tokenizer, tokenise(tokenizer, iter(batches)), encoder


def sequences(model: Any, battles: TokenisedBattles, row: int) -> list[list[int]]:
    """A battle's two sequences under the budget."""
    return [packed.ids.tolist() for packed in model.input_format.pack(model.packing, battles.fields(row))]


def padded(rows: list[list[int]], width: int, padding: int) -> tuple[Any, Any]:
    """Token ids and mask ``[n, width]``."""
    import torch

    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


OnRows = Callable[[np.ndarray], None]


def notebook(model: Any, battles: TokenisedBattles, options: argparse.Namespace) -> tuple[OnRows, OnRows]:
    """The original notebook's way: full padding, one batch after another."""
    import torch

    optimizer = torch.optim.AdamW(model.module.parameters(), lr=LEARNING_RATE)

    def batches(rows: np.ndarray) -> Any:
        for start in range(0, len(rows), options.batch):
            batch = rows[start : start + options.batch]
            pairs = [sequences(model, battles, int(row)) for row in batch]
            ids, mask = padded([pair[s] for s in (0, 1) for pair in pairs], options.max_length, model.pad_token_id)
            yield {"input_ids": ids, "attention_mask": mask}, torch.from_numpy(battles.labels[batch])

    def train(rows: np.ndarray) -> None:
        model.module.train()
        pieces = STEP // options.batch
        for number, (inputs, labels) in enumerate(batches(rows)):
            if number % pieces == 0:
                optimizer.zero_grad()
            (torch.nn.functional.cross_entropy(model.module(**inputs), labels) / pieces).backward()
            if number % pieces == pieces - 1:
                torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
                optimizer.step()

    def predict(rows: np.ndarray) -> None:
        model.module.eval()
        with torch.no_grad():
            for inputs, _ in batches(rows):
                model.module(**inputs).softmax(dim=-1).numpy()

    return train, predict


def trainer(model: Any, battles: TokenisedBattles, options: argparse.Namespace) -> tuple[OnRows, OnRows]:
    """Hugging Face's Trainer: batches of like lengths, padded to their longest."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.siamese = model.module

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
            logits = self.siamese(input_ids=input_ids, attention_mask=attention_mask)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [item["pair"][s] for s in (0, 1) for item in items]
        ids, mask = padded(rows, max(map(len, rows)), model.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([item["label"] for item in items])}

    def dataset(rows: np.ndarray) -> list[dict[str, Any]]:
        pairs = [sequences(model, battles, int(row)) for row in rows]
        return [
            {"pair": pair, "label": int(battles.labels[row]), "length": max(map(len, pair)), "input_ids": max(pair)}
            for pair, row in zip(pairs, rows, strict=True)
        ]

    module = WithLoss()
    folder = tempfile.mkdtemp()
    settings = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=options.batch, per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=STEP // options.batch,
        num_train_epochs=1, learning_rate=LEARNING_RATE, train_sampling_strategy="group_by_length", use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)

    def make_trainer(rows: np.ndarray) -> Any:
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return transformers.Trainer(
            module, settings, collate, train_dataset=dataset(rows), optimizers=(optimizer, schedule)
        )

    def train(rows: np.ndarray) -> None:
        make_trainer(rows).train()

    def predict(rows: np.ndarray) -> None:
        make_trainer(rows).predict(dataset(rows))

    return train, predict


def prefcli(model: Any, battles: TokenisedBattles, options: argparse.Namespace) -> tuple[OnRows, OnRows]:
    """prefcli: an optimizer step over each batch of 16, in the model's own micro-batches."""

    from prefcli.options import TrainOptions
    from prefcli.reporting import SILENT
    from prefcli.training import loop

    train_options = TrainOptions(batch_size=STEP, max_length=options.max_length, lr=LEARNING_RATE, precision="fp32")
    targets = np.eye(3, dtype=np.float32)[battles.labels]
    spec = loop.FitSpec(model, battles, targets, None, train_options, Path(tempfile.mkdtemp()), SILENT)
    optimizer = loop.make_optimizer(model.module, train_options)
    scaler = loop.make_scaler(model.placement)

    def train(rows: np.ndarray) -> None:
        for start in range(0, len(rows), train_options.batch_size):
            batch = rows[start : start + train_options.batch_size]
            loop.forward_backward(spec, model.module, optimizer, scaler, batch, spec.prepare(batch))
            loop.update(model.module, optimizer, scaler, LEARNING_RATE, train_options.clip)

    def predict(rows: np.ndarray) -> None:
        model.logits_from_tokens(battles.take(rows))

    return train, predict


def work(way: str, options: argparse.Namespace) -> None:
    """A process that does what each line says (``train`` or ``predict`` and rows) and answers with the seconds."""
    import torch

    from prefcli.compute import devices, memory
    from prefcli.encoders.dense import fast_linear
    from prefcli.models import neural
    from prefcli.options import TrainOptions

    ours = way.startswith("prefcli")
    if ours:
        memory.keep_freed_memory()
    tokenizer, battles, encoder = prepare(options)
    train_options = TrainOptions(fast_attention=way == "prefcli")
    torch.manual_seed(train_options.seed)
    model = neural.build(train_options, encoder, tokenizer, options.max_length, devices.place("cpu", "fp32"))
    print(f"{way}: {model.attention}", file=sys.stderr)
    make = prefcli if ours else notebook if way == "notebook" else trainer
    train, predict = make(model, battles, options)
    left, right = torch.randn(PRODUCT[:2]), torch.randn(PRODUCT[2], PRODUCT[1])

    def product(_: np.ndarray) -> None:
        for _ in range(10):
            fast_linear(left, right)  # by the faster of PyTorch's two libraries

    functions = {"train": train, "predict": predict, "product": product}
    lengths = [[len(ids) for ids in sequences(model, battles, row)] for row in range(len(battles))]
    config = encoder.config
    shape = {name: getattr(config, name, None) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    buckets = getattr(config, "position_buckets", 0) if getattr(config, "relative_attention", False) else 0
    print(json.dumps({"lengths": lengths, "shape": shape | {"position_buckets": buckets}}), flush=True)
    for line in sys.stdin:
        what, rows = json.loads(line)
        started, used = time.perf_counter(), time.process_time()
        functions[what](np.array(rows))
        # On a line of its own, because libraries print too.
        print("\n@" + json.dumps([time.perf_counter() - started, time.process_time() - used]), flush=True)


def answer(worker: subprocess.Popen[str], question: Any) -> tuple[float, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(question) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("@"):
            wall, used = json.loads(line[1:])
            return wall, used
    raise SystemExit("a process ended early; see above")


def operations(lengths: list[int], shape: dict[str, int]) -> float:
    """Floating-point operations of one forward pass over sequences, as ``benchmarks/deberta.py`` counts them.

    Without the projection of relative embeddings, which is shared by a batch.
    """
    hidden, wide, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    total = 0.0
    for length in lengths:
        buckets = min(2 * length - 1, 2 * shape["position_buckets"])
        total += 2 * length * (4 * hidden**2 + 2 * hidden * wide) + 4 * length * hidden * (length + buckets)
    return layers * total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="battles with outcomes, in any layout that prefcli reads")
    parser.add_argument("--limit", type=int, default=512, help="battles read from the file's beginning")
    parser.add_argument("--battles", type=int, default=16, help="battles in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="battles in a step of the notebook and the Trainer")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--encoder", help="a folder or a model's name instead of random weights")
    parser.add_argument("--vocabulary", type=int, default=128_100, help="rows of the random encoder's embeddings")
    parser.add_argument("--merges", type=int, default=30_000, help="vocabulary of the tokenizer trained on the texts")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options)

    workers: dict[str, subprocess.Popen[str]] = {}
    times: dict[str, dict[str, list[tuple[float, float]]]] = {w: {"train": [], "predict": []} for w in options.ways}
    rates: list[tuple[float, float]] = []
    needed = []
    try:
        for way in options.ways:
            command = [sys.executable, *sys.argv, "--work", way]
            workers[way] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=os.environ | (COMMAND_ENVIRONMENT if way.startswith("prefcli") else {}),
            )  # fmt: skip
        facts: dict[str, Any] = {}
        for worker in workers.values():
            assert worker.stdout is not None
            facts = json.loads(worker.stdout.readline())
        lengths: list[list[int]] = facts["lengths"]
        random = np.random.default_rng(0)
        for number in range(options.rounds + 1):
            rows = random.choice(len(lengths), options.battles, replace=False).tolist()
            for what in ("train", "predict"):
                for way, worker in workers.items():
                    measured = answer(worker, (what, rows))
                    if number:
                        times[way][what].append(measured)
            wall, used = answer(workers[options.ways[-1]], ("product", []))
            count = 10 * 2 * PRODUCT[0] * PRODUCT[1] * PRODUCT[2]
            if number:
                rates.append((count / wall, count / used))
                needed.append(operations([length for row in rows for length in lengths[row]], facts["shape"]))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    report(options, lengths, times, rates, statistics.mean(needed))
    return None


def report(
    options: argparse.Namespace,
    lengths: list[list[int]],
    times: dict[str, dict[str, list[tuple[float, float]]]],
    rates: list[tuple[float, float]],
    needed: float,
) -> None:
    """The table."""
    wall_rate, core_rate = (statistics.median(rate[kind] for rate in rates) for kind in (0, 1))
    every = [length for pair in lengths for length in pair]
    print(
        f"{len(lengths)} battles of {options.file.name}, {statistics.mean(every):.0f} tokens a side on average, "
        f"{sum(length == options.max_length for length in every) / len(every):.0%} cut at {options.max_length}; "
        f"{options.rounds} rounds of {options.battles} battles, batch {options.batch} for notebook and Trainer; "
        f"a float32 matrix product reaches {wall_rate / 1e9:.0f} GFLOP/s, "
        f"{core_rate / 1e9:.0f} GFLOP per second of processor time"
    )
    print("| what | way | battles/s (lowest to highest) | per processor second | times the first: wall, processor |")
    print("|---|---|---|---|---|")
    for what, factor in (("train", 3), ("predict", 1)):
        floor = [options.battles * rate / (factor * needed) for rate in (wall_rate, core_rate)]
        each = factor * needed / options.battles / 1e9
        print(f"| {what} | floor: {each:.0f} GFLOP a battle | {floor[0]:.2f} | {floor[1]:.2f} | |")
        first = [statistics.median(t[kind] for t in times[options.ways[0]][what]) for kind in (0, 1)]
        for way in options.ways:
            wall, used = (statistics.median(t[kind] for t in times[way][what]) for kind in (0, 1))
            all_rates = [options.battles / t[0] for t in times[way][what]]
            print(
                f"| {what} | {way} | {options.battles / wall:.2f} ({min(all_rates):.2f} to {max(all_rates):.2f}) "
                f"| {options.battles / used:.2f} | {first[0] / wall:.2f}, {first[1] / used:.2f} |"
            )


if __name__ == "__main__":
    main()

"""Training and prediction in battles per second, three ways side by side: ``python benchmarks/training_speed.py FILE``.

The same siamese design (one encoder reads prompt and answer A, prompt and answer B; masked means, one linear layer) on
the same battles, in float32 unless a way says otherwise:

- *notebook*: plain PyTorch and transformers, every sequence padded to the longest length allowed;
- *Trainer*: Hugging Face's ``Trainer``, batches grouped by length and padded to their longest (needs ``accelerate``);
- *prefcli*: ``prefcli.training.loop.forward_backward``, ``update`` and ``NeuralModel.logits_from_tokens`` as they are,
  with and without ``prefcli.encoders.deberta.accelerate`` (the latter as *prefcli, transformers' attention*), and in
  bfloat16, which ``--precision auto`` chooses on a CPU with AMX.

Each way is a process of its own. They take turns, each given the same battles in a round; medians over the rounds are
printed. *Processor time* is summed over all threads; it varies less on a busy machine. The encoder has
DeBERTa-v3-small's shape and random weights unless a folder is named.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from peers import (
    COMMAND_ENVIRONMENT,
    SHAPES,
    OnRows,
    Worker,
    answer_questions,
    operations,
    padded,
    prefcli_way,
    read_battles,
    sequences,
    started,
    trainer_way,
)  # fmt: skip

from prefcli.models.tokens import TokenisedBattles

WAYS = ("notebook", "Trainer", "prefcli", "prefcli, bf16", "prefcli, transformers' attention")
LEARNING_RATE = 2e-5
STEP = 16
"""Battles in an optimizer step, of every way; notebook and Trainer take them in pieces of ``--batch``."""
PRODUCT = (2048, 768, 3072)


def prepare(options: argparse.Namespace) -> tuple[Any, TokenisedBattles, Any]:
    """Tokenizer, battles and encoder, the same in every process."""
    from prefcli import encoders
    from prefcli.battles import TEXT_FIELDS, texts_of
    from prefcli.models.tokens import tokenise

    batch = read_battles(options.file, options.limit)
    if options.encoder:
        located = encoders.locate(options.encoder)
        tokenizer = encoders.load_tokenizer(located.folder)
        encoder = encoders.make_encoder(located, len(tokenizer), seed=0)
    else:
        texts = (text for name in TEXT_FIELDS for text in texts_of(batch.column(name)))
        tokenizer = encoders.train_tokenizer(texts, options.merges)
        encoder = encoders.from_config({**SHAPES["DeBERTa-v3-small"], "vocab_size": options.vocabulary}, seed=0)
    return tokenizer, tokenise(tokenizer, iter([batch])), encoder


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
    train_options = TrainOptions(fast_attention=ours and way != "prefcli, transformers' attention")
    torch.manual_seed(train_options.seed)
    placement = devices.place("cpu", "bf16" if way.endswith("bf16") else "fp32")
    model = neural.build(train_options, encoder, tokenizer, options.max_length, placement)
    print(f"{way}: {model.attention}", file=sys.stderr)
    training = {"batch_size": STEP, "max_length": options.max_length, "lr": LEARNING_RATE, "precision": "fp32"}
    if ours:  # in the model's own micro-batches
        train, predict = prefcli_way(model, battles, TrainOptions(**training))
    elif way == "Trainer":
        train, predict = trainer_way(model, battles, TrainOptions(**training, micro_batch=options.batch))
    else:
        train, predict = notebook(model, battles, options)
    left, right = torch.randn(PRODUCT[:2]), torch.randn(PRODUCT[2], PRODUCT[1])

    def product(_: np.ndarray) -> None:
        for _ in range(10):
            fast_linear(left, right)  # by the faster of PyTorch's two libraries

    functions = {"train": train, "predict": predict, "product": product}
    lengths = [[len(ids) for ids in sequences(model, battles, row)] for row in range(len(battles))]

    def answer(question: Any) -> tuple[float, float]:
        what, rows = question
        begun, used = time.perf_counter(), time.process_time()
        functions[what](np.array(rows))
        return time.perf_counter() - begun, time.process_time() - used

    answer_questions({"lengths": lengths, "operations": [operations(pair, encoder) for pair in lengths]}, answer)


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
    parser.add_argument("--what", nargs="+", choices=("train", "predict"), default=["train", "predict"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options)

    times: dict[str, dict[str, list[tuple[float, float]]]] = {w: {"train": [], "predict": []} for w in options.ways}
    rates: list[tuple[float, float]] = []
    needed = []
    workers = {
        way: Worker([*sys.argv, "--work", way], os.environ | (COMMAND_ENVIRONMENT if way.startswith("prefcli") else {}))
        for way in options.ways
    }
    with started(workers):
        facts = [worker.read() for worker in workers.values()][-1]
        lengths: list[list[int]] = facts["lengths"]
        random = np.random.default_rng(0)
        for number in range(options.rounds + 1):
            rows = random.choice(len(lengths), options.battles, replace=False).tolist()
            for what in options.what:
                for way, worker in workers.items():
                    measured = worker.ask((what, rows))
                    if number:
                        times[way][what].append(measured)
            wall, used = workers[options.ways[-1]].ask(("product", []))
            count = 10 * 2 * PRODUCT[0] * PRODUCT[1] * PRODUCT[2]
            if number:
                rates.append((count / wall, count / used))
                needed.append(sum(facts["operations"][row] for row in rows))
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
    for what in options.what:
        factor = {"train": 3, "predict": 1}[what]
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

"""A language model trained with LoRA, beside Hugging Face's Trainer: ``python benchmarks/lora_speed.py FILE``.

One sequence "prompt, A, B", the same tokens, adapters of the same rank in the same layers, the same micro-batches,
random weights of a named shape:

- *Trainer*: ``AutoModelForSequenceClassification`` with ``peft``, batches of like lengths, padded to their longest;
- *prefcli*: ``prefcli.training.loop.forward_backward`` and ``update`` as it is.

Each way is a process of its own, so that peak memory is its own; they take turns, medians over the rounds are
printed. On a CUDA GPU the shape is Gemma 2's with 2 billion parameters and frozen weights are bf16; on a CPU a small
one, in float32, which shows that the script works and what the loops cost, not what a GPU would gain.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {
        "model_type": "gemma2", "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "sliding_window": 4096, "max_position_embeddings": 8192,
    },
    "small": {
        "model_type": "gemma2", "vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "sliding_window": 4096, "max_position_embeddings": 8192,
    },
}  # fmt: skip
WAYS = ("Trainer", "prefcli")
LEARNING_RATE = 2e-4
PRODUCT = 4096


def prepare(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Options, placement, model and battles, the same in every process."""
    import torch

    from prefcli import encoders
    from prefcli.battles import TEXT_FIELDS, texts_of
    from prefcli.compute import devices
    from prefcli.models import neural
    from prefcli.models.tokens import tokenise
    from prefcli.options import TrainOptions
    from prefcli.readers import open_battles

    placement = devices.for_language_models(devices.place(options.device))
    batch = next(b for b, _ in open_battles(options.file).batches()).slice(0, options.limit)
    texts = (text for name in TEXT_FIELDS for text in texts_of(batch.column(name)))
    tokenizer = encoders.train_tokenizer(texts, 30_000)
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    train_options = TrainOptions(
        encoder=options.shape, architecture="cross-encoder", lora_rank=16, batch_size=options.batch,
        micro_batch=options.piece, max_length=options.max_length, lr=LEARNING_RATE,
        gradient_checkpointing=options.checkpointing,
    )  # fmt: skip
    encoder = encoders.from_config({**SHAPES[options.shape], "pad_token_id": tokenizer.pad_token_id})
    frozen = neural.frozen_weights(train_options, placement)
    assert frozen is not None
    encoder.to(frozen.dtype)
    torch.manual_seed(train_options.seed)
    model = neural.build(train_options, encoder, tokenizer, options.max_length, placement)
    torch.manual_seed(0)
    return train_options, placement, model, tokenise(tokenizer, iter([batch]))


def prefcli_way(train_options: Any, placement: Any, model: Any, battles: Any) -> Any:

    from prefcli.reporting import SILENT
    from prefcli.training import loop

    targets = np.eye(3, dtype=np.float32)[battles.labels]
    spec = loop.FitSpec(model, battles, targets, None, train_options, Path(tempfile.mkdtemp()), SILENT)
    if train_options.gradient_checkpointing:
        model.module.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = loop.make_optimizer(model.module, train_options)
    scaler = loop.make_scaler(model.placement)

    def train(rows: np.ndarray) -> None:
        for start in range(0, len(rows), train_options.batch_size):
            batch = rows[start : start + train_options.batch_size]
            loop.forward_backward(spec, model.module, optimizer, scaler, batch, spec.prepare(batch))
            loop.update(model.module, optimizer, scaler, LEARNING_RATE, train_options.clip)

    return train


def trainer_way(train_options: Any, placement: Any, model: Any, battles: Any) -> Any:
    """The Trainer: transformers' classifier, peft's adapters, batches grouped by length."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from prefcli.encoders import adapters

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    adapters.remove(model.module.encoder)
    names = sorted({name.rsplit(".", 1)[-1] for name in adapters.targets(model.module.encoder, "all")})
    config = model.module.encoder.config
    config.num_labels = 3
    classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    classifier.model = model.module.encoder
    classifier.to(placement.device)
    classifier = get_peft_model(
        classifier, LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.0, target_modules=names)
    )
    settings = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=train_options.micro_batch,
        gradient_accumulation_steps=train_options.batch_size // train_options.micro_batch, num_train_epochs=1,
        learning_rate=LEARNING_RATE, train_sampling_strategy="group_by_length", use_cpu=placement.device.type == "cpu",
        bf16=placement.precision == "bf16", fp16=placement.precision == "fp16", save_strategy="no", report_to="none",
        gradient_checkpointing=train_options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train_options.gradient_checkpointing else None,
        disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(item["input_ids"]) for item in items)
        ids = torch.full((len(items), width), model.pad_token_id)
        mask = torch.zeros(len(items), width, dtype=torch.long)
        for i, item in enumerate(items):
            ids[i, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
            mask[i, : len(item["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([item["label"] for item in items])}

    def train(rows: np.ndarray) -> None:
        items = [{"input_ids": sequence(model, battles, row), "label": int(battles.labels[row])} for row in rows]
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        transformers.Trainer(
            classifier, settings, collate, train_dataset=items, optimizers=(optimizer, schedule)
        ).train()

    return train


def sequence(model: Any, battles: Any, row: int) -> list[int]:
    """A battle's one sequence under the budget."""
    (packed,) = model.input_format.pack(model.packing, battles.fields(int(row)))
    return list(packed.ids.tolist())


def matmul_rate(placement: Any) -> float:
    """Operations a second of a large product in the precision that is computed in."""
    import torch

    left = torch.randn(PRODUCT, PRODUCT, device=placement.device, dtype=placement.dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(3):
            left @ left
        if placement.device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / 3)
    return 2 * PRODUCT**3 / min(times)


def work(options: argparse.Namespace) -> None:
    """Answer each line of rows with the seconds that training on them took and the peak of memory so far."""
    import torch

    train_options, placement, model, battles = prepare(options)
    blocks = sum(p.numel() for n, p in model.module.encoder.named_parameters() if "embed" not in n and "lora" not in n)
    lengths = [len(sequence(model, battles, row)) for row in range(len(battles))]
    train = (prefcli_way if options.work == "prefcli" else trainer_way)(train_options, placement, model, battles)
    facts = {"lengths": lengths, "blocks": blocks, "rate": matmul_rate(placement), "placement": str(placement)}
    print("\n@" + json.dumps(facts), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        train(np.array(json.loads(line)))
        if placement.device.type == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 1e6
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print("\n@" + json.dumps([time.perf_counter() - started, peak]), flush=True)


def answer(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith("@"):
            return json.loads(line[1:])
    raise SystemExit("a process ended early; see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="battles with outcomes, in any layout that prefcli reads")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="by default gemma-2-2b on a GPU, small on a CPU")
    parser.add_argument("--limit", type=int, default=512, help="battles read from the file's beginning")
    parser.add_argument("--battles", type=int, default=32, help="battles in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="battles in an optimizer step")
    parser.add_argument("--piece", type=int, default=4, help="battles in a forward pass")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, in both ways")
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    options.shape = options.shape or ("gemma-2-2b" if torch.cuda.is_available() else "small")
    if options.work:
        return work(options)
    workers = {
        way: subprocess.Popen(
            [sys.executable, *sys.argv, "--work", way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for way in WAYS
    }
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, float] = {}
    needed = []
    try:
        facts = [answer(worker) for worker in workers.values()][-1]
        random = np.random.default_rng(0)
        for number in range(options.rounds + 1):
            rows = random.choice(len(facts["lengths"]), options.battles, replace=False).tolist()
            for way, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write(json.dumps(rows) + "\n")
                worker.stdin.flush()
                seconds, peaks[way] = answer(worker)
                if number:
                    times[way].append(seconds)
            # Frozen weights cost a product forward and one backward, where trained ones cost three in all.
            needed.append(4 * facts["blocks"] * sum(facts["lengths"][row] for row in rows))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    rate, each = facts["rate"], statistics.mean(needed[1:]) / options.battles
    print(
        f"{options.shape}, {facts['blocks'] / 1e6:.0f} M parameters in the blocks, {facts['placement']}; "
        f"{statistics.mean(facts['lengths']):.0f} tokens a battle on average; {options.rounds} rounds of "
        f"{options.battles} battles; a matrix product reaches {rate / 1e12:.2f} TFLOP/s"
    )
    print("| way | battles/s (lowest to highest) | peak MB | share of the matmul rate |\n|---|---|---|---|")
    for way, taken in times.items():
        rates = [options.battles / seconds for seconds in taken]
        middle = statistics.median(rates)
        print(
            f"| {way} | {middle:.2f} ({min(rates):.2f} to {max(rates):.2f}) | {peaks[way]:,.0f} | "
            f"{middle * each / rate:.0%} |"
        )
    return None


if __name__ == "__main__":
    main()

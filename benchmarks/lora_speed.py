"""A language model trained with LoRA, beside Hugging Face's Trainer: ``python benchmarks/lora_speed.py FILE``.

One sequence "prompt, A, B", the same tokens, adapters of the same rank in the same layers, the same micro-batches,
random weights of a named shape:

- *Trainer*: ``AutoModelForSequenceClassification`` with ``peft``, batches of like lengths, padded to their longest;
- *prefcli*: ``prefcli.training.loop.forward_backward`` and ``update`` as it is.

The Trainers' seconds are those that they report, without making their objects. With ``--ways TRL "prefcli reward"``
each answer is a sequence of its own, in TRL's ``RewardTrainer`` and in prefcli's architecture `reward`. ``--quantize
4bit`` is for the first two ways and needs a GPU and bitsandbytes.

Each way is a process of its own, so that peak memory is its own; they take turns, medians over the rounds are
printed. On a CUDA GPU the shape is Gemma 2's with 2 billion parameters and frozen weights are bf16; on a CPU a small
one, in float32, which shows that the script works and what the loops cost, not what a GPU would gain.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from peers import (
    SHAPES,
    OnRows,
    Worker,
    answer_questions,
    matmul_rate,
    prefcli_way,
    random_encoder,
    read_battles,
    sequences,
    started,
    trainer_arguments,
    trainer_way,
)  # fmt: skip

WAYS = ("Trainer", "prefcli", "TRL", "prefcli reward")
LEARNING_RATE = 2e-4


def prepare(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Options, model and battles, the same in every process that computes the same sequences."""
    import torch

    from prefcli import encoders
    from prefcli.battles import TEXT_FIELDS, texts_of
    from prefcli.compute import devices
    from prefcli.models import neural
    from prefcli.models.reward import RewardSetup
    from prefcli.options import TrainOptions
    from prefcli.reporting import SILENT
    from prefcli.training.fit_neural import conversation_template

    placement = devices.for_language_models(devices.place(options.device))
    batch = read_battles(options.file, options.limit)
    texts = (text for name in TEXT_FIELDS for text in texts_of(batch.column(name)))
    tokenizer = encoders.train_tokenizer(texts, 30_000)
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    reward = options.work in ("TRL", "prefcli reward")
    train_options = TrainOptions(
        encoder=options.shape, architecture="reward" if reward else "cross-encoder", lora_rank=16,
        batch_size=options.batch, micro_batch=options.piece, max_length=options.max_length, lr=LEARNING_RATE,
        gradient_checkpointing=options.checkpointing, quantize=options.quantize,
    )  # fmt: skip
    frozen = neural.frozen_weights(train_options, placement)
    assert frozen is not None
    shape = SHAPES[options.shape] | {"pad_token_id": tokenizer.pad_token_id}
    encoder = random_encoder(shape, placement.device, frozen.dtype, reward=reward)
    if options.quantize != "none":  # weights are quantized while they are loaded
        with tempfile.TemporaryDirectory() as folder:
            encoder.save_pretrained(folder)
            del encoder
            encoder = encoders.make_encoder(encoders.ResolvedModel(Path(folder), ""), 0, seed=0, frozen=frozen)
    setup = None
    if reward:
        template, conversation = conversation_template(tokenizer, "auto", options.shape, SILENT)
        train_options, setup = replace(train_options, template=template), RewardSetup(conversation)
    torch.manual_seed(train_options.seed)
    model = neural.build(train_options, encoder, tokenizer, options.max_length, placement, setup=setup)
    torch.manual_seed(0)
    return train_options, model, model.tokenise(iter([batch]))


def lora_of(model: Any) -> Any:
    """Settings of peft for the same adapters; the model's own are taken out."""
    from peft import LoraConfig

    from prefcli.encoders import adapters

    encoder = model.module.encoder
    adapters.remove(encoder)
    names = sorted({name.rsplit(".", 1)[-1] for name in adapters.targets(encoder, "all")})
    return LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.0, target_modules=names)


def peft_way(train_options: Any, model: Any, battles: Any) -> OnRows:
    """The Trainer: transformers' classifier, peft's adapters, batches grouped by length."""
    import torch
    import transformers
    from peft import get_peft_model

    lora, encoder = lora_of(model), model.module.encoder
    encoder.config.num_labels = 3
    with torch.device("meta"):
        classifier = transformers.AutoModelForSequenceClassification.from_config(encoder.config)
    classifier.model = encoder
    classifier.score = torch.nn.Linear(encoder.config.hidden_size, 3, bias=False, device=encoder.device)
    return trainer_way(model, battles, train_options, classifier=get_peft_model(classifier, lora))[0]


def trl_way(train_options: Any, model: Any, battles: Any) -> OnRows:
    """TRL's RewardTrainer on the same sequences; answer A is the chosen one, which changes no time."""
    import datasets
    import transformers
    from trl import RewardConfig, RewardTrainer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    lora, placement = lora_of(model), model.placement
    # It groups by the length of a column.
    settings = RewardConfig(
        **trainer_arguments(train_options, placement), length_column_name="length", max_length=None, eos_token=None
    )
    trainers: list[Any] = []

    def train(rows: np.ndarray) -> float:
        begun = time.perf_counter()
        pairs = [sequences(model, battles, row) for row in rows]
        packing = time.perf_counter() - begun
        columns = {"chosen_ids": [a for a, _ in pairs], "rejected_ids": [b for _, b in pairs]}
        columns["length"] = [max(map(len, pair)) for pair in pairs]
        classifier, config = (trainers[-1].model, None) if trainers else (model.module.encoder, lora)
        trainers[:] = [
            RewardTrainer(
                classifier, settings, train_dataset=datasets.Dataset.from_dict(columns),
                processing_class=model.tokenizer, peft_config=config,
            )
        ]  # fmt: skip
        return packing + float(trainers[0].train().metrics["train_runtime"])

    return train


def prepare_answers(options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[list[int]], tuple[float, float]]]:
    """Facts, and a function of rows: the seconds that training on them takes, and the peak of memory so far in MB."""
    import torch

    train_options, model, battles = prepare(options)
    placement = model.placement
    blocks = sum(
        math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel()
        for name, p in model.module.encoder.named_parameters()
        if "embed" not in name and "lora" not in name
    )
    lengths = [sum(map(len, sequences(model, battles, row))) for row in range(len(battles))]
    if options.work.startswith("prefcli"):
        train = prefcli_way(model, battles, train_options)[0]
    else:
        train = (peft_way if options.work == "Trainer" else trl_way)(train_options, model, battles)

    def answer(rows: list[int]) -> tuple[float, float]:
        begun = time.perf_counter()
        seconds = train(np.array(rows))
        if placement.device.type != "cuda":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            return seconds or time.perf_counter() - begun, peak
        torch.cuda.synchronize()
        seconds = seconds or time.perf_counter() - begun
        torch.cuda.empty_cache()  # for the other way's turn
        return seconds, torch.cuda.max_memory_allocated() / 1e6

    rate = matmul_rate(placement, 256 if options.shape == "toy" else 4096)
    return {"lengths": lengths, "blocks": blocks, "rate": rate, "placement": str(placement)}, answer


@dataclass(frozen=True)
class Measured:
    description: str
    rows: list[tuple[str, tuple[str, str, str]]]
    """Of each way battles/s, peak MB, share of the rate of a matrix product."""


def measure(arguments: Sequence[str]) -> Measured:
    """What the script prints, given its arguments."""
    options = parse(arguments)
    times: dict[str, list[float]] = {way: [] for way in options.ways}
    peaks: dict[str, float] = {}
    needed = []
    with started({}) as workers:
        for way in options.ways:  # after each other, because they need the most memory at the start
            workers[way] = Worker([__file__, *arguments, "--work", way])
            facts = workers[way].read()
        random = np.random.default_rng(0)
        for number in range(options.rounds + 1):
            rows = random.choice(len(facts["lengths"]), options.battles, replace=False).tolist()
            for way, worker in workers.items():
                seconds, peaks[way] = worker.ask(rows)
                if number:
                    times[way].append(seconds)
            # Frozen weights cost a product forward and one backward, where trained ones cost three in all.
            needed.append(4 * facts["blocks"] * sum(facts["lengths"][row] for row in rows))
    rate, each = facts["rate"], statistics.mean(needed[1:]) / options.battles
    rows_of_ways = []
    for way, taken in times.items():
        rates = [options.battles / seconds for seconds in taken]
        middle = statistics.median(rates)
        cells = (
            f"{middle:.2f} ({min(rates):.2f} to {max(rates):.2f})",
            f"{peaks[way]:,.0f}",
            f"{middle * each / rate:.0%}",
        )
        rows_of_ways.append((way, cells))
    return Measured(
        f"{options.shape}, {facts['blocks'] / 1e6:.0f} M parameters in the blocks, {facts['placement']}; "
        f"{statistics.mean(facts['lengths']):.0f} tokens a battle on average; {options.rounds} rounds of "
        f"{options.battles} battles; a matrix product reaches {rate / 1e12:.2f} TFLOP/s",
        rows_of_ways,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="battles with outcomes, in any layout that prefcli reads")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--shape", choices=("gemma-2-2b", "small", "toy"), help="by default gemma-2-2b on a GPU, small on a CPU"
    )
    parser.add_argument("--limit", type=int, default=512, help="battles read from the file's beginning")
    parser.add_argument("--battles", type=int, default=32, help="battles in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="battles in an optimizer step")
    parser.add_argument("--piece", type=int, default=4, help="battles in a forward pass")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, in both ways")
    parser.add_argument("--quantize", choices=("none", "8bit", "4bit"), default="none", help="of the frozen weights")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["Trainer", "prefcli"])
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.shape is None:
        import torch

        options.shape = "gemma-2-2b" if torch.cuda.is_available() else "small"
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    if options.work:
        answer_questions(*prepare_answers(options))
        return
    measured = measure(sys.argv[1:])
    print(measured.description)
    print("| way | battles/s (lowest to highest) | peak MB | share of the matmul rate |\n|---|---|---|---|")
    for way, cells in measured.rows:
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What the speed benchmarks share: shapes of encoders, ways to train and to predict, processes that take turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefcli.models.tokens import TokenisedBattles

COMMAND_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""How threads wait: the prefcli command sets this for itself; the other ways use PyTorch's defaults."""

_DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"], "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "model_type": "gemma2", "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "sliding_window": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "DeBERTa-v3-small": _DEBERTA,
    "DeBERTa-v3-base": _DEBERTA | {"num_hidden_layers": 12},
    "DeBERTa-v3-large": _DEBERTA | {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096
    },
    "ModernBERT-base": {
        "model_type": "modernbert", "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
        "intermediate_size": 1152, "vocab_size": 50_368, "max_position_embeddings": 8192, "pad_token_id": 0,
        "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
    },
    "MiniLM": {
        "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536, "vocab_size": 30_522, "max_position_embeddings": 512,
    },
    "gemma-2-2b": _GEMMA,
    "small": _GEMMA | {
        "vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    },
    "toy": _GEMMA | {
        "vocab_size": 32_000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    },
}  # fmt: skip
"""By name; DeBERTa's vocabulary, 128,100, is for the caller to add. ``small`` and ``toy`` are small Gemmas."""

OnRows = Callable[[np.ndarray], float | None]
"""Trains on some battles, or predicts them; returns its seconds where what is around them is no part of them."""


def random_encoder(shape: Mapping[str, Any], device: Any, dtype: Any, *, reward: bool = False) -> Any:
    """An encoder with random weights, made on its device and in its type: at full size it may not fit the host.

    With ``reward`` a sequence classifier with one label.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    settings = dict(shape) | ({"num_labels": 1} if reward else {})
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    with torch.device(device):
        return (AutoModelForSequenceClassification if reward else AutoModel).from_config(config, dtype=dtype)


def read_battles(file: Path, limit: int) -> Any:
    """The first battles of a file whose outcome is known, in one batch.

    Raises
    ------
    InputError
        If there is none.
    """
    import pyarrow as pa

    from prefcli.errors import InputError
    from prefcli.readers import open_battles

    batches, count = [], 0
    for batch, _ in open_battles(file).batches():
        batches.append(batch.filter(batch.column("label").is_valid()).slice(0, limit - count))
        count += batches[-1].num_rows
        if count >= limit:
            break
    if not count:
        raise InputError("the file has no battle with a known outcome", where=str(file))
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def operations(lengths: Sequence[int], encoder: Any) -> float:
    """Floating-point operations of one forward pass over sequences; a multiplication and an addition are two.

    The linear layers of the blocks; Q Kᵀ and P V, within the window of local attention; in DeBERTa as many products
    with relative vectors as there are distinct buckets, but not the projection of these, which a batch shares.
    """
    config = encoder.config
    weights = sum(
        p.numel() for name, p in encoder.named_parameters() if p.ndim == 2 and any(map(str.isdigit, name.split(".")))
    )
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = [2 * config.sliding_window + 1 if kind == "sliding_attention" else sys.maxsize for kind in kinds]
    buckets = 2 * getattr(config, "position_buckets", 0) if getattr(config, "relative_attention", False) else 0
    total = 0.0
    for length in lengths:
        reach = sum(min(length, window) + min(2 * length - 1, buckets) for window in windows)
        total += 2 * length * weights + 4 * length * config.hidden_size * reach
    return total


def sequences(model: Any, battles: TokenisedBattles, row: int) -> list[list[int]]:
    """A battle's sequences under the budget."""
    return [packed.ids.tolist() for packed in model.input_format.pack(model.packing, battles.fields(int(row)))]


def padded(rows: list[list[int]], width: int, padding: int) -> tuple[Any, Any]:
    """Token ids and mask ``[n, width]``."""
    import torch

    ids = torch.full((len(rows), width), padding)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def prefcli_way(
    model: Any, battles: TokenisedBattles, options: Any, *, optimizer: Any | None = None
) -> tuple[OnRows, OnRows]:
    """prefcli's training steps and its predictions as they are; ``options`` are those of a training."""
    from prefcli.models.batches import prefetch
    from prefcli.reporting import SILENT
    from prefcli.training import loop

    targets = np.eye(3, dtype=np.float32)[battles.labels]
    spec = loop.FitSpec(model, battles, targets, None, options, Path(tempfile.mkdtemp()), SILENT)
    loop.checkpoint_activations(spec)
    optimizer = optimizer or loop.make_optimizer(model.module, options)
    scaler = loop.make_scaler(model.placement)

    def train(rows: np.ndarray) -> None:
        batches = [rows[start : start + options.batch_size] for start in range(0, len(rows), options.batch_size)]
        for batch, passes in prefetch(lambda batch: (batch, spec.prepare(batch)), batches):
            loop.forward_backward(spec, model.module, optimizer, scaler, batch, passes)
            loop.update(model.module, optimizer, scaler, options.learning_rate, options.clip)

    def predict(rows: np.ndarray) -> None:
        model.logits_from_tokens(battles.take(rows))

    return train, predict


def trainer_arguments(options: Any, placement: Any) -> dict[str, Any]:
    """Arguments of Hugging Face's Trainer that say what prefcli's options say; batches of like lengths."""
    piece = options.micro_batch or options.batch_size
    checkpointing: dict[str, Any] = {}
    if options.gradient_checkpointing:
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": piece, "per_device_eval_batch_size": piece,
        "gradient_accumulation_steps": options.batch_size // piece, "num_train_epochs": 1,
        "learning_rate": options.learning_rate, "train_sampling_strategy": "group_by_length",
        "use_cpu": placement.device.type == "cpu", "bf16": placement.precision == "bf16",
        "fp16": placement.precision == "fp16", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "remove_unused_columns": False, "logging_strategy": "no",
    } | checkpointing  # fmt: skip


def trainer_way(
    model: Any,
    battles: TokenisedBattles,
    options: Any,
    *,
    optimizer: Any | None = None,
    classifier: Any | None = None,
) -> tuple[OnRows, OnRows]:
    """Hugging Face's Trainer: batches of like lengths, padded to their longest.

    ``classifier`` is a module of transformers that gives the loss; by default it is the model's own module.
    """
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
        rows = [item["sequences"][s] for s in range(len(items[0]["sequences"])) for item in items]
        ids, mask = padded(rows, max(map(len, rows)), model.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([item["label"] for item in items])}

    def dataset(rows: np.ndarray) -> tuple[list[dict[str, Any]], float]:
        """The sequences, and the seconds that they take, which are part of prefcli's, too."""
        begun = time.perf_counter()
        of_rows = [sequences(model, battles, row) for row in rows]
        items = [  # the Trainer groups by the length of "input_ids"
            {"sequences": each, "label": int(battles.labels[row]), "input_ids": max(each, key=len)}
            for each, row in zip(of_rows, rows, strict=True)
        ]
        return items, time.perf_counter() - begun

    module = WithLoss() if classifier is None else classifier
    settings = transformers.TrainingArguments(**trainer_arguments(options, model.placement))
    if optimizer is None:
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=options.learning_rate)

    def make_trainer(items: list[dict[str, Any]]) -> Any:
        module.__dict__.pop("forward", None)  # the last Trainer's, under autocast
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return transformers.Trainer(module, settings, collate, train_dataset=items, optimizers=(optimizer, schedule))

    def train(rows: np.ndarray) -> float:
        items, seconds = dataset(rows)
        return seconds + float(make_trainer(items).train().metrics["train_runtime"])

    def predict(rows: np.ndarray) -> float:
        items, seconds = dataset(rows)
        return seconds + float(make_trainer(items).predict(items).metrics["test_runtime"])

    return train, predict


def matmul_rate(placement: Any, size: int = 4096) -> float:
    """Operations a second of a large product in the precision that is computed in."""
    import torch

    left = torch.randn(size, size, device=placement.device, dtype=placement.dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(3):
            left @ left
        if placement.device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / 3)
    return 2 * size**3 / min(times)


class Worker:
    """A process that answers each line of JSON with another: :func:`answer_questions` runs in it."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read(self) -> Any:
        """The next answer; the first one comes unasked."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit("a process ended early; see above")

    def ask(self, question: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def started(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Workers that end with the block."""
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()


def answer_questions(facts: Any, answer: Callable[[Any], Any]) -> None:
    """Print ``facts``, then an answer to each line of the standard input, until it ends."""
    # On lines of their own, because libraries print too.
    print("\n@" + json.dumps(facts), flush=True)
    for line in sys.stdin:
        print("\n@" + json.dumps(answer(json.loads(line))), flush=True)

"""What ``benchmarks/gpu.py`` measures: each function yields the rows of its table, a list of cells each.

On a CPU DeBERTa's attention is computed as on a GPU, in whole padded batches (:func:`run`).
"""

from __future__ import annotations

import copy
import csv
import functools
import gc
import hashlib
import importlib.util
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lora_speed
import numpy as np
import prediction_peers
import pyarrow as pa
import torch
from peers import (
    SHAPES,
    OnRows,
    matmul_rate,
    operations,
    prefcli_way,
    random_encoder,
    read_battles,
    sequences,
    trainer_way,
)
from torch import nn

from prefcli import encoders
from prefcli.battles import TEXT_FIELDS, texts_of
from prefcli.compute import devices
from prefcli.data import synthetic
from prefcli.encoders import deberta, dense
from prefcli.errors import InputError, is_out_of_memory, one_line
from prefcli.models import neural
from prefcli.models.reward import RewardSetup
from prefcli.models.tokens import TokenisedBattles
from prefcli.models.trial import EncoderTraits
from prefcli.options import TrainOptions
from prefcli.outcomes import SWAPPED
from prefcli.reporting import SILENT
from prefcli.training import loop
from prefcli.training.fit_neural import conversation_template

Rows = Iterator[list[str]]

TOY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 2048,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BOUNDS = {"outputs": 1e-4, "gradients": 1e-3, "losses": 1e-3}
"""In float32, relative to the largest value (losses: to each); without TF32 only the order of sums differs."""
HALF_PRECISION = {"outputs": (1.5, 1e-3), "gradients": (2.0, 1e-2), "losses": (2.0, 1e-2)}
"""In half precision the difference to float32 may be this many times transformers' own, plus this."""
LOSSES = 20
ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """What all cases are given."""

    data: Path
    """Battles with outcomes."""
    toy: bool = False
    device: str = "auto"
    precision: str = "auto"
    """Of speed and features."""
    seconds: float = 25.0
    """For the rounds of one model's training or prediction."""

    @property
    def max_length(self) -> int:
        return 64 if self.toy else 512

    def shape(self, name: str, **changes: Any) -> dict[str, Any]:
        shape = {"vocab_size": 128_100} | SHAPES[name] | (TOY if self.toy else {})
        if self.toy and "head_dim" in shape:
            shape |= {"head_dim": 16, "num_key_value_heads": 1}
        return shape | changes

    def texts(self, count: int) -> tuple[Any, Any]:
        """Battles, and a tokenizer trained on them."""
        batch = read_battles(self.data, count)
        texts = (text for name in TEXT_FIELDS for text in texts_of(batch.column(name)))
        return batch, encoders.train_tokenizer(texts, TOY["vocab_size"] if self.toy else 30_000)


def run(setting: Setting, function: str, *arguments: str) -> Rows:
    """The rows of a case, by its name."""
    deberta.UNPADDED_DEVICES = ()
    yield from globals()[function](setting, *arguments)


def write_battles(path: Path, count: int, answers: float = 5.8) -> None:
    """Synthetic battles, each answer made of so many of theirs in the median: about 220 tokens a side with the prompt.

    Lengths are log-normal, as those of real answers; a few in a hundred are longer than 512 tokens.
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        text = synthetic.write(Path(folder), train=count, test=1).train.read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    for side in ("response_a", "response_b"):
        texts = [json.loads(row[side]) for row in rows]
        for row, own in zip(rows, texts, strict=True):
            extra = random.integers(count, size=int(random.lognormal(math.log(answers), 0.7)))
            row[side] = json.dumps([*own[:-1], " ".join([own[-1], *(turn for i in extra for turn in texts[i])])])
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def place(setting: Setting, precision: str | None = None) -> devices.Placement:
    """Device and precision; a GPU that only emulates bf16 is refused it."""
    placement = devices.place(setting.device, precision or setting.precision)
    emulated = placement.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if emulated and placement.precision == "bf16":
        raise InputError("this GPU has no bf16 units")
    return placement


def synchronise(placement: devices.Placement) -> None:
    if placement.device.type == "cuda":
        torch.cuda.synchronize()


def free_memory(placement: devices.Placement) -> None:
    gc.collect()
    if placement.device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass
class Prepared:
    """A model whose encoder computes in transformers' way or in prefcli's, with the same weights."""

    model: Any
    battles: TokenisedBattles
    encoder: Any
    transformers_classes: Mapping[nn.Module, type]
    prefcli_classes: Mapping[nn.Module, type]
    options: TrainOptions
    attention: str
    """transformers' kind of attention by default: sdpa where the model has it."""

    def use(self, *, fast: bool, attention: str) -> None:
        for module, kind in (self.prefcli_classes if fast else self.transformers_classes).items():
            module.__class__ = kind
        if attention != self.encoder.config._attn_implementation:
            self.encoder.set_attn_implementation(attention)


def prepare(setting: Setting, shape: Mapping[str, Any], placement: Any, count: int, **options: Any) -> Prepared:
    """A model of a shape with random weights, on the first battles."""
    batch, tokenizer = setting.texts(count)
    options = {"batch_size": 64, "max_length": setting.max_length, "lr": 2e-5, "text": "raw"} | options
    train_options = TrainOptions(**options)
    setup = None
    reward = train_options.architecture == "reward"
    if reward:
        template, conversation = conversation_template(tokenizer, "auto", "random weights", SILENT)
        train_options, setup = replace(train_options, template=template), RewardSetup(conversation)
    encoder = random_encoder(shape, placement.device, torch.float32, reward=reward)
    classes = {module: type(module) for module in encoder.modules()}
    attention = encoder.config._attn_implementation
    traits = EncoderTraits(setting.max_length, encoder.config.hidden_size, ignores_padding=True)
    torch.manual_seed(0)
    model = neural.build(train_options, encoder, tokenizer, setting.max_length, placement, traits=traits, setup=setup)
    fast = {module: type(module) for module in model.module.encoder.modules()}
    # Adapters wrap layers, and a head of float32 has another class: both are the same in the two ways.
    classes = {module: classes.get(module, kind) if kind in FAST_CLASSES else kind for module, kind in fast.items()}
    return Prepared(model, model.tokenise(iter([batch])), encoder, classes, fast, train_options, attention)


FAST_CLASSES = {deberta.Encoder, deberta.SelfAttention, dense.Linear, dense.Dropout}


# Equality

EQUALITY: dict[str, tuple[str, dict[str, Any]]] = {
    "DeBERTa-v3-small": ("DeBERTa-v3-small", {"architecture": "siamese"}),
    "MiniLM": ("MiniLM", {"architecture": "siamese"}),
    "MiniLM, reward": ("MiniLM", {"architecture": "reward"}),
    "ModernBERT-base": ("ModernBERT-base", {"architecture": "cross-encoder"}),
    "DeBERTa-v3-small, both orders": ("DeBERTa-v3-small", {"architecture": "siamese", "swap": True}),
    "small Gemma, LoRA": ("small", {"architecture": "cross-encoder", "lora_rank": 16}),
}
"""Fast paths: attention, batches by length in several passes, answers computed once, both orders in one pass, fused
steps; each as it is trained."""


def outcome(function: Callable[..., list[str]], *arguments: Any) -> list[str]:
    """The cells that a function gives, or one that says why it gives none."""
    try:
        return function(*arguments)
    except Exception as error:
        return [why(error)]


def why(error: BaseException) -> str:
    if is_out_of_memory(error):
        return "not measured: out of memory"
    return f"not measured: {type(error).__name__}: {one_line(error, 160)}"


def equality(setting: Setting, precision: str) -> Rows:
    """Every fast path as it is trained, beside transformers' own modules in a loop written down plainly."""
    placement = place(setting, precision)
    for name in EQUALITY:
        yield [name, precision, *outcome(compare, setting, name, placement)]
        free_memory(placement)


def compare(setting: Setting, name: str, placement: devices.Placement) -> list[str]:
    """Largest relative differences, each with its bound, and whether all are within."""
    shape, options = EQUALITY[name]
    exact, step = place(setting, "fp32"), 4
    prepared = prepare(
        setting, setting.shape(shape, **NO_DROPOUT), exact, step * LOSSES, batch_size=step, micro_batch=3,
        lr=1e-4, **options,
    )  # fmt: skip
    with torch.no_grad():
        for key, parameter in prepared.encoder.named_parameters():
            if parameter.ndim == 2 and any(map(str.isdigit, key.split("."))):
                # With initial weights attention is flat, and every mistake in it invisible; so are adapters at 0.
                parameter.normal_(0, 0.02) if "lora_B" in key else parameter.mul_(2.5)
    weights = copy.deepcopy(prepared.model.module.state_dict())
    expected = results(prepared, weights, exact, fast=False)
    ours = differences(results(prepared, weights, placement, fast=True), expected)
    bounds = BOUNDS
    if placement.precision != "fp32":
        theirs = differences(results(prepared, weights, placement, fast=False), expected)
        bounds = {key: factor * theirs[key] + more for key, (factor, more) in HALF_PRECISION.items()}
    within = all(ours[key] <= bounds[key] for key in bounds)
    return [*(f"{ours[key]:.1e} ({bounds[key]:.1e})" for key in bounds), "yes" if within else "NO"]


@dataclass(frozen=True)
class Results:
    outputs: torch.Tensor
    gradients: dict[str, torch.Tensor]
    losses: torch.Tensor


def results(prepared: Prepared, weights: Any, placement: devices.Placement, *, fast: bool) -> Results:
    """Logits, the first step's gradients and the first losses, from given weights, in prefcli's way or plainly."""
    model, options = prepared.model, prepared.options
    module = model.module
    model.placement = placement
    module.load_state_dict(weights)
    prepared.use(fast=fast, attention=prepared.attention if fast else "eager")
    targets = np.eye(3, dtype=np.float32)[prepared.battles.labels]
    spec = loop.FitSpec(model, prepared.battles, targets, None, options, Path(tempfile.mkdtemp()), SILENT)
    optimizer: torch.optim.Optimizer = loop.make_optimizer(module, options)
    if not fast:
        optimizer = torch.optim.AdamW(
            [{key: g[key] for key in ("params", "weight_decay", "factor") if key in g} for g in optimizer.param_groups],
            foreach=False,
        )
    scaler = torch.amp.GradScaler(placement.device.type, init_scale=2.0**10, enabled=placement.scaled)
    batches = np.arange(len(prepared.battles)).reshape(LOSSES, -1)
    if fast:
        logits = torch.from_numpy(model.logits_from_tokens(prepared.battles.take(batches[0]))[0])
    else:
        with torch.no_grad():
            logits = plain_logits(prepared, batches[0]).cpu().double()
    gradients: dict[str, torch.Tensor] = {}
    losses = []
    for rows in batches:
        if fast:
            loss = loop.forward_backward(spec, module, optimizer, scaler, rows, spec.prepare(rows))
        else:
            loss = plain_backward(prepared, rows, optimizer, scaler)
        if not gradients:
            gradients = {
                name: p.grad / scaler.get_scale() for name, p in module.named_parameters() if p.grad is not None
            }
        loop.update(module, optimizer, scaler, options.learning_rate, options.clip)
        losses.append(loss.detach())
    return Results(logits, gradients, torch.stack(losses).cpu().double())


def plain_logits(prepared: Prepared, rows: np.ndarray, *, swapped: bool = False) -> torch.Tensor:
    """All sequences of a batch at once, padded to the longest length allowed."""
    model = prepared.model
    model.module.eval()  # there is no dropout
    inputs = {}
    for name, array in model.arrays(prepared.battles, rows, swapped).items():
        if name in ("input_ids", "attention_mask", "token_type_ids"):
            missing = model.packing.max_length - array.shape[1]
            array = np.pad(
                array, ((0, 0), (0, missing)), constant_values=model.pad_token_id if name == "input_ids" else 0
            )
        inputs[name] = torch.from_numpy(array).to(model.placement.device)
    place = model.placement
    with torch.autocast(place.device.type, place.dtype, enabled=place.precision != "fp32"):
        logits: torch.Tensor = model.module(**inputs)
    return logits.float()


def plain_backward(prepared: Prepared, rows: np.ndarray, optimizer: Any, scaler: Any) -> torch.Tensor:
    optimizer.zero_grad()
    labels = torch.from_numpy(prepared.battles.labels[rows]).long()
    orders = [(False, labels)]
    if prepared.options.computes_both_orders:
        orders.append((True, torch.tensor(SWAPPED)[labels]))
    logits = torch.cat([plain_logits(prepared, rows, swapped=swapped) for swapped, _ in orders])
    targets = torch.cat([targets for _, targets in orders]).to(logits.device)
    loss = nn.functional.cross_entropy(logits, targets)
    scaler.scale(loss).backward()
    return loss


def differences(found: Results, expected: Results) -> dict[str, float]:
    """Largest differences relative to the largest value; of losses, to each loss."""
    if found.gradients.keys() != expected.gradients.keys():
        raise AssertionError(f"gradients of other parameters: {found.gradients.keys() ^ expected.gradients.keys()}")
    largest = max(float(g.abs().max()) for g in expected.gradients.values())
    return {
        "outputs": float((found.outputs - expected.outputs).abs().max() / expected.outputs.abs().max()),
        "gradients": max(  # those of some biases are 0 but for rounding
            float((found.gradients[name] - g).abs().max()) / max(float(g.abs().max()), 1e-3 * largest)
            for name, g in expected.gradients.items()
        ),
        "losses": float(((found.losses - expected.losses) / expected.losses).abs().max()),
    }


# Speed


class Turn:
    """One way to train and predict, with as many battles in a pass as fit the memory."""

    def __init__(self, prepared: Prepared, optimizer: Any, *, fast: bool, attention: str) -> None:
        self.prepared, self.optimizer, self.fast, self.attention = prepared, optimizer, fast, attention
        self.battles_in_a_pass = 0
        """0: all of a step (prefcli: as many as its budget of tokens holds)."""
        self.make()

    def make(self) -> None:
        prepared = self.prepared
        options = replace(prepared.options, micro_batch=self.battles_in_a_pass)
        way = prefcli_way if self.fast else trainer_way
        self.functions = way(prepared.model, prepared.battles, options, optimizer=self.optimizer)

    def __call__(self, what: str, rows: np.ndarray) -> float | None:
        self.prepared.use(fast=self.fast, attention=self.attention)
        while True:
            try:
                return self.functions[what == "predict"](rows)
            except Exception as error:
                if not is_out_of_memory(error) or self.battles_in_a_pass == 1:
                    raise
            self.optimizer.zero_grad()
            free_memory(self.prepared.model.placement)
            self.battles_in_a_pass = (self.battles_in_a_pass or self.prepared.options.batch_size) // 2
            self.make()


def speed(setting: Setting, name: str) -> Rows:
    """Training and prediction of a siamese model, then prediction of joint sequences from text to probabilities."""
    placement = place(setting)
    size = 256 if setting.toy else 8192 if placement.device.type == "cuda" else 4096
    rate = matmul_rate(placement, size)
    yield [name, "", f"a matrix product, {placement.precision}", "", "", f"{rate / 1e12:.3g} TFLOP/s"]
    battles, batch_size = (16, 8) if setting.toy else (2048, 64)
    prepared = prepare(setting, setting.shape(name), placement, battles, batch_size=batch_size)
    model = prepared.model
    lengths = [list(map(len, sequences(model, prepared.battles, row))) for row in range(len(prepared.battles))]
    needed = np.array([operations(of_battle, prepared.encoder) for of_battle in lengths])
    optimizer = loop.make_optimizer(model.module, prepared.options)
    kinds = [prepared.attention, *(["flash_attention_2"] if has_flash_attention(prepared.encoder, placement) else [])]
    turns = {
        f"{way}{'' if kind == prepared.attention else ', flash'}": Turn(
            prepared, optimizer, fast=way == "prefcli", attention=kind
        )
        for kind in kinds
        for way in ("Trainer", "prefcli")
    }
    for what, passes in (("train", 3), ("predict", 1)):
        ways: dict[str, OnRows] = {way: functools.partial(turn, what) for way, turn in turns.items()}
        for way, cells in alternate(setting, placement, ways, batch_size, passes * needed / rate):
            in_a_pass = turns[way].battles_in_a_pass or "all"
            yield [name, what, way, *cells, *([str(in_a_pass)] if len(cells) > 1 else [])]
    del model, prepared, turns, ways, optimizer
    free_memory(placement)
    batch, tokenizer = setting.texts(battles)
    joint = prediction_peers.Setting(setting.shape(name), tokenizer, placement, batch_size, setting.max_length)
    joint_ways: dict[str, OnRows] = {}
    for way, make in (
        ("CrossEncoder", prediction_peers.cross_encoder), ("prefcli, cross-encoder", prediction_peers.prefcli)
    ):  # fmt: skip
        try:
            predict = make(joint)
        except Exception as error:
            yield [name, "predict, joint", way, why(error)]
            continue
        if predict is None:
            yield [name, "predict, joint", way, "not measured: sentence-transformers is not installed"]
        else:
            joint_ways[way] = functools.partial(on_rows, predict, batch)
    for way, cells in alternate(setting, placement, joint_ways, batch_size, np.full(batch.num_rows, np.nan)):
        yield [name, "predict, joint", way, *cells]


def on_rows(predict: Callable[[pa.RecordBatch], object], batch: pa.RecordBatch, rows: np.ndarray) -> None:
    predict(batch.take(pa.array(rows)))


def has_flash_attention(encoder: Any, placement: devices.Placement) -> bool:
    """Whether transformers can compute an encoder with the package flash-attn."""
    return (
        placement.device.type == "cuda"
        and placement.precision != "fp32"
        and importlib.util.find_spec("flash_attn") is not None
        and bool(getattr(encoder, "_supports_flash_attn", False))
    )


def timed(way: OnRows, rows: np.ndarray, placement: devices.Placement) -> tuple[float, float]:
    """Seconds, and the peak of the GPU's memory in GB."""
    on_gpu = placement.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    seconds = way(rows)
    synchronise(placement)
    return seconds or time.perf_counter() - begun, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else math.nan


def alternate(
    setting: Setting, placement: devices.Placement, ways: Mapping[str, OnRows], batch_size: int, floor: np.ndarray
) -> Iterator[tuple[str, list[str]]]:
    """Cells of each way, which take turns: battles/s, times the first, share of the rate, memory; or why not.

    ``floor`` are the seconds that each battle needs at the rate of a matrix product.
    """
    failed: dict[str, str] = {}
    results: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}

    def turn(rows: np.ndarray) -> float:
        total = 0.0
        for way in ways:
            if way in failed:
                continue
            try:
                seconds, memory = timed(ways[way], rows, placement)
            except Exception as error:
                failed[way] = why(error)
                continue
            results[way].append((len(rows) / seconds, floor[rows].sum() / seconds, memory))
            total += seconds
        return total

    turn(np.arange(batch_size))  # warms up and finds out how many battles fit
    seconds = turn(np.arange(batch_size))
    batches = min(len(floor) // batch_size, max(1, int(setting.seconds / (ROUNDS * max(seconds, 1e-3)))))
    random = np.random.default_rng(0)
    for _ in range(ROUNDS):
        turn(random.choice(len(floor), batches * batch_size, replace=False))
    first = None
    for way in ways:
        if way in failed:
            yield way, [failed[way]]
            continue
        rates, shares, memory = (np.array(values) for values in zip(*results[way][2:], strict=True))
        middle = float(np.median(rates))
        first = first or middle
        yield (
            way,
            [
                f"{middle:.4g} ({rates.min():.4g} to {rates.max():.4g})",
                f"{middle / first:.2f}",
                "" if np.isnan(shares).any() else f"{np.median(shares):.0%}",
                "" if np.isnan(memory).any() else f"{memory.max():.1f}",
            ],
        )


# A language model

LORA: dict[str, list[str]] = {
    "joint sequence": [],
    "joint sequence, 4 bit": ["--quantize", "4bit"],
    "reward": ["--ways", "TRL", "prefcli reward"],
}


def lora(setting: Setting, name: str) -> Rows:
    """``lora_speed.py`` with Gemma 2's shape of 2 billion weights."""
    placement = devices.for_language_models(devices.place(setting.device))
    if name == "joint sequence, 4 bit":  # refused with the reason where there is no GPU or no bitsandbytes
        encoders.FrozenWeights(placement.dtype, "4bit", placement.device).quantization_arguments()
    if name == "reward" and importlib.util.find_spec("trl") is None:
        raise InputError("trl is not installed")
    size = ["--shape", "gemma-2-2b", "--battles", "32", "--batch", "16", "--piece", "4", "--max-length", "1024"]
    if setting.toy:
        size = [
            "--shape",
            "toy",
            "--battles",
            "4",
            "--batch",
            "4",
            "--piece",
            "2",
            "--max-length",
            "64",
            "--limit",
            "8",
        ]
        size += ["--rounds", "1"]
    measured = lora_speed.measure(
        [str(setting.data), "--device", setting.device, *size, "--checkpointing", *LORA[name]]
    )
    for way, cells in measured.rows:
        yield [name, way, *cells]
    yield [name, measured.description]


# What GPUs are promised


def small_deberta(setting: Setting) -> dict[str, Any]:
    return setting.shape("DeBERTa-v3-small") | (
        {} if setting.toy else {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 30_000}
    )


def overflow(setting: Setting) -> Rows:
    """A training in float16 in which one gradient is infinite."""
    placement = place(setting, "fp16")
    at = 5
    prepared = prepare(
        setting, small_deberta(setting), placement, 160, batch_size=8, epochs=1, precision="fp16", log_every=1
    )
    targets = np.eye(3, dtype=np.float32)[prepared.battles.labels]
    folder = Path(tempfile.mkdtemp())
    spec = loop.FitSpec(prepared.model, prepared.battles, targets, None, prepared.options, folder, SILENT)
    done = {"steps": 0}
    spec.on_step_end = lambda state: done.update(steps=state.steps)
    head = prepared.model.module.classifier.weight
    head.register_hook(lambda gradient: gradient * math.inf if done["steps"] == at else gradient)
    state = loop.fit(spec).state
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    finite = all(bool(torch.isfinite(p).all()) for p in prepared.model.module.parameters())
    steps = spec.total_steps
    survived = finite and state.steps == steps and logged[at]["skipped"] == 1
    scales = f"{logged[at]['scale']:.0f} to {logged[at + 1]['scale']:.0f}"
    yield [
        "float16 overflows", f"an infinite gradient in step {at + 1} of {steps}",
        f"{state.skipped} skipped; the scale went from {scales}; last loss {logged[-1]['loss']:.3f}",
        "yes" if survived else "NO",
    ]  # fmt: skip


def start(arguments: list[str]) -> Any:
    """A process of the command."""
    command = [sys.executable, "-m", "prefcli", "--quiet", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def resume(setting: Setting) -> Rows:
    """A training killed with SIGKILL and resumed, beside an undisturbed one."""
    placement = place(setting)
    folder = Path(tempfile.mkdtemp())
    _, tokenizer = setting.texts(400)
    tokenizer.save_pretrained(folder / "encoder")
    random_encoder(small_deberta(setting), "cpu", torch.float32).save_pretrained(folder / "encoder")
    steps, every = (8, 2) if setting.toy else (60, 10)
    training = [
        "train", str(setting.data), "--encoder", str(folder / "encoder"), "--text", "raw", "--device", setting.device,
        "--precision", placement.precision, "--limit", "400", "--max-length", str(setting.max_length),
        "--max-steps", str(steps), "--epochs", "9", "--checkpoint-every", str(every), "--log-every", "1",
        "--lr", "1e-3", "--output",
    ]  # fmt: skip
    workspace = ["--workspace", str(folder / "workspace")]

    def run(*arguments: str, kill_after: int = 0) -> bool:
        """Whether it was killed, so many lines of its log after its start."""
        process = start([*workspace, *arguments])
        log = Path(arguments[-1]) / "metrics.jsonl"
        while kill_after and process.poll() is None:
            if log.exists() and log.read_text(encoding="utf-8").count("\n") >= kill_after:
                process.kill()
                break
            time.sleep(0.002)
        code = process.wait()
        if code and not (kill_after and code == -9):
            raise RuntimeError(f"prefcli {arguments[0]} ended with exit code {code}")
        return bool(code)

    def digest(run: str) -> str:
        return hashlib.sha256((folder / run / neural.WEIGHTS).read_bytes()).hexdigest()

    run(*training, str(folder / "whole"))
    killed = run(*training, str(folder / "killed"), kill_after=every + every // 2)
    if killed:
        run("train", "--resume", str(folder / "killed"))
    verdict = "the same bytes" if digest("killed") == digest("whole") else "other bytes"
    if verdict != "the same bytes":
        run(*training, str(folder / "again"))
        reason = "differ, too: its operations are not deterministic" if digest("again") != digest("whole") else "agree"
        verdict += f"; two undisturbed trainings {reason}"
    yield [
        "kill -9 and resume", f"{steps} steps in {placement.precision}, a checkpoint every {every}",
        verdict if killed else "it ended before it was killed", "yes" if killed and "same" in verdict else "NO",
    ]  # fmt: skip


def milliseconds(step: Callable[[], object], placement: devices.Placement, repeats: int) -> float:
    """Median of a function's times, after one that does not count."""

    def way(_: np.ndarray) -> None:
        step()

    return 1000 * statistics.median([timed(way, np.empty(0), placement)[0] for _ in range(repeats + 1)][1:])


def accelerated(setting: Setting, name: str, placement: devices.Placement) -> Any:
    encoder = random_encoder(setting.shape(name, **NO_DROPOUT), placement.device, torch.float32)
    encoders.accelerate(encoder)
    return encoder


def compiled(setting: Setting, name: str) -> Rows:
    """A training pass of 64 sequences of one length, with and without torch.compile."""
    placement = place(setting)
    encoder = accelerated(setting, name, placement)
    shape = (2, 16) if setting.toy else (64, 256)
    ids = torch.randint(4, 1000, shape, generator=torch.Generator().manual_seed(0)).to(placement.device)

    def training_pass(module: Any) -> torch.Tensor:
        with torch.autocast(placement.device.type, placement.dtype, enabled=placement.precision != "fp32"):
            hidden: torch.Tensor = module(ids).last_hidden_state
        hidden.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)
        return hidden.detach()

    repeats = 1 if setting.toy else 10
    before = milliseconds(lambda: training_pass(encoder), placement, repeats)
    faster = torch.compile(encoder, backend="eager" if setting.toy else "inductor")
    begun = time.perf_counter()
    change = (training_pass(faster) - training_pass(encoder)).abs().max() / training_pass(encoder).abs().max()
    compiling = time.perf_counter() - begun
    after = milliseconds(lambda: training_pass(faster), placement, repeats)
    yield [
        "torch.compile", f"{name}, forward and backward, {shape[0]} sequences of {shape[1]} tokens",
        f"{before:.1f} ms, compiled {after:.1f} ms, {before / after:.2f} times as fast; compiling took "
        f"{compiling:.0f} s; outputs differ by {change:.0e}", "gains" if before / after > 1.1 else "gains nothing",
    ]  # fmt: skip


def graphs(setting: Setting, name: str) -> Rows:
    """Prediction passes of a repeated shape from a CUDA graph."""
    placement = place(setting)
    if placement.device.type != "cuda":
        raise InputError("CUDA graphs need a CUDA GPU")
    # It copies from the host, which a graph would do again from memory that is free by then.
    deberta._buckets = functools.cache(deberta._buckets)
    encoder = accelerated(setting, name, placement).eval()
    for count in (1, 8, 64):
        ids, others = torch.randint(4, 1000, (2, count, 256), device=placement.device).unbind()
        ids = ids.clone()

        def forward() -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cuda", placement.dtype, placement.precision != "fp32", False):
                return encoder(ids).last_hidden_state  # noqa: B023

        eager = milliseconds(forward, placement, 20)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = forward()
        replayed = milliseconds(graph.replay, placement, 20)
        ids.copy_(others)
        graph.replay()
        change = (output - forward()).abs().max() / output.abs().max()
        yield [
            "CUDA graphs", f"{name}, forward, {count} sequences of 256 tokens",
            f"{eager:.2f} ms, replayed {replayed:.2f} ms, {eager / replayed:.2f} times as fast; outputs differ by "
            f"{change:.0e}", "gains" if eager / replayed > 1.1 else "gains nothing",
        ]  # fmt: skip


def profile(setting: Setting) -> Rows:
    """The three operations that take the most of a training step."""
    placement = place(setting)
    name, steps = "DeBERTa-v3-base", 1 if setting.toy else 3
    prepared = prepare(setting, setting.shape(name), placement, 64)
    turn = Turn(
        prepared, loop.make_optimizer(prepared.model.module, prepared.options), fast=True, attention=prepared.attention
    )
    rows = np.arange(8 if setting.toy else 64)
    turn("train", rows)
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = placement.device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            turn("train", rows)
        synchronise(placement)
    # Operations, not kernels: each has the time of the kernels that it starts.
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
        if event.device_type == torch.autograd.DeviceType.CPU
    }
    total = sum(times.values())
    for operation, microseconds in sorted(times.items(), key=lambda item: -item[1])[:3]:
        yield [name, operation, f"{microseconds / steps / 1000:.1f}", f"{microseconds / total:.0%}"]

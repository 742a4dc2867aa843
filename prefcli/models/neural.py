"""What every neural architecture shares: batches of token ids, prediction, saving and loading.

An architecture is a torch module with ``forward(spans, **inputs) -> logits [n, 3]``, ``compose`` (a battle's fields ->
its sequences), ``lengths`` and ``cut``; see :mod:`prefcli.models.siamese`. :class:`NeuralModel` puts a tokenizer,
a device and a budget around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcli import adapters, devices, encoders, files, runs, weights
from prefcli.devices import Placement
from prefcli.errors import InputError, ModelError, PrefcliError
from prefcli.models.cross_encoder import CrossEncoder
from prefcli.models.pooling import is_causal
from prefcli.models.siamese import Siamese
from prefcli.options import TrainOptions
from prefcli.outcomes import OUTCOMES
from prefcli.packing import LEAST_TEXT, CutReport, Packing, TokenisedBattles, tokenise

ARCHITECTURES: dict[str, Any] = {"siamese": Siamese, "cross-encoder": CrossEncoder}

WEIGHTS = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"

CPU_TOKENS = 2 * 1024
GPU_TOKENS = 64 * 1024
"""Padded tokens in one forward pass. On a CPU what matters is that the activations stay near the caches and are not
freshly mapped pages each time (8,192 were measured at half the speed and three times the memory of 1,024); on a GPU
that there is enough to do."""

STRAIGHT, SWAPPED_ORDER = False, True
Orders = tuple[bool, ...]
"""In which orders the answers are shown in one pass: straight, exchanged, or both."""


@dataclass(frozen=True)
class Pass:
    """One forward pass: which battles, in which orders, and the module's inputs, on the host."""

    rows: NDArray[np.integer]
    orders: Orders
    inputs: dict[str, Tensor]


def ahead(make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``make(item)`` of every item, in order, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefcli-batch") as thread:
        waiting = None
        for item in items:
            following = thread.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class NeuralModel:
    """A trained or trainable neural model: battles in, logits out.

    Parameters
    ----------
    module:
        The architecture's module, on the device.
    tokenizer:
        The encoder's tokenizer.
    packing:
        How a battle's fields become sequences.
    placement:
        Device and precision.
    attention:
        How the encoder is computed, in words."""

    def __init__(
        self, module: Any, tokenizer: Any, packing: Packing, placement: Placement, attention: str = ""
    ) -> None:
        self.attention = attention
        self.module = module
        self.tokenizer = tokenizer
        self.packing = packing
        self.placement = placement
        self.padding = int(tokenizer.pad_token_id or 0)

    # Batches

    def lengths(self, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longest sequence of each battle, shape ``[n]``."""
        return np.asarray(self.module.lengths(self.packing, battles))

    def cut(self, battles: TokenisedBattles) -> CutReport:
        """What the budget cuts."""
        report: CutReport = self.module.cut(self.packing, battles)
        return report

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Tensor]:
        """The module's input for some battles, padded to the longest of their sequences, on the host.

        Sequence ``s`` of battle ``i`` of ``n`` stands in row ``s * n + i``.
        """
        composed = []
        for row in rows:
            prompt, a, b = battles.fields(int(row))
            composed.append(self.module.compose(self.packing, (prompt, b, a) if swapped else (prompt, a, b)))
        ordered = [sequences[s] for s in range(self.module.sequences) for sequences in composed]
        width = max(len(packed.ids) for packed in ordered)
        input_ids = np.full((len(ordered), width), self.padding, dtype=np.int64)
        mask = np.zeros((len(ordered), width), dtype=np.int64)
        types = np.zeros((len(ordered), width), dtype=np.int64)
        last_type = self.packing.template.last_type
        for i, packed in enumerate(ordered):
            size = len(packed.ids)
            input_ids[i, :size] = packed.ids
            mask[i, :size] = 1
            types[i, packed.spans[-1][0] : size] = last_type or 0
        spans = np.array([packed.spans for packed in ordered], dtype=np.int64)
        arrays = {"input_ids": input_ids, "attention_mask": mask, "spans": spans}
        if last_type is not None:
            arrays["token_type_ids"] = types
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.placement.device.type == "cuda":  # copied to the GPU while it computes
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors

    def passes(
        self, lengths: NDArray[np.int64], rows: NDArray[np.integer], at_most: int = 0, *, both_orders: bool = False
    ) -> list[tuple[NDArray[np.integer], Orders]]:
        """The forward passes over some battles: which of them, and in which orders their answers are shown.

        An architecture that reads the answers apart shows both orders in one pass, others need two.
        """
        pieces = list(self.micro_batches(lengths, rows, at_most))
        orders: list[Orders] = [(STRAIGHT,)]
        if both_orders:
            apart = self.module.reads_answers_apart
            orders = [(STRAIGHT, SWAPPED_ORDER)] if apart else [(STRAIGHT,), (SWAPPED_ORDER,)]
        return [(piece, shown) for shown in orders for piece in pieces]

    def prepared(self, battles: TokenisedBattles, passes: list[tuple[NDArray[np.integer], Orders]]) -> list[Pass]:
        """The inputs of some passes, on the host: everything that can be done before the device is free."""
        return [Pass(rows, orders, self.inputs(battles, rows, orders[0])) for rows, orders in passes]

    def forward(self, module: torch.nn.Module, prepared: Pass) -> Tensor:
        """Logits ``[len(orders) * n, 3]`` of one pass: all battles in the first order, then all in the second.

        Parameters
        ----------
        module:
            This model's module, or what wraps it (DistributedDataParallel).
        prepared:
            From :meth:`prepared`.
        """
        device = self.placement.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in prepared.inputs.items()}
        more = {"both_orders": True} if len(prepared.orders) == 2 else {}
        logits: Tensor = module(**inputs, **more)
        return logits

    def micro_batches(
        self, lengths: NDArray[np.int64], rows: NDArray[np.integer], at_most: int = 0
    ) -> Iterator[NDArray[np.integer]]:
        """Cut ``rows`` into groups of like lengths that fit the device's token budget.

        Parameters
        ----------
        lengths:
            Of all battles (:meth:`lengths`).
        rows:
            Positions of the battles to group.
        at_most:
            Battles in a group; 0 leaves it to the token budget.
        """
        budget = (CPU_TOKENS if self.placement.device.type == "cpu" else GPU_TOKENS) // self.module.sequences
        ordered = rows[np.argsort(-lengths[rows], kind="stable")]
        start = 0
        while start < len(ordered):
            count = max(1, int(budget // max(int(lengths[ordered[start]]), 1)))
            if at_most:
                count = min(count, at_most)
            yield ordered[start : start + count]
            start += count

    # Prediction

    def tokenise(self, batches: Iterator[pa.RecordBatch], progress: Any = None) -> TokenisedBattles:
        return tokenise(self.tokenizer, batches, progress, by_turn=self.packing.by_turn)

    @torch.inference_mode()
    def logits_of(
        self,
        battles: TokenisedBattles,
        *,
        both_orders: bool = False,
        done: Callable[[int], None] | None = None,
        in_step: Callable[[int], int] | None = None,
    ) -> NDArray[np.float64]:
        """Logits of tokenised battles, in their order, float64.

        Parameters
        ----------
        battles:
            Tokenised battles.
        both_orders:
            Also those of the battles with A and B exchanged.
        done:
            Told how many battles each step finished.
        in_step:
            Told how many forward passes there are to make, answers how many all processes make: the last is repeated.

        Returns
        -------
        Shape ``[orders, n, 3]``, with one order or two.
        """
        self.module.eval()
        lengths = self.lengths(battles)
        logits = np.empty((1 + both_orders, len(battles), len(OUTCOMES)), dtype=np.float64)
        device = self.placement.device
        with torch.autocast(device.type, self.placement.dtype, enabled=self.placement.precision != "fp32"):
            passes = self.passes(lengths, np.arange(len(battles)), both_orders=both_orders)
            passes += passes[-1:] * (in_step(len(passes)) - len(passes) if in_step is not None else 0)
            for (one,) in ahead(lambda item: self.prepared(battles, [item]), passes):
                found = self.forward(self.module, one).double().cpu().numpy()
                for order, part in zip(one.orders, np.split(found, len(one.orders)), strict=True):
                    logits[int(order), one.rows] = part
                if done is not None and STRAIGHT in one.orders:
                    done(len(one.rows))
        return logits

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits of a batch of battles, and with ``swap_average`` also those of the exchanged battles."""
        found = self.logits_of(self.tokenise(iter([batch])), both_orders=swap_average, done=done)
        return found[0], found[1] if swap_average else None

    # Folders

    def save_beside_weights(self, folder: Path) -> None:
        """Save what loading needs besides weights and config: the tokenizer, its ``tokenizer_config.json`` last.

        So whoever finds that file finds a whole tokenizer, even after a crash.
        """
        for how_it_was_loaded in ("is_local", "local_files_only"):  # no matter of whoever loads it next
            self.tokenizer.init_kwargs.pop(how_it_was_loaded, None)
        with files.scratch(folder) as temporary:
            self.tokenizer.save_pretrained(temporary)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == TOKENIZER_CONFIG):
                path.replace(folder / path.name)

    def encoder_config(self) -> dict[str, Any]:
        return encoders.config_of(self.module.encoder)


def build(
    options: TrainOptions,
    encoder: torch.nn.Module,
    tokenizer: Any,
    max_length: int,
    placement: Placement,
    *,
    stays_on_host: bool = False,
) -> NeuralModel:
    """A model to be trained: the architecture's head and adapters, freshly initialised, on an encoder.

    Parameters
    ----------
    options:
        Architecture, its options, truncation and seed.
    encoder, tokenizer:
        From :mod:`prefcli.encoders`.
    max_length:
        Tokens in one sequence, as the encoder allows.
    placement:
        Device and precision.
    stays_on_host:
        Whether the weights are not moved to the device: who shares them out does that.

    Raises
    ------
    InputError
        If the options do not fit the encoder.
    """
    torch.manual_seed(options.seed)
    return _assemble(options, encoder, tokenizer, max_length, placement, stays_on_host=stays_on_host)


def _assemble(
    options: TrainOptions,
    encoder: torch.nn.Module,
    tokenizer: Any,
    max_length: int,
    placement: Placement,
    *,
    stays_on_host: bool = False,
) -> NeuralModel:
    causal = is_causal(encoder)
    pooling = options.pooling if options.pooling != "auto" else "last" if causal else "mean"
    template = options.template if options.template != "auto" else "words" if causal else "tokens"
    packing = Packing.of(tokenizer, max_length, options.truncation, template)
    if max_length < packing.least_length:
        raise InputError(
            f"--max-length {max_length} leaves no room for prompt and answers: the template alone takes "
            f"{packing.least_length - LEAST_TEXT} tokens",
            hint=f"Use --max-length {packing.least_length} or more.",
        )
    adapted = f"{adapters.add(encoder, options)}; " if options.lora_rank else ""
    if options.fast_attention and options.lora_rank and encoder.config.model_type == "deberta-v2":  # type: ignore[union-attr]
        attention = "transformers' own attention, in which adapters take part"
    elif options.fast_attention:
        attention = encoders.accelerate(encoder)
    else:
        attention = "transformers' own attention, as asked"
    module = ARCHITECTURES[options.architecture](encoder, options.combine, pooling)
    if not stays_on_host:
        module.to(placement.device)
    words = f"{adapted}{attention}; {pooling} pooling"
    return NeuralModel(module, tokenizer, packing, placement, words)


def frozen_weights(options: TrainOptions, placement: Placement) -> encoders.Frozen | None:
    """How an encoder's weights are kept: those that only adapters are learnt beside take 2 bytes each on a GPU."""
    if not options.lora_rank:
        return None
    dtype = placement.dtype if placement.device.type == "cuda" else torch.float32
    return encoders.Frozen(dtype, options.quantize, placement.device)


def load(folder: Path, placement: Placement, *, fast_attention: bool = True, encoder: str | None = None) -> NeuralModel:
    """A trained model from its run's folder, by itself: no hub, no original encoder, unless only adapters were learnt.

    Parameters
    ----------
    folder:
        The run's.
    placement:
        Device and precision.
    fast_attention:
        Whether the encoder is computed by :func:`prefcli.encoders.accelerate`, however it was trained.
    encoder:
        Where the encoder lies to which a run's adapters belong, if it is no longer where it was.

    Raises
    ------
    ModelError
        If the folder is incomplete or does not fit together.
    """
    from safetensors import SafetensorError

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        options = replace(TrainOptions(**config["options"]), fast_attention=fast_attention)
        tokenizer = encoders.load_tokenizer(folder)
        if options.lora_rank:
            placement = devices.for_language_models(placement)
            located = base_of(config["base"], encoder, folder)
            made = encoders.make_encoder(located, 0, seed=0, frozen=frozen_weights(options, placement))
        else:
            made = encoders.from_config(runs.encoder_config(config))
        model = _assemble(options, made, tokenizer, int(config["resolved"]["max_length"]), placement)
        weights.restore(model.module, weights.load(folder / WEIGHTS))
        model.module.eval()
    except FileNotFoundError as error:
        raise ModelError(
            f"the run has no {Path(error.filename or WEIGHTS).name}",
            where=str(folder),
            hint="Its training did not finish: continue it with prefcli train --resume.",
        ) from None
    except SafetensorError as error:
        raise ModelError(
            f"{WEIGHTS} is damaged, or no safetensors at all, and was not run: {error}",
            where=str(folder),
            hint="Train it again.",
        ) from None
    except (MemoryError, PrefcliError):
        raise
    except Exception as error:  # whatever the libraries make of a folder that somebody else wrote
        raise ModelError(
            f"the run cannot be loaded: {' '.join(str(error).split())[:200]}",
            where=str(folder),
            hint="Train it again.",
        ) from None
    return model


def save_adapters(folder: Path, options: TrainOptions) -> None:
    """Leave a run's adapters in its folder as the library ``peft`` keeps them, beside the run's own weights."""
    learnt = {name.removeprefix(weights.ENCODER): tensor for name, tensor in weights.load(folder / WEIGHTS).items()}
    adapters.save(learnt, options, runs.read_config(folder)["base"]["encoder"], folder)


def describe_base(name: str, located: encoders.Located) -> dict[str, str]:
    """What a run of adapters keeps of the encoder that they belong to."""
    assert located.folder is not None
    is_folder = Path(name).expanduser().is_dir()
    return {
        "encoder": str(Path(name).expanduser().absolute()) if is_folder else name,
        "identity": encoders.identity(located.folder),
    }


def base_of(base: Mapping[str, str], elsewhere: str | None, run: Path) -> encoders.Located:
    """The encoder that a run's adapters belong to.

    Parameters
    ----------
    base:
        From :func:`describe_base`.
    elsewhere:
        Its folder or name now; None where it was.
    run:
        The run's folder.

    Raises
    ------
    ModelError
        If it is not there, or is another one.
    """
    name = elsewhere or base["encoder"]
    try:
        located = encoders.locate(name)
    except PrefcliError as error:
        raise ModelError(
            f"the run holds adapters for the encoder {name}, which cannot be had: {error.what}",
            where=str(run),
            hint="Say where it is now with --encoder DIR; prefcli export RUN --merged DIR makes a run that needs none.",
        ) from None
    if located.folder is None or encoders.identity(located.folder) != base["identity"]:
        raise ModelError(
            f"the run's adapters belong to another encoder than {name}: {base['encoder']} as it was in training",
            where=str(run),
            hint="Give the folder it was trained on with --encoder DIR.",
        )
    return located

"""What every neural architecture shares in torch: inputs on a device, forward passes, saving and loading.

An architecture is a torch module with ``forward(spans, **inputs) -> logits [n, 3]`` that inherits how it reads a battle
(:mod:`prefcli.models.input_format`); see :mod:`.siamese`. :class:`NeuralModel` puts a tokenizer, a device and
a budget around it; what batches need is in :mod:`prefcli.models.batches`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcli import encoders
from prefcli.compute import devices
from prefcli.compute.devices import Placement
from prefcli.encoders import adapters
from prefcli.errors import InputError, ModelError, PrefcliError, one_line
from prefcli.models import weights
from prefcli.models.batches import CPU_TOKENS, GPU_TOKENS, BatchedModel, Pass
from prefcli.models.cross_encoder import CrossEncoder
from prefcli.models.packing import LEAST_TEXT, Packing, TokenisedBattles
from prefcli.models.pooling import is_causal
from prefcli.models.siamese import Siamese
from prefcli.options import TrainOptions
from prefcli.storage import files, runs

ARCHITECTURES: dict[str, Any] = {"siamese": Siamese, "cross-encoder": CrossEncoder}

WEIGHTS = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"


class NeuralModel(BatchedModel):
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
        How the encoder is computed, in words.
    template:
        What stands between the fields: ``tokens`` or ``words``."""

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        packing: Packing,
        placement: Placement,
        attention: str = "",
        template: str = "tokens",
    ) -> None:
        tokens = CPU_TOKENS if placement.device.type == "cpu" else GPU_TOKENS
        super().__init__(module, tokenizer, packing, int(tokenizer.pad_token_id or 0), tokens)
        self.attention = attention
        self.template = template
        self.module = module
        self.placement = placement

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Tensor]:
        """The module's input for some battles: tensors on the host."""
        tensors = {name: torch.from_numpy(array) for name, array in self.arrays(battles, rows, swapped).items()}
        if self.placement.device.type == "cuda":  # copied to the GPU while it computes
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors

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

    def compute(self, prepared: Pass) -> NDArray[np.float64]:
        logits: NDArray[np.float64] = self.forward(self.module, prepared).double().cpu().numpy()
        return logits

    @torch.inference_mode()
    def logits_of(
        self,
        battles: TokenisedBattles,
        *,
        both_orders: bool = False,
        done: Callable[[int], None] | None = None,
        in_step: Callable[[int], int] | None = None,
    ) -> NDArray[np.float64]:
        """See :meth:`BatchedModel.logits_of`; without gradients, in the placement's precision."""
        self.module.eval()
        with torch.autocast(
            self.placement.device.type, self.placement.dtype, enabled=self.placement.precision != "fp32"
        ):
            return super().logits_of(battles, both_orders=both_orders, done=done, in_step=in_step)

    # Folders

    def save_beside_weights(self, folder: Path) -> None:
        """Save what loading needs besides weights and config: the tokenizer, its ``tokenizer_config.json`` last.

        So whoever finds that file finds a whole tokenizer, even after a crash.
        """
        for how_it_was_loaded in ("is_local", "local_files_only"):  # no matter of whoever loads it next
            self.tokenizer.init_kwargs.pop(how_it_was_loaded, None)
        with files.temporary_directory(folder) as temporary:
            self.tokenizer.save_pretrained(temporary)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == TOKENIZER_CONFIG):
                path.replace(folder / path.name)

    def encoder_config(self) -> dict[str, Any]:
        """The encoder's configuration, without what a run of prefcli that it was loaded from had kept beside it."""
        told = encoders.config_of(self.module.encoder)
        return {name: value for name, value in told.items() if name not in runs.OWN_KEYS}


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
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise InputError(
            f"{options.encoder} is an encoder and a decoder in one, which no architecture here reads",
            hint="Choose an encoder (BERT, DeBERTa) or a decoder (Gemma, Llama, Qwen).",
        )
    causal = is_causal(encoder)
    pooling = options.pooling if options.pooling != "auto" else "last" if causal else "mean"
    template = options.template if options.template != "auto" else "words" if causal else "tokens"
    packing = Packing.of(tokenizer, max_length, options.truncation, template)
    frame = packing.template.both if options.architecture == "cross-encoder" else packing.template.pair
    if max_length < frame.overhead + LEAST_TEXT:
        raise InputError(
            f"--max-length {max_length} leaves no room for prompt and answers: the template alone takes "
            f"{frame.overhead} tokens",
            hint=f"Use --max-length {frame.overhead + LEAST_TEXT} or more.",
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
    return NeuralModel(module, tokenizer, packing, placement, adapted + attention, template)


def with_resolved_auto(options: TrainOptions, config: Mapping[str, Any]) -> TrainOptions:
    """A run's options with what ``auto`` became when it was made: another release might choose otherwise."""
    known = {name: config["resolved"][name] for name in ("pooling", "template") if name in config["resolved"]}
    return replace(options, **known)


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
        options = replace(with_resolved_auto(TrainOptions(**config["options"]), config), fast_attention=fast_attention)
        if placement.device.type != "cuda":  # few bits were for training's sake; whole weights serve as well
            options = replace(options, quantize="none")
        tokenizer = encoders.load_tokenizer(folder)
        if options.lora_rank:
            placement = devices.for_language_models(placement)
            # Who was given a run did not ask for what its files name: only what is on this machine.
            located = base_of(config["base"], encoder, folder, network=encoder is not None)
            made = encoders.make_encoder(located, 0, seed=0, frozen=frozen_weights(options, placement))
        else:
            made = encoders.from_config(runs.encoder_config(config))
        model = _assemble(options, made, tokenizer, int(config["resolved"]["max_length"]), placement)
        weights.load_state_dict(model.module, weights.load(folder / WEIGHTS))
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
            f"the run cannot be loaded: {one_line(error)}",
            where=str(folder),
            hint="Train it again.",
        ) from None
    return model


def save_adapters(folder: Path, options: TrainOptions) -> None:
    """Leave a run's adapters in its folder as the library ``peft`` keeps them, beside the run's own weights."""
    learnt = {name.removeprefix(weights.ENCODER): tensor for name, tensor in weights.load(folder / WEIGHTS).items()}
    adapters.save(learnt, options, runs.read_config(folder)["base"]["encoder"], folder)


def describe_base(name: str, located: encoders.ResolvedModel) -> dict[str, str]:
    """What a run of adapters keeps of the encoder that they belong to."""
    assert located.folder is not None
    is_folder = Path(name).expanduser().is_dir()
    return {
        "encoder": str(Path(name).expanduser().absolute()) if is_folder else name,
        "identity": encoders.identity(located.folder),
    }


def base_of(base: Mapping[str, str], elsewhere: str | None, run: Path, *, network: bool) -> encoders.ResolvedModel:
    """The encoder that a run's adapters belong to.

    Parameters
    ----------
    base:
        From :func:`describe_base`.
    elsewhere:
        Its folder or name now; None where it was.
    run:
        The run's folder.
    network:
        Whether the hub may be asked for it.

    Raises
    ------
    ModelError
        If it is not there, or is another one.
    """
    if not isinstance(base, Mapping) or not all(isinstance(base.get(key), str) for key in ("encoder", "identity")):
        raise ModelError("the run's config.json does not say which encoder its adapters belong to", where=str(run))
    name = elsewhere or base["encoder"]
    try:
        if elsewhere or Path(name).is_absolute():
            located = encoders.locate(name, network=network)
        else:  # a name of the hub, whatever lies in the folder where this is run
            located = encoders.from_hub(name, network=network)
    except PrefcliError as error:
        raise ModelError(
            f"the run holds adapters for the encoder {name}, which cannot be had: {error.what}",
            where=str(run),
            hint="Put it back to continue."
            if network and elsewhere is None
            else "Say where it is now: --encoder DIR, or --encoder owner/name to fetch it from the hub.",
        ) from None
    if located.folder is None or encoders.identity(located.folder) != base["identity"]:
        raise ModelError(
            f"the run's adapters belong to another encoder than {name}: {base['encoder']} as it was in training",
            where=str(run),
            hint="Give the folder it was trained on with --encoder DIR.",
        )
    return located

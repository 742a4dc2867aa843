"""What every neural architecture shares in torch: inputs on a device, forward passes, saving and loading.

An architecture is a torch module with ``forward(spans, **inputs) -> logits [n, 3]`` that inherits how it reads a battle
(:mod:`prefcli.models.readings`); see :mod:`prefcli.models.siamese`. :class:`NeuralModel` puts a tokenizer, a device and
a budget around it; what batches need is in :mod:`prefcli.models.batches`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcli import encoders, files
from prefcli.devices import Placement
from prefcli.errors import ModelError, PrefcliError
from prefcli.models.batches import CPU_TOKENS, GPU_TOKENS, BatchedModel, Pass
from prefcli.models.cross_encoder import CrossEncoder
from prefcli.models.siamese import Siamese
from prefcli.options import TrainOptions
from prefcli.packing import Packing, TokenisedBattles

ARCHITECTURES: dict[str, Any] = {"siamese": Siamese, "cross-encoder": CrossEncoder}

WEIGHTS = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"


class NeuralModel(BatchedModel):
    """A trained or trainable neural model: battles in, logits out.

    Parameters
    ----------
    module:
        The architecture's module.
    tokenizer:
        The encoder's tokenizer.
    packing:
        How a battle's fields become sequences.
    placement:
        Device and precision.
    attention:
        How the encoder is computed, in words.
    """

    def __init__(
        self, module: Any, tokenizer: Any, packing: Packing, placement: Placement, attention: str = ""
    ) -> None:
        tokens = CPU_TOKENS if placement.device.type == "cpu" else GPU_TOKENS
        super().__init__(module, tokenizer, packing, int(tokenizer.pad_token_id or 0), tokens)
        self.attention = attention
        self.module = module.to(placement.device)
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
        self, battles: TokenisedBattles, *, both_orders: bool = False, done: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """See :meth:`BatchedModel.logits_of`; without gradients, in the placement's precision."""
        self.module.eval()
        with torch.autocast(
            self.placement.device.type, self.placement.dtype, enabled=self.placement.precision != "fp32"
        ):
            return super().logits_of(battles, both_orders=both_orders, done=done)

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
    options: TrainOptions, encoder: torch.nn.Module, tokenizer: Any, max_length: int, placement: Placement
) -> NeuralModel:
    """A model to be trained: the architecture's head, freshly initialised, on an encoder.

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
    """
    torch.manual_seed(options.seed)
    return _assemble(options, encoder, tokenizer, max_length, placement)


def _assemble(
    options: TrainOptions, encoder: torch.nn.Module, tokenizer: Any, max_length: int, placement: Placement
) -> NeuralModel:
    attention = encoders.accelerate(encoder) if options.fast_attention else "transformers' own attention, as asked"
    module = ARCHITECTURES[options.architecture](encoder, options.combine)
    return NeuralModel(module, tokenizer, Packing.of(tokenizer, max_length, options.truncation), placement, attention)


def load(folder: Path, placement: Placement, *, fast_attention: bool = True) -> NeuralModel:
    """A trained model from its run's folder, by itself: no hub, no original encoder.

    Parameters
    ----------
    folder:
        The run's.
    placement:
        Device and precision.
    fast_attention:
        Whether the encoder is computed by :func:`prefcli.encoders.accelerate`, however it was trained.

    Raises
    ------
    ModelError
        If the folder is incomplete or does not fit together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        options = replace(TrainOptions(**config["options"]), fast_attention=fast_attention)
        tokenizer = encoders.load_tokenizer(folder)
        encoder = encoders.from_config(config["encoder_config"])
        model = _assemble(options, encoder, tokenizer, int(config["resolved"]["max_length"]), placement)
        load_model(model.module, folder / WEIGHTS)
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

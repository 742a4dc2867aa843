"""What every neural architecture shares: batches of token ids, prediction, saving and loading.

An architecture is a torch module with ``forward(**inputs) -> logits [n, 3]``, ``compose`` (a battle's fields ->
its sequences), ``lengths`` and ``cut``; see :mod:`prefcli.models.siamese`. :class:`NeuralModel` puts a tokenizer,
a device and a budget around it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcli import encoders
from prefcli.devices import Placement
from prefcli.errors import ModelError
from prefcli.models.siamese import Siamese
from prefcli.outcomes import OUTCOMES
from prefcli.packing import CutReport, PairTemplate, TokenisedBattles, tokenise

ARCHITECTURES: dict[str, Callable[[torch.nn.Module], Any]] = {"siamese": Siamese}

WEIGHTS = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"

CPU_TOKENS = 2 * 1024
GPU_TOKENS = 64 * 1024
"""Padded tokens in one forward pass. On a CPU what matters is that the activations stay near the caches and are not
freshly mapped pages each time (8,192 were measured at half the speed and three times the memory of 1,024); on a GPU
that there is enough to do."""


class NeuralModel:
    """A trained or trainable neural model: battles in, logits out.

    Parameters
    ----------
    module:
        The architecture's module.
    tokenizer:
        The encoder's tokenizer.
    max_length:
        Tokens in one sequence.
    placement:
        Device and precision.
    """

    def __init__(self, module: Any, tokenizer: Any, max_length: int, placement: Placement) -> None:
        self.module = module.to(placement.device)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.placement = placement
        self.template = PairTemplate.of(tokenizer)
        self.padding = int(tokenizer.pad_token_id or 0)

    # Batches

    def lengths(self, battles: TokenisedBattles) -> NDArray[np.int64]:
        """Length of the longest sequence of each battle, shape ``[n]``."""
        return np.asarray(self.module.lengths(self.template, battles, self.max_length))

    def cut(self, battles: TokenisedBattles) -> CutReport:
        """What the budget cuts."""
        report: CutReport = self.module.cut(self.template, battles, self.max_length)
        return report

    def inputs(self, battles: TokenisedBattles, rows: NDArray[np.integer], swapped: bool = False) -> dict[str, Tensor]:
        """The encoder's input for some battles, padded to the longest of their sequences.

        Sequence ``s`` of battle ``i`` of ``n`` stands in row ``s * n + i``.
        """
        composed = []
        for row in rows:
            prompt, a, b = battles.fields(int(row))
            composed.append(
                self.module.compose(self.template, (prompt, b, a) if swapped else (prompt, a, b), self.max_length)
            )
        ordered = [sequences[s] for s in range(self.module.sequences) for sequences in composed]
        width = max(len(ids) for ids, _ in ordered)
        input_ids = np.full((len(ordered), width), self.padding, dtype=np.int64)
        mask = np.zeros((len(ordered), width), dtype=np.int64)
        types = np.zeros((len(ordered), width), dtype=np.int64)
        for i, (ids, second) in enumerate(ordered):
            input_ids[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
            types[i, second : len(ids)] = self.template.second_type or 0
        arrays = {"input_ids": input_ids, "attention_mask": mask}
        if self.template.second_type is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array).to(self.placement.device) for name, array in arrays.items()}

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
        return tokenise(self.tokenizer, batches, progress)

    @torch.inference_mode()
    def logits_of(
        self, battles: TokenisedBattles, *, swapped: bool = False, done: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Logits ``[n, 3]`` of tokenised battles, in their order, float64.

        Parameters
        ----------
        battles:
            Tokenised battles.
        swapped:
            Show the answers in exchanged order (the logits are then about the exchanged battle).
        done:
            Told how many battles each step finished.
        """
        self.module.eval()
        lengths = self.lengths(battles)
        logits = np.empty((len(battles), len(OUTCOMES)), dtype=np.float64)
        device = self.placement.device
        with torch.autocast(device.type, self.placement.dtype, enabled=self.placement.precision != "fp32"):
            for rows in self.micro_batches(lengths, np.arange(len(battles))):
                logits[rows] = self.module(**self.inputs(battles, rows, swapped)).double().cpu().numpy()
                if done is not None:
                    done(len(rows))
        return logits

    def logits(
        self, batch: pa.RecordBatch, *, swap_average: bool = False, done: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits of a batch of battles, and with ``swap_average`` also those of the exchanged battles."""
        battles = self.tokenise(iter([batch]))
        straight = self.logits_of(battles, done=done)
        return straight, self.logits_of(battles, swapped=True) if swap_average else None

    # Folders

    def save_beside_weights(self, folder: Path) -> None:
        """Save what loading needs besides weights and config: the tokenizer, its ``tokenizer_config.json`` last.

        So whoever finds that file finds a whole tokenizer, even after a crash.
        """
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as temporary:
            self.tokenizer.save_pretrained(temporary)
            for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == TOKENIZER_CONFIG):
                path.replace(folder / path.name)

    def encoder_config(self) -> dict[str, Any]:
        return encoders.config_of(self.module.encoder)


def build(
    architecture: str,
    encoder: torch.nn.Module,
    tokenizer: Any,
    max_length: int,
    placement: Placement,
    seed: int,
) -> NeuralModel:
    """A model to be trained: the architecture's head, freshly initialised, on an encoder."""
    torch.manual_seed(seed)
    return NeuralModel(ARCHITECTURES[architecture](encoder), tokenizer, max_length, placement)


def load(folder: Path, placement: Placement) -> NeuralModel:
    """A trained model from its run's folder, by itself: no hub, no original encoder.

    Raises
    ------
    ModelError
        If the folder is incomplete or does not fit together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        options = config["options"]
        encoder = encoders.from_config(config["encoder_config"])
        module = ARCHITECTURES[options["architecture"]](encoder)
        load_model(module, folder / WEIGHTS)
        module.eval()
    except FileNotFoundError as error:
        raise ModelError(
            f"the run has no {Path(error.filename or WEIGHTS).name}",
            where=str(folder),
            hint="Its training did not finish: continue it with prefcli train --resume.",
        ) from None
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"the run cannot be loaded: {' '.join(str(error).split())[:200]}",
            where=str(folder),
            hint="Train it again.",
        ) from None
    return NeuralModel(module, encoders.load_tokenizer(folder), int(config["resolved"]["max_length"]), placement)

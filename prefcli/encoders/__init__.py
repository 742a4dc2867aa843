"""Pretrained encoders: found and loaded (:mod:`.loading`), the built-in one (:mod:`.tiny`), computed faster, adapted.

Faster layers are in :mod:`.deberta` and :mod:`.dense`, LoRA adapters in :mod:`.adapters`; they import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefcli.encoders.loading import (
    FrozenWeights,
    ResolvedModel,
    config_dict,
    fingerprint,
    from_config,
    from_hub,
    full_name,
    load_tokenizer,
    locate,
    make_encoder,
    make_skeleton,
    make_tokenizer,
    masked_language_model,
    max_input_length,
    without_masked_language_model,
)
from prefcli.encoders.tiny import train_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = [
    "FrozenWeights", "ResolvedModel", "accelerate", "config_dict", "fingerprint", "from_config", "from_hub",
    "full_name", "load_tokenizer", "locate", "make_encoder", "make_skeleton", "make_tokenizer", "masked_language_model",
    "max_input_length", "train_tokenizer", "without_masked_language_model",
]  # fmt: skip


def accelerate(encoder: torch.nn.Module) -> str:
    """Make an encoder compute the same results faster, in place; its state dict does not change.

    Returns
    -------
    What was done, or why nothing was, in words.
    """
    from prefcli.encoders import deberta, dense

    if encoder.config.model_type == "deberta-v2":  # type: ignore[union-attr]
        reason = deberta.accelerate(encoder)
        return "fast attention" if reason is None else f"transformers' own attention: {reason}"
    dense.accelerate(encoder)
    return "transformers' own attention: only DeBERTa's is slow"

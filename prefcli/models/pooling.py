"""From token ids to what the classifier sees: hidden states, one vector per span, two answers combined.

Positions of tokens are counted from the attention mask alone: neither the side on which a batch is padded nor the id
that pads (which in language models may also end a text) changes anything.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def is_causal(encoder: nn.Module) -> bool:
    """Whether a token sees only those before it, as in a language model: then only the last one has read everything.

    The attention modules say so; where a family's do not, what the family is trained for decides.
    """
    flags = {module.is_causal for module in encoder.modules() if isinstance(getattr(module, "is_causal", None), bool)}
    if flags:
        return True in flags
    from transformers.models.auto import modeling_auto as auto

    kind = encoder.config.model_type  # type: ignore[union-attr]
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def needs_position_ids(encoder: nn.Module) -> bool:
    """Whether positions must be given: language models count padding on the left, too."""
    return is_causal(encoder) and "position_ids" in inspect.signature(encoder.forward).parameters


def hidden_states(encoder: nn.Module, inputs: dict[str, Tensor], *, with_position_ids: bool) -> Tensor:
    """A vector per token, ``[batch, length, width]``, float32 whatever the type of the weights.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder or decoder without a head.
    inputs:
        ``input_ids``, ``attention_mask`` and whatever else the tokenizer gives, each ``[batch, length]``.
    with_position_ids:
        Whether to give the positions of the tokens (:func:`needs_position_ids`).
    """
    if with_position_ids:
        inputs = {**inputs, "position_ids": positions(inputs["attention_mask"]).clamp(min=0)}
    hidden: Tensor = encoder(**inputs).last_hidden_state
    return hidden.float()


def hidden_size(encoder: Any) -> int:
    """Numbers in a token's vector."""
    return int(encoder.config.get_text_config().hidden_size)


def positions(mask: Tensor) -> Tensor:
    """The number of each token among the real ones of its sequence, from 0; meaningless at padding."""
    return mask.cumsum(dim=1) - 1


def span_mask(spans: Tensor, mask: Tensor) -> Tensor:
    """Which tokens lie in one span per sequence, ``[batch, length]``.

    Parameters
    ----------
    spans:
        ``[batch, 2]``: where the span begins and ends, counted in real tokens.
    mask:
        ``[batch, length]``, 1 for tokens, 0 for padding.
    """
    position = positions(mask)
    return (position >= spans[:, :1]) & (position < spans[:, 1:]) & mask.bool()


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that the mask selects; zero where there is none.

    Parameters
    ----------
    hidden:
        ``[batch, length, width]``.
    mask:
        ``[batch, length]``, 1 for the tokens that count.
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The vector of the last selected token; zero where there is none. Parameters as for :func:`mean_pool`."""
    selected = mask.to(torch.long)
    number = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    last = hidden[torch.arange(len(hidden), device=hidden.device), (selected * number).argmax(dim=1)]
    return last * selected.amax(dim=1, keepdim=True).to(hidden.dtype)


POOLINGS = {"mean": mean_pool, "last": last_token_pool}


def combine_answers(a: Tensor, b: Tensor, combine: str) -> Tensor:
    """Two answers' vectors ``[n, width]`` as one.

    ``concat`` is ``(a, b)``; ``interaction`` is ``(a, b, a - b, a * b)`` (Mou et al., "Natural language inference by
    tree-based convolution and heuristic matching", ACL 2016).
    """
    parts = [a, b] if combine == "concat" else [a, b, a - b, a * b]
    return torch.cat(parts, dim=-1)


def combined_size(width: int, combine: str) -> int:
    """Width of what :func:`combine_answers` returns."""
    return width * (2 if combine == "concat" else 4)

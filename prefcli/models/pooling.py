"""From token ids to the vectors a classifier sees: hidden states, one vector of each span, how two answers are joined.

Where a token stands is counted in real tokens, by the attention mask alone: neither the side on which a batch is padded
nor the id that pads (which language models share with the end of a text) changes anything.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def is_causal(encoder: nn.Module) -> bool:
    """Whether a token sees only those before it, as in a language model: then only the last one has read everything.

    Attention says so itself; where a family's does not, by what the family is trained for.
    """
    said = {part.is_causal for part in encoder.modules() if isinstance(getattr(part, "is_causal", None), bool)}
    if said:
        return True in said
    from transformers.models.auto import modeling_auto as auto

    kind = encoder.config.model_type  # type: ignore[union-attr]
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def wants_positions(encoder: nn.Module) -> bool:
    """Whether the places of the tokens have to be told: language models number padding on the left, too."""
    return is_causal(encoder) and "position_ids" in inspect.signature(encoder.forward).parameters


def hidden_states(encoder: nn.Module, inputs: dict[str, Tensor], *, numbered: bool) -> Tensor:
    """A vector per token, ``[batch, length, width]``, float32 whatever the weights are kept in.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder or decoder without a head.
    inputs:
        ``input_ids``, ``attention_mask`` and whatever else the tokenizer gives, each ``[batch, length]``.
    numbered:
        Whether to tell the places of the tokens (:func:`wants_positions`).
    """
    more = {"position_ids": positions(inputs["attention_mask"]).clamp(min=0)} if numbered else {}
    hidden: Tensor = encoder(**inputs, **more).last_hidden_state
    return hidden.float()


def width_of(encoder: Any) -> int:
    """Numbers in a token's vector."""
    return int(encoder.config.get_text_config().hidden_size)


def positions(mask: Tensor) -> Tensor:
    """The number of each token among the real ones of its sequence, from 0; of no meaning for padding."""
    return mask.cumsum(dim=1) - 1


def inside(spans: Tensor, mask: Tensor) -> Tensor:
    """Which tokens lie in one span per sequence, ``[batch, length]``.

    Parameters
    ----------
    spans:
        ``[batch, 2]``: where the span begins and where it ends, counted in real tokens.
    mask:
        ``[batch, length]``, 1 for tokens, 0 for padding.
    """
    position = positions(mask)
    return (position >= spans[:, :1]) & (position < spans[:, 1:]) & mask.bool()


def mean(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen tokens; zero where there is none.

    Parameters
    ----------
    hidden:
        ``[batch, length, width]``.
    chosen:
        ``[batch, length]``, 1 for the tokens that count.
    """
    weights = chosen.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def last(hidden: Tensor, chosen: Tensor) -> Tensor:
    """The last chosen token's vector; zero where there is none. Arguments as for :func:`mean`."""
    weights = chosen.to(torch.long)
    number = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    found = hidden[torch.arange(len(hidden), device=hidden.device), (weights * number).argmax(dim=1)]
    return found * weights.amax(dim=1, keepdim=True).to(hidden.dtype)


POOLINGS = {"mean": mean, "last": last}


def combined(a: Tensor, b: Tensor, combine: str) -> Tensor:
    """Two answers' vectors ``[n, width]`` as one.

    ``concat`` is ``(a, b)``; ``interaction`` is ``(a, b, a - b, a * b)`` (Mou et al., "Natural language inference by
    tree-based convolution and heuristic matching", ACL 2016).
    """
    parts = [a, b] if combine == "concat" else [a, b, a - b, a * b]
    return torch.cat(parts, dim=-1)


def combined_width(width: int, combine: str) -> int:
    """Width of what :func:`combined` returns."""
    return width * (2 if combine == "concat" else 4)

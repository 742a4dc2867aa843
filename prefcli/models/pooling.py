"""From a vector per token to the vectors a classifier sees: means over spans, and how two answers are joined."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens; zero where there is none.

    Parameters
    ----------
    hidden:
        ``[batch, length, width]``.
    mask:
        ``[batch, length]``, 1 for tokens, 0 for padding.
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def span_mean(hidden: Tensor, spans: Tensor) -> Tensor:
    """Mean over the tokens of one span per sequence; zero where it is empty.

    Parameters
    ----------
    hidden:
        ``[batch, length, width]``.
    spans:
        ``[batch, 2]``: where the span begins and where it ends.
    """
    position = torch.arange(hidden.shape[1], device=hidden.device)
    return masked_mean(hidden, (position >= spans[:, :1]) & (position < spans[:, 1:]))


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

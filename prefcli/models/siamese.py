"""The seed's model: one encoder reads (prompt, A) and (prompt, B); their means are joined by one linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefcli.outcomes import OUTCOMES
from prefcli.packing import CutReport, Ids, PairTemplate, TokenisedBattles, allot


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens.

    Parameters
    ----------
    hidden:
        ``[batch, length, width]``.
    mask:
        ``[batch, length]``, 1 for tokens, 0 for padding.
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class Siamese(nn.Module):
    """Shared encoder, masked mean pooling, concatenation, one linear layer -> logits in the order A, B, tie."""

    sequences = 2

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.classifier = nn.Linear(2 * int(config.hidden_size), len(OUTCOMES))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[n, 3]`` from ``2 n`` sequences: the n first ones hold answer A, the n last ones answer B."""
        hidden = self.encoder(**inputs).last_hidden_state
        pooled = masked_mean(hidden, inputs["attention_mask"])
        answer_a, answer_b = pooled.chunk(2)
        logits: Tensor = self.classifier(torch.cat([answer_a, answer_b], dim=-1))
        return logits

    @staticmethod
    def compose(template: PairTemplate, fields: tuple[Ids, Ids, Ids], max_length: int) -> list[tuple[Ids, int]]:
        """The two sequences of a battle, each with the position where its answer begins."""
        prompt, *answers = fields
        composed = []
        for answer in answers:
            kept = allot(np.array([len(prompt), len(answer)]), max_length - template.overhead)
            composed.append(template.join(prompt[: kept[0]], answer[: kept[1]]))
        return composed

    @staticmethod
    def lengths(template: PairTemplate, battles: TokenisedBattles, max_length: int) -> NDArray[np.int64]:
        """Length of the longer sequence of each battle, shape ``[n]``: what padding is decided by."""
        longer = np.maximum(battles.response_a.lengths, battles.response_b.lengths)
        return np.minimum(battles.prompt.lengths + longer + template.overhead, max_length)

    @staticmethod
    def cut(template: PairTemplate, battles: TokenisedBattles, max_length: int) -> CutReport:
        """What no sequence sees."""
        prompt, a, b = (r.lengths for r in (battles.prompt, battles.response_a, battles.response_b))
        budget = max_length - template.overhead
        kept_a = allot(np.stack([prompt, a], axis=1), budget)
        kept_b = allot(np.stack([prompt, b], axis=1), budget)
        lost = {
            "prompt": prompt - np.maximum(kept_a[:, 0], kept_b[:, 0]),
            "response_a": a - kept_a[:, 1],
            "response_b": b - kept_b[:, 1],
        }
        return CutReport(
            battles=len(battles),
            battles_cut=int((np.stack(list(lost.values())) > 0).any(axis=0).sum()),
            tokens=int(prompt.sum() + a.sum() + b.sum()),
            tokens_cut={name: int(count.sum()) for name, count in lost.items()},
        )

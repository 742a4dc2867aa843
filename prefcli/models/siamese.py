"""The seed's model: one encoder reads (prompt, A) and (prompt, B); their means are joined by one linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefcli.models.pooling import combined, combined_width, masked_mean
from prefcli.models.readings import SiameseReading
from prefcli.outcomes import OUTCOMES


class Siamese(SiameseReading, nn.Module):
    """Shared encoder, masked mean pooling, the answers joined, one linear layer -> logits in the order A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder.
    combine:
        How the two answers are joined, see :func:`prefcli.models.pooling.combined`.
    """

    def __init__(self, encoder: nn.Module, combine: str = "concat") -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        config: Any = encoder.config
        self.classifier = nn.Linear(combined_width(int(config.hidden_size), combine), len(OUTCOMES))

    def forward(self, *, spans: Tensor | None = None, both_orders: bool = False, **inputs: Tensor) -> Tensor:
        """Logits from ``2 n`` sequences: the n first ones hold answer A, the n last ones answer B.

        Returns
        -------
        ``[n, 3]``; with ``both_orders`` ``[2 n, 3]``, the n exchanged battles behind the others.
        """
        hidden = self.encoder(**inputs).last_hidden_state
        a, b = masked_mean(hidden, inputs["attention_mask"]).unflatten(0, (2, -1)).unbind()
        joined = combined(a, b, self.combine)
        if both_orders:
            joined = torch.cat([joined, combined(b, a, self.combine)])
        logits: Tensor = self.classifier(joined)
        return logits

"""One sequence "prompt, A, B": the encoder compares the answers itself, token by token.

Every well-placed solution of the competition whose format is known reads both answers together. The classifier sees the
mean over each answer's tokens (each has been read beside the other) and the mean over the whole sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefcli.models.pooling import combined, combined_width, masked_mean, span_mean
from prefcli.models.readings import CrossEncoderReading
from prefcli.outcomes import OUTCOMES


class CrossEncoder(CrossEncoderReading, nn.Module):
    """One encoder over all three fields, means over A, B and everything, one linear layer -> logits A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder.
    combine:
        How the two answers' means are joined, see :func:`prefcli.models.pooling.combined`.
    """

    def __init__(self, encoder: nn.Module, combine: str = "concat") -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        config: Any = encoder.config
        width = int(config.hidden_size)
        self.classifier = nn.Linear(width + combined_width(width, combine), len(OUTCOMES))

    def forward(self, *, spans: Tensor, **inputs: Tensor) -> Tensor:
        """Logits ``[n, 3]`` from ``n`` sequences; ``spans`` ``[n, 3, 2]`` say where prompt, A and B stand in them."""
        hidden = self.encoder(**inputs).last_hidden_state
        answers = combined(span_mean(hidden, spans[:, 1]), span_mean(hidden, spans[:, 2]), self.combine)
        whole = masked_mean(hidden, inputs["attention_mask"])
        logits: Tensor = self.classifier(torch.cat([whole, answers], dim=-1))
        return logits

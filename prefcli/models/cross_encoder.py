"""One sequence "prompt, A, B": the encoder compares the answers itself, token by token.

Every well-placed solution of the competition whose format is known reads both answers together. The classifier sees the
mean over each answer's tokens (each has been read beside the other) and the mean over the whole sequence; of a language
model, whose tokens see only what stands before them, the last token's vector in place of each mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prefcli.models.input_format import JointInput
from prefcli.models.pooling import POOLINGS, combined, combined_width, hidden_states, inside, wants_positions, width_of
from prefcli.outcomes import OUTCOMES


class CrossEncoder(JointInput, nn.Module):
    """One encoder over all three fields, a vector for A, B and everything, one linear layer -> logits A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder, or a decoder without its head.
    combine:
        How the two answers' vectors are joined, see :func:`prefcli.models.pooling.combined`.
    pooling:
        Which vector stands for a span: ``mean`` over its tokens, or the ``last`` one's.
    """

    def __init__(self, encoder: nn.Module, combine: str = "concat", pooling: str = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        self.pooling = pooling
        self.numbered = wants_positions(encoder)
        width = width_of(encoder)
        self.classifier = nn.Linear(width + combined_width(width, combine), len(OUTCOMES))

    def forward(self, *, spans: Tensor, **inputs: Tensor) -> Tensor:
        """Logits ``[n, 3]`` from ``n`` sequences; ``spans`` ``[n, 3, 2]`` say where prompt, A and B stand in them."""
        hidden, mask = hidden_states(self.encoder, inputs, numbered=self.numbered), inputs["attention_mask"]
        pool = POOLINGS[self.pooling]
        a, b = (pool(hidden, inside(spans[:, field], mask)) for field in (1, 2))
        whole = pool(hidden, mask)
        logits: Tensor = self.classifier(torch.cat([whole, combined(a, b, self.combine)], dim=-1))
        return logits

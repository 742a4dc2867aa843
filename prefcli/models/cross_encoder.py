"""One sequence "prompt, A, B": the encoder compares the answers itself, token by token.

Every well-placed solution of the competition whose format is known reads both answers together. The classifier sees the
mean over each answer's tokens (each has been read beside the other) and the mean over the whole sequence; with a
language model, whose tokens see only those before them, the last token's vector instead of each mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prefcli.models import pooling as pool
from prefcli.models.input_format import JOINT_INPUT
from prefcli.outcomes import OUTCOMES


class CrossEncoder(nn.Module):
    """One encoder over all three fields, a vector each for A, B and everything, one linear layer -> logits A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder, or a decoder without its head.
    combine:
        How the two answers' vectors are combined, see :func:`prefcli.models.pooling.combine_answers`.
    pooling:
        Which vector stands for a span: the ``mean`` over its tokens, or the ``last`` one's.
    """

    input_format = JOINT_INPUT

    def __init__(self, encoder: nn.Module, combine: str = "concat", pooling: str = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        self.pooling = pooling
        self.with_position_ids = pool.needs_position_ids(encoder)
        width = pool.hidden_size(encoder)
        self.classifier = nn.Linear(width + pool.combined_size(width, combine), len(OUTCOMES))

    def forward(self, *, spans: Tensor, **inputs: Tensor) -> Tensor:
        """Logits ``[n, 3]`` from ``n`` sequences; ``spans`` ``[n, 3, 2]`` say where prompt, A and B are in them."""
        hidden = pool.hidden_states(self.encoder, inputs, with_position_ids=self.with_position_ids)
        mask = inputs["attention_mask"]
        vector = pool.POOLINGS[self.pooling]
        a, b = (vector(hidden, pool.span_mask(spans[:, field], mask)) for field in (1, 2))
        combined = pool.combine_answers(a, b, self.combine)
        logits: Tensor = self.classifier(torch.cat([vector(hidden, mask), combined], dim=-1))
        return logits

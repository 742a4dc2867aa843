"""The baseline: one encoder reads (prompt, A) and (prompt, B); one linear layer reads the joined vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prefcli.models.input_format import PairInput
from prefcli.models.pooling import POOLINGS, combined, combined_width, hidden_states, wants_positions, width_of
from prefcli.outcomes import OUTCOMES


class Siamese(PairInput, nn.Module):
    """Shared encoder, pooling, the answers joined, one linear layer -> logits in the order A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder, or a decoder without its head.
    combine:
        How the two answers are joined, see :func:`prefcli.models.pooling.combined`.
    pooling:
        Which vector stands for a sequence: ``mean`` over its tokens, or the ``last`` one's.
    """

    def __init__(self, encoder: nn.Module, combine: str = "concat", pooling: str = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        self.pooling = pooling
        self.numbered = wants_positions(encoder)
        self.classifier = nn.Linear(combined_width(width_of(encoder), combine), len(OUTCOMES))

    def forward(self, *, spans: Tensor | None = None, both_orders: bool = False, **inputs: Tensor) -> Tensor:
        """Logits from ``2 n`` sequences: the n first ones hold answer A, the n last ones answer B.

        Returns
        -------
        ``[n, 3]``; with ``both_orders`` ``[2 n, 3]``, the n exchanged battles behind the others.
        """
        hidden = hidden_states(self.encoder, inputs, numbered=self.numbered)
        a, b = POOLINGS[self.pooling](hidden, inputs["attention_mask"]).unflatten(0, (2, -1)).unbind()
        joined = combined(a, b, self.combine)
        if both_orders:
            joined = torch.cat([joined, combined(b, a, self.combine)])
        logits: Tensor = self.classifier(joined)
        return logits

"""The baseline: one encoder reads (prompt, A) and (prompt, B); one linear layer sees both vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prefcli.models import pooling as pool
from prefcli.models.input_format import PAIR_INPUT
from prefcli.outcomes import OUTCOMES


class Siamese(nn.Module):
    """Shared encoder, pooling, the answers combined, one linear layer -> logits in the order A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder, or a decoder without its head.
    combine:
        How the two answers are combined, see :func:`prefcli.models.pooling.combine_answers`.
    pooling:
        Which vector stands for a sequence: the ``mean`` over its tokens, or the ``last`` one's.
    """

    input_format = PAIR_INPUT

    def __init__(self, encoder: nn.Module, combine: str = "concat", pooling: str = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        self.pooling = pooling
        self.with_position_ids = pool.needs_position_ids(encoder)
        self.classifier = nn.Linear(pool.combined_size(pool.hidden_size(encoder), combine), len(OUTCOMES))

    def forward(self, *, spans: Tensor | None = None, both_orders: bool = False, **inputs: Tensor) -> Tensor:
        """Logits from ``2 n`` sequences: the first n hold answer A, the last n answer B.

        Returns
        -------
        ``[n, 3]``; with ``both_orders`` ``[2 n, 3]``, the n swapped battles after the others.
        """
        hidden = pool.hidden_states(self.encoder, inputs, with_position_ids=self.with_position_ids)
        a, b = pool.POOLINGS[self.pooling](hidden, inputs["attention_mask"]).unflatten(0, (2, -1)).unbind()
        combined = pool.combine_answers(a, b, self.combine)
        if both_orders:
            combined = torch.cat([combined, pool.combine_answers(b, a, self.combine)])
        logits: Tensor = self.classifier(combined)
        return logits

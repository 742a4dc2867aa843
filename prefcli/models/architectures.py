"""The neural architectures: hidden states of an encoder, one vector per span, the answers combined, one linear layer.

Positions of tokens are counted from the attention mask alone: neither the side on which a batch is padded nor the id
that pads (which in language models may also end a text) changes anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefcli.models.packing import JOINT_INPUT, PAIR_INPUT, InputFormat
from prefcli.outcomes import OUTCOMES


class EncoderCall:
    """How an encoder is called: with those of the inputs that it takes."""

    def __init__(self, encoder: nn.Module) -> None:
        parameters = inspect.signature(encoder.forward).parameters
        self.names = frozenset(parameters)
        # Language models count padding on the left as positions, too, unless they are given.
        self.with_position_ids = is_causal(encoder) and "position_ids" in parameters

    def output(self, encoder: nn.Module, inputs: Mapping[str, Tensor], **options: bool) -> Any:
        """What the encoder returns; ``options`` are passed on."""
        arguments = {name: tensor for name, tensor in inputs.items() if name in self.names}
        if self.with_position_ids:
            arguments["position_ids"] = positions(inputs["attention_mask"]).clamp(min=0)
        return encoder(**arguments, **options)

    def __call__(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """A vector per token, ``[batch, length, width]``, float32 whatever the type of the weights."""
        hidden: Tensor = self.output(encoder, inputs).last_hidden_state
        return hidden.float()


class Architecture(nn.Module):
    """What the architectures share; ``forward`` gives logits in the order A, B, tie.

    Parameters
    ----------
    encoder:
        A Hugging Face encoder, or a decoder without its head.
    combine:
        How the two answers' vectors are combined, see :func:`combine_answers`.
    pooling:
        Which vector stands for a span: a key of :data:`POOLINGS`, or ``attention``, see :class:`AttentionPool`.
    head:
        What gives the logits: one ``linear`` layer, or two, see :class:`TwoLayerHead`.
    width:
        Numbers in a token's vector; by default what the encoder's configuration says.
    pads:
        Whether the encoder may be given padded sequences; otherwise it computes those of one length at a time.
    """

    input_format: InputFormat
    other_vectors = 0
    """Vectors that the classifier sees beside the answers'."""

    def __init__(
        self,
        encoder: nn.Module,
        combine: str = "concat",
        pooling: str = "mean",
        head: str = "linear",
        *,
        width: int | None = None,
        pads: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.combine = combine
        self.pooling = pooling
        self.pads = pads
        self.call_encoder = EncoderCall(encoder)
        vectors = self.other_vectors + (2 if combine == "concat" else 4)
        width = width or encoder.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        self.classifier = (
            nn.Linear(vectors * width, len(OUTCOMES)) if head == "linear" else TwoLayerHead(vectors, width)
        )
        self.attention_pool = AttentionPool(width) if pooling == "attention" else None

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """One vector for each row of ``hidden`` ``[batch, length, width]``, of the tokens where ``mask`` is 1."""
        return (self.attention_pool or POOLINGS[self.pooling])(hidden, mask)

    def hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """A vector per token, ``[batch, length, width]``, float32; padding, where there is any, is on the right."""
        if self.pads:
            return self.call_encoder(self.encoder, inputs)
        lengths = inputs["attention_mask"].sum(dim=1)
        hidden = None
        for length in lengths.unique().tolist():
            rows = lengths == length
            part = self.call_encoder(self.encoder, {name: tensor[rows, :length] for name, tensor in inputs.items()})
            if hidden is None:
                hidden = part.new_zeros(*inputs["input_ids"].shape, part.shape[-1])
            hidden[rows, :length] = part
        assert hidden is not None
        return hidden


class AttentionPool(nn.Module):
    """The mean of a span's token vectors, each weighted by the softmax of a learned linear function of it.

    Lin et al., "A structured self-attentive sentence embedding", ICLR 2017, with one linear layer. It begins as the
    plain mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Shapes as for :func:`mean_pool`; zero if ``mask`` is 1 nowhere."""
        # A sum of products rather than a matrix product, which autocast would compute in 16 bits.
        scores = (hidden * self.weight).sum(dim=-1).masked_fill(~mask.bool(), torch.finfo(hidden.dtype).min)
        weights = scores.softmax(dim=1) * mask
        return (hidden * weights.unsqueeze(-1)).sum(dim=1)


class TwoLayerHead(nn.Module):
    """Two linear layers with GELU between them; the inner one is as wide as a token's vector."""

    def __init__(self, vectors: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(vectors * width, width)
        self.out_proj = nn.Linear(width, len(OUTCOMES))

    def forward(self, combined: Tensor) -> Tensor:
        logits: Tensor = self.out_proj(nn.functional.gelu(self.dense(combined)))
        return logits


class Siamese(Architecture):
    """The baseline: one encoder reads (prompt, A) and (prompt, B); the classifier sees both vectors."""

    input_format = PAIR_INPUT

    def forward(self, *, spans: Tensor | None = None, both_orders: bool = False, **inputs: Tensor) -> Tensor:
        """Logits from ``2 n`` sequences: the first n hold answer A, the last n answer B.

        Returns
        -------
        ``[n, 3]``; with ``both_orders`` ``[2 n, 3]``, the n swapped battles after the others.
        """
        a, b = self.pool(self.hidden_states(inputs), inputs["attention_mask"]).unflatten(0, (2, -1)).unbind()
        combined = combine_answers(a, b, self.combine)
        if both_orders:
            combined = torch.cat([combined, combine_answers(b, a, self.combine)])
        logits: Tensor = self.classifier(combined)
        return logits


class CrossEncoder(Architecture):
    """One sequence "prompt, A, B": the encoder compares the answers itself, token by token.

    Every well-placed solution of the competition whose format is known reads both answers together. The classifier sees
    a vector of each answer (whose tokens have been read beside the other's) and one of the whole sequence.
    """

    input_format = JOINT_INPUT
    other_vectors = 1

    def forward(self, *, spans: Tensor, **inputs: Tensor) -> Tensor:
        """Logits ``[n, 3]`` from ``n`` sequences; ``spans`` ``[n, 3, 2]`` say where prompt, A and B are in them."""
        hidden, mask = self.hidden_states(inputs), inputs["attention_mask"]
        a, b = (self.pool(hidden, span_mask(spans[:, field], mask)) for field in (1, 2))
        everything = self.pool(hidden, mask)
        logits: Tensor = self.classifier(torch.cat([everything, combine_answers(a, b, self.combine)], dim=-1))
        return logits


ARCHITECTURES: dict[str, type[Architecture]] = {"siamese": Siamese, "cross-encoder": CrossEncoder}


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


def positions(mask: Tensor) -> Tensor:
    """The number of each token among the real ones of its sequence, from 0; meaningless at padding."""
    return mask.cumsum(dim=1) - 1


def span_mask(spans: Tensor, mask: Tensor) -> Tensor:
    """Which tokens lie in one span per sequence, ``[batch, length]``.

    ``spans`` ``[batch, 2]`` say where it begins and ends, counted in real tokens: those where ``mask``
    ``[batch, length]`` is 1.
    """
    position = positions(mask)
    return (position >= spans[:, :1]) & (position < spans[:, 1:]) & mask.bool()


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``hidden`` ``[batch, length, width]`` where ``mask`` ``[batch, length]`` is 1; zero if it is nowhere."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def first_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The vector of the first token where ``mask`` is 1, shapes as for :func:`mean_pool`; zero if it is nowhere."""
    selected = mask.to(torch.long)
    left = torch.arange(hidden.shape[1], 0, -1, device=hidden.device)
    first = hidden[torch.arange(len(hidden), device=hidden.device), (selected * left).argmax(dim=1)]
    return first * selected.amax(dim=1, keepdim=True).to(hidden.dtype)


def last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The vector of the last token where ``mask`` is 1, shapes as for :func:`mean_pool`; zero if it is nowhere."""
    selected = mask.to(torch.long)
    number = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    last = hidden[torch.arange(len(hidden), device=hidden.device), (selected * number).argmax(dim=1)]
    return last * selected.amax(dim=1, keepdim=True).to(hidden.dtype)


POOLINGS = {"mean": mean_pool, "last": last_token_pool, "cls": first_token_pool}


def combine_answers(a: Tensor, b: Tensor, combine: str) -> Tensor:
    """Two answers' vectors ``[n, width]`` as one.

    ``concat`` is ``(a, b)``; ``interaction`` is ``(a, b, a - b, a * b)`` (Mou et al., "Natural language inference by
    tree-based convolution and heuristic matching", ACL 2016).
    """
    return torch.cat([a, b] if combine == "concat" else [a, b, a - b, a * b], dim=-1)

"""The architecture ``reward``: one number per answer, by transformers' own sequence classifier with one label.

A battle's logits are those of Bradley and Terry's model with ties: ``r_A``, ``r_B`` and ``(r_A + r_B) / 2 + log nu``
(Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", JASA 65, 1970).
Exchanging the answers exchanges the first two and leaves the third.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefcli.metrics import UNSEEN_PROBABILITY
from prefcli.models.architectures import EncoderCall, is_causal, mean_pool, span_mask
from prefcli.models.conversation import ConversationTemplate
from prefcli.models.packing import ANSWER_INPUT
from prefcli.outcomes import SWAPPED


def _float32_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer in float32 whatever the precision around it."""
    device = inputs.device.type
    # Only where there is something to switch off: the context has no place in an exported graph.
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext():
        return nn.functional.linear(inputs.float(), weight.float(), None if bias is None else bias.float())


class Float32Linear(nn.Linear):
    """The last layer of a head: in bf16, answers whose rewards differ by less than a hundredth would be equal."""

    def forward(self, input: Tensor) -> Tensor:
        return _float32_linear(input, self.weight, self.bias)


@dataclass(frozen=True)
class RewardSetup:
    """What a reward model is built with, beside the options."""

    conversation: ConversationTemplate
    """What stands around prompts and answers."""
    tie_share: float = 1 / 3
    """Share of ties among the training battles, where the term for ties begins."""


class Tie(nn.Module):
    """The logarithm of Davidson's ``nu``: a constant, or a linear function of a vector of the prompt.

    Parameters
    ----------
    share:
        The share of ties among the training battles: at first every battle gets it if its answers are equally good.
    width:
        Numbers in the prompt's vector; None for a constant.
    """

    def __init__(self, share: float, width: int | None = None) -> None:
        super().__init__()
        share = min(max(share, UNSEEN_PROBABILITY), 1 - UNSEEN_PROBABILITY)
        # P(tie) = nu / (2 + nu) where r_A = r_B.
        self.bias = nn.Parameter(torch.tensor([2 * share / (1 - share)]).log())
        self.weight = None if width is None else nn.Parameter(torch.zeros(1, width))

    def forward(self, prompts: Tensor | None) -> Tensor:
        """``log nu`` from vectors ``[n, width]``, shape ``[n]``, or ``[1]`` for a constant."""
        if self.weight is None:
            return self.bias.float()
        assert prompts is not None
        return _float32_linear(prompts, self.weight, self.bias).squeeze(-1)


class Reward(nn.Module):
    """A sequence classifier with one label reads each answer with its prompt; ``forward`` gives logits A, B, tie.

    Parameters
    ----------
    encoder:
        What ``AutoModelForSequenceClassification`` gives for ``num_labels=1``, whole, with its head.
    tie:
        See :class:`Tie`; one without ``width`` is a constant.
    pads:
        Whether it may be given padded sequences; otherwise it computes those of one length at a time.
    """

    input_format = ANSWER_INPUT
    pooling = "auto"
    """transformers' classifiers choose the vector of a text themselves."""

    def __init__(self, encoder: nn.Module, tie: Tie, *, pads: bool = True) -> None:
        super().__init__()
        for module in head(encoder):
            for layer in module.modules():
                if type(layer) is nn.Linear and layer.out_features == 1:
                    layer.__class__ = Float32Linear
        self.encoder = encoder
        self.tie = tie
        self.pads = pads
        self.call_encoder = EncoderCall(encoder)

    def forward(self, *, pairs: Tensor, spans: Tensor, both_orders: bool = False, **inputs: Tensor) -> Tensor:
        """Logits from ``m`` sequences, each a prompt with one answer.

        Parameters
        ----------
        pairs:
            ``[n, 2]``: which sequences hold the answers A and B of each battle.
        spans:
            ``[m, 2, 2]``: where prompt and answer are in each sequence.
        both_orders:
            Also give the logits of the swapped battles.

        Returns
        -------
        ``[n, 3]``; with ``both_orders`` ``[2 n, 3]``, the n swapped battles after the others.
        """
        rewards, prompts = self.rewards(inputs, spans)
        a, b = rewards[pairs].unbind(dim=1)
        # A sum of two terms does not depend on their order, so a swap leaves these bits as they are.
        prompt = None if prompts is None else (prompts[pairs[:, 0]] + prompts[pairs[:, 1]]) / 2
        logits = torch.stack([a, b, (a + b) / 2 + self.tie(prompt)], dim=-1)
        return torch.cat([logits, logits[:, list(SWAPPED)]]) if both_orders else logits

    def rewards(self, inputs: Mapping[str, Tensor], spans: Tensor) -> tuple[Tensor, Tensor | None]:
        """One number per sequence, ``[m]``, and the vectors of the prompts that the tie's term needs, if any."""
        if self.pads:
            return self._encode(inputs, spans)
        lengths = inputs["attention_mask"].sum(dim=1)
        groups = [torch.nonzero(lengths == length).squeeze(1) for length in lengths.unique()]
        parts = [
            self._encode({name: tensor[rows, : int(lengths[rows[0]])] for name, tensor in inputs.items()}, spans[rows])
            for rows in groups
        ]
        order = torch.cat(groups).argsort()
        rewards, prompts = zip(*parts, strict=True)
        return torch.cat(rewards)[order], None if self.tie.weight is None else torch.cat(prompts)[order]

    def _encode(self, inputs: Mapping[str, Tensor], spans: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.tie.weight is None:
            return self.call_encoder.output(self.encoder, inputs).logits[:, 0].float(), None
        output = self.call_encoder.output(self.encoder, inputs, output_hidden_states=True)
        prompts = mean_pool(output.hidden_states[-1].float(), span_mask(spans[:, 0], inputs["attention_mask"]))
        return output.logits[:, 0].float(), prompts


def head(encoder: Any) -> list[nn.Module]:
    """The modules of a sequence classifier that are not its encoder's layers, the encoder's pooler among them."""
    modules = [module for name, module in encoder.named_children() if name != encoder.base_model_prefix]
    pooler = getattr(encoder.base_model, "pooler", None)
    return modules if pooler is None else [*modules, pooler]


def train_head(encoder: Any) -> None:
    """Make the head of a classifier with adapters trainable again, in float32 however narrow the frozen weights are."""
    for module in head(encoder):
        for parameter in module.parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def set_padding(encoder: Any, tokenizer: Any) -> None:
    """Let a decoder's classifier know which id pads: it finds the last token of a text by it.

    A tokenizer without a padding token gets the one that ends a text.

    Raises
    ------
    ValueError
        If it has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no padding token, nor one that ends a text")
        tokenizer.pad_token = tokenizer.eos_token
    causal = is_causal(encoder)
    for config in (encoder.config, encoder.config.get_text_config()):
        if causal or config.pad_token_id is None:  # from that of RoBERTa and its relatives positions are counted
            config.pad_token_id = int(tokenizer.pad_token_id)
    if causal:
        # Or a row that is trained now would not be after a resumption, if the same id occurs in texts.
        encoder.get_input_embeddings().padding_idx = None

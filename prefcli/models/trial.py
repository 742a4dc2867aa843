"""What an encoder reads and gives, found out by a trial pass before anything is trained on it.

Configurations do not say it reliably: positions may be counted from behind the padding id, vectors may be narrower than
``hidden_size``, and some encoders mix padding into their results. A pass of the longest sequence takes seconds; the
error without it comes after hours, or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefcli.errors import InputError, is_out_of_memory, one_line
from prefcli.models.architectures import EncoderCall

SHORT_LENGTH = 8
"""Tokens of the short sequence that is computed with and without padding."""
MAX_PADDED_LENGTH = 64
"""To this length it is padded where no longer one is tried out."""
MAX_OPERATIONS = 6e12
"""Of the trial of the longest sequence: a minute on a slow CPU. Beyond it only a short one is tried."""
FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-4, 0.05
"""Results in batches of other shapes differ by rounding: a share of the largest number that is well above it."""
SEED = 0


@dataclass(frozen=True)
class EncoderTraits:
    """What the rest of the code needs to know of an encoder."""

    max_length: int
    """Tokens in the longest sequence that it is given."""
    width: int
    """Numbers in a token's vector."""
    ignores_padding: bool
    """Whether padding leaves the vectors of the other tokens alone; otherwise sequences must not be padded."""


def check_vocabulary(encoder: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids that the encoder has no vector for.

    Not because of special tokens that no text holds, as Gemma 3's for images; see :func:`check_ids`.

    Raises
    ------
    InputError
        If there are such ids.
    """
    rows = vocabulary_size(encoder)
    special = set(tokenizer.all_special_ids) - {tokenizer.pad_token_id}
    largest = max((number for number in tokenizer.get_vocab().values() if number not in special), default=0)
    if rows is not None and largest >= rows:
        raise InputError(
            f"the tokenizer has ids up to {largest:,}, and the encoder's embedding {rows:,} rows: they do not belong "
            "together",
            hint="Use the encoder's own tokenizer, or enlarge the embedding (resize_token_embeddings) and save it.",
        )


def check_ids(rows: int | None, ids: NDArray[np.integer], tokenizer: Any) -> None:
    """Refuse texts with tokens that the encoder has no vector for.

    Raises
    ------
    InputError
        If ``ids`` holds one that is not below ``rows``.
    """
    if rows is not None and ids.size and ids.max() >= rows:
        token = tokenizer.convert_ids_to_tokens(int(ids.max()))
        raise InputError(
            f"a text holds the token {token!r}, which the encoder has no vector for",
            hint="Take it out of the texts, or enlarge the encoder's embedding (resize_token_embeddings) and save it.",
        )


def try_out(
    encoder: Any, max_length: int, pad_token_id: int, token_type: int | None = None, *, find_longest: bool = False
) -> EncoderTraits:
    """Compute a few made-up sequences and see what comes out.

    Parameters
    ----------
    encoder:
        As it will be used: with adapters, accelerated.
    max_length:
        Tokens in the longest sequence that is wanted.
    pad_token_id, token_type:
        What sequences are padded with, and the type of their last tokens (None without types).
    find_longest:
        Try ``max_length``, and find the longest sequence that can be computed; otherwise ``max_length`` is believed.

    Raises
    ------
    InputError
        If the encoder cannot be used.
    """
    passes = _Passes(encoder, pad_token_id, token_type)
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _try_out(passes, max_length, find_longest=find_longest)
    finally:
        encoder.train(training)


def reward_ignores_padding(encoder: Any, max_length: int, pad_token_id: int) -> bool:
    """Whether a sequence classifier gives a text the same number beside a longer one, which pads it."""
    passes = _Passes(encoder, pad_token_id, None)
    short, padded_length = min(SHORT_LENGTH, max_length), min(MAX_PADDED_LENGTH, max_length)
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            alone = passes.compute(*passes.one(short)).logits.float()
            padded = passes.compute(*passes.two(short, padded_length)).logits.float()
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return False
    finally:
        encoder.train(training)
    tolerance = passes.tolerance * max(1.0, float(alone.abs().max()))
    return float((alone[0] - padded[1]).abs().max()) <= tolerance


def _try_out(passes: _Passes, max_length: int, *, find_longest: bool) -> EncoderTraits:
    short = min(SHORT_LENGTH, max_length)
    try:
        alone = passes.alone(short)
        again = passes.alone(short)
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the encoder cannot be used: it fails on {short} tokens with {type(error).__name__}: "
            f"{one_line(error, 120)}",
            hint="Choose another encoder.",
        ) from error
    if not torch.isfinite(alone).all():
        raise InputError(
            "the encoder's results are not numbers",
            hint="Its weights may be damaged, or need float32 (--precision fp32).",
        )
    tolerance = passes.tolerance * float(alone.abs().max())
    if float((alone - again).abs().max()) > tolerance:
        raise InputError(
            "the encoder gives other results at each call, so no prediction could be repeated",
            hint="Choose another encoder.",
        )
    padded_length = min(MAX_PADDED_LENGTH, max_length)
    if find_longest and 6 * passes.parameters * max_length <= MAX_OPERATIONS:
        max_length = padded_length = _longest(passes, max_length, short)
    try:
        padded = passes.padded(short, padded_length)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return EncoderTraits(max_length, alone.shape[-1], ignores_padding=False)
    # "not at most", because NaN where padding was masked is a difference, too.
    return EncoderTraits(max_length, alone.shape[-1], float((alone - padded).abs().max()) <= tolerance)


def _longest(passes: _Passes, wanted: int, works: int) -> int:
    """The longest sequence of at most ``wanted`` tokens that is computed; ``works`` is one that is."""
    fails = wanted + 1
    candidate = wanted
    while works + 1 < fails:
        try:
            passes.alone(candidate)
            works = candidate
        except Exception as error:
            if is_out_of_memory(error):
                raise
            fails = candidate
        candidate = (works + fails) // 2
    return works


class _Passes:
    """Passes of an encoder over made-up tokens, which are always the same."""

    def __init__(self, encoder: Any, pad_token_id: int, token_type: int | None) -> None:
        self.encoder = encoder
        self.call = EncoderCall(encoder)
        self.pad_token_id = pad_token_id
        self.token_type = token_type
        self.device = next(encoder.parameters()).device
        self.parameters = sum(parameter.numel() for parameter in encoder.parameters())
        # Frozen weights may be narrower than adapters beside them; autocast computes both, as in training.
        dtypes = {parameter.dtype for parameter in encoder.parameters()}
        self.dtype = next((dtype for dtype in (torch.float16, torch.bfloat16) if dtype in dtypes), torch.float32)
        self.tolerance = FLOAT32_TOLERANCE if self.dtype is torch.float32 else HALF_TOLERANCE

    def tokens(self, count: int) -> Tensor:
        """Ids that are not the padding's."""
        rows = vocabulary_size(self.encoder) or 2
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(rows - 1, (count,), generator=generator)
        return ids + (ids >= self.pad_token_id)

    def alone(self, length: int) -> Tensor:
        """The vectors ``[length, width]`` of one sequence."""
        return self._run(*self.one(length))[0]

    def one(self, length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of one sequence."""
        return self.tokens(length)[None], torch.ones(1, length, dtype=torch.long)

    def padded(self, length: int, padded_length: int) -> Tensor:
        """Those of the same sequence beside one of ``padded_length`` tokens."""
        return self._run(*self.two(length, padded_length))[1, :length]

    def two(self, length: int, padded_length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask of a sequence of ``padded_length`` tokens and of that of :meth:`one`, in this order."""
        ids = torch.stack([self.tokens(padded_length), torch.full((padded_length,), self.pad_token_id)])
        ids[1, :length] = self.tokens(length)
        mask = torch.ones_like(ids)
        mask[1, length:] = 0
        return ids, mask

    def compute(self, ids: Tensor, mask: Tensor) -> Any:
        """What the encoder returns."""
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.token_type is not None:
            types = torch.zeros_like(ids)
            types[:, SHORT_LENGTH // 2 :] = self.token_type  # the same places, however long the sequence
            inputs["token_type_ids"] = types
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            return self.call.output(self.encoder, {name: tensor.to(self.device) for name, tensor in inputs.items()})

    def _run(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.compute(ids, mask).last_hidden_state.float()
        if hidden.shape[:2] != ids.shape:
            raise InputError(
                f"the encoder gives {hidden.shape[1]} vectors for {ids.shape[1]} tokens, and one for each is needed",
                hint="Choose another encoder.",
            )
        return hidden


def vocabulary_size(encoder: Any) -> int | None:
    """How many token ids the encoder has vectors for; None where that cannot be found."""
    try:
        return int(encoder.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        return None

"""DeBERTa-v2 and v3 (transformers' ``DebertaV2Model``), computed faster with the same results.

The disentangled attention of DeBERTa (He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR
2021; v3: He, Gao & Chen, 2021) adds two matrices to the usual scores, for queries i and keys j at distance i - j:

    score(i, j) = ( Qᵢ·Kⱼ + Qᵢ·Kr(i - j) + Kⱼ·Qr(i - j) ) / sqrt(d * terms)

transformers multiplies with all relative keys Kr and then gathers what belongs to each (i, j), twice, for all heads at
once; most of its time goes into tensors of size heads x length x length. Here

- relative keys are in the order of distances L-1 ... -(L-1), so that row i of Q Krᵀ, shape ``[L, 2L-1]``, holds what
  belongs to keys 0 ... L-1 in consecutive places, one place earlier in each next row. Read with strides (2L-2, 1) from
  place L-1 it *is* the content-to-position matrix. Relative queries are in the order -(L-1) ... L-1, and K Qrᵀ read
  the same way and transposed is the position-to-content matrix. Nothing is gathered. In the gradient the same view, of
  a matrix of zeros, is written instead of read;
- scores exist for a few heads of one sequence at a time, so that they stay in the processor's cache; only the
  probabilities are kept for the gradient;
- only real tokens are computed: sequences lie end to end, without padding, through all layers. **The last hidden state
  is 0 at padding**, where transformers has meaningless numbers;
- linear layers and dropout are those of :mod:`prefcli.encoders.dense`.

:func:`accelerate` replaces the classes of the modules. Parameters and their names stay transformers' own. What this
module does not cover (returned attention maps, masks for each query) goes through transformers' code as before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2 import modeling_deberta_v2 as original

from prefcli.encoders import dense
from prefcli.encoders.dense import DropoutMasks, fast_linear
from prefcli.errors import is_out_of_memory

MAX_SCORES = 2**18
"""Elements of the scores (heads x length x length) that are computed at once: 1 MB, half of a core's cache."""

MAX_ROWS = 256
MAX_ROWS_MKL = 128
"""Queries (or keys) that are multiplied with relative ones at once. A block of b of L needs L + b - 1 distances: small
blocks save operations, but oneDNN and products in bfloat16 are slower in them than MKL in float32."""

MIN_LENGTH_SINGLE_HEADS = 160
"""From this length on heads are computed one by one with oneDNN, which has no batched product here."""

UNPADDED_DEVICES = ("cpu",)
"""Devices on which sequence after sequence is computed; others compute whole padded batches."""

PROBE_TOKENS = 9
PROBE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Segment:
    """One sequence among the tokens of a batch that lie end to end."""

    start: int
    length: int
    padding: Tensor | None = None
    """``[length]``, True for padding between real tokens; None (as a rule) where there is none."""

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class BatchLayout:
    """Where the tokens of a batch are, and their distances: what layers get instead of an attention mask."""

    segments: tuple[Segment, ...]
    """The sequences, end to end; empty where the batch stays padded."""
    max_length: int
    """Of the sequences."""
    buckets: Tensor | None
    """``[2 * max_length - 1]``: the bucket (row of the relative embeddings, counted from ``first_row``) of each
    distance i - j, ascending from ``-(max_length - 1)``. None without relative attention."""
    first_row: int = 0
    last_row: int = 0
    """The rows of the relative embeddings that any distance here needs."""
    indices: Tensor | None = None
    """``[tokens]``: positions in the padded batch; None where the tokens are all of it, in order."""
    padding: Tensor | None = None
    """``[tokens]``, True for padding between real tokens; None (as a rule) where there is none."""
    token_mask: Tensor | None = None
    """``[batch, length]``, True for real tokens; only where the batch stays padded (GPUs)."""


def accelerate(encoder: nn.Module) -> str | None:
    """Make a DeBERTa-v2 or v3 encoder faster, in place; its state dict keeps its keys and tensors.

    Returns
    -------
    None if done, otherwise why not, in words; the encoder is then unchanged.
    """
    if not isinstance(encoder, original.DebertaV2Model):
        return f"it is not transformers' DeBERTa-v2 or v3 but {type(encoder).__name__}"
    stack = encoder.encoder
    if isinstance(stack, Encoder):
        return None
    attentions = [module for module in stack.modules() if isinstance(module, original.DisentangledSelfAttention)]
    if type(stack) is not original.DebertaV2Encoder or len(attentions) != len(stack.layer):
        return "its layers are not transformers' own"
    if any(type(attention) is not original.DisentangledSelfAttention for attention in attentions):
        return "its attention is not transformers' own"
    try:
        error = _probe(stack, attentions[0])
    except Exception as problem:  # another release of transformers may have moved anything
        if is_out_of_memory(problem):
            raise
        return f"this release of transformers computes DeBERTa in another way ({type(problem).__name__}: {problem})"
    if not error < PROBE_TOLERANCE:
        return f"this release of transformers computes DeBERTa in another way (results differ by {error:.1g})"
    stack.__class__ = Encoder
    for attention in attentions:
        attention.__class__ = SelfAttention
    dense.accelerate(encoder)
    return None


@torch.no_grad()
def _probe(stack: Any, attention: Any) -> float:
    """Largest relative difference between transformers' attention and ours on a few random tokens."""
    weight = attention.query_proj.weight
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, PROBE_TOKENS, attention.query_proj.in_features, generator=generator)
    hidden = hidden.to(weight.device, weight.dtype)
    relative = stack.get_rel_embedding()
    mask = torch.ones(1, PROBE_TOKENS, dtype=torch.long, device=hidden.device)
    training = attention.training
    attention.eval()
    try:
        expected, _ = attention(
            hidden, stack.get_attention_mask(mask), relative_pos=stack.get_rel_pos(hidden), rel_embeddings=relative
        )
        buckets = _buckets(stack, attention, PROBE_TOKENS, hidden.device)
        layout = BatchLayout((Segment(0, PROBE_TOKENS),), PROBE_TOKENS, *buckets)
        result = _attention(attention, hidden, layout, relative)
    finally:
        attention.train(training)
    # Half precision itself rounds at 1e-3.
    factor = 1.0 if weight.dtype in (torch.float32, torch.float64) else 0.01
    return float((result - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) * factor


class Encoder(original.DebertaV2Encoder):
    """transformers' stack of layers, given only real tokens."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_hidden_states: bool = True,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        if output_attentions or query_states is not None or relative_pos is not None or attention_mask.dim() != 2:
            return super().forward(
                hidden_states, attention_mask, output_hidden_states, output_attentions, query_states, relative_pos,
                return_dict,
            )  # fmt: skip
        tokens, layout = self._unpad_batch(hidden_states, attention_mask)
        relative = self.get_rel_embedding()
        shape = hidden_states.shape
        states = [hidden_states]
        for number, layer in enumerate(self.layer):
            tokens, _ = layer(tokens, layout, relative_pos=None, rel_embeddings=relative, output_attentions=False)
            if number == 0 and self.conv is not None:
                # The convolution reads the input's padding as well, so it gets the padded batch.
                tokens = _unpad(self.conv(hidden_states, _pad(tokens, layout, shape), attention_mask), layout)
            if output_hidden_states or number == len(self.layer) - 1:
                states.append(_pad(tokens, layout, shape))
        hidden = tuple(states) if output_hidden_states else None
        if not return_dict:
            return tuple(value for value in (states[-1], hidden) if value is not None)
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=hidden)

    def _unpad_batch(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, BatchLayout]:
        """The tokens in the form that layers get, and their layout."""
        length = hidden.shape[1]
        attention = self.layer[0].attention.self
        if hidden.device.type not in UNPADDED_DEVICES:
            buckets = _buckets(self, attention, length, hidden.device)
            return hidden, BatchLayout((), length, *buckets, token_mask=mask.bool())
        mask = mask.bool().cpu()
        segments: list[Segment] = []
        indices, padding, start = [torch.empty(0, dtype=torch.long)], [], 0
        for i, row in enumerate(mask):
            real = row.nonzero().flatten()
            if not len(real):
                continue
            first, last = int(real[0]), int(real[-1])
            inner = ~row[first : last + 1]
            segments.append(Segment(start, len(inner), inner.to(hidden.device) if bool(inner.any()) else None))
            indices.append(torch.arange(i * length + first, i * length + last + 1))
            padding.append(inner)
            start += len(inner)
        max_length = max((segment.length for segment in segments), default=1)
        has_inner_padding = any(segment.padding is not None for segment in segments)
        layout = BatchLayout(
            tuple(segments),
            max_length,
            *_buckets(self, attention, max_length, hidden.device),
            indices=None if bool(mask.all()) else torch.cat(indices).to(hidden.device),
            padding=torch.cat(padding).to(hidden.device) if has_inner_padding else None,
        )
        return _unpad(hidden, layout), layout


def _unpad(hidden: Tensor, layout: BatchLayout) -> Tensor:
    """The tokens of a padded batch end to end, ``[1, tokens, width]``."""
    if layout.token_mask is not None:
        return hidden
    flat = hidden.reshape(1, -1, hidden.shape[-1])
    return flat if layout.indices is None else flat[:, layout.indices]


def _pad(tokens: Tensor, layout: BatchLayout, shape: torch.Size) -> Tensor:
    """Tokens back in the padded batch; 0 at padding."""
    if layout.token_mask is not None:
        return tokens * layout.token_mask.unsqueeze(-1)
    if layout.indices is None:
        return tokens.reshape(shape)
    tokens = tokens.squeeze(0)
    if layout.padding is not None:
        tokens = tokens.masked_fill(layout.padding.unsqueeze(-1), 0)
    return tokens.new_zeros(shape[0] * shape[1], shape[2]).index_copy(0, layout.indices, tokens).view(shape)


def _buckets(stack: Any, attention: Any, max_length: int, device: torch.device) -> tuple[Tensor | None, int, int]:
    """``buckets``, ``first_row`` and ``last_row`` of :class:`BatchLayout`."""
    if not attention.relative_attention:
        return None, 0, 0
    distances = torch.arange(-(max_length - 1), max_length)
    if stack.position_buckets > 0 and stack.max_relative_positions > 0:
        distances = original.make_log_bucket_position(distances, stack.position_buckets, stack.max_relative_positions)
    size = attention.pos_ebd_size
    rows = (distances.to(torch.long) + size).clamp(0, 2 * size - 1)
    first, last = int(rows[0]), int(rows[-1])
    return (rows - first).to(device, non_blocking=True), first, last


class SelfAttention(original.DisentangledSelfAttention):
    """transformers' attention, computed by this module when it gets a :class:`BatchLayout`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | BatchLayout,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(attention_mask, BatchLayout):
            return _attention(self, hidden_states, attention_mask, rel_embeddings), None
        result: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
        )
        return result


def _attention(attention: Any, hidden: Tensor, layout: BatchLayout, relative: Tensor | None) -> Tensor:
    """The attention's output for hidden states ``[batch, length, width]`` (batch 1 where tokens lie end to end)."""
    terms = 1 + ("c2p" in attention.pos_att_type) + ("p2c" in attention.pos_att_type)
    scale = 1 / math.sqrt(attention.attention_head_size * terms)
    # The queries are scaled, because they are smaller than the scores. The relative keys meet the scaled queries.
    relative_keys, relative_queries = _relative_projections(attention, layout, relative, scale)
    query = attention.query_proj(hidden) * scale
    projections = (query, attention.key_proj(hidden), attention.value_proj(hidden), relative_keys, relative_queries)
    compute = _unpadded_attention if layout.token_mask is None else _padded_attention
    return compute(projections, layout, attention.num_attention_heads, attention.dropout.p * attention.training)


Projections = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""Queries (scaled), keys, values ``[batch, length, width]``; relative keys and queries ``[2 * max_length - 1, width]``,
each None if the model has none."""


def _relative_projections(
    attention: Any, layout: BatchLayout, relative: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor | None]:
    """Relative keys and queries of every distance, ``[2 * max_length - 1, width]``.

    Keys from distance ``max_length - 1`` down to ``-(max_length - 1)``, queries the other way round and scaled. Only
    rows that some distance needs are projected, each once.
    """
    if layout.buckets is None or relative is None:
        return None, None
    rows = attention.pos_dropout(relative[layout.first_row : layout.last_row + 1])
    keys = queries = None
    if "c2p" in attention.pos_att_type:
        project = attention.key_proj if attention.share_att_key else attention.pos_key_proj
        keys = project(rows)[layout.buckets.flip(0)]
    if "p2c" in attention.pos_att_type:
        project = attention.query_proj if attention.share_att_key else attention.pos_query_proj
        queries = (project(rows) * scale)[layout.buckets]
    return keys, queries


def _skew(products: Tensor) -> Tensor:
    """Of products of b rows with L + b - 1 distances, those of each row's own: a view ``[n, b, L]``, no copy.

    Element (i, j) is element (i, j - i + b - 1) of ``products``, which must be contiguous, ``[n, b, L + b - 1]``. The
    trick is known from the Music Transformer (Huang et al., ICLR 2019).
    """
    count, rows, distances = products.shape
    if rows == 1:
        return products
    flat = products.view(count, rows * distances)
    return flat[:, rows - 1 : -1].unflatten(1, (rows, distances - 1))[:, :, : distances - rows + 1]


def _padded_attention(projections: Projections, layout: BatchLayout, heads: int, dropout: float) -> Tensor:
    """Attention for GPUs: all heads of a padded batch at once, in operations that autograd knows.

    Checked on CPUs against :func:`_unpadded_attention`; not run on a GPU yet.
    """
    assert layout.token_mask is not None
    relative_keys, relative_queries = projections[3:]
    batch, length, width = projections[0].shape
    query, key, value = (x.view(batch, length, heads, -1).transpose(1, 2) for x in projections[:3])

    def relative_scores(rows: Tensor, relative: Tensor) -> Tensor:
        products = rows @ relative.view(2 * length - 1, heads, -1).permute(1, 2, 0)
        return _skew(products.flatten(0, 1)).unflatten(0, (batch, heads))

    bias = torch.zeros((), dtype=query.dtype, device=query.device)
    if relative_keys is not None:
        bias = bias + relative_scores(query, relative_keys)
    if relative_queries is not None:
        bias = bias + relative_scores(key, relative_queries).transpose(-1, -2)
    padding = ~layout.token_mask[:, None, None, :]
    bias = bias.expand(batch, heads, length, length).masked_fill(padding, torch.finfo(query.dtype).min)
    context = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0
    )
    return context.transpose(1, 2).reshape(batch, length, width)


def _unpadded_attention(projections: Projections, layout: BatchLayout, heads: int, dropout: float) -> Tensor:
    """Attention for CPUs: sequence after sequence, a few heads at a time.

    Half precision is computed in float32 and rounded at the end, but bfloat16 as it is where the processor has matrix
    units for it.
    """
    query = projections[0]
    dtype = query.dtype
    if dtype is not torch.bfloat16 or not dense.multiplies_bf16():
        dtype = torch.promote_types(dtype, torch.float32)
    by_head = [None if x is None else _by_head(x.reshape(-1, query.shape[-1]), heads, dtype) for x in projections]
    masks = DropoutMasks.seeded(dropout) if dropout > 0 else None
    with torch.autocast("cpu", enabled=False):
        context: Tensor = _AttentionFunction.apply(*by_head, layout, masks)
    return context.transpose(0, 1).reshape(query.shape).to(query.dtype)


def _by_head(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """``[rows, width]`` -> ``[heads, rows, width / heads]``, contiguous."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(0, 1).to(dtype).contiguous()


class _AttentionFunction(torch.autograd.Function):
    """Disentangled attention of sequences that lie end to end, and its gradient.

    All arguments are by head: queries (scaled), keys and values ``[heads, tokens, d]``, relative keys and queries
    ``[heads, 2 * max_length - 1, d]``.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        relative_keys: Tensor | None,
        relative_queries: Tensor | None,
        layout: BatchLayout,
        masks: DropoutMasks | None,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        context = torch.empty_like(value)
        saved: list[Tensor | None] = []
        for segment, heads in _blocks(layout, len(query), dense.uses_onednn(query)):
            q, k, v = (x[heads, segment.rows] for x in (query, key, value))
            own_keys, own_queries = _own_distances((relative_keys, relative_queries), heads, segment, layout)
            scores = _scores(q, k, own_keys, own_queries)
            if segment.padding is not None:
                scores.masked_fill_(segment.padding, torch.finfo(scores.dtype).min)
            probabilities = torch.softmax(scores, dim=-1)
            mask = None if masks is None else masks.draw(probabilities.shape)
            if keep:
                saved += [probabilities, mask]
            if masks is not None and mask is not None:
                probabilities = dense.apply_mask(probabilities, mask, masks.scale)
            context[heads, segment.rows] = _product(probabilities, v)
        if keep:
            ctx.save_for_backward(query, key, value, relative_keys, relative_queries, *saved)
            ctx.layout = layout
            ctx.scale = None if masks is None else masks.scale
        return context

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        query, key, value, relative_keys, relative_queries, *saved = ctx.saved_tensors
        layout: BatchLayout = ctx.layout
        grad_output = grad_output.contiguous()
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        relative = (relative_keys, relative_queries)
        # Many products are added up in these, too many for half precision.
        grad_relative = [
            None if x is None else torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
            for x in relative
        ]
        zeros: dict[torch.Size, Tensor] = {}
        for number, (segment, heads) in enumerate(_blocks(layout, len(query), dense.uses_onednn(query))):
            if heads.start == 0:
                zeros.clear()  # another sequence, as a rule of another length
            probabilities, mask = saved[2 * number : 2 * number + 2]
            q, k, v, grad = (x[heads, segment.rows] for x in (query, key, value, grad_output))
            grad_probabilities = _product(grad, v.transpose(1, 2))
            dropped = probabilities
            if mask is not None:
                grad_probabilities = dense.apply_mask(grad_probabilities, mask, ctx.scale)
                dropped = dense.apply_mask(probabilities, mask, ctx.scale)
            grad_value[heads, segment.rows] = _product_over_rows(dropped, grad)
            grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
            grad_q = _product(grad_scores, k)
            grad_k = _product_over_rows(grad_scores, q)
            own_keys, own_queries = _own_distances(relative, heads, segment, layout)
            grad_own_keys, grad_own_queries = _own_distances(grad_relative, heads, segment, layout)
            _add_relative_gradients(grad_scores, q, own_keys, (grad_q, grad_own_keys), zeros)
            _add_relative_gradients(grad_scores.transpose(1, 2), k, own_queries, (grad_k, grad_own_queries), zeros)
            grad_query[heads, segment.rows] = grad_q
            grad_key[heads, segment.rows] = grad_k
        return grad_query, grad_key, grad_value, *grad_relative, None, None


def _blocks(layout: BatchLayout, heads: int, onednn: bool) -> list[tuple[Segment, slice]]:
    """Which heads of which sequence are computed together: all of a short sequence, single ones of a long sequence."""
    blocks = []
    for segment in layout.segments:
        single = onednn and segment.length >= MIN_LENGTH_SINGLE_HEADS
        count = 1 if single else max(1, min(heads, MAX_SCORES // segment.length**2))
        blocks += [(segment, slice(first, min(first + count, heads))) for first in range(0, heads, count)]
    return blocks


def _own_distances(
    relative: Sequence[Tensor | None], heads: slice, segment: Segment, layout: BatchLayout
) -> list[Tensor | None]:
    """Of relative keys and queries those of the distances in one sequence: views ``[heads, 2 * length - 1, d]``."""
    beyond = layout.max_length - segment.length
    return [None if x is None else x[heads, beyond : beyond + 2 * segment.length - 1] for x in relative]


def _scores(q: Tensor, k: Tensor, relative_keys: Tensor | None, relative_queries: Tensor | None) -> Tensor:
    """The scores ``[n, L, L]`` of ``q`` and ``k`` ``[n, L, d]`` with their relative vectors ``[n, 2L-1, d]``."""
    scores = _product(q, k.transpose(1, 2))
    for block, distances in _row_blocks(q):
        # No name for the products: they are freed before the next ones are made, which stay in the cache then.
        if relative_keys is not None:
            scores[:, block] += _relative_products(q[:, block], relative_keys[:, distances])
        if relative_queries is not None:
            scores[:, :, block] += _transposed(_relative_products(k[:, block], relative_queries[:, distances]))
    return scores


def _relative_products(rows: Tensor, relative: Tensor) -> Tensor:
    """Products of b rows ``[n, b, d]`` with their relative vectors ``[n, L + b - 1, d]``: ``[n, b, L]``."""
    return _skew(_product(rows, relative.transpose(1, 2)))


def _transposed(products: Tensor) -> Tensor:
    """``[n, a, b]`` -> ``[n, b, a]``, for a sum: in bfloat16 that of a view is slow, a copy is not."""
    transposed = products.transpose(1, 2)
    return transposed.contiguous() if products.dtype is torch.bfloat16 else transposed


def _add_relative_gradients(
    grad_scores: Tensor,
    rows: Tensor,
    relative: Tensor | None,
    gradients: tuple[Tensor, Tensor | None],
    zeros: dict[torch.Size, Tensor],
) -> None:
    """The gradient of :func:`_relative_products`, added to ``gradients`` of rows and of relative vectors.

    ``zeros`` keeps matrices for :func:`_skew`, by their shape: what its view does not cover is 0 and stays 0.
    """
    grad_rows, grad_relative = gradients
    if relative is None or grad_relative is None:
        return
    for block, distances in _row_blocks(rows):
        shape = torch.Size((len(rows), block.stop - block.start, distances.stop - distances.start))
        skewed = zeros.get(shape)
        if skewed is None:
            skewed = zeros[shape] = grad_scores.new_zeros(shape)
        _skew(skewed).copy_(grad_scores[:, block])
        grad_rows[:, block] += _product(skewed, relative[:, distances])
        grad_relative[:, distances] += _product_over_rows(skewed, rows[:, block])


def _row_blocks(rows: Tensor) -> list[tuple[slice, slice]]:
    """Blocks of rows of ``[n, length, d]``, and for each the distances (of ``2 * length - 1``) that it needs."""
    length = rows.shape[1]
    by_mkl = rows.dtype is torch.float32 and not dense.uses_onednn(rows)
    size = math.ceil(length / math.ceil(length / (MAX_ROWS_MKL if by_mkl else MAX_ROWS)))
    blocks = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    return [(block, slice(length - block.stop, 2 * length - 1 - block.start)) for block in blocks]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of ``[n, a, b]`` and ``[n, b, c]``; ``right`` or its transpose contiguous in each of the n."""
    if len(left) == 1 and dense.uses_onednn(left):
        return fast_linear(left[0], right[0].t()).unsqueeze(0)
    return torch.bmm(left, right)


def _product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ @ right`` of ``[n, a, b]``, contiguous, and ``[n, a, c]``, the smaller one."""
    if len(left) == 1 and dense.uses_onednn(left):
        # oneDNN copies a first factor that is not contiguous, so the smaller one is first; the result is transposed.
        return fast_linear(right[0].t(), left[0].t()).t().unsqueeze(0)
    return torch.bmm(left.transpose(1, 2), right)

"""DeBERTa-v2 and v3 (transformers' ``DebertaV2Model``), computed faster with the same results.

The disentangled attention of DeBERTa (He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR
2021; v3: He, Gao & Chen, 2021) adds two matrices to the usual scores, for queries i and keys j at distance i - j:

    score(i, j) = ( Qᵢ·Kⱼ + Qᵢ·Kr(i - j) + Kⱼ·Qr(i - j) ) / sqrt(d * terms)

transformers multiplies with all relative keys Kr and then gathers what belongs to each (i, j), twice, for all heads at
once; most of its time goes into tensors of size heads x length x length. Here

- relative keys stand in the order of distances L-1 ... -(L-1), so that row i of Q Krᵀ, shape ``[L, 2L-1]``, holds what
  belongs to keys 0 ... L-1 in consecutive places, one place earlier in each next row. Read with strides (2L-2, 1) from
  place L-1 it *is* the content-to-position matrix. Relative queries stand in the order -(L-1) ... L-1, and K Qrᵀ read
  the same way and transposed is the position-to-content matrix. Nothing is gathered. In the gradient the same view, of
  a matrix of zeros, is written instead of read;
- scores exist for a few heads of one sequence at a time, so that they stay in the processor's cache; only the
  probabilities are kept for the gradient;
- only real tokens are computed: sequences lie end to end, without padding, through all layers. **The last hidden state
  is 0 at padding**, where transformers has numbers without meaning;
- linear layers and dropout are those of :mod:`prefcli.encoders.dense`.

:func:`accelerate` swaps the classes of the modules in question. Parameters and their names stay transformers' own.
What is not foreseen here (attention maps asked for, masks for each query) goes through transformers' code as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2 import modeling_deberta_v2 as original

from prefcli.encoders import dense
from prefcli.encoders.dense import DropoutMasks, fast_linear

SCORES_AT_ONCE = 2**19
"""Elements of the scores (heads x length x length) that are computed at once: 2 MB, about a core's cache."""

ROWS_AT_ONCE = 256
"""Queries (or keys) that are multiplied with relative ones at once. A block of b of L needs L + b - 1 distances."""

SINGLE_HEADS_FROM = 160
"""From this length on heads are computed one by one where oneDNN is the faster one: it has no batched product here."""

PROBE_TOKENS = 9
PROBE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Span:
    """One sequence among the tokens of a batch that lie end to end."""

    start: int
    length: int
    hidden_keys: Tensor | None = None
    """``[length]``, True for padding between real tokens; None (as a rule) where there is none."""

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class Layout:
    """How the tokens of a batch lie, and their distances: what layers are given in place of an attention mask."""

    spans: tuple[Span, ...]
    """Sequences of tokens that lie end to end."""
    longest: int
    buckets: Tensor | None
    """``[2 * longest - 1]``: the bucket (row of the relative embeddings, from ``lowest``) of each distance i - j,
    ascending from ``-(longest - 1)``. None without relative attention."""
    lowest: int = 0
    highest: int = 0
    """First and last row of the relative embeddings that any distance here needs."""
    places: Tensor | None = None
    """``[tokens]``: where they stand in the padded batch; None where they are all of it, in order."""
    between: Tensor | None = None
    """``[tokens]``, True for padding between real tokens; None (as a rule) where there is none."""
    padded_mask: Tensor | None = None
    """``[batch, length]``: set where the batch stays padded (GPUs); ``spans`` is empty then."""


def accelerate(encoder: nn.Module, *, batched: bool | None = None) -> str | None:
    """Make a DeBERTa-v2 or v3 encoder faster, in place.

    Parameters
    ----------
    encoder:
        A ``DebertaV2Model``. Its state dict keeps its keys and tensors.
    batched:
        Compute whole padded batches, as a GPU likes it, instead of sequence after sequence; by default decided by the
        device.

    Returns
    -------
    None if done, otherwise in words why not; the encoder is untouched then.
    """
    if not isinstance(encoder, original.DebertaV2Model):
        return f"it is not transformers' DeBERTa-v2 or v3 but {type(encoder).__name__}"
    stack = encoder.encoder
    attentions = [module for module in stack.modules() if isinstance(module, original.DisentangledSelfAttention)]
    if isinstance(stack, Encoder):
        stack.batched = batched
        return None
    if type(stack) is not original.DebertaV2Encoder or len(attentions) != len(stack.layer):
        return "its layers are not transformers' own"
    if any(type(attention) is not original.DisentangledSelfAttention for attention in attentions):
        return "its attention is not transformers' own"
    try:
        error = _probe(stack, attentions[0])
    except Exception as problem:  # another release of transformers may have moved anything
        return f"this release of transformers computes DeBERTa in another way ({type(problem).__name__}: {problem})"
    if not error < PROBE_TOLERANCE:
        return f"this release of transformers computes DeBERTa in another way (results differ by {error:.1g})"
    stack.__class__ = Encoder
    stack.batched = batched
    for attention in attentions:
        attention.__class__ = SelfAttention
    dense.accelerate(encoder)
    return None


def restore(encoder: nn.Module) -> None:
    """Undo :func:`accelerate`: the encoder is computed by transformers' code again."""
    for module in encoder.modules():
        if isinstance(module, Encoder):
            del module.batched
            module.__class__ = original.DebertaV2Encoder
        elif isinstance(module, SelfAttention):
            module.__class__ = original.DisentangledSelfAttention
    dense.restore(encoder)


def is_accelerated(encoder: nn.Module) -> bool:
    """Whether :func:`accelerate` has been at work."""
    return any(isinstance(module, Encoder) for module in encoder.modules())


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
        spans = (Span(0, PROBE_TOKENS),)
        layout = Layout(spans, PROBE_TOKENS, *_buckets(stack, attention, PROBE_TOKENS, hidden.device))
        got = _attend(attention, hidden, layout, relative)
    finally:
        attention.train(training)
    # Half precision rounds at 1e-3 by itself.
    slack = 1.0 if weight.dtype in (torch.float32, torch.float64) else 0.01
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) * slack


class Encoder(original.DebertaV2Encoder):
    """transformers' stack of layers, given only real tokens."""

    batched: bool | None

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
                hidden_states,
                attention_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                query_states=query_states,
                relative_pos=relative_pos,
                return_dict=return_dict,
            )
        batched = hidden_states.device.type != "cpu" if self.batched is None else self.batched
        tokens, layout = self._unpadded(hidden_states, attention_mask, batched)
        relative = self.get_rel_embedding()
        shape = hidden_states.shape
        everything = [hidden_states]
        for number, layer in enumerate(self.layer):
            tokens, _ = layer(tokens, layout, relative_pos=None, rel_embeddings=relative, output_attentions=False)
            if number == 0 and self.conv is not None:
                # The convolution looks at the input's padding as well, so it is given the padded batch.
                tokens = _taken(self.conv(hidden_states, _padded(tokens, layout, shape), attention_mask), layout)
            if output_hidden_states or number == len(self.layer) - 1:
                everything.append(_padded(tokens, layout, shape))
        hidden = tuple(everything) if output_hidden_states else None
        if not return_dict:
            return tuple(value for value in (everything[-1], hidden) if value is not None)
        return BaseModelOutput(last_hidden_state=everything[-1], hidden_states=hidden)

    def _unpadded(self, hidden: Tensor, mask: Tensor, batched: bool) -> tuple[Tensor, Layout]:
        """The tokens as layers get them, and how they lie."""
        length = hidden.shape[1]
        attention = self.layer[0].attention.self
        if batched:
            return hidden, Layout(
                (), length, *_buckets(self, attention, length, hidden.device), padded_mask=mask.bool()
            )
        real = mask.bool().cpu()
        spans: list[Span] = []
        places, between, start = [], [], 0
        for i, row in enumerate(real):
            found = row.nonzero().flatten()
            if not len(found):
                continue
            first, last = int(found[0]), int(found[-1])
            padding = ~row[first : last + 1]
            spans.append(Span(start, len(padding), padding.to(hidden.device) if bool(padding.any()) else None))
            places.append(torch.arange(i * length + first, i * length + last + 1))
            between.append(padding)
            start += len(padding)
        longest = max((span.length for span in spans), default=1)
        layout = Layout(
            tuple(spans),
            longest,
            *_buckets(self, attention, longest, hidden.device),
            places=None
            if bool(real.all())
            else torch.cat([*places, torch.empty(0, dtype=torch.long)]).to(hidden.device),
            between=torch.cat(between).to(hidden.device) if any(s.hidden_keys is not None for s in spans) else None,
        )
        return _taken(hidden, layout), layout


def _taken(hidden: Tensor, layout: Layout) -> Tensor:
    """From a padded batch the tokens end to end, ``[1, tokens, width]``."""
    if layout.padded_mask is not None:
        return hidden
    flat = hidden.reshape(1, -1, hidden.shape[-1])
    return flat if layout.places is None else flat[:, layout.places]


def _padded(tokens: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
    """Tokens back in the padded batch; 0 at padding."""
    if layout.padded_mask is not None:
        return tokens * layout.padded_mask.unsqueeze(-1)
    if layout.places is None:
        return tokens.reshape(shape)
    tokens = tokens.squeeze(0)
    if layout.between is not None:
        tokens = tokens.masked_fill(layout.between.unsqueeze(-1), 0)
    return tokens.new_zeros(shape[0] * shape[1], shape[2]).index_copy(0, layout.places, tokens).view(shape)


def _buckets(stack: Any, attention: Any, longest: int, device: torch.device) -> tuple[Tensor | None, int, int]:
    """The rows of the relative embeddings for all distances, and the lowest and highest of them."""
    if not attention.relative_attention:
        return None, 0, 0
    distances = torch.arange(-(longest - 1), longest)
    if stack.position_buckets > 0 and stack.max_relative_positions > 0:
        distances = original.make_log_bucket_position(distances, stack.position_buckets, stack.max_relative_positions)
    span = attention.pos_ebd_size
    rows = (distances.to(torch.long) + span).clamp(0, 2 * span - 1)
    lowest, highest = int(rows[0]), int(rows[-1])
    return (rows - lowest).to(device), lowest, highest


class SelfAttention(original.DisentangledSelfAttention):
    """transformers' attention, computed by this module when its encoder gives it a :class:`Layout`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | Layout,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(attention_mask, Layout):
            return _attend(self, hidden_states, attention_mask, rel_embeddings), None
        result: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
        )
        return result


def _attend(attention: Any, hidden: Tensor, layout: Layout, relative: Tensor | None) -> Tensor:
    """What ``attention`` makes of hidden states ``[batch, length, width]`` (batch 1 where tokens lie end to end)."""
    terms = 1 + ("c2p" in attention.pos_att_type) + ("p2c" in attention.pos_att_type)
    scale = 1 / math.sqrt(attention.attention_head_size * terms)
    # Scaled here, where they are small, instead of the scores. The relative keys meet the scaled queries.
    query = attention.query_proj(hidden) * scale
    key = attention.key_proj(hidden)
    value = attention.value_proj(hidden)
    relative_keys, relative_queries = _relative(attention, layout, relative, scale)
    dropout = attention.dropout.p if attention.training else 0.0
    compute = _end_to_end if layout.padded_mask is None else _whole_batch
    return compute(query, key, value, relative_keys, relative_queries, layout, attention.num_attention_heads, dropout)


def _relative(
    attention: Any, layout: Layout, relative: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor | None]:
    """Relative keys and queries of every distance, ``[2 * longest - 1, width]``.

    Keys from the farthest distance ahead (``longest - 1``) down to ``-(longest - 1)``, queries the other way round and
    scaled. Only rows that some distance needs are projected, each once.
    """
    if layout.buckets is None or relative is None:
        return None, None
    rows = attention.pos_dropout(relative[layout.lowest : layout.highest + 1])
    keys = queries = None
    if "c2p" in attention.pos_att_type:
        project = attention.key_proj if attention.share_att_key else attention.pos_key_proj
        keys = project(rows)[layout.buckets.flip(0)]
    if "p2c" in attention.pos_att_type:
        project = attention.query_proj if attention.share_att_key else attention.pos_query_proj
        queries = (project(rows) * scale)[layout.buckets]
    return keys, queries


def _sheared(products: Tensor) -> Tensor:
    """Of products of b rows with L + b - 1 distances, those of each row's own: a view ``[n, b, L]``, no copy.

    Element (i, j) is element (i, j - i + b - 1) of ``products``, which must be contiguous, ``[n, b, L + b - 1]``.
    """
    count, rows, distances = products.shape
    if rows == 1:
        return products
    flat = products.view(count, rows * distances)
    return flat[:, rows - 1 : -1].unflatten(1, (rows, distances - 1))[:, :, : distances - rows + 1]


def _whole_batch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative_keys: Tensor | None,
    relative_queries: Tensor | None,
    layout: Layout,
    heads: int,
    dropout: float,
) -> Tensor:
    """Attention for GPUs: all heads of a padded batch at once, in operations that autograd knows.

    Checked on CPUs against the other way; not run on a GPU yet.
    """
    assert layout.padded_mask is not None
    batch, length, width = query.shape
    query, key, value = (x.view(batch, length, heads, -1).transpose(1, 2) for x in (query, key, value))
    bias = torch.zeros((), dtype=query.dtype, device=query.device)
    if relative_keys is not None:
        products = query @ relative_keys.view(2 * length - 1, heads, -1).permute(1, 2, 0)
        bias = bias + _sheared(products.flatten(0, 1)).unflatten(0, (batch, heads))
    if relative_queries is not None:
        products = key @ relative_queries.view(2 * length - 1, heads, -1).permute(1, 2, 0)
        bias = bias + _sheared(products.flatten(0, 1)).unflatten(0, (batch, heads)).transpose(-1, -2)
    padding = ~layout.padded_mask[:, None, None, :]
    bias = bias.expand(batch, heads, length, length).masked_fill(padding, torch.finfo(query.dtype).min)
    context = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0
    )
    return context.transpose(1, 2).reshape(batch, length, width)


def _end_to_end(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative_keys: Tensor | None,
    relative_queries: Tensor | None,
    layout: Layout,
    heads: int,
    dropout: float,
) -> Tensor:
    """Attention for CPUs: sequence after sequence, a few heads at a time.

    Half precision is computed in float32, of which a CPU has fast products, and rounded at the end.
    """
    kind = query.dtype
    width = query.shape[-1]
    by_head = [
        None if x is None else _by_head(x.reshape(-1, width), heads)
        for x in (query, key, value, relative_keys, relative_queries)
    ]
    stream = DropoutMasks.seeded(dropout) if dropout > 0 else None
    context: Tensor = _Attention.apply(*by_head, layout, stream)
    return context.transpose(0, 1).reshape(query.shape).to(kind)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """``[rows, width]`` -> ``[heads, rows, width / heads]``, contiguous, at least float32."""
    split = x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(0, 1)
    return split.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


class _Attention(torch.autograd.Function):
    """Disentangled attention of sequences that lie end to end, and its gradient.

    All arguments are by head: queries (scaled), keys and values ``[heads, tokens, d]``, relative keys and queries
    ``[heads, 2 * longest - 1, d]``.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        relative_keys: Tensor | None,
        relative_queries: Tensor | None,
        layout: Layout,
        stream: DropoutMasks | None,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        context = torch.empty_like(value)
        kept: list[Tensor | None] = []
        for span, some in _blocks(layout, len(query), dense.suits_onednn(query)):
            q, k, v = (x[some, span.rows] for x in (query, key, value))
            scores = _scores(q, k, _own(relative_keys, some, span, layout), _own(relative_queries, some, span, layout))
            if span.hidden_keys is not None:
                scores.masked_fill_(span.hidden_keys, torch.finfo(scores.dtype).min)
            probabilities = torch.softmax(scores, dim=-1)
            tossed = None
            if stream is not None:
                tossed = stream.kept(probabilities.shape)
            if keep:
                kept.append(probabilities)
                kept.append(tossed)
            if stream is not None and tossed is not None:
                probabilities = dense.drop(probabilities, tossed, stream.scale)
            context[some, span.rows] = _product(probabilities, v)
        if keep:
            ctx.save_for_backward(query, key, value, relative_keys, relative_queries, *kept)
            ctx.layout = layout
            ctx.scale = None if stream is None else stream.scale
        return context

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        query, key, value, relative_keys, relative_queries, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        gradient = gradient.contiguous()
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        of_keys = None if relative_keys is None else torch.zeros_like(relative_keys)
        of_queries = None if relative_queries is None else torch.zeros_like(relative_queries)
        for number, (span, some) in enumerate(_blocks(layout, len(query), dense.suits_onednn(query))):
            probabilities, tossed = kept[2 * number : 2 * number + 2]
            q, k, v, g = (x[some, span.rows] for x in (query, key, value, gradient))
            of_probabilities = _product(g, v.transpose(1, 2))
            dropped = probabilities
            if tossed is not None:
                of_probabilities = dense.drop(of_probabilities, tossed, ctx.scale)
                dropped = dense.drop(probabilities, tossed, ctx.scale)
            of_value[some, span.rows] = _product_over_rows(dropped, g)
            scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
            of_q = _product(scores, k)
            of_k = _product_over_rows(scores, q)
            if relative_keys is not None:
                own, of_own = (_own(x, some, span, layout) for x in (relative_keys, of_keys))
                _relative_gradients(scores, q, own, of_q, of_own)
            if relative_queries is not None:
                own, of_own = (_own(x, some, span, layout) for x in (relative_queries, of_queries))
                _relative_gradients(scores.transpose(1, 2), k, own, of_k, of_own)
            of_query[some, span.rows] = of_q
            of_key[some, span.rows] = of_k
        return of_query, of_key, of_value, of_keys, of_queries, None, None


def _blocks(layout: Layout, heads: int, onednn: bool) -> list[tuple[Span, slice]]:
    """Which heads of which sequence are computed together: short sequences' heads all at once, long ones' singly."""
    blocks = []
    for span in layout.spans:
        single = onednn and span.length >= SINGLE_HEADS_FROM
        at_once = 1 if single else max(1, min(heads, SCORES_AT_ONCE // span.length**2))
        blocks += [(span, slice(first, min(first + at_once, heads))) for first in range(0, heads, at_once)]
    return blocks


def _own(relative: Tensor | None, heads: slice, span: Span, layout: Layout) -> Any:
    """The relative keys or queries of the distances in one sequence: a view ``[heads, 2 * length - 1, d]``."""
    if relative is None:
        return None
    beyond = layout.longest - span.length
    return relative[heads, beyond : beyond + 2 * span.length - 1]


def _scores(query: Tensor, key: Tensor, relative_keys: Tensor | None, relative_queries: Tensor | None) -> Tensor:
    """Scores ``[heads, L, L]`` of queries (scaled) and keys ``[heads, L, d]``."""
    scores = _product(query, key.transpose(1, 2))
    if relative_keys is not None:
        _add_relative(scores, query, relative_keys)
    if relative_queries is not None:
        _add_relative(scores.transpose(1, 2), key, relative_queries)
    return scores


def _add_relative(scores: Tensor, rows: Tensor, relative: Tensor) -> None:
    """Add the products of ``rows`` ``[n, L, d]`` with their relative vectors ``[n, 2L-1, d]`` to ``scores``."""
    for block, distances in _row_blocks(rows.shape[1]):
        scores[:, block] += _sheared(_product(rows[:, block], relative[:, distances].transpose(1, 2)))


def _relative_gradients(
    of_scores: Tensor, rows: Tensor, relative: Tensor, of_rows: Tensor, of_relative: Tensor
) -> None:
    """The gradient of :func:`_add_relative`, added to ``of_rows`` and ``of_relative``."""
    spread = None
    for block, distances in _row_blocks(rows.shape[1]):
        count, wide = block.stop - block.start, distances.stop - distances.start
        if spread is None or spread.shape[1] != count:
            # What the view does not cover is 0 and stays 0.
            spread = of_scores.new_zeros(len(rows), count, wide)
        _sheared(spread).copy_(of_scores[:, block])
        of_rows[:, block] += _product(spread, relative[:, distances])
        of_relative[:, distances] += _product_over_rows(spread, rows[:, block])


def _row_blocks(length: int) -> list[tuple[slice, slice]]:
    """Blocks of rows, and for each the distances (of ``2 * length - 1``) that it needs."""
    equal = math.ceil(length / math.ceil(length / ROWS_AT_ONCE))
    blocks = [slice(start, min(start + equal, length)) for start in range(0, length, equal)]
    return [(block, slice(length - block.stop, 2 * length - 1 - block.start)) for block in blocks]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of ``[n, a, b]`` and ``[n, b, c]``; ``right`` or its transpose contiguous in each of the n."""
    if len(left) == 1 and dense.suits_onednn(left):
        return fast_linear(left[0], right[0].t()).unsqueeze(0)
    return torch.bmm(left, right)


def _product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ @ right`` of ``[n, a, b]``, contiguous, and ``[n, a, c]``, the latter the small one."""
    if len(left) == 1 and dense.suits_onednn(left):
        # oneDNN copies a first factor that is not contiguous, so that is the small one; the result comes transposed.
        return fast_linear(right[0].t(), left[0].t()).t().unsqueeze(0)
    return torch.bmm(left.transpose(1, 2), right)

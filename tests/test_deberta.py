"""DeBERTa computed by prefcli against transformers' own module: outputs, gradients, and everything around them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2Model

from prefcli.compute import memory
from prefcli.encoders import deberta, dense

BASE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "max_relative_positions": -1, "position_biased_input": False,
    "type_vocab_size": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "no relative terms": {"pos_att_type": []},
    "only c2p": {"pos_att_type": ["c2p"]},
    "only p2c": {"pos_att_type": ["p2c"]},
    "own relative projections": {"share_att_key": False},
    "own projections, only c2p": {"share_att_key": False, "pos_att_type": ["c2p"]},
    "own projections, only p2c": {"share_att_key": False, "pos_att_type": ["p2c"]},
    "no buckets": {"position_buckets": -1},
    "distances beyond the largest": {"position_buckets": -1, "max_relative_positions": 5},
    "buckets, few distances": {"position_buckets": 6, "max_relative_positions": 11},
    "no relative attention": {"relative_attention": False, "position_biased_input": True},
    "relative embeddings as they are": {"norm_rel_ebd": "none"},
    "positions at the input": {"position_biased_input": True},
    "token types": {"type_vocab_size": 2},
    "convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "narrow embeddings": {"embedding_size": 16},
    "pieces as text": {"pos_att_type": "c2p|p2c"},
}
PADDINGS = ("none", "right", "left", "middle", "mixed")


def pair(dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, Any]:
    """The same encoder twice: as transformers computes it, and accelerated."""
    torch.manual_seed(1)
    reference = DebertaV2Model(DebertaV2Config(**(BASE | settings))).to(dtype)
    with torch.no_grad():
        for parameter in reference.parameters():
            # Away from the initial 0.02, at which attention is flat and every mistake in it invisible.
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2))
    fast = copy.deepcopy(reference)
    assert deberta.accelerate(fast) is None
    return reference, fast


def batch(padding: str, size: int = 4, length: int = 13) -> tuple[Tensor, Tensor]:
    """Token ids and mask."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 50, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, size):
        count = min(2 * row, length - 1)
        kind = ("right", "left", "middle")[row % 3] if padding == "mixed" else padding
        if kind == "right":
            mask[row, length - count :] = 0
        elif kind == "left":
            mask[row, :count] = 0
        elif kind == "middle":
            mask[row, 2 : 2 + min(count, length - 3)] = 0
    return ids * mask, mask


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((got - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-30))


def assert_equal(
    reference: Any, fast: Any, ids: Tensor, mask: Tensor, limits: tuple[float, float], **more: Any
) -> None:
    """Outputs at real tokens and the gradient of every parameter, of a loss that weighs all of them."""
    weights = torch.randn(*ids.shape, reference.config.hidden_size, generator=torch.Generator().manual_seed(7))
    weights = weights.to(next(reference.parameters()).dtype) * mask.unsqueeze(-1)
    outputs = []
    for module in (reference, fast):
        module.zero_grad()
        hidden = module(input_ids=ids, attention_mask=mask, **more).last_hidden_state
        assert hidden.shape == weights.shape
        (hidden * weights).sum().backward()
        outputs.append(hidden * mask.unsqueeze(-1))
    assert difference(outputs[1], outputs[0]) < limits[0]
    largest = max(float(p.grad.abs().max()) for p in reference.parameters() if p.grad is not None)
    for (name, slow), quick in zip(reference.named_parameters(), fast.parameters(), strict=True):
        assert (slow.grad is None) == (quick.grad is None), name
        if slow.grad is not None:
            # The gradients of some biases are 0 but for rounding.
            scale = max(float(slow.grad.abs().max()), 1e-3 * largest)
            assert float((slow.grad - quick.grad).abs().max()) < limits[1] * scale, name


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both libraries for matrix products, whatever this processor prefers."""
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(dense, "onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(dense, "MIN_ROWS", 1)
    monkeypatch.setattr(deberta, "MIN_LENGTH_SINGLE_HEADS", 10)
    return bool(request.param)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_are_those_of_transformers(variant: str) -> None:
    for padding in ("none", "mixed"):
        reference, fast = pair(torch.float64, **VARIANTS[variant])
        ids, mask = batch(padding)
        # transformers rounds its scale to float32.
        assert_equal(reference, fast, ids, mask, (1e-6, 1e-6))


@pytest.mark.parametrize("variant", ["v3", "own relative projections", "no buckets", "no relative attention"])
def test_whole_batches_give_the_same(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr(deberta, "UNPADDED_DEVICES", ())
    reference, fast = pair(torch.float64, **VARIANTS[variant])
    assert_equal(reference, fast, *batch("mixed"), (1e-6, 1e-6))
    assert_equal(reference, fast, *batch("none", length=1), (1e-6, 1e-6))


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_may_stand_anywhere(padding: str, products: bool) -> None:
    reference, fast = pair()
    assert_equal(reference, fast, *batch(padding), (1e-5, 1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 257, 512, 700])
def test_any_length(length: int, products: bool) -> None:
    """Beyond the buckets, beyond the largest relative distance, and in several blocks of rows and heads."""
    reference, fast = pair(position_buckets=64, max_position_embeddings=256)
    ids, mask = batch("mixed", size=3, length=length) if length > 3 else batch("none", size=2, length=length)
    assert_equal(reference, fast, ids, mask, (1e-5, 1e-4))


def test_the_true_v3_buckets_up_to_twice_the_trained_length() -> None:
    reference, fast = pair(position_buckets=256, max_position_embeddings=512)
    stack, attention = fast.encoder, fast.encoder.layer[0].attention.self
    for length in (1, 2, 129, 512, 1024):
        rows, first_row, _ = deberta._buckets(stack, attention, length, torch.device("cpu"))
        assert rows is not None
        matrix = reference.encoder.get_rel_pos(torch.zeros(1, length, 24))[0]
        distances = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        expected = (matrix + 256).clamp(0, 511)
        assert torch.equal(rows[distances + length - 1] + first_row, expected)


def test_small_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deberta, "MAX_ROWS", 3)
    monkeypatch.setattr(deberta, "MAX_SCORES", 2 * 13**2)
    reference, fast = pair(torch.float64)
    assert_equal(reference, fast, *batch("mixed"), (1e-6, 1e-6))


@pytest.mark.slow
def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    arguments = [torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    arguments += [torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inner = torch.tensor([False, True, False, False])
    segments = (deberta.Segment(0, 3), deberta.Segment(3, 1), deberta.Segment(4, 4, inner))
    layout = deberta.BatchLayout(segments, 4, None)

    def attention(*tensors: Tensor) -> Any:
        return deberta._AttentionFunction.apply(*tensors, layout, None)

    def with_dropout(*tensors: Tensor) -> Any:
        return deberta._AttentionFunction.apply(*tensors, layout, dense.DropoutMasks(0.3, seed=5))

    assert torch.autograd.gradcheck(attention, arguments)
    assert torch.autograd.gradcheck(with_dropout, arguments)


def test_linear_gradients(products: bool) -> None:
    torch.manual_seed(0)
    slow = nn.Linear(12, 7)
    quick = copy.deepcopy(slow)
    dense.accelerate(quick)
    x = torch.randn(12, 5, 40).permute(2, 1, 0)  # not contiguous
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, given in zip((slow, quick), inputs, strict=True):
        module(given).pow(2).sum().backward()
    assert difference(quick(x), slow(x)) < 1e-5
    for got, expected in zip(
        (inputs[1].grad, quick.weight.grad, quick.bias.grad), (inputs[0].grad, slow.weight.grad, slow.bias.grad),
        strict=True,
    ):  # fmt: skip
        assert got is not None
        assert expected is not None
        assert difference(got, expected) < 1e-5


def test_frozen_weights_get_no_gradient(products: bool) -> None:
    reference, fast = pair()
    for module in (reference, fast):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("layer.1" in name)
    assert_equal(reference, fast, *batch("right"), (1e-5, 1e-4))


def test_the_hidden_state_at_padding_is_zero() -> None:
    _, fast = pair()
    ids, mask = batch("mixed")
    hidden = fast(input_ids=ids, attention_mask=mask).last_hidden_state
    assert not hidden[mask == 0].any()


def test_a_sequence_without_tokens_changes_no_other() -> None:
    reference, fast = pair()
    ids, mask = batch("right")
    mask[2] = 0
    assert_equal(reference, fast, ids, mask, (1e-5, 1e-4))
    assert torch.isfinite(fast(input_ids=ids, attention_mask=torch.zeros_like(mask)).last_hidden_state).all()


def test_without_a_mask_and_with_inputs_as_embeddings() -> None:
    reference, fast = pair()
    ids, _ = batch("none")
    assert difference(fast(ids).last_hidden_state, reference(ids).last_hidden_state) < 1e-5
    embedded = torch.randn(24, 13, 2).permute(2, 1, 0)  # not contiguous
    results = [module(inputs_embeds=embedded).last_hidden_state for module in (reference, fast)]
    assert difference(results[1], results[0]) < 1e-5


def test_hidden_states_of_all_layers_and_tuples() -> None:
    reference, fast = pair()
    ids, mask = batch("right")
    results = [
        module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for module in (reference, fast)
    ]
    assert len(results[0]) == len(results[1]) == 3
    for expected, got in zip(*results, strict=True):
        assert difference(got * mask.unsqueeze(-1), expected * mask.unsqueeze(-1)) < 1e-5
    assert torch.equal(fast(ids, mask, return_dict=False)[0], fast(ids, mask).last_hidden_state)


def test_attention_maps_are_transformers_own() -> None:
    reference, fast = pair(attn_implementation="eager")
    ids, mask = batch("right")
    expected, got = (module(ids, mask, output_attentions=True) for module in (reference, fast))
    assert len(got.attentions) == 2
    assert difference(got.attentions[1], expected.attentions[1]) < 1e-5
    assert difference(got.last_hidden_state, expected.last_hidden_state) < 1e-5


def test_masks_for_each_query_go_through_transformers() -> None:
    reference, fast = pair()
    hidden = torch.randn(2, 9, 24)
    causal = torch.ones(2, 9, 9).tril()
    results = [module.encoder(hidden, causal).last_hidden_state for module in (reference, fast)]
    assert difference(results[1], results[0]) < 1e-5


def test_without_gradients_and_in_inference_mode() -> None:
    reference, fast = pair()
    ids, mask = batch("mixed")
    expected = reference(ids, mask).last_hidden_state * mask.unsqueeze(-1)
    with torch.no_grad():
        assert difference(fast(ids, mask).last_hidden_state, expected) < 1e-5
    with torch.inference_mode():
        assert difference(fast(ids, mask).last_hidden_state, expected) < 1e-5


@pytest.mark.parametrize(
    ("devices", "units"), [(("cpu",), False), (("cpu",), True), ((), False)], ids=["unpadded", "matrix units", "padded"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(
    dtype: torch.dtype, devices: tuple[str, ...], units: bool, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As close to float32 as transformers' own code in half precision is, with the processor's matrix units or not."""
    monkeypatch.setattr(deberta, "UNPADDED_DEVICES", devices)
    monkeypatch.setattr(dense, "multiplies_bf16", lambda: units)
    for padding in ("none", "right"):
        reference, fast = pair()
        ids, mask = batch(padding)
        exact, exact_gradients = _states_and_gradients(reference, ids, mask)
        with torch.autocast("cpu", dtype):
            slow, slow_gradients = _states_and_gradients(reference, ids, mask)
            quick, quick_gradients = _states_and_gradients(fast, ids, mask)
        assert difference(quick, exact) < 1.5 * difference(slow, exact) + 1e-3
        limit = 1.5 * difference(slow_gradients, exact_gradients) + 1e-3
        assert difference(quick_gradients, exact_gradients) < limit
        slow, quick = (module.to(dtype)(ids, mask).last_hidden_state[mask.bool()] for module in (reference, fast))
        assert quick.dtype is dtype
        assert difference(quick.float(), exact) < 1.5 * difference(slow.float(), exact) + 1e-3


def _states_and_gradients(module: nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states of real tokens, and all parameters' gradients of their sum of cosines, in float32."""
    module.zero_grad(set_to_none=True)
    hidden = module(ids, mask).last_hidden_state[mask.bool()].float()
    hidden.cos().sum().backward()
    gradients = torch.cat([p.grad.float().flatten() for p in module.parameters() if p.grad is not None])
    return hidden.detach(), gradients


def test_accelerating_a_half_precision_encoder() -> None:
    module = DebertaV2Model(DebertaV2Config(**BASE)).half()
    assert deberta.accelerate(module) is None


def test_the_state_dict_stays_transformers_own() -> None:
    reference, fast = pair()
    assert list(reference.state_dict()) == list(fast.state_dict())
    ids, mask = batch("right")
    fresh = DebertaV2Model(DebertaV2Config(**BASE))
    fresh.load_state_dict(fast.state_dict())
    assert difference(fast(ids, mask)[0][mask == 1], fresh(ids, mask)[0][mask == 1]) < 1e-5
    again = DebertaV2Model(DebertaV2Config(**BASE))
    deberta.accelerate(again)
    again.load_state_dict(reference.state_dict())
    assert torch.equal(again(ids, mask)[0], fast(ids, mask)[0])


def test_a_saved_encoder_is_one_of_transformers(tmp_path: Path) -> None:
    reference, fast = pair()
    fast.save_pretrained(tmp_path)
    loaded = DebertaV2Model.from_pretrained(tmp_path)
    ids, _ = batch("none")
    assert loaded.config.architectures == ["DebertaV2Model"]
    assert torch.equal(loaded(ids)[0], reference.eval()(ids)[0])


def test_a_copy_is_accelerated_too_and_has_weights_of_its_own() -> None:
    reference, fast = pair()
    ids, mask = batch("mixed")
    twin = copy.deepcopy(fast)
    assert isinstance(twin.encoder, deberta.Encoder)
    assert torch.equal(twin(ids, mask)[0], fast(ids, mask)[0])
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert difference(twin(ids, mask)[0][mask == 1], reference(ids, mask)[0][mask == 1]) < 1e-5


def test_accelerating_twice_changes_nothing() -> None:
    _, fast = pair()
    types = [type(module) for module in fast.modules()]
    assert deberta.accelerate(fast) is None
    assert [type(module) for module in fast.modules()] == types


def test_other_encoders_are_unchanged_with_a_reason() -> None:
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    types = [type(module) for module in bert.modules()]
    assert "BertModel" in (deberta.accelerate(bert) or "")
    assert [type(module) for module in bert.modules()] == types


def test_changed_layers_are_unchanged_with_a_reason() -> None:
    class Another(type(pair()[0].encoder.layer[0].attention.self)):  # type: ignore[misc]
        pass

    module = pair()[0]
    module.encoder.layer[1].attention.self.__class__ = Another
    assert "attention" in (deberta.accelerate(module) or "")
    assert not isinstance(module.encoder, deberta.Encoder)


def test_an_incompatible_transformers_release_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of transformers that changes the definition must switch this off, not be overridden."""
    module = pair()[0]
    changed = deberta.original.scaled_size_sqrt
    monkeypatch.setattr(deberta.original, "scaled_size_sqrt", lambda x, factor: changed(x, factor) * 1.1)
    assert "another way" in (deberta.accelerate(module) or "")
    assert not isinstance(module.encoder, deberta.Encoder)
    monkeypatch.setattr(deberta.original.DisentangledSelfAttention, "transpose_for_scores", None)
    assert "another way" in (deberta.accelerate(module) or "")


def test_recomputed_activations_give_the_same_gradients() -> None:
    """With dropout: the recomputation must draw the same masks. (transformers' own fails with reentrant ones.)"""
    gradients = []
    for checkpointing in (False, True):
        _, fast = pair(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
        if checkpointing:
            fast.gradient_checkpointing_enable({"use_reentrant": False})
        fast.train()
        ids, mask = batch("mixed")
        torch.manual_seed(3)
        (fast(ids, mask).last_hidden_state ** 2).sum().backward()
        gradients.append([p.grad for p in fast.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            assert difference(recomputed, plain) < 1e-5


@pytest.mark.slow
def test_dropout_has_transformers_distribution() -> None:
    """Mean and spread of the output over many draws, at every place."""
    settings = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "num_hidden_layers": 1}
    reference, fast = pair(**settings)
    ids, mask = batch("right", size=2, length=6)
    ids, mask = ids.repeat(500, 1), mask.repeat(500, 1)
    moments = []
    for module in (reference, fast):
        module.train()
        torch.manual_seed(11)
        with torch.no_grad():
            draws = torch.cat([module(ids, mask).last_hidden_state for _ in range(4)]) * mask.repeat(4, 1).unsqueeze(-1)
        grouped = draws.view(2000, 2, 6, -1)
        moments.append((grouped.mean(dim=0), grouped.std(dim=0)))
    (mean, spread), (own_mean, own_spread) = moments
    # Standard errors of differences of means and deviations over 2,000 draws each; places of one draw are many.
    assert float((own_mean - mean).abs().max()) < 6 * float(spread.max()) * (2 / 2000) ** 0.5
    assert difference(own_spread, spread) < 0.12


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_dropout_keeps_the_right_share_and_the_mean(probability: float) -> None:
    layer = nn.Dropout(probability)
    dense.accelerate(layer)
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    dropped = layer(x)
    dropped.sum().backward()
    assert abs(float((dropped == 0).float().mean()) - probability) < 0.002
    assert float(dropped.detach().mean()) == pytest.approx(0.0 if probability == 1 else 1.0, abs=0.003)
    assert torch.equal(x.grad, dropped)  # the gradient passes where the value passed
    torch.manual_seed(0)
    assert torch.equal(layer(x), dropped)
    assert torch.equal(layer.eval()(x), x)


def test_dropout_masks_are_independent_of_each_other() -> None:
    kept = dense.DropoutMasks(0.25, seed=1).draw((400, 1000)).double()
    assert abs(float(kept.mean()) - 0.75) < 0.003
    centred = kept - kept.mean()
    for step in range(1, 9):  # four elements come from one number
        assert abs(float((centred[:, :-step] * centred[:, step:]).mean())) < 5 * 0.1875 / (400 * 990) ** 0.5
    other = dense.DropoutMasks(0.25, seed=2).draw((400, 1000)).double()
    assert abs(float(((other - other.mean()) * centred).mean())) < 5 * 0.1875 / 400_000**0.5


def test_data_parallel_ranks(tmp_path: Path) -> None:
    """One gloo process: the gradients that DistributedDataParallel hands over are those of the module itself."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        _, fast = pair()
        alone = copy.deepcopy(fast)
        ids, mask = batch("mixed")
        parallel = DistributedDataParallel(fast, find_unused_parameters=True)
        for module in (parallel, alone):
            module(input_ids=ids, attention_mask=mask).last_hidden_state.pow(2).sum().backward()
        for got, expected in zip(fast.parameters(), alone.parameters(), strict=True):
            if expected.grad is not None:
                assert difference(got.grad, expected.grad) < 1e-6
    finally:
        distributed.destroy_process_group()


def test_ten_training_steps_give_the_same_losses() -> None:
    """Ten steps of AdamW from the same weights."""
    losses: list[list[float]] = []
    for module in pair():
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        losses.append([])
        for number in range(10):
            ids, mask = batch(("right", "mixed")[number % 2], length=9)
            hidden = module(ids, mask).last_hidden_state
            loss = ((hidden - 1) ** 2 * mask.unsqueeze(-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


def test_freed_memory_can_be_kept() -> None:
    assert memory.keep_freed_memory() in (True, False)
    assert torch.ones(3_000_000).sum() == 3_000_000

"""What encoders of several families read and give is found by a trial pass, and used or refused in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch

import prefcli
from prefcli import encoders
from prefcli.battles import make_batch
from prefcli.compute import devices
from prefcli.data.synthetic import Demo
from prefcli.errors import InputError
from prefcli.models import neural, trial
from prefcli.models.batches import Pass
from prefcli.options import TrainOptions
from prefcli.storage import runs

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "faults"))

import families

MakeModel = Callable[..., neural.NeuralModel]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A model on the smallest encoder of a family."""

    def make(family: str, config: dict[str, Any] | None = None, **options: Any) -> neural.NeuralModel:
        folder = families.make_folder(tmp_path / family, family, **(config or {}))
        chosen = TrainOptions(**options)
        encoder = encoders.make_encoder(encoders.locate(str(folder)), 0, seed=0)
        tokenizer = encoders.load_tokenizer(folder)
        torch.manual_seed(0)
        return neural.build(chosen, encoder, tokenizer, chosen.max_length, devices.place("cpu", "fp32"))

    return make


def battles(count: int = 5) -> pa.RecordBatch:
    """Battles of different lengths."""
    turns = pa.list_(pa.string())
    texts = {
        "prompt": [["river mountain"] for _ in range(count)],
        "response_a": [["a clear precise answer " * (1 + number)] for number in range(count)],
        "response_b": [["vague " * (1 + 3 * number)] for number in range(count)],
    }
    return make_batch(
        {"id": pa.array(map(str, range(count))), **{name: pa.array(rows, turns) for name, rows in texts.items()}}
    )


def runs_on(encoder: Any, length: int) -> bool:
    """Whether transformers itself computes a sequence of some length."""
    ids = torch.randint(5, 300, (1, length))
    try:
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    "family",
    ["canine", "data2vec-text", "gptj", "longformer", "mpnet", "roberta-prelayernorm", "xlm-roberta-xl", "xmod"],
)
def test_the_longest_sequence_is_what_transformers_computes(make_model: MakeModel, family: str) -> None:
    model = make_model(family)
    limit = model.packing.max_length
    assert limit <= 80  # the configuration's max_position_embeddings
    assert runs_on(model.module.encoder, limit)
    assert not runs_on(model.module.encoder, limit + 1)


def test_a_shorter_sequence_than_the_longest_is_kept_as_asked(make_model: MakeModel) -> None:
    assert make_model("longformer", max_length=32).packing.max_length == 32


def test_vectors_narrower_than_the_hidden_size_are_read_as_they_are(make_model: MakeModel) -> None:
    model = make_model("opt")  # its hidden size is 32, its vectors have 16 numbers
    assert model.module.classifier.in_features == 2 * 16
    assert model.logits(battles())[0].shape == (5, 3)


def test_a_tokenizer_with_more_ids_than_the_encoder_has_rows_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"the tokenizer has ids up to \d+, and the encoder's embedding 100 rows"):
        make_model("bert", {"vocab_size": 100})


def test_a_special_token_without_a_vector_is_refused_where_a_text_holds_it(make_model: MakeModel) -> None:
    """Gemma 3's tokenizer has a token for images, of which its text models have no vector."""
    model = make_model("bert", max_length=40)
    encoder, tokenizer = model.module.encoder, model.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<image{number}>" for number in range(700)]})
    trial.check_vocabulary(encoder, tokenizer)
    model.logits(battles())
    held = battles(1).set_column(3, "prompt", pa.array([["see <image699>"]], pa.list_(pa.string())))
    assert "<image699>" in str(held.column("prompt"))
    with pytest.raises(InputError, match="the token '<image699>'"):
        model.logits(held)


@pytest.mark.parametrize("architecture", ["siamese", "cross-encoder"])
@pytest.mark.parametrize("family", ["convbert", "fnet"])
def test_encoders_that_ignore_the_mask_are_computed_without_padding(
    make_model: MakeModel, family: str, architecture: str
) -> None:
    model = make_model(family, architecture=architecture)
    assert not model.traits.ignores_padding
    assert "without padding" in model.attention
    batch = battles()
    together = model.logits(batch)[0]
    alone = np.concatenate([model.logits(batch.slice(row, 1))[0] for row in range(batch.num_rows)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    # In training, too: the loss of a padded batch has the gradient of the battles one by one.
    tokens = model.tokenise(iter([batch]))
    model.module.eval()

    def gradient(groups: list[list[int]]) -> torch.Tensor:
        model.module.zero_grad()
        for rows in groups:
            prepared: Pass = model.prepare(tokens, np.array(rows), (False,))
            model.forward(model.module, prepared).logsumexp(dim=1).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient([[0, 1, 2, 3, 4]]), gradient([[0], [1], [2], [3], [4]]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mamba", "modernbert", "xlnet"])
def test_encoders_that_respect_the_mask_are_padded(make_model: MakeModel, family: str) -> None:
    assert make_model(family, max_length=40).traits.ignores_padding


def test_token_types_do_not_look_like_padding(bert_folder: Path) -> None:
    encoder = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0)
    assert trial.try_out(encoder, 64, 0, token_type=1, find_longest=True).ignores_padding


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_adapters_of_mamba_are_in_layers_that_take_part_everywhere(make_model: MakeModel, family: str) -> None:
    model = make_model(family, max_length=40, lora_rank=2)
    assert "in 2 layers (in_proj)" in model.attention


def test_frozen_half_precision_weights_are_tried_as_they_are_trained(tmp_path: Path) -> None:
    """XLNet adds float32 positions to them, which only autocast allows."""
    folder = families.make_folder(tmp_path / "xlnet", "xlnet")
    frozen = encoders.FrozenWeights(torch.bfloat16, "none", torch.device("cpu"))
    encoder = encoders.make_encoder(encoders.ResolvedModel(folder, ""), 0, seed=0, frozen=frozen)
    assert trial.try_out(encoder, 40, 0) == trial.EncoderTraits(40, 32, ignores_padding=True)


def test_sharding_needs_an_encoder_that_ignores_padding(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="results depend on padding"):
        make_model("fnet", shard=True)


def test_bigbirds_results_do_not_depend_on_earlier_batches(make_model: MakeModel) -> None:
    """Its sparse attention (here from 28 tokens on) turns itself off at the first short sequence."""
    model = make_model("big_bird")
    assert model.module.encoder.attention_type == "original_full"


def test_an_encoder_that_never_gives_the_same_twice_is_refused(bert_folder: Path) -> None:
    encoder = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0)
    drawn = np.random.default_rng(0)
    encoder.embeddings.register_forward_hook(lambda module, inputs, output: output + drawn.random())
    with pytest.raises(InputError, match="other results at each call"):
        trial.try_out(encoder, 16, 0)


def test_an_encoder_that_gives_fewer_vectors_than_tokens_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="vectors for 8 tokens"):
        make_model("funnel", {"architectures": ["FunnelBaseModel"]})


def test_a_trial_leaves_the_random_generator_and_the_mode_alone(bert_folder: Path) -> None:
    encoder = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0).train()
    before = torch.get_rng_state()
    trial.try_out(encoder, 64, 0, find_longest=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.training


def test_running_out_of_memory_is_not_a_limit_of_the_encoder(bert_folder: Path) -> None:
    encoder = encoders.make_encoder(encoders.locate(str(bert_folder)), 0, seed=0)

    def fail_if_long(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.shape[1] > 20:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    encoder.embeddings.register_forward_hook(fail_if_long)
    with pytest.raises(RuntimeError, match="can't allocate"):
        trial.try_out(encoder, 64, 0, find_longest=True)


def test_logits_become_float64_on_the_host_only(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have no float64."""
    model = make_model("bert", max_length=40)
    steps: list[str] = []

    class OnDevice:
        def cpu(self) -> torch.Tensor:
            steps.append("cpu")
            return torch.zeros(1, 3)

    monkeypatch.setattr(neural.NeuralModel, "forward", lambda *_: OnDevice())
    assert model.compute(Pass(np.arange(1), (False,), {})).dtype == np.float64
    assert steps == ["cpu"]


@pytest.mark.parametrize(("name", "precision"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")])
def test_pytorchs_names_of_precisions_are_understood(name: str, precision: str) -> None:
    assert devices.place("cpu", name).precision == precision
    assert TrainOptions(precision=name).precision == precision


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="no precision 'fp8'"):
        devices.place("cpu", "fp8")


@pytest.mark.slow
def test_folds_try_their_encoder_out_once(demo_files: Demo, bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_out = Mock(wraps=trial.try_out)
    monkeypatch.setattr(trial, "try_out", try_out)
    options: dict[str, Any] = {"encoder": str(bert_folder), "folds": 2, "max_steps": 1, "max_length": 24}
    folder = prefcli.train(demo_files.train, output="run", **options).run
    try_out.assert_called_once()
    traits = [neural.recorded_traits(runs.read_config(folder / f"fold-{number}")) for number in (1, 2)]
    assert traits == [trial.EncoderTraits(24, 32, ignores_padding=True)] * 2

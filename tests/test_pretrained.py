"""Pretrained weights are loaded whole or refused with the names of the tensors; nothing is silently random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefcli import encoders
from prefcli.compute import devices
from prefcli.encoders import pretrained
from prefcli.errors import ModelError
from prefcli.models import neural
from prefcli.reporting import Silent
from prefcli.training import checkpoints

State = dict[str, Tensor]


class Notes(Silent):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)

    note = warn


def altered(source: Path, folder: Path, change: Callable[[State], State] = dict, **config: Any) -> Path:
    """A copy of a folder with other tensors and other entries in its configuration."""
    shutil.copytree(source, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries | config))
    return folder


def load(folder: Path, seed: int = 0, notes: Notes | None = None) -> torch.nn.Module:
    return encoders.make_encoder(encoders.locate(str(folder)), 0, seed=seed, reporter=notes or Notes())


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "config", "named"),
    [
        (without(".layer.1."), {}, "missing tensors encoder.layer.1.attention"),
        (dict, {"num_hidden_layers": 3}, "missing tensors encoder.layer.2.attention"),
        (dict, {"num_hidden_layers": 1}, "unexpected tensors encoder.layer.1.attention"),
        (dict, {"hidden_size": 16}, "embeddings.LayerNorm.bias has shape"),
        (dict, {"vocab_size": 50}, "embeddings.word_embeddings.weight has shape"),
        (dict, {"model_type": "roberta"}, "model_type is roberta, and the weights are those of a BertModel"),
        (dict, {"model_type": "distilbert", "architectures": None}, "missing tensors transformer.layer.0"),
        (lambda state: state | {"adapter.weight": torch.ones(2)}, {}, "unexpected tensors adapter.weight"),
        (prefixed("backbone."), {}, "missing tensors embeddings"),
        (lambda state: prefixed("module.")(without(".layer.1.")(state)), {}, "missing tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_their_names(
    bert_folder: Path, tmp_path: Path, change: Callable[[State], State], config: dict[str, Any], named: str
) -> None:
    folder = altered(bert_folder, tmp_path / "altered", change, **config)
    with pytest.raises(ModelError, match=named):
        load(folder)


@pytest.mark.parametrize("prefix", ["encoder.", "module.", "_orig_mod.", "module._orig_mod.model.", "model.bert."])
def test_the_prefixes_of_wrappers_are_left_out_and_it_is_said(bert_folder: Path, tmp_path: Path, prefix: str) -> None:
    notes = Notes()
    encoder = load(altered(bert_folder, tmp_path / "altered", prefixed(prefix)), notes=notes)
    saved, loaded = load_file(bert_folder / "model.safetensors"), encoder.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    [line] = notes.lines
    assert prefix.removesuffix("bert.") in line


def test_a_missing_pooler_comes_from_the_seed_and_a_tasks_head_is_left_out(bert_folder: Path, tmp_path: Path) -> None:
    def change(state: State) -> State:
        return without("pooler")(state) | {"cls.predictions.bias": torch.ones(3), "classifier.weight": torch.ones(2, 3)}

    folder = altered(bert_folder, tmp_path / "altered", change)
    before = torch.get_rng_state()
    first, same, other = (load(folder, seed).state_dict()["pooler.dense.weight"] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_constants_that_older_releases_saved_are_left_out(bert_folder: Path, tmp_path: Path) -> None:
    names = (
        "encoder.layer.0.attn.bias",
        "encoder.layer.0.attn.masked_bias",
        "encoder.layer.0.attn.causal_mask",
        "embeddings.position_ids",
        "rotary.inv_freq",
    )
    load(altered(bert_folder, tmp_path / "altered", lambda state: state | {name: torch.ones(2) for name in names}))


def test_debertas_checkpoints_are_read_as_the_hub_has_them(tmp_path: Path) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    positions = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]}
    model = DebertaV2Model(DebertaV2Config(vocab_size=50, position_biased_input=False, **sizes, **positions))
    pretraining = ("lm_predictions.lm_head.bias", "mask_predictions.classifier.weight", "config")
    tables = ("deberta.embeddings.position_embeddings.weight", "deberta.embeddings.word_embeddings._weight")
    state = {name: torch.ones(2) for name in (*pretraining, *tables)}
    state |= {f"deberta.{name}": tensor.half() for name, tensor in model.state_dict().items()}
    model.config.architectures = None  # as in the hub's config.json
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    notes = Notes()
    loaded = load(tmp_path, notes=notes).state_dict()
    assert not notes.lines
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(bert_folder: Path, tmp_path: Path, value: float) -> None:
    name = "encoder.layer.1.output.dense.bias"

    def change(state: State) -> State:
        state[name][3] = value
        return state

    with pytest.raises(ModelError, match=f"not numbers, in {name}"):
        load(altered(bert_folder, tmp_path / "altered", change))


def sharded(source: Path, folder: Path) -> Path:
    """A folder whose weights are in several files with an index."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    load(source).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_every_file_that_an_index_names_must_be_there(bert_folder: Path, tmp_path: Path) -> None:
    folder = sharded(bert_folder, tmp_path / "sharded")
    expected = load(bert_folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(folder).state_dict().items())
    last = max(folder.glob("model-*.safetensors"))
    last.unlink()
    with pytest.raises(ModelError, match=rf"{last.name} of \d+ files that model.safetensors.index.json names"):
        encoders.locate(str(folder))


def test_a_folder_without_weights_is_refused_when_it_is_found(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        encoders.locate(str(tmp_path / "empty"))


def test_one_weight_format_is_downloaded() -> None:
    small = ["config.json", "tokenizer.json", "spm.model", "vocab.txt"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    others = ["pytorch_model.bin", "consolidated.safetensors", "onnx/config.json", "onnx/model.onnx", "run.py"]
    for weights in (["model.safetensors"], [index, *shards]):
        chosen = pretrained.needed_files([*small, *weights, *others])
        assert sorted(chosen) == sorted([*small, *weights])
    assert sorted(pretrained.needed_files([*small, *others])) == sorted([*small, "pytorch_model.bin"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_not_taken_for_damage(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Neither of an encoder nor of a run nor of a checkpoint."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", fail)
    with pytest.raises(MemoryError):
        load(bert_folder)
    monkeypatch.setattr("prefcli.encoders.load_tokenizer", fail)
    run = {"options": {"encoder": "tiny"}, "resolved": {}}
    (Path() / "config.json").write_text(json.dumps(run))
    with pytest.raises(MemoryError):
        neural.load(Path(), devices.place("cpu", "fp32"))
    monkeypatch.setattr("prefcli.training.checkpoints.files.verify_checksum", fail)
    (Path() / "step-00000001").mkdir()
    (Path() / "step-00000001" / checkpoints.STATE).write_text("{}")
    with pytest.raises((MemoryError, RuntimeError)):
        checkpoints.load_latest(Path(), pytest.fail)

"""Weights as files: safetensors, only what was trained, under names that transformers reads.

A run's ``model.safetensors`` holds the encoder's tensors by the names that transformers gives them and the head's as
``classifier.*`` and ``attention_pool.*``, so ``AutoModel.from_pretrained(RUN)`` finds the encoder in it. If only
adapters were trained, it does not hold the encoder's own weights.

That of a reward model holds transformers' classifier and nothing else: the term for ties is in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from prefcli.storage import runs

ENCODER_PREFIX, TIE_PREFIX = "encoder.", "tie."
HEAD_PREFIXES = ("classifier.", "attention_pool.")
ADAPTER = ".lora_"
"""Part of the names of adapters' tensors."""


def trainable_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A module's state; beside adapters without the encoder's own weights, which training does not change."""
    state = module.state_dict()
    if not any(ADAPTER in name for name in state):
        return state
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if name in trainable}


def load_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`trainable_state_dict` returned.

    Raises
    ------
    RuntimeError
        If tensors are missing, unexpected, or of other shapes.
    """
    expected = trainable_state_dict(module)
    if missing := sorted(set(expected) - set(state)):
        raise RuntimeError(f"no tensor {missing[0]} ({len(missing)} are missing)")
    if unexpected := sorted(set(state) - set(expected)):
        raise RuntimeError(f"a tensor {unexpected[0]} that the model does not have ({len(unexpected)} in all)")
    from prefcli.compute import fsdp

    # Not strict, because frozen weights are not in the state: what it must hold was compared above.
    module.load_state_dict({name: fsdp.shard_like(t, expected[name]) for name, t in state.items()}, strict=False)


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a trained state (:func:`trainable_state_dict`), named as in transformers' files."""
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if tie := {name: tensor for name, tensor in state.items() if name.startswith(TIE_PREFIX)}:
        metadata[runs.TIE_METADATA] = json.dumps({name: tensor.tolist() for name, tensor in sorted(tie.items())})
    tensors = {name.removeprefix(ENCODER_PREFIX): tensor for name, tensor in state.items() if name not in tie}
    save_file(clone_shared_tensors(tensors), path, metadata)
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Bring a file's metadata into a fixed order, which safetensors draws at random: equal weights are equal files."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:  # else something is spelled in another way than here, and stays as it is
            stream.seek(8)
            stream.write(text)


def load(path: Path) -> dict[str, Tensor]:
    """What :func:`save` wrote, named as in the module."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        tie = (stream.metadata() or {}).get(runs.TIE_METADATA)
    if tie is not None:
        values = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in json.loads(tie).items()}
        return {**{ENCODER_PREFIX + name: tensor for name, tensor in tensors.items()}, **values}
    return {
        name if name.startswith(HEAD_PREFIXES) else ENCODER_PREFIX + name: tensor for name, tensor in tensors.items()
    }


def clone_shared_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, with those that share memory cloned: safetensors refuses to store aliases."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return result


def nbytes(state: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take as a file, about."""
    return sum(tensor.nbytes for tensor in state.values())

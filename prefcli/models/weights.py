"""Weights as files: safetensors, only what was learnt, under names that transformers reads.

A run's ``model.safetensors`` holds the encoder's tensors by the names that transformers gives them and the classifier's
as ``classifier.*``: so ``AutoModel.from_pretrained(RUN)`` finds the encoder in it. Where only adapters were learnt, the
encoder's own weights stay where they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

ENCODER, HEAD = "encoder.", "classifier."


def trainable_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The part of a module's state that its training changes: without an encoder whose weights are frozen."""
    state = module.state_dict()
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    if not frozen:
        return state
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if name in trained}


def load_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set what :func:`trainable_state_dict` gave.

    Raises
    ------
    RuntimeError
        If tensors are missing, left over, or of other shapes.
    """
    wanted = trainable_state_dict(module)
    if missing := sorted(set(wanted) - set(state)):
        raise RuntimeError(f"no tensor {missing[0]} ({len(missing)} are missing)")
    if extra := sorted(set(state) - set(wanted)):
        raise RuntimeError(f"a tensor {extra[0]} that the model does not have ({len(extra)} in all)")
    from prefcli.compute import fsdp

    module.load_state_dict({name: fsdp.shard_like(t, wanted[name]) for name, t in state.items()}, strict=False)


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Write what a module learnt (:func:`trainable_state_dict`), by the names of files."""
    from safetensors.torch import save_file

    save_file(
        clone_shared_tensors({name.removeprefix(ENCODER): tensor for name, tensor in state.items()}),
        path,
        {"format": "pt"},
    )


def load(path: Path) -> dict[str, Tensor]:
    """What :func:`save` wrote, by the names of modules."""
    from safetensors.torch import load_file

    return {name if name.startswith(HEAD) else ENCODER + name: tensor for name, tensor in load_file(path).items()}


def clone_shared_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which those that share memory are copied: safetensors refuses to store aliases."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return apart


def size(state: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors take as a file, about."""
    return sum(tensor.nbytes for tensor in state.values())

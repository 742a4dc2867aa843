"""Checkpoints of a training in progress: complete, atomic, verified, and free of pickle.

A checkpoint is a folder ``step-00000120/`` with the model's and the optimizer's tensors as safetensors and everything
else (train state, scaler, random states) as JSON and tensors, plus the digests of its files.
The last two are kept, in case one is damaged.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefcli.errors import ModelError, is_out_of_memory, one_line
from prefcli.models import weights
from prefcli.storage import files

KEPT = 2
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to continue as if it had not stopped.

    Attributes
    ----------
    model:
        The module's state.
    optimizer:
        The optimizer's ``state_dict()``.
    random:
        States of the random generators by device name, uint8 tensors.
    state:
        Everything else, JSON.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and drop all but the last :data:`KEPT`."""
    from safetensors.torch import save_file

    path = folder / f"step-{step:08d}"
    tensors, groups = _flatten(checkpoint.optimizer)
    needs = sum(tensor.nbytes for tensor in (*checkpoint.model.values(), *tensors.values()))
    with files.atomic(path, needs=needs) as temporary:
        temporary.mkdir()
        save_file(weights.clone_shared_tensors(checkpoint.model), temporary / "model.safetensors")
        save_file(tensors, temporary / "optimizer.safetensors")
        save_file(checkpoint.random, temporary / "random.safetensors")
        digests = {p.name: files.sha256(p) for p in sorted(temporary.iterdir())}
        state = {"files": digests, "optimizer_groups": groups, **checkpoint.state}
        (temporary / STATE).write_text(files.with_checksum(state), encoding="utf-8")
    for old in existing(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def existing(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []


def load_latest(folder: Path, warn: Any = lambda text: None) -> Checkpoint | None:
    """The newest intact checkpoint; damaged ones are reported through ``warn`` and skipped. None without any.

    Raises
    ------
    ModelError
        If there are checkpoints and none of them is intact.
    """
    paths = existing(folder)
    for path in reversed(paths):
        try:
            return _load(path)
        except ValueError as problem:
            warn(f"checkpoint {path} is damaged and not used: {problem}")
    if paths:
        raise ModelError("all checkpoints are damaged", where=str(folder), hint="Delete the run and train again.")
    return None


def _load(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = files.verify_checksum((path / STATE).read_text(encoding="utf-8"))
        for name, digest in state.pop("files").items():
            if files.sha256(path / name) != digest:
                raise ValueError(f"{name} does not match its checksum")
        optimizer = _unflatten(load_file(path / "optimizer.safetensors"), state.pop("optimizer_groups"))
        return Checkpoint(
            load_file(path / "model.safetensors"), optimizer, load_file(path / "random.safetensors"), state
        )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        if is_out_of_memory(error):
            raise MemoryError(one_line(error)) from error
        raise ValueError(one_line(error)) from None


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    tensors = {f"{index}.{name}": t for index, state in optimizer["state"].items() for name, t in state.items()}
    return weights.clone_shared_tensors(tensors), optimizer["param_groups"]


def _unflatten(tensors: dict[str, Tensor], groups: list[Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators: the CPU's, and the GPU's where one computes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the states of torch's generators."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)

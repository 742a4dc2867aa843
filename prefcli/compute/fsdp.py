"""PyTorch's fully sharded data parallelism (FSDP): one model spread over several processes, when one cannot hold it.

Every process holds a part of each weight, gradient and moment, and gets the rest of a layer just before it is computed
(Zhao et al., "PyTorch FSDP", VLDB 2023; here ``fully_shard``, its second version). Checkpoints and kept weights hold
full tensors, so they do not depend on the number of processes.

All processes must make the same number of forward passes, because each pass is an exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefcli.compute.distributed import World


def shard(module: nn.Module, device: torch.device, world: World) -> None:
    """Spread a module over all processes, in place, layer by layer.

    Parameters
    ----------
    module:
        On the CPU, the same on every process.
    device:
        Where this process computes.
    world:
        The processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    module.to(device)  # the buffers; the parts of the weights are there already


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of a transformer: the longest list of modules in it."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max((list(layers) for layers in lists), key=len, default=[])


def is_sharded(module: nn.Module) -> bool:
    """Whether :func:`shard` was applied to a module."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor of which this process may hold only a part, whole; all processes must call it together."""
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def full_state_dict(state: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """A state with full tensors, on the main process only: the others get an empty one and keep no full tensor."""
    from torch.distributed.tensor import DTensor

    full: dict[str, Tensor] = {}
    for name, tensor in state.items():
        whole = full_tensor(tensor)
        if world.is_main_process:
            full[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return full


def full_optimizer_state_dict(optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any]:
    """An optimizer's ``state_dict`` with full tensors, on the main process only."""
    state_dict = optimizer.state_dict()
    state = {index: full_state_dict(tensors, world) for index, tensors in state_dict["state"].items()}
    return {**state_dict, "state": state}


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a full tensor, as it holds ``like``."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def load_optimizer_state_dict(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load what :func:`full_optimizer_state_dict` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {
            # Counters of steps are single numbers, moments have their parameter's shape.
            name: shard_like(value, parameters[index]) if value.shape == parameters[index].shape else value
            for name, value in tensors.items()
        }
        for index, tensors in state_dict["state"].items()
    }
    optimizer.load_state_dict({**state_dict, "state": state})

"""One model spread over several processes, when one cannot hold it: PyTorch's fully sharded data parallelism.

Every process keeps a part of each weight, gradient and moment, and gets the rest of a layer just before it is computed
(Zhao et al., "PyTorch FSDP", VLDB 2023; here ``fully_shard``, its second form). Checkpoints and kept weights are whole,
so they do not depend on how many processes made them.

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
        On the host, the same on every process.
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
    module.to(device)  # buffers: the weights' parts are there already


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of a transformer: the longest list of modules in it."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max((list(one) for one in lists), key=len, default=[])


def is_sharded(module: nn.Module) -> bool:
    """Whether :func:`shard` was here."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor of which this process may keep only a part, whole and on the host; all processes must ask together."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor.detach()
    full: Tensor = tensor.full_tensor()
    return full.detach().cpu()


def full_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`full_tensor` of every tensor of a module's state."""
    return {name: full_tensor(tensor) for name, tensor in state.items()}


def full_optimizer_state_dict(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's ``state_dict`` with whole tensors."""
    held = optimizer.state_dict()
    state = {key: {name: full_tensor(value) for name, value in one.items()} for key, one in held["state"].items()}
    return {**held, "state": state}


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, as it keeps ``like``."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def load_optimizer_state_dict(optimizer: torch.optim.Optimizer, held: Mapping[str, Any]) -> None:
    """Set what :func:`full_optimizer_state_dict` gave."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        key: {
            # Counters of steps are single numbers, moments have their parameter's shape.
            name: shard_like(value, parameters[key]) if value.shape == parameters[key].shape else value
            for name, value in one.items()
        }
        for key, one in held["state"].items()
    }
    optimizer.load_state_dict({**held, "state": state})

"""The processes that ``torchrun`` started, and how they exchange values.

There is no launcher here: PyTorch's own (``torchrun -m prefcli train ...``) starts the processes and sets each one's
rank in its environment. Without it the world has one process and everything below does nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefcli.errors import PrefcliError, is_out_of_memory, one_line, plural

TIMEOUT = timedelta(minutes=30)
"""How long a process may wait for another, which may be evaluating or preprocessing."""
LOST = re.compile(r"\bgloo\b|NCCL|connection (closed|reset|was likely closed)|broken pipe", re.IGNORECASE)
"""In the messages of PyTorch's backends that cannot reach another process; gloo's have no type of their own."""


@dataclass(frozen=True)
class World:
    """This process and the number of all.

    Attributes
    ----------
    rank, size:
        Number of this process, and how many there are.
    local_rank:
        Its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            import torch.distributed as dist

            dist.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process runs the block before the others do: it fills caches, they reuse them."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on every process."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        """Every number summed over all processes, on every process: one small exchange."""
        if self.alone:
            return list(values)
        import torch
        import torch.distributed as dist

        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()


def from_environment() -> World:
    """The world as ``torchrun`` describes it in the environment; one process without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        return World()
    return World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(world: World) -> Iterator[None]:
    """Join the process group for the duration of the block: gloo between CPUs, nccl between GPUs.

    Raises
    ------
    PrefcliError
        If another process of the group ended or cannot be reached, or two use one GPU.
    """
    if world.alone:
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        yield
        dist.barrier()
    except RuntimeError as error:
        if "Duplicate GPU" in str(error):  # at the end of NCCL's message
            raise PrefcliError(
                f"more processes than the {plural(torch.cuda.device_count(), 'GPU')} of this machine",
                hint="Start one for each GPU (--nproc-per-node of torchrun), or compute with --device cpu.",
            ) from error
        if is_out_of_memory(error) or not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        reason = one_line(re.sub(r"\[\S+:\d+\] ", "", str(error)), 120)  # without the place in the source
        raise PrefcliError(
            f"another of the {world.size} processes ended or cannot be reached ({reason})",
            hint="Its own messages and torchrun's report say why. Call the same command again on all nodes: "
            "a training continues at its last checkpoint.",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

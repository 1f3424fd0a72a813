"""One process, or several that `torchrun` started: each takes its share of every step's windows."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """rank: of this process, from 0   count: of all   local: how many of them this machine has"""

    rank: int
    count: int
    local: int
    device: torch.device

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, or one whose backward pass averages gradients over the processes."""
        if self.count == 1 or isinstance(model, FSDPModule):  # which does so itself
            return model
        where: Any = [self.device] if self.device.type == "cuda" else None
        # Every process made the same model, with the same masks: there is nothing to send first.
        return DistributedDataParallel(
            model, device_ids=where, forward_sync_buffers=False, init_sync=False
        )

    def mesh(self) -> DeviceMesh:
        """All processes, for a model that is divided over them."""
        return init_device_mesh(self.device.type, (self.count,))

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, in one process of each machine after the other."""
        before = self.rank % self.local
        for _ in range(before):
            self.wait()
        made = make()
        for _ in range(self.local - before):
            self.wait()
        return made

    def mean(self, value: float) -> float:
        """Over the processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.item() / self.count

    def share(self, windows: Tensor) -> Tensor:
        """This process's of all windows.  windows: [batch, seqlen]"""
        return windows.chunk(self.count)[self.rank] if self.count > 1 else windows

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()


def alone(device: torch.device) -> Workers:
    """A single process."""
    return Workers(0, 1, 1, device)


@contextlib.contextmanager
def started() -> Iterator[Workers]:
    """Those of `torchrun`, connected until the end; without it, this process alone.

    They compute on GPUs where there are some, a GPU each.
    """
    gpus = torch.cuda.is_available()
    if not distributed.is_torchelastic_launched():
        yield alone(torch.device("cuda" if gpus else "cpu"))
        return
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        yield Workers(distributed.get_rank(), distributed.get_world_size(), here, device)
    finally:
        distributed.destroy_process_group()

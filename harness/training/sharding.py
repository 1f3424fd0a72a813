"""A model divided over processes: PyTorch's `fully_shard` (FSDP2) on every block, and on the rest.

Each process has some rows of every parameter, and of its gradient and moments.  A block is whole
only while it computes.  Every function here takes plain tensors too, and leaves them as they are.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trinity.harness.models import families
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.methods.errors import ConfigError


def check(spec: TrainingSpec, processes: int) -> None:
    """ConfigError if there is nobody to divide a model with."""
    if spec.sharding != "none" and processes == 1:
        msg = (
            f"training: `sharding: {spec.sharding}` divides a model over processes, and there is "
            f"one. Start several with `torchrun --nproc-per-node N --no-python trinity train`, or "
            f"leave `sharding` out."
        )
        raise ConfigError(msg)


@contextlib.contextmanager
def views_allowed() -> Iterator[None]:
    """Without torch's warning of outputs that are views, as logits are where the head has a bias:
    it is for code that writes to them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
        yield


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Divide, in place, what parameters the model has now; no later one.

    model: of transformers (no common type), of a known family; on the mesh's device afterwards,
    where never more of it than a block has been whole
    """
    for block in model.get_submodule(families.get(model.config.model_type).blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """What this process has of it, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows(whole: Tensor, like: Tensor) -> Tensor:
    """Those that this process has of `like`, copied.  whole: [rows, ...], in every process"""
    if not isinstance(like, DTensor):
        return whole
    # Without a source each process cuts its own rows, and nothing is sent.
    cut = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return cut.to_local().clone()


def divided(own: Tensor, like: Tensor) -> Tensor:
    """The tensor of which this process has the rows `own`, as it has them of `like`."""
    if not isinstance(like, DTensor):
        return own
    shape = torch.Size((like.shape[0], *own.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=stride)


def share(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor divided as `like` is.  whole: the same in every process"""
    return divided(rows(whole, like), like)


@torch.no_grad()
def full(tensor: Tensor) -> Tensor:
    """All of it, in every process; they must ask for the same one together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collected(tensor: Tensor) -> Tensor:
    """All of a divided tensor, in the first process's main memory; empty in the others."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    whole = full(tensor)
    if tensor.device_mesh.get_rank():
        return whole.new_empty(0)
    return whole.cpu().clone()  # of the rows alone: a gathered one can be padded


def all_collected(state: Any, seen: dict[int, Tensor] | None = None) -> Any:
    """The same numbers, texts, lists and dicts, with every tensor in them `collected`, one by one.

    seen: tensors by identity: those that are tied are one afterwards too
    """
    seen = {} if seen is None else seen
    if isinstance(state, dict):
        return {key: all_collected(value, seen) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(all_collected(value, seen) for value in state)
    if not isinstance(state, Tensor):
        return state
    if id(state) not in seen:
        seen[id(state)] = collected(state)
    return seen[id(state)]

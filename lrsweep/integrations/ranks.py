"""What the ranks of a distributed run find out together; without a process group, or with one rank, all is local."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


def world_size() -> int:
    """Ranks of the default process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this rank is the one that speaks."""
    return world_size() == 1 or dist.get_rank() == 0


def collective_device() -> torch.device:
    """Device whose tensors the default process group takes: the current GPU where it has NCCL, else the CPU."""
    if "nccl" in dist.get_backend_config():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor (DTensor) that this rank holds, and any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


@torch.no_grad()
def all_finite(model: nn.Module) -> bool:
    """Whether no parameter on any rank holds a NaN or an infinity. Blocks, and every rank must call it."""
    flags = [torch.isfinite(local(parameter)).all() for parameter in model.parameters()]
    finite = all(bool(torch.stack(same).all()) for same in _by_device(flags).values())
    if world_size() == 1:
        return finite
    everywhere = torch.tensor(float(finite), device=collective_device())
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return bool(everywhere)


def _by_device(flags: list[torch.Tensor]) -> dict[torch.device, list[torch.Tensor]]:
    groups: dict[torch.device, list[torch.Tensor]] = {}
    for flag in flags:
        groups.setdefault(flag.device, []).append(flag)
    return groups

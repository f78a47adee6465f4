"""Copies out of a GPU that are not waited for until they are wanted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def begin_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin a copy to the host, behind what the current stream of the tensor's device holds; the function waits for it.

    On the CPU the tensor itself.
    """
    if not tensor.is_cuda:
        return lambda: tensor
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    on_host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(tensor.device))

    def arrived() -> Tensor:
        done.synchronize()
        return on_host

    return arrived

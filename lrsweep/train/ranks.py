"""What the processes of one data-parallel trial tell each other: gradients, and the sums and maxima of statistics.

Every rank holds the whole model and trains on its rows of the batch. Sharding the weights would buy nothing here: a
trial needs 16 to 20 bytes a parameter, 17 GB at 830M, on GPUs of 80 GB.

Nothing waits for the host, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import AllreduceCoalescedOptions

_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others: longer than one may compile while another's cache is warm."""


@dataclass(slots=True)
class _Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[Tensor]
    missing: int
    """Gradients that this backward has yet to give."""
    work: dist.Work | None = None
    """The reduction under way."""


class Ranks:
    """This process among those that train one trial; NCCL on a GPU, gloo on a CPU.

    Every rank must make the same calls in the same order. An engine that captured any of them must be gone before
    :meth:`leave`.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        armed: whether the next backward is the one that completes the gradients (the last micro-batch's).
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.device = device
        self.armed = True
        self._group = group
        self._buckets: list[_Bucket] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @classmethod
    def join(cls, rank: int, size: int, address: str, port: int, device: torch.device) -> Ranks:
        """Meet the other ranks at ``address``, where rank 0 listens on ``port``; blocks until all ``size`` are there.

        It becomes the default group of torch.distributed in this process.

        Raises:
            torch.distributed.DistError: the others did not come in ten minutes.
        """
        # Its functions hold, as defaults, the group of its first import: ours, past leave(), if that is later.
        import torch.distributed.nn.functional

        on_gpu = device.type == "cuda"
        if on_gpu:
            device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
            torch.cuda.set_device(device)
        store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=_TIMEOUT)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
            device_id=device if on_gpu else None,
        )
        assert dist.group.WORLD is not None
        return cls(dist.group.WORLD, device)

    def leave(self) -> None:
        """Part from the others; nothing but :attr:`rank` and :attr:`size` may be asked of this afterwards."""
        self.unwatch()
        dist.destroy_process_group()
        # The last reference: gloo's threads end with it. One that still let go of a tensor while the interpreter ends
        # would take the process down (std::terminate).
        del self._group

    def share(self, n: int) -> slice:
        """This rank's rows of a batch of ``n``, which ``size`` must divide: means of shares are then means of all."""
        assert n % self.size == 0, f"{self.size} ranks cannot share {n} rows equally"
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def watch(self, parameters: Iterable[Tensor], buckets: Sequence[Sequence[Tensor]]) -> None:
        """Sum over ranks the gradients that backwards leave in ``parameters``, in place of those watched before.

        While ``armed``, a bucket's travel as soon as it is complete, beside the rest of the backward; parameters in no
        bucket are one more. Call :meth:`finish` after the backward. Gradients must be dense and of one dtype a bucket.
        """
        self.unwatch()
        bucketed = {id(parameter) for bucket in buckets for parameter in bucket}
        rest = [parameter for parameter in parameters if id(parameter) not in bucketed]
        self._buckets = [_Bucket(list(each), len(each)) for each in (*buckets, rest) if each]
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                hook = partial(self._arrived, bucket)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def unwatch(self) -> None:
        """Let go of the parameters that are watched."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._buckets = [], []

    def _arrived(self, bucket: _Bucket, _: Tensor) -> None:
        # One thread walks the graph, and all ranks have the same graph, so buckets complete in the same order on all.
        if self.armed:
            bucket.missing -= 1
            if bucket.missing == 0:
                self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        gradients = [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]
        if gradients:
            options = AllreduceCoalescedOptions()
            options.reduceOp = dist.ReduceOp(dist.ReduceOp.SUM)
            options.asyncOp = True
            bucket.work = self._group.allreduce_coalesced(gradients, options)

    def finish(self) -> None:
        """Have every watched gradient summed; those of buckets that stayed incomplete go now.

        A parameter that the loss does not reach has no gradient on any rank, and gets none.
        """
        for bucket in self._buckets:
            if bucket.work is None:
                self._send(bucket)
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
            bucket.work, bucket.missing = None, len(bucket.parameters)

    @torch.no_grad()
    def sum_(self, tensor: Tensor) -> None:
        """Sum over ranks, in place."""
        dist.all_reduce(tensor, dist.ReduceOp.SUM, self._group)

    @torch.no_grad()
    def max_(self, tensor: Tensor) -> None:
        """Maximum over ranks of each element, in place; NaN where any rank has NaN."""
        # A flag beside each value, since neither backend says which of NaN and a number is larger.
        is_nan = tensor.isnan()
        both = torch.stack([tensor.masked_fill(is_nan, -torch.inf), is_nan.to(tensor.dtype)])
        dist.all_reduce(both, dist.ReduceOp.MAX, self._group)
        tensor.copy_(both[0].masked_fill(both[1] > 0, torch.nan))

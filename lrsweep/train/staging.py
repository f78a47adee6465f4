"""Where batches and statistics wait between host and device.

Legend: R steps of an interval, M micro-batches of a step, B batch, T sequence, N layers, S statistics of a step,
P columns of sums and maxima.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Staging:
    """What one interval takes to the device and brings back, in memory that a GPU reads and writes by itself.

    Args:
        windows_RMxBxT: token ids on the device.
        lrs_R: learning rates there.
        scalars_RxS: statistics of the steps there.
        columns_2xRxNxP: sums and maxima of the layers there.
    """

    def __init__(self, windows_RMxBxT: Tensor, lrs_R: Tensor, scalars_RxS: Tensor, columns_2xRxNxP: Tensor) -> None:
        pinned = lrs_R.is_cuda

        def like(x: Tensor) -> Tensor:
            return torch.empty(x.shape, dtype=x.dtype, pin_memory=pinned)

        self.windows_RMxBxT, self.lrs_R = like(windows_RMxBxT), like(lrs_R)
        self.scalars_RxS, self.columns_2xRxNxP = like(scalars_RxS), like(columns_2xRxNxP)
        self._events: list[torch.cuda.Event] = []
        if pinned:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            for event in self._events:
                event.record()

    def mark(self, place: int) -> None:
        """The device comes by here when the interval begins, place 0, and when it has ended, 1."""
        if self._events:
            self._events[place].record()

    def seconds(self) -> float:
        """How long the device took, once it has ended; waits for that."""
        if not self._events:
            return math.inf
        begun, ended = self._events
        ended.synchronize()
        milliseconds: float = begun.elapsed_time(ended)
        return milliseconds / 1e3

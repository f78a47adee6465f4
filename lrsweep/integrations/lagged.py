"""Reads the scalars of a step while the next step runs, so that nobody waits for the device to finish fresh work."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lrsweep.detect.detector import LARGEST_LOSS
from lrsweep.errors import UserError
from lrsweep.host_copy import begin_copy
from lrsweep.integrations.ranks import collective_device, world_size

Scalar = float | torch.Tensor
"""A number, or a tensor with one element on any device; a sharded tensor (DTensor) is gathered."""
Values = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """The scalars of one step, on the host."""

    step: int
    """Step they were put under."""
    values: Values
    """None where none was put. Among several ranks the mean over those that had one, NaN if one was non-finite."""


@dataclass(frozen=True, slots=True)
class _Pending:
    step: int
    read: Callable[[], Values]  # waits for the values if need be
    at_once: bool = False  # whether nothing is gained by waiting for the next step


class LaggedReader:
    """A queue of readings, each due when the step after it has been put.

    From a GPU the values are copied to pinned memory by a stream of their own, and the host waits for the copy of the
    step before. Among several ranks the values are first all-reduced there (on the CPU asynchronously), so every rank
    reads the same numbers at the same step. On the CPU of a single process a reading is due at once.

    Args:
        across_ranks: False where the values put are already the same on all ranks; then there is no collective.
    """

    def __init__(self, *, across_ranks: bool = True) -> None:
        self._across_ranks = across_ranks
        self._pending: deque[_Pending] = deque()
        self._stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def put(self, step: int, values: Mapping[str, Scalar | None]) -> None:
        """Takes the scalars of one step. All ranks must put the same names in the same order; a value may be None.

        Raises UserError for a tensor of several elements.
        """
        if self._across_ranks and world_size() > 1:
            self._pending.append(_Pending(step, self._mean_over_ranks(values)))
            return
        known = {name: value for name, value in values.items() if value is not None}
        device = _device_of(known)
        if device.type == "cuda":
            arrived = self._to_host(torch.stack([_scalar(value, device) for value in known.values()]))
            self._pending.append(
                _Pending(step, lambda: {**dict.fromkeys(values), **dict(zip(known, arrived().tolist(), strict=True))})
            )
            return
        now = {**dict.fromkeys(values), **{name: float(_scalar(value, device)) for name, value in known.items()}}
        self._pending.append(_Pending(step, lambda: now, at_once=True))

    def take(self, *, everything: bool = False) -> list[Reading]:
        """Readings that are due, oldest first; ``everything`` waits for the newest as well."""
        due: list[Reading] = []
        while self._pending and (everything or len(self._pending) > 1 or self._pending[0].at_once):
            pending = self._pending.popleft()
            due.append(Reading(pending.step, pending.read()))
        return due

    def _mean_over_ranks(self, values: Mapping[str, Scalar | None]) -> Callable[[], Values]:
        names, device = list(values), collective_device()
        packed_3xN = _pack(list(values.values()), device)
        if device.type == "cuda":
            arrived = self._to_host(packed_3xN, reduce=True)
            return lambda: _means(names, arrived())
        work = dist.all_reduce(packed_3xN, async_op=True)
        assert work is not None

        def read() -> Values:
            work.wait()
            return _means(names, packed_3xN)

        return read

    def _to_host(self, tensor: torch.Tensor, *, reduce: bool = False) -> Callable[[], torch.Tensor]:
        """Starts the copy, summed over ranks if told so, and gives the function that waits for it."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            if reduce:
                dist.all_reduce(tensor)  # this stream waits for it, the host and the training do not
            arrived = begin_copy(tensor)
        tensor.record_stream(stream)
        return arrived

    def state_dict(self) -> list[list[Any]]:
        """What is not yet due, waited for, as JSON: a reader that loads it hands out the same readings as late."""
        return [[pending.step, {name: _to_json(v) for name, v in pending.read().items()}] for pending in self._pending]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self._pending.clear()
        for step, table in state:
            values = {name: None if value is None else float(value) for name, value in table.items()}
            self._pending.append(_Pending(int(step), functools.partial(dict, values)))


def _to_json(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _device_of(values: Mapping[str, Scalar]) -> torch.device:
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    return next((tensor.device for tensor in tensors if tensor.device.type == "cuda"), torch.device("cpu"))


def _scalar(value: Scalar, device: torch.device) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.full((), float(value), dtype=torch.float32, device=device)
    if value.numel() != 1:
        raise UserError(f"a value with {value.numel()} elements was given: give its mean, or another single number")
    full_tensor = getattr(value, "full_tensor", None)
    whole = value if full_tensor is None else full_tensor()
    # Out of a GPU, a copy that is not waited for must go to pinned memory.
    return whole.detach().reshape(()).to(device, torch.float32, non_blocking=device.type == "cuda")


def _pack(values: list[Scalar | None], device: torch.device) -> torch.Tensor:
    """What the ranks add up: value, is-finite and is-not of each, on ``device``; a value of None is three zeros."""
    numbers_N = torch.stack([_scalar(0.0 if value is None else value, device) for value in values])
    finite_N = numbers_N.abs() <= LARGEST_LOSS
    packed_3xN = torch.stack([torch.where(finite_N, numbers_N, 0.0), finite_N.float(), (~finite_N).float()])
    for column, value in enumerate(values):
        if value is None:
            packed_3xN[:, column] = 0.0
    return packed_3xN


def _means(names: list[str], packed_3xN: torch.Tensor) -> Values:
    return {name: _mean(*column) for name, column in zip(names, packed_3xN.T.tolist(), strict=True)}


def _mean(total: float, finite: float, nonfinite: float) -> float | None:
    if nonfinite:
        return math.nan
    return total / finite if finite else None

"""Running statistics of one site of one layer, kept on the device.

Mean square, number and largest of what was seen: these pool exactly over any parts, so micro-batches add up to their
step, and a forward that gradient checkpointing runs twice counts twice above and below the fraction bar.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lrsweep.errors import UserError
from lrsweep.probes.layers import Place
from lrsweep.probes.logits import Moments

EMPTY = (0.0, 0.0, -math.inf)
"""The moments of nothing."""


class Pool:
    """Moments of what the modules of one place have given since they were last emptied.

    ``moments`` is written in place, so that a CUDA graph may hold its address.

    Raises:
        UserError: on meta device.
    """

    def __init__(self, place: Place, device: torch.device) -> None:
        if device.type == "meta":
            raise UserError(f"{place.names[0]} has no weights yet (meta device): attach the probe once it has")
        self.place = place
        self.key = (place.layer, place.site)
        self.moments = torch.tensor(EMPTY, device=device)
        torch._dynamo.mark_static_address(self.moments)
        self._parts = len(place.modules)
        self._pending: dict[int, Tensor] = {}

    @torch.no_grad()
    def add_output(self, part: int, y: Any) -> None:
        """Take in an output (…, F) of the place's module number ``part``.

        Once all modules have given theirs, the norm of each token over all of them counts.
        """
        self._check(part, y)
        norms = torch.linalg.vector_norm(y.detach(), dim=-1, dtype=torch.float32)
        self._pending[part] = norms.square()
        if len(self._pending) < self._parts:
            return
        squares = self._pending.pop(0)
        for i in range(1, self._parts):
            squares = squares + self._pending.pop(i)
        self.add((squares.mean(), squares.numel(), squares.amax().sqrt()))

    @torch.no_grad()
    def add(self, moments: Moments) -> None:
        """Pool with what is there; NaN and inf stay."""
        square, count, largest = moments
        old_square, old_count, old_largest = self.moments.unbind()
        total = old_count + count
        # Each square times its share: inf stays inf, where a mean moved by a difference would turn it into NaN.
        share = count / total.clamp(min=1)
        pooled = old_square * (1 - share) + square * share
        self.moments.copy_(torch.stack([pooled, total, torch.maximum(old_largest, largest)]))

    def _check(self, part: int, y: Any) -> None:
        # Names only where one is told: a compiler that reads one compiles every layer anew.
        if not isinstance(y, Tensor):
            name = self.place.names[part]
            raise UserError(f"{name} returns a {type(y).__name__}, not a tensor: name the linear layer inside it")
        if y.device != self.moments.device:
            raise UserError(
                f"{self.place.names[part]} computes on {y.device}, but the probe keeps its statistics on "
                f"{self.moments.device}: attach it after the model has moved, or pass device={str(y.device)!r}"
            )
        for other in self._pending.values():
            if other.shape != y.shape[:-1]:
                raise UserError(
                    f"{', '.join(self.place.names)} see different tokens, so they are not one site: "
                    "give each a site of its own"
                )

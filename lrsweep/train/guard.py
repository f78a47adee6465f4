"""Whether a step may move the weights, and by how much its gradient is to be divided first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lrsweep.train import gpu_step


class Guard(NamedTuple):
    """Scalars on the device."""

    norm: Tensor
    """Global L2 norm of the gradients, fp32."""
    finite: Tensor
    """Boolean: whether norm and objective are, and the step is live."""
    divisor: Tensor
    """max(1, norm/clip)."""


def guard(squares: Tensor, objective: Tensor, live: Tensor, clip: float) -> Guard:
    """The guard of a step.

    Args:
        squares: numbers that add up to the gradients' ‖g‖².
        objective: what the gradients are of, a scalar.
        live: Boolean scalar; False where nothing is to move in any case.
        clip: the largest norm that is applied.
    """
    if gpu_step.serves(squares):
        return Guard(*gpu_step.guard(squares, objective, live, clip))
    norm = squares.sum().sqrt()
    return Guard(norm, torch.isfinite(norm + objective) & live, (norm / clip).clamp(min=1.0))

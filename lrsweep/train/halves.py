"""bf16 copies of weights that multiply in their place.

Autocast casts every weight for every step and every gradient back. A copy that the optimizer writes while it has the
weight in registers saves the first, and a gradient that stays bf16, as autocast has computed it, the second.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrsweep.model.linear import Linear

Halves = dict[Tensor, Tensor]
"""bf16 copies by their weight."""


def give_halves(model: nn.Module, without: nn.Module | None = None) -> Halves:
    """Let each plain linear layer but ``without`` multiply by a bf16 copy of its weight, which takes its gradient.

    For weights that nothing but the optimizer moves, and gradients that are not added up: in bf16 a sum would lose
    what is small in it.
    """
    halves: Halves = {}
    for module in model.modules():
        if isinstance(module, Linear) and module is not without:
            module.bf16 = module.weight.detach().to(torch.bfloat16).requires_grad_()
            halves[module.weight] = module.bf16
    return halves


@torch.no_grad()
def refresh(halves: Halves) -> None:
    """Make the copies anew from weights that were set."""
    for weight, half in halves.items():
        half.copy_(weight)

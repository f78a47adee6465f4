"""Normalizations. Statistics in fp32 where the input is narrower; the output has the input's type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.probes import at_least_fp32

EPS = 1e-5


class LayerNorm(nn.Module):
    """(x − mean)/√(var + 1e-5) · gain over the last axis (Ba et al., 1607.06450), no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def start(self) -> None:
        """Initial value of the gain: 1."""
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(at_least_fp32(x), self.gain.shape, self.gain, None, EPS).type_as(x)


class RMSNorm(nn.Module):
    """x/√(mean(x²) + 1e-5) · gain over the last axis (Zhang & Sennrich, 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def start(self) -> None:
        """Initial value of the gain: 1."""
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_fp32(x), self.gain.shape, self.gain, EPS).type_as(x)


class FullWidth(nn.Module):
    """``norm`` over heads and head width together: x[..., H, K] is normalized as x[..., H·K]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BxTxHxK: Tensor) -> Tensor:
        normed: Tensor = self.norm(x_BxTxHxK.flatten(-2))
        return normed.view_as(x_BxTxHxK)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"gpt": LayerNorm, "llama": RMSNorm}
"""The norm of each body."""

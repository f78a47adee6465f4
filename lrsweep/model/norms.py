"""Normalizations and fixed or learnable factors. Statistics in fp32 where the input is narrower; the output has the
input's type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body
from lrsweep.probes import at_least_fp32
from lrsweep.schemes import Scheme

EPS = 1e-5


class LayerNorm(nn.Module):
    """(x − mean)/√(var + 1e-5) · gain over the last axis (Ba et al., 1607.06450), no bias."""

    centred = True

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

    centred = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def start(self) -> None:
        """Initial value of the gain: 1."""
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_fp32(x), self.gain.shape, self.gain, EPS).type_as(x)


class DynamicTanh(nn.Module):
    """gain ⊙ tanh(a·x) + bias (Zhu et al., 2503.10622, Eq. 1); a is one learnable number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(()))
        self.gain = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def start(self) -> None:
        """Initial values: a = 0.5, gain 1, bias 0."""
        nn.init.constant_(self.a, 0.5)
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return (self.gain * torch.tanh(self.a * at_least_fp32(x)) + self.bias).type_as(x)


class FullWidth(nn.Module):
    """``norm`` (or a gain) over heads and head width together: x[..., H, K] is normalized as x[..., H·K]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BxTxHxK: Tensor) -> Tensor:
        normed: Tensor = self.norm(x_BxTxHxK.flatten(-2))
        return normed.view_as(x_BxTxHxK)


def unit(x: Tensor) -> Tensor:
    """x/‖x‖ over the last axis, in fp32 at least."""
    return F.normalize(at_least_fp32(x), dim=-1).type_as(x)


class Unit(nn.Module):
    """x/‖x‖ over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


class Scale(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Gain(nn.Module):
    """x times a learnable gain per channel, worth ``first`` at init but stored as ``stored``.

    Adam moves every number by about the LR, so what a gain is stored as decides how fast it can change: nGPT's
    (2410.01131, section 2.5) are stored at d^−1/2, like the entries of its matrices.
    """

    def __init__(self, width: int, *, first: float, stored: float) -> None:
        super().__init__()
        self.stored, self.unstored = stored, first / stored
        self.value = nn.Parameter(torch.empty(width))

    def start(self) -> None:
        """Initial value: what ``first`` is stored as."""
        nn.init.constant_(self.value, self.stored)

    def effective(self) -> Tensor:
        """The gain itself."""
        return self.value * self.unstored

    def forward(self, x: Tensor) -> Tensor:
        return x * self.effective().type_as(x)


Norm = LayerNorm | RMSNorm | DynamicTanh
NORMS: dict[str, type[Norm]] = {"gpt": LayerNorm, "llama": RMSNorm}
"""The norm of each body."""
NAMED: dict[str, type[Norm]] = {"rms": RMSNorm, "dyt": DynamicTanh}
"""Norms that a row may ask for by name, whatever the body."""


def norm_of(scheme: Scheme, body: Body, width: int) -> Norm:
    """A norm over ``width`` channels, of the kind that the row asks for."""
    return NAMED.get(scheme.norm, NORMS[body])(width)


def in_turn(*modules: nn.Module) -> nn.Module:
    """The modules one after the other, without those that do nothing."""
    active = [m for m in modules if not isinstance(m, nn.Identity)]
    if len(active) <= 1:
        return active[0] if active else nn.Identity()
    return nn.Sequential(*active)


def scale(factor: float) -> nn.Module:
    """x times ``factor``; nothing at all for 1."""
    return nn.Identity() if factor == 1.0 else Scale(factor)

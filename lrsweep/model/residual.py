"""How a sub-layer's output f joins the stream x, which is then normalized for the next."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape
from lrsweep.model import gpu_norm
from lrsweep.model.norms import EPS, Gain, LayerNorm, RMSNorm, norm_of, unit
from lrsweep.probes import token_squares
from lrsweep.schemes import Scheme


class Add(nn.Module):
    """x + f."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()

    def forward(self, x_BxTxD: Tensor, f_BxTxD: Tensor) -> Tensor:
        return x_BxTxD + f_BxTxD


class LayerScale(nn.Module):
    """x + γ ⊙ f, γ per channel (Touvron et al., 2103.17239, Eq. 4)."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.first_gain = 1e-4 if shape.n_layers <= 12 else 1e-5
        self.gain = nn.Parameter(torch.empty(shape.d_model))

    def start(self) -> None:
        """Initial value of γ: 1e-4 up to 12 layers, 1e-5 beyond."""
        nn.init.constant_(self.gain, self.first_gain)

    def forward(self, x_BxTxD: Tensor, f_BxTxD: Tensor) -> Tensor:
        return x_BxTxD + self.gain * f_BxTxD


class PostNorm(nn.Module):
    """Norm(αx + f), α = 1 (Vaswani et al., 1706.03762)."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.alpha = 1.0
        self.norm = norm_of(scheme, body, shape.d_model)

    def forward(self, x_BxTxD: Tensor, f_BxTxD: Tensor) -> Tensor:
        joined: Tensor = self.norm(self.alpha * x_BxTxD + f_BxTxD)
        return joined


class DeepNorm(PostNorm):
    """Norm(αx + f), α = (2N)^¼ for a decoder of N layers (Wang et al., 2203.00555, Figure 2)."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__(scheme, body, shape)
        self.alpha = (2 * shape.n_layers) ** 0.25


def _step(shape: ModelShape) -> Gain:
    """How far along the way from x to f: 0.05 per channel at first."""
    return Gain(shape.d_model, first=0.05, stored=shape.d_model**-0.5)


class Lerp(nn.Module):
    """ν(α)·(x + α(f − x)), ν = 1/√(α² + (1−α)²): of length 1 if x and f are, and stand at right angles (2505.22014)."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.step = _step(shape)

    def forward(self, x_BxTxD: Tensor, f_BxTxD: Tensor) -> Tensor:
        alpha = self.step.effective()
        return torch.lerp(x_BxTxD, f_BxTxD.type_as(x_BxTxD), alpha) * (alpha**2 + (1 - alpha) ** 2).rsqrt()


class Sphere(nn.Module):
    """u(u(x) + |α|(u(f) − u(x))), u(x) = x/‖x‖ (Loshchilov et al., 2410.01131, Eqs. 10 and 11)."""

    def __init__(self, scheme: Scheme, body: Body, shape: ModelShape) -> None:
        super().__init__()
        self.step = _step(shape)

    def forward(self, x_BxTxD: Tensor, f_BxTxD: Tensor) -> Tensor:
        x_BxTxD = unit(x_BxTxD)
        return unit(torch.lerp(x_BxTxD, unit(f_BxTxD).type_as(x_BxTxD), self.step.effective().abs()))


def joins_by_kernel(norm: nn.Module, residual: nn.Module) -> TypeGuard[LayerNorm | RMSNorm]:
    """Whether a GPU has one kernel for both."""
    return isinstance(residual, Add) and isinstance(norm, LayerNorm | RMSNorm)


def join(
    residual: nn.Module, norm: nn.Module, x_BxTxD: Tensor, f_BxTxD: Tensor, *, measured: bool = False
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The stream with ``f`` joined, that normalized, and :func:`lrsweep.probes.token_squares` of ``f`` if measured.

    One kernel does all three where it can; what it normalizes has the type of ``f``, as linear layers want it then.
    """
    if joins_by_kernel(norm, residual) and gpu_norm.serves(x_BxTxD):
        x_BxTxD, normed_BxTxD, squares_BxTx1 = gpu_norm.join_norm(
            x_BxTxD, f_BxTxD, norm.gain, centred=norm.centred, eps=EPS, measured=measured
        )
        return x_BxTxD, normed_BxTxD, (squares_BxTx1,) if measured else ()
    squares = (token_squares(f_BxTxD),) if measured else ()
    x_BxTxD = residual(x_BxTxD, f_BxTxD)
    return x_BxTxD, norm(x_BxTxD), squares


RESIDUALS: dict[str, type[Add | LayerScale | PostNorm | Lerp | Sphere]] = {
    "add": Add,
    "layerscale": LayerScale,
    "post_norm": PostNorm,
    "deepnorm": DeepNorm,
    "lerp": Lerp,
    "sphere": Sphere,
}
"""Residual rule by its name in a scheme's row."""

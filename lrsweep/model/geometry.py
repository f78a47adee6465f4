"""Weights kept in the unit ball (anGPT, arXiv 2505.22014) or on the unit sphere (nGPT, arXiv 2410.01131).

With rows of length 1 over the input axis and an input of length 1, each output of a linear layer has variance 1/n_in,
so its length is √(n_out/n_in), not 1. anGPT brings it back with a constant per layer; where the input of a layer is not
of length 1 (attention's output holds one unit vector a head) or its entries pass an activation, the constant takes that
in. nGPT leaves it to learnable gains and to the norms of its residual rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config import Body, ModelShape, mlp_width
from lrsweep.model.norms import Gain, scale
from lrsweep.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Factors:
    """Constants on the outputs of linear layers; 1 wherever the geometry is free."""

    v: float = 1.0
    """On v."""
    proj: float = 1.0
    """On Proj's output."""
    fc1: float = 1.0
    """On FC1's output, on its way into the activation."""
    up: float = 1.0
    """On the half of FC1's output that the activation multiplies (SwiGLU)."""
    fc2: float = 1.0
    """On FC2's output."""


def factors(scheme: Scheme, body: Body, shape: ModelShape) -> Factors:
    """The constants of a row.

    anGPT's, for a stream of length 1: q and k are normalized anyway; v becomes of length 1 a head; Proj takes √(d/d_h)
    back to 1. FC1's output has entries of std √(1/d), times √(d/f) and, into the activation, √d: std √(d/f), 0.5 at
    f = 4d. FC2 takes the f products of second moment E[act²]/f (gated) to length 1.
    """
    if scheme.geometry != "ball":
        return Factors()
    d, d_head, f = shape.d_model, shape.d_head, mlp_width(scheme, body, shape.d_model)
    nu_1, nu_2 = math.sqrt(d / f), math.sqrt(f / d)
    if body == "llama":
        up, after_act = nu_1, 1 / math.sqrt(second_moment(F.silu, nu_1))
    else:
        up, after_act = 1.0, 1 / math.sqrt(f * second_moment(gelu, nu_1))
    return Factors(
        v=math.sqrt(d / d_head), proj=math.sqrt(d_head / d), fc1=nu_1 * math.sqrt(d), up=up, fc2=nu_2 * after_act
    )


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as in GPT-2."""
    return F.gelu(x, approximate="tanh")


@functools.lru_cache
def second_moment(act: Callable[[Tensor], Tensor], std: float) -> float:
    """E[act(g)²] of g ~ N(0, std²), by the trapezoidal rule."""
    g = torch.linspace(-12, 12, 4001, dtype=torch.float64, device="cpu")
    density = torch.exp(-(g**2) / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(act(std * g) ** 2 * density, g).item()


def mlp_gain(scheme: Scheme, factor: float, width: int, d_model: int) -> nn.Module:
    """What stands between FC1 and the activation: a constant, or on the sphere a learnable gain times √d."""
    if scheme.geometry == "sphere":
        return Gain(width, first=math.sqrt(d_model), stored=1.0)
    return scale(factor)


def row_axis(scheme: Scheme, name: str) -> int:
    """Axis of the matrix ``name`` over which its rows are measured.

    anGPT's is the input axis everywhere; nGPT's is the embedding axis: for Proj and FC2 that is their output.
    """
    into_stream = name.endswith(("proj.weight", "fc2.weight"))
    return 0 if scheme.geometry == "sphere" and into_stream else 1


def project(weight: Tensor, axis: int, geometry: str, apply: Tensor | None = None) -> None:
    """Bring the rows of ``weight`` back, in place: to length 1 (sphere), or to at most 1 (ball).

    Where ``apply``, a boolean scalar on the device, is False, no bit of it changes.
    """
    lengths = torch.linalg.vector_norm(weight, dim=axis, keepdim=True)
    lengths = lengths.clamp(min=1.0 if geometry == "ball" else 1e-12)
    weight.div_(lengths if apply is None else torch.where(apply, lengths, 1.0))

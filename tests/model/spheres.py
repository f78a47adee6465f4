"""nGPT (arXiv 2410.01131) and anGPT (arXiv 2505.22014) written out a second time, as :mod:`tests.model.formulas`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tests.model.formulas import Recipe, Reference, gelu, silu


def unit(x: Tensor) -> Tensor:
    """x/‖x‖."""
    return x / x.norm(dim=-1, keepdim=True)


def second_moment(name: str, std: float) -> float:
    """E[act(g)²], g ~ N(0, std²), by Gauss–Hermite quadrature of 150 nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    g = torch.from_numpy(std * nodes)
    values = {"silu": silu, "gelu": gelu}[name](g) ** 2
    return float((values.numpy() * weights).sum() / math.sqrt(2 * math.pi))


class Sphere(Reference):
    """What the two share: no norms; a gain on each logit, worth 1 where it is stored as d^−1/2."""

    def __init__(self, body: str, weights: dict[str, Tensor], *, heads: int, final_cap: float = math.inf) -> None:
        recipe = Recipe(before_attn=False, before_mlp=False, before_head=False, final_cap=final_cap)
        super().__init__(recipe, body, weights, heads=heads)
        self.d = weights["embedding"].shape[1]

    def stored(self, name: str) -> Tensor:
        return math.sqrt(self.d) * self.w[name]

    def step(self, name: str) -> Tensor:
        return 0.05 * self.stored(f"{name}.step.value")

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        if name != "head":
            return y
        return y * self.stored("head_out.value" if "head_out.value" in self.w else "head_out.0.value")


class NGPT(Sphere):
    """q and k: RoPE, unit length, times s_qk; u and v of the MLP times s_uv·√d; h ← u(u(h) + |α|(u(f) − u(h)))."""

    def logit(self, q_BxTxHxK: Tensor, k_BxTxHxK: Tensor, at: str) -> Tensor:
        s_qk_HxK = self.stored(f"{at}.attn.qk_gain.norm.value").reshape(self.heads, -1)
        q, k = s_qk_HxK * unit(q_BxTxHxK), s_qk_HxK * unit(k_BxTxHxK)
        return math.sqrt(q.shape[-1]) * torch.einsum("bihk,bjhk->bhij", q, k)

    def mlp(self, x: Tensor, at: str) -> Tensor:
        h = math.sqrt(self.d) * self.linear(x, f"{at}.mlp.fc1")
        if self.body == "gpt":
            h = gelu(self.w[f"{at}.mlp.fc1_norm.value"] * h)
        else:
            gate, up = h.split(4 * self.d, dim=-1)
            h = silu(self.w[f"{at}.mlp.gate_norm.value"] * gate) * self.w[f"{at}.mlp.up_norm.value"] * up
        return self.linear(h, f"{at}.mlp.fc2")

    def join(self, x: Tensor, f: Tensor, name: str) -> Tensor:
        x, f = unit(x), unit(f)
        return unit(x + self.step(name).abs() * (f - x))


class ANGPT(Sphere):
    """q and k: RoPE, unit length; h ← ν(α)·(h + α(f − h)); the MLP times 0.5, 3.74, √d and 2.

    ν_qkv = √(d/d_h) on v and ν_p = √(d_h/d) on Proj cancel: what they keep at length 1 lies between them.
    """

    def logit(self, q_BxTxHxK: Tensor, k_BxTxHxK: Tensor, at: str) -> Tensor:
        return math.sqrt(q_BxTxHxK.shape[-1]) * torch.einsum("bihk,bjhk->bhij", unit(q_BxTxHxK), unit(k_BxTxHxK))

    def mlp(self, x: Tensor, at: str) -> Tensor:
        h = 0.5 * self.linear(x, f"{at}.mlp.fc1")
        if self.body == "gpt":
            h = gelu(math.sqrt(self.d) * h) / math.sqrt(4 * self.d * second_moment("gelu", 0.5))
        else:
            z, u = h.split(4 * self.d, dim=-1)
            h = u * silu(math.sqrt(self.d) * z) / math.sqrt(second_moment("silu", 0.5))
        return 2 * self.linear(h, f"{at}.mlp.fc2")

    def join(self, x: Tensor, f: Tensor, name: str) -> Tensor:
        a = self.step(name)
        return (x + a * (f - x)) / torch.sqrt(a**2 + (1 - a) ** 2)

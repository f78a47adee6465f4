"""The methods written out a second time, in plain float64 tensor algebra, from their papers.

The formulas take weights by name and call nothing of ``lrsweep``. Those of the two normalized transformers, which
share little with the others, stand in :mod:`tests.model.spheres`.

Legend: B batch, T sequence, D model width, H heads, K head width.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a scheme does, as its paper says it; the defaults are the pre-LN block."""

    norm: str = "body"
    embed: str = "plain"
    beta: float = 1.0
    cap: float = math.inf
    clip: tuple[float, float] | None = None
    qk: str = "no"
    v: str = "no"
    before_attn: bool = True
    before_mlp: bool = True
    stream_before_mlp: bool = False
    after_proj: bool = False
    after_fc1: bool = False
    after_fc2: bool = False
    after_add: str = "no"
    before_head: bool = True
    layerscale: bool = False
    sigma: bool = False
    final_cap: float = math.inf
    mup: bool = False


def norm(x: Tensor, gain: Tensor, body: str) -> Tensor:
    """LayerNorm without bias (gpt) or RMSNorm (llama) over the last axis."""
    if body == "gpt":
        x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * gain


def rope(x_BxTxHxK: Tensor) -> Tensor:
    """Position t turns the complex number x_i + j·x_{i+K/2} by t·10000^(−2i/K)."""
    seq, half = x_BxTxHxK.shape[1], x_BxTxHxK.shape[-1] // 2
    frequency = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turn = torch.exp(1j * torch.arange(seq, dtype=torch.float64)[:, None] * frequency)[:, None, :]
    turned = torch.complex(x_BxTxHxK[..., :half], x_BxTxHxK[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), dim=-1)


def causal(seq: int) -> Tensor:
    """(T, T), True for the pairs j ≤ i."""
    return torch.tensor([[j <= i for j in range(seq)] for i in range(seq)])


def probabilities(logit_BxHxTxT: Tensor) -> Tensor:
    """Attention weights with an explicit mask."""
    past = causal(logit_BxHxTxT.shape[-1])
    largest = torch.where(past, logit_BxHxTxT, -math.inf).amax(-1, keepdim=True).detach()
    weight = torch.where(past, torch.exp(torch.where(past, logit_BxHxTxT - largest, 0.0)), 0.0)
    return weight / weight.sum(-1, keepdim=True)


def gelu(x: Tensor) -> Tensor:
    """GELU in GPT-2's tanh form."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    """x times its logistic function."""
    return x / (1 + torch.exp(-x))


def power_iteration(weight: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step from v: u = Wv/‖Wv‖, v = Wᵀu/‖Wᵀu‖ without gradient, and σ = uᵀWv with one."""
    with torch.no_grad():
        u = weight @ v
        u = u / u.norm()
        v = weight.T @ u
        v = v / v.norm()
    return u, v, u @ weight @ v


class Reference:
    """Forward pass of a recipe on named weights.

    Args:
        trained: whether σReparam takes σ from one step of power iteration, else the true spectral norm.
    """

    def __init__(
        self, recipe: Recipe, body: str, weights: dict[str, Tensor], *, heads: int, trained: bool = False
    ) -> None:
        self.recipe, self.body, self.heads, self.trained, self.w = recipe, body, heads, trained, weights
        self.layers = sum(name.endswith("attn.qkv.weight") for name in weights)
        self.largest_logit: list[Tensor] = []

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.w[f"{name}.weight"]
        if self.recipe.sigma:
            if self.trained:
                sigma = power_iteration(weight, self.w[f"{name}.v"])[2]
            else:
                sigma = torch.linalg.matrix_norm(weight, 2)
            weight = self.w[f"{name}.sigma_gain"] / sigma * weight
        return torch.einsum("...i,oi->...o", x, weight)

    def norm(self, x: Tensor, name: str) -> Tensor:
        if self.recipe.norm == "dyt":
            return self.w[f"{name}.gain"] * torch.tanh(self.w[f"{name}.a"] * x) + self.w[f"{name}.bias"]
        return norm(x, self.w[f"{name}.gain"], "llama" if self.recipe.norm == "rms" else self.body)

    def norm_if(self, present: bool, x: Tensor, name: str) -> Tensor:
        return self.norm(x, name) if present else x

    def heads_norm(self, scope: str, x_BxTxHxK: Tensor, name: str) -> Tensor:
        if scope == "no":
            return x_BxTxHxK
        if scope == "head":
            return self.norm(x_BxTxHxK, name)
        return self.norm(x_BxTxHxK.flatten(-2), f"{name}.norm").reshape(x_BxTxHxK.shape)

    def logit(self, q_BxTxHxK: Tensor, k_BxTxHxK: Tensor, at: str) -> Tensor:
        width = q_BxTxHxK.shape[-1]
        scale = self.recipe.beta * (math.sqrt(32) / width if self.recipe.mup else 1 / math.sqrt(width))
        return scale * torch.einsum("bihk,bjhk->bhij", q_BxTxHxK, k_BxTxHxK)

    def attention_weights(self, q_BxTxHxK: Tensor, k_BxTxHxK: Tensor, at: str) -> Tensor:
        recipe, logit = self.recipe, self.logit(q_BxTxHxK, k_BxTxHxK, at)
        past = causal(logit.shape[-1])
        self.largest_logit.append(logit.detach()[..., past].amax(dim=(0, -1)))
        p = probabilities(recipe.cap * torch.tanh(logit / recipe.cap) if math.isfinite(recipe.cap) else logit)
        if recipe.clip is not None:
            zeta, gamma = recipe.clip
            p = torch.where(past, torch.clip((zeta - gamma) * p + gamma, 0, 1), 0.0)
        return p

    def attention(self, x: Tensor, at: str) -> Tensor:
        qkv = self.linear(x, f"{at}.attn.qkv")
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in qkv.split(x.shape[-1], dim=-1))
        q = rope(self.heads_norm(self.recipe.qk, q, f"{at}.attn.q_norm"))
        k = rope(self.heads_norm(self.recipe.qk, k, f"{at}.attn.k_norm"))
        v = self.heads_norm(self.recipe.v, v, f"{at}.attn.v_norm")
        mixed = torch.einsum("bhij,bjhk->bihk", self.attention_weights(q, k, at), v)
        return self.linear(mixed.reshape(x.shape), f"{at}.attn.proj")

    def mlp(self, x: Tensor, at: str) -> Tensor:
        h, normed = self.linear(x, f"{at}.mlp.fc1"), self.recipe.after_fc1
        if self.body == "gpt":
            h = gelu(self.norm_if(normed, h, f"{at}.mlp.fc1_norm"))
        else:
            gate, up = h.split(h.shape[-1] // 2, dim=-1)
            gate = self.norm_if(normed, gate, f"{at}.mlp.gate_norm")
            h = silu(gate) * self.norm_if(normed, up, f"{at}.mlp.up_norm")
        return self.linear(h, f"{at}.mlp.fc2")

    def join(self, x: Tensor, f: Tensor, name: str) -> Tensor:
        if self.recipe.after_add != "no":
            alpha = (2 * self.layers) ** 0.25 if self.recipe.after_add == "deep" else 1
            return self.norm(alpha * x + f, f"{name}.norm")
        return x + (self.w[f"{name}.gain"] * f if self.recipe.layerscale else f)

    def block(self, x: Tensor, at: str) -> Tensor:
        recipe = self.recipe
        f = self.attention(self.norm_if(recipe.before_attn, x, f"{at}.attn_norm"), at)
        x = self.join(x, self.norm_if(recipe.after_proj, f, f"{at}.proj_norm"), f"{at}.attn_residual")
        x = self.norm_if(recipe.stream_before_mlp, x, f"{at}.mlp_stream_norm")
        f = self.mlp(self.norm_if(recipe.before_mlp, x, f"{at}.mlp_norm"), at)
        return self.join(x, self.norm_if(recipe.after_fc2, f, f"{at}.fc2_norm"), f"{at}.mlp_residual")

    def embed(self, tokens: Tensor) -> Tensor:
        e = self.w["embedding"][tokens]
        if self.recipe.embed == "detach":
            return 0.1 * e + 0.9 * e.detach()
        if self.recipe.embed == "norm":
            return self.norm(e, "embed")
        if self.recipe.embed == "sqrt_d":
            return math.sqrt(64 if self.recipe.mup else e.shape[-1]) * e
        return e

    def logits(self, x: Tensor) -> Tensor:
        y = self.linear(self.norm_if(self.recipe.before_head, x, "final_norm"), "head")
        if self.recipe.mup:
            y = y * (64 / x.shape[-1])
        cap = self.recipe.final_cap
        return cap * torch.tanh(y / cap) if math.isfinite(cap) else y

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Output of every block, and the logits."""
        blocks = [f"blocks.{layer}" for layer in range(self.layers)]
        outputs = list(itertools.accumulate(blocks, self.block, initial=self.embed(tokens)))
        return outputs[1:], self.logits(outputs[-1])

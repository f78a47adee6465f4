"""The schemes of Rybakov et al. (arXiv 2410.16682) written out a second time, in plain float64 tensor algebra.

The formulas take weights by name and call nothing of ``lrsweep``. Below them stand the few helpers that build and
randomise real models for a comparison.

Legend: B batch, T sequence, D model width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrsweep.config import ModelShape
from lrsweep.model import GPT, init_weights
from lrsweep.model.linear import SigmaReparam
from lrsweep.schemes import Scheme, find

# The tensors of these tests are tiny: more threads would only wait for one another, and sums must come out one way.
torch.set_num_threads(1)

EPS = 1e-5
BODIES = ("gpt", "llama")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a scheme does, as its paper says it; the defaults are the pre-LN block."""

    beta: float = 1.0
    cap: float = math.inf
    clip: tuple[float, float] | None = None
    qk: str = "no"
    v: str = "no"
    before_attn: bool = True
    before_mlp: bool = True
    after_proj: bool = False
    after_fc2: bool = False
    before_head: bool = True
    layerscale: bool = False
    sigma: bool = False


RECIPES = {
    "preln": Recipe(),
    "soft_temp": Recipe(beta=0.5),
    "soft_clip": Recipe(clip=(1.03, -0.03)),
    "sigma_reparam": Recipe(sigma=True),
    "layerscale": Recipe(layerscale=True),
    "soft_cap": Recipe(cap=50.0),
    "qknorm": Recipe(qk="head"),
    "qk_fc_norm": Recipe(qk="head", after_proj=True, after_fc2=True),
    "qkv_norm": Recipe(qk="head", v="head", before_attn=False),
    "qknorm_cap": Recipe(qk="head", cap=50.0),
}
"""The ten rows of the paper."""

OWN_ROWS = {
    "full_width": (
        Scheme(name="full_width", source="", formula="", qk_norm="full", v_norm="full", prob_clip=(1.1, -0.1)),
        Recipe(qk="full", v="full", clip=(1.1, -0.1)),
    ),
    "bare": (
        Scheme(
            name="bare",
            source="",
            formula="",
            mlp_pre_norm=False,
            final_norm=False,
            fc2_norm=True,
            logit_scale=2.0,
            logit_cap=20.0,
            residual="layerscale",
            linear="sigma_reparam",
        ),
        Recipe(before_mlp=False, before_head=False, after_fc2=True, beta=2.0, cap=20.0, layerscale=True, sigma=True),
    ),
}
"""Rows as a user may register them, for the fields that no row of the paper uses and for combinations."""

ALL_RECIPES = {**RECIPES, **{name: recipe for name, (_, recipe) in OWN_ROWS.items()}}
CASES = tuple(itertools.product(RECIPES, BODIES))
ALL_CASES = tuple(itertools.product(ALL_RECIPES, BODIES))


def scheme_of(name: str) -> Scheme:
    """The row under test."""
    return OWN_ROWS[name][0] if name in OWN_ROWS else find(name)


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


def probabilities(q_BxTxHxK: Tensor, k_BxTxHxK: Tensor, recipe: Recipe) -> Tensor:
    """Attention weights (B, H, T, T) with an explicit mask."""
    seq = q_BxTxHxK.shape[1]
    logit = recipe.beta * torch.einsum("bihk,bjhk->bhij", q_BxTxHxK, k_BxTxHxK) / math.sqrt(q_BxTxHxK.shape[-1])
    if math.isfinite(recipe.cap):
        logit = recipe.cap * torch.tanh(logit / recipe.cap)
    past = torch.tensor([[j <= i for j in range(seq)] for i in range(seq)])
    largest = torch.where(past, logit, -math.inf).amax(-1, keepdim=True).detach()
    weight = torch.where(past, torch.exp(torch.where(past, logit - largest, 0.0)), 0.0)
    p = weight / weight.sum(-1, keepdim=True)
    if recipe.clip is not None:
        zeta, gamma = recipe.clip
        p = torch.where(past, torch.clip((zeta - gamma) * p + gamma, 0, 1), 0.0)
    return p


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

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.w[f"{name}.weight"]
        if self.recipe.sigma:
            if self.trained:
                sigma = power_iteration(weight, self.w[f"{name}.v"])[2]
            else:
                sigma = torch.linalg.matrix_norm(weight, 2)
            weight = self.w[f"{name}.sigma_gain"] / sigma * weight
        return torch.einsum("...i,oi->...o", x, weight)

    def norm_if(self, present: bool, x: Tensor, name: str) -> Tensor:
        return norm(x, self.w[f"{name}.gain"], self.body) if present else x

    def heads_norm(self, scope: str, x_BxTxHxK: Tensor, name: str) -> Tensor:
        if scope == "no":
            return x_BxTxHxK
        if scope == "head":
            return norm(x_BxTxHxK, self.w[f"{name}.gain"], self.body)
        whole = x_BxTxHxK.reshape(*x_BxTxHxK.shape[:2], -1)
        return norm(whole, self.w[f"{name}.norm.gain"], self.body).reshape(x_BxTxHxK.shape)

    def attention(self, x: Tensor, at: str) -> Tensor:
        qkv = self.linear(x, f"{at}.attn.qkv")
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in qkv.split(x.shape[-1], dim=-1))
        q = rope(self.heads_norm(self.recipe.qk, q, f"{at}.attn.q_norm"))
        k = rope(self.heads_norm(self.recipe.qk, k, f"{at}.attn.k_norm"))
        v = self.heads_norm(self.recipe.v, v, f"{at}.attn.v_norm")
        mixed = torch.einsum("bhij,bjhk->bihk", probabilities(q, k, self.recipe), v)
        return self.linear(mixed.reshape(x.shape), f"{at}.attn.proj")

    def mlp(self, x: Tensor, at: str) -> Tensor:
        h = self.linear(x, f"{at}.mlp.fc1")
        if self.body == "gpt":
            h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        else:
            gate, up = h.split(h.shape[-1] // 2, dim=-1)
            h = gate / (1 + torch.exp(-gate)) * up
        return self.linear(h, f"{at}.mlp.fc2")

    def join(self, x: Tensor, f: Tensor, name: str) -> Tensor:
        return x + (self.w[f"{name}.gain"] * f if self.recipe.layerscale else f)

    def block(self, x: Tensor, at: str) -> Tensor:
        recipe = self.recipe
        f = self.attention(self.norm_if(recipe.before_attn, x, f"{at}.attn_norm"), at)
        x = self.join(x, self.norm_if(recipe.after_proj, f, f"{at}.proj_norm"), f"{at}.attn_residual")
        f = self.mlp(self.norm_if(recipe.before_mlp, x, f"{at}.mlp_norm"), at)
        return self.join(x, self.norm_if(recipe.after_fc2, f, f"{at}.fc2_norm"), f"{at}.mlp_residual")

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Output of every block, and the logits."""
        x = self.w["embedding"][tokens]
        outputs = []
        for layer in itertools.count():
            if f"blocks.{layer}.attn.qkv.weight" not in self.w:
                break
            x = self.block(x, f"blocks.{layer}")
            outputs.append(x)
        return outputs, self.linear(self.norm_if(self.recipe.before_head, x, "final_norm"), "head")


SHAPE = ModelShape(n_layers=2, d_model=24, n_heads=3, seq_len=12, vocab_size=40)
"""Small, with no two widths alike: D 24, K 8, MLP 96 or 64, V 40."""


def build(name: str, body: str, *, seed: int = 0, shape: ModelShape = SHAPE) -> GPT:
    """A model at its initial weights."""
    model = GPT(scheme_of(name), body, shape)  # type: ignore[arg-type]
    init_weights(model, seed)
    return model


@torch.no_grad()
def randomise(model: GPT, *, seed: int = 1) -> GPT:
    """Every parameter at random and of order 1; q and k larger, by another factor in each head.

    Attention logits then run from near 0 (first head) to beyond a cap of 50 (last head), and gains differ from one
    another and from 1. u, v and the gain of σReparam are those of the new weights, the gain off by a random factor.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = model.shape
    sharp = torch.logspace(-0.5, 0.6, shape.n_heads).repeat_interleave(shape.d_head)[:, None]
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.ndim == 2:
            p.copy_(noise if name == "embedding" else noise / p.shape[1] ** 0.5)
        else:
            p.copy_(1 + noise / 2)
        if name.endswith("qkv.weight"):
            p[: 2 * shape.d_model] *= sharp.repeat(2, 1)
        if name.endswith(("q_norm.gain", "k_norm.gain", "q_norm.norm.gain", "k_norm.norm.gain")):
            p *= 4
    for module in model.modules():
        if isinstance(module, SigmaReparam):
            module.start()
            module.sigma_gain *= 1 + torch.rand((), generator=generator)
    return model


def random_double(name: str, body: str, *, seed: int = 1) -> GPT:
    """A randomised float64 model; its RoPE tables, which it keeps in fp32, replaced by exact ones."""
    model = build(name, body).double()
    angle = torch.atan2(*_unit_vectors_turned(model.shape))
    assert torch.allclose(torch.cos(angle), model.cos, atol=1e-6)
    assert torch.allclose(torch.sin(angle), model.sin, atol=1e-6)
    model.cos, model.sin = torch.cos(angle), torch.sin(angle)
    return randomise(model, seed=seed)


def _unit_vectors_turned(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """sin and cos, each (T, 1, K/2), as the reference's RoPE turns the unit vectors of all pairs."""
    ones = torch.zeros(1, shape.seq_len, 1, shape.d_head, dtype=torch.float64)
    ones[..., : shape.d_head // 2] = 1
    cos, sin = rope(ones)[0].chunk(2, dim=-1)
    return sin, cos


def weights_of(model: GPT) -> dict[str, Tensor]:
    """Copies of parameters (with gradients to come) and buffers, by name, in float64."""
    weights = {k: p.detach().double().clone().requires_grad_() for k, p in model.named_parameters()}
    return {**weights, **{k: b.double().clone() for k, b in model.named_buffers()}}


def random_tokens(shape: ModelShape = SHAPE, *, batch: int = 2, extra: int = 0, seed: int = 2) -> Tensor:
    """Token ids (B, T + extra)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocab_size, (batch, shape.seq_len + extra), generator=generator)

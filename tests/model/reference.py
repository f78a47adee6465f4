"""Which formula each row is held against, and the helpers that build and randomise real models for a comparison.

The formulas themselves, which call nothing of ``lrsweep``, stand in :mod:`tests.model.formulas` and
:mod:`tests.model.spheres`.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from lrsweep.config import ModelShape
from lrsweep.model import GPT, init_weights
from lrsweep.model.block import Block
from lrsweep.model.linear import SigmaReparam
from lrsweep.schemes import Scheme, find
from tests.model.formulas import Recipe, Reference, rope
from tests.model.spheres import ANGPT, NGPT

# The tensors of these tests are tiny: more threads would only wait for one another, and sums must come out one way.
torch.set_num_threads(1)

BODIES = ("gpt", "llama")

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
"""The ten rows of Rybakov et al. (arXiv 2410.16682)."""

OTHER_RECIPES = {
    "simplenorm": Recipe(
        norm="rms",
        qk="full",
        v="full",
        before_attn=False,
        after_proj=True,
        before_mlp=False,
        after_fc1=True,
        after_fc2=True,
    ),
    "vanilla_init": Recipe(),
    "embed_detach": Recipe(embed="detach"),
    "scaled_embed": Recipe(embed="sqrt_d"),
    "embed_ln": Recipe(embed="norm"),
    "xavier_init": Recipe(),
    "peri_ln": Recipe(after_proj=True, after_fc2=True),
    "olmo2": Recipe(qk="full", before_attn=False, after_proj=True, before_mlp=False, after_fc2=True),
    "hybridnorm": Recipe(qk="head", v="head", before_attn=False, stream_before_mlp=True, before_mlp=False),
    "post_ln": Recipe(before_attn=False, before_mlp=False, after_add="plain", before_head=False),
    "deepnorm": Recipe(before_attn=False, before_mlp=False, after_add="deep", before_head=False),
    "dyt": Recipe(norm="dyt"),
}
"""The other rows but the two normalized transformers."""

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

MODIFIED = {
    "preln+final_cap": Recipe(final_cap=30.0),
    "qkv_norm+full_qk": Recipe(qk="full", v="full", before_attn=False),
    "qknorm_cap+full_qk": Recipe(qk="full", cap=50.0),
    "hybridnorm+full_qk": Recipe(qk="full", v="full", before_attn=False, stream_before_mlp=True, before_mlp=False),
    "soft_temp+mup": Recipe(beta=0.5, mup=True),
    "scaled_embed+mup": Recipe(embed="sqrt_d", mup=True),
    "sigma_reparam+final_cap+mup": Recipe(sigma=True, final_cap=30.0, mup=True),
}
"""Modifiers that change the forward."""

SPHERES = {"ngpt": NGPT, "angpt": ANGPT}
CAPPED_SPHERES = {f"{name}+final_cap": sphere for name, sphere in SPHERES.items()}

ALL_RECIPES = {**RECIPES, **{name: recipe for name, (_, recipe) in OWN_ROWS.items()}}
"""The paper's rows and those of :data:`OWN_ROWS`."""
EVERY_RECIPE = {**ALL_RECIPES, **OTHER_RECIPES, **MODIFIED}
ROWS = (*RECIPES, *OTHER_RECIPES, *SPHERES)
"""Every registered row."""

CASES = tuple(itertools.product(RECIPES, BODIES))
ALL_CASES = tuple(itertools.product(ALL_RECIPES, BODIES))
ROW_CASES = tuple(itertools.product(ROWS, BODIES))
EVERY_CASE = tuple(itertools.product((*ROWS, *OWN_ROWS, *MODIFIED, *CAPPED_SPHERES), BODIES))
"""Every registered row, those of a user and those of modifiers, on both bodies."""


def scheme_of(name: str) -> Scheme:
    """The row under test."""
    return OWN_ROWS[name][0] if name in OWN_ROWS else find(name)


def reference_of(name: str, body: str, weights: dict[str, Tensor], *, trained: bool = False) -> Reference:
    """The formula of the row under test, on ``weights`` of a model of :data:`SHAPE`."""
    if name in SPHERES:
        return SPHERES[name](body, weights, heads=SHAPE.n_heads)
    if name in CAPPED_SPHERES:
        return CAPPED_SPHERES[name](body, weights, heads=SHAPE.n_heads, final_cap=30.0)
    return Reference(EVERY_RECIPE[name], body, weights, heads=SHAPE.n_heads, trained=trained)


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

    Attention logits then run from near 0 (first head) to beyond a cap of 50 (last head), gains differ from one another
    and from 1, and residual step sizes have both signs. u, v and the gain of σReparam are those of the new weights, the
    gain off by a random factor.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = model.shape
    sharp = torch.logspace(-0.5, 0.6, shape.n_heads).repeat_interleave(shape.d_head)[:, None]
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.ndim == 2:
            p.copy_(noise if name == "embedding" else noise / p.shape[1] ** 0.5)
        elif name.endswith("step.value"):
            p.copy_(noise)
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


def stream_after(block: Block, output: tuple[Tensor, ...]) -> Tensor:
    """The whole stream after a block, also what it has left to be added."""
    return block.take_late(nn.Identity(), *output[:2])[0]

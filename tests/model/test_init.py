"""Initial weights: the standard deviation of every site, shared draws, and what gains start at."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lrsweep.config import ModelShape
from lrsweep.model import GPT
from lrsweep.model.block import SwigluMLP
from lrsweep.model.gpt import init_weights
from lrsweep.model.init import draw
from lrsweep.model.residual import LayerScale
from tests.model.reference import BODIES, EVERY_CASE, ROW_CASES, ROWS, SHAPE, SPHERES, build

WIDE = ModelShape(n_layers=3, d_model=96, n_heads=4, seq_len=4, vocab_size=300)

INITS = {
    "vanilla_init": "small",
    "embed_detach": "small",
    "scaled_embed": "small",
    "embed_ln": "small",
    "xavier_init": "xavier",
    "olmo2": "normal",
    "post_ln": "post_ln",
    "deepnorm": "deepnorm",
    "simplenorm": "simplegpt",
}
"""Rows that start as their papers say; the others start as GPT-2, the two normalized transformers on the sphere."""
OF_A_NORMAL_CUT_AT_3 = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
"""Standard deviation of a normal of deviation 1 of which only [−3, 3] is kept."""


def matrices(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}


def parts(model: GPT) -> dict[tuple[str, int], Tensor]:
    """(site, layer) of every matrix, those fused in QKV and in gate-up apart; fc1 is the gate where there is one."""
    found = {("embedding", 0): model.embedding.detach(), ("head", 0): model.head.weight.detach()}
    for layer, block in enumerate(model.blocks):
        fc1 = ("fc1", "up") if isinstance(block.mlp, SwigluMLP) else ("fc1",)
        for owner, sites in (
            (block.attn.qkv, ("q", "k", "v")),
            (block.attn.proj, ("proj",)),
            (block.mlp.fc1, fc1),
            (block.mlp.fc2, ("fc2",)),
        ):
            pieces = owner.weight.detach().chunk(len(sites))
            found |= {(site, layer): piece for site, piece in zip(sites, pieces, strict=True)}
    return found


def expected_std(init: str, site: str, layer: int, weight: Tensor) -> float:
    """The recipes, each as its paper has it; n_in + n_out is the sum of a matrix's two sides on either orientation."""
    d, n, residual = WIDE.d_model, WIDE.n_layers, site in ("proj", "fc2")
    xavier = math.sqrt(2 / sum(weight.shape))
    if init == "gpt2":
        return 0.02 / math.sqrt(2 * n) if residual else 0.02
    if init == "normal":
        return 0.02
    if init == "small":
        return math.sqrt(2 / (5 * d)) * (math.sqrt(1 / (2 * n)) if residual else 1)
    if init == "xavier":
        return xavier
    if init in ("post_ln", "deepnorm"):
        divided = init == "deepnorm" and site in ("fc1", "up", "fc2", "proj", "v")
        return 1.0 if site == "embedding" else xavier / ((8 * n) ** 0.25 if divided else 1)
    assert init == "simplegpt"
    if site == "head":
        return OF_A_NORMAL_CUT_AT_3 / math.sqrt(d)
    if site == "embedding":
        return 1.0
    return 0.02 / math.sqrt(2 * (layer + 1)) if site in ("proj", "fc2", "up") else 0.02


@pytest.mark.parametrize(("name", "body"), [c for c in ROW_CASES if c[0] not in SPHERES])
def test_every_site_starts_normal_with_its_own_deviation(name: str, body: str) -> None:
    """Mean and deviation within 5 standard errors, and kurtosis but of the head that is cut at 3σ."""
    init = INITS.get(name, "gpt2")
    for (site, layer), p in parts(build(name, body, shape=WIDE)).items():
        z, n = p.double().flatten() / expected_std(init, site, layer, p), p.numel()
        assert abs(z.mean().item()) < 5 / n**0.5, (site, layer)
        assert abs(z.square().mean().item() - 1) < 5 * (2 / n) ** 0.5, (site, layer)
        if (init, site) != ("simplegpt", "head"):
            assert abs(z.pow(4).mean().item() - 3) < 5 * (96 / n) ** 0.5, (site, layer)


def test_inits_that_differ_are_told_apart_by_these_errors() -> None:
    """No two inits give all sites deviations closer than the 5 standard errors above."""
    stds = {
        init: [
            expected_std(init, site, layer, p) for (site, layer), p in parts(build("preln", "gpt", shape=WIDE)).items()
        ]
        for init in ("gpt2", *dict.fromkeys(INITS.values()))
    }
    for one, other in itertools.combinations(stds.values(), 2):
        assert max(abs(math.log(a / b)) for a, b in zip(one, other, strict=True)) > 0.2


@pytest.mark.parametrize("cut", [None, 1.5])
def test_a_large_matrix_is_drawn_from_several_streams(cut: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard normal all, the same again, and none another's; the first that of the whole, where none is cut off."""
    shape = torch.Size((50, 80))
    whole = draw("head.weight", shape, 7, cut=cut)
    monkeypatch.setattr("lrsweep.model.init._STREAM", 1600)
    found = draw("head.weight", shape, 7, cut=cut)
    assert torch.equal(found, draw("head.weight", shape, 7, cut=cut))
    parts = found.view(-1).split(1600)
    assert [len(part) for part in parts] == [1600, 1600, 800]
    assert cut is not None or torch.equal(parts[0], whole.view(-1)[:1600])
    for one, other in itertools.combinations([part[:800] for part in (*parts, whole.view(-1)[1600:])], 2):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.15
    spread = 1.0 if cut is None else 0.743  # of N(0, 1) cut at 1.5 σ
    assert [part.std().item() for part in parts] == pytest.approx([spread] * 3, rel=0.1)
    assert cut is None or found.abs().max() <= cut


@pytest.mark.parametrize("body", BODIES)
def test_the_head_of_simplegpt_is_cut_at_three_sigma(body: str) -> None:
    """28,800 draws: uncut, 78 of them would lie beyond."""
    largest = build("simplenorm", body, shape=WIDE).head.weight.abs().max().item() * WIDE.d_model**0.5
    assert 2.95 < largest <= 3


STORED = SHAPE.d_model**-0.5
VECTORS = {
    "norm.gain": 1.0,
    "embed.gain": 1.0,
    "norm.bias": 0.0,
    "norm.a": 0.5,
    "residual.gain": 1e-4,
    "step.value": STORED,
    "qk_gain.norm.value": STORED,
    "head_out.value": STORED,
    "head_out.0.value": STORED,
    "gate_norm.value": 1.0,
    "up_norm.value": 1.0,
    "fc1_norm.value": 1.0,
}
"""What a vector starts at, by the end of its name."""


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
def test_every_vector_starts_as_its_kind_says(name: str, body: str) -> None:
    """Gains 1 or what 1 is stored as, Dynamic Tanh's a 0.5 and bias 0, σReparam's g the spectral norm."""
    model = build(name, body)
    for key, p in model.named_parameters():
        assert torch.isfinite(p).all()
        if p.ndim == 2:
            continue
        if key.endswith("sigma_gain"):
            spectral = torch.linalg.matrix_norm(model.get_parameter(key.replace("sigma_gain", "weight")), 2)
            torch.testing.assert_close(p, spectral, rtol=1e-5, atol=0)
        else:
            (start,) = {value for suffix, value in VECTORS.items() if key.endswith(suffix)}
            assert torch.equal(p, torch.full_like(p, start)), key


@pytest.mark.parametrize("body", BODIES)
def test_learnable_factors_are_worth_what_their_papers_say(body: str) -> None:
    """s_qk, s_z 1 and α 0.05, all stored at d^−1/2; s_uv·√d with s_uv stored at 1."""
    for name in SPHERES:
        model = build(name, body, shape=WIDE)
        worth = {k: m.effective() for k, m in model.named_modules() if hasattr(m, "effective")}
        expected = {"step": 0.05, "head_out": 1.0, "norm": 1.0}
        expected |= dict.fromkeys(("gate_norm", "up_norm", "fc1_norm"), WIDE.d_model**0.5)
        for key, gain in worth.items():
            value = expected[key.rpartition(".")[2]]
            torch.testing.assert_close(gain, torch.full_like(gain, value), rtol=1e-6, atol=0)
        assert len(worth) == 1 + WIDE.n_layers * (2 if name == "angpt" else (4 if body == "gpt" else 5))


@pytest.mark.parametrize(("layers", "gain"), [(1, 1e-4), (12, 1e-4), (13, 1e-5), (24, 1e-5)])
def test_layerscale_starts_smaller_in_models_deeper_than_12_layers(layers: int, gain: float) -> None:
    shape = ModelShape(n_layers=layers, d_model=4, n_heads=1, seq_len=2, vocab_size=4)
    scales = [m for m in build("layerscale", "gpt", shape=shape).modules() if isinstance(m, LayerScale)]
    assert len(scales) == 2 * layers
    for scale in scales:
        assert scale.gain.shape == (4,)
        assert torch.equal(scale.gain.detach(), torch.full((4,), gain))


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
def test_schemes_of_one_seed_share_their_draws(name: str, body: str) -> None:
    """Every site of the baseline's shape is the baseline's times one number, bitwise where that number is 1.

    But the head that is cut at 3σ, and the rows of unit length, which have the baseline's directions.
    """
    ours, baseline = (parts(build(n, body, seed=7)) for n in (name, "preln"))
    assert ours.keys() == baseline.keys()
    same_shape = [key for key in ours if ours[key].shape == baseline[key].shape]
    assert len(same_shape) >= len(ours) - 6
    for site, layer in same_shape:
        mine, theirs = ours[site, layer], baseline[site, layer]
        if (name, site) == ("simplenorm", "head"):
            continue
        if name.split("+")[0] in SPHERES:
            axis = 0 if name.startswith("ngpt") and site in ("proj", "fc2") else 1
            theirs = theirs / theirs.norm(dim=axis, keepdim=True)
        elif name not in INITS and "mup" not in name:
            assert torch.equal(mine, theirs), (site, layer)
        theirs = theirs * (mine.norm() / theirs.norm())
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0, msg=lambda m, s=site: f"{s}: {m}")


def test_bodies_of_one_seed_share_the_matrices_of_one_shape() -> None:
    gpt, llama = matrices(build("preln", "gpt")), matrices(build("preln", "llama"))
    same = [k for k in gpt if gpt[k].shape == llama[k].shape]
    assert {k.split(".")[-2] for k in same if "." in k} == {"qkv", "proj", "head"}
    for key in same:
        assert torch.equal(gpt[key], llama[key])


@pytest.mark.parametrize("name", ROWS)
def test_a_second_init_equals_the_first_whatever_came_between(name: str) -> None:
    """All parameters and buffers, bitwise; the global random state is neither read nor moved."""
    fresh = build(name, "llama", seed=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    used = build(name, "llama", seed=11)
    with torch.no_grad():
        for tensor in (*used.parameters(), *used.buffers()):
            tensor.add_(0.5) if tensor is not used.cos and tensor is not used.sin else None
    init_weights(used, 3)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in (*fresh.named_parameters(), *fresh.named_buffers()):
        assert torch.equal(value, dict((*used.named_parameters(), *used.named_buffers()))[key]), key


@pytest.mark.parametrize("body", BODIES)
def test_seeds_and_matrices_have_streams_of_their_own(body: str) -> None:
    """No two matrices of one shape are alike, within a seed or between two; correlation within 5 standard errors."""
    drawn = [p for seed in (0, 1) for p in matrices(build("preln", body, seed=seed, shape=WIDE)).values()]
    pairs = [(a, b) for a, b in itertools.combinations(drawn, 2) if a.shape == b.shape]
    assert len(pairs) > len(drawn) / 2
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()
        assert abs(correlation) < 5 / a.numel() ** 0.5

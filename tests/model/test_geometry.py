"""Weights in the unit ball and on the unit sphere: constants, lengths at the start, and the projection."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrsweep.config import ModelShape
from lrsweep.model import GPT
from lrsweep.model.geometry import factors, project
from lrsweep.schemes import all_schemes, find
from tests.model.reference import BODIES, SHAPE, build, random_tokens
from tests.model.spheres import second_moment

DEEP = ModelShape(n_layers=12, d_model=512, n_heads=8, seq_len=16, vocab_size=64)


def rows_of(model: GPT, scheme: str) -> dict[str, Tensor]:
    """Lengths of the rows of every matrix: over the input axis (anGPT), or over the embedding axis (nGPT)."""
    over_outputs = ("attn.proj.weight", "mlp.fc2.weight") if scheme == "ngpt" else ()
    return {
        key: p.detach().norm(dim=0 if key.endswith(over_outputs) else 1)
        for key, p in model.named_parameters()
        if p.ndim == 2
    }


def test_constants_of_angpt_on_its_own_body_are_those_of_its_recipe() -> None:
    """u, z: 0.5·W h; 2·W_d(3.74·u·silu(√d·z)); ν_qkv = √(d/d_h), ν_p = √(d_h/d).

    The integral that 3.74 stands for is 3.7203 exactly, 0.5% below the printed figure, and that is what is used.
    """
    shape = ModelShape(n_layers=1, d_model=256, n_heads=4, seq_len=4, vocab_size=8)
    constant = factors(find("angpt"), "llama", shape)
    assert constant.up == 0.5
    assert constant.fc1 == 0.5 * math.sqrt(256)
    assert constant.fc2 / 2 == pytest.approx(3.74, rel=0.006)
    assert constant.fc2 / 2 == pytest.approx(3.7203, abs=1e-4)
    assert constant.fc2 / 2 == pytest.approx(1 / math.sqrt(second_moment("silu", 0.5)), rel=1e-9)
    assert constant.v == math.sqrt(256 / 64)
    assert constant.proj == math.sqrt(64 / 256)


def test_the_constant_of_the_other_body_follows_from_gelu_likewise() -> None:
    """2·W_d(c·gelu(0.5·√d·W_u h)), c = 1/√(4d·E[gelu(g)²]), g of std 0.5: the 4d products again of length 1."""
    constant = factors(find("angpt"), "gpt", SHAPE)
    d = SHAPE.d_model
    assert constant.fc1 == pytest.approx(0.5 * math.sqrt(d), rel=1e-12)
    assert constant.fc2 == pytest.approx(2 / math.sqrt(4 * d * second_moment("gelu", 0.5)), rel=1e-9)


@pytest.mark.parametrize("scheme", [s for s in all_schemes() if s.name != "angpt"], ids=lambda s: s.name)
def test_no_other_row_has_constants(scheme) -> None:  # type: ignore[no-untyped-def]
    for body in BODIES:
        constant = factors(scheme, body, SHAPE)  # type: ignore[arg-type]
        assert {constant.v, constant.proj, constant.fc1, constant.up, constant.fc2} == {1.0}


@pytest.mark.parametrize("body", BODIES)
def test_ngpt_keeps_the_stream_on_the_unit_sphere(body: str) -> None:
    """Every token after every block, to fp32's rounding, at initial weights and at weights far from them."""
    model, lengths = build("ngpt", body), []
    for block in model.blocks:
        for site in ("attn_residual", "mlp_residual"):
            block.get_submodule(site).register_forward_hook(lambda _m, _i, out: lengths.append(out.norm(dim=-1)))
    model(random_tokens())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    model(random_tokens())
    assert len(lengths) == 4 * SHAPE.n_layers
    for length in lengths:
        torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=1e-6)


@pytest.mark.parametrize("body", BODIES)
def test_angpt_keeps_the_stream_near_length_one_without_a_norm(body: str) -> None:
    """12 layers of d 512 at the start: 1 within 5% at every token after every block. The same, but only on average, for
    each head's v, for FC2's output, and for Proj's where a token sees itself alone."""
    model, seen = build("angpt", body, shape=DEEP), defaultdict(list)

    def watch(module: torch.nn.Module, what: str) -> None:
        module.register_forward_hook(lambda _m, _i, out: seen[what].append(out.norm(dim=-1)))

    for block in model.blocks:
        watch(block.attn.v_norm, "v")
        watch(block.proj_norm, "proj")
        watch(block.fc2_norm, "fc2")
        watch(block.attn_residual, "stream")
        watch(block.mlp_residual, "stream")
    with torch.no_grad():
        model(random_tokens(DEEP))
    for length in seen["stream"]:
        torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=0.05)
    for what, token in (("v", slice(None)), ("fc2", slice(None)), ("proj", 0)):
        assert torch.stack(seen[what])[:, :, token].mean().item() == pytest.approx(1.0, abs=0.05), what


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["ngpt", "angpt"])
def test_all_matrices_start_with_rows_of_length_one(name: str, body: str) -> None:
    lengths = rows_of(build(name, body), name)
    assert {k.split(".")[-2] for k in lengths if "." in k} == {"qkv", "proj", "fc1", "fc2", "head"}
    for key, length in lengths.items():
        torch.testing.assert_close(length, torch.ones_like(length), rtol=0, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@settings(max_examples=40)
@given(
    n=st.integers(1, 9), m=st.integers(1, 9), size=st.sampled_from([1e-6, 0.3, 1.0, 1e6]), seed=st.integers(0, 2**31)
)
def test_projections_reach_the_nearest_point(n: int, m: int, size: float, seed: int) -> None:
    """w/‖w‖ on the sphere, w/max(1, ‖w‖) in the ball, on either axis; a second time changes nothing beyond rounding."""
    weight = size * torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis in (0, 1):
        length = (weight**2).sum(axis, keepdim=True).sqrt()
        for geometry, expected in (("sphere", weight / length), ("ball", weight / length.clamp(min=1))):
            ours = weight.clone()
            project(ours, axis, geometry)
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
            again = ours.clone()
            project(again, axis, geometry)
            torch.testing.assert_close(again, ours, rtol=1e-15, atol=0)


def test_the_ball_leaves_inner_rows_alone_bitwise() -> None:
    weight = torch.tensor([[0.3, 0.4], [3.0, 4.0]])
    project(weight, 1, "ball")
    assert torch.equal(weight, torch.tensor([[0.3, 0.4], [0.6, 0.8]]))

"""σReparam."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.model.linear import SigmaReparam
from tests.model.reference import BODIES, SHAPE, build, random_tokens

QUICK = settings(max_examples=40)
widths = st.integers(1, 40)
seeds = st.integers(0, 2**31)


def started(n_in: int, n_out: int, seed: int) -> SigmaReparam:
    layer = SigmaReparam(n_in, n_out)
    with torch.no_grad():
        layer.weight.copy_(0.02 * torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed)))
    layer.start()
    return layer


def effective(layer: SigmaReparam) -> torch.Tensor:
    """The matrix that the layer applies, read off the identity."""
    return layer(torch.eye(layer.weight.shape[1], dtype=layer.weight.dtype)).T.detach()


@QUICK
@given(n_in=widths, n_out=widths, seed=seeds, training=st.booleans())
def test_the_layer_is_unchanged_at_start_and_g_is_its_spectral_norm(
    n_in: int, n_out: int, seed: int, training: bool
) -> None:
    """Tall, wide, square, one row or column: x Wᵀ to 1e-5, and ‖(g/σ)·W‖₂ = g = ‖W‖₂ to 1e-5."""
    layer = started(n_in, n_out, seed).train(training)
    scale = layer.weight.abs().max().item()
    torch.testing.assert_close(effective(layer), layer.weight.detach(), rtol=1e-5, atol=1e-5 * scale)
    true = torch.linalg.matrix_norm(layer.weight.detach().double(), 2).item()
    assert layer.sigma_gain.item() == pytest.approx(true, rel=1e-5)
    assert torch.linalg.matrix_norm(effective(layer).double(), 2).item() == pytest.approx(true, rel=1e-5)


@QUICK
@given(n_in=widths, n_out=widths, seed=seeds, factor=st.floats(1e-3, 1e3), gain=st.floats(0.1, 10))
def test_the_spectral_norm_is_g_whatever_the_size_of_w(
    n_in: int, n_out: int, seed: int, factor: float, gain: float
) -> None:
    layer = started(n_in, n_out, seed).train()
    with torch.no_grad():
        layer.weight *= factor
        layer.sigma_gain.fill_(gain)
    assert torch.linalg.matrix_norm(effective(layer).double(), 2).item() == pytest.approx(gain, rel=1e-5)


def test_power_iteration_finds_sigma_from_any_start() -> None:
    """Singular values 3, 2, 1, 0.5: the error of σ shrinks by (2/3)⁴ in a step; after 40 forwards it is below 1e-5."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (6, 4))
    layer = started(4, 6, 0).train()
    with torch.no_grad():
        layer.weight.copy_(left[:, :4] @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])) @ right.T)
        layer.sigma_gain.fill_(1.0)
        layer.v.copy_(torch.nn.functional.normalize(torch.ones(4), dim=0))
    for _ in range(40):
        layer(torch.zeros(1, 4))
    assert torch.linalg.matrix_norm(effective(layer), 2).item() == pytest.approx(1.0, rel=1e-5)


def test_u_and_v_move_in_training_forwards_only_and_carry_no_gradient() -> None:
    """Buffers, not parameters; the gradient of W is that of g·W/(uᵀWv) with u and v constant."""
    layer = started(5, 7, 0)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "sigma_gain"}
    assert not layer.u.requires_grad
    assert not layer.v.requires_grad
    with torch.no_grad():
        layer.weight += 0.02 * torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    before = layer.u.clone(), layer.v.clone()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))

    layer.eval()(x)
    assert torch.equal(layer.u, before[0])
    assert torch.equal(layer.v, before[1])

    layer.train()(x).square().sum().backward()
    assert not torch.equal(layer.u, before[0])
    assert not torch.equal(layer.v, before[1])
    assert not layer.u.requires_grad
    assert not layer.v.requires_grad

    weight, gain = (p.detach().double().requires_grad_() for p in (layer.weight, layer.sigma_gain))
    u, v = layer.u.double(), layer.v.double()
    (x.double() @ (gain / (u @ weight @ v) * weight).T).square().sum().backward()
    for ours, theirs in ((layer.weight.grad, weight.grad), (layer.sigma_gain.grad, gain.grad)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("body", BODIES)
def test_every_matrix_but_the_embedding_is_reparametrised_and_starts_as_the_baseline(body: str) -> None:
    """Four a block and the head; logits of the baseline of the same seed to 1e-5, in training and in evaluation."""
    model, baseline = build("sigma_reparam", body), build("preln", body)
    layers = [m for m in model.modules() if isinstance(m, SigmaReparam)]
    assert len(layers) == 4 * SHAPE.n_layers + 1
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2}
    assert {n for n, p in baseline.named_parameters() if p.ndim == 2} == matrices
    for layer in layers:
        true = torch.linalg.matrix_norm(layer.weight.detach().double(), 2).item()
        assert torch.linalg.matrix_norm(effective(layer.eval()).double(), 2).item() == pytest.approx(true, rel=1e-5)
    tokens = random_tokens()
    for training in (False, True):
        logits = model.train(training)(tokens)[0]
        torch.testing.assert_close(logits, baseline(tokens)[0], rtol=1e-5, atol=1e-5)


def test_under_autocast_sigma_is_still_computed_in_fp32() -> None:
    """bf16 would leave the spectral norm off by some 1e-3."""
    layer = started(32, 48, 0).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.eye(32))
    assert y.dtype == torch.bfloat16
    assert layer.u.dtype == torch.float32
    expected = layer.weight.detach().T.bfloat16()
    assert (y != expected).float().mean() < 0.05, "rounded once, after the division"

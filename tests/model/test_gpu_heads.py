"""The GPU's kernels between QKV and the score against float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from lrsweep.model.attention import rope_tables
from tests.conftest import KERNEL_DEVICE, KERNEL_HALF, needs_triton

pytestmark = needs_triton
EPS = 1e-5
Shape = tuple[int, int, int, int]
"""Sequences, tokens, heads, head width."""
Norm = Literal["layer", "rms"] | None
NORMS: tuple[Norm, ...] = (None, "layer", "rms")
"""Of each head of queries and keys."""


def outputs_of_qkv(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    batch, seq, heads, width = shape
    values = torch.randn(batch, seq, 3 * heads * width, generator=torch.Generator().manual_seed(seed))
    return (2 * values).to(dtype).to(KERNEL_DEVICE)


def tables_of(seq: int, width: int) -> list[Tensor]:
    return [table.to(KERNEL_DEVICE) for table in rope_tables(seq, width)]


def gains_of(norm: Norm, width: int) -> tuple[Tensor, Tensor] | None:
    """Of queries and keys."""
    if norm is None:
        return None
    values = 1 + 0.5 * torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    q_gain, k_gain = values.to(KERNEL_DEVICE)
    return q_gain.requires_grad_(), k_gain.requires_grad_()


def measured(qkv: Tensor, shape: Shape, norm: Norm = None) -> list[Tensor]:
    """q, k, v, squares, and gradients for gradients of q, k and v that are random but the same for all."""
    from lrsweep.model.gpu_heads import heads_of

    _, seq, heads, width = shape
    leaf, gains = qkv.detach().requires_grad_(), gains_of(norm, width)
    *qkv_BxTxHxK, squares = heads_of(
        leaf, gains, *tables_of(seq, width), heads=heads, centred=norm == "layer", eps=EPS, measured=True
    )
    given = [slopes.to(qkv) for slopes in all_slopes(shape)]
    gradients = torch.autograd.grad(qkv_BxTxHxK, [leaf, *(gains or ())], given)
    results = [*(t.detach() for t in qkv_BxTxHxK), squares, *gradients]
    assert [t.dtype for t in results[:5]] == [qkv.dtype] * 3 + [torch.float32, qkv.dtype]
    assert not squares.requires_grad
    return [t.double().cpu() for t in results]


def all_slopes(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def reference(qkv: Tensor, shape: Shape, slopes: list[Tensor], norm: Norm = None) -> list[Tensor]:
    """In float64, a pair as a complex number."""
    batch, seq, heads, width = shape
    half = width // 2
    exact = qkv.detach().double().cpu().requires_grad_()
    gains = [gain.detach().double().cpu().requires_grad_() for gain in gains_of(norm, width) or ()]
    q, k, v = exact.view(batch, seq, 3, heads, width).unbind(2)
    if gains:
        q, k = (normalized(x, centred=norm == "layer") * gain for x, gain in zip((q, k), gains, strict=True))
    angle = torch.arange(seq)[:, None].double() * 10_000.0 ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None, :]

    def turned(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    results = [turned(q), turned(k), v]
    gradients = torch.autograd.grad(results, [exact, *gains], [s.double() for s in slopes])
    return [*(t.detach() for t in results), exact.detach().square().sum(-1, keepdim=True), *gradients]


def normalized(x: Tensor, *, centred: bool) -> Tensor:
    deviation = x - x.mean(-1, keepdim=True) if centred else x
    return deviation / (deviation.square().mean(-1, keepdim=True) + EPS).sqrt()


def assert_near(found: Tensor, exact: Tensor, norm: Norm) -> None:
    """In fp32; a norm divides, and sums once more."""
    rtol, atol = (1e-5, 2e-5) if norm is None else (2e-5, 5e-5)
    torch.testing.assert_close(found, exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 8), (2, 9, 2, 24), (1, 70, 4, 64), (2, 3, 12, 128)])
def test_results_squares_and_gradients_equal_float64(shape: Shape, norm: Norm) -> None:
    """Numbers of heads and widths that are powers of 2 or not; more and fewer pairs than a program holds."""
    qkv = outputs_of_qkv(shape)
    for ours, exact in zip(measured(qkv, shape, norm), reference(qkv, shape, all_slopes(shape), norm), strict=True):
        assert ours.shape == exact.shape
        assert_near(ours, exact, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision_is_read_and_written_but_not_computed_in(norm: Norm) -> None:
    shape, step = (2, 33, 3, 16), 2 * torch.finfo(KERNEL_HALF).eps
    qkv = outputs_of_qkv(shape, KERNEL_HALF)
    expected = reference(qkv, shape, [s.to(KERNEL_HALF) for s in all_slopes(shape)], norm)
    found = measured(qkv, shape, norm)
    assert torch.equal(found[2], expected[2])
    for ours, exact in zip(found[3:4] + found[5:], expected[3:4] + expected[5:], strict=True):
        assert_near(ours, exact, norm)
    for i in (0, 1, 4):
        torch.testing.assert_close(found[i], expected[i], rtol=step, atol=2e-3)


@pytest.mark.parametrize("place", [(1, 2, 0), (1, 2, 20), (1, 2, 47)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_not_finite_stays_in_its_token(norm: Norm, bad: float, place: tuple[int, int, int]) -> None:
    """In a query, a key or a value; on the way back through a norm too."""
    shape = (2, 4, 2, 8)
    qkv = outputs_of_qkv(shape)
    qkv[place] = bad
    others = torch.ones(2, 4, dtype=torch.bool)
    others[place[:2]] = False
    *results, squares, gradient = measured(qkv, shape, norm)[:5]
    for each in (*results, squares, gradient):
        assert each[others].isfinite().all()
    assert not squares[place[:2]].isfinite().all()
    assert gradient.isfinite().all() == (norm is None or place[2] == 47)


def test_values_are_not_copied_and_squares_not_made_unasked() -> None:
    from lrsweep.model.gpu_heads import heads_of

    qkv = outputs_of_qkv((1, 3, 2, 8))
    _, _, v, squares = heads_of(qkv, None, *tables_of(3, 8), heads=2, centred=False, eps=EPS, measured=False)
    assert v.data_ptr() == qkv.data_ptr() + 2 * 16 * qkv.element_size()
    assert squares.numel() == 0


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_may_come_in_any_order_of_axes(norm: Norm) -> None:
    """As (B, H, T, K), as attention has them, or with the channels apart."""
    from lrsweep.model.gpu_heads import heads_of

    shape = (2, 5, 3, 8)
    slopes = [s.to(KERNEL_DEVICE) for s in all_slopes(shape)]
    expected = measured(outputs_of_qkv(shape), shape, norm)[4]
    orders = [s.transpose(1, 2).contiguous().transpose(1, 2) for s in slopes], [s.mT.contiguous().mT for s in slopes]
    for turned in orders:
        leaf = outputs_of_qkv(shape).requires_grad_()
        *qkv, _ = heads_of(
            leaf, gains_of(norm, 8), *tables_of(5, 8), heads=3, centred=norm == "layer", eps=EPS, measured=False
        )
        (gradient,) = torch.autograd.grad(qkv, leaf, list(turned))
        assert torch.equal(gradient.double().cpu(), expected)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_torch_may_trace_it(norm: Norm, asked: bool) -> None:
    """Torch's own check of custom operators: schema, shapes and types without data."""
    from lrsweep.model import gpu_heads

    shape = (2, 3, 2, 16)
    qkv, tables = outputs_of_qkv(shape, KERNEL_HALF), tables_of(3, 16)
    gains = [gain.detach() for gain in gains_of(norm, 16) or ()] or [None, None]
    torch.library.opcheck(gpu_heads._rotate, (qkv, 2, asked, *gains, *tables, norm == "layer", EPS))
    slopes = [s.to(KERNEL_DEVICE, KERNEL_HALF) for s in all_slopes(shape)]
    raw = None if norm is None else qkv
    torch.library.opcheck(gpu_heads._rotate_back, (*slopes, *gains, raw, *tables, norm == "layer", EPS))


@pytest.mark.parametrize("normed", [True, False])
def test_it_warms_up(normed: bool) -> None:
    from lrsweep.model import gpu_heads

    gpu_heads.warm_up(3, 8, KERNEL_HALF, torch.device(KERNEL_DEVICE), normed=normed, centred=normed)

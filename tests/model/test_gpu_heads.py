"""The GPU's kernels between QKV and the score against float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lrsweep.model.attention import rope_tables
from tests.conftest import KERNEL_DEVICE, KERNEL_HALF, needs_triton

pytestmark = needs_triton
Shape = tuple[int, int, int, int]
"""Sequences, tokens, heads, head width."""


def outputs_of_qkv(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    batch, seq, heads, width = shape
    values = torch.randn(batch, seq, 3 * heads * width, generator=torch.Generator().manual_seed(seed))
    return (2 * values).to(dtype).to(KERNEL_DEVICE)


def measured(qkv: Tensor, shape: Shape) -> list[Tensor]:
    """q, k, v, squares, and the gradient for gradients of q, k and v that are random but the same for all."""
    from lrsweep.model.gpu_heads import heads_of

    _, seq, heads, width = shape
    leaf = qkv.detach().requires_grad_()
    cos, sin = (table.to(KERNEL_DEVICE) for table in rope_tables(seq, width))
    *qkv_BxTxHxK, squares = heads_of(leaf, cos, sin, heads=heads, measured=True)
    (gradient,) = torch.autograd.grad(qkv_BxTxHxK, leaf, [slopes.to(qkv) for slopes in all_slopes(shape)])
    results = [*(t.detach() for t in qkv_BxTxHxK), squares, gradient]
    assert [t.dtype for t in results] == [qkv.dtype] * 3 + [torch.float32, qkv.dtype]
    assert not squares.requires_grad
    return [t.double().cpu() for t in results]


def all_slopes(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def reference(qkv: Tensor, shape: Shape, slopes: list[Tensor]) -> list[Tensor]:
    """In float64, a pair as a complex number."""
    batch, seq, heads, width = shape
    half = width // 2
    exact = qkv.detach().double().cpu().requires_grad_()
    q, k, v = exact.view(batch, seq, 3, heads, width).unbind(2)
    angle = torch.arange(seq)[:, None].double() * 10_000.0 ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None, :]

    def turned(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    results = [turned(q), turned(k), v]
    (gradient,) = torch.autograd.grad(results, exact, [s.double() for s in slopes])
    return [*(t.detach() for t in results), exact.detach().square().sum(-1, keepdim=True), gradient]


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 8), (2, 9, 2, 24), (1, 70, 4, 64), (2, 3, 12, 128)])
def test_results_squares_and_gradients_equal_float64(shape: Shape) -> None:
    """Numbers of heads and widths that are powers of 2 or not; more and fewer pairs than a program holds."""
    qkv = outputs_of_qkv(shape)
    for ours, exact in zip(measured(qkv, shape), reference(qkv, shape, all_slopes(shape)), strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=2e-5)


def test_half_precision_is_read_and_written_but_not_computed_in() -> None:
    shape, step = (2, 33, 3, 16), 2 * torch.finfo(KERNEL_HALF).eps
    qkv = outputs_of_qkv(shape, KERNEL_HALF)
    expected = reference(qkv, shape, [s.to(KERNEL_HALF) for s in all_slopes(shape)])
    for ours, exact, rtol in zip(measured(qkv, shape), expected, (step, step, 0, 1e-5, step), strict=True):
        torch.testing.assert_close(ours, exact, rtol=rtol, atol=2e-3 if rtol == step else 0)


@pytest.mark.parametrize("place", [(1, 2, 0), (1, 2, 20), (1, 2, 47)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_token(bad: float, place: tuple[int, int, int]) -> None:
    """In a query, a key or a value."""
    shape = (2, 4, 2, 8)
    qkv = outputs_of_qkv(shape)
    qkv[place] = bad
    others = torch.ones(2, 4, dtype=torch.bool)
    others[place[:2]] = False
    *results, squares, gradient = measured(qkv, shape)
    for each in (*results, squares):
        assert each[others].isfinite().all()
    assert not squares[place[:2]].isfinite().all()
    assert gradient.isfinite().all()


def test_values_are_not_copied_and_squares_not_made_unasked() -> None:
    from lrsweep.model.gpu_heads import heads_of

    qkv = outputs_of_qkv((1, 3, 2, 8))
    cos, sin = (table.to(KERNEL_DEVICE) for table in rope_tables(3, 8))
    _, _, v, squares = heads_of(qkv, cos, sin, heads=2, measured=False)
    assert v.data_ptr() == qkv.data_ptr() + 2 * 16 * qkv.element_size()
    assert squares.numel() == 0


def test_gradients_may_come_in_any_order_of_axes() -> None:
    """As (B, H, T, K), as attention has them, or with the channels apart."""
    from lrsweep.model.gpu_heads import heads_of

    shape = (2, 5, 3, 8)
    slopes = [s.to(KERNEL_DEVICE) for s in all_slopes(shape)]
    expected = measured(outputs_of_qkv(shape), shape)[-1]
    orders = [s.transpose(1, 2).contiguous().transpose(1, 2) for s in slopes], [s.mT.contiguous().mT for s in slopes]
    for turned in orders:
        leaf = outputs_of_qkv(shape).requires_grad_()
        cos, sin = (table.to(KERNEL_DEVICE) for table in rope_tables(5, 8))
        *qkv, _ = heads_of(leaf, cos, sin, heads=3, measured=False)
        (gradient,) = torch.autograd.grad(qkv, leaf, list(turned))
        assert torch.equal(gradient.double().cpu(), expected)


@pytest.mark.parametrize("asked", [True, False])
def test_torch_may_trace_it(asked: bool) -> None:
    """Torch's own check of custom operators: schema, shapes and types without data."""
    from lrsweep.model import gpu_heads

    shape = (2, 3, 2, 16)
    tables = [table.to(KERNEL_DEVICE) for table in rope_tables(3, 16)]
    torch.library.opcheck(gpu_heads._rotate, (outputs_of_qkv(shape, KERNEL_HALF), *tables, 2, asked))
    slopes = [s.to(KERNEL_DEVICE, KERNEL_HALF) for s in all_slopes(shape)]
    torch.library.opcheck(gpu_heads._rotate_back, (*slopes, *tables))


def test_it_warms_up() -> None:
    from lrsweep.model import gpu_heads

    gpu_heads.warm_up(3, 8, KERNEL_HALF, torch.device(KERNEL_DEVICE))

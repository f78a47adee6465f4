"""The GPU's kernels for gelu and silu against torch in float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, KERNEL_HALF, needs_triton

pytestmark = needs_triton


def hidden(shape: tuple[int, ...], *, gated: bool, dtype: torch.dtype = torch.float32, size: float = 2.0) -> Tensor:
    *of_token, width = shape
    values = size * torch.randn(*of_token, 2 * width if gated else width, generator=torch.Generator().manual_seed(0))
    return values.to(dtype).to(KERNEL_DEVICE)


def measured(h: Tensor, *, gated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Result, squares and gradient, the last for gradients 1, −2, 3, ... of the result."""
    from lrsweep.model.gpu_activation import activate

    leaf = h.detach().requires_grad_()
    out, squares = activate(leaf, gated=gated, measured=True)
    (gradient,) = torch.autograd.grad(out, leaf, slopes(out))
    assert out.dtype == gradient.dtype == h.dtype
    assert squares.dtype == torch.float32
    return out.detach().double().cpu(), squares.double().cpu(), gradient.double().cpu()


def slopes(out: Tensor) -> Tensor:
    places = torch.arange(out.numel(), device=out.device).view(out.shape) % 7
    return ((places + 1) * (1 - 2 * (places % 2))).to(out.dtype)


def reference(h: Tensor, *, gated: bool) -> tuple[Tensor, Tensor, Tensor]:
    exact = h.detach().double().cpu().requires_grad_()
    if gated:
        gate, up = exact.chunk(2, dim=-1)
        out = F.silu(gate) * up
    else:
        out = 0.5 * exact * (1 + torch.tanh(math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3)))
    (gradient,) = torch.autograd.grad(out, exact, slopes(out))
    return out.detach(), exact.detach().square().sum(-1, keepdim=True), gradient


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 5), (3, 7, 64), (1, 70, 96), (2, 2, 2048), (1, 3, 2052), (1, 2, 6144)]
)
@pytest.mark.parametrize("gated", [True, False])
def test_results_squares_and_gradients_equal_float64(shape: tuple[int, ...], gated: bool) -> None:
    """Widths below, at and above a tile, and of several."""
    h = hidden(shape, gated=gated)
    for ours, exact in zip(measured(h, gated=gated), reference(h, gated=gated), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_half_precision_is_read_and_written_but_not_computed_in(gated: bool) -> None:
    h = hidden((2, 9, 80), gated=gated, dtype=KERNEL_HALF)
    step = 2 * torch.finfo(KERNEL_HALF).eps
    for ours, exact, rtol in zip(measured(h, gated=gated), reference(h, gated=gated), (step, 1e-5, step), strict=True):
        torch.testing.assert_close(ours, exact, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("size", [1e-6, 30.0, 1e9])
@pytest.mark.parametrize("gated", [True, False])
def test_of_any_size_nothing_overflows_on_the_way(size: float, gated: bool) -> None:
    """Far on either side it is 0 or x itself, times the other half where there is one."""
    h = hidden((2, 3, 50), gated=gated, size=size)
    for ours, exact in zip(measured(h, gated=gated), reference(h, gated=gated), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("gated", [True, False])
def test_what_is_not_finite_stays_in_its_token(bad: float, gated: bool) -> None:
    h = hidden((2, 3, 40), gated=gated)
    h[1, 1, 7] = bad
    others = torch.ones(2, 3, dtype=torch.bool)
    others[1, 1] = False
    for each in measured(h, gated=gated):
        assert each[others].isfinite().all()
        assert not each[1, 1].isfinite().all()


def test_squares_carry_no_gradient_and_are_not_made_unasked() -> None:
    from lrsweep.model.gpu_activation import activate

    h = hidden((1, 3, 8), gated=False).requires_grad_()
    assert not activate(h, gated=False, measured=True)[1].requires_grad
    assert activate(h, gated=False, measured=False)[1].numel() == 0


@pytest.mark.parametrize("gated", [True, False])
def test_tensors_need_not_be_contiguous(gated: bool) -> None:
    h = hidden((3, 4, 20), gated=gated)
    turned = h.transpose(0, 1).contiguous().transpose(0, 1)
    for ours, theirs in zip(measured(turned, gated=gated), measured(h, gated=gated), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_torch_may_trace_it(gated: bool, asked: bool) -> None:
    """Torch's own check of a custom operator: schema, shapes and types without data, and gradients when compiled."""
    from lrsweep.model import gpu_activation

    h = hidden((2, 3, 16), gated=gated, dtype=KERNEL_HALF)
    torch.library.opcheck(gpu_activation._activate, (h.detach().requires_grad_(), gated, asked))
    torch.library.opcheck(
        gpu_activation._activate_backward, (h, hidden((2, 3, 16), gated=False, dtype=KERNEL_HALF), gated)
    )


def test_it_warms_up() -> None:
    from lrsweep.model import gpu_activation

    gpu_activation.warm_up(48, KERNEL_HALF, gated=True, device=torch.device(KERNEL_DEVICE))

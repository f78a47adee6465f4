"""The GPU's kernels for stream and norm against torch in float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, KERNEL_HALF, needs_triton

pytestmark = needs_triton
EPS = 1e-5


def tensors(
    shape: tuple[int, ...], x_dtype: torch.dtype = torch.float32, f_dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Stream, what joins it, gain, and gradients of the first two results; the stream has a mean of its own."""
    generator = torch.Generator().manual_seed(seed)
    x, f, of_sum, of_normed = (torch.randn(shape, generator=generator) for _ in range(4))
    gain = 1 + 0.5 * torch.randn(shape[-1], generator=generator)
    given = (3 * x + 2).to(x_dtype), f.to(f_dtype), gain, of_sum.to(x_dtype), of_normed.to(f_dtype)
    return [tensor.to(KERNEL_DEVICE) for tensor in given]


def measured(given: list[Tensor], *, centred: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Sum, normalized sum and squares, and the gradients of x, f and gain."""
    from lrsweep.model.gpu_norm import join_norm

    x, f, gain, of_sum, of_normed = given
    leaves = [leaf.detach().requires_grad_() for leaf in (x, f, gain)]
    results = join_norm(*leaves, centred=centred, eps=EPS, measured=True)
    gradients = torch.autograd.grad(list(results[:2]), leaves, [of_sum, of_normed])
    assert [t.dtype for t in results] == [x.dtype, f.dtype, torch.float32]
    assert [g.dtype for g in gradients] == [x.dtype, f.dtype, torch.float32]
    return [t.detach().double().cpu() for t in results], [g.double().cpu() for g in gradients]


def reference(given: list[Tensor], *, centred: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The same in float64; what is normalized is the sum as the stream's type holds it."""
    x, f, gain, of_sum, of_normed = (tensor.double().cpu() for tensor in given)
    leaves = [leaf.requires_grad_() for leaf in (x, f, gain)]
    total = x + f
    held = total + (total.to(given[0].dtype).double() - total).detach()
    deviation = held - held.mean(-1, keepdim=True) if centred else held
    normed = deviation / (deviation.square().mean(-1, keepdim=True) + EPS).sqrt() * gain
    gradients = torch.autograd.grad([held, normed], leaves, [of_sum, of_normed])
    return [t.detach() for t in (held, normed, f.square().sum(-1, keepdim=True))], list(gradients)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 5), (3, 7, 64), (1, 70, 96), (2, 5, 1536), (1, 2, 2048), (1, 2, 4100)]
)
@pytest.mark.parametrize("centred", [True, False])
def test_results_and_gradients_equal_float64(shape: tuple[int, ...], centred: bool) -> None:
    """Widths below, at and above a tile; more tokens than programs hold at a time, so that each goes over several."""
    given = tensors(shape)
    results, gradients = measured(given, centred=centred)
    expected, expected_gradients = reference(given, centred=centred)
    for ours, exact in zip([*results, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("x_dtype", [torch.float32, KERNEL_HALF])
@pytest.mark.parametrize("centred", [True, False])
def test_half_precision_is_read_and_written_but_not_computed_in(x_dtype: torch.dtype, centred: bool) -> None:
    """As under autocast, where the stream is fp32 and what joins it is not; and where both are narrow."""
    given = tensors((2, 33, 96), x_dtype, KERNEL_HALF)
    results, gradients = measured(given, centred=centred)
    expected, expected_gradients = reference(given, centred=centred)
    fine, step = {"rtol": 2e-5, "atol": 2e-5}, {"rtol": 2 * torch.finfo(KERNEL_HALF).eps, "atol": 1e-3}
    wide = x_dtype == torch.float32
    for ours, exact, rounded in zip(
        [*results, *gradients],
        [*expected, *expected_gradients],
        [False, True, False, not wide, True, False],
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, **(step if rounded else fine))


@pytest.mark.parametrize("centred", [True, False])
def test_many_tokens_give_the_gain_the_gradient_of_all(centred: bool) -> None:
    given = tensors((4, 250, 16))
    (_, _, of_gain), (_, _, expected) = measured(given, centred=centred)[1], reference(given, centred=centred)[1]
    torch.testing.assert_close(of_gain, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("into", [0, 1])
@pytest.mark.parametrize("centred", [True, False])
def test_what_is_not_finite_stays_in_its_token(bad: float, into: int, centred: bool) -> None:
    given = tensors((2, 3, 40))
    given[into][1, 1, 7] = bad
    (total, normed, squares), (of_x, of_f, of_gain) = measured(given, centred=centred)
    others = torch.ones(2, 3, dtype=torch.bool)
    others[1, 1] = False
    for each in (total, normed, squares, of_x, of_f):
        assert each[others].isfinite().all()
    assert not total[1, 1].isfinite().all()
    assert normed[1, 1].isnan().any()
    assert of_x[1, 1].isnan().any()
    assert bool(squares[1, 1].isfinite()) == (into == 0)
    assert of_gain.isnan().any()


def test_a_token_of_zeros_stays_zero() -> None:
    given = tensors((1, 2, 24))
    given[0][0, 0] = given[1][0, 0] = 0.0
    (total, normed, squares), gradients = measured(given, centred=True)
    for each in (total, normed, squares):
        assert not each[0, 0].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_only_what_trains_carries_a_gradient_and_squares_are_not_made_unasked() -> None:
    from lrsweep.model.gpu_norm import join_norm

    x, f, gain, *_ = tensors((1, 3, 8))
    leaves = x.requires_grad_(), f.requires_grad_(), gain.requires_grad_()
    assert not join_norm(*leaves, centred=True, eps=EPS, measured=True)[2].requires_grad
    total, normed, squares = join_norm(*leaves, centred=True, eps=EPS, measured=False)
    assert squares.numel() == 0
    (alone,) = torch.autograd.grad(total.sum(), f, retain_graph=True)
    assert (alone == 1).all()
    assert torch.autograd.grad(normed.sum(), f)[0].any()


def test_tensors_need_not_be_contiguous() -> None:
    given = tensors((3, 4, 20))
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim == 3 else t for t in given]
    for ours, theirs in zip(measured(turned, centred=True), measured(given, centred=True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, KERNEL_HALF])
def test_torch_may_trace_it(dtype: torch.dtype, measured: bool) -> None:
    """Torch's own check of a custom operator: schema, shapes and types without data, and gradients when compiled."""
    from lrsweep.model import gpu_norm

    x, f, gain, *_ = tensors((2, 3, 16), f_dtype=dtype)
    leaves = x.requires_grad_(), f.requires_grad_(), gain.requires_grad_()
    torch.library.opcheck(gpu_norm._join_norm, (*leaves, True, EPS, measured))
    total, _, _, mean, scale = (t.detach() for t in gpu_norm._join_norm(*leaves, True, EPS, measured))
    torch.library.opcheck(gpu_norm._join_norm_backward, (total, gain.detach(), mean, scale, x.detach(), f.detach()))


def test_it_warms_up() -> None:
    from lrsweep.model import gpu_norm

    gpu_norm.warm_up(48, torch.float32, KERNEL_HALF, centred=False, device=torch.device(KERNEL_DEVICE))

"""The GPU's kernels for the loss against torch in float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, KERNEL_HALF, needs_triton

if TYPE_CHECKING:
    from lrsweep.model.gpu_loss import Beside

pytestmark = needs_triton


def logits_of(vocab: int, seed: int = 0, size: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = size * torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).to(KERNEL_DEVICE).requires_grad_()


def targets_of(vocab: int) -> Tensor:
    """The first and the last of the vocabulary among them."""
    return torch.tensor([[0, vocab - 1, vocab // 2], [1 % vocab, vocab // 3, 0]], device=KERNEL_DEVICE)


def measured(
    logits: Tensor,
    targets: Tensor,
    z_loss: float,
    factor: float = 1.0,
    *,
    beside: Beside | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums times ``factor``, and the gradient of twice the first."""
    from lrsweep.model.gpu_loss import loss_sums

    # The kernel may write on what it is given.
    sums = loss_sums(logits * 1.0, targets, z_loss, factor, beside=beside)
    (gradient,) = torch.autograd.grad(sums[0] * 2.0, logits)
    return sums.detach().double().cpu(), gradient.double().cpu()


def reference(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    exact = logits.detach().double().cpu().requires_grad_()
    log_z = exact.logsumexp(-1)
    loss = torch.nn.functional.cross_entropy(exact.flatten(0, 1), targets.cpu().flatten(), reduction="sum")
    objective = loss + z_loss * log_z.square().sum()
    (gradient,) = torch.autograd.grad(objective, exact)
    return torch.stack([objective, loss, log_z.sum()]).detach(), 2 * gradient


@pytest.mark.parametrize("vocab", [1, 7, 2047, 2048, 2049, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_sums_and_gradients_equal_float64(vocab: int, z_loss: float) -> None:
    """Vocabularies below, at and above the kernel's blocks; a factor is in sums and gradient."""
    logits, targets = logits_of(vocab), targets_of(vocab)
    sums, gradient = measured(logits, targets, z_loss, factor=0.25)
    expected_sums, expected = reference(logits, targets, z_loss)
    torch.testing.assert_close(sums, 0.25 * expected_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, 0.25 * expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("vocab", [7, 4096, 10_000])
def test_kernels_that_leave_room_give_the_same_and_wait_before_the_products(vocab: int) -> None:
    from lrsweep.model.gpu_loss import Beside

    logits, targets = logits_of(vocab), targets_of(vocab)
    sums, gradient = measured(logits, targets, 0.1)
    log: list[str] = []
    logits.register_hook(lambda gradient: log.append("products"))
    beside = Beside(start=lambda: log.append("start"), wait=lambda: log.append("wait"))
    found = measured(logits, targets, 0.1, beside=beside)
    torch.testing.assert_close(found[0], sums, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], gradient, rtol=1e-5, atol=1e-8)
    assert log == ["start", "wait", "products"]


def test_half_precision_is_read_and_written_but_not_computed_in() -> None:
    logits, targets = logits_of(5000, dtype=KERNEL_HALF), targets_of(5000)
    sums, gradient = measured(logits, targets, 1e-4)
    expected_sums, expected = reference(logits, targets, 1e-4)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-5)
    step = 2**-8 if torch.bfloat16 == KERNEL_HALF else 2**-11
    torch.testing.assert_close(gradient, expected, rtol=step, atol=1e-7)


@pytest.mark.parametrize("size", [1e-3, 300.0, 1e5])
def test_logits_of_any_size_neither_overflow_nor_vanish(size: float) -> None:
    logits, targets = logits_of(4100, seed=1, size=size), targets_of(4100)
    sums, gradient = measured(logits, targets, 0.0)
    expected_sums, expected = reference(logits, targets, 0.0)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3 * max(1.0, size / 100), atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 4099])
def test_what_is_not_finite_makes_the_sums_nan_and_spoils_no_other_token(bad: float, at: int) -> None:
    logits, targets = logits_of(4100), targets_of(4100)
    with torch.no_grad():
        logits[1, 2, at] = bad
    sums, gradient = measured(logits, targets, 0.1)
    assert sums.isnan().all()
    assert gradient[1, 2].isnan().any()
    assert gradient[0].isfinite().all()
    assert gradient[1, :2].isfinite().all()


def test_a_logit_of_minus_infinity_is_a_token_that_never_comes() -> None:
    logits, targets = logits_of(50), targets_of(50)
    with torch.no_grad():
        logits[..., 3] = -math.inf
    sums, gradient = measured(logits, targets, 0.1)
    expected_sums, expected = reference(logits, targets, 0.1)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_only_the_objective_carries_a_gradient() -> None:
    from lrsweep.model.gpu_loss import loss_sums

    logits = logits_of(20)
    sums = loss_sums(logits * 1.0, targets_of(20), 0.1, 1.0)
    (gradient,) = torch.autograd.grad(sums[1] + sums[2], logits)
    assert not gradient.any()


def test_whoever_else_kept_the_logits_is_told_that_they_are_gone() -> None:
    """The gradient of log Z, whose backward wants the logits, after the kernel has written its own over them."""
    from lrsweep.model.gpu_loss import loss_sums

    given = logits_of(20) * 1.0
    kept = given.logsumexp(-1).sum()
    loss_sums(given, targets_of(20), 0.0, 1.0)[0].backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()

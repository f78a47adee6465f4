"""The GPU's AdamW against the algorithm in float64 and torch's: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, needs_triton

pytestmark = needs_triton

SHAPES = [(3,), (40, 30), (1,), (2049,), (5, 1, 7)]
FACTORS, DECAYS = [1.0, 2.0], [0.1, 0.0]
BETAS, EPS = (0.9, 0.95), 1e-8


def normal(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return (size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(KERNEL_DEVICE)


class Trained:
    """Tensors of many shapes in two groups, and the kernel that updates them."""

    def __init__(self, *, halves: bool = False) -> None:
        from lrsweep.train.gpu_adamw import FusedAdamW, Slot

        self.weights = [normal(*shape, seed=i) for i, shape in enumerate(SHAPES)]
        self.slots = [
            Slot(
                weight=w,
                first=torch.zeros_like(w),
                second=torch.zeros_like(w),
                group=i % 2,
                half=w.bfloat16() if halves else None,
            )
            for i, w in enumerate(self.weights)
        ]
        self.steps = torch.zeros((), device=KERNEL_DEVICE)
        self.lr = torch.zeros((), device=KERNEL_DEVICE)
        self.kernel = FusedAdamW(
            self.slots, lr=self.lr, factors=FACTORS, decays=DECAYS, betas=BETAS, eps=EPS, steps=self.steps
        )

    def step(self, gradients: list[Tensor], lr: float, divisor: float, finite: bool = True) -> list[float]:
        """One step; ‖Δθ‖² and ‖θ‖²."""
        self.steps += finite
        self.lr.fill_(lr)
        for slot, gradient in zip(self.slots, gradients, strict=True):
            slot.holder.grad = gradient.to(slot.holder.dtype, copy=True)
        moved_Kx2xQ = self.kernel.step(
            torch.tensor(finite, device=KERNEL_DEVICE), torch.tensor(divisor, device=KERNEL_DEVICE)
        )
        return [float(s) for s in moved_Kx2xQ.sum(dim=(0, 2))]

    def state(self) -> list[Tensor]:
        return [t.clone() for s in self.slots for t in (s.weight, s.first, s.second)] + [self.steps.clone()]


def gradients(seed: int, size: float = 1.0) -> list[Tensor]:
    return [normal(*shape, seed=100 * seed + i, size=size) for i, shape in enumerate(SHAPES)]


def test_steps_equal_the_algorithm_in_float64() -> None:
    """θ ← θ − η·λ·θ − η·m̂/(√v̂ + ε), gradients divided first; and what the kernel says of its update."""
    trained = Trained()
    weights = [w.double() for w in trained.weights]
    firsts, seconds = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for t in range(1, 6):
        lr, divisor = 0.01 / t, 1.5 * t
        given = gradients(t, size=0.1 * t)
        squares = trained.step(given, lr, divisor)
        moved = length = 0.0
        for i, w in enumerate(weights):
            g = given[i].double() / divisor
            firsts[i] = BETAS[0] * firsts[i] + (1 - BETAS[0]) * g
            seconds[i] = BETAS[1] * seconds[i] + (1 - BETAS[1]) * g**2
            m, v = firsts[i] / (1 - BETAS[0] ** t), seconds[i] / (1 - BETAS[1] ** t)
            rate = lr * FACTORS[i % 2]
            new = w - rate * DECAYS[i % 2] * w - rate * m / (v.sqrt() + EPS)
            moved, length = moved + (new - w).square().sum().item(), length + w.square().sum().item()
            weights[i] = new
            torch.testing.assert_close(trained.weights[i].double(), new, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(trained.slots[i].second.double(), seconds[i], rtol=1e-5, atol=1e-9)
        assert squares == pytest.approx([moved, length], rel=1e-4)
    assert trained.steps.item() == 5


def test_steps_equal_torchs() -> None:
    trained = Trained()
    theirs = [w.clone().requires_grad_() for w in trained.weights]
    optimizer = torch.optim.AdamW(
        [{"params": theirs[i::2], "weight_decay": DECAYS[i], "lr": 3e-3 * FACTORS[i]} for i in range(2)],
        betas=BETAS,
        eps=EPS,
    )
    for t in range(4):
        for p, g in zip(theirs, gradients(t), strict=True):
            p.grad = g / 2
        optimizer.step()
        trained.step(gradients(t), 3e-3, 2.0)
    for ours, p in zip(trained.weights, theirs, strict=True):
        torch.testing.assert_close(ours, p.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("halves", [False, True])
def test_the_gradients_squares(halves: bool) -> None:
    """Of every shape, whole blocks and the rest of one; NaN shows."""
    trained = Trained(halves=halves)
    trained.step(gradients(1), 0.0, 1.0)
    held = [slot.holder.grad for slot in trained.slots]
    expected = sum(g.double().square().sum().item() for g in held if g is not None)
    assert trained.kernel.gradient_squares().sum().item() == pytest.approx(expected, rel=1e-6)
    assert held[3] is not None
    held[3][-1] = math.nan
    assert math.isnan(trained.kernel.gradient_squares().sum().item())


@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_finite_moves_no_bit(first: bool) -> None:
    """Also at the very first step, where the bias corrections would be 0/0."""
    trained = Trained()
    if not first:
        trained.step(gradients(1), 0.1, 1.0)
    before = trained.state()
    squares = trained.step(gradients(2, size=math.inf), 0.1, math.nan, finite=False)
    assert squares[0] == 0
    assert squares[1] == pytest.approx(sum(w.double().square().sum().item() for w in trained.weights), rel=1e-5)
    for ours, old in zip(trained.state(), before, strict=True):
        assert torch.equal(ours, old)


def test_gradients_may_move_and_need_not_be_contiguous() -> None:
    """Each step finds its gradients where they are; a transposed one is read in the order of its weight."""
    trained, plain = Trained(), Trained()
    for t in range(12):
        given = gradients(t)
        plain.step(given, 0.01, 1.0)
        for weight, gradient in zip(trained.weights, given, strict=True):
            weight.grad = gradient.t().contiguous().t() if gradient.ndim == 2 else gradient.clone()
        one = torch.ones((), device=KERNEL_DEVICE)
        trained.steps += 1
        trained.lr.fill_(0.01)
        trained.kernel.step(one > 0, one)
    for ours, theirs in zip(trained.weights, plain.weights, strict=True):
        assert torch.equal(ours, theirs)


def test_bf16_copies_follow_their_weights_and_their_gradients_are_used() -> None:
    """The same weights as from the same gradients in fp32; the copy is the weight, rounded."""
    halved, plain = Trained(halves=True), Trained()
    for t in range(4):
        given = [g.bfloat16() for g in gradients(t)]
        squares = [side.step([g.float() for g in given], 0.01, 2.0) for side in (halved, plain)]
        assert squares[0] == pytest.approx(squares[1], rel=1e-6)
    for ours, theirs in zip(halved.slots, plain.slots, strict=True):
        torch.testing.assert_close(
            ours.weight, theirs.weight, rtol=1e-6, atol=1e-7
        )  # Two kernels, rounded as each may.
        assert ours.half is not None
        if KERNEL_DEVICE == "cuda":
            assert torch.equal(ours.half, ours.weight.bfloat16())
        else:  # The interpreter cuts off where the hardware rounds.
            torch.testing.assert_close(ours.half, ours.weight.bfloat16(), rtol=2**-7, atol=0)

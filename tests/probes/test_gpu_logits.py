"""The GPU's kernel for logits against brute force in float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, KERNEL_HALF, needs_triton

pytestmark = needs_triton


def normal(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(q: Tensor, k: Tensor, scale: float, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """Maxima (H) and sums (H, P) of the second of two layers."""
    from lrsweep.probes.gpu_logits import causal_logit_sums

    layer = q.to(KERNEL_DEVICE), k.to(KERNEL_DEVICE)
    other = torch.ones_like(layer[0]), torch.ones_like(layer[1])
    largest, sums = causal_logit_sums([other, layer], scale, cap, hardware_tanh=KERNEL_DEVICE == "cuda")
    return largest[1].cpu(), sums[1].cpu()


def measured(q: Tensor, k: Tensor, scale: float, cap: float | None = None) -> tuple[Tensor, list[float]]:
    """Maxima of the heads, and sums over all of them."""
    largest, sums = both(q, k, scale, cap)
    return largest, sums.sum(dim=0).tolist()


def brute(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Logits (B, H, T, T) in float64, NaN above the diagonal."""
    logits = scale * torch.einsum("bhik,bhjk->bhij", q.double(), k.double())
    return logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), torch.nan)


@pytest.mark.parametrize("dtype", [KERNEL_HALF, torch.float32])
@pytest.mark.parametrize(("seq", "width"), [(1, 32), (63, 16), (64, 64), (65, 32), (130, 24), (200, 8)])
def test_maxima_and_sums_equal_brute_force(seq: int, width: int, dtype: torch.dtype) -> None:
    """At, below and above the blocks of 64, heads of any width, laid out as the model lays them out."""
    q, k = (normal(2, seq, 3, width, seed=seed, size=3.0).to(dtype).transpose(1, 2) for seed in (1, 2))
    for cap in (None, 5.0):
        largest, sums = measured(q, k, 0.3, cap)
        logits = brute(q, k, 0.3)
        past = logits[~logits.isnan()]
        expected = logits.nan_to_num(-math.inf).amax(dim=(0, 2, 3))
        torch.testing.assert_close(largest.double(), expected, rtol=1e-5, atol=1e-5)
        assert sums[0] == pytest.approx(past.square().sum().item(), rel=1e-5)
        if cap is not None:
            tolerance = 2e-3 if KERNEL_DEVICE == "cuda" else 1e-5
            assert sums[1] == pytest.approx((cap * torch.tanh(past / cap)).square().sum().item(), rel=tolerance)


def test_the_maximum_of_negative_logits_is_negative() -> None:
    """No zero of a masked pair, of a padded row or of a padded channel may show."""
    q = torch.ones(1, 1, 70, 20, dtype=KERNEL_HALF)
    largest, _ = measured(q, -q, 1.0)
    assert largest.tolist() == [-20.0]


@pytest.mark.parametrize("seq", [2, 64, 130])
def test_pairs_beyond_the_diagonal_count_for_nothing(seq: int) -> None:
    q, k = normal(1, 1, seq, 16, seed=3), normal(1, 1, seq, 16, seed=4)
    q[:, :, -1], k[:, :, -1] = 0.0, 1e15
    largest, sums = measured(q, k, 1.0)
    values = brute(q, k, 1.0)
    past = values[~values.isnan()]
    assert past.abs().max() < 100
    assert largest.item() == pytest.approx(past.max().item(), rel=1e-5)
    assert sums[0] == pytest.approx(past.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("at", [0, 70])
@pytest.mark.parametrize("where", ["q", "k"])
def test_nan_shows_in_its_head_alone(where: str, at: int) -> None:
    q, k = normal(2, 2, 71, 16, seed=5), normal(2, 2, 71, 16, seed=6)
    (q if where == "q" else k)[1, 0, at, 2] = torch.nan
    largest, sums = both(q, k, 0.5, 5.0)
    assert largest.isnan().tolist() == [True, False]
    assert sums.isnan().tolist() == [[True, True], [False, False]]


def test_an_infinite_logit_is_the_maximum() -> None:
    q, k = torch.ones(1, 1, 3, 16), torch.ones(1, 1, 3, 16)
    k[0, 0, 1, 0] = math.inf
    largest, sums = measured(q, k, 1.0)
    assert largest.item() == sums[0] == math.inf


@pytest.mark.skipif(KERNEL_DEVICE != "cuda", reason="needs a GPU")
@pytest.mark.parametrize(("seq", "width"), [(256, 64), (1024, 64), (2048, 128), (300, 96)])
def test_on_a_gpu_at_full_size_and_bitwise_from_run_to_run(seq: int, width: int) -> None:
    q, k = (normal(2, seq, 4, width, seed=seed).bfloat16().transpose(1, 2) for seed in (1, 2))
    runs = [measured(q, k, width**-0.5, 50.0) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    logits = brute(q, k, width**-0.5)
    torch.testing.assert_close(
        runs[0][0].double(), logits.nan_to_num(-math.inf).amax(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5
    )
    assert runs[0][1][0] == pytest.approx(logits[~logits.isnan()].square().sum().item(), rel=1e-5)

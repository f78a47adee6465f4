"""The GPU's kernel for token norms against torch: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, needs_triton

pytestmark = needs_triton
WIDTHS = ((3, 4, 12), (1,), (5,), (64,))
Layer = list[list[Tensor]]


def layer(n: int, seq: int, widths: tuple[tuple[int, ...], ...] = WIDTHS) -> Layer:
    """Squares over groups of channels, as many in each part as no other has."""
    generator = torch.Generator().manual_seed(n)
    return [[torch.rand(2, seq, width, generator=generator) * 10.0**n for width in parts] for parts in widths]


def measured(layers: list[Layer]) -> tuple[Tensor, Tensor]:
    from lrsweep.probes.gpu_tokens import site_moments

    maxima, sums = site_moments([[[p.to(KERNEL_DEVICE) for p in parts] for parts in sites] for sites in layers])
    return sums.cpu(), maxima.cpu()


def reference(layers: list[Layer]) -> tuple[Tensor, Tensor]:
    """In float64: the sites are QKV, in parts or whole, Proj, FC1 and FC2."""
    squares_NxSxM = torch.stack(
        [torch.stack([torch.cat(site, dim=-1).double().sum(-1).flatten() for site in sites]) for sites in layers]
    )
    return squares_NxSxM.sum(-1), squares_NxSxM.amax(-1)


@pytest.mark.parametrize("widths", [WIDTHS, ((7,), (1,), (2,), (1,))])
@pytest.mark.parametrize("seq", [1, 31, 32, 33, 100])
def test_sums_and_maxima_equal_float64(seq: int, widths: tuple[tuple[int, ...], ...]) -> None:
    """Of 2·T tokens at, below and above the kernel's blocks of 64, in two layers of different size."""
    layers = [layer(n, seq, widths) for n in (0, 3)]
    sums, maxima = measured(layers)
    expected_sums, expected_maxima = reference(layers)
    assert sums.shape == maxima.shape == (2, 4)
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=0)
    torch.testing.assert_close(maxima.double(), expected_maxima, rtol=1e-5, atol=0)


def test_parts_need_not_be_contiguous() -> None:
    plain = layer(0, 40)
    turned = [[part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts] for parts in plain]
    for ours, theirs in zip(measured([turned]), measured([plain]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("site", "part"), [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_its_site_of_its_layer_alone(site: int, part: int, bad: float) -> None:
    layers = [layer(n, 50) for n in (0, 1)]
    layers[1][site][part][1, 49, 0] = bad
    for found in measured(layers):
        assert found.isfinite().sum() == 7
        assert math.isnan(found[1, site]) if math.isnan(bad) else found[1, site] == bad

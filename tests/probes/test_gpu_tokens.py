"""The GPU's kernel for token norms against torch: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, needs_triton

pytestmark = needs_triton
WIDTHS = (3, 3, 12, 1, 5, 64)


def layer(n: int, seq: int) -> list[Tensor]:
    """Squares over groups of channels, as many in each part as no other has."""
    generator = torch.Generator().manual_seed(n)
    return [torch.rand(2, seq, width, generator=generator) * 10.0**n for width in WIDTHS]


def measured(layers: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    from lrsweep.probes.gpu_tokens import site_moments

    sums, maxima = site_moments([tuple(part.to(KERNEL_DEVICE) for part in parts) for parts in layers])  # type: ignore[misc]
    return sums.cpu(), maxima.cpu()


def reference(layers: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """In float64: the sites are q, k and v together, Proj, FC1 and FC2."""
    squares_NxSxM = torch.stack(
        [
            torch.stack(
                [torch.cat(site, dim=-1).double().sum(-1).flatten() for site in (parts[:3], *([p] for p in parts[3:]))]
            )
            for parts in layers
        ]
    )
    return squares_NxSxM.sum(-1), squares_NxSxM.amax(-1)


@pytest.mark.parametrize("seq", [1, 31, 32, 33, 100])
def test_sums_and_maxima_equal_float64(seq: int) -> None:
    """Of 2·T tokens at, below and above the kernel's blocks of 64, in two layers of different size."""
    layers = [layer(n, seq) for n in (0, 3)]
    sums, maxima = measured(layers)
    expected_sums, expected_maxima = reference(layers)
    assert sums.shape == maxima.shape == (2, 4)
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=0)
    torch.testing.assert_close(maxima.double(), expected_maxima, rtol=1e-5, atol=0)


def test_parts_need_not_be_contiguous() -> None:
    plain = layer(0, 40)
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in plain]
    for ours, theirs in zip(measured([turned]), measured([plain]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("part", "site"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_its_site_of_its_layer_alone(part: int, site: int, bad: float) -> None:
    layers = [layer(n, 50) for n in (0, 1)]
    layers[1][part][1, 49, 0] = bad
    for found in measured(layers):
        assert found.isfinite().sum() == 7
        assert math.isnan(found[1, site]) if math.isnan(bad) else found[1, site] == bad

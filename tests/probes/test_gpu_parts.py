"""Maxima and sums of parts against torch in float64: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from tests.conftest import KERNEL_DEVICE, needs_triton

pytestmark = needs_triton


def parts(*shape: int) -> torch.Tensor:
    """Maxima of either sign; sums that are not negative."""
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(shape, generator=generator)
    found[0] -= 3.0
    return found.to(KERNEL_DEVICE)


@pytest.mark.parametrize("sums", [1, 2])
@pytest.mark.parametrize(
    ("layers", "batch", "groups", "programs"), [(1, 1, 1, 1), (3, 2, 4, 7), (2, 5, 3, 700), (1, 1, 4, 2048)]
)
def test_each_group_has_its_own_maximum_and_sums(
    sums: int, layers: int, batch: int, groups: int, programs: int
) -> None:
    from lrsweep.probes.gpu_parts import together

    given = parts(1 + sums, layers, batch, groups, programs)
    maxima_NxG, sums_NxGxS = together(given)
    assert torch.equal(maxima_NxG, given[0].amax(dim=(1, 3)))
    expected = given[1:].double().sum(dim=(2, 4)).permute(1, 2, 0)
    torch.testing.assert_close(sums_NxGxS.double(), expected, rtol=1e-5, atol=0)


def test_nan_shows_in_its_group_alone_and_infinity_is_a_maximum() -> None:
    from lrsweep.probes.gpu_parts import together

    given = parts(2, 2, 3, 2, 5)
    given[:, 1, 2, 0, 4] = math.nan
    given[:, 0, 0, 1, 0] = math.inf
    maxima_NxG, sums_NxGx1 = together(given)
    assert maxima_NxG.isnan().tolist() == sums_NxGx1[..., 0].isnan().tolist() == [[False, False], [True, False]]
    assert maxima_NxG[0, 1].item() == sums_NxGx1[0, 1, 0].item() == math.inf

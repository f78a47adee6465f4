"""The small kernels around a step against torch's ways: on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lrsweep.model.moments import Moments, columns, n_columns
from lrsweep.train.guard import guard
from tests.conftest import KERNEL_DEVICE, needs_triton

pytestmark = needs_triton


@pytest.fixture(autouse=True)
def _everything_there() -> Iterator[None]:
    with torch.device(KERNEL_DEVICE):
        yield


def number(value: float) -> Tensor:
    return torch.tensor(value)


@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (3, 5), (2, 1024), (7, 300)])
def test_a_batch_and_its_order_are_those_counted_to(batch: int, seq: int) -> None:
    from lrsweep.train import gpu_step

    windows = torch.arange(4 * batch * (seq + 1), dtype=torch.int32).view(4, batch, seq + 1)
    orders = -torch.arange(4 * 2 * batch * seq, dtype=torch.int32).view(4, 2, batch * seq)
    for i in (0, 3):
        tokens, targets, order = gpu_step.take(windows, orders, torch.tensor([i]))
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(tokens, windows[i, :, :-1].long())
        assert torch.equal(targets, windows[i, :, 1:].long())
        assert torch.equal(order, orders[i])


@pytest.mark.parametrize("shape", [(1,), (2, 3000), (1024,)])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e12])
@pytest.mark.parametrize("live", [True, False])
def test_the_guards_norm_divisor_and_verdict(shape: tuple[int, ...], size: float, live: bool) -> None:
    from lrsweep.train import gpu_step

    squares = size * torch.rand(shape)
    norm, finite, divisor = gpu_step.guard(squares, number(2.5), number(live), 0.7)
    assert norm.item() == pytest.approx(math.sqrt(squares.double().sum().item()), rel=1e-6)
    assert divisor.item() == pytest.approx(max(1.0, norm.item() / 0.7), rel=1e-6)
    assert finite.dtype == torch.bool
    assert finite.item() is live
    on_cpu = guard(squares.cpu(), number(2.5).cpu(), number(live).cpu(), 0.7)
    for ours, theirs in zip((norm, finite, divisor), on_cpu, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


@pytest.mark.parametrize(("square", "objective"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)])
def test_what_is_not_finite_stops_a_step(square: float, objective: float) -> None:
    from lrsweep.train import gpu_step

    squares = torch.ones(1500)
    squares[1400] = square
    for found in (
        gpu_step.guard(squares, number(objective), number(True), 1.0),
        guard(squares.cpu(), number(objective).cpu(), number(True).cpu(), 1.0),
    ):
        assert found[1].item() is False


def moments_of(n_layers: int, n_heads: int, n_logits: int) -> Moments:
    sites = torch.rand(n_layers, 4), torch.rand(n_layers, 4)
    return Moments(sites, (torch.randn(n_layers, n_heads) - 5.0, torch.rand(n_layers, n_heads, n_logits)))


@pytest.mark.parametrize(("layers", "heads", "cap"), [(1, 1, None), (5, 3, None), (3, 4, 50.0), (33, 17, 50.0)])
@pytest.mark.parametrize("kept", ["nothing", "sites", "logits", "both"])
def test_a_row_is_written_where_the_position_is_and_nowhere_else(
    layers: int, heads: int, cap: float | None, kept: str
) -> None:
    from lrsweep.train import gpu_step

    scalars, rows = torch.full((4, 5), -1.0), torch.full((2, 4, layers, n_columns(cap)), math.nan)
    before = scalars.clone()
    position, sums, moved = torch.tensor([2]), torch.tensor([9.0, 1.5, 3.5]), torch.rand(2, 2, 1100)
    moments = moments_of(layers, heads, 1 if cap is None else 2)
    moments = Moments(
        moments.sites if kept in ("sites", "both") else None, moments.logits if kept in ("logits", "both") else None
    )
    gpu_step.record(scalars, rows, position, sums, number(0.25), number(False), moved, moments)
    assert position.item() == 3
    delta, theta = moved.double().sum(dim=(0, 2)).tolist()
    assert scalars[2].tolist() == pytest.approx([1.5, 0.25, math.sqrt(delta / theta), 3.5, 1.0], rel=1e-6)
    assert torch.equal(scalars[[0, 1, 3]], before[[0, 1, 3]])
    assert rows[:, [0, 1, 3]].isnan().all()
    if kept == "nothing":
        assert rows.isnan().all()
    else:
        torch.testing.assert_close(rows[:, 2], columns(moments, cap), equal_nan=True)
    gpu_step.record(scalars, rows, position, sums, number(0.25), number(True), moved, Moments(None, None))
    assert scalars[3, 4].item() == 0.0


def test_nan_in_a_head_shows_in_its_layer_alone() -> None:
    from lrsweep.train import gpu_step

    moments = moments_of(3, 4, 1)
    assert moments.logits is not None
    maxima, sums = moments.logits
    maxima[1, 2], sums[1, 2] = math.nan, math.nan
    maxima[2, 0] = math.inf
    rows = torch.zeros(2, 1, 3, 5)
    position, three = torch.tensor([0]), torch.ones(3)
    gpu_step.record(torch.zeros(1, 5), rows, position, three, number(1.0), number(True), torch.ones(1, 2, 1), moments)
    assert rows[:, 0, :, 4].isnan().tolist() == [[False, True, False]] * 2
    assert rows[1, 0, 2, 4].item() == math.inf
    assert not rows[..., :4].isnan().any()

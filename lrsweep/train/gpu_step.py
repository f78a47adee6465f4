"""What a step does around forward, backward and update, in three small GPU kernels.

By torch it takes some thirty, one after the other and most of them for a single number: a twelfth of a 2M model's step.

Legend: R steps of an interval, W micro-batches of an interval, B batch, T sequence, M tokens, N layers, S sites,
H heads, C kinds of logits, P columns of the moments, K kinds of weights, Q programs of the update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrsweep.model.block import SITES
from lrsweep.model.moments import Moments, n_columns
from lrsweep.triton_kernels import run_on, tl, triton

_BLOCK = 1024


def serves(tensor: Tensor) -> bool:
    """Whether the kernels can run where the tensor is."""
    return run_on(tensor)


def take(windows_WxBxT: Tensor, orders_Wx2xM: Tensor, window_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the micro-batch that ``window_1`` counts to: tokens and targets (B, T − 1), int64, and their order (2, M)."""
    _, batch, length = windows_WxBxT.shape
    tokens, targets = (windows_WxBxT.new_empty(batch, length - 1, dtype=torch.int64) for _ in range(2))
    order_2xM = torch.empty_like(orders_Wx2xM[0])
    n_tokens = tokens.numel()
    _step_take[(triton.cdiv(n_tokens, _BLOCK),)](
        windows_WxBxT, orders_Wx2xM, window_1, tokens, targets, order_2xM, n_tokens, length, BLOCK=_BLOCK, num_warps=4
    )
    return tokens, targets, order_2xM


def guard(squares: Tensor, objective: Tensor, live: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`lrsweep.train.guard.guard`."""
    norm, divisor = (squares.new_empty(()) for _ in range(2))
    finite = torch.empty_like(live)
    _step_guard[(1,)](
        squares.contiguous(), objective, live, norm, finite, divisor, squares.numel(), clip, BLOCK=_BLOCK, num_warps=4
    )
    return norm, finite, divisor


def record(
    scalars_RxS: Tensor,
    columns_2xRxNxP: Tensor,
    position_1: Tensor,
    sums_3: Tensor,
    norm: Tensor,
    finite: Tensor,
    moved_Kx2xQ: Tensor,
    moments: Moments,
) -> None:
    """Write the rows that ``position_1`` counts to, and count on.

    Args:
        scalars_RxS: columns as :data:`lrsweep.train.step.SCALARS`.
        columns_2xRxNxP: as of :func:`lrsweep.model.moments.columns`; of what ``moments`` lacks they stay.
        position_1: int64.
        sums_3: objective, loss and log Z.
        norm: of the gradients.
        finite: whether the step was, a Boolean scalar.
        moved_Kx2xQ: parts of ‖Δθ‖² and ‖θ‖².
        moments: of the step.
    """
    kinds, _, programs = moved_Kx2xQ.shape
    n_layers, columns = columns_2xRxNxP.shape[2:]
    site_maxima_NxS, site_sums_NxS = moments.sites or (sums_3[None], sums_3[None])
    maxima_NxH, sums_NxHxC = moments.logits or (sums_3[None], sums_3[None, None])
    heads = maxima_NxH.shape[1]
    _step_record[(1,)](
        scalars_RxS, columns_2xRxNxP, position_1, sums_3, norm, finite, moved_Kx2xQ.contiguous(),
        site_maxima_NxS, site_sums_NxS, maxima_NxH, sums_NxHxC,
        columns_2xRxNxP.stride(0), n_layers, columns, kinds, programs, heads,
        SITED=moments.sites is not None, SITES=len(SITES), LOGITS=sums_NxHxC.shape[2] if moments.logits else 0,
        LAYERS=triton.next_power_of_2(n_layers), HEADS=triton.next_power_of_2(heads), BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def warm_up(n_layers: int, n_heads: int, cap: float | None, device: torch.device) -> None:
    """Compile the kernels for a model of such layers."""
    ids_1x1x2, count_1 = torch.zeros(1, 1, 2, dtype=torch.int32, device=device), torch.zeros(1, device=device).long()
    take(ids_1x1x2, ids_1x1x2.mT.contiguous(), count_1)
    numbers_3 = torch.zeros(3, device=device)
    norm, finite, _ = guard(numbers_3, numbers_3[0], numbers_3[0] > 0, 1.0)
    rows = numbers_3.new_zeros(1, 5), numbers_3.new_zeros(2, 1, n_layers, n_columns(cap))
    moved_1x2x1, moments = numbers_3.new_zeros(1, 2, 1), Moments.zeros(n_layers, n_heads, cap, device)
    for kept in (Moments(None, None), moments._replace(logits=None), moments):
        record(*rows, count_1.zero_(), numbers_3, norm, finite, moved_1x2x1, kept)


if triton is not None:

    @triton.jit(do_not_specialize=["n_tokens", "length"])
    def _step_take(
        windows_ptr, orders_ptr, window_ptr, tokens_ptr, targets_ptr, order_ptr, n_tokens, length, BLOCK: tl.constexpr
    ):
        """A block of tokens, and of the places in their order."""
        window = tl.load(window_ptr)
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n_tokens
        seq = length - 1
        windows_ptr += window * (n_tokens // seq * length) + i // seq * length + i % seq
        tl.store(tokens_ptr + i, tl.load(windows_ptr, mask=inside).to(tl.int64), mask=inside)
        tl.store(targets_ptr + i, tl.load(windows_ptr + 1, mask=inside).to(tl.int64), mask=inside)
        orders_ptr += window * 2 * n_tokens + i
        tl.store(order_ptr + i, tl.load(orders_ptr, mask=inside), mask=inside)
        tl.store(order_ptr + n_tokens + i, tl.load(orders_ptr + n_tokens, mask=inside), mask=inside)

    @triton.jit
    def _sum(ptr, n, BLOCK: tl.constexpr):
        """Of n numbers, always in the same order."""
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total += tl.load(ptr + i, mask=i < n, other=0.0)
        return tl.sum(total, 0)

    @triton.jit(do_not_specialize=["n"])
    def _step_guard(
        squares_ptr, objective_ptr, live_ptr, norm_ptr, finite_ptr, divisor_ptr, n, clip, BLOCK: tl.constexpr
    ):
        """All of it in one program, which the update waits for."""
        norm = tl.sqrt(_sum(squares_ptr, n, BLOCK))
        both = tl.load(objective_ptr) + norm
        tl.store(norm_ptr, norm)
        tl.store(divisor_ptr, tl.maximum(norm / clip, 1.0))
        tl.store(finite_ptr, (both - both == 0.0) & (tl.load(live_ptr) != 0))

    @triton.jit(do_not_specialize=["stride", "n_layers", "columns", "kinds", "programs", "heads"])
    def _step_record(
        scalars_ptr, columns_ptr, position_ptr, sums_ptr, norm_ptr, finite_ptr, moved_ptr,
        site_maxima_ptr, site_sums_ptr, maxima_ptr, logit_sums_ptr,
        stride, n_layers, columns, kinds, programs, heads,
        SITED: tl.constexpr, SITES: tl.constexpr, LOGITS: tl.constexpr, LAYERS: tl.constexpr, HEADS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """All of it in one program, so that the last of its threads can count on."""
        position = tl.load(position_ptr)
        moved = 0.0
        length = 0.0
        for kind in range(kinds):
            moved += _sum(moved_ptr + kind * 2 * programs, programs, BLOCK)
            length += _sum(moved_ptr + (kind * 2 + 1) * programs, programs, BLOCK)
        scalars_ptr += position * 5
        tl.store(scalars_ptr, tl.load(sums_ptr + 1))
        tl.store(scalars_ptr + 1, tl.load(norm_ptr))
        tl.store(scalars_ptr + 2, tl.sqrt(moved / length))
        tl.store(scalars_ptr + 3, tl.load(sums_ptr + 2))
        tl.store(scalars_ptr + 4, tl.where(tl.load(finite_ptr) != 0, 0.0, 1.0))
        layer = tl.arange(0, LAYERS)
        there = layer < n_layers
        columns_ptr += (position * n_layers + layer) * columns
        if SITED:
            for site in tl.static_range(SITES):
                at = layer * SITES + site
                tl.store(columns_ptr + site, tl.load(site_sums_ptr + at, mask=there), mask=there)
                tl.store(columns_ptr + stride + site, tl.load(site_maxima_ptr + at, mask=there), mask=there)
        if LOGITS > 0:
            head = tl.arange(0, HEADS)
            inside = there[:, None] & (head[None, :] < heads)
            at = layer[:, None] * heads + head[None, :]
            for kind in tl.static_range(LOGITS):
                sums = tl.sum(tl.load(logit_sums_ptr + at * LOGITS + kind, mask=inside, other=0.0), 1)
                tl.store(columns_ptr + SITES + kind, sums, mask=there)
            maxima = tl.load(maxima_ptr + at, mask=inside, other=float("-inf"))
            # The hardware's maximum drops NaN.
            is_nan = tl.max((maxima != maxima).to(tl.int32), 1) > 0
            largest = tl.where(is_nan, float("nan"), tl.max(maxima, 1))
            tl.store(columns_ptr + stride + SITES, largest, mask=there)
        tl.debug_barrier()  # All have read it.
        tl.store(position_ptr, position + 1)

"""What the programs of a probe's kernel leave, a maximum and sums each, taken together by one more kernel.

Legend: P one maximum and S sums, N layers, B batch, G groups, M programs.
"""

from __future__ import annotations

from torch import Tensor

from lrsweep.triton_kernels import tl, triton

_BLOCK = 1024


def together(parts_PxNxBxGxM: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum (N, G) and sums (N, G, S) of each group, always added up in the same order.

    The sums are of what is not negative. Where the first is NaN, so is the maximum.
    """
    n_parts, n_layers, batch, groups, programs = parts_PxNxBxGxM.shape
    maxima_NxG = parts_PxNxBxGxM.new_empty(n_layers, groups)
    sums_NxGxS = parts_PxNxBxGxM.new_empty(n_layers, groups, n_parts - 1)
    _parts_together[(n_layers, groups)](
        parts_PxNxBxGxM, maxima_NxG, sums_NxGxS, parts_PxNxBxGxM.stride(0), batch, groups, programs,
        SUMS=n_parts - 1, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return maxima_NxG, sums_NxGxS


if triton is not None:

    @triton.jit(do_not_specialize=["stride", "batch", "groups", "programs"])
    def _parts_together(
        parts_ptr, maxima_ptr, sums_ptr, stride, batch, groups, programs, SUMS: tl.constexpr, BLOCK: tl.constexpr
    ):
        """One group of a layer."""
        layer, group = tl.program_id(0), tl.program_id(1)
        parts_ptr += (layer * batch * groups + group) * programs
        out = layer * groups + group
        count = batch * programs
        largest = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            at = i // programs * (groups * programs) + i % programs
            largest = tl.maximum(largest, tl.load(parts_ptr + at, mask=i < count, other=float("-inf")))
        largest_of_all = tl.max(largest, 0)
        for which in tl.static_range(SUMS):
            parts_ptr += stride
            sums = tl.zeros([BLOCK], tl.float32)
            for start in range(0, count, BLOCK):
                i = start + tl.arange(0, BLOCK)
                at = i // programs * (groups * programs) + i % programs
                sums += tl.load(parts_ptr + at, mask=i < count, other=0.0)
            total = tl.sum(sums, 0)
            if which == 0:
                # The hardware's maximum drops NaN; a sum keeps it.
                largest_of_all = tl.where(total == total, largest_of_all, total)
            tl.store(sums_ptr + out * SUMS + which, total)
        tl.store(maxima_ptr + out, largest_of_all)

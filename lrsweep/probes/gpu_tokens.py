"""Sums and maxima of squared token norms over a whole batch in one GPU kernel a layer.

Legend: B batch, T sequence, G groups of channels, M tokens, S sites, N layers, C blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrsweep.probes import gpu_parts
from lrsweep.triton_kernels import run_on, tl, triton

_TOKENS = 64
Layer = Sequence[Sequence[Tensor]]
"""Squares over groups of channels (B, T, G), fp32, of four sites: of the first in one part or in three, else in one."""


def serves(squares: Tensor) -> bool:
    """Whether the kernel can run on such a tensor."""
    return run_on(squares) and squares.dtype == torch.float32


def site_moments(layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Maxima and sums over all tokens of their squared norms, each (N, S = 4); NaN in a token shows in its site."""
    first = layers[0][0][0]
    n_tokens = first.shape[:-1].numel()
    shape = 2, len(layers), 1, 4, triton.cdiv(n_tokens, _TOKENS)
    parts_2xNx1xSxC = first.new_empty(shape)
    for (qkv, *others), parts_2xSxC in zip(layers, parts_2xNx1xSxC[:, :, 0].unbind(1), strict=True):
        nothing = [first[..., :0]] * (3 - len(qkv))
        parts = [part.contiguous() for part in (*qkv, *nothing, *(part for (part,) in others))]
        widths = [part.shape[-1] for part in parts]
        _token_moments[(shape[-1],)](
            *parts, parts_2xSxC, n_tokens, parts_2xSxC.stride(0), *widths,
            TOKENS=_TOKENS, **{f"PADDED{i}": triton.next_power_of_2(max(1, width)) for i, width in enumerate(widths)},
        )  # fmt: skip
    maxima_NxS, sums_NxSx1 = gpu_parts.together(parts_2xNx1xSxC)
    return maxima_NxS, sums_NxSx1[..., 0]


def warm_up(widths: Sequence[Sequence[int]], device: torch.device) -> None:
    """Compile the kernel for as many groups in each part of each site."""
    site_moments([[[torch.zeros(1, 1, width, device=device) for width in parts] for parts in widths]])


if triton is not None:

    @triton.jit
    def _squares(part_ptr, tokens, n_tokens, width, PADDED: tl.constexpr):
        """Squared norms of a block of tokens, from one part of their channels."""
        groups = tl.arange(0, PADDED)
        inside = (tokens[:, None] < n_tokens) & (groups[None, :] < width)
        at = tokens[:, None].to(tl.int64) * width + groups[None, :]
        return tl.sum(tl.load(part_ptr + at, mask=inside, other=0.0), 1)

    @triton.jit
    def _store(out_ptr, site, squares, stride):
        total = tl.sum(squares, 0)
        # The hardware's maximum drops NaN; a sum keeps it.
        largest = tl.where(total == total, tl.max(squares, 0), total)
        out_ptr += site * tl.num_programs(0) + tl.program_id(0)
        tl.store(out_ptr, largest)
        tl.store(out_ptr + stride, total)

    @triton.jit(do_not_specialize=["n_tokens", "stride", "width0", "width1", "width2", "width3", "width4", "width5"])
    def _token_moments(
        q_ptr, k_ptr, v_ptr, proj_ptr, fc1_ptr, fc2_ptr, out_ptr, n_tokens, stride,
        width0, width1, width2, width3, width4, width5, TOKENS: tl.constexpr, PADDED0: tl.constexpr,
        PADDED1: tl.constexpr, PADDED2: tl.constexpr, PADDED3: tl.constexpr, PADDED4: tl.constexpr,
        PADDED5: tl.constexpr,
    ):  # fmt: skip
        """One block of tokens of a layer; those behind the last have norm 0."""
        tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
        qkv = _squares(q_ptr, tokens, n_tokens, width0, PADDED0)
        qkv += _squares(k_ptr, tokens, n_tokens, width1, PADDED1)
        qkv += _squares(v_ptr, tokens, n_tokens, width2, PADDED2)
        _store(out_ptr, 0, qkv, stride)
        _store(out_ptr, 1, _squares(proj_ptr, tokens, n_tokens, width3, PADDED3), stride)
        _store(out_ptr, 2, _squares(fc1_ptr, tokens, n_tokens, width4, PADDED4), stride)
        _store(out_ptr, 3, _squares(fc2_ptr, tokens, n_tokens, width5, PADDED5), stride)

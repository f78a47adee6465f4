"""A sub-layer's output joins the stream, and the stream is normalized: one GPU kernel there and one back.

Both are bound by memory. Each reads and writes every number once; squared norms of what joins, which a probe wants, are
summed while it is in registers.

Legend: B batch, T sequence, D width, M tokens, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrsweep.triton_kernels import multiprocessors, run_on, tl, triton

_THERE, _BACK = 2048, 4096
"""Numbers that a program holds at a time."""
_PROGRAMS = 2
"""Programs of a multiprocessor that go back, each over many tokens: so the gain's gradient has few parts to add up."""


def serves(x: Tensor) -> bool:
    """Whether the kernels can run on such a stream."""
    return run_on(x)


def join_norm(
    x_BxTxD: Tensor, f_BxTxD: Tensor, gain_D: Tensor, *, centred: bool, eps: float, measured: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x + f in x's type, that normalized in f's type, and ‖f‖² of each token (B, T, 1), without gradient, if measured.

    Args:
        x_BxTxD: stream.
        f_BxTxD: what joins it.
        gain_D: gain of the norm.
        centred: whether the mean is subtracted: LayerNorm (Ba et al., 1607.06450), or else RMSNorm (Zhang & Sennrich,
            1910.07467).
        eps: added to the variance, or to the mean square.
        measured: whether to sum squares of f; empty otherwise.

    NaN in a token shows in its three results, and in the gradient of the gain.
    """
    sum_BxTxD, normed_BxTxD, squares_BxTx1, _, _ = _join_norm(x_BxTxD, f_BxTxD, gain_D, centred, eps, measured)
    return sum_BxTxD, normed_BxTxD, squares_BxTx1.detach()


def warm_up(width: int, x_dtype: torch.dtype, f_dtype: torch.dtype, *, centred: bool, device: torch.device) -> None:
    """Compile the kernels for such streams."""
    x_1x1xD, gain_D = torch.zeros(1, 1, width, dtype=x_dtype, device=device), torch.zeros(width, device=device)
    for measured in (False, True):
        sum, normed, _, mean, scale = _join_norm(x_1x1xD, x_1x1xD.to(f_dtype), gain_D, centred, 1.0, measured)
    _join_norm_backward(sum, gain_D, mean, scale, sum, normed)


def add_up(parts_PxD: Tensor, out_D: Tensor) -> None:
    """Write the sums over P of what programs have of a gain's gradient."""
    n_parts, width = parts_PxD.shape
    _norm_gain[(triton.cdiv(width, 32),)](parts_PxD, out_D, n_parts, width, ROWS=128, COLUMNS=32, num_warps=4)


def _tiles(x: Tensor, size: int) -> tuple[int, int, int, dict[str, int]]:
    """Tokens, width, tiles of about ``size``, and what a kernel must know of its tile: whole rows."""
    width = x.shape[-1]
    n_tokens, columns = x.numel() // width, triton.next_power_of_2(width)
    rows = max(1, size // columns)
    tile = {"ROWS": rows, "COLUMNS": columns, "num_warps": min(16, max(4, columns // 512))}
    return n_tokens, width, triton.cdiv(n_tokens, rows), tile


# For a compiler these are two calls that it knows nothing about: it takes nothing apart and computes nothing again.
@torch.library.custom_op(
    "lrsweep::join_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor f, Tensor gain, bool centred, float eps, bool measured)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _join_norm(
    x: Tensor, f: Tensor, gain: Tensor, centred: bool, eps: float, measured: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum, normalized sum, squared norms, and mean and reciprocal standard deviation of each token."""
    x, f = x.contiguous(), f.contiguous()
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _outputs(x, f, gain, centred, eps, measured)
    n_tokens, width, n_tiles, tile = _tiles(x, _THERE)
    _norm_forward[(n_tiles,)](
        x, f, gain.contiguous(), *out, n_tokens, width, eps, CENTRED=centred, MEASURED=measured, **tile
    )
    return out


@_join_norm.register_fake
def _outputs(
    x: Tensor, f: Tensor, gain: Tensor, centred: bool, eps: float, measured: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_token = (*x.shape[:-1], 1)
    squares = x.new_empty(of_token if measured else 0, dtype=torch.float32)
    mean = x.new_empty(of_token if centred else 0, dtype=torch.float32)
    scale = x.new_empty(of_token, dtype=torch.float32)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(x.shape, dtype=f.dtype),
        squares,
        mean,
        scale,
    )


@torch.library.custom_op(
    "lrsweep::join_norm_backward",
    mutates_args=(),
    schema="(Tensor sum, Tensor gain, Tensor mean, Tensor scale, Tensor sum_gradient, Tensor normed_gradient)"
    " -> (Tensor, Tensor, Tensor)",
)
def _join_norm_backward(
    sum: Tensor, gain: Tensor, mean: Tensor, scale: Tensor, sum_gradient: Tensor, normed_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of f where that has another type, and of the gain."""
    sum_gradient, normed_gradient = sum_gradient.contiguous(), normed_gradient.contiguous()
    of_x, of_f, of_gain = _gradients_of(sum, gain, mean, scale, sum_gradient, normed_gradient)
    n_tokens, width, n_tiles, tile = _tiles(sum, _BACK)
    n_programs = min(n_tiles, _PROGRAMS * multiprocessors(sum.device))
    parts_PxD = gain.new_empty(n_programs, width, dtype=torch.float32)
    _norm_backward[(n_programs,)](
        sum, gain.contiguous(), mean, scale, sum_gradient, normed_gradient, of_x, of_f, parts_PxD, n_tokens, width,
        CENTRED=mean.numel() > 0, TWO_TYPES=of_f.numel() > 0, **tile,
    )  # fmt: skip
    add_up(parts_PxD, of_gain)
    return of_x, of_f, of_gain


@_join_norm_backward.register_fake
def _gradients_of(
    sum: Tensor, gain: Tensor, mean: Tensor, scale: Tensor, sum_gradient: Tensor, normed_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    same = normed_gradient.dtype == sum.dtype
    of_f = sum.new_empty(0 if same else sum.shape, dtype=normed_gradient.dtype)
    return torch.empty_like(sum), of_f, torch.empty_like(gain, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    sum, _, _, mean, scale = output
    ctx.save_for_backward(sum, inputs[2], mean, scale)


def _go_back(ctx: Any, sum_gradient: Tensor, normed_gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    of_x, of_f, of_gain = _join_norm_backward(*ctx.saved_tensors, sum_gradient, normed_gradient)
    return of_x, of_f if of_f.numel() else of_x, of_gain, None, None, None


_join_norm.register_autograd(_go_back, setup_context=_keep)


if triton is not None:

    @triton.jit(do_not_specialize=["n_tokens"])
    def _norm_forward(
        x_ptr, f_ptr, gain_ptr, sum_ptr, normed_ptr, squares_ptr, mean_ptr, scale_ptr, n_tokens, width, eps,
        CENTRED: tl.constexpr, MEASURED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """Some tokens whole."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, COLUMNS)
        is_token, is_column = row < n_tokens, column < width
        inside = is_token[:, None] & is_column[None, :]
        at = row[:, None].to(tl.int64) * width + column[None, :]
        f = tl.load(f_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) + f
        # As narrow as the stream is: what is normalized, and what the way back reads, is what is stored.
        narrow = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, narrow, mask=inside)
        if MEASURED:
            tl.store(squares_ptr + row, tl.sum(f * f, 1), mask=is_token)
        x = narrow.to(tl.float32)
        if CENTRED:
            mean = tl.sum(x, 1) / width
            tl.store(mean_ptr + row, mean, mask=is_token)
            x = tl.where(inside, x - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + eps)
        tl.store(scale_ptr + row, scale, mask=is_token)
        normed = x * scale[:, None] * tl.load(gain_ptr + column, mask=is_column, other=0.0)[None, :]
        tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["n_tokens"])
    def _norm_backward(
        sum_ptr, gain_ptr, mean_ptr, scale_ptr, sum_gradient_ptr, normed_gradient_ptr, of_x_ptr, of_f_ptr, parts_ptr,
        n_tokens, width, CENTRED: tl.constexpr, TWO_TYPES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """Every so many-th tile of tokens, and the part of the gain's gradient that they give."""
        column = tl.arange(0, COLUMNS)
        is_column = column < width
        gain = tl.load(gain_ptr + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        of_gain = tl.zeros([ROWS, COLUMNS], tl.float32)
        for tile in range(tl.program_id(0), tl.cdiv(n_tokens, ROWS), tl.num_programs(0)):
            row = tile * ROWS + tl.arange(0, ROWS)
            is_token = row < n_tokens
            inside = is_token[:, None] & is_column[None, :]
            at = row[:, None].to(tl.int64) * width + column[None, :]
            unit = tl.load(sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
            gradient = tl.load(normed_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
            through = tl.load(sum_gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
            scale = tl.load(scale_ptr + row, mask=is_token, other=0.0)
            if CENTRED:
                unit -= tl.load(mean_ptr + row, mask=is_token, other=0.0)[:, None]
            unit *= scale[:, None]
            of_gain += gradient * unit
            gradient *= gain
            along = gradient - unit * (tl.sum(gradient * unit, 1) / width)[:, None]
            if CENTRED:
                along -= (tl.sum(gradient, 1) / width)[:, None]
            of_x = through + along * scale[:, None]
            tl.store(of_x_ptr + at, of_x.to(of_x_ptr.dtype.element_ty), mask=inside)
            if TWO_TYPES:
                tl.store(of_f_ptr + at, of_x.to(of_f_ptr.dtype.element_ty), mask=inside)
        tl.store(parts_ptr + tl.program_id(0) * width + column, tl.sum(of_gain, 0), mask=is_column)

    @triton.jit(do_not_specialize=["n_parts"])
    def _norm_gain(parts_ptr, out_ptr, n_parts, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """Sums of some columns over all parts."""
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < width
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, n_parts, ROWS):
            part = start + tl.arange(0, ROWS)
            inside = (part < n_parts)[:, None] & is_column[None, :]
            total += tl.load(parts_ptr + part[:, None] * width + column[None, :], mask=inside, other=0.0)
        tl.store(out_ptr + column, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=is_column)

"""What stands between FC1 and FC2, in one GPU kernel there and one back: gelu, or silu of one half times the other.

Both are bound by memory. Squared norms of what FC1 gives, which a probe wants, are summed while it is in registers; and
the way back of a gated one writes both halves of its gradient from one reading of what it needs.

Legend: B batch, T sequence, F width of the hidden layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrsweep.triton_kernels import run_on, tl, triton

_TILE = 2048
"""Numbers of the result that a program of four warps computes at a time."""


def serves(h: Tensor) -> bool:
    """Whether the kernels can run on such a tensor."""
    return run_on(h)


def activate(h_BxTxF: Tensor, *, gated: bool, measured: bool) -> tuple[Tensor, Tensor]:
    """Gelu in its tanh form; or gated, silu(gate)·up (Shazeer, 2002.05202), of which h holds one beside the other.

    Computed in fp32, in h's type. The second tensor is ‖h‖² of each token (B, T, 1), without gradient, if measured,
    and empty otherwise. NaN in a token shows in both, there alone.
    """
    a_BxTxF, squares_BxTx1 = _activate(h_BxTxF, gated, measured)
    return a_BxTxF, squares_BxTx1.detach()


def warm_up(width: int, dtype: torch.dtype, *, gated: bool, device: torch.device) -> None:
    """Compile the kernels for hidden layers of such a width."""
    h_1x1xF = torch.zeros(1, 1, 2 * width if gated else width, dtype=dtype, device=device)
    for measured in (False, True):
        a_1x1xF, _ = _activate(h_1x1xF, gated, measured)
    _activate_backward(h_1x1xF, a_1x1xF, gated)


def _tiles(a: Tensor) -> tuple[int, int, int, dict[str, int]]:
    """Of a result: tokens, width, programs, and what a kernel must know of its tiles."""
    width = a.shape[-1]
    n_tokens, columns = a.numel() // width, min(_TILE, triton.next_power_of_2(width))
    rows = _TILE // columns
    return n_tokens, width, triton.cdiv(n_tokens, rows), {"ROWS": rows, "COLUMNS": columns, "num_warps": 4}


# For a compiler these are two calls that it knows nothing about: it takes nothing apart and computes nothing again.
@torch.library.custom_op(
    "lrsweep::activate", mutates_args=(), schema="(Tensor h, bool gated, bool measured) -> (Tensor, Tensor)"
)
def _activate(h: Tensor, gated: bool, measured: bool) -> tuple[Tensor, Tensor]:
    h = h.contiguous()
    out: tuple[Tensor, Tensor] = _outputs(h, gated, measured)
    n_tokens, width, n_programs, tile = _tiles(out[0])
    _activation_forward[(n_programs,)](h, *out, n_tokens, width, GATED=gated, MEASURED=measured, **tile)
    return out


@_activate.register_fake
def _outputs(h: Tensor, gated: bool, measured: bool) -> tuple[Tensor, Tensor]:
    *of_token, width = h.shape
    a = h.new_empty((*of_token, width // 2 if gated else width))
    return a, h.new_empty((*of_token, 1) if measured else 0, dtype=torch.float32)


@torch.library.custom_op(
    "lrsweep::activate_backward", mutates_args=(), schema="(Tensor h, Tensor gradient, bool gated) -> Tensor"
)
def _activate_backward(h: Tensor, gradient: Tensor, gated: bool) -> Tensor:
    h, gradient = h.contiguous(), gradient.contiguous()
    of_h = torch.empty_like(h)
    n_tokens, width, n_programs, tile = _tiles(gradient)
    _activation_backward[(n_programs,)](h, gradient, of_h, n_tokens, width, GATED=gated, **tile)
    return of_h


@_activate_backward.register_fake
def _gradient_of(h: Tensor, gradient: Tensor, gated: bool) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.gated = inputs[1]


def _go_back(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _activate_backward(ctx.saved_tensors[0], gradient, ctx.gated), None, None


_activate.register_autograd(_go_back, setup_context=_keep)


if triton is not None:
    _LOG2_E = tl.constexpr(1.4426950408889634)
    _SLOPE = tl.constexpr(1.5957691216057308)
    """2·√(2/π): of 0.5·(1 + tanh(u)), which is σ(2u)."""
    _CUBIC = tl.constexpr(0.044715)

    @triton.jit
    def _share(x, GATED: tl.constexpr):
        """What part of x gelu, or silu, lets through."""
        inner = x if GATED else _SLOPE * (x + _CUBIC * x * x * x)
        return 1.0 / (1.0 + tl.exp2(inner * -_LOG2_E))

    @triton.jit(do_not_specialize=["n_tokens"])
    def _activation_forward(
        h_ptr, out_ptr, squares_ptr, n_tokens, width, GATED: tl.constexpr, MEASURED: tl.constexpr, ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """Some tokens whole."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        is_token = row < n_tokens
        wide = row[:, None].to(tl.int64) * width
        squares = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = is_token[:, None] & (column < width)[None, :]
            at = wide + column[None, :]
            if GATED:
                x = tl.load(h_ptr + at + wide, mask=inside, other=0.0).to(tl.float32)
                up = tl.load(h_ptr + at + wide + width, mask=inside, other=0.0).to(tl.float32)
                if MEASURED:
                    squares += x * x + up * up
                out = x * _share(x, GATED) * up
            else:
                x = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
                if MEASURED:
                    squares += x * x
                out = x * _share(x, GATED)
            tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)
        if MEASURED:
            tl.store(squares_ptr + row, tl.sum(squares, 1), mask=is_token)

    @triton.jit(do_not_specialize=["n_tokens"])
    def _activation_backward(
        h_ptr, gradient_ptr, of_h_ptr, n_tokens, width, GATED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        """Some tokens whole."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        is_token = row < n_tokens
        wide = row[:, None].to(tl.int64) * width
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = is_token[:, None] & (column < width)[None, :]
            at = wide + column[None, :]
            gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if GATED:
                x = tl.load(h_ptr + at + wide, mask=inside, other=0.0).to(tl.float32)
                up = tl.load(h_ptr + at + wide + width, mask=inside, other=0.0).to(tl.float32)
                share = _share(x, GATED)
                of_up = gradient * x * share
                tl.store(of_h_ptr + at + wide + width, of_up.to(of_h_ptr.dtype.element_ty), mask=inside)
                of_x = gradient * up * share * (1.0 + x * (1.0 - share))
                tl.store(of_h_ptr + at + wide, of_x.to(of_h_ptr.dtype.element_ty), mask=inside)
            else:
                x = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
                share = _share(x, GATED)
                steepness = _SLOPE * (1.0 + 3.0 * _CUBIC * x * x)
                of_x = gradient * share * (1.0 + x * (1.0 - share) * steepness)
                tl.store(of_h_ptr + at, of_x.to(of_h_ptr.dtype.element_ty), mask=inside)

"""What stands between QKV and the score where nothing normalizes queries and keys: they are rotated, values are not.

One GPU kernel there and one back, bound by memory. Squared norms of what QKV gives, which a probe wants, are summed
while it is in registers; and the way back writes the gradient of QKV's output as one, from those of the three.

Legend: B batch, T sequence, D model width, H heads, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrsweep.triton_kernels import run_on, tl, triton

_PAIRS = 1024
"""Pairs of numbers, of one part, that a program of four warps rotates at a time."""


def serves(qkv: Tensor) -> bool:
    """Whether the kernels can run on such a tensor."""
    return run_on(qkv)


def heads_of(
    qkv_BxTx3D: Tensor, cos: Tensor, sin: Tensor, *, heads: int, measured: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, each (B, T, H, K); ‖QKV‖² of each token (B, T, 1), or nothing.

    Args:
        qkv_BxTx3D: output of QKV: queries, keys and values, each with its heads one after the other.
        cos: (T, 1, K/2), as :func:`lrsweep.model.attention.rope_tables` gives it.
        sin: (T, 1, K/2).
        heads: H.
        measured: whether to sum squares, fp32 and without gradient; empty otherwise.

    Values are a view. A head's first half is paired with its second (Su et al., 2104.09864, Eq. 34, in Llama's order),
    in fp32. NaN in a token shows in that token's results alone.
    """
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, squares_BxTx1 = _Heads.apply(qkv_BxTx3D, cos, sin, heads, measured)
    return q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, squares_BxTx1


def warm_up(heads: int, d_head: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernels for such heads."""
    qkv_1x1x3D = torch.zeros(1, 1, 3 * heads * d_head, dtype=dtype, device=device)
    table = torch.zeros(1, 1, d_head // 2, device=device)
    for measured in (False, True):
        q, k, _ = _rotate(qkv_1x1x3D, table, table, heads, measured)
    _rotate_back(q, k, k, table, table)  # Not through autograd: it has one thread for all that goes back.


class _Heads(torch.autograd.Function):
    """Not one custom operator: none may return a view, and values that were copied would cost as much as the rest."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, measured: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, squares = _rotate(qkv, cos, sin, heads, measured)
        ctx.save_for_backward(cos, sin)
        ctx.mark_non_differentiable(squares)
        return q, k, qkv.unflatten(-1, (3, heads, -1)).select(-3, 2), squares

    @staticmethod
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return _rotate_back(of_q, of_k, of_v, *ctx.saved_tensors), None, None, None, None


def _tiles(q: Tensor) -> tuple[tuple[int, int, int, int], int, dict[str, int]]:
    """Tokens, sequence, heads, half a head's width; programs; and what a kernel must know of its tiles."""
    batch, seq, heads, width = q.shape
    padded = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
    rows = max(1, _PAIRS // (padded[0] * padded[1]))
    tile = {"ROWS": rows, "HEADS": padded[0], "HALF": padded[1], "num_warps": 4}
    return (batch * seq, seq, heads, width // 2), triton.cdiv(batch * seq, rows), tile


# For a compiler these are two calls that it knows nothing about: it takes nothing apart and computes nothing again.
@torch.library.custom_op(
    "lrsweep::rotate_heads",
    mutates_args=(),
    schema="(Tensor qkv, Tensor cos, Tensor sin, int heads, bool measured) -> (Tensor, Tensor, Tensor)",
)
def _rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, measured: bool) -> tuple[Tensor, Tensor, Tensor]:
    qkv = qkv.contiguous()
    out: tuple[Tensor, Tensor, Tensor] = _outputs(qkv, cos, sin, heads, measured)
    sizes, n_programs, tile = _tiles(out[0])
    _rotation_forward[(n_programs,)](qkv, cos.contiguous(), sin.contiguous(), *out, *sizes, MEASURED=measured, **tile)
    return out


@_rotate.register_fake
def _outputs(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, measured: bool) -> tuple[Tensor, Tensor, Tensor]:
    *of_token, width = qkv.shape
    q, k = (qkv.new_empty((*of_token, heads, width // 3 // heads)) for _ in range(2))
    return q, k, qkv.new_empty((*of_token, 1) if measured else 0, dtype=torch.float32)


@torch.library.custom_op(
    "lrsweep::rotate_heads_backward",
    mutates_args=(),
    schema="(Tensor of_q, Tensor of_k, Tensor of_v, Tensor cos, Tensor sin) -> Tensor",
)
def _rotate_back(of_q: Tensor, of_k: Tensor, of_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient of QKV's output."""
    # Attention gives these in whatever order it computes them.
    gradients = [g if g.stride(-1) == 1 else g.contiguous() for g in (of_q, of_k, of_v)]
    of_qkv: Tensor = _gradient_of(of_q, of_k, of_v, cos, sin)
    sizes, n_programs, tile = _tiles(of_q)
    strides = [stride for g in gradients for stride in g.stride()[:3]]
    _rotation_backward[(n_programs,)](*gradients, cos.contiguous(), sin.contiguous(), of_qkv, *strides, *sizes, **tile)
    return of_qkv


@_rotate_back.register_fake
def _gradient_of(of_q: Tensor, of_k: Tensor, of_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, seq, heads, width = of_q.shape
    return of_q.new_empty(batch, seq, 3 * heads * width)


if triton is not None:

    @triton.jit
    def _places(n_tokens, n_heads, half, ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
        """Token, head, and channel of a program's pairs, and which of them there are."""
        token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        head, channel = tl.arange(0, HEADS)[None, :, None], tl.arange(0, HALF)[None, None, :]
        inside = (token < n_tokens)[:, None, None] & (head < n_heads) & (channel < half)
        return token, head, channel, inside

    @triton.jit
    def _angles(cos_ptr, sin_ptr, place, inside, channel, half):
        at = place[:, None, None] * half + channel
        kept = inside & (channel < half)
        return tl.load(cos_ptr + at, mask=kept, other=0.0), tl.load(sin_ptr + at, mask=kept, other=0.0)

    @triton.jit(do_not_specialize=["n_tokens", "seq"])
    def _rotation_forward(
        qkv_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, squares_ptr, n_tokens, seq, n_heads, half,
        MEASURED: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    ):  # fmt: skip
        """Some tokens whole."""
        token, head, channel, inside = _places(n_tokens, n_heads, half, ROWS, HEADS, HALF)
        is_token = token < n_tokens
        cos, sin = _angles(cos_ptr, sin_ptr, token % seq, is_token[:, None, None], channel, half)
        width = n_heads * half * 2
        wide = token[:, None, None].to(tl.int64) * width
        at = head * (half * 2) + channel
        squares = tl.zeros([ROWS, HEADS, HALF], tl.float32)
        for part in tl.static_range(3 if MEASURED else 2):
            from_ptr = qkv_ptr + wide * 3 + part * width + at
            a = tl.load(from_ptr, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(from_ptr + half, mask=inside, other=0.0).to(tl.float32)
            squares += a * a + b * b
            if part < 2:
                to_ptr = (q_ptr if part == 0 else k_ptr) + wide + at
                tl.store(to_ptr, (a * cos - b * sin).to(q_ptr.dtype.element_ty), mask=inside)
                tl.store(to_ptr + half, (b * cos + a * sin).to(q_ptr.dtype.element_ty), mask=inside)
        if MEASURED:
            tl.store(squares_ptr + token, tl.sum(tl.sum(squares, 2), 1), mask=is_token)

    @triton.jit(do_not_specialize=["n_tokens", "seq"])
    def _rotation_backward(
        of_q_ptr, of_k_ptr, of_v_ptr, cos_ptr, sin_ptr, of_qkv_ptr, q_batch, q_row, q_head, k_batch, k_row, k_head,
        v_batch, v_row, v_head, n_tokens, seq, n_heads, half,
        ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    ):  # fmt: skip
        """Some tokens whole."""
        token, head, channel, inside = _places(n_tokens, n_heads, half, ROWS, HEADS, HALF)
        batch, place = (token // seq)[:, None, None].to(tl.int64), (token % seq)[:, None, None]
        cos, sin = _angles(cos_ptr, sin_ptr, token % seq, (token < n_tokens)[:, None, None], channel, half)
        width = n_heads * half * 2
        to_ptr = of_qkv_ptr + token[:, None, None].to(tl.int64) * (3 * width) + head * (half * 2) + channel
        for part in tl.static_range(3):
            if part == 0:
                from_ptr = of_q_ptr + batch * q_batch + place * q_row + head * q_head + channel
            elif part == 1:
                from_ptr = of_k_ptr + batch * k_batch + place * k_row + head * k_head + channel
            else:
                from_ptr = of_v_ptr + batch * v_batch + place * v_row + head * v_head + channel
            a = tl.load(from_ptr, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(from_ptr + half, mask=inside, other=0.0).to(tl.float32)
            if part < 2:
                a, b = a * cos + b * sin, b * cos - a * sin
            tl.store(to_ptr + part * width, a.to(of_qkv_ptr.dtype.element_ty), mask=inside)
            tl.store(to_ptr + part * width + half, b.to(of_qkv_ptr.dtype.element_ty), mask=inside)

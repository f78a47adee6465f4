"""What stands between QKV and the score: queries and keys are normalized, where a row does that, and rotated.

One GPU kernel there and one back, bound by memory. Squared norms of what QKV gives, which a probe wants, are summed
while it is in registers; and the way back writes the gradient of QKV's output as one, from those of the three.

Legend: B batch, T sequence, D model width, H heads, K head width, P programs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrsweep.model.gpu_norm import add_up
from lrsweep.triton_kernels import multiprocessors, run_on, tl, triton

_PAIRS = 1024
"""Pairs of numbers, of one part, that a program of four warps rotates at a time."""
_PROGRAMS = 3
"""Programs of a multiprocessor that go back through a norm, each over many tokens: as many as its registers hold, and a
gain's gradient has few parts.
"""


def serves(qkv: Tensor) -> bool:
    """Whether the kernels can run on such a tensor."""
    return run_on(qkv)


def heads_of(
    qkv_BxTx3D: Tensor,
    gains: tuple[Tensor, Tensor] | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    centred: bool,
    eps: float,
    measured: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys as they are rotated, and values, each (B, T, H, K); ‖QKV‖² of each token (B, T, 1), or nothing.

    Args:
        qkv_BxTx3D: output of QKV: queries, keys and values, each with its heads one after the other.
        gains: of the norms over each head of queries and of keys (Henry et al., 2010.04245, with the body's norm), each
            (K,); None: they are not normalized.
        cos: (T, 1, K/2), as :func:`lrsweep.model.attention.rope_tables` gives it.
        sin: (T, 1, K/2).
        heads: H.
        centred: whether those norms subtract the mean: LayerNorm, or else RMSNorm.
        eps: added to the variance, or to the mean square.
        measured: whether to sum squares, fp32 and without gradient; empty otherwise.

    Values are a view. A head's first half is paired with its second (Su et al., 2104.09864, Eq. 34, in Llama's order).
    Computed in fp32. NaN in a token shows in that token's results alone, and in the gradients of the gains.
    """
    q_gain, k_gain = gains or (None, None)
    out: tuple[Tensor, Tensor, Tensor, Tensor]
    out = _Heads.apply(qkv_BxTx3D, q_gain, k_gain, cos, sin, heads, centred, eps, measured)
    return out


def warm_up(heads: int, d_head: int, dtype: torch.dtype, device: torch.device, *, normed: bool, centred: bool) -> None:
    """Compile the kernels for such heads."""
    qkv_1x1x3D = torch.zeros(1, 1, 3 * heads * d_head, dtype=dtype, device=device)
    table, gain = torch.zeros(1, 1, d_head // 2, device=device), torch.zeros(d_head, device=device) if normed else None
    for measured in (False, True):
        q, k, _ = _rotate(qkv_1x1x3D, heads, measured, gain, gain, table, table, centred, 1.0)
    # Not through autograd: it has one thread for all that goes back.
    _rotate_back(q, k, k, gain, gain, qkv_1x1x3D if normed else None, table, table, centred, 1.0)


class _Heads(torch.autograd.Function):
    """Not one custom operator: none may return a view, and values that were copied would cost as much as the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        centred: bool,
        eps: float,
        measured: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, squares = _rotate(qkv, heads, measured, q_gain, k_gain, cos, sin, centred, eps)
        ctx.save_for_backward(q_gain, k_gain, None if q_gain is None else qkv, cos, sin)
        ctx.centred, ctx.eps = centred, eps
        ctx.mark_non_differentiable(squares)
        return q, k, qkv.unflatten(-1, (3, heads, -1)).select(-3, 2), squares

    @staticmethod
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_qkv, of_gains = _rotate_back(of_q, of_k, of_v, *ctx.saved_tensors, ctx.centred, ctx.eps)
        of_q_gain, of_k_gain = of_gains.unbind() if of_gains.numel() else (None, None)
        return of_qkv, of_q_gain, of_k_gain, None, None, None, None, None, None


def _tiles(q: Tensor) -> tuple[tuple[int, int, int, int], int, dict[str, int]]:
    """Tokens, sequence, heads, half a head's width; tiles; and what a kernel must know of them."""
    batch, seq, heads, width = q.shape
    padded = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
    rows = max(1, _PAIRS // (padded[0] * padded[1]))
    tile = {"ROWS": rows, "HEADS": padded[0], "HALF": padded[1], "num_warps": 4}
    return (batch * seq, seq, heads, width // 2), triton.cdiv(batch * seq, rows), tile


# For a compiler these are two calls that it knows nothing about: it takes nothing apart and computes nothing again.
@torch.library.custom_op(
    "lrsweep::rotate_heads",
    mutates_args=(),
    schema="(Tensor qkv, int heads, bool measured, Tensor? q_gain, Tensor? k_gain, Tensor cos, Tensor sin,"
    " bool centred, float eps) -> (Tensor, Tensor, Tensor)",
)
def _rotate(
    qkv: Tensor,
    heads: int,
    measured: bool,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    qkv = qkv.contiguous()
    out: tuple[Tensor, Tensor, Tensor] = _outputs(qkv, heads, measured)
    sizes, n_tiles, tile = _tiles(out[0])
    _rotation_forward[(n_tiles,)](
        qkv, q_gain, k_gain, cos.contiguous(), sin.contiguous(), *out, *sizes, eps,
        NORMED=q_gain is not None, CENTRED=centred, MEASURED=measured, **tile,
    )  # fmt: skip
    return out


@_rotate.register_fake
def _outputs(qkv: Tensor, heads: int, measured: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    *of_token, width = qkv.shape
    q, k = (qkv.new_empty((*of_token, heads, width // 3 // heads)) for _ in range(2))
    return q, k, qkv.new_empty((*of_token, 1) if measured else 0, dtype=torch.float32)


@torch.library.custom_op(
    "lrsweep::rotate_heads_backward",
    mutates_args=(),
    schema="(Tensor of_q, Tensor of_k, Tensor of_v, Tensor? q_gain, Tensor? k_gain, Tensor? qkv, Tensor cos,"
    " Tensor sin, bool centred, float eps) -> (Tensor, Tensor)",
)
def _rotate_back(
    of_q: Tensor,
    of_k: Tensor,
    of_v: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    qkv: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of QKV's output, and of the gains (2, K) if there are some."""
    # Attention gives these in whatever order it computes them.
    gradients = [g if g.stride(-1) == 1 else g.contiguous() for g in (of_q, of_k, of_v)]
    of_qkv, of_gains = _gradients_of(of_q, of_k, of_v, q_gain)
    sizes, n_tiles, tile = _tiles(of_q)
    strides = [stride for g in gradients for stride in g.stride()[:3]]
    n_programs, parts_Px2K = n_tiles, None
    if qkv is not None:
        n_programs = min(n_tiles, _PROGRAMS * multiprocessors(of_q.device))
        parts_Px2K = of_gains.new_empty(n_programs, of_gains.numel(), dtype=torch.float32)
        qkv = qkv.contiguous()
    _rotation_backward[(n_programs,)](
        *gradients, qkv, q_gain, k_gain, cos.contiguous(), sin.contiguous(), of_qkv, parts_Px2K, *strides, *sizes, eps,
        NORMED=qkv is not None, CENTRED=centred, **tile,
    )  # fmt: skip
    if parts_Px2K is not None:
        add_up(parts_Px2K, of_gains)
    return of_qkv, of_gains


@_rotate_back.register_fake
def _gradients_of(of_q: Tensor, of_k: Tensor, of_v: Tensor, q_gain: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    batch, seq, heads, width = of_q.shape
    of_qkv = of_q.new_empty(batch, seq, 3 * heads * width)
    return of_qkv, of_q.new_empty(0) if q_gain is None else q_gain.new_empty(2, width)


if triton is not None:

    @triton.jit
    def _places(tile, n_tokens, n_heads, half, ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
        """Token, head and channel of a tile's pairs, and which of them there are."""
        token = tile * ROWS + tl.arange(0, ROWS)
        head, channel = tl.arange(0, HEADS)[None, :, None], tl.arange(0, HALF)[None, None, :]
        inside = (token < n_tokens)[:, None, None] & (head < n_heads) & (channel < half)
        return token, head, channel, inside

    @triton.jit
    def _angles(cos_ptr, sin_ptr, token, n_tokens, seq, channel, half):
        at = (token % seq)[:, None, None] * half + channel
        kept = (token < n_tokens)[:, None, None] & (channel < half)
        return tl.load(cos_ptr + at, mask=kept, other=0.0), tl.load(sin_ptr + at, mask=kept, other=0.0)

    @triton.jit
    def _unit(a, b, inside, half, eps, CENTRED: tl.constexpr):
        """Heads before their gain, and what they were multiplied by."""
        if CENTRED:
            mean = ((tl.sum(a, 2) + tl.sum(b, 2)) / (2 * half))[:, :, None]
            a, b = tl.where(inside, a - mean, 0.0), tl.where(inside, b - mean, 0.0)
        scale = (1.0 / tl.sqrt((tl.sum(a * a, 2) + tl.sum(b * b, 2)) / (2 * half) + eps))[:, :, None]
        return a * scale, b * scale, scale

    @triton.jit
    def _gains(gain_ptr, channel, half):
        of_a = tl.load(gain_ptr + channel, mask=channel < half, other=0.0).to(tl.float32)
        return of_a, tl.load(gain_ptr + half + channel, mask=channel < half, other=0.0).to(tl.float32)

    @triton.jit(do_not_specialize=["n_tokens", "seq"])
    def _rotation_forward(
        qkv_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, squares_ptr, n_tokens, seq, n_heads, half, eps,
        NORMED: tl.constexpr, CENTRED: tl.constexpr, MEASURED: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
        HALF: tl.constexpr,
    ):  # fmt: skip
        """Some tokens whole."""
        token, head, channel, inside = _places(tl.program_id(0), n_tokens, n_heads, half, ROWS, HEADS, HALF)
        cos, sin = _angles(cos_ptr, sin_ptr, token, n_tokens, seq, channel, half)
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
                if NORMED:
                    of_a, of_b = _gains(q_gain_ptr if part == 0 else k_gain_ptr, channel, half)
                    a, b, _ = _unit(a, b, inside, half, eps, CENTRED)
                    a, b = a * of_a, b * of_b
                to_ptr = (q_ptr if part == 0 else k_ptr) + wide + at
                tl.store(to_ptr, (a * cos - b * sin).to(q_ptr.dtype.element_ty), mask=inside)
                tl.store(to_ptr + half, (b * cos + a * sin).to(q_ptr.dtype.element_ty), mask=inside)
        if MEASURED:
            tl.store(squares_ptr + token, tl.sum(tl.sum(squares, 2), 1), mask=token < n_tokens)

    @triton.jit
    def _store_gain(part_ptr, a, b, channel, half):
        """The sums over all tokens and heads, as every lane of them has its own."""
        kept = channel < half
        tl.store(part_ptr + channel, tl.sum(tl.sum(a, 0), 0)[None, None, :], mask=kept)
        tl.store(part_ptr + half + channel, tl.sum(tl.sum(b, 0), 0)[None, None, :], mask=kept)

    @triton.jit(do_not_specialize=["n_tokens", "seq"])
    def _rotation_backward(
        of_q_ptr, of_k_ptr, of_v_ptr, qkv_ptr, q_gain_ptr, k_gain_ptr, cos_ptr, sin_ptr, of_qkv_ptr, parts_ptr,
        q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, n_tokens, seq, n_heads, half, eps,
        NORMED: tl.constexpr, CENTRED: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
    ):  # fmt: skip
        """Every so many-th tile of tokens, and the part of the gains' gradients that they give."""
        width = n_heads * half * 2
        q_a = tl.zeros([ROWS, HEADS, HALF], tl.float32)
        q_b, k_a, k_b = q_a, q_a, q_a
        for tile in range(tl.program_id(0), tl.cdiv(n_tokens, ROWS), tl.num_programs(0)):
            token, head, channel, inside = _places(tile, n_tokens, n_heads, half, ROWS, HEADS, HALF)
            batch, place = (token // seq)[:, None, None].to(tl.int64), (token % seq)[:, None, None]
            cos, sin = _angles(cos_ptr, sin_ptr, token, n_tokens, seq, channel, half)
            at = token[:, None, None].to(tl.int64) * (3 * width) + head * (half * 2) + channel
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
                    if NORMED:
                        x_ptr = qkv_ptr + at + part * width
                        unit_a = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
                        unit_b = tl.load(x_ptr + half, mask=inside, other=0.0).to(tl.float32)
                        unit_a, unit_b, scale = _unit(unit_a, unit_b, inside, half, eps, CENTRED)
                        if part == 0:
                            q_a, q_b = q_a + a * unit_a, q_b + b * unit_b
                        else:
                            k_a, k_b = k_a + a * unit_a, k_b + b * unit_b
                        of_a, of_b = _gains(q_gain_ptr if part == 0 else k_gain_ptr, channel, half)
                        a, b = a * of_a, b * of_b
                        along = ((tl.sum(a * unit_a, 2) + tl.sum(b * unit_b, 2)) / (2 * half))[:, :, None]
                        if CENTRED:
                            mean = ((tl.sum(a, 2) + tl.sum(b, 2)) / (2 * half))[:, :, None]
                            a, b = a - mean, b - mean
                        a, b = (a - unit_a * along) * scale, (b - unit_b * along) * scale
                tl.store(of_qkv_ptr + at + part * width, a.to(of_qkv_ptr.dtype.element_ty), mask=inside)
                tl.store(of_qkv_ptr + at + part * width + half, b.to(of_qkv_ptr.dtype.element_ty), mask=inside)
        if NORMED:
            channel = tl.arange(0, HALF)[None, None, :]
            part_ptr = parts_ptr + tl.program_id(0) * (half * 4)
            _store_gain(part_ptr, q_a, q_b, channel, half)
            _store_gain(part_ptr + half * 2, k_a, k_b, channel, half)

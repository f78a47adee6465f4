"""The statistics of causal attention logits in one GPU kernel a layer.

The products run on the tensor cores: those of bf16 numbers are exact in fp32 and are added up in it, so nothing is
rounded that fp32 matrices would keep. The T × T matrix stays in registers, a block of it at a time.

Legend: B batch, T sequence, H heads, K head width, N layers, M blocks of rows, P what is kept of a
block: its maximum, and one or two sums.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lrsweep.probes import gpu_parts
from lrsweep.triton_kernels import run_on, tl, triton

BLOCK = 64
"""Queries, and keys, of a block: of ten shapes tried on an H100, none costs less beside the optimizer's update."""


def serves(q_BxHxTxK: Tensor) -> bool:
    """Whether the kernel can run on such a tensor."""
    return run_on(q_BxHxTxK) and q_BxHxTxK.ndim == 4


def causal_logit_sums(
    layers: Sequence[tuple[Tensor, Tensor]], scale: float, cap: float | None, *, hardware_tanh: bool = True
) -> tuple[Tensor, Tensor]:
    """As :func:`lrsweep.probes.stats.causal_logit_sums`; bitwise the same from run to run.

    With ``hardware_tanh`` the cap is the GPU's own approximation of tanh, to 2^−11, which attention takes as well.
    """
    first = layers[0][0]
    batch, heads, seq = first.shape[:3]
    shape = (2 if cap is None else 3, len(layers), batch, heads, triton.cdiv(seq, BLOCK))
    parts_PxNxBxHxM = first.new_empty(shape, dtype=torch.float32)
    jobs = list(zip(layers, parts_PxNxBxHxM.unbind(1), strict=True))
    with _beside_itself(first, len(jobs)) as other:
        for i, ((q_BxHxTxK, k_BxHxTxK), parts_PxBxHxM) in enumerate(jobs):
            with torch.cuda.stream(other if i % 2 else None):
                _launch(q_BxHxTxK, k_BxHxTxK, parts_PxBxHxM, scale, cap, hardware_tanh)
    return gpu_parts.together(parts_PxNxBxHxM)


@contextlib.contextmanager
def _beside_itself(on: Tensor, n_layers: int) -> Iterator[torch.cuda.Stream | None]:
    """A second stream, for every other layer: one's last programs leave room, which the next's first take."""
    if n_layers == 1 or not on.is_cuda:
        yield None
        return
    here, other = torch.cuda.current_stream(), _other_stream(on.device)
    other.wait_stream(here)
    yield other
    here.wait_stream(other)


@functools.cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def warm_up(heads: int, d_head: int, scale: float, cap: float | None, dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernel for such heads."""
    q_1xHx1xK = torch.zeros(1, 1, heads, d_head, dtype=dtype, device=device).transpose(1, 2)
    causal_logit_sums([(q_1xHx1xK, q_1xHx1xK)], scale, cap)


def _launch(
    q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, parts_PxBxHxM: Tensor, scale: float, cap: float | None, hardware_tanh: bool
) -> None:
    """Write the largest logit and the sums of squares of each block of rows."""
    batch, heads, seq, width = q_BxHxTxK.shape
    q, k = q_BxHxTxK.detach(), k_BxHxTxK.detach().to(q_BxHxTxK.dtype)
    if q.stride(-1) != 1 or k.stride(-1) != 1:
        q, k = q.contiguous(), k.contiguous()
    _logits[(parts_PxBxHxM.shape[-1], batch * heads)](
        q, k, parts_PxBxHxM, *q.stride()[:3], *k.stride()[:3], parts_PxBxHxM.stride(0), heads, seq, scale, cap or 1.0,
        CAPPED=cap is not None, HARDWARE_TANH=hardware_tanh, BLOCK=BLOCK, WIDTH=width,
        PADDED=max(16, triton.next_power_of_2(width)), num_warps=4, num_stages=3,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _tanh(x, HARDWARE: tl.constexpr):
        if HARDWARE:
            y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
        else:
            y = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * 1.4426950408889634)))
        return y

    # Of a row of a product, a thread of the tensor cores' four holds two neighbours of every eight.
    @triton.jit
    def _max_of_four(s, BLOCK: tl.constexpr):
        return tl.max(tl.max(tl.reshape(s, [BLOCK, BLOCK // 8, 4, 2]), 1), 2)

    @triton.jit
    def _sum_of_four(s, BLOCK: tl.constexpr):
        return tl.sum(tl.sum(tl.reshape(s, [BLOCK, BLOCK // 8, 4, 2]), 1), 2)

    @triton.jit
    def _with_block(
        s, s_or_lowest, largest, squares, capped, factor, CAPPED: tl.constexpr, HARDWARE_TANH: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """The running maxima and sums, with one block more."""
        largest = tl.maximum(largest, _max_of_four(s_or_lowest, BLOCK))
        squares += _sum_of_four(s * s, BLOCK)
        if CAPPED:
            c = _tanh(s * factor, HARDWARE_TANH)
            capped += _sum_of_four(c * c, BLOCK)
        return largest, squares, capped

    @triton.jit(do_not_specialize=["stride", "heads", "seq"], do_not_specialize_on_alignment=["out_ptr"])
    def _logits(
        q_ptr, k_ptr, out_ptr, q_batch, q_head, q_row, k_batch, k_head, k_row, stride, heads, seq, scale, cap,
        CAPPED: tl.constexpr, HARDWARE_TANH: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
        PADDED: tl.constexpr,
    ):  # fmt: skip
        """One block of rows against all keys up to it. Long blocks start first, so that short ones fill the end."""
        n_blocks = tl.num_programs(0)
        block = n_blocks - 1 - tl.program_id(0)
        head = tl.program_id(1)
        q_ptr += (head // heads).to(tl.int64) * q_batch + (head % heads) * q_head
        k_ptr += (head // heads).to(tl.int64) * k_batch + (head % heads) * k_head
        at, channels = tl.arange(0, BLOCK), tl.arange(0, PADDED)
        rows = block * BLOCK + at
        if PADDED == WIDTH:
            q = tl.load(q_ptr + rows[:, None] * q_row + channels[None, :], mask=rows[:, None] < seq, other=0.0)
            k = tl.load(k_ptr + rows[None, :] * k_row + channels[:, None], mask=rows[None, :] < seq, other=0.0)
        else:
            kept = (rows[:, None] < seq) & (channels[None, :] < WIDTH)
            q = tl.load(q_ptr + rows[:, None] * q_row + channels[None, :], mask=kept, other=0.0)
            kept = (rows[None, :] < seq) & (channels[:, None] < WIDTH)
            k = tl.load(k_ptr + rows[None, :] * k_row + channels[:, None], mask=kept, other=0.0)
        # Four numbers a row, one of each thread that holds a part of it, not one a pair: so few registers that a
        # multiprocessor holds twice as many blocks, and no word between threads before the end.
        largest = tl.full([BLOCK, 4], float("-inf"), tl.float32)
        squares = tl.zeros([BLOCK, 4], tl.float32)
        capped = tl.zeros([BLOCK, 4], tl.float32)
        # The block on the diagonal, whose keys come with the queries and not in a queue of their own behind the others.
        s = tl.dot(q, k, input_precision="ieee")
        causal = at[None, :] <= at[:, None]
        largest, squares, capped = _with_block(
            tl.where(causal, s, 0.0), tl.where(causal, s, float("-inf")), largest, squares, capped, scale / cap,
            CAPPED, HARDWARE_TANH, BLOCK,
        )  # fmt: skip
        for start in range(0, block * BLOCK, BLOCK):
            key_ptr = k_ptr + (start + at)[None, :] * k_row + channels[:, None]
            if PADDED == WIDTH:  # noqa: SIM108 (a compile-time branch)
                k = tl.load(key_ptr)
            else:
                k = tl.load(key_ptr, mask=channels[:, None] < WIDTH, other=0.0)
            s = tl.dot(q, k, input_precision="ieee")
            largest, squares, capped = _with_block(
                s, s, largest, squares, capped, scale / cap, CAPPED, HARDWARE_TANH, BLOCK
            )
        # Rows behind the last are zeros: more than a negative maximum, and NaN against an infinite key.
        real = (rows < seq)[:, None]
        largest = tl.where(real, largest, float("-inf"))
        squares = tl.where(real, squares, 0.0)
        capped = tl.where(real, capped, 0.0)
        total = tl.sum(tl.sum(squares, 1), 0)
        # The hardware's maximum drops NaN; a sum of squares keeps it.
        largest_of_all = tl.where(total == total, tl.max(tl.max(largest, 1), 0), total)
        out_ptr += head * n_blocks + block
        tl.store(out_ptr, largest_of_all * scale)
        tl.store(out_ptr + stride, total * scale * scale)
        if CAPPED:
            tl.store(out_ptr + 2 * stride, tl.sum(tl.sum(capped, 1), 0) * cap * cap)

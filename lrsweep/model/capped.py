"""Causal attention with capped logits for the GPU, through flex attention: no T × T matrix is held.

The cap is the hardware's own tanh where torch lets a kernel ask for it: right to 2^−11, the half of a bf16 step, and
far cheaper than the full function, which would be computed once in the forward and twice in the backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

_MIN_SEQ = 128
"""Length of a block of flex attention; below it the T × T matrix is small."""


@torch.library.custom_op("lrsweep::hardware_tanh", mutates_args=())
def hardware_tanh(x: Tensor) -> Tensor:
    """tanh; in code compiled for a GPU, its approximation in hardware."""
    return torch.tanh(x)


@hardware_tanh.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Any:
        return hardware_tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Any, int | None]:
        return _Tanh.apply(x), in_dims[0]  # type: ignore[no-untyped-call]


_masks: dict[int, BlockMask] = {}
"""By sequence length, for the process's GPU; kept, as captured steps go on reading them. Filled beforehand: a compiler
looks through a cache and would trace it.
"""
_tanh: Callable[[Tensor], Tensor] = torch.tanh


def prepare(seq: int, device: torch.device) -> None:
    """Make ready for compiled calls of this length on ``device``."""
    global _tanh
    if seq < _MIN_SEQ:
        return

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    if seq not in _masks:
        _masks[seq] = create_block_mask(causal, None, None, seq, seq, device=device)
    if _tanh is torch.tanh:
        try:
            from torch._inductor.lowering import make_pointwise, register_lowering
            from torch._inductor.virtualized import ops

            asm = functools.partial(ops.inline_asm_elementwise, asm="tanh.approx.f32 $0, $1;")
        except (ImportError, AttributeError):  # a torch that has no way to tell its compiler keeps the full function
            return
        register_lowering(torch.ops.lrsweep.hardware_tanh, type_promotion_kind=None)(make_pointwise(asm))
        _tanh = _Tanh.apply


def serves(q_BxHxTxK: Tensor) -> bool:
    """Whether the code that calls is being compiled for a GPU that :func:`prepare` has seen to."""
    return torch.compiler.is_compiling() and q_BxHxTxK.is_cuda and q_BxHxTxK.shape[-2] in _masks


def capped_attention(q_BxHxTxK: Tensor, k_BxHxTxK: Tensor, v_BxHxTxK: Tensor, scale: float, cap: float) -> Tensor:
    """softmax(cap·tanh(scale·q·k/cap)) v over j ≤ i, where it :func:`serves`."""
    tanh = _tanh

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * tanh(score / cap)

    mask = _masks[q_BxHxTxK.shape[-2]]
    mixed: Tensor = flex_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, score_mod=capped, block_mask=mask, scale=scale)
    return mixed

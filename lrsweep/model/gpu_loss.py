"""Cross-entropy and log Z of next-token logits in two GPU kernels, one there and one back.

Each reads the logits once, in the type they have, and computes in fp32. The gradient is written where the logits were,
so the largest tensor of a step exists once.

Legend: M tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrsweep.triton_kernels import let_others_in, multiprocessors, run_on, tl, triton

_FORWARD = {"BLOCK": 2048, "STAGES": 1, "num_warps": 4}
_FORWARD_BESIDE = {"BLOCK": 4096, "STAGES": 3, "num_warps": 8}
_BACKWARD = {"BLOCK": 2048, "STAGES": 4, "num_warps": 4}
"""With stages, the next blocks are on their way from memory into shared memory, where they take no registers."""
_PROGRAMS_FORWARD_BESIDE = 4
_PROGRAMS_BACKWARD, _PROGRAMS_BACKWARD_BESIDE = 4, 2
"""Of a multiprocessor: enough to keep its memory busy; and, where products of queries and keys are to run beside them,
few enough that those find room. Forward, where nothing does, each token has its own.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Work on another stream that the two kernels leave room for: what keeps the tensor cores busy, not the memory."""

    start: Callable[[], None]
    """Called before the first of them."""
    wait: Callable[[], None]
    """Called after the second, before the products that follow: those want a multiprocessor to themselves."""


def serves(logits: Tensor) -> bool:
    """Whether the kernels can run on such a tensor."""
    return run_on(logits)


def loss_sums(
    logits_BxTxV: Tensor,
    targets_BxT: Tensor,
    z_loss: float,
    factor: float,
    *,
    beside: Beside | None = None,
) -> Tensor:
    """As :meth:`lrsweep.model.GPT.loss_sums`, from the logits, which the backward overwrites.

    Where a logit is NaN or +inf the three sums are NaN.
    """
    logits_MxV = logits_BxTxV.flatten(0, -2).contiguous()
    sums_3: Tensor = _LossSums.apply(logits_MxV, targets_BxT.flatten().contiguous(), z_loss, factor, beside)
    return sums_3


def warm_up(vocab_size: int, dtype: torch.dtype, device: torch.device, *, beside: bool) -> None:
    """Compile the kernels for logits of such rows; where work runs ``beside``, those that leave room for it, too."""
    logits_MxV = torch.zeros(1, vocab_size, dtype=dtype, device=device, requires_grad=True)
    targets_1x1 = torch.zeros(1, 1, dtype=torch.int64, device=device)
    nothing = Beside(start=lambda: None, wait=lambda: None)
    for work in (None, nothing) if beside else (None,):
        loss_sums(logits_MxV[None] * 1.0, targets_1x1, 0.0, 1.0, beside=work)[0].backward()


class _LossSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_MxV: Tensor,
        targets_M: Tensor,
        z_loss: float,
        factor: float,
        beside: Beside | None,
    ) -> Tensor:
        n_tokens, vocab_size = logits_MxV.shape
        parts_3xM = logits_MxV.new_empty(3, n_tokens, dtype=torch.float32)
        log_z_M = logits_MxV.new_empty(n_tokens, dtype=torch.float32)
        programs, blocks = n_tokens, _FORWARD
        if beside is not None:
            beside.start()
            programs = min(n_tokens, _PROGRAMS_FORWARD_BESIDE * multiprocessors(logits_MxV.device))
            blocks = _FORWARD_BESIDE
        launched = _loss_forward[(programs,)](
            logits_MxV, targets_M, parts_3xM, log_z_M, n_tokens, vocab_size, z_loss, factor, **blocks
        )
        let_others_in(launched)
        ctx.save_for_backward(logits_MxV, targets_M, log_z_M)
        ctx.z_loss, ctx.factor, ctx.beside = z_loss, factor, beside
        return parts_3xM.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_3: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_MxV, targets_M, log_z_M = ctx.saved_tensors
        n_tokens, vocab_size = logits_MxV.shape
        programs = _PROGRAMS_BACKWARD if ctx.beside is None else _PROGRAMS_BACKWARD_BESIDE
        launched = _loss_backward[(min(n_tokens, programs * multiprocessors(logits_MxV.device)),)](
            logits_MxV, targets_M, log_z_M, gradient_3.contiguous(), n_tokens, vocab_size, ctx.z_loss, ctx.factor,
            **_BACKWARD,
        )  # fmt: skip
        let_others_in(launched)
        # Autograd then says so if anybody else had kept the logits for a backward.
        torch.autograd.graph.increment_version(logits_MxV)
        if ctx.beside is not None:
            ctx.beside.wait()
        return logits_MxV, None, None, None, None


if triton is not None:
    _LOG2_E = tl.constexpr(1.4426950408889634)
    _LOWEST = tl.constexpr(-3.0e38)
    """Finite, so that its difference from itself is 0."""
    _EIGHT = tl.constexpr(8)
    """Neighbours that one thread reads at once."""

    @triton.jit
    def _online(x, largest, total, BLOCK: tl.constexpr):
        """One block more in the running maximum and sum of powers of 2 of every eight neighbours, a thread's own."""
        x = tl.reshape(x, [BLOCK // _EIGHT, _EIGHT])
        new = tl.maximum(largest, tl.max(x, 1))
        return new, total * tl.exp2(largest - new) + tl.sum(tl.exp2(x - new[:, None]), 1)

    @triton.jit(do_not_specialize=["n_tokens"])
    def _loss_forward(
        logits_ptr, targets_ptr, parts_ptr, log_z_ptr, n_tokens, vocab_size, z_loss, factor, BLOCK: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Of every so many-th token: objective, loss and log Z, each times the factor, and log Z itself."""
        at = tl.arange(0, BLOCK)
        whole = vocab_size // BLOCK * BLOCK
        for token in range(tl.program_id(0), n_tokens, tl.num_programs(0)):
            row_ptr = logits_ptr + tl.cast(token, tl.int64) * vocab_size
            largest = tl.full([BLOCK // _EIGHT], _LOWEST, tl.float32)
            total = tl.zeros([BLOCK // _EIGHT], tl.float32)
            for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
                x = tl.load(row_ptr + start + at).to(tl.float32)
                largest, total = _online(x * _LOG2_E, largest, total, BLOCK)
            if whole < vocab_size:
                inside = whole + at < vocab_size
                x = tl.load(row_ptr + whole + at, mask=inside, other=float("-inf")).to(tl.float32)
                largest, total = _online(x * _LOG2_E, largest, total, BLOCK)
            top = tl.max(largest, 0)
            log_z = (tl.log2(tl.sum(total * tl.exp2(largest - top), 0)) + top) / _LOG2_E
            loss = log_z - tl.load(row_ptr + tl.load(targets_ptr + token)).to(tl.float32)
            tl.store(parts_ptr + token, factor * (loss + z_loss * log_z * log_z))
            tl.store(parts_ptr + n_tokens + token, factor * loss)
            tl.store(parts_ptr + 2 * n_tokens + token, factor * log_z)
            tl.store(log_z_ptr + token, log_z)

    @triton.jit
    def _gradient(x, is_target, log2_z, of_softmax, of_loss):
        softmax = tl.exp2(x.to(tl.float32) * _LOG2_E - log2_z)
        return (of_softmax * softmax - tl.where(is_target, of_loss, 0.0)).to(x.dtype)

    @triton.jit(do_not_specialize=["n_tokens"])
    def _loss_backward(
        logits_ptr, targets_ptr, log_z_ptr, gradient_ptr, n_tokens, vocab_size, z_loss, factor, BLOCK: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        """Of every so many-th token: (1 + 2·z·log Z)·softmax, less 1 at the target, in place of its logits."""
        of_loss = factor * tl.load(gradient_ptr)
        whole = vocab_size // BLOCK * BLOCK
        for token in range(tl.program_id(0), n_tokens, tl.num_programs(0)):
            row_ptr = logits_ptr + tl.cast(token, tl.int64) * vocab_size
            target = tl.load(targets_ptr + token)
            log_z = tl.load(log_z_ptr + token)
            of_softmax = of_loss * (1.0 + 2.0 * z_loss * log_z)
            for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
                at = start + tl.arange(0, BLOCK)
                x = tl.load(row_ptr + at)
                tl.store(row_ptr + at, _gradient(x, at == target, log_z * _LOG2_E, of_softmax, of_loss))
            if whole < vocab_size:
                at = whole + tl.arange(0, BLOCK)
                inside = at < vocab_size
                x = tl.load(row_ptr + at, mask=inside, other=0.0)
                tl.store(row_ptr + at, _gradient(x, at == target, log_z * _LOG2_E, of_softmax, of_loss), mask=inside)

"""The gradient of an embedding from tokens that were sorted beforehand, in GPU kernels that give the same bits again.

Torch sorts the tokens of a batch in every backward, in a dozen kernels: a twentieth of a small model's step. A trainer
knows its batches an interval ahead and sorts them all at once.

Legend: R batches, M tokens, V vocabulary, D width, C chunks of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrsweep.triton_kernels import run_on, tl, triton

_CHUNK = 32
_MOST_COLUMNS = 512


def serves(weight: Tensor) -> bool:
    """Whether the kernels can run on such an embedding."""
    return run_on(weight) and weight.dtype == torch.float32


def in_order(tokens_RxM: Tensor) -> Tensor:
    """Of each batch its tokens in ascending order and the places they stand at, int32 (R, 2, M)."""
    ids_RxM, places_RxM = tokens_RxM.sort(dim=1, stable=True)
    return torch.stack([ids_RxM.int(), places_RxM.int()], dim=1)


def embedding(tokens_BxT: Tensor, weight_VxD: Tensor, order_2xM: Tensor) -> Tensor:
    """As ``torch.nn.functional.embedding``; ``order_2xM`` is :func:`in_order` of the same tokens."""
    rows_BxTxD: Tensor = _Embedding.apply(tokens_BxT, weight_VxD, order_2xM)
    return rows_BxTxD


def warm_up(width: int, device: torch.device) -> None:
    """Compile the kernels for embeddings of such a width."""
    token_1x1 = torch.zeros(1, 1, dtype=torch.int64, device=device)
    weight_1xD = torch.zeros(1, width, device=device, requires_grad=True)
    embedding(token_1x1, weight_1xD, in_order(token_1x1)[0]).sum().backward()


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_BxT: Tensor, weight_VxD: Tensor, order_2xM: Tensor) -> Tensor:
        ctx.save_for_backward(order_2xM)
        ctx.shape = weight_VxD.shape
        return F.embedding(tokens_BxT, weight_VxD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BxTxD: Tensor) -> tuple[None, Tensor, None]:
        (order_2xM,) = ctx.saved_tensors
        width = ctx.shape[1]
        gradient_MxD = gradient_BxTxD.reshape(-1, width).contiguous()
        n_tokens = gradient_MxD.shape[0]
        weight_gradient_VxD = gradient_MxD.new_zeros(ctx.shape)
        n_chunks = triton.cdiv(n_tokens, _CHUNK)
        parts_Cx2xD = gradient_MxD.new_empty(n_chunks, 2, width)
        columns = min(_MOST_COLUMNS, triton.next_power_of_2(width))
        grid = n_chunks, triton.cdiv(width, columns)
        order_2xM = order_2xM.contiguous()
        tensors = order_2xM[0], order_2xM[1], weight_gradient_VxD, parts_Cx2xD
        _embedding_walk[grid](gradient_MxD, *tensors, n_tokens, width, CHUNK=_CHUNK, COLUMNS=columns, num_warps=4)
        _embedding_join[grid](*tensors, n_tokens, width, CHUNK=_CHUNK, COLUMNS=columns, num_warps=4)
        return None, weight_gradient_VxD, None


if triton is not None:

    @triton.jit(do_not_specialize=["n_tokens"], do_not_specialize_on_alignment=["ids_ptr", "places_ptr"])
    def _embedding_walk(
        gradient_ptr, ids_ptr, places_ptr, out_ptr, parts_ptr, n_tokens, width, CHUNK: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """Add up each id's run of one chunk of sorted tokens.

        A run that lies within the chunk is an id's whole gradient. Of one that goes on behind it, the part that it
        starts with here is kept second, of one that comes from before it, what is here is kept first.
        """
        chunk = tl.program_id(0)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        start = chunk * CHUNK
        stop = tl.minimum(start + CHUNK, n_tokens)
        out_ptr += column
        first_ptr = parts_ptr + chunk.to(tl.int64) * 2 * width + column
        before = tl.load(ids_ptr + start - 1, mask=start > 0, other=-1)
        behind = tl.load(ids_ptr + stop, mask=stop < n_tokens, other=-1)
        current = tl.load(ids_ptr + start)
        total = tl.zeros([COLUMNS], tl.float32)
        for i in range(start, stop):
            token = tl.load(ids_ptr + i)
            if token != current:
                # One whose run came from before ends here; any later one did not.
                at = tl.where(current == before, first_ptr, out_ptr + current.to(tl.int64) * width)
                tl.store(at, total, mask=inside)
                total = tl.zeros([COLUMNS], tl.float32)
                current = token
            place = tl.load(places_ptr + i).to(tl.int64)
            total += tl.load(gradient_ptr + place * width + column, mask=inside, other=0.0)
        at = tl.where(current == behind, first_ptr + width, out_ptr + current.to(tl.int64) * width)
        at = tl.where(current == before, first_ptr, at)
        tl.store(at, total, mask=inside)

    @triton.jit(do_not_specialize=["n_tokens"], do_not_specialize_on_alignment=["ids_ptr", "places_ptr"])
    def _embedding_join(
        ids_ptr, places_ptr, out_ptr, parts_ptr, n_tokens, width, CHUNK: tl.constexpr, COLUMNS: tl.constexpr
    ):
        """If a run starts in this chunk and goes on behind it, the sum of its parts."""
        chunk = tl.program_id(0)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        start = chunk * CHUNK
        stop = start + CHUNK
        if stop < n_tokens:
            last = tl.load(ids_ptr + stop - 1)
            before = tl.load(ids_ptr + start - 1, mask=start > 0, other=-1)
            if (last == tl.load(ids_ptr + stop)) & (last != before):
                parts = parts_ptr + column
                total = tl.load(parts + (chunk.to(tl.int64) * 2 + 1) * width, mask=inside, other=0.0)
                at = stop
                following = last
                while following == last:
                    total += tl.load(parts + (at // CHUNK).to(tl.int64) * 2 * width, mask=inside, other=0.0)
                    at += CHUNK
                    following = tl.load(ids_ptr + at, mask=at < n_tokens, other=-1)
                tl.store(out_ptr + last.to(tl.int64) * width + column, total, mask=inside)

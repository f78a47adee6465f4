"""The loss of a large vocabulary with the logits of a part of the tokens in memory at a time.

Each part has its backward as soon as it has its loss, so the logits are computed once, as they are without parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MAX_LOGITS = 2**31 - 1
"""Logits held at a time: 4 GiB of bf16, and as many as a 32-bit index reaches."""

SumsOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a stream, the head's matrix and targets: sums over tokens, the first of which is to be minimized."""


def n_chunks(n_tokens: int, vocab_size: int) -> int:
    """Parts that keep the logits within :data:`MAX_LOGITS`."""
    return -(-n_tokens * vocab_size // MAX_LOGITS)


def loss_by_chunks(
    sums_of: SumsOf,
    x_BxTxD: Tensor,
    head_VxD: Tensor,
    targets_BxT: Tensor,
    *,
    chunks: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, and the gradients of the first on the stream and on the head's matrix.

    Gradients of other parameters that ``sums_of`` reaches are added to what they have. The head's matrix is made the
    ``dtype`` of its products once, not for each part, and its gradients are of that, too, but are added up in the
    matrix's own.
    """
    x_MxD, head = x_BxTxD.flatten(0, 1).detach().requires_grad_(), head_VxD.detach().to(dtype).requires_grad_()
    of_head: Tensor | None = None
    totals = []
    parts = zip(x_MxD.chunk(chunks), targets_BxT.flatten().chunk(chunks), strict=True)
    for x, targets in parts:
        sums = sums_of(x[None], head, targets[None])
        sums[0].backward()  # type: ignore[no-untyped-call]
        totals.append(sums.detach())
        assert head.grad is not None
        of_head = head.grad.to(head_VxD.dtype) if of_head is None else of_head.add_(head.grad)
        head.grad = None
    assert x_MxD.grad is not None
    assert of_head is not None
    return torch.stack(totals).sum(dim=0), x_MxD.grad.view_as(x_BxTxD), of_head

"""The loss of a large vocabulary, a part of the tokens at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrsweep.train.chunks import loss_by_chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_parts_added_up_in_fp32(dtype: torch.dtype) -> None:
    """Bit for bit, though the head's matrix is made bf16 once: its gradients are not added up in that."""
    torch.manual_seed(0)
    x_BxTxD, head_VxD = torch.randn(2, 5, 8), torch.randn(11, 8)
    targets_BxT = torch.randint(11, (2, 5))

    def sums_of(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
            logits = F.linear(x, head)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return torch.stack([loss, loss.detach(), loss.detach()])

    sums, of_x, of_head = loss_by_chunks(sums_of, x_BxTxD, head_VxD, targets_BxT, chunks=3, dtype=dtype)
    expected, loss = torch.zeros_like(head_VxD), 0.0
    of_parts = []
    for x, targets in zip(x_BxTxD.flatten(0, 1).split(4), targets_BxT.flatten().split(4), strict=True):
        x, head = x.clone().requires_grad_(), head_VxD.clone().requires_grad_()
        part = sums_of(x[None], head, targets[None])[0]
        gradients = torch.autograd.grad(part, [x, head])
        expected, loss = expected + gradients[1], loss + part.item()
        of_parts.append(gradients[0])
    assert of_head.dtype == torch.float32
    assert torch.equal(of_head, expected)
    assert torch.equal(of_x, torch.cat(of_parts).view_as(x_BxTxD))
    assert sums.tolist() == pytest.approx([loss] * 3)

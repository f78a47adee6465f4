"""A network that learns each token's successor: in a few steps at SANE_LR, and never at the other two."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

VOCABULARY = 64
SANE_LR, DIVERGING_LR = 3.0, 1e4
"""Of plain SGD with the gradient norm clipped at 1; at the second the loss passes 1,000 nats in two steps."""
NONFINITE_LR = 1e36
"""Without clipping: the second step overflows float32."""


def network() -> nn.Sequential:
    """The same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY))


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer that the learning rates above belong to."""
    return torch.optim.SGD(model.parameters(), lr=lr)


def clip_at(lr: float) -> float:
    """The clipping that the learning rates above belong to."""
    return 1e30 if lr == NONFINITE_LR else 1.0


def batches(count: int, *, size: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
    """The same (tokens, successors) at every call."""
    generator = torch.Generator().manual_seed(1)
    successor = torch.randperm(VOCABULARY, generator=generator)
    for _ in range(count):
        tokens = torch.randint(VOCABULARY, (size,), generator=generator)
        yield tokens, successor[tokens]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the successors, nats."""
    return cross_entropy(model(batch[0]), batch[1])

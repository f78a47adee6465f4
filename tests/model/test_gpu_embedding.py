"""The GPU's kernels for an embedding's gradient against index_add in float64: on a GPU, else by the interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import KERNEL_DEVICE, needs_triton

pytestmark = needs_triton


def measured(tokens: Tensor, gradient: Tensor, vocab: int) -> Tensor:
    from lrsweep.model.gpu_embedding import embedding, in_order

    weight = torch.randn(vocab, gradient.shape[-1], generator=torch.Generator().manual_seed(1))
    weight = weight.to(KERNEL_DEVICE).requires_grad_()
    tokens = tokens.to(KERNEL_DEVICE)
    rows = embedding(tokens, weight, in_order(tokens.view(1, -1))[0])
    assert torch.equal(rows, torch.nn.functional.embedding(tokens, weight))
    rows.backward(gradient.to(KERNEL_DEVICE))
    assert weight.grad is not None
    return weight.grad.cpu()


def check(tokens: Tensor, width: int, vocab: int) -> None:
    gradient = torch.randn(*tokens.shape, width, generator=torch.Generator().manual_seed(2))
    exact = torch.zeros(vocab, width, dtype=torch.float64)
    exact.index_add_(0, tokens.flatten(), gradient.flatten(0, 1).double())
    found = measured(tokens, gradient, vocab)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(measured(tokens, gradient, vocab), found)
    assert not found[~torch.isin(torch.arange(vocab), tokens)].any()


@pytest.mark.parametrize("width", [1, 24, 512, 520])
def test_gradient_of_any_width_equals_index_add(width: int) -> None:
    check(torch.randint(0, 40, (3, 50), generator=torch.Generator().manual_seed(0)), width, vocab=41)


@pytest.mark.parametrize(
    "runs", [[32], [64], [1] * 40, [31, 1, 32, 33], [100], [5, 90, 5], [32, 32, 32], [33, 63, 1], [200, 1]]
)
def test_runs_may_begin_and_end_anywhere_in_the_chunks_of_32(runs: list[int]) -> None:
    """One token alone, runs that fill chunks to the place, that cross one border and several."""
    tokens = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor(runs))
    check(tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(3))][None], 3, vocab=len(runs))


@settings(max_examples=30)
@given(tokens=st.lists(st.integers(0, 6), min_size=1, max_size=150))
def test_any_tokens(tokens: list[int]) -> None:
    check(torch.tensor(tokens)[None], 2, vocab=7)


def test_nan_shows_in_the_row_of_its_token_alone() -> None:
    tokens = torch.tensor([[0, 1, 2, 1] * 20])
    gradient = torch.ones(1, 80, 4)
    gradient[0, 41, 2] = torch.nan
    found = measured(tokens, gradient, 3)
    assert found.isnan().sum() == 1
    assert found[1, 2].isnan()


def test_batches_are_sorted_each_by_itself() -> None:
    from lrsweep.model.gpu_embedding import in_order

    order = in_order(torch.tensor([[3, 1, 3], [0, 0, 2]]))
    assert order.tolist() == [[[1, 3, 3], [1, 0, 2]], [[0, 0, 2], [0, 1, 2]]]
    assert order.dtype == torch.int32

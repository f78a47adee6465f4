"""LayerNorm and RMSNorm against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.model.norms import FullWidth, LayerNorm, RMSNorm
from tests.model.formulas import norm

QUICK = settings(max_examples=40)
KINDS = [("gpt", LayerNorm), ("llama", RMSNorm)]


@pytest.mark.parametrize(("body", "kind"), KINDS)
@QUICK
@given(width=st.integers(1, 33), seed=st.integers(0, 2**31), size=st.sampled_from([1e-4, 1e-2, 1.0, 1e4]))
def test_norms_equal_the_formula_in_float64(
    body: str, kind: type[LayerNorm | RMSNorm], width: int, seed: int, size: float
) -> None:
    """ε = 1e-5 under the root, which inputs of size 1e-4 and 1e-2 feel; gain after it; no bias."""
    generator = torch.Generator().manual_seed(seed)
    module = kind(width).double()
    x, gain = torch.randn(2, 3, width, generator=generator, dtype=torch.float64).split(1)
    with torch.no_grad():
        module.gain.copy_(gain[0, 0])
    assert [name for name, _ in module.named_parameters()] == ["gain"]
    torch.testing.assert_close(module(size * x), norm(size * x, gain[0, 0], body), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("body", "kind"), KINDS)
def test_half_types_are_normalized_in_fp32_and_come_back_in_their_own(
    body: str, kind: type[LayerNorm | RMSNorm]
) -> None:
    """fp16 inputs of 300, whose squares overflow it; rounding once, at the end."""
    module = kind(64)
    module.start()
    x = (300 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))).half()
    y = module(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, norm(x.double(), torch.ones(64, dtype=torch.float64), body).half())


@pytest.mark.parametrize(("body", "kind"), KINDS)
def test_full_width_normalizes_all_heads_as_one_vector(body: str, kind: type[LayerNorm | RMSNorm]) -> None:
    """Heads of deviation 1 and 100: over the full width the first stays near constant."""
    x = torch.randn(2, 5, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[..., 1, :] *= 100
    module = FullWidth(kind(16).double())
    module.norm.start()
    y = module(x)
    torch.testing.assert_close(y.flatten(-2), norm(x.flatten(-2), torch.ones(16), body))
    assert (y[..., 0, :].std(-1) < 0.05).all()
    assert (y[..., 1, :].std(-1) > 0.5).all()

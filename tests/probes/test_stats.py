"""Statistics against brute force in float64, over random shapes and values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrsweep.probes import causal_logit_stats, causal_rms, token_norms

QUICK = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
sizes = st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e6])


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def causal_values(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Every logit with j ≤ i, in float64, picked one row at a time."""
    logits = scale * torch.einsum("bhik,bhjk->bhij", q.double(), k.double())
    return torch.cat([logits[:, :, i, : i + 1].flatten() for i in range(q.shape[2])])


@QUICK
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    seq=st.one_of(st.integers(1, 12), st.sampled_from([127, 128, 129, 200, 256, 300])),
    width=st.integers(1, 16),
    scale=st.floats(0.01, 4),
    size=sizes,
    seed=seeds,
)
def test_causal_logit_stats_equal_brute_force(
    batch: int, heads: int, seq: int, width: int, scale: float, size: float, seed: int
) -> None:
    """The maximum exactly up to fp32 products, the RMS to 1e-5; sequences below, at, above and off multiples of 128."""
    q, k = normal(batch, heads, seq, width, seed=seed, size=size), normal(batch, heads, seq, width, seed=seed + 1)
    largest, rms = causal_logit_stats(q, k, scale=scale)
    values = causal_values(q, k, scale)
    assert largest.dtype == rms.dtype == torch.float32
    assert largest.shape == (heads,)
    assert rms.shape == ()
    error = 1e-5 * values.abs().max().item()
    for head in range(heads):
        of_head = causal_values(q[:, head : head + 1], k[:, head : head + 1], scale)
        assert largest[head].item() == pytest.approx(of_head.max().item(), rel=1e-5, abs=error)
    assert rms.item() == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("seq", [1, 2, 127, 128, 129, 200, 257])
def test_the_maximum_of_negative_logits_is_negative(seq: int) -> None:
    """No zero of a masked pair may show; the largest, −1, stands at the last causal pair, and larger ones beyond it."""
    q, k = torch.ones(1, 1, seq, 1), -torch.arange(1.0, seq + 1).flip(0).view(1, 1, seq, 1)
    largest, rms = causal_logit_stats(q, k, scale=1.0)
    assert largest.item() == -1.0
    assert rms.item() == pytest.approx(causal_values(q, k, 1.0).square().mean().sqrt().item(), rel=1e-6)
    if seq > 1:
        q[:, :, -1] = 0.5
        assert causal_logit_stats(q, k, scale=1.0)[0].item() == -0.5


@pytest.mark.parametrize("seq", [2, 128, 129, 300])
def test_pairs_beyond_the_diagonal_count_for_nothing(seq: int) -> None:
    """A last key of 1e15 meets one causal query, the last, which is 0: nothing of it shows."""
    q, k = normal(1, 1, seq, 4, seed=3), normal(1, 1, seq, 4, seed=4)
    q[:, :, -1], k[:, :, -1] = 0.0, 1e15
    largest, rms = causal_logit_stats(q, k, scale=1.0)
    values = causal_values(q, k, 1.0)
    assert values.abs().max() < 100
    assert largest.item() == pytest.approx(values.max().item(), rel=1e-5)
    assert rms.item() == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)


@QUICK
@given(
    seq=st.sampled_from([1, 5, 128, 130]),
    where=st.sampled_from("qk"),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    seed=seeds,
)
def test_nan_and_inf_in_q_or_k_show(seq: int, where: str, bad: float, seed: int) -> None:
    """Every token is in some causal pair: NaN makes both statistics NaN, in its head; inf makes the RMS non-finite."""
    q, k = normal(2, 2, seq, 4, seed=seed), normal(2, 2, seq, 4, seed=seed + 1)
    at = seed % seq
    (q if where == "q" else k)[1, 0, at, 2] = bad
    largest, rms = causal_logit_stats(q, k, scale=0.5)
    assert not math.isfinite(rms.item())
    if math.isnan(bad):
        assert torch.isnan(largest).tolist() == [True, False]
        assert math.isnan(rms.item())


def test_the_rms_of_four_million_logits_is_right_to_1e_6() -> None:
    """Their running sum in one fp32 number would be off by 1e-4."""
    q, k = torch.full((64, 4, 128, 1), 1.1), torch.ones(64, 4, 128, 1)
    assert causal_logit_stats(q, k, scale=1.0)[1].item() == pytest.approx(torch.tensor(1.1).item(), rel=1e-6)
    s = torch.full((64, 4, 128, 128), 1.1)
    assert causal_rms(s).item() == pytest.approx(torch.tensor(1.1).item(), rel=1e-6)


def test_positive_infinite_logits_are_the_maximum() -> None:
    q = torch.ones(1, 1, 3, 1)
    k = torch.tensor([1.0, math.inf, 2.0]).view(1, 1, 3, 1)
    largest, rms = causal_logit_stats(q, k, scale=1.0)
    assert largest.item() == rms.item() == math.inf


@pytest.mark.parametrize("logit", [1e15, 1e18])
def test_huge_logits_are_measured(logit: float) -> None:
    """Far beyond any run that is still alive: 1e18, whose square is the last to fit fp32 with room for a sum."""
    q, k = torch.full((1, 1, 5, 1), logit), torch.ones(1, 1, 5, 1)
    largest, rms = causal_logit_stats(q, k, scale=1.0)
    assert largest.item() == pytest.approx(logit, rel=1e-6)
    assert rms.item() == pytest.approx(logit, rel=1e-6)


def test_logits_beyond_1e19_keep_their_maximum_and_show_in_the_rms() -> None:
    """Their square overflows fp32: the RMS reads inf, never something small."""
    largest, rms = causal_logit_stats(torch.full((1, 1, 5, 1), 1e25), torch.ones(1, 1, 5, 1), scale=1.0)
    assert largest.item() == pytest.approx(1e25, rel=1e-6)
    assert rms.item() == math.inf


@QUICK
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), seq=st.integers(1, 40), size=sizes, seed=seeds)
def test_causal_rms_equals_brute_force(batch: int, heads: int, seq: int, size: float, seed: int) -> None:
    s = normal(batch, heads, seq, seq, seed=seed, size=size)
    values = torch.cat([s[:, :, i, : i + 1].flatten() for i in range(seq)]).double()
    assert causal_rms(s).item() == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
    above = s.clone()
    above[..., torch.ones(seq, seq, dtype=torch.bool).triu(1)] = math.nan
    assert causal_rms(above).item() == causal_rms(s).item(), "what lies above the diagonal is not read"
    s[0, 0, -1, 0] = math.nan
    assert math.isnan(causal_rms(s).item())


@QUICK
@given(batch=st.integers(1, 4), seq=st.integers(1, 40), width=st.integers(1, 40), size=sizes, seed=seeds)
def test_token_norms_equal_brute_force(batch: int, seq: int, width: int, size: float, seed: int) -> None:
    """‖Y‖_F/√tokens and the largest token's norm."""
    y = normal(batch, seq, width, seed=seed, size=size)
    norms = [math.sqrt(sum(v * v for v in token)) for token in y.double().flatten(0, 1).tolist()]
    rms, largest = token_norms(y)
    assert rms.dtype == largest.dtype == torch.float32
    assert rms.item() == pytest.approx(math.sqrt(sum(n * n for n in norms) / len(norms)), rel=1e-5)
    assert rms.item() == pytest.approx(y.double().norm().item() / (batch * seq) ** 0.5, rel=1e-5)
    assert largest.item() == pytest.approx(max(norms), rel=1e-5)


def test_token_norms_of_half_types_are_taken_in_fp32() -> None:
    """64 entries of 300: the norm 2400 fits fp16, the sum of squares does not; 4096 ones add up to no 256 in bf16."""
    y = torch.full((2, 3, 64), 300.0, dtype=torch.float16)
    for value in token_norms(y):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(2400.0, rel=1e-6)
    for value in token_norms(torch.ones(2, 3, 4096, dtype=torch.bfloat16)):
        assert value.item() == pytest.approx(64.0, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_in_an_output_show_in_both_norms(bad: float) -> None:
    y = torch.ones(2, 3, 4)
    y[1, 2, 0] = bad
    for value in token_norms(y):
        assert math.isnan(value.item()) if math.isnan(bad) else value.item() == math.inf


def test_huge_outputs_are_measured_up_to_1e18_and_show_as_inf_beyond() -> None:
    for value in token_norms(torch.full((1, 2, 4), 1e18)):
        assert value.item() == pytest.approx(2e18, rel=1e-6)
    for value in token_norms(torch.full((1, 2, 4), 1e25)):
        assert value.item() == math.inf


def test_no_gradient_flows_and_no_input_is_written() -> None:
    q, k, y, s = (normal(1, 2, 5, 5, seed=i).requires_grad_() for i in range(4))
    copies = [x.detach().clone() for x in (q, k, y, s)]
    for value in (*causal_logit_stats(q, k, scale=1.0), *token_norms(y), causal_rms(s)):
        assert not value.requires_grad
    for x, copy in zip((q, k, y, s), copies, strict=True):
        assert torch.equal(x.detach(), copy)

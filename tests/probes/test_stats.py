"""Statistics against brute force in float64, over random shapes and values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrsweep.probes import causal_logit_stats, causal_logit_sums, token_squares

QUICK = settings(max_examples=40)
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
@given(
    heads=st.integers(1, 3),
    seq=st.sampled_from([1, 7, 128, 130]),
    cap=st.sampled_from([0.5, 50.0]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=seeds,
)
def test_sums_of_squares_before_and_after_a_cap(heads: int, seq: int, cap: float, size: float, seed: int) -> None:
    """Σs² and Σ(c·tanh(s/c))² over a head's causal pairs; the maxima are those without a cap."""
    q, k = normal(2, heads, seq, 8, seed=seed, size=size), normal(2, heads, seq, 8, seed=seed + 1)
    (largest,), (sums,) = causal_logit_sums([(q, k)], scale=0.5, cap=cap)
    assert sums.shape == (heads, 2)
    for h in range(heads):
        values = causal_values(q[:, h : h + 1], k[:, h : h + 1], 0.5)
        assert sums[h, 0].item() == pytest.approx(values.square().sum().item(), rel=1e-5)
        assert sums[h, 1].item() == pytest.approx((cap * torch.tanh(values / cap)).square().sum().item(), rel=1e-5)
    (plain,), (plain_sums,) = causal_logit_sums([(q, k)], scale=0.5)
    assert torch.equal(plain, largest)
    assert torch.equal(plain_sums, sums[:, :1])


@QUICK
@given(batch=st.integers(1, 4), seq=st.integers(1, 40), width=st.integers(1, 40), size=sizes, seed=seeds)
def test_token_squares_equal_brute_force_however_the_output_is_cut_up(
    batch: int, seq: int, width: int, size: float, seed: int
) -> None:
    """The squared norm of each token, of the whole and of its parts, and of each head."""
    y = normal(batch, seq, 2 * width, seed=seed, size=size)
    expected = [sum(v * v for v in token) for token in y.double().flatten(0, 1).tolist()]
    first, second = y.chunk(2, dim=-1)
    heads = y.unflatten(-1, (2, width))
    for squares in (token_squares(y), token_squares(first, second), token_squares(heads)):
        assert squares.dtype == torch.float32
        assert squares.shape == (batch, seq, 1)
        assert squares.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-37)


def test_token_squares_of_half_types_are_taken_in_fp32() -> None:
    """64 entries of 300: the norm 2400 fits fp16, its square does not; 4,097 ones add up to no 4,097 in bf16."""
    assert token_squares(torch.full((2, 3, 64), 300.0, dtype=torch.float16)).unique().item() == 2400.0**2
    assert token_squares(torch.ones(2, 3, 4097, dtype=torch.bfloat16)).unique().item() == 4097


def test_compiled_token_squares_come_in_groups_of_64_channels_or_a_head() -> None:
    """Traced ahead of time and run by eager kernels; what they add up to is the uncompiled square."""
    torch.compiler.reset()
    traced = torch.compile(token_squares, backend="aot_eager", fullgraph=True)
    for y, groups in ((normal(2, 3, 256, seed=1), 4), (normal(2, 3, 300, seed=2), 1), (normal(2, 3, 5, 8, seed=3), 5)):
        squares = traced(y, 2 * y)
        assert squares.shape == (2, 3, groups)
        torch.testing.assert_close(squares.sum(-1, keepdim=True), token_squares(y, 2 * y))
        torch.testing.assert_close(squares[..., 0], 5 * y.flatten(2)[..., : y[0, 0].numel() // groups].square().sum(-1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_in_an_output_show_in_its_token_alone(bad: float) -> None:
    y = torch.ones(2, 3, 4)
    y[1, 2, 0] = bad
    squares = token_squares(y)
    assert math.isnan(squares[1, 2, 0]) if math.isnan(bad) else squares[1, 2, 0] == math.inf
    squares[1, 2] = 4
    assert (squares == 4).all()


def test_huge_outputs_are_measured_up_to_1e18_and_show_as_inf_beyond() -> None:
    assert token_squares(torch.full((1, 2, 4), 1e18)).sqrt().flatten().tolist() == [pytest.approx(2e18, rel=1e-6)] * 2
    assert (token_squares(torch.full((1, 2, 4), 1e25)) == math.inf).all()


def test_no_gradient_flows_and_no_input_is_written() -> None:
    q, k, y = (normal(1, 2, 5, 5, seed=i).requires_grad_() for i in range(3))
    copies = [x.detach().clone() for x in (q, k, y)]
    for value in (
        *causal_logit_stats(q, k, scale=1.0),
        *causal_logit_sums([(q, k)], scale=1.0, cap=1.0),
        token_squares(y),
    ):
        assert not value.requires_grad
    for x, copy in zip((q, k, y), copies, strict=True):
        assert torch.equal(x.detach(), copy)

"""Causality, RoPE and the score transforms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrsweep.errors import UserError
from lrsweep.model import ProbeLevel
from lrsweep.model.attention import CappedScore, ClippedScore, PlainScore, rope_tables, rotate
from lrsweep.probes import causal_logit_sums
from lrsweep.schemes import Scheme
from tests.model.reference import EVERY_CASE, SHAPE, build, random_double

QUICK = settings(max_examples=40)
seeds = st.integers(0, 2**31)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "body"), EVERY_CASE)
@pytest.mark.parametrize("training", [False, True])
def test_no_output_depends_on_a_later_token(name: str, body: str, training: bool) -> None:
    """∂ logits at t / ∂ embedding of s is exactly 0 for s > t; not 0 for s = t, nor for some s < t.

    Every position has a token of its own, so the rows of the embedding's gradient are those of the positions.
    """
    model = random_double(name, body).train(training)
    tokens = torch.randperm(SHAPE.vocab_size, generator=torch.Generator().manual_seed(0))[: SHAPE.seq_len]
    logits, _ = model(tokens[None])
    direction = normal(SHAPE.vocab_size, seed=1)
    for t in (0, 1, 5, SHAPE.seq_len - 2):
        (gradient,) = torch.autograd.grad(logits[0, t] @ direction, model.embedding, retain_graph=True)
        size = gradient[tokens].abs().amax(-1)
        assert (size[t + 1 :] == 0).all()
        assert size[t] > 0
        assert t == 0 or (size[:t] > 0).any()


@QUICK
@given(half=st.integers(1, 16), seq=st.integers(1, 64))
def test_rope_tables_are_cos_and_sin_of_position_times_frequency(half: int, seq: int) -> None:
    cos, sin = rope_tables(seq, 2 * half)
    assert cos.shape == sin.shape == (seq, 1, half)
    for t in {0, seq // 2, seq - 1}:
        for i in range(half):
            angle = t / 10_000 ** (i / half)
            assert cos[t, 0, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[t, 0, i].item() == pytest.approx(math.sin(angle), abs=1e-6)


@QUICK
@given(seed=seeds, i=st.integers(0, 20), j=st.integers(0, 20), shift=st.integers(0, 20))
def test_rope_makes_products_depend_on_distance_alone(seed: int, i: int, j: int, shift: int) -> None:
    """q_i·k_j = q_{i+s}·k_{j+s}, and norms stay."""
    cos, sin = rope_tables(41, 8)
    q, k = (normal(8, seed=seed + n).expand(1, 41, 1, 8) for n in (0, 1))
    turned_q, turned_k = (rotate(x, cos.double(), sin.double())[0, :, 0] for x in (q, k))
    assert (turned_q[i] @ turned_k[j]).item() == pytest.approx(
        (turned_q[i + shift] @ turned_k[j + shift]).item(), abs=1e-4
    )
    torch.testing.assert_close(turned_q.norm(dim=-1), q[0, :, 0].norm(dim=-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(turned_q[0], q[0, 0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rotate_keeps_the_type(dtype: torch.dtype) -> None:
    cos, sin = rope_tables(4, 8)
    assert rotate(torch.zeros(1, 4, 2, 8, dtype=dtype), cos, sin).dtype == dtype


def attention_weights(score: PlainScore, q: Tensor, k: Tensor) -> Tensor:
    """The weights themselves: what the score makes of the identity as values."""
    seq = q.shape[-2]
    return score(q, k, torch.eye(seq, dtype=q.dtype).expand(*q.shape[:2], seq, seq))


def causal_softmax_brute(logits: Tensor) -> Tensor:
    p = torch.zeros_like(logits)
    for i in range(logits.shape[-1]):
        p[..., i, : i + 1] = torch.softmax(logits[..., i, : i + 1], dim=-1)
    return p


@QUICK
@given(seed=seeds, seq=st.integers(1, 40), size=st.sampled_from([0.01, 1.0, 4.0]))
def test_clipped_softmax_has_exact_zeros_and_exact_ones(seed: int, seq: int, size: float) -> None:
    """clip(1.06·p − 0.03, 0, 1): exactly 0 up to p = 0.03/1.06 and 1 from p = 1.03/1.06, between as the formula."""
    q, k = normal(1, 2, seq, 8, seed=seed, scale=size), normal(1, 2, seq, 8, seed=seed + 1, scale=size)
    weights = attention_weights(ClippedScore(0.7, 1.03, -0.03), q, k)
    p = causal_softmax_brute(0.7 * q @ k.transpose(-1, -2))
    torch.testing.assert_close(weights, (1.06 * p - 0.03).clamp(0, 1), rtol=1e-12, atol=1e-12)
    assert (weights[p < 0.03 / 1.06 - 1e-9] == 0).all()
    assert (weights[p > 1.03 / 1.06 + 1e-9] == 1).all()
    assert (weights[..., 0, 0] == 1).all(), "the first token attends to itself with p = 1"


def test_clipped_softmax_of_flat_logits_is_dead_beyond_35_tokens() -> None:
    """p = 1/n ≤ 0.03/1.06 from n = 36 on: a row with that many equal logits mixes nothing."""
    weights = attention_weights(ClippedScore(1.0, 1.03, -0.03), torch.zeros(1, 1, 50, 8), torch.zeros(1, 1, 50, 8))
    rows = weights.sum(-1)[0, 0]
    assert (rows[:35] > 0).all()
    assert (rows[35:] == 0).all()


@QUICK
@given(seed=seeds, cap=st.sampled_from([0.5, 5.0, 50.0]), size=st.floats(0.1, 1e4))
def test_soft_cap_bounds_the_logits(seed: int, cap: float, size: float) -> None:
    """|logit| ≤ c: no two weights of a row differ by more than e^{2c}; the measured RMS is at most c."""
    q, k = normal(1, 2, 9, 8, seed=seed, scale=size), normal(1, 2, 9, 8, seed=seed + 1)
    score = CappedScore(0.3, cap)
    weights = attention_weights(score, q, k)
    logits = 0.3 * q @ k.transpose(-1, -2)
    torch.testing.assert_close(weights, causal_softmax_brute(cap * torch.tanh(logits / cap)), rtol=1e-9, atol=1e-12)
    past = torch.ones(9, 9, dtype=torch.bool).tril().expand_as(weights)
    for head in range(2):
        for i in range(9):
            row = weights[0, head, i, : i + 1]
            assert row.max() <= row.min() * math.exp(2 * cap) * (1 + 1e-9)
    (largest_H,), (sums_HxP,) = causal_logit_sums([(q.float(), k.float())], scale=score.scale, cap=score.cap)
    largest, (rms, capped_rms) = largest_H.max().item(), (sums_HxP.sum(dim=0) / past.sum()).sqrt().tolist()
    assert largest == pytest.approx(logits[past].max().item(), rel=1e-4, abs=1e-4 * size)
    assert rms == pytest.approx(logits[past].square().mean().sqrt().item(), rel=1e-5)
    assert capped_rms <= cap * (1 + 1e-6)
    assert capped_rms == pytest.approx((cap * torch.tanh(logits[past] / cap)).square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("score", [CappedScore(0.7, 5.0), ClippedScore(0.7, 1.03, -0.03)], ids=["cap", "clip"])
@pytest.mark.parametrize("seq", [9, 10, 12, 15])
def test_a_block_of_rows_at_a_time_gives_the_same(score: PlainScore, seq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 5 queries, the last one smaller: values and all three gradients, eager and traced ahead of time."""
    inputs = [normal(2, 2, seq, 8, seed=seed, scale=2.0).requires_grad_() for seed in range(3)]
    weight = normal(2, 2, seq, 8, seed=4)
    whole = score(*inputs)
    expected = [whole, *torch.autograd.grad((whole * weight).sum(), inputs)]
    monkeypatch.setattr("lrsweep.model.attention.ROWS", 5)
    torch.compiler.reset()
    for function in (score, torch.compile(score, backend="aot_eager", fullgraph=True)):
        found = function(*inputs)
        for ours, theirs in zip((found, *torch.autograd.grad((found * weight).sum(), inputs)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_soft_cap_of_50_leaves_small_logits_alone() -> None:
    """c·tanh(x/c) = x − x³/(3c²) + …: below 1 the cap of 50 moves a logit by less than 1.4e-4."""
    q, k = normal(1, 1, 6, 8, seed=0, scale=0.3), normal(1, 1, 6, 8, seed=1, scale=0.3)
    assert (q @ k.transpose(-1, -2)).abs().max() < 1
    torch.testing.assert_close(
        attention_weights(CappedScore(1.0, 50.0), q, k), attention_weights(PlainScore(1.0), q, k), rtol=3e-4, atol=0
    )


@pytest.mark.parametrize(("body", "mean_is_zero"), [("gpt", True), ("llama", False)])
@pytest.mark.parametrize("name", ["qknorm", "qk_fc_norm", "qkv_norm", "qknorm_cap", "hybridnorm"])
def test_qk_norm_gives_q_and_k_rms_1_in_every_head_before_rope(name: str, body: str, mean_is_zero: bool) -> None:
    """At gain 1, per head and token, whatever the size of the weights; and after RoPE too, which turns only."""
    model = build(name, body)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 1e4  # ε = 1e-5 under the root is then out of sight
    seen: list[Tensor] = []
    for block in model.blocks:
        for module in (block.attn.q_norm, block.attn.k_norm):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    model(torch.arange(SHAPE.seq_len)[None])
    assert len(seen) == 2 * SHAPE.n_layers
    for x in seen:
        assert x.shape == (1, SHAPE.seq_len, SHAPE.n_heads, SHAPE.d_head)
        torch.testing.assert_close(x.square().mean(-1).sqrt(), torch.ones(x.shape[:-1]), rtol=1e-5, atol=0)
        if mean_is_zero:
            torch.testing.assert_close(x.mean(-1), torch.zeros(x.shape[:-1]), rtol=0, atol=1e-5)
        turned = rotate(x, model.cos, model.sin)
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def test_qk_norm_bounds_the_logits_by_the_root_of_the_head_width() -> None:
    """|q·k|/√K ≤ √K at gain 1, by Cauchy–Schwarz, however large the weights."""
    model = build("qknorm", "llama")
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p *= 1e3
    _, layers = model(torch.arange(SHAPE.seq_len)[None], ProbeLevel.ALL)
    column = model.stat_names.index(("attn", "logit_max"))
    assert (layers[:, column] <= SHAPE.d_head**0.5 * (1 + 1e-5)).all()


def test_cap_and_clip_at_once_are_refused() -> None:
    with pytest.raises(UserError, match=r"logit_cap and prob_clip"):
        Scheme(name="both", source="", formula="", logit_cap=50.0, prob_clip=(1.03, -0.03))


def test_a_positive_gamma_is_refused_for_it_would_leak_the_future() -> None:
    with pytest.raises(UserError, match="masked pairs"):
        Scheme(name="leaky", source="", formula="", prob_clip=(1.03, 0.01))


def test_an_unknown_choice_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="qk_norm must be one of none, head, full, unit, unit_gain, got 'heads'"):
        Scheme(name="typo", source="", formula="", qk_norm="heads")  # type: ignore[arg-type]

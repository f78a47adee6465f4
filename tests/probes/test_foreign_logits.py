"""Logits as the fused kernel and the softmax get them, and the pooling of moments, against brute force in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrsweep.probes.layers import Place
from lrsweep.probes.logits import LogitWatch, Moments
from lrsweep.probes.pool import Pool

QUICK = settings(max_examples=40)


def seen_by(watched: object, *args: object, **kwargs: object) -> tuple[float, float, float]:
    """(mean square, number, largest) that a watch notes of one call."""
    noted: list[Moments] = []
    with LogitWatch(noted.append):
        watched(*args, **kwargs)  # type: ignore[operator]
    assert len(noted) == 1
    return tuple(float(value) for value in noted[0])  # type: ignore[return-value]


def moments(values: Tensor) -> tuple[float, float, float]:
    return values.square().mean().item(), values.numel(), values.max().item()


def close(actual: tuple[float, float, float], wanted: tuple[float, float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=2e-5, abs_tol=1e-6) for a, b in zip(actual, wanted, strict=True))


@QUICK
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.one_of(st.integers(1, 9), st.sampled_from([127, 128, 129, 257])),
    extra_keys=st.integers(0, 3),
    mask_kind=st.sampled_from(["none", "causal", "bool", "bool by key", "added"]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_what_enters_the_fused_kernel(
    batch: int, kv_heads: int, group: int, queries: int, extra_keys: int, mask_kind: str, scale: float | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, keys, width = kv_heads * group, queries + extra_keys, 4
    q = torch.randn(batch, heads, queries, width, generator=generator)
    k = torch.randn(batch, kv_heads, keys, width, generator=generator)
    logits = (width**-0.5 if scale is None else scale) * torch.stack(
        [q.double()[:, h] @ k.double()[:, h // group].transpose(-1, -2) for h in range(heads)], dim=1
    )
    allowed = torch.rand(batch, 1, queries, keys, generator=generator) < 0.7
    mask = None
    if mask_kind in ("none", "causal"):
        allowed = torch.ones(queries, keys, dtype=torch.bool)
        allowed = allowed.tril() if mask_kind == "causal" else allowed
    elif mask_kind == "bool by key":
        allowed = allowed[:, :, :1]
        mask = allowed
    elif mask_kind == "bool":
        mask = allowed
    else:
        bias = torch.randn(batch, heads, queries, keys, generator=generator)
        mask = bias.masked_fill(~allowed, torch.finfo(torch.float32).min)
        logits = logits + bias.double()
    kept = logits[allowed.expand_as(logits)]
    actual = seen_by(
        F.scaled_dot_product_attention,
        q,
        k,
        k,
        attn_mask=mask,
        is_causal=mask_kind == "causal",
        scale=scale,
        enable_gqa=True,
    )
    if len(kept):
        assert close(actual, moments(kept))
    else:
        assert actual == (0, 0, -math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lowest", ["inf", "finfo", "added"])
@pytest.mark.parametrize("call", [F.softmax, torch.softmax, Tensor.softmax])
def test_what_enters_a_softmax(call: object, lowest: str, dtype: torch.dtype) -> None:
    """Masked as models do: by −∞, by the lowest number of the type, or by adding that number."""
    s = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    if lowest == "added":
        masked = s + torch.zeros(5, 5, dtype=dtype).masked_fill(~causal, torch.finfo(dtype).min)
    else:
        masked = s.masked_fill(~causal, -math.inf if lowest == "inf" else torch.finfo(dtype).min)
    assert close(seen_by(call, masked, dim=-1), moments(s.double()[..., causal]))


def test_nothing_else_is_noted_and_nothing_is_changed() -> None:
    """A softmax over a vector or a matrix is no attention."""
    x = torch.randn(4, 4)
    noted: list[Moments] = []
    with LogitWatch(noted.append):
        assert torch.equal(F.softmax(x, dim=-1), x.softmax(-1))
        assert x.unflatten(-1, (2, 2)).shape == (4, 2, 2)
    assert not noted
    q = torch.randn(1, 1, 4, 4)
    with LogitWatch(noted.append):
        watched = F.scaled_dot_product_attention(q, q, q)
    assert torch.equal(watched, F.scaled_dot_product_attention(q, q, q))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_logit_shows(bad: float) -> None:
    s = torch.zeros(1, 1, 3, 3)
    s[..., 2, 1] = bad
    square, _, largest = seen_by(F.softmax, s, dim=-1)
    assert not math.isfinite(square)
    assert not math.isfinite(largest)
    q, k = torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2)
    q[0, 0, 1, 0] = bad
    for mask in (None, torch.ones(3, 3, dtype=torch.bool)):
        square, _, largest = seen_by(F.scaled_dot_product_attention, q, k, k, mask)
        assert not math.isfinite(square)
        assert not math.isfinite(largest)


def pool_of(parts: int = 1) -> Pool:
    return Pool(Place(0, "fc2", ("x",) * parts, (nn.Identity(),) * parts), torch.device("cpu"))


@QUICK
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    parts=st.integers(1, 3),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 2**31),
)
def test_any_cut_into_micro_batches_gives_the_moments_of_the_whole(
    sizes: list[int], parts: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool = pool_of(parts)
    batches = [[scale * torch.randn(n, 3, 4, generator=generator) for _ in range(parts)] for n in sizes]
    for outputs in batches:
        for part, y in enumerate(outputs):
            pool.add_output(part, y)
    norms = torch.cat([torch.cat(outputs, dim=-1).double().norm(dim=-1).flatten() for outputs in batches])
    square, count, largest = pool.moments.tolist()
    assert count == norms.numel()
    assert math.isclose(square, norms.square().mean(), rel_tol=1e-5)
    assert math.isclose(largest, norms.max(), rel_tol=1e-6)


def test_infinity_stays_infinity_whatever_is_pooled_with_it() -> None:
    pool = pool_of()
    for value in (1.0, math.inf, 2.0, math.inf):
        pool.add_output(0, torch.full((2, 3), value))
    assert pool.moments.tolist() == [math.inf, 8, math.inf]
    pool.add_output(0, torch.full((2, 3), math.nan))
    assert math.isnan(pool.moments[0])
    assert math.isnan(pool.moments[2])


def test_an_aborted_forward_does_not_reach_the_next_one() -> None:
    """Only the first of two modules ran, as when memory ends between them."""
    pool = pool_of(2)
    pool.add_output(0, torch.full((1, 4), 9.0))
    for part in (0, 1):
        pool.add_output(part, torch.ones(1, 8))
    square, count, largest = pool.moments.tolist()
    assert (square, count, largest) == pytest.approx((16, 1, 4))

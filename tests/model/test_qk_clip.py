"""QK-Clip (arXiv 2507.20534): after a step, no head's largest attention logit is above τ on the step's own batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lrsweep.config import ModelShape, TrainConfig
from lrsweep.model import ProbeLevel
from lrsweep.schemes import Scheme, find
from lrsweep.train.step import SCALARS, Engine, EngineKey
from tests.model.reference import BODIES, randomise

SHAPE = ModelShape(n_layers=1, d_model=32, n_heads=4, seq_len=8, vocab_size=32)
BATCH = np.random.default_rng(0).integers(0, 32, (1, 2, 9))
LOSS, SKIPPED = SCALARS.index("loss"), SCALARS.index("skipped")

OWN_SCALE = ("preln", "soft_temp", "soft_clip", "soft_cap", "olmo2", "simplenorm", "qknorm+full_qk", "ngpt", "dyt_full")
"""Rows in which each head has a scale of its own: weights, or a gain over the full width."""
SHARED_SCALE = ("qknorm", "qkv_norm", "hybridnorm", "qknorm_cap", "dyt_head")
"""Rows in which all heads share one gain."""
DYT = {
    f"dyt_{scope}": Scheme(name=f"dyt_{scope}", source="", formula="", norm="dyt", qk_norm=scope)  # type: ignore[arg-type]
    for scope in ("head", "full")
}
"""Dynamic Tanh on q and k, which no registered row has."""


def engine_of(name: str, body: str, tau: float | None) -> Engine:
    """Randomised weights whose heads have logits of very different size."""
    scheme = replace(DYT[name] if name in DYT else find(name), qk_clip=tau)
    key = EngineKey(
        scheme=scheme,
        body=body,  # type: ignore[arg-type]
        shape=SHAPE,
        train=TrainConfig(steps=2, batch_size=2, warmup_steps=0),
        device="cpu",
        weight_decay=0.1,
    )
    engine = Engine(key)
    engine.reset(0)
    randomise(engine.model)
    if name.startswith("dyt"):
        with torch.no_grad():  # Heads that differ under one gain or with gains of their own.
            engine.model.blocks[0].attn.q_norm.get_parameter("gain" if name == "dyt_head" else "norm.gain").mul_(3)
    engine.model.constrain()
    return engine


@torch.no_grad()
def head_maxima(engine: Engine) -> Tensor:
    """The largest logit of each head with the weights at hand."""
    model = engine.model.eval()
    seen = model.hidden(torch.from_numpy(BATCH[0, :, :-1]), ProbeLevel.ALL)[1]
    model.train()
    moments = model.logit_moments(seen)
    assert moments is not None
    return moments[0][0]


def standing_step(engine: Engine, probe: ProbeLevel = ProbeLevel.OFF) -> Tensor:
    """A step at LR 0, which can move nothing but what the clip moves; the largest logit of each head before it."""
    largest = head_maxima(engine)
    engine.run(BATCH, [0.0], [probe])
    return largest


def between(name: str, body: str) -> tuple[float, Tensor]:
    """A τ with heads on both sides of it, and the largest logits of the heads."""
    largest = standing_step(engine_of(name, body, 1e9))
    low, high = largest.sort().values[[1, 2]].tolist()
    return math.sqrt(max(low, 1e-3) * high), largest


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", OWN_SCALE)
def test_heads_above_come_to_tau_and_heads_below_are_untouched(name: str, body: str) -> None:
    """S → min(S, τ) for each head by itself."""
    tau, largest = between(name, body)
    engine = engine_of(name, body, tau)
    torch.testing.assert_close(standing_step(engine), largest, rtol=1e-5, atol=1e-5)
    after = standing_step(engine)
    assert 0 < (largest > tau).sum() < SHAPE.n_heads
    torch.testing.assert_close(after, largest.clamp(max=tau), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", SHARED_SCALE)
def test_heads_that_share_a_gain_all_take_the_smallest_factor(name: str, body: str) -> None:
    """S → S·τ/max S: the largest comes to τ, and every other keeps its ratio to it."""
    tau, largest = between(name, body)
    engine = engine_of(name, body, tau)
    standing_step(engine)
    torch.testing.assert_close(standing_step(engine), largest * tau / largest.max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", [*OWN_SCALE, *SHARED_SCALE])
def test_only_what_sets_the_scale_of_q_and_k_is_moved(name: str, body: str) -> None:
    """Rows of q and k of clipped heads in plain rows; else the gain (and Dynamic Tanh's bias) on q and k. Bitwise."""
    tau, largest = between(name, body)
    engine, plain = engine_of(name, body, tau), engine_of(name, body, None)
    standing_step(engine)
    plain.run(BATCH, [0.0], [ProbeLevel.OFF])
    ours, theirs = dict(engine.model.named_parameters()), dict(plain.model.named_parameters())
    moved = {k.removeprefix("blocks.0.attn.") for k in ours if not torch.equal(ours[k], theirs[k])}
    if name in ("preln", "soft_temp", "soft_clip", "soft_cap"):
        assert moved == {"qkv.weight"}
        rows = (
            (ours["blocks.0.attn.qkv.weight"] != theirs["blocks.0.attn.qkv.weight"]).any(1).view(3, SHAPE.n_heads, -1)
        )
        assert torch.equal(rows.all(-1), rows.any(-1))
        assert torch.equal(rows.all(-1), torch.stack((largest > tau, largest > tau, torch.zeros_like(largest) > 0)))
    elif name == "ngpt":
        assert moved == {"qk_gain.norm.value"}
    else:
        level = "" if name in SHARED_SCALE else "norm."
        vectors = ("gain", "bias") if name in DYT else ("gain",)
        assert moved == {f"{slot}_norm.{level}{vector}" for slot in "qk" for vector in vectors}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", [*OWN_SCALE, *SHARED_SCALE, "sigma_reparam", "angpt"])
def test_no_head_above_tau_means_no_change_at_all(name: str, body: str) -> None:
    _, largest = between(name, body)
    engine, plain = engine_of(name, body, 1.001 * largest.max().item()), engine_of(name, body, None)
    standing_step(engine)
    plain.run(BATCH, [0.0], [ProbeLevel.OFF])
    for (key, ours), theirs in zip(engine.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("body", BODIES)
def test_angpt_has_nothing_to_clip(body: str) -> None:
    """|q·k|·√d_h ≤ √d_h for q, k of length 1: a τ below that moves nothing, for no parameter sets a scale."""
    engine, plain = engine_of("angpt", body, 0.5), engine_of("angpt", body, None)
    largest = standing_step(engine)
    assert (largest > 0.5).any()
    assert (largest <= SHAPE.d_head**0.5 * (1 + 1e-6)).all()
    plain.run(BATCH, [0.0], [ProbeLevel.OFF])
    for (key, ours), theirs in zip(engine.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("body", BODIES)
def test_sigma_reparam_answers_only_in_part(body: str) -> None:
    """Its σ shrinks with the weight that is clipped: the largest logit falls at every step, but not to τ at once."""
    tau, largest = between("sigma_reparam", body)
    engine = engine_of("sigma_reparam", body, tau)
    seen = [standing_step(engine).max().item() for _ in range(4)]
    assert seen[0] == pytest.approx(largest.max().item(), rel=1e-4)
    assert seen[0] > seen[1] > seen[2] > seen[3] > 0


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["preln", "qknorm", "olmo2", "ngpt"])
@pytest.mark.parametrize("where", ["head", "embedding"])
def test_a_step_that_is_not_finite_clips_nothing(name: str, body: str, where: str) -> None:
    """A head's weight of NaN leaves the attention logits finite and above τ; an embedding of NaN makes them NaN."""
    tau, _ = between(name, body)
    engine = engine_of(name, body, tau)
    with torch.no_grad():
        (engine.model.head.weight if where == "head" else engine.model.embedding)[BATCH[0, 0, 0], 0] = torch.nan
    before = {k: p.detach().clone() for k, p in engine.model.blocks.named_parameters()}
    scalars = engine.run(BATCH, [0.1], [ProbeLevel.OFF]).scalars_RxS
    assert scalars[0, SKIPPED] == 1
    for key, p in engine.model.blocks.named_parameters():
        torch.testing.assert_close(p.detach(), before[key], rtol=0, atol=0)
    largest = head_maxima(engine)
    assert torch.isfinite(largest).all() == (where == "head")
    assert where == "embedding" or (largest > tau).any()


@pytest.mark.parametrize("probe", list(ProbeLevel))
def test_clipping_does_not_depend_on_what_is_measured(probe: ProbeLevel) -> None:
    """Bitwise the same weights whatever the probe reads in the same step."""
    tau, _ = between("preln", "llama")
    engine, other = engine_of("preln", "llama", tau), engine_of("preln", "llama", tau)
    standing_step(engine, probe)
    standing_step(other)
    for ours, theirs in zip(engine.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_modifier_sets_tau_to_100() -> None:
    assert find("preln+qk_clip").qk_clip == 100.0
    assert all(s.qk_clip is None for s in map(find, OWN_SCALE[:-1]))


@pytest.mark.parametrize("training", [True, False])
def test_norms_alone_report_no_logits_though_the_clip_reads_them(training: bool) -> None:
    """As in a row without the clip: NaN, from the model itself and from a step."""
    engine = engine_of("soft_cap", "gpt", 1e9)
    model = engine.model.train(training)
    layers = model(torch.from_numpy(BATCH[0, :, :-1]), ProbeLevel.NORMS)[1]
    logits = torch.tensor([site == "attn" for site, _ in model.stat_names])
    assert torch.isnan(layers[:, logits]).all()
    assert torch.isfinite(layers[:, ~logits]).all()
    found = torch.from_numpy(engine.run(BATCH, [0.0], [ProbeLevel.NORMS]).layers_RxNxS[0])
    assert torch.isnan(found[:, logits]).all()
    assert torch.isfinite(found[:, ~logits]).all()

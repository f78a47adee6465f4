"""What a GPU does at its fastest against the same steps by torch alone: captured, compiled and by our own kernels."""

from __future__ import annotations

import numpy as np
import pytest

from lrsweep.config import ModelShape, TrainConfig
from lrsweep.model import ProbeLevel
from lrsweep.schemes import all_schemes, find
from lrsweep.train.step import SCALARS, Engine, EngineKey, Interval
from tests.conftest import on_gpu
from tests.kernel_modules import let_kernels_serve

STEPS, VOCAB = 100, 512
SHAPE = ModelShape(n_layers=2, d_model=128, n_heads=4, seq_len=128, vocab_size=VOCAB)
MODIFIED = ["qknorm+zloss", "preln+qk_clip", "qknorm+muon", "preln+stable_adamw", "olmo2+final_cap", "preln+mup"]
NAMES = [*(s.name for s in all_schemes()), *MODIFIED]


def key_of(name: str, body: str) -> EngineKey:
    """A small model that trains in bf16."""
    scheme = find(name)
    config = {"steps": STEPS, "report_every": STEPS, "batch_size": 16, "warmup_steps": 10, "precision": "bf16"}
    return EngineKey(
        scheme=scheme,
        body=body,  # type: ignore[arg-type]
        shape=SHAPE,
        train=TrainConfig(**{**config, **dict(scheme.training)}),  # type: ignore[arg-type]
        device="cuda",
        weight_decay=0.1,
    )


def steps(name: str, body: str, *, plain: bool) -> Interval:
    """100 steps of eight batches in turn, at an LR that rises for ten steps and is high then."""
    engine = Engine(key_of(name, body), capture=not plain)
    engine.reset(0)
    batches = np.random.default_rng(0).integers(0, VOCAB, (8, 16, SHAPE.seq_len + 1))
    lrs = [2e-3 * min(1.0, (step + 1) / 10) for step in range(STEPS)]
    interval = engine.run(batches[np.arange(STEPS) % 8], lrs, [ProbeLevel.ALL] * STEPS)
    assert plain or engine._graphs is not None, "the capture failed"
    return interval


@on_gpu
@pytest.mark.parametrize("name", ["preln", "soft_cap"])
def test_an_engine_goes_on_beside_a_second_of_its_scheme(name: str) -> None:
    """What a captured step reads is still there once another engine has been built, and has run."""
    key = key_of(name, "gpt")
    batches = np.random.default_rng(0).integers(0, VOCAB, (3, 16, SHAPE.seq_len + 1))
    first = Engine(key)
    runs = []
    for engine in (first, Engine(key, capture=False, compiled=True), first):
        engine.reset(0)
        runs.append(engine.run(batches, [1e-3] * 3, [ProbeLevel.ALL] * 3))
    np.testing.assert_allclose(runs[1].scalars_RxS, runs[0].scalars_RxS, rtol=1e-3)
    np.testing.assert_array_equal(runs[2].scalars_RxS, runs[0].scalars_RxS)


@on_gpu
def test_intervals_started_ahead_are_the_same_intervals() -> None:
    """Bitwise, the first of them captured while another is under way; and short ones are worth it."""
    batches = np.random.default_rng(0).integers(0, VOCAB, (12, 16, SHAPE.seq_len + 1))
    levels = [ProbeLevel.ALL] * 3, [ProbeLevel.NORMS] * 3, [ProbeLevel.ALL] * 3, [ProbeLevel.OFF] * 3
    parts = [(batches[3 * i : 3 * i + 3], [1e-3 * (i + 1)] * 3, probes) for i, probes in enumerate(levels)]
    plain, ahead = (Engine(key_of("qknorm", "gpt")) for _ in range(2))
    for engine in (plain, ahead):
        engine.reset(0)
    expected = [plain.run(*part) for part in parts]
    found, reads = [], [ahead.start(*parts[0])]
    for part in parts[1:]:
        reads.append(ahead.start(*part))
        found.append(reads.pop(0)())
    found.append(reads.pop()())
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.scalars_RxS, theirs.scalars_RxS)
        np.testing.assert_array_equal(ours.layers_RxNxS, theirs.layers_RxNxS)
    assert ahead.lookahead == 1


@pytest.mark.full
@on_gpu
@pytest.mark.parametrize(("name", "body"), [(name, ("gpt", "llama")[i % 2]) for i, name in enumerate(NAMES)])
def test_captured_steps_equal_plain_ones_over_100_steps(name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses alike while bf16's rounding has not been amplified yet, and to 3% to the end."""
    fast = steps(name, body, plain=False)
    let_kernels_serve(False, monkeypatch)
    plain = steps(name, body, plain=True)
    loss, grad_norm, update_norm = (SCALARS.index(s) for s in ("loss", "grad_norm", "update_norm"))
    ours, theirs = fast.scalars_RxS, plain.scalars_RxS
    np.testing.assert_allclose(ours[:10, loss], theirs[:10, loss], atol=1e-3, rtol=0)
    np.testing.assert_allclose(ours[:, loss], theirs[:, loss], rtol=0.03)
    np.testing.assert_allclose(ours[:10, grad_norm], theirs[:10, grad_norm], rtol=0.01)
    np.testing.assert_allclose(ours[:10, update_norm], theirs[:10, update_norm], rtol=1e-3)
    np.testing.assert_allclose(fast.layers_RxNxS[:10], plain.layers_RxNxS[:10], rtol=0.02)
    assert theirs[-1, loss] < theirs[0, loss]

"""Maximal-update parametrization: a coordinate check (2203.03466, appendix D.1), and where it changes nothing."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from lrsweep.config import ModelShape, TrainConfig
from lrsweep.model import ProbeLevel
from lrsweep.schemes import all_schemes, find
from lrsweep.train.step import Engine, EngineKey
from tests.model.reference import BODIES, stream_after

WIDTHS = (64, 128, 256, 512)
STEPS = 4
BATCH = np.random.default_rng(0).integers(0, 64, (1, 4, 17))


def engine_of(name: str, body: str, width: int) -> Engine:
    scheme = find(name)
    key = EngineKey(
        scheme=scheme,
        body=body,  # type: ignore[arg-type]
        shape=ModelShape(n_layers=2, d_model=width, n_heads=width // 32, seq_len=16, vocab_size=64),
        train=TrainConfig(steps=STEPS, batch_size=4, warmup_steps=0, **dict(scheme.training)),
        device="cpu",
        weight_decay=0.1,
    )
    engine = Engine(key)
    engine.reset(0)
    return engine


def activations(engine: Engine) -> dict[str, Tensor]:
    """Outputs of every linear layer of the blocks, the stream after each block, and the logits."""
    seen: dict[str, Tensor] = {}
    watched = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    handles = [
        block.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, key=f"{i}.{site}": seen.update({key: out.detach()})
        )
        for i, block in enumerate(engine.model.blocks)
        for site, path in watched.items()
    ]
    handles += [
        block.register_forward_hook(
            lambda m, _i, out, key=f"{i}.stream": seen.update({key: stream_after(m, out).detach()})
        )
        for i, block in enumerate(engine.model.blocks)
    ]
    with torch.no_grad():
        seen["logits"] = engine.model(torch.from_numpy(BATCH[0, :, :-1]))[0]
    for handle in handles:
        handle.remove()
    return seen


def after_steps(name: str, body: str, width: int) -> dict[str, float]:
    """RMS of each activation after four steps, RMS of its change, and spectral norm of each matrix's change.

    At LR 0.003, whose trajectories are still alike from seed to seed; at 0.01 their noise hides the widths.
    """
    engine = engine_of(name, body, width)
    first = activations(engine)
    weights = {k: p.detach().clone() for k, p in engine.model.blocks.named_parameters() if p.ndim == 2}
    engine.run(np.repeat(BATCH, STEPS, 0), [0.003] * STEPS, [ProbeLevel.OFF] * STEPS)
    now = engine.model.blocks.state_dict()
    found = {}
    for key, activation in activations(engine).items():
        found[key] = activation.square().mean().sqrt().item()
        found[f"Δ{key}"] = (activation - first[key]).square().mean().sqrt().item()
    return found | {f"Δ{k}": spectral_norm(now[k] - w) for k, w in weights.items()}


def spectral_norm(w: Tensor) -> float:
    """From the smaller Gram matrix, which is far quicker than a singular value decomposition."""
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    return torch.linalg.eigvalsh(gram)[-1].item() ** 0.5


@functools.cache
def slopes(name: str, body: str) -> dict[str, float]:
    """How each quantity grows with width: the exponent of a power law through the four widths."""
    rows = [after_steps(name, body, width) for width in WIDTHS]
    return {k: np.polyfit(np.log(WIDTHS), np.log([row[k] for row in rows]), 1)[0].item() for k in rows[0]}


FLAT = 0.25
"""Exponent below which a quantity counts as flat: over these widths, a factor of 1.7; √d grows by 2.8, d by 8."""


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("preln+mup", "gpt"),
        ("preln+mup", "llama"),
        ("preln+muon+mup", "gpt"),
        ("scaled_embed+mup", "llama"),
        ("simplenorm+mup", "llama"),
        ("qknorm+mup", "gpt"),
    ],
)
def test_activations_and_updates_are_flat_across_widths(name: str, body: str) -> None:
    """From 64 to 512: every activation after a few steps, its change, and the spectral norm of every update."""
    steep = {k: round(v, 2) for k, v in slopes(name, body).items() if abs(v) > FLAT}
    assert not steep


@pytest.mark.parametrize("body", BODIES)
def test_the_standard_parametrization_is_told_apart(body: str) -> None:
    """Without it every activation, every change and every update grows at least as √d."""
    assert min(slopes("preln", body).values()) > 0.5


def test_muon_needs_a_learning_rate_of_its_own_width() -> None:
    """Standard: spectral norms of its updates grow as √d, of AdamW's as d; each factor takes back just that."""
    matrices = [k for k in slopes("preln+muon", "gpt") if k.endswith(".weight")]
    assert len(matrices) == 8
    for key in matrices:
        assert slopes("preln+muon", "gpt")[key] == pytest.approx(0.5, abs=0.1), key
        assert slopes("preln", "gpt")[key] == pytest.approx(1.0, abs=0.2), key
        assert slopes("preln+muon+mup", "gpt")[key] == pytest.approx(0.0, abs=0.1), key


FREE = [s.name for s in all_schemes() if s.geometry == "free"]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", [*FREE, "preln+muon", "preln+stable_adamw"])
def test_at_width_64_with_heads_of_32_it_changes_no_bit(name: str, body: str) -> None:
    """Initial weights, then losses, norms and weights of three steps."""
    plain, mup = engine_of(name, body, 64), engine_of(f"{name}+mup", body, 64)
    intervals = []
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), mup.model.parameters(), strict=True))
    for engine in (plain, mup):
        intervals.append(engine.run(np.repeat(BATCH, 3, 0), [0.01] * 3, [ProbeLevel.ALL] * 3))
    np.testing.assert_array_equal(intervals[0].scalars_RxS, intervals[1].scalars_RxS)
    np.testing.assert_array_equal(intervals[0].layers_RxNxS, intervals[1].layers_RxNxS)
    for (key, a), b in zip(plain.model.named_parameters(), mup.model.parameters(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("body", BODIES)
def test_initial_weights_at_other_widths(body: str) -> None:
    """Hidden matrices of the base width's deviation over √m; embedding and head of the base width's; logits over m."""
    for width in (32, 256):
        plain, mup = engine_of("xavier_init", body, width).model, engine_of("xavier_init+mup", body, width).model
        base = engine_of("xavier_init", body, 64).model
        m = width / 64
        for key in ("embedding", "head.weight"):
            ours, at_base = mup.get_parameter(key).std(), base.get_parameter(key).std()
            assert ours.item() == pytest.approx(at_base.item(), rel=0.05), (key, width)
        for key in ("blocks.0.attn.qkv.weight", "blocks.1.attn.proj.weight"):
            ours, at_base = mup.get_parameter(key).std(), base.get_parameter(key).std()
            assert ours.item() * m**0.5 == pytest.approx(at_base.item(), rel=0.05), (key, width)
        with torch.no_grad():
            mup.load_state_dict(plain.state_dict())
            x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(mup.logits(x), plain.logits(x) / m, rtol=1e-6, atol=1e-7)

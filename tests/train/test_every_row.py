"""Every row, on both bodies and under every modifier that goes with it, through the engine that sweeps use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lrsweep.config import DataConfig, ModelShape, TrainConfig, TrialSpec
from lrsweep.model import ProbeLevel, gpu_activation, gpu_heads, gpu_norm
from lrsweep.schemes import MODIFIERS, Scheme, all_schemes, find
from lrsweep.train.step import SCALARS, Engine, EngineKey
from tests.conftest import KERNEL_DEVICE, needs_triton
from tests.model.reference import BODIES

LOSS, UPDATE_NORM, SKIPPED = (SCALARS.index(s) for s in ("loss", "update_norm", "skipped"))
VOCAB = 16
DATA = np.random.default_rng(0).integers(0, VOCAB, (4, 4, 9))
"""Four batches."""
ROWS = [s.name for s in all_schemes()]


def engine_of(name: str, body: str, *, layers: int = 2, lr: float = 1e-2, **train: Any) -> Engine:
    """A tiny engine at the initial weights of seed 0, trained as the row and its modifiers prescribe."""
    scheme = find(name)
    config = TrainConfig(**{"steps": 20, "batch_size": 4, "warmup_steps": 0, **dict(scheme.training), **train})
    spec = TrialSpec(
        scheme=scheme,
        body=body,  # type: ignore[arg-type]
        size="tiny",
        shape=ModelShape(n_layers=layers, d_model=16, n_heads=2, seq_len=8, vocab_size=VOCAB),
        train=config,
        data=DataConfig(path=None, text_column="text", tokenizer="bytes", data_hash="0"),
        device="cpu",
        lr=lr,
        seed=0,
    )
    engine = Engine(EngineKey.of(spec))
    engine.reset(0)
    return engine


def applies(modifier: str, row: Scheme) -> bool:
    """full_qk needs a norm per head, mup free weights; adamw is what all have anyway."""
    return {"full_qk": row.qk_norm == "head", "mup": row.geometry == "free", "adamw": False}.get(modifier, True)


MODIFIED = [f"{s.name}+{m}" for s in all_schemes() for m in MODIFIERS if applies(m, s)]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", [*ROWS, *MODIFIED])
def test_20_steps_on_one_batch_lower_the_loss(name: str, body: str) -> None:
    """By 0.2 nats at least from a start near log 16, all at LR 0.01; every loss finite, no step skipped."""
    engine = engine_of(name, body, layers=1)
    scalars = engine.run(np.repeat(DATA[:1], 20, 0), [1e-2] * 20, [ProbeLevel.OFF] * 20).scalars_RxS
    assert np.isfinite(scalars).all()
    assert (scalars[:, SKIPPED] == 0).all()
    assert scalars[-1, LOSS] < scalars[0, LOSS] - 0.2
    assert all(torch.isfinite(p).all() for p in engine.model.parameters())


def test_the_cross_is_whole() -> None:
    """24 rows; seven modifiers with each, full_qk with the five that have a norm per head, mup with all but two."""
    assert len(ROWS) == 24
    assert len(MODIFIED) == 24 * 6 + 5 + 22
    assert {m.rpartition("+")[2] for m in MODIFIED} == set(MODIFIERS) - {"adamw"}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ROWS)
def test_one_seed_gives_bitwise_one_run_and_measuring_changes_no_bit_of_it(name: str, body: str) -> None:
    """Losses, norms and weights of a run that measures everything and of one that measures nothing."""
    engines = [engine_of(name, body) for _ in range(2)]
    runs = [
        e.run(DATA, [1e-2] * 4, [probe] * 4) for e, probe in zip(engines, (ProbeLevel.ALL, ProbeLevel.OFF), strict=True)
    ]
    np.testing.assert_array_equal(runs[0].scalars_RxS, runs[1].scalars_RxS)
    assert np.isfinite(runs[0].layers_RxNxS).all()
    for (key, a), b in zip(engines[0].model.named_parameters(), engines[1].model.parameters(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ROWS)
def test_a_bad_batch_moves_no_weight(name: str, body: str) -> None:
    """An embedding row of NaN that only the second batch meets; training goes on after it."""
    good, bad = DATA % 15, DATA.copy()
    bad[0, 0, 0] = 15
    engine = engine_of(name, body)
    with torch.no_grad():
        engine.model.embedding[15, 0] = torch.nan
    engine.run(good[:1], [1e-2], [ProbeLevel.OFF])
    before = {k: p.detach().clone() for k, p in engine.model.named_parameters()}
    scalars = engine.run(bad[:1], [0.5], [ProbeLevel.ALL]).scalars_RxS
    assert not np.isfinite(scalars[0, LOSS])
    assert scalars[0, SKIPPED] == 1
    for key, p in engine.model.named_parameters():
        torch.testing.assert_close(p.detach(), before[key], rtol=0, atol=0, equal_nan=True)
    assert np.isfinite(engine.run(good[1:], [1e-2] * 3, [ProbeLevel.OFF] * 3).scalars_RxS[:, LOSS]).all()


def longest_and_shortest(engine: Engine) -> tuple[float, float]:
    """Over all rows of all matrices, lengths over the input axis (anGPT) or the embedding axis (nGPT)."""
    over_outputs = ("attn.proj.weight", "mlp.fc2.weight") if engine.key.scheme.name.startswith("ngpt") else ()
    lengths = [
        p.detach().double().norm(dim=0 if key.endswith(over_outputs) else 1)
        for key, p in engine.model.named_parameters()
        if p.ndim == 2
    ]
    return max(x.max().item() for x in lengths), min(x.min().item() for x in lengths)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", [f"{n}{m}" for n in ("ngpt", "angpt") for m in ("", "+stable_adamw", "+muon")])
def test_rows_are_on_the_sphere_or_in_the_ball_after_every_single_step(name: str, body: str) -> None:
    """Ten steps at LR 0.3, whose updates would take rows beyond length 1.5 if nothing brought them back."""
    engine, unbound = engine_of(name, body), engine_of(name, body)
    unbound.model.constrain = lambda *_: None  # type: ignore[method-assign]
    for step in range(10):
        batch = DATA[step % 4][None]
        engine.run(batch, [0.3], [ProbeLevel.OFF])
        longest, shortest = longest_and_shortest(engine)
        assert longest <= 1 + 1e-6, step
        if name.startswith("ngpt"):
            assert shortest >= 1 - 1e-6, step
        unbound.run(batch, [0.3], [ProbeLevel.OFF])
    assert longest_and_shortest(unbound)[0] > 1.5


@pytest.mark.parametrize("body", BODIES)
def test_the_loss_recorded_under_zloss_is_the_bare_cross_entropy(body: str) -> None:
    """Bitwise that of the row without it at the first step, whose gradient is another one."""
    runs = [
        engine_of(n, body).run(DATA[:1], [1e-2], [ProbeLevel.OFF]).scalars_RxS[0] for n in ("qknorm", "qknorm+zloss")
    ]
    assert runs[0][LOSS] == runs[1][LOSS]
    assert runs[0][SCALARS.index("log_z")] == runs[1][SCALARS.index("log_z")]
    assert runs[0][SCALARS.index("grad_norm")] != runs[1][SCALARS.index("grad_norm")]


@pytest.mark.parametrize("body", BODIES)
def test_zloss_pulls_log_z_towards_zero(body: str) -> None:
    """With a large factor, 20 steps bring |log Z| below a tenth of log 16, where it starts; without it, they do not."""
    log_z = {}
    for z_loss in (0.0, 1.0):
        engine = engine_of("qknorm", body, z_loss=z_loss)
        scalars = engine.run(np.repeat(DATA, 5, 0), [1e-2] * 20, [ProbeLevel.OFF] * 20).scalars_RxS
        log_z[z_loss] = abs(scalars[-1, SCALARS.index("log_z")])
    assert log_z[1.0] < 0.1 * np.log(VOCAB) < log_z[0.0]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["preln+independent_wd", "olmo2+independent_wd+muon"])
def test_independent_decay_is_the_same_at_every_learning_rate(name: str, body: str) -> None:
    """θ·Π(1 − (η_t/η_peak)·λ) on matrices that no gradient reaches, at peaks three decades apart."""
    for peak in (1e-3, 1.0):
        engine = engine_of(name, body, lr=peak)
        with torch.no_grad():
            engine.model.head.weight.zero_()
            engine.model.final_norm.gain.zero_()
        before = engine.model.blocks[0].mlp.fc1.weight.detach().clone()
        engine.run(DATA[:3], [peak, peak / 2, peak / 4], [ProbeLevel.OFF] * 3)
        factor = (1 - 0.1) * (1 - 0.05) * (1 - 0.025)
        torch.testing.assert_close(engine.model.blocks[0].mlp.fc1.weight.detach(), before * factor, rtol=1e-5, atol=0)


def by_block() -> list[list[str]]:
    """Rows, those together whose blocks and loss are one program: they differ before the first block or in the init."""
    groups: dict[str, list[str]] = {}
    for name in [*ROWS, "preln+qk_clip+zloss", "olmo2+final_cap+qk_clip"]:
        fields = {k: v for k, v in find(name).build_fields().items() if k not in ("embed", "init")}
        groups.setdefault(str(fields), []).append(name)
    return list(groups.values())


def check_compiled(names: list[str], body: str, backend: str, rtol: float, rtol_gradient: float) -> None:
    """20 steps as the engine compiles them on a GPU, each block and a loss that has no kernels, against eager.

    The gradient's norm may have a bound of its own.
    """
    for name in names:
        stats = torch._dynamo.utils.counters["stats"]
        stats.clear()
        eager, compiled = engine_of(name, body), engine_of(name, body)
        compiled._compile(backend)
        data = np.concatenate([DATA] * 5)
        runs = [engine.run(data, [3e-3] * 20, [ProbeLevel.ALL] * 20) for engine in (eager, compiled)]
        for i, scalar in enumerate(SCALARS):
            bound = rtol_gradient if scalar == "grad_norm" else rtol
            found, expected = (run.scalars_RxS[:, i] for run in reversed(runs))
            np.testing.assert_allclose(found, expected, rtol=bound, err_msg=f"{name} {scalar}")
        np.testing.assert_allclose(runs[1].layers_RxNxS, runs[0].layers_RxNxS, rtol=10 * rtol, atol=1e-6, err_msg=name)
        assert runs[0].scalars_RxS[-1, LOSS] < runs[0].scalars_RxS[0, LOSS]
        assert stats["unique_graphs"] == (1 if compiled.model.plain_logits else 2), "blocks share one graph"


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("names", by_block(), ids=" ".join)
def test_traced_steps_equal_eager_ones(names: list[str], body: str) -> None:
    """Traced and differentiated ahead of time, run by eager kernels: losses to 1e-5."""
    check_compiled(names, body, "aot_eager", 1e-5, 1e-5)


@needs_triton
@pytest.mark.skipif(KERNEL_DEVICE != "cpu", reason="a GPU compiles them itself")
@pytest.mark.parametrize(("name", "body"), [("preln", "gpt"), ("qk_fc_norm+qk_clip", "llama"), ("hybridnorm", "gpt")])
def test_traced_steps_with_the_blocks_kernels_equal_eager_ones(
    name: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What joins measured or normalized first, and a row that normalizes the stream: still one graph for all blocks."""
    eager = engine_of(name, body)
    data = np.concatenate([DATA] * 2)
    expected = eager.run(data, [3e-3] * 8, [ProbeLevel.ALL] * 8)
    for module in (gpu_activation, gpu_heads, gpu_norm):
        monkeypatch.setattr(module, "serves", lambda _: True)
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    traced = engine_of(name, body)
    traced._compile("aot_eager")
    interval = traced.run(data, [3e-3] * 8, [ProbeLevel.ALL] * 8)
    assert stats["unique_graphs"] == 1
    np.testing.assert_allclose(interval.scalars_RxS, expected.scalars_RxS, rtol=1e-4)
    np.testing.assert_allclose(interval.layers_RxNxS, expected.layers_RxNxS, rtol=1e-3, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("names", by_block(), ids=" ".join)
def test_compiled_steps_equal_eager_ones(names: list[str], body: str) -> None:
    """By inductor, which fuses and reorders sums: losses to 5e-4."""
    # Initial weights that differ in their last bits move the gradient's norm by up to 3e-3 within these steps, and the
    # loss by 4e-5 (the row that shows it most, olmo2+final_cap+qk_clip).
    check_compiled(names, body, "inductor", 5e-4, 4e-3)

"""The training step: against a plain loop, and what it owes at intervals, resets, bad batches and evaluation."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrsweep.config import DataConfig, ModelShape, TrainConfig, TrialSpec
from lrsweep.errors import UserError
from lrsweep.model import ProbeLevel
from lrsweep.schemes import find
from lrsweep.train.step import SCALARS, Engine, EngineKey, Interval
from tests.conftest import KERNEL_DEVICE, needs_triton, on_gpu
from tests.kernel_modules import KERNEL_MODULES, let_kernels_serve
from tests.model.reference import CASES

SHAPE = ModelShape(n_layers=2, d_model=16, n_heads=2, seq_len=8, vocab_size=32)
LOSS, GRAD_NORM, UPDATE_NORM, LOG_Z, SKIPPED = (SCALARS.index(s) for s in SCALARS)
Batches = NDArray[np.int64]


def spec(name: str = "preln", body: str = "gpt", *, lr: float = 1e-2, device: str = "cpu", **train: Any) -> TrialSpec:
    """A trial of a tiny model."""
    defaults: dict[str, Any] = {"steps": 40, "batch_size": 3, "warmup_steps": 4, "report_every": 20}
    return TrialSpec(
        scheme=find(name),
        body=body,  # type: ignore[arg-type]
        size="tiny",
        shape=SHAPE,
        train=TrainConfig(**{**defaults, **train}),
        data=DataConfig(path=None, text_column="text", tokenizer="bytes", data_hash="0"),
        device=device,  # type: ignore[arg-type]
        lr=lr,
        seed=0,
    )


def engine_of(
    name: str = "preln", body: str = "gpt", *, seed: int = 0, capture: bool | None = None, **train: Any
) -> Engine:
    """A fresh engine with the initial weights of ``seed``."""
    engine = Engine(EngineKey.of(spec(name, body, **train)), capture=capture)
    engine.reset(seed)
    return engine


def batches(n: int, *, seed: int = 0, below: int = SHAPE.vocab_size) -> Batches:
    """Token ids (n, B, T + 1), ids under ``below``."""
    return np.random.default_rng(seed).integers(0, below, (n, 3, SHAPE.seq_len + 1))


def warmup_and_fall(n: int, peak: float = 1e-2) -> list[float]:
    return [peak * min((i + 1) / 4, 1 - i / (2 * n)) for i in range(n)]


def train(engine: Engine, data: Batches, lrs: list[float], probe: ProbeLevel = ProbeLevel.OFF) -> Interval:
    return engine.run(data, lrs, [probe] * len(lrs))


def state_of(engine: Engine) -> dict[str, Tensor]:
    """Copies of everything that training moves: parameters, buffers, moments, step counts."""
    named = dict(engine.model.named_parameters())
    state = {**named, **dict(engine.model.named_buffers())}
    for key, parameter in named.items():
        for slot, value in dict(engine._optimizer.states()).get(parameter, {}).items():
            state[f"{key}/{slot}"] = value
    return {key: value.detach().clone() for key, value in state.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key].nan_to_num(12345.0), b[key].nan_to_num(12345.0)), key


def plain_loop(
    engine: Engine, data: Batches, lrs: list[float], *, decays: list[float], clip: float
) -> tuple[torch.nn.Module, NDArray[np.float64]]:
    """An ordinary training loop from the engine's present weights: AdamW in single tensors, a fresh LR a step.

    ``decays`` holds the factor on matrices at each step. Returns the model and (loss, gradient norm, update norm).
    """
    model = copy.deepcopy(engine.model).train()
    config = engine.key.train
    optimizer = torch.optim.AdamW(
        model.parameters(),
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=0.0,
        foreach=False,
        fused=False,
    )
    rows = []
    for tokens, lr, decay in zip(torch.from_numpy(data), lrs, decays, strict=True):
        before = [p.detach().double().clone() for p in model.parameters()]
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])[0]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None) ** 0.5
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=False)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.mul_(decay)
        optimizer.step()
        moved = sum(
            (p.detach().double() - b).square().sum().item() for p, b in zip(model.parameters(), before, strict=True)
        )
        size = sum(b.square().sum().item() for b in before)
        rows.append((loss.item(), norm, (moved / size) ** 0.5))
    return model, np.array(rows)


@torch.no_grad()
def livelier(engine: Engine) -> None:
    """Ten times the initial weights: at this width the losses then fall and rounding is not amplified."""
    for key, p in engine.model.named_parameters():
        if p.ndim == 2 or key.endswith("sigma_gain"):
            p.mul_(10)


def take_loss_by(tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have engines take the loss of so many tokens at a time; None: of all."""
    if tokens is not None:
        monkeypatch.setattr("lrsweep.train.chunks.MAX_LOGITS", tokens * SHAPE.vocab_size)


@pytest.mark.parametrize(("name", "body"), CASES)
def test_20_steps_equal_a_plain_loop(name: str, body: str) -> None:
    """Loss, gradient and update norm of every step to 2e-5, the weights at the end to 2e-6; every step clipped."""
    engine = engine_of(name, body, clip=0.5)
    livelier(engine)
    data, lrs = batches(4)[np.arange(20) % 4], warmup_and_fall(20, 3e-3)
    model, rows = plain_loop(engine, data, lrs, decays=[1 - 0.1 * lr for lr in lrs], clip=0.5)
    scalars = train(engine, data, lrs).scalars_RxS
    assert (rows[:, 1] > 0.5).all()
    np.testing.assert_allclose(scalars[:, [LOSS, GRAD_NORM, UPDATE_NORM]], rows, rtol=2e-5)
    assert (scalars[:, SKIPPED] == 0).all()
    for (key, ours), theirs in zip(engine.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}")


def test_the_first_step_equals_a_plain_step_closely() -> None:
    """One step is not chaotic: gradient and update norm to 1e-5, weights to 1e-6; clipped and not clipped."""
    for clip in (0.1, 100.0):
        engine = engine_of("qk_fc_norm", "llama", clip=clip)
        data = batches(1)
        model, rows = plain_loop(engine, data, [3e-3], decays=[1 - 0.1 * 3e-3], clip=clip)
        scalars = train(engine, data, [3e-3]).scalars_RxS
        np.testing.assert_allclose(scalars[0, [LOSS, GRAD_NORM, UPDATE_NORM]], rows[0], rtol=1e-5)
        for ours, theirs in zip(engine.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)


def test_log_z_is_the_mean_log_normaliser_before_the_step() -> None:
    engine, data = engine_of(), batches(1)
    logits = copy.deepcopy(engine.model)(torch.from_numpy(data[0, :, :-1]))[0].double()
    assert train(engine, data, [1e-2]).scalars_RxS[0, LOG_Z] == pytest.approx(
        logits.logsumexp(-1).mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["preln", "sigma_reparam"])
def test_clipping_scales_the_gradient_and_not_the_reported_norm(name: str) -> None:
    """Adam's first moment after one step is (1 − β1)·g·min(1, clip/‖g‖)."""
    data = batches(1)
    for clip in (1e-3, 1e9):
        engine = engine_of(name, clip=clip)
        model = copy.deepcopy(engine.model)
        tokens = torch.from_numpy(data[0])
        torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        gradients = [p.grad for p in model.parameters()]
        norm = torch.cat([g.flatten() for g in gradients]).double().norm().item()
        assert train(engine, data, [1e-3]).scalars_RxS[0, GRAD_NORM] == pytest.approx(norm, rel=1e-5)
        for p, g in zip(engine.model.parameters(), gradients, strict=True):
            expected = 0.1 * g * min(1, clip / norm)
            torch.testing.assert_close(
                dict(engine._optimizer.states())[p]["exp_avg"],
                expected,
                rtol=1e-4,
                atol=1e-6 * expected.abs().max().item(),
            )


def without_gradient(engine: Engine) -> None:
    """Zero the head and the gain before it: logits are 0 and no parameter has a gradient."""
    with torch.no_grad():
        engine.model.head.weight.zero_()
        engine.model.final_norm.gain.zero_()


@pytest.mark.parametrize("peak", [1e-3, 1.0])
@pytest.mark.parametrize("mode", ["decoupled", "independent"])
def test_weight_decay_without_gradient_has_its_closed_form(mode: str, peak: float) -> None:
    """Matrices × Π(1 − η_t·λ), or × Π(1 − (η_t/η_peak)·λ) whatever the peak; vectors stay as they are."""
    engine = engine_of("qknorm", "llama", lr=peak, decay_mode=mode, weight_decay=0.1)
    without_gradient(engine)
    before = {k: p.detach().double().clone() for k, p in engine.model.named_parameters()}
    lrs = [peak / 2, peak, peak / 4]
    interval = train(engine, batches(3), lrs)
    assert (interval.scalars_RxS[:, GRAD_NORM] == 0).all()
    assert (interval.scalars_RxS[:, SKIPPED] == 0).all()
    assert interval.scalars_RxS[:, LOSS] == pytest.approx(math.log(SHAPE.vocab_size), rel=1e-6)
    factor = math.prod(1 - 0.1 * lr / (peak if mode == "independent" else 1) for lr in lrs)
    for key, p in engine.model.named_parameters():
        expected = before[key] * (factor if p.ndim == 2 else 1)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-6, atol=0)
    matrices = sum(b.square().sum().item() for b in before.values() if b.ndim == 2)
    everything = sum(b.square().sum().item() for b in before.values())
    first = 0.1 * lrs[0] / (peak if mode == "independent" else 1) * (matrices / everything) ** 0.5
    # The difference of two fp32 weights carries their rounding, 6e-8 of them.
    assert interval.scalars_RxS[0, UPDATE_NORM] == pytest.approx(first, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["layerscale", "sigma_reparam", "qk_fc_norm"])
def test_no_vector_and_no_scalar_decays(name: str) -> None:
    """Gains of norms, of LayerScale and of σReparam, with a decay of a half; a final gain of 0 stops all gradients."""
    engine = engine_of(name, "gpt", weight_decay=0.5)
    with torch.no_grad():
        engine.model.final_norm.gain.zero_()
    before = {k: p.detach().clone() for k, p in engine.model.named_parameters() if k != "final_norm.gain"}
    assert any(k.endswith(("residual.gain", "sigma_gain", "proj_norm.gain")) for k in before)
    train(engine, batches(1), [1.0])
    for key, value in before.items():
        assert torch.equal(engine.model.get_parameter(key).detach(), value * (0.5 if value.ndim == 2 else 1)), key


@pytest.mark.parametrize(("name", "body"), CASES)
def test_one_seed_gives_bitwise_one_run(name: str, body: str) -> None:
    """Two engines, and one engine reset after another seed's run with a bad batch in it: all that training moves."""
    data, lrs = batches(5), warmup_and_fall(5)
    first, second = engine_of(name, body), engine_of(name, body)
    losses = train(first, data, lrs).scalars_RxS
    np.testing.assert_array_equal(losses, train(second, data, lrs).scalars_RxS)
    same(state_of(first), state_of(second))

    second.reset(1)
    with torch.no_grad():
        second.model.embedding[0] = torch.nan
    other = train(second, batches(5, seed=3), [0.1] * 5).scalars_RxS
    assert not np.array_equal(other, losses)
    second.reset(0)
    fresh = engine_of(name, body)
    for key, value in (*fresh.model.named_parameters(), *fresh.model.named_buffers()):
        assert torch.equal(value, state_of(second)[key]), key
    assert all((v == 0).all() for _, state in second._optimizer.states() for v in state.values())
    np.testing.assert_array_equal(train(second, data, lrs).scalars_RxS, losses)
    same(state_of(first), state_of(second))


def test_another_seed_gives_another_run() -> None:
    data, lrs = batches(2), warmup_and_fall(2)
    runs = [train(engine_of(seed=seed), data, lrs).scalars_RxS for seed in (0, 1)]
    assert not np.array_equal(runs[0], runs[1])


@pytest.mark.parametrize("name", ["preln", "sigma_reparam", "qknorm_cap"])
def test_intervals_do_not_show_in_the_numbers(name: str) -> None:
    """Twelve steps as 12, as 5 + 7, one by one, and in an engine of another report_every: bitwise the same."""
    data, lrs = batches(12), warmup_and_fall(12)
    probes = [ProbeLevel.ALL if i % 3 == 0 else ProbeLevel.NORMS for i in range(12)]

    def split(engine: Engine, sizes: list[int]) -> Interval:
        parts, at = [], 0
        for size in sizes:
            parts.append(engine.run(data[at : at + size], lrs[at : at + size], probes[at : at + size]))
            at += size
        return Interval(np.concatenate([p.scalars_RxS for p in parts]), np.concatenate([p.layers_RxNxS for p in parts]))

    whole = engine_of(name)
    expected = split(whole, [12])
    assert expected.scalars_RxS.shape == (12, len(SCALARS))
    assert np.isfinite(expected.scalars_RxS).all()
    for engine, sizes in (
        (engine_of(name), [5, 7]),
        (engine_of(name), [1] * 12),
        (engine_of(name, report_every=4), [4, 4, 4]),
    ):
        interval = split(engine, sizes)
        np.testing.assert_array_equal(interval.scalars_RxS, expected.scalars_RxS)
        np.testing.assert_array_equal(interval.layers_RxNxS, expected.layers_RxNxS)
        same(state_of(engine), state_of(whole))


def test_an_interval_is_a_copy_that_later_steps_leave_alone() -> None:
    engine = engine_of()
    interval = train(engine, batches(2), [1e-2] * 2, ProbeLevel.ALL)
    kept = interval.scalars_RxS.copy(), interval.layers_RxNxS.copy()
    train(engine, batches(2, seed=1), [1e-2] * 2, ProbeLevel.ALL)
    np.testing.assert_array_equal(interval.scalars_RxS, kept[0])
    np.testing.assert_array_equal(interval.layers_RxNxS, kept[1])


def test_an_interval_may_be_started_before_the_last_one_is_read() -> None:
    """Of three, each read once the next has been started, or never: nothing is mixed up."""
    data, lrs, probes = batches(9), warmup_and_fall(9), [ProbeLevel.ALL] * 3
    plain, ahead = engine_of(), engine_of()
    parts = [(data[i : i + 3], lrs[i : i + 3], probes) for i in (0, 3, 6)]
    expected = [plain.run(*part) for part in parts]
    first, second = (ahead.start(*part) for part in parts[:2])
    found = [first(), second()]
    ahead.start(*parts[2])
    ahead.reset(0)
    again = ahead.start(*parts[0])
    found.append(again())
    for ours, theirs in zip(found, [*expected[:2], expected[0]], strict=True):
        np.testing.assert_array_equal(ours.scalars_RxS, theirs.scalars_RxS)
        np.testing.assert_array_equal(ours.layers_RxNxS, theirs.layers_RxNxS)
    assert ahead.lookahead == 0, "a CPU has nothing to wait for"


@pytest.mark.parametrize(("name", "body"), CASES)
def test_probes_change_no_bit_of_a_run_and_fill_what_they_measure(name: str, body: str) -> None:
    """Five steps a level; layers hold what the model says of the weights before the step, NaN where not measured."""
    data, lrs = batches(5), warmup_and_fall(5)
    runs = {}
    for probe in ProbeLevel:
        engine = engine_of(name, body)
        runs[probe] = train(engine, data, lrs, probe), state_of(engine)
    off, state = runs[ProbeLevel.OFF]
    assert np.isnan(off.layers_RxNxS).all()
    for probe in (ProbeLevel.NORMS, ProbeLevel.ALL):
        np.testing.assert_array_equal(runs[probe][0].scalars_RxS, off.scalars_RxS)
        same(runs[probe][1], state)
    logits = np.array([site == "attn" for site, _ in engine.stat_names])
    everything, norms = (runs[probe][0].layers_RxNxS for probe in (ProbeLevel.ALL, ProbeLevel.NORMS))
    assert everything.shape == (5, SHAPE.n_layers, len(engine.stat_names))
    assert np.isfinite(everything).all()
    assert np.isnan(norms[..., logits]).all()
    np.testing.assert_array_equal(norms[..., ~logits], everything[..., ~logits])

    fresh = engine_of(name, body)
    for step in range(2):
        with torch.no_grad():
            expected = copy.deepcopy(fresh.model)(torch.from_numpy(data[step, :, :-1]), ProbeLevel.ALL)[1]
        np.testing.assert_array_equal(everything[step], expected.numpy())
        train(fresh, data[step : step + 1], lrs[step : step + 1])


def test_levels_of_probing_may_differ_from_step_to_step() -> None:
    engine = engine_of()
    probes = [ProbeLevel.ALL, ProbeLevel.OFF, ProbeLevel.NORMS, ProbeLevel.ALL]
    layers = engine.run(batches(4), [1e-2] * 4, probes).layers_RxNxS
    logits = np.array([site == "attn" for site, _ in engine.stat_names])
    assert np.isfinite(layers[[0, 3]]).all()
    assert np.isnan(layers[1]).all()
    assert np.isfinite(layers[2][:, ~logits]).all()
    assert np.isnan(layers[2][:, logits]).all()
    later = engine.run(batches(2), [1e-2] * 2, [ProbeLevel.OFF, ProbeLevel.NORMS]).layers_RxNxS
    assert np.isnan(later[0]).all(), "nothing is left over from the interval before"


POISON = 31
"""A token whose embedding is not finite; only the bad batch has it."""


def poisoned(name: str, body: str, bad: float, **train_fields: Any) -> Engine:
    engine = engine_of(name, body, **train_fields)
    with torch.no_grad():
        engine.model.embedding[POISON, 0] = bad
    return engine


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("name", "body"), CASES)
def test_a_bad_batch_leaves_no_trace(name: str, body: str, bad: float) -> None:
    """good, good, bad, good, good equals good ×4 bitwise: weights, moments, step counts, losses; bad first too.

    σReparam's u and v, which depend on weights alone, take one more step of power iteration: equal to 1e-3 there.
    """
    good, lrs = batches(4, below=POISON), [1e-2, 8e-3, 6e-3, 4e-3]
    spoilt = batches(1, seed=9, below=POISON)
    spoilt[0, 1, 3] = POISON
    reference = poisoned(name, body, bad)
    expected = train(reference, good, lrs).scalars_RxS
    assert (expected[:, SKIPPED] == 0).all()
    assert np.isfinite(expected[:, [LOSS, GRAD_NORM]]).all()
    for at in (0, 2):
        engine = poisoned(name, body, bad)
        if at:
            train(engine, good[:at], lrs[:at])
        before = state_of(engine)
        step = train(engine, spoilt, [0.5]).scalars_RxS
        after = state_of(engine)
        assert not np.isfinite(step[0, LOSS])
        assert step[0, SKIPPED] == 1
        moved_in_forward = {k for k in after if k.endswith((".u", ".v"))}
        for key, value in after.items():
            if key in before and key not in moved_in_forward:
                assert torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0)), key
            elif key not in moved_in_forward:
                assert (value == 0).all(), f"{key}: made by the bad step, and not 0"
        rest = train(engine, good[at:], lrs[at:]).scalars_RxS
        if name == "sigma_reparam":
            np.testing.assert_allclose(rest[:, LOSS], expected[at:, LOSS], rtol=1e-3)
            assert all(dict(engine._optimizer.states())[p]["step"].item() == 4 for p in engine.model.parameters())
        else:
            np.testing.assert_array_equal(rest, expected[at:])
            same(state_of(engine), state_of(reference))


def test_a_bad_batch_within_an_interval_is_skipped_there() -> None:
    good, lrs = batches(4, below=POISON), [1e-2] * 5
    data = np.insert(good, 2, good[0], axis=0)
    data[2, 0, 0] = POISON
    engine, reference = poisoned("preln", "llama", math.inf), poisoned("preln", "llama", math.inf)
    scalars = train(engine, data, lrs, ProbeLevel.ALL).scalars_RxS
    assert scalars[:, SKIPPED].tolist() == [0, 0, 1, 0, 0]
    expected = train(reference, good, lrs[:4], ProbeLevel.ALL).scalars_RxS
    np.testing.assert_array_equal(scalars[[0, 1, 3, 4]], expected)
    same(state_of(engine), state_of(reference))


def test_a_finite_loss_with_an_infinite_gradient_norm_is_skipped() -> None:
    """Gradients of 1e25, whose squares overflow fp32, at a finite loss; then the head is put back, bit for bit."""
    data = batches(3)
    engine, reference = engine_of(), engine_of()
    train(reference, data[[0, 2]], [1e-2] * 2)
    train(engine, data[:1], [1e-2])
    before = state_of(engine)
    with torch.no_grad():
        engine.model.head.weight.mul_(2.0**90)
    scalars = train(engine, data[1:2], [1e-2]).scalars_RxS
    with torch.no_grad():
        engine.model.head.weight.mul_(2.0**-90)
    assert np.isfinite(scalars[0, LOSS])
    assert not np.isfinite(scalars[0, GRAD_NORM])
    assert scalars[0, SKIPPED] == 1
    same(state_of(engine), before)
    train(engine, data[2:], [1e-2])
    same(state_of(engine), state_of(reference))


def test_a_nan_in_one_gradient_reaches_nothing() -> None:
    """Loss finite, one entry of one gradient NaN: no parameter moves."""
    engine = engine_of()
    train(engine, batches(1), [1e-2])
    before = state_of(engine)

    def spoil(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[0] = torch.nan
        return gradient

    handle = engine.model.final_norm.gain.register_hook(spoil)
    scalars = train(engine, batches(1, seed=1), [1e-2]).scalars_RxS
    handle.remove()
    assert np.isfinite(scalars[0, LOSS])
    assert np.isnan(scalars[0, GRAD_NORM])
    assert scalars[0, SKIPPED] == 1
    assert scalars[0, UPDATE_NORM] == 0
    same(state_of(engine), before)


def test_a_non_finite_loss_with_finite_gradients_is_skipped() -> None:
    """Loss NaN, every gradient set to 1: neither the gradients nor the weight decay are applied."""
    engine = engine_of(weight_decay=0.5)
    with torch.no_grad():
        engine.model.final_norm.gain[0] = torch.nan
    before = state_of(engine)
    handles = [p.register_hook(torch.ones_like) for p in engine.model.parameters()]
    scalars = train(engine, batches(1), [1e-2]).scalars_RxS
    for handle in handles:
        handle.remove()
    assert np.isnan(scalars[0, LOSS])
    assert np.isfinite(scalars[0, GRAD_NORM])
    assert scalars[0, SKIPPED] == 1
    after = state_of(engine)
    for key in before:
        assert torch.equal(after[key].nan_to_num(7.0), before[key].nan_to_num(7.0)), key


def test_a_model_gone_for_good_is_skipped_at_every_step_and_raises_nothing() -> None:
    engine = engine_of()
    with torch.no_grad():
        engine.model.blocks[0].attn.proj.weight[0, 0] = torch.nan
    before = state_of(engine)
    interval = train(engine, batches(6), [1e-2] * 6, ProbeLevel.ALL)
    assert (interval.scalars_RxS[:, SKIPPED] == 1).all()
    assert np.isnan(interval.scalars_RxS[:, LOSS]).all()
    after = state_of(engine)
    for key in before:
        assert torch.equal(after[key].nan_to_num(7.0), before[key].nan_to_num(7.0))
    assert math.isnan(engine.evaluate(batches(1)[0]))


@pytest.mark.parametrize(("name", "body"), CASES)
def test_evaluate_is_the_mean_cross_entropy_and_moves_nothing(name: str, body: str) -> None:
    """7 windows in groups of 3, not all of one size, against float64; the run goes on as if it had not happened."""
    windows = batches(3, seed=5).reshape(9, -1)[:7]
    engine, reference = engine_of(name, body), engine_of(name, body)
    data, lrs = batches(4), warmup_and_fall(4)
    train(engine, data[:2], lrs[:2])
    train(reference, data[:2], lrs[:2])
    before = state_of(engine)
    loss = engine.evaluate(windows)
    same(state_of(engine), before)
    assert engine.model.training
    assert all(p.grad is None for p in engine.model.parameters())
    assert engine.evaluate(windows) == loss

    model = copy.deepcopy(engine.model).double().eval()
    total = 0.0
    for window in torch.from_numpy(windows):
        log_p = torch.log_softmax(model(window[None, :-1])[0][0], -1)
        total -= log_p[torch.arange(SHAPE.seq_len), window[1:]].sum().item()
    assert loss == pytest.approx(total / (7 * SHAPE.seq_len), rel=1e-6)

    np.testing.assert_array_equal(
        train(engine, data[2:], lrs[2:]).scalars_RxS, train(reference, data[2:], lrs[2:]).scalars_RxS
    )
    same(state_of(engine), state_of(reference))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_evaluate_weighs_every_window_alike(count: int) -> None:
    windows = batches(2, seed=6).reshape(6, -1)[:count]
    engine = engine_of()
    one_by_one = [engine.evaluate(windows[i : i + 1]) for i in range(count)]
    assert engine.evaluate(windows) == pytest.approx(np.mean(one_by_one), rel=1e-6)


def test_training_learns() -> None:
    """One batch, 60 steps: from log V to a third of it."""
    engine = engine_of("qknorm", "llama", report_every=60, steps=60)
    data = np.repeat(batches(1), 60, axis=0)
    losses = train(engine, data, [1e-2] * 60).scalars_RxS[:, LOSS]
    assert losses[0] == pytest.approx(math.log(SHAPE.vocab_size), abs=0.1)
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("name", ["preln", "sigma_reparam", "qknorm_cap", "soft_clip"])
def test_bf16_keeps_fp32_weights_and_stays_near_the_fp32_losses(name: str) -> None:
    data, lrs = batches(10), warmup_and_fall(10)
    engine = engine_of(name, precision="bf16")
    half = train(engine, data, lrs, ProbeLevel.ALL)
    assert all(p.dtype == torch.float32 for p in engine.model.parameters())
    assert all(v.dtype == torch.float32 for _, s in engine._optimizer.states() for v in s.values())
    full = train(engine_of(name), data, lrs, ProbeLevel.ALL)
    np.testing.assert_allclose(half.scalars_RxS[:, LOSS], full.scalars_RxS[:, LOSS], rtol=0.01)
    assert not np.array_equal(half.scalars_RxS, full.scalars_RxS)
    np.testing.assert_allclose(half.layers_RxNxS[0], full.layers_RxNxS[0], rtol=0.05)


def test_one_engine_serves_every_learning_rate_of_decoupled_decay_and_one_of_independent() -> None:
    """Keys agree over learning rates and seeds; independent decay is λ/η_peak per unit of learning rate."""
    low, high = spec(lr=1e-3), spec(lr=1.0)
    assert EngineKey.of(low) == EngineKey.of(high) == EngineKey.of(dataclasses.replace(low, seed=5))
    low, high = spec(lr=1e-3, decay_mode="independent"), spec(lr=1.0, decay_mode="independent")
    assert EngineKey.of(low) != EngineKey.of(high)
    assert EngineKey.of(low).weight_decay == pytest.approx(100.0)
    assert EngineKey.of(high).weight_decay == pytest.approx(0.1)


def test_the_learning_rate_of_the_interval_is_the_one_applied() -> None:
    """LR 0 moves nothing; twice the LR moves the first Adam step twice as far."""
    data = batches(1)
    moved = {}
    for lr in (0.0, 1e-3, 2e-3):
        engine = engine_of(weight_decay=0.0)
        before = engine.model.head.weight.detach().clone()
        scalars = train(engine, data, [lr]).scalars_RxS
        moved[lr] = (engine.model.head.weight.detach() - before).double().norm().item()
        assert scalars[0, UPDATE_NORM] == 0 or lr
    assert moved[0.0] == 0
    assert moved[2e-3] == pytest.approx(2 * moved[1e-3], rel=1e-4)


@needs_triton
@pytest.mark.skipif(KERNEL_DEVICE != "cpu", reason="a GPU runs the kernels itself, below")
@pytest.mark.parametrize(("name", "body"), [("preln", "gpt"), ("qknorm+zloss", "llama"), ("preln+muon+qk_clip", "gpt")])
@pytest.mark.parametrize(("micro_batch", "chunk"), [(None, None), (1, None), (1, 5)])
def test_steps_by_the_gpus_kernels_equal_torchs(
    name: str, body: str, micro_batch: int | None, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel of the project, put together as on a GPU and run by Triton's interpreter: all statistics alike."""
    take_loss_by(chunk, monkeypatch)
    data, lrs = batches(5), warmup_and_fall(5, 3e-3)
    probes = [ProbeLevel.ALL, ProbeLevel.NORMS, ProbeLevel.ALL, ProbeLevel.OFF, ProbeLevel.ALL]
    plain = engine_of(name, body, micro_batch=micro_batch)
    livelier(plain)
    expected = plain.run(data, lrs, probes)
    let_kernels_serve(True, monkeypatch)
    by_kernels = engine_of(name, body, micro_batch=micro_batch)
    livelier(by_kernels)
    assert by_kernels._orders_RMx2xM is not None
    interval = by_kernels.run(data, lrs, probes)
    np.testing.assert_allclose(interval.scalars_RxS, expected.scalars_RxS, rtol=1e-4)
    np.testing.assert_allclose(interval.layers_RxNxS, expected.layers_RxNxS, rtol=1e-4)


@on_gpu
@pytest.mark.parametrize("first", [ProbeLevel.ALL, ProbeLevel.NORMS])
@pytest.mark.parametrize(
    ("name", "micro_batch", "chunk"),
    [("preln", None, None), ("sigma_reparam", None, None), ("preln", 1, 5), ("soft_cap+qk_clip", 1, 5)],
)
def test_captured_steps_equal_eager_ones(
    name: str, micro_batch: int | None, chunk: int | None, first: ProbeLevel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both levels of probing in one interval, so that the second is captured in its midst: every row, the first too.

    Also where some layers' logits are measured beside the loss of each chunk of a micro-batch.
    """
    take_loss_by(chunk, monkeypatch)
    data, lrs = batches(6), warmup_and_fall(6)
    second = ProbeLevel.NORMS if first == ProbeLevel.ALL else ProbeLevel.ALL
    probes = [first, second, first, first, second, second]
    eager, captured = (
        engine_of(name, "llama", device="cuda", capture=capture, micro_batch=micro_batch) for capture in (False, True)
    )
    for engine in (eager, captured):
        livelier(engine)
    expected = eager.run(data, lrs, probes)
    interval = captured.run(data, lrs, probes)
    assert captured._graphs is not None, "the capture failed"
    np.testing.assert_allclose(interval.scalars_RxS, expected.scalars_RxS, rtol=1e-3)
    np.testing.assert_array_equal(np.isnan(interval.layers_RxNxS), np.isnan(expected.layers_RxNxS))
    np.testing.assert_allclose(interval.layers_RxNxS, expected.layers_RxNxS, rtol=1e-2)

    captured.reset(3)
    again = captured.run(data, lrs, probes)
    captured.reset(3)
    np.testing.assert_array_equal(captured.run(data, lrs, probes).scalars_RxS, again.scalars_RxS)
    eager.reset(3)
    np.testing.assert_allclose(again.scalars_RxS, eager.run(data, lrs, probes).scalars_RxS, rtol=1e-2)


@on_gpu
@pytest.mark.parametrize(("name", "body"), [("preln", "llama"), ("qknorm_cap", "gpt")])
def test_kernels_of_our_own_are_all_compiled_beforehand(name: str, body: str) -> None:
    """Of what a step launches, nothing is another variant than the ones that were warmed up."""
    from triton.runtime.jit import JITFunction

    kernels = [value for module in KERNEL_MODULES for value in vars(module).values() if isinstance(value, JITFunction)]

    def variants() -> int:
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    # Triton makes another variant where a stride is no multiple of 16; where heads are 8 wide, those of the gradients
    # that flex attention gives are not.
    shape = dataclasses.replace(SHAPE, d_model=64)
    key = EngineKey.of(spec(name, body, device="cuda", precision="bf16"))
    engine = Engine(dataclasses.replace(key, shape=shape))
    engine.reset(0)
    assert engine._own_kernels is not None
    engine._own_kernels.wait()
    before = variants()
    assert before > 0
    engine.run(batches(3), warmup_and_fall(3), list(ProbeLevel))
    assert variants() == before


@on_gpu
def test_a_capture_that_fails_leaves_the_run_as_it_was() -> None:
    """A gradient hook that asks the host, which no capture may: a warning, then the eager run from the same weights."""
    data, lrs = batches(4), warmup_and_fall(4)
    runs = []
    for capture in (False, True):
        engine = engine_of("preln", "llama", device="cuda", capture=capture)
        livelier(engine)
        engine.model.final_norm.gain.register_hook(lambda g: g * float(g.isfinite().all().item()))
        if capture:
            with pytest.warns(UserWarning, match="not captured"):
                runs.append(train(engine, data, lrs, ProbeLevel.ALL).scalars_RxS)
        else:
            runs.append(train(engine, data, lrs, ProbeLevel.ALL).scalars_RxS)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-3)


@on_gpu
def test_a_bad_batch_leaves_no_trace_in_captured_steps() -> None:
    """As on a CPU, bitwise."""
    good, lrs = batches(4, below=POISON), [1e-2, 8e-3, 6e-3, 4e-3]
    spoilt = good[:1].copy()
    spoilt[0, 1, 3] = POISON
    engines = [poisoned("preln", "llama", math.inf, device="cuda") for _ in range(2)]
    expected = train(engines[0], good, lrs).scalars_RxS
    train(engines[1], good[:2], lrs[:2])
    assert train(engines[1], spoilt, [0.5]).scalars_RxS[0, SKIPPED] == 1
    np.testing.assert_array_equal(train(engines[1], good[2:], lrs[2:]).scalars_RxS, expected[2:])
    same(state_of(engines[0]), state_of(engines[1]))


@pytest.mark.parametrize(
    ("name", "steps", "rtol"),
    [("preln", 10, 1e-3), ("qknorm_cap+zloss", 10, 1e-3), ("preln+muon+qk_clip", 10, 1e-3), ("sigma_reparam", 4, 3e-2)],
)
def test_micro_batches_add_up_to_the_batch(name: str, steps: int, rtol: float) -> None:
    """A batch of 6 at once, and as 3 × 2 and 6 × 1: losses, norms, statistics and weights.

    σReparam takes a step of power iteration with each micro-batch, so its σ is a little nearer to the norm; Adam, which
    asks for the sign of a gradient more than for its size, then moves some weights another way.
    """
    data = np.concatenate([batches(steps), batches(steps, seed=1)], axis=1)
    lrs, probes = warmup_and_fall(steps, 3e-3), [ProbeLevel.ALL, ProbeLevel.NORMS] * (steps // 2)
    whole = engine_of(name, batch_size=6)
    expected = whole.run(data, lrs, probes)
    for micro in (2, 1):
        engine = engine_of(name, batch_size=6, micro_batch=micro)
        for _ in range(2):  # The second time from a reset: nothing is left over.
            engine.reset(0)
            found = engine.run(data, lrs, probes)
            np.testing.assert_allclose(found.scalars_RxS, expected.scalars_RxS, rtol=rtol, atol=1e-5)
            np.testing.assert_allclose(found.layers_RxNxS, expected.layers_RxNxS, rtol=rtol, atol=1e-5)
        for ours, theirs in zip(engine.model.parameters(), whole.model.parameters(), strict=True):
            if name != "sigma_reparam":
                torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 10)


def test_a_bad_micro_batch_spoils_its_step_and_no_other() -> None:
    good, lrs = batches(3, below=POISON), [1e-2, 8e-3, 6e-3]
    data = good[[0, 1, 1, 2]].copy()
    data[1, 0, 0] = POISON
    engine, reference = (poisoned("preln", "llama", math.inf, micro_batch=1) for _ in range(2))
    scalars = engine.run(data, [lrs[0], 0.5, lrs[1], lrs[2]], [ProbeLevel.ALL] * 4).scalars_RxS
    assert scalars[:, SKIPPED].tolist() == [0, 1, 0, 0]
    np.testing.assert_array_equal(scalars[[0, 2, 3]], train(reference, good, lrs, ProbeLevel.ALL).scalars_RxS)
    same(state_of(engine), state_of(reference))


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize(
    "name", ["preln", "qknorm+zloss", "sigma_reparam", "ngpt", "preln+final_cap", "soft_cap", "preln+qk_clip"]
)
def test_chunks_of_tokens_change_the_loss_by_rounding_alone(
    name: str, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of 5 tokens at a time, the last chunk smaller: norms, gains and caps behind the stream included."""
    data, lrs = batches(6), warmup_and_fall(6, 3e-3)
    whole = engine_of(name, micro_batch=micro_batch)
    expected = train(whole, data, lrs, ProbeLevel.ALL)
    take_loss_by(5, monkeypatch)
    engine = engine_of(name, micro_batch=micro_batch)
    found = train(engine, data, lrs, ProbeLevel.ALL)
    np.testing.assert_allclose(found.scalars_RxS, expected.scalars_RxS, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.layers_RxNxS, expected.layers_RxNxS, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(engine.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_a_batch_that_micro_batches_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="--micro-batch 2 must divide --batch-size 3"):
        spec(micro_batch=2)


@pytest.mark.parametrize("name", ["preln+muon", "preln+stable_adamw", "preln"])
def test_a_step_that_is_not_finite_leaves_every_optimizer_as_it_was(name: str) -> None:
    """Weights, moments and momentum, bit for bit; also before the first good step, when all moments are 0."""
    engine = poisoned(name, "gpt", math.nan)
    spoilt = batches(1, seed=9, below=POISON)
    spoilt[0, 1, 3] = POISON

    def moments() -> list[Tensor]:
        return [v.clone() for _, state in engine._optimizer.states() for v in state.values()]

    assert train(engine, spoilt, [0.5]).scalars_RxS[0, SKIPPED] == 1
    assert all((value == 0).all() for value in moments())
    train(engine, batches(3, below=POISON), [1e-2] * 3)
    before, weights = moments(), [p.detach().clone() for p in engine.model.parameters()]
    assert train(engine, spoilt, [0.5]).scalars_RxS[0, SKIPPED] == 1
    for now, then in zip(moments(), before, strict=True):
        assert torch.equal(now, then)
    for p, w in zip(engine.model.parameters(), weights, strict=True):
        assert torch.equal(p.nan_to_num(7.0), w.nan_to_num(7.0))

"""The optimizers against torch's own and against algorithms written out in float64; guard, clip, decay and reset."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrsweep.config import ModelShape, TrainConfig
from lrsweep.model import GPT, ProbeLevel, init_weights
from lrsweep.schemes import find
from lrsweep.train.guard import Guard
from lrsweep.train.optimizers import OPTIMIZERS, Optimizer, groups_of, orthogonalized
from lrsweep.train.step import Engine, EngineKey

SHAPE = ModelShape(n_layers=2, d_model=16, n_heads=2, seq_len=8, vocab_size=32)
LRS = [1e-2, 3e-2, 2e-2, 1e-3, 5e-2, 4e-2]
NAMES = tuple(OPTIMIZERS)
WD = 0.1


class Bench:
    """A tiny model, its optimizer and gradients to order: no forward, so that both sides get the same ones bitwise."""

    def __init__(self, optimizer: str, scheme: str = "qknorm", *, weight_decay: float = WD, **train: Any) -> None:
        self.model = GPT(find(scheme), "llama", SHAPE)
        init_weights(self.model, 0)
        with torch.no_grad():  # No gain at 0 or 1, so that decay shows on each.
            for i, p in enumerate(self.model.parameters()):
                p.mul_(1 + i / 10)
        config = TrainConfig(steps=20, batch_size=1, warmup_steps=0, optimizer=optimizer, **train)  # type: ignore[arg-type]
        self.lr = torch.zeros(())
        self.optimizer: Optimizer = OPTIMIZERS[optimizer](
            groups_of(self.model, config, weight_decay), config, self.lr, {}
        )

    def step(self, gradients: Sequence[Tensor], lr: float, *, finite: bool = True, divisor: float = 1.0) -> None:
        for p, g in zip(self.model.parameters(), gradients, strict=True):
            p.grad = g.clone()
        self.lr.fill_(lr)
        self.optimizer.step(Guard(torch.zeros(()), torch.tensor(finite), torch.tensor(divisor)))

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def states(self) -> list[Tensor]:
        return [v.clone() for _, state in self.optimizer.states() for v in state.values()]


def gradients(bench: Bench, n: int, *, seed: int = 0) -> list[list[Tensor]]:
    """Random gradients of ``n`` steps, of another size at each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [10.0 ** (i % 3 - 2) * torch.randn(p.shape, generator=generator) for p in bench.model.parameters()]
        for i in range(n)
    ]


def hidden(bench: Bench) -> list[bool]:
    """Which parameters are matrices inside the blocks."""
    return [name.startswith("blocks.") and p.ndim == 2 for name, p in bench.model.named_parameters()]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("scheme", "factor"), [("qknorm", 1.0), ("qknorm+mup", 0.5)])
def test_muon_is_torchs_muon_on_the_matrices_of_the_blocks_and_adamw_elsewhere(
    monkeypatch: pytest.MonkeyPatch, scheme: str, factor: float
) -> None:
    """Six steps at six learning rates; under mup, at a quarter of its base width, hidden LR/½ and decay·½."""
    # torch's multiplies in what this gives, and there are no six digits in bf16.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    bench = Bench("muon", scheme)
    theirs = [torch.nn.Parameter(w) for w in bench.weights()]
    inside = hidden(bench)
    assert sum(inside) == 4 * SHAPE.n_layers
    muon = torch.optim.Muon(
        [p for p, h in zip(theirs, inside, strict=True) if h],
        weight_decay=WD * factor,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [p for p, h in zip(theirs, inside, strict=True) if not h]
    decays = [{"params": [p for p in rest if p.ndim == n], "weight_decay": WD if n == 2 else 0.0} for n in (1, 2)]
    adamw = torch.optim.AdamW(decays, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for lr, gs in zip(LRS, gradients(bench, len(LRS)), strict=True):
        bench.step(gs, lr, divisor=4.0)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = g / 4.0
        muon.param_groups[0]["lr"] = lr / factor
        for group in adamw.param_groups:
            group["lr"] = lr
        muon.step()
        adamw.step()
        for (name, p), their in zip(bench.model.named_parameters(), theirs, strict=True):
            torch.testing.assert_close(p, their, rtol=1e-5, atol=1e-7, msg=lambda m, k=name: f"{k}: {m}")


def test_muons_update_is_the_gradient_orthogonalized_with_the_rms_of_adamws() -> None:
    """ΔW = −LR·0.2·√max(n_in, n_out)·UVᵀ, UΣVᵀ the gradient, to the accuracy of five Newton–Schulz iterations.

    These bring singular values to 0.7 to 1.2, but for those that are next to nothing; RMS of ΔW is about 0.2·LR.
    """
    bench = Bench("muon", weight_decay=0.0)
    before, gs = bench.weights(), gradients(bench, 1)[0]
    bench.step(gs, 1e-2)
    for was, p, g, inside in zip(before, bench.model.parameters(), gs, hidden(bench), strict=True):
        if inside:
            change = (was - p.detach()).double() / 1e-2
            assert change.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)
            update = change / (0.2 * max(p.shape) ** 0.5)
            u, _, vh = torch.linalg.svd(g.double(), full_matrices=False)
            along = torch.diag(u.T @ update @ vh.T)
            assert along.max() < 1.25
            assert along.median() > 0.7
            assert (update - u @ torch.diag(along) @ vh).norm() < 0.05 * update.norm()


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 4, 24), (2, 24, 4), (1, 1, 7)])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape: tuple[int, int, int]) -> None:
    """U·f(f(f(f(f(Σ/‖Σ‖)))))·Vᵀ in float64, f(s) = as + bs³ + cs⁵, whatever the matrices' sizes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, shape[0])[:, None, None]
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s /= s.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalized(x).double(), u @ torch.diag_embed(s) @ vh, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_newton_schulz_keeps_matrices_apart(bad: float) -> None:
    """Zeros stay zeros; NaN and inf become NaN in their own matrix alone."""
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    x[0] = 0.0
    x[1, 2, 3] = bad
    zeros, spoilt, sound = orthogonalized(x)
    assert not zeros.any()
    assert spoilt.isnan().any()
    assert torch.equal(sound, orthogonalized(x[2:])[0])


def stable_adamw(
    weights: list[Tensor], steps: list[list[Tensor]], lrs: list[float], *, decay: list[float]
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 2 of arXiv 2304.13013, tensor by tensor in float64; also the largest RMS of each step."""
    beta_1, beta_2, eps, largest = 0.9, 0.95, 1e-8, []
    theta = [w.double() for w in weights]
    v, u = ([torch.zeros_like(w) for w in theta] for _ in range(2))
    for t, (gs, lr) in enumerate(zip(steps, lrs, strict=True), start=1):
        hat_1 = beta_1 * (1 - beta_1 ** (t - 1)) / (1 - beta_1**t)
        hat_2 = beta_2 * (1 - beta_2 ** (t - 1)) / (1 - beta_2**t)
        rms = []
        for i, g in enumerate(x.double() for x in gs):
            v[i] = hat_1 * v[i] + (1 - hat_1) * g
            u[i] = hat_2 * u[i] + (1 - hat_2) * g**2
            rms.append((g**2 / u[i].clamp(min=eps**2)).mean().sqrt().item())
            eta = lr / max(1.0, rms[-1])
            theta[i] = theta[i] - eta * decay[i] * theta[i] - eta * v[i] / (u[i].sqrt() + eps)
        largest.append(max(rms))
    return theta, largest


def test_stable_adamw_equals_its_algorithm_in_float64() -> None:
    """Six steps whose gradients grow and shrink a hundredfold, so that the RMS passes 1 at some and not at others."""
    bench = Bench("stable_adamw")
    steps = gradients(bench, len(LRS))
    decay = [WD if p.ndim == 2 else 0.0 for p in bench.model.parameters()]
    expected, largest = stable_adamw(bench.weights(), steps, LRS, decay=decay)
    for gs, lr in zip(steps, LRS, strict=True):
        bench.step(gs, lr)
    assert max(largest) > 2
    assert min(largest) < 1
    for p, theirs in zip(bench.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach().double(), theirs, rtol=1e-5, atol=1e-6)


def test_stable_adamw_is_adamw_while_no_gradient_outgrows_its_history() -> None:
    """|g| falls in every entry: v ≥ g², RMS ≤ 1, and both debias alike. With one that grows, they part."""
    stable, plain = Bench("stable_adamw"), Bench("adamw")
    first = gradients(stable, 1)[0]
    for i, lr in enumerate(LRS):
        for bench in (stable, plain):
            bench.step([g * 0.8**i * (-1) ** (i // 2) for g in first], lr)
    for a, b in zip(stable.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for bench in (stable, plain):
        bench.step([100 * g for g in first], 1e-2)
    assert max((a - b).abs().max().item() for a, b in zip(stable.weights(), plain.weights(), strict=True)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_a_step_that_is_not_finite_moves_nothing(name: str, bad: float, at: int) -> None:
    """No weight moves and no state holds NaN or inf, at the first step too; AdamW and StableAdamW go on as if it had
    not been, bitwise; Muon's momentum, which saw a gradient of 0, stays finite."""
    bench, clean = Bench(name), Bench(name)
    steps = gradients(bench, 4)
    spoilt = [torch.full_like(g, bad) if i % 2 else g for i, g in enumerate(steps[0])]
    for i, gs in enumerate(steps):
        if i == at:
            before = bench.weights()
            bench.step(spoilt, 0.5, finite=False, divisor=bad)
            same(bench.weights(), before)
            assert all(torch.isfinite(v).all() for v in bench.states())
        for one in (bench, clean):
            one.step(gs, LRS[i])
    assert all(torch.isfinite(w).all() for w in bench.weights())
    inside = hidden(bench)
    spared = [name != "muon" or not h for h in inside]
    for a, b, exact in zip(bench.weights(), clean.weights(), spared, strict=True):
        assert not exact or torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_divisor_divides_every_gradient(name: str) -> None:
    """Gradients of 8g over 8 are those of g, bitwise."""
    plain, divided = Bench(name), Bench(name)
    for gs, lr in zip(gradients(plain, 3), LRS, strict=False):
        plain.step(gs, lr)
        divided.step([8 * g for g in gs], lr, divisor=8.0)
    same(plain.weights(), divided.weights())
    same(plain.states(), divided.states())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decay_on", ["matrices", "all"])
@pytest.mark.parametrize(("scheme", "peak"), [("qknorm", 0.05), ("qknorm+mup", 0.05), ("qknorm", 1.0)])
def test_decay_has_its_closed_form_on_what_it_is_asked_for(name: str, decay_on: str, scheme: str, peak: float) -> None:
    """Gradients of 0: θ·Π(1 − (η_t/η_peak)·λ) when λ/η_peak is handed over, as independent decay is; mup leaves it."""
    bench = Bench(name, scheme, weight_decay=0.1 / peak, decay_on=decay_on)
    before, shares = bench.weights(), [0.5, 1.0, 0.25]
    for share in shares:
        bench.step([torch.zeros_like(w) for w in before], share * peak)
    factor = math.prod(1 - share * 0.1 for share in shares)
    for was, p in zip(before, bench.model.parameters(), strict=True):
        decays = p.ndim == 2 or decay_on == "all"
        torch.testing.assert_close(p.detach(), was * (factor if decays else 1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["qknorm", "sigma_reparam+mup", "ngpt", "dyt"])
def test_every_parameter_is_in_exactly_one_group(name: str, scheme: str) -> None:
    """Matrices of the blocks; embedding and head; vectors. mup at a quarter of its base: LR·4 and λ/4, Muon 2 and ½."""
    bench = Bench(name, scheme)
    config = TrainConfig(steps=1, batch_size=1, warmup_steps=0, optimizer=name)  # type: ignore[arg-type]
    groups = groups_of(bench.model, config, WD)
    ids = [id(p) for g in groups for p in g.params]
    assert sorted(ids) == sorted(id(p) for p in bench.model.parameters())
    factor = (2.0 if name == "muon" else 4.0) if "mup" in scheme else 1.0
    named = {id(p): k for k, p in bench.model.named_parameters()}
    for group, (is_hidden, lr_factor, decay) in zip(
        groups, [(True, factor, WD / factor), (False, 1.0, WD), (False, 1.0, 0.0)], strict=True
    ):
        assert (group.hidden, group.lr_factor, group.weight_decay) == (is_hidden, lr_factor, decay)
    assert {named[id(p)] for p in groups[1].params} == {"embedding", "head.weight"}
    assert all(named[id(p)].startswith("blocks.") and p.ndim == 2 for p in groups[0].params)
    assert all(p.ndim < 2 for p in groups[2].params)


def engine_of(optimizer: str, scheme: str) -> Engine:
    train = TrainConfig(steps=8, batch_size=3, warmup_steps=0, optimizer=optimizer)  # type: ignore[arg-type]
    key = EngineKey(scheme=find(scheme), body="llama", shape=SHAPE, train=train, device="cpu", weight_decay=WD)
    engine = Engine(key)
    engine.reset(0)
    return engine


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["qknorm", "qknorm+mup", "ngpt"])
def test_a_reset_engine_runs_bitwise_as_a_fresh_one(name: str, scheme: str) -> None:
    """After another seed's run at a high LR: losses, norms, weights and states."""
    data = np.random.default_rng(0).integers(0, 32, (5, 3, 9))
    engine, used = engine_of(name, scheme), engine_of(name, scheme)
    used.reset(1)
    used.run(data[::-1].copy(), [0.3] * 5, [ProbeLevel.OFF] * 5)
    used.reset(0)
    runs = [copy.deepcopy(e.run(data, LRS[:5], [ProbeLevel.OFF] * 5).scalars_RxS) for e in (engine, used)]
    np.testing.assert_array_equal(*runs)
    same(list(engine.model.parameters()), list(used.model.parameters()))
    for (_, mine), (_, theirs) in zip(engine._optimizer.states(), used._optimizer.states(), strict=True):
        same(list(mine.values()), list(theirs.values()))

"""A made-up sweep through the real store, loosely shaped on small byte-level runs; every number is invented.

Each scheme has an edge. Below it the final loss is a shallow bowl in log LR; above it the loss flattens out
high, and far above it the trial diverges or goes non-finite. Norms and attention logits grow with the LR,
without bound past the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsweep.store import ResultStore, TrialRow

EDGES = {
    "preln": 0.05,
    "soft_temp": 0.07,
    "soft_clip": 0.07,
    "sigma_reparam": 0.2,
    "layerscale": 0.2,
    "soft_cap": 0.4,
    "qknorm": 0.6,
    "qk_fc_norm": 2.0,
    "qkv_norm": 1.2,
    "qknorm_cap": 0.7,
}
LRS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
SITES = ("qkv", "proj", "fc1", "fc2")
CAPPED = ("soft_cap", "qknorm_cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to make up."""

    schemes: Sequence[str] = tuple(EDGES)
    lrs: Sequence[float] = LRS
    seeds: Sequence[int] = (0, 1, 2)
    body: str = "gpt"
    size: str = "0.2m"
    steps: int = 300
    layers: int = 4
    sites: Sequence[str] = (*SITES, "attn")
    probe_every: int = 1


def write_sweep(store: ResultStore, sweep: Sweep) -> None:
    """Write every trial of ``sweep``, and a manifest."""
    for scheme in sweep.schemes:
        for lr in sweep.lrs:
            for seed in sweep.seeds:
                store.write_trial(*make_trial(sweep, scheme, lr, seed))
    store.write_manifest(
        {
            "command": [
                "lrsweep",
                "sweep",
                "--arch",
                *sweep.schemes,
                "--size",
                sweep.size,
                "--lrs",
                *map(str, sweep.lrs),
            ],
            "config": {"body": sweep.body, "size": sweep.size, "train": {"steps": sweep.steps, "clip": 1.0}},
            "hardware": {"device": "cpu", "threads": 1, "note": "<made up & not measured>"},
            "versions": {"lrsweep": "0.1.0", "python": "3.11"},
            "data": {"source": "none", "unigram_entropy": 3.24},
            "finished": None,
        }
    )


def make_trial(
    sweep: Sweep, scheme: str, lr: float, seed: int
) -> tuple[TrialRow, dict[str, list[Any]], dict[str, list[Any]]]:
    """One trial's row, steps and layers."""
    rng = np.random.default_rng([seed, round(1e6 * lr), *scheme.encode()])
    batch = np.random.default_rng(0).normal(0, 0.05, sweep.steps)  # the same batches in every trial
    past = math.log10(lr / EDGES.get(scheme, 0.3)) + rng.normal(0, 0.12)  # decades past the edge
    verdict = "nonfinite" if past > 1.75 else "diverged" if past > 1.3 else "stable"
    final = 2.34 + 0.09 * (math.log10(lr) + 1.9) ** 2 + 0.55 * max(past, 0) + rng.normal(0, 0.015)
    if final > 3.24 and verdict == "stable":
        verdict = "stalled"

    t = np.arange(sweep.steps)
    x = t / max(sweep.steps - 1, 1)
    loss = final + (5.55 - final) * np.exp(-x * 14 / (1 + 0.5 * abs(math.log10(lr) + 1.9))) + batch
    onset = None
    if past > 0:
        start = 0.08 + 0.1 * rng.random()
        loss += 0.5 * past * np.clip((x - start) * 6, 0, 1) * (1.3 - x) + rng.normal(0, 0.03 + 0.05 * past, sweep.steps)
    if verdict in ("diverged", "nonfinite"):
        onset = int(sweep.steps * (0.1 + 0.2 * rng.random()))
        ramp = np.clip((t - onset) / (0.15 * sweep.steps), 0, None)
        loss += 2.5 * ramp**1.5
    run = sweep.steps if onset is None else min(sweep.steps, onset + max(1, sweep.steps // 5))
    t, x, loss = t[:run], x[:run], loss[:run]
    if verdict == "nonfinite":
        loss[-1] = np.nan

    growth = 1 + 30 * lr**0.7 * x + (np.exp(np.clip(4 * past * np.clip(x * 3, 0, 1), 0, 6)) if past > 0 else 0)
    normed = 0.12 if "norm" in scheme else 1.0
    logit = (
        (3 + 2 * rng.random())
        * (1 + normed * (growth - 1) * (1 + 0.2 * np.sin(9 * x)))
        * np.exp(rng.normal(0, 0.05, run))
    )
    measured = t % sweep.probe_every == 0
    steps: dict[str, list[Any]] = {
        "step": t.tolist(),
        "tokens": ((t + 1) * 1024).tolist(),
        "lr": (lr * np.minimum(1, (t + 1) / 30) * (0.55 + 0.45 * np.cos(math.pi * x))).tolist(),
        "loss": loss.tolist(),
        "grad_norm": (0.6 + growth * 0.02).tolist(),
        "update_norm": (lr * 0.1 / growth).tolist(),
        "log_z": [None] * run,
        "logit_max": [float(v) if m else None for v, m in zip(logit, measured, strict=True)],
    }
    whole = verdict in ("stable", "stalled")
    row = TrialRow(
        scheme=scheme,
        body=sweep.body,
        size=sweep.size,
        n_params=213_000,
        lr=lr,
        seed=seed,
        verdict=verdict,
        reason={
            "stable": "the loss fell and stayed low",
            "stalled": f"the loss never got below the unigram entropy 3.240; its best was {loss.min():.3f}",
            "diverged": f"the smoothed loss left its best {np.nanmin(loss):.3f} by more than 1 nat and stayed",
            "nonfinite": f"the loss was nan at step {run - 1}",
        }[verdict],
        onset_step=onset,
        steps=run,
        tokens=run * 1024,
        loss_init=5.55,
        loss_final=float(final) if whole else math.nan,
        loss_best=float(np.nanmin(loss)),
        spikes=int(rng.poisson(2 * max(past + 0.5, 0))),
        logit_max=float(logit.max()),
        wall_s=12.0 * run / sweep.steps,
        device="cpu, 1 thread",
        trial=f"{scheme}-{sweep.body}-{sweep.size}-lr{lr:g}-s{seed}",
    )
    return row, steps, _layers(sweep, scheme, t, growth, logit, rng)


def _layers(
    sweep: Sweep,
    scheme: str,
    t: NDArray[np.int64],
    growth: NDArray[np.float64],
    logit: NDArray[np.float64],
    rng: np.random.Generator,
) -> dict[str, list[Any]]:
    """Long form; deeper layers grow more, fc1 less than the others."""
    columns: dict[str, list[Any]] = {"step": [], "layer": [], "site": [], "stat": [], "value": []}

    def add(layer: int, site: str, stat: str, values: NDArray[np.float64]) -> None:
        columns["step"] += t.tolist()
        columns["layer"] += [layer] * len(t)
        columns["site"] += [site] * len(t)
        columns["stat"] += [stat] * len(t)
        columns["value"] += values.tolist()

    for layer in range(sweep.layers):
        depth = (layer + 1) / sweep.layers
        for site in sweep.sites:
            noise = np.exp(rng.normal(0, 0.04, len(t)))
            if site == "attn":
                add(layer, site, "logit_max", logit * depth)
                add(layer, site, "logit_rms", logit * depth / 4)
                if scheme in CAPPED:
                    add(layer, site, "logit_max_capped", 50 * np.tanh(logit * depth / 50))
            else:
                strength = {"qkv": 1.0, "proj": 0.8, "fc1": 0.3, "fc2": 1.2}[site]
                norm = {"qkv": 9.0, "proj": 2.0, "fc1": 12.0, "fc2": 3.0}[site] * growth ** (strength * depth) * noise
                add(layer, site, "l2_rms", norm)
                add(layer, site, "l2_max", norm * 2.5)
    return columns

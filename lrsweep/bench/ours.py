"""Measures lrsweep's own step."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

import lrsweep
from lrsweep.bench.job import Job, Timing, batch_of
from lrsweep.bench.kernels import kernel_ms
from lrsweep.bench.rounds import FEWEST, INTERVAL, paired_rounds, peak_memory, ratio, steps_a_round
from lrsweep.config import find_body, find_size
from lrsweep.model import ProbeLevel
from lrsweep.schemes import find
from lrsweep.sweep.plan import train_config
from lrsweep.train import Engine, EngineKey

_LEVELS = {"bare": ProbeLevel.OFF, "norms": ProbeLevel.NORMS, "all": ProbeLevel.ALL}
_LR = 1e-3


def measure(job: Job) -> Timing:
    """Time a scheme's step on random tokens, bare and with probes. The first step and the memory are with all on."""
    # The engine runs eagerly what it cannot capture; such times must not pass for captured ones.
    warnings.filterwarnings("error", message="step not captured")
    scheme, body, preset = find(job.arch), find_body(job.body), find_size(job.size)
    shape, (batch, micro) = preset.shape, batch_of(preset)
    given = {"report_every": INTERVAL, "batch_size": batch, "micro_batch": micro if micro < batch else None}
    train = train_config(scheme, preset, given, job.device)
    key = EngineKey(
        scheme=scheme, body=body, shape=shape, train=train, device=job.device, weight_decay=train.weight_decay
    )
    tokens = np.random.default_rng(0).integers(
        0, shape.vocab_size, (INTERVAL, train.batch_size, shape.seq_len + 1), dtype=np.int32
    )

    def run(engine: Engine, level: ProbeLevel, steps: int) -> float:
        began = time.perf_counter()
        engine.run(tokens[:steps], [_LR] * steps, [level] * steps)
        return time.perf_counter() - began

    began = time.perf_counter()
    engine = Engine(key)
    engine.reset(0)
    run(engine, ProbeLevel.ALL, 1)
    first_step_s = time.perf_counter() - began
    steps = steps_a_round(run(engine, ProbeLevel.ALL, FEWEST) / FEWEST)
    memory = peak_memory(job.device)

    began = time.perf_counter()
    engine.reset(1)
    run(engine, ProbeLevel.ALL, 1)
    next_trial_s = time.perf_counter() - began

    variants: dict[str, Callable[[], object]] = {n: partial(run, engine, p, steps) for n, p in _LEVELS.items()}
    for warm_up in variants.values():
        warm_up()  # Graphs of all levels, before a second engine takes memory.
    seconds = paired_rounds(variants, job.rounds, job.device)
    ratios = {f"{name}/bare": ratio(seconds[name], seconds["bare"]) for name in ("norms", "all")}
    kernels = kernel_ms(variants["all"], steps) if job.device == "cuda" else {}
    if job.device == "cuda" and (second := eager_engine(key, run)) is not None:
        # In rounds of its own: a GPU that waits for the host cools down, and whoever comes next is the faster for it.
        pair: dict[str, Callable[[], object]] = {
            "all": variants["all"],
            "eager": partial(run, second, ProbeLevel.ALL, steps),
        }
        beside = paired_rounds(pair, job.rounds, job.device)
        seconds["eager"] = beside["eager"]
        ratios["eager/captured"] = ratio(beside["eager"], beside["all"])
    return Timing.of(
        job,
        version=lrsweep.__version__,
        n_params=engine.n_params(),
        step_ms={name: 1e3 * statistics.median(found) / steps for name, found in seconds.items()},
        first_step_s=first_step_s,
        next_trial_s=next_trial_s,
        memory=memory,
        ratios=ratios,
        kernel_ms=kernels,
    )


def eager_engine(key: EngineKey, run: Callable[[Engine, ProbeLevel, int], object]) -> Engine | None:
    """The same step from the same compiled blocks, launched kernel by kernel; None if no second model fits."""
    try:
        engine = Engine(key, capture=False, compiled=True)
        engine.reset(0)
        run(engine, ProbeLevel.ALL, 1)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return engine

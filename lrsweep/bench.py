"""``lrsweep bench``: the step and the cost of its probes, as ratios of paired runs.

Absolute times on a shared machine say little; within one round every variant runs once, right after another and in an
order that turns from round to round, and the figure is the median over rounds of the ratio to the bare step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lrsweep.config import find_body, find_size
from lrsweep.model import ProbeLevel
from lrsweep.schemes import find
from lrsweep.store import write_text
from lrsweep.sweep.machine import command_line, hardware, versions
from lrsweep.sweep.plan import DEFAULT_SIZE, resolve_device
from lrsweep.train import Engine, EngineKey
from lrsweep.train.trial import CPU_THREADS

_EVERY = 5
_STEPS = 5
_VARIANTS: dict[str, list[ProbeLevel]] = {
    "off": [ProbeLevel.OFF] * _STEPS,
    "norms": [ProbeLevel.NORMS] * _STEPS,
    f"logits every {_EVERY}": [ProbeLevel.ALL if i % _EVERY == 0 else ProbeLevel.NORMS for i in range(_STEPS)],
    "all": [ProbeLevel.ALL] * _STEPS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Step times of one scheme and size."""

    scheme: str
    body: str
    size: str
    n_params: int
    first_step_s: float
    """Seconds from construction to the end of the first step, compilation included."""
    step_ms: float
    """Median time of a bare step."""
    tokens_per_s: float
    """At that time."""
    ratios: dict[str, float]
    """Median over paired rounds of a variant's time over the bare step's."""
    quartiles: dict[str, tuple[float, float]]
    """Quartiles of those ratios."""


def time_scheme(arch: str, body: str, size: str, device: str, *, rounds: int) -> Timing:
    """Time one scheme at one size with random tokens, probes off and on."""
    preset = find_size(size)
    train = preset.train_config(precision="bf16" if device == "cuda" else "fp32", report_every=_STEPS)
    key = EngineKey(
        scheme=find(arch), body=find_body(body), shape=preset.shape, train=train, device=device, weight_decay=0.1
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, preset.shape.vocab_size, (_STEPS, train.batch_size, preset.shape.seq_len + 1))
    lrs = [1e-3] * _STEPS

    # On a CPU a trial is one thread, and its own processor time does not count what others do with the core.
    clock = time.process_time if device == "cpu" else time.perf_counter

    def timed(probes: Sequence[ProbeLevel]) -> float:
        started = clock()
        engine.run(tokens[: len(probes)], lrs[: len(probes)], probes)
        return clock() - started

    began = time.perf_counter()
    engine = Engine(key)
    engine.reset(0)
    timed([ProbeLevel.OFF])
    first_step_s = time.perf_counter() - began
    for probes in _VARIANTS.values():
        timed(probes)
    names = list(_VARIANTS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    quiet = not sys.stdout.isatty()
    for i in track(range(rounds), description=f"{arch} {size}", transient=True, disable=quiet):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(timed(_VARIANTS[name]))
    ratios = {n: [a / b for a, b in zip(seconds[n], seconds["off"], strict=True)] for n in names if n != "off"}
    step = statistics.median(seconds["off"]) / _STEPS
    quarters = {n: statistics.quantiles(r, n=4) for n, r in ratios.items()}
    return Timing(
        scheme=key.scheme.name,
        body=body,
        size=preset.name,
        n_params=engine.n_params(),
        first_step_s=first_step_s,
        step_ms=1e3 * step,
        tokens_per_s=train.batch_size * preset.shape.seq_len / step,
        ratios={n: statistics.median(r) for n, r in ratios.items()},
        quartiles={n: (q[0], q[2]) for n, q in quarters.items()},
    )


def run_bench(archs: Sequence[str], body: str, size: str | None, *, rounds: int, out: Path | None) -> int:
    """Time every scheme of ``archs``, print the table, and save it if ``out`` is given; returns the exit code."""
    device = resolve_device("auto")
    if device == "cpu":
        torch.set_num_threads(CPU_THREADS)
    timings = [time_scheme(a, body, size or DEFAULT_SIZE[device], device, rounds=max(2, rounds)) for a in archs]
    console = Console()
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("scheme", "size", "bare step", "tokens/s", "first step", *(n for n in _VARIANTS if n != "off")):
        table.add_column(name, justify="left" if name in ("scheme", "size") else "right")
    for t in timings:
        cells = [f"{r:.3f} ({t.quartiles[n][0]:.3f} to {t.quartiles[n][1]:.3f})" for n, r in t.ratios.items()]
        table.add_row(
            t.scheme, t.size, f"{t.step_ms:.2f} ms", f"{t.tokens_per_s:,.0f}", f"{t.first_step_s:.1f} s", *cells
        )
    console.print(table)
    console.print(
        "Right of 'first step': time of a probed step over the bare step's, median (quartiles) of paired runs."
    )
    if out is not None:
        found = {
            "command": command_line(),
            "hardware": hardware(),
            "versions": versions(),
            "timings": [asdict(t) for t in timings],
        }
        write_text(out, json.dumps(found, indent=2) + "\n")
    return 0

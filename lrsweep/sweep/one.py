"""``lrsweep train``: one trial in this process, shown as it goes."""

from __future__ import annotations

import math
from dataclasses import replace

from rich.console import Console

from lrsweep.config import SweepConfig
from lrsweep.errors import UserError
from lrsweep.store import ResultStore
from lrsweep.sweep.display import duration
from lrsweep.sweep.machine import fit_memory
from lrsweep.sweep.plan import make_plan
from lrsweep.train import run_trial


def train_one(config: SweepConfig, seed: int, console: Console) -> int:
    """Train the one trial that ``config`` and ``seed`` name, recorded if ``--out`` is given; returns the exit code."""
    if config.gpus_per_trial > 1:
        raise UserError(f"train runs in this process, --gpus-per-trial {config.gpus_per_trial} needs Ray; use sweep")
    if config.search is not None:
        raise UserError("train runs one trial, --search chooses many; use sweep")
    plan = make_plan(replace(config, seeds=seed + 1))
    specs = [spec for spec in plan.specs if spec.seed == seed]
    if len(specs) != 1:
        raise UserError(f"train runs one trial, --arch, --body and --size name {len(specs)}; name one of each")
    spec = fit_memory(specs[0], 1)
    store = ResultStore(plan.out) if config.out else None
    console.print(f"{spec.label}, {spec.body} {spec.size}: {spec.train.steps} steps", highlight=False)
    for progress in run_trial(spec, plan.corpora[spec.size], store):
        console.print(f"step {progress.step:>6}  loss {progress.loss:.4f}", highlight=False)
        if progress.row is not None:
            row = progress.row
            held_out = "" if math.isnan(row.loss_final) else f", held-out loss {row.loss_final:.4f}"
            console.print(
                f"{row.verdict}{held_out}, largest logit {row.logit_max:.3g}, {duration(row.wall_s)}. {row.reason}",
                highlight=False,
                markup=False,
            )
    if store is not None:
        store.write_trials()
    return 0

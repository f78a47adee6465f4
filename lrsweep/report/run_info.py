"""What the figures of single trials show, as records: curves against the step, and norms by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lrsweep.report.labels import format_lr
from lrsweep.report.section import Section

MAX_POINTS = 1000
"""Points a curve keeps at most."""
NORM_SITES = ("qkv", "proj", "fc2")
"""Sites whose output norms set a diverging run apart (Rybakov et al., arXiv 2410.16682)."""

Read = Callable[[str], pd.DataFrame]
"""A trial's id → its table of steps or of layers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One quantity of one trial against the step; steps at which it was not measured or not finite are
    absent.
    """

    steps: NDArray[np.float64]
    """Ascending."""
    values: NDArray[np.float64]
    """All finite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One trial."""

    lr: float
    """Peak learning rate."""
    seed: int
    """Seed."""
    outcome: str
    """As in :func:`lrsweep.analysis.judge`."""
    curve: Curve
    """What is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunPanel:
    """All trials of one scheme."""

    scheme: str
    """Label."""
    runs: tuple[Run, ...]
    """By LR and seed; those with no point at all are left out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunsInfo:
    """One panel a scheme."""

    panels: tuple[RunPanel, ...]
    """In the order of the palette; schemes without a curve are left out."""
    lrs: tuple[float, ...]
    """All tested LRs, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormColumn:
    """The layers of one trial."""

    title: str
    """What singles the trial out."""
    lr: float
    """Peak learning rate."""
    seed: int
    """Seed."""
    curves: dict[str, dict[int, Curve]]
    """Site → layer → RMS over tokens of the output's L2 norm; a site that was not measured is absent."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormInfo:
    """Norms of one scheme on either side of its frontier."""

    scheme: str
    """Label."""
    columns: tuple[NormColumn, ...]
    """The trials at the best, the largest stable and the smallest unstable LR, as far as there are any."""


def thin(steps: NDArray[np.float64], values: NDArray[np.float64], most: int = MAX_POINTS) -> Curve:
    """The finite points, at most ``most``: of each stretch the lowest and the highest, so that no spike is
    lost.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) > most:
        bounds = np.linspace(0, len(steps), most // 2 + 1).astype(int)
        stretches = list(pairwise(bounds))
        lowest = [a + int(np.argmin(values[a:b])) for a, b in stretches]
        highest = [a + int(np.argmax(values[a:b])) for a, b in stretches]
        kept = np.unique(lowest + highest)
        steps, values = steps[kept], values[kept]
    return Curve(steps=steps, values=values)


def get_runs_info(section: Section, steps: Read, quantity: str) -> RunsInfo:
    """One column of the step records of every trial, such as ``loss`` (nats) or ``logit_max``."""
    panels = []
    for scheme in section.schemes:
        own = section.trials[section.trials["scheme"] == scheme].sort_values(["lr", "seed"])
        runs = []
        for row in own.to_dict("records"):
            table = steps(row["trial"])
            curve = thin(table["step"].to_numpy(np.float64), table[quantity].to_numpy(np.float64))
            if len(curve.steps):
                runs.append(Run(lr=row["lr"], seed=row["seed"], outcome=row["outcome"], curve=curve))
        if runs:
            panels.append(RunPanel(scheme=scheme, runs=tuple(runs)))
    return RunsInfo(panels=tuple(panels), lrs=section.lrs)


def get_norm_info(section: Section, layers: Read, scheme: str) -> NormInfo:
    """Norms of one scheme at up to three LRs, each of the lowest seed whose outcome is the LR's."""
    own = section.trials[section.trials["scheme"] == scheme].sort_values("seed")
    row = section.frontier[section.frontier["scheme"] == scheme].iloc[0]
    names: dict[float, list[str]] = {}
    for name, lr in (
        ("best", row["best_lr"]),
        ("largest stable", row["max_stable_lr"]),
        ("smallest unstable", row["min_unstable_lr"]),
    ):
        if np.isfinite(lr):
            names.setdefault(float(lr), []).append(name)
    columns = []
    for lr, named in names.items():
        at = own[own["lr"] == lr]
        if at.empty:
            continue
        typical = at[at["unstable"] == ("smallest unstable" in named)]
        trial = (at if typical.empty else typical).iloc[0]
        curves = _norms(layers(str(trial["trial"])))
        if curves:
            title = f"{' and '.join(named)} LR: {format_lr(lr)}"
            columns.append(NormColumn(title=title, lr=lr, seed=int(trial["seed"]), curves=curves))
    return NormInfo(scheme=scheme, columns=tuple(columns))


def _norms(layers: pd.DataFrame) -> dict[str, dict[int, Curve]]:
    chosen = layers[(layers["stat"] == "l2_rms") & layers["site"].isin(NORM_SITES)]
    curves: dict[str, dict[int, Curve]] = {}
    for (site, layer), part in chosen.groupby(["site", "layer"], observed=True):
        part = part.sort_values("step")
        curve = thin(part["step"].to_numpy(np.float64), part["value"].to_numpy(np.float64), MAX_POINTS // 5)
        if len(curve.steps):
            curves.setdefault(str(site), {})[int(str(layer))] = curve
    return curves

"""What the figure of one trial against its siblings shows, as a record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lrsweep.analysis import Band, Comparison, Signal
from lrsweep.report.palette import in_order
from lrsweep.report.sibling_tables import signal_of

MOST_SIGNALS = 5
"""Signals shown beside the loss."""
_LEAST_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeadPanel:
    """One signal; all curves [steps], NaN where there is no finite value."""

    signal: Signal
    """What it is."""
    exit_step: int | None
    """Where it left the band; None if it did not."""
    trial: NDArray[np.float64]
    """The trial's own curve; NaN after its end."""
    low: NDArray[np.float64]
    """Lowest of the siblings at each step."""
    high: NDArray[np.float64]
    """Highest of the siblings at each step."""
    limit: NDArray[np.float64]
    """Edge and margin: what has to be passed to leave."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeadInfo:
    """The loss, and the signals that left first."""

    steps: NDArray[np.int64]
    """[steps], up to a while after the last of the exits shown."""
    panels: tuple[LeadPanel, ...]
    """The loss first."""
    onset: int | None
    """Step of the trial's own verdict."""


def choose_trial(exits: pd.DataFrame) -> str | None:
    """The trial whose figure tells most: of the first scheme in the palette's order, the lowest LR and seed."""
    if exits.empty:
        return None
    own = exits[exits["scheme"] == in_order(exits["scheme"])[0]]
    return str(own.sort_values(["lr", "seed"]).iloc[0]["trial"])


def get_lead_info(comparison: Comparison, band: Band) -> LeadInfo:
    """The loss and the first :data:`MOST_SIGNALS` that left ``band``, one of each site and layer.

    The steps end at twice the last of these exits and the onset, at :data:`_LEAST_STEPS` at least.
    """
    trial, siblings, onset = comparison.trial, comparison.siblings, comparison.onset
    left = {signal_of(row): int(row["step"]) for row in comparison.exits.to_dict("records")}
    loss = Signal("loss")
    chosen = {(signal.site, signal.layer): signal for signal in reversed(left) if signal != loss}
    shown = [loss, *sorted(chosen.values(), key=list(left).index)[:MOST_SIGNALS]]
    told = [left[signal] for signal in shown if signal in left] + ([] if onset is None else [onset])
    grid = siblings[0].steps
    end = int(np.searchsorted(grid, max(2 * max(told, default=int(grid[-1])), _LEAST_STEPS), side="right"))

    panels = []
    for signal in shown:
        s = trial.signals.index(signal)
        beside = np.stack([sibling.logs[:end, s] for sibling in siblings])
        own = np.full(min(end, len(grid)), np.nan)
        own[: len(trial.steps)] = trial.logs[:end, s]
        finite = np.isfinite(beside)
        panels.append(
            LeadPanel(
                signal=signal,
                exit_step=left.get(signal),
                trial=_shown(own, signal),
                low=_shown(np.where(finite, beside, math.inf).min(axis=0), signal),
                high=_shown(np.where(finite, beside, -math.inf).max(axis=0), signal),
                limit=_shown(band.edge[:end, s] + band.margin[s], signal),
            )
        )
    return LeadInfo(steps=grid[:end], panels=tuple(panels), onset=onset)


def _shown(logs: NDArray[np.float64], signal: Signal) -> NDArray[np.float64]:
    """In the unit of the record."""
    values = logs.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values if signal.in_nats else np.exp(values)

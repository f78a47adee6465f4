"""Everything that was measured in a trial, as one matrix of logarithms: steps by signals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

WHOLE_MODEL = ("loss", "log_z", "grad_norm", "update_norm")
"""Signals of the step records; those of the layer records have a layer, a site and a stat."""


class Signal(NamedTuple):
    """What one column is."""

    site: str
    """``qkv``, ``proj``, ``fc1``, ``fc2``, ``attn``, or one of :data:`WHOLE_MODEL`."""
    layer: int | None = None
    """From 0; None for a signal of the whole model."""
    stat: str = ""
    """``l2_rms``, ``l2_max``, ``logit_max``, …; empty for a signal of the whole model."""

    @property
    def name(self) -> str:
        """``layer 0 attn logit_rms``; ``update_norm/lr``."""
        if self.layer is None:
            return "update_norm/lr" if self.site == "update_norm" else self.site
        return f"layer {self.layer} {self.site} {self.stat}"

    @property
    def in_nats(self) -> bool:
        """Whether the record itself is a logarithm: ``loss`` and ``log_z``."""
        return self.site in ("loss", "log_z")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One trial."""

    steps: NDArray[np.int64]
    """[steps], ascending."""
    signals: tuple[Signal, ...]
    """The columns: first :data:`WHOLE_MODEL`, then the layers'."""
    logs: NDArray[np.float32]
    """[steps, signals]; +inf where the record is not finite, −inf where it is 0, negative or not measured yet."""


def trace(steps: pd.DataFrame, layers: pd.DataFrame) -> Trace:
    """The signals of a trial from its two records, as :class:`lrsweep.store.ResultStore` reads them.

    The natural logarithm of each, except that ``loss`` and ``log_z`` are logarithms as they stand, and that the update
    norm is divided by the learning rate of its step, to which it is proportional whatever the model does. What was
    measured every few steps only keeps its last value in between.
    """
    step = steps["step"].to_numpy(np.int64)
    whole = np.column_stack([steps[name].to_numpy(np.float64) for name in WHOLE_MODEL])
    lr = steps["lr"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.column_stack([whole[:, :2], _log(whole[:, 2]), _log(whole[:, 3]) - np.log(lr)])  # 0/0 is not measured
    logs[~np.isfinite(whole)] = np.inf

    site, stat = layers["site"].astype("category").cat, layers["stat"].astype("category").cat
    depth = int(layers["layer"].max()) + 1 if len(layers) else 0
    shape = (len(site.categories), depth, len(stat.categories))
    code = np.ravel_multi_index((site.codes, layers["layer"], stat.codes), shape) if depth else np.empty(0, np.int64)
    used = np.flatnonzero(np.bincount(code))
    sites, stats = list(site.categories), list(stat.categories)
    places = zip(*(axis.tolist() for axis in np.unravel_index(used, shape)), strict=True)
    signals = [Signal(sites[i], layer, stats[k]) for i, layer, k in places]
    by_layer = np.full((len(step), len(signals)), np.nan)
    value = layers["value"].to_numpy(np.float64)
    at = np.searchsorted(step, layers["step"].to_numpy(np.int64)), np.searchsorted(used, code)
    by_layer[at] = np.where(np.isfinite(value), _log(value), np.inf)
    logs = _carried(np.column_stack([logs, by_layer]))
    return Trace(steps=step, signals=(*map(Signal, WHOLE_MODEL), *signals), logs=logs.astype(np.float32))


def _carried(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last value for what was not measured (NaN); −inf before the first."""
    missing = np.isnan(logs)
    if missing.any():
        last = np.maximum.accumulate(np.where(missing, 0, np.arange(len(logs))[:, None]), axis=0)
        logs = np.take_along_axis(logs, last, axis=0)
    return np.where(np.isnan(logs), -np.inf, logs)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """−inf at 0 and below."""
    return np.log(values, out=np.full_like(values, -np.inf), where=values > 0)

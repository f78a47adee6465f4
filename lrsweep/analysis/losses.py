"""Statistics of one scheme, body and size over LRs and seeds. Errors are left out of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class BestPoint:
    """The lowest point of the seed-mean curve of final losses."""

    loss: float
    """Mean over seeds of the held-out final loss there, in nats per token; NaN if there is no such LR."""
    lr: float
    """Its learning rate (of equals the lowest); NaN if there is none."""


def final_losses(trials: pd.DataFrame) -> pd.Series[float]:
    """``loss_final`` in nats; NaN unless it is finite and the own verdict ``stable`` or ``stalled``."""
    usable = trials["verdict"].isin(("stable", "stalled")) & np.isfinite(trials["loss_final"])
    return trials["loss_final"].where(usable)


def seed_mean_curve(trials: pd.DataFrame) -> pd.Series[float]:
    """Mean final loss over seeds by LR, ascending; NaN at an LR where a seed has no usable final loss."""
    ran = trials[trials["verdict"] != "error"]
    by_lr = final_losses(ran).groupby(ran["lr"])
    return by_lr.agg(lambda losses: losses.mean(skipna=False))


def best_point(trials: pd.DataFrame) -> BestPoint:
    """Lowest seed-mean final loss, among the LRs at which every seed came to one."""
    curve = seed_mean_curve(trials).dropna()
    if curve.empty:
        return BestPoint(loss=np.nan, lr=np.nan)
    at = int(curve.to_numpy().argmin())
    return BestPoint(loss=float(curve.to_numpy()[at]), lr=float(curve.index.to_numpy()[at]))


def lr_sensitivity(trials: pd.DataFrame) -> float:
    """LR sensitivity in nats: how much loss it costs to miss the best LR (Wortsman et al., arXiv 2309.14322).

    For each seed the mean over its LRs of min(ℓ, ℓ0) − min ℓ, where ℓ is the final and ℓ0 the initial
    held-out loss, and ℓ0 stands in for a final loss that is not finite; then the mean over seeds. The sum is
    divided by the number of LRs n (some published values divide by n − 1). Two schemes can be compared when
    they were run on the same LRs.

    A seed without any finite final loss has no minimum and is left out; NaN if that leaves none.
    """
    ran = trials[trials["verdict"] != "error"]
    per_seed = []
    for _, seed in ran.groupby("seed"):
        initial = seed["loss_init"].to_numpy(dtype=float)
        final = seed["loss_final"].to_numpy(dtype=float)
        if np.isfinite(final).any():
            capped = np.where(np.isfinite(final), np.minimum(final, initial), initial)
            per_seed.append(float(np.mean(capped - capped.min())))
    return float(np.mean(per_seed)) if per_seed else np.nan


def spikes_per_1k(trials: pd.DataFrame) -> float:
    """Loss spikes in 1,000 optimizer steps over all trials, the unstable ones too; NaN without a step."""
    ran = trials[trials["verdict"] != "error"]
    steps = int(ran["steps"].sum())
    return 1000 * int(ran["spikes"].sum()) / steps if steps else np.nan

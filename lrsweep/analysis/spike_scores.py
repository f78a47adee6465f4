"""Spikes of a sweep's trials against the batches that they share, and OLMo's spike score beside them.

All trials of one size see the same batches in the same order, so a hard batch raises the loss of each at the same
step, and an instability that of one. What a trial's loss is above the middle of its siblings' keeps the second and
loses the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lrsweep.detect import DetectorConfig
from lrsweep.detect.spikes import Spikes

MIN_SIBLINGS = 2
"""Stable siblings below which there is no reference: the median of one would be that one's own spikes."""

_QUIET = 1e-10
"""Standard deviation from which OLMo's rules judge a value, as in their code."""
_BATCH_KEYS = ["body", "size"]
_LR_KEYS = ["scheme", "body", "size", "lr"]
SPIKE_COLUMNS = (
    "scheme",
    "body",
    "size",
    "lr",
    "seed",
    "outcome",
    "steps",
    "siblings",
    "spikes",
    "same_batch_spikes",
    "spikes_per_1k",
    "same_batch_spikes_per_1k",
    "olmo_paper",
    "olmo_code",
    "trial",
)


def spike_scores(judged: pd.DataFrame, steps: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """A row a trial with :data:`SPIKE_COLUMNS`, those of one body and size together.

    ``spikes`` is the trial's own count, by its loss ℓ and gradient norm g alone. For ``same_batch_spikes`` the same
    rule (:class:`lrsweep.detect.spikes.Spikes`, silent until the peak of the warm-up and for 30 steps at least) reads
    instead, at every step t,

        r_t = ℓ_t − median_j ℓ_{j,t}   and   g_t / median_j g_{j,t}

    over the siblings j: the *other* trials of the same body and size whose outcome is ``stable``, of every scheme.
    The trial itself is left out, so that its spike is not halved where siblings are few; unstable ones are, so that
    theirs do not enter. All schemes and not the trial's own, because what makes a batch hard is in its text: in the
    10m reference sweep r_t of a stable trial has a noise of 0.011 to 0.016 nats either way, ℓ_t of 0.10, and a scheme
    with no stable learning rate has a reference too. A dip of r_t (a spike of the siblings) is no spike.

    ``siblings`` counts them; below :data:`MIN_SIBLINGS` the same-batch columns are NaN. A step at which the trial or
    every sibling has a loss that is not finite is passed over, as the detector does. ``olmo_paper`` and ``olmo_code``
    are OLMo's spike score (%) as its paper and its code define it: see :func:`olmo_paper_score`,
    :func:`olmo_code_score`.

    Args:
        judged: trials with their ``outcome`` from :func:`lrsweep.analysis.judge`, errors left out.
        steps: a trial's id → its table with ``step, lr, loss, grad_norm``.
    """
    rows = []
    for _, group in judged.groupby(_BATCH_KEYS, sort=False):
        records = {trial: steps(trial).set_index("step") for trial in group["trial"]}
        losses, grad_norms = (_finite(records, name) for name in ("loss", "grad_norm"))
        stable = set(group.loc[group["outcome"] == "stable", "trial"])
        usual_loss, usual_norm = (OthersMedian(table, sorted(stable)) for table in (losses, grad_norms))
        for row in group.to_dict("records"):
            trial = row["trial"]
            siblings, same_batch = len(stable - {trial}), np.nan
            if siblings >= MIN_SIBLINGS:
                residual = losses[trial] - usual_loss.of(trial)
                ratio = grad_norms[trial] / usual_norm.of(trial)
                same_batch = _count(residual, ratio, grace=_warmup(records[trial]["lr"]))
            loss, grad_norm = (records[trial][name].to_numpy(np.float64) for name in ("loss", "grad_norm"))
            rows.append(
                {
                    **row,
                    "siblings": siblings,
                    "same_batch_spikes": same_batch,
                    "spikes_per_1k": 1000 * row["spikes"] / row["steps"],
                    "same_batch_spikes_per_1k": 1000 * same_batch / row["steps"],
                    "olmo_paper": olmo_paper_score(loss),
                    "olmo_code": olmo_code_score(loss, grad_norm),
                }
            )
    return pd.DataFrame(rows, columns=list(SPIKE_COLUMNS))


def spikes_by_lr(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of each scheme, body, size and LR: ``…, lr, trials, spikes_per_1k, same_batch_spikes_per_1k, olmo_paper,
    olmo_code``.

    The two rates are spikes over steps of all the trials, as in the frontier; the OLMo scores means. Trials where one
    is NaN are left out of it; NaN if that leaves none.
    """
    rows = [
        (
            *key,
            len(group),
            rate_per_1k(group, "spikes"),
            rate_per_1k(group, "same_batch_spikes"),
            group["olmo_paper"].mean(),
            group["olmo_code"].mean(),
        )
        for key, group in scores.groupby(_LR_KEYS, sort=True)
    ]
    names = ["trials", "spikes_per_1k", "same_batch_spikes_per_1k", "olmo_paper", "olmo_code"]
    return pd.DataFrame(rows, columns=[*_LR_KEYS, *names])


def rate_per_1k(scores: pd.DataFrame, column: str) -> float:
    """The counts of ``column`` over 1,000 steps of all trials that have one; NaN without a step."""
    counted = scores[scores[column].notna()]
    steps = int(counted["steps"].sum())
    return 1000 * float(counted[column].sum()) / steps if steps else np.nan


def olmo_paper_score(values: NDArray[np.float64]) -> float:
    """Percentage of ``values`` at least 7 standard deviations from the mean of the 1,000 before them (OLMo 2, arXiv
    2501.00656), on either side.

    A value with fewer before it cannot count, but is one of the values; non-finite ones are none. NaN where no value
    has 1,000 before it: in runs of up to 1,000 steps, as most proxies are.
    """
    values = values[np.isfinite(values)]
    above, deviation = _against_window(values, 1000)
    return _percentage((np.abs(above) >= 7 * deviation) & (deviation > _QUIET), n_judged=len(values) - 1000)


def olmo_code_score(losses: NDArray[np.float64], grad_norms: NDArray[np.float64]) -> float:
    """Percentage of steps whose loss or gradient norm lies more than 6 standard deviations above the mean of the 128
    before it (``StabilityMonitorCallback`` of OLMo-core, whose default they are).

    The first 128 steps cannot count, but are steps; where either is not finite, the step is none. NaN where no step
    has 128 before it.
    """
    finite = np.isfinite(losses) & np.isfinite(grad_norms)
    (loss_above, loss_deviation), (norm_above, norm_deviation) = (
        _against_window(values[finite], 128) for values in (losses, grad_norms)
    )
    high = (loss_above > 6 * loss_deviation) & (loss_deviation > _QUIET)
    high |= (norm_above > 6 * norm_deviation) & (norm_deviation > _QUIET)
    return _percentage(high, n_judged=len(high) - 128)


def _against_window(values: NDArray[np.float64], window: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each value less the mean of the ``window`` before it, and their standard deviation; NaN for the first."""
    before = pd.Series(values).rolling(window)
    mean, deviation = before.mean().shift(1).to_numpy(), before.std(ddof=0).shift(1).to_numpy()
    return values - mean, deviation


def _percentage(high: NDArray[np.bool_], *, n_judged: int) -> float:
    return 100 * float(high.mean()) if n_judged > 0 else np.nan


def _finite(records: dict[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """One quantity by step and trial; NaN where it is not finite or the trial has ended."""
    table = pd.DataFrame({trial: record[name].astype(np.float64) for trial, record in records.items()})
    return table.where(np.isfinite(table))


class OthersMedian:
    """Median at each step of the finite values of the stable trials, without one of them."""

    def __init__(self, table: pd.DataFrame, stable: list[str]) -> None:
        self._table, self._stable = table, stable
        self._sorted = np.sort(table[stable].to_numpy(), axis=1)  # NaN last
        self._n = np.isfinite(self._sorted).sum(axis=1)

    def of(self, trial: str) -> NDArray[np.float64]:
        """[steps]; NaN where no other has a value, or the trial itself has none."""
        own = self._table[trial].to_numpy()
        n, rank = self._n, np.full(len(own), len(self._stable))
        if trial in self._stable:
            n, rank = n - 1, (self._sorted < own[:, None]).sum(axis=1)
        rows = np.arange(len(own))
        middle = [np.maximum(k, 0) for k in ((n - 1) // 2, n // 2)]
        lower, upper = (self._sorted[rows, np.minimum(k + (k >= rank), self._sorted.shape[1] - 1)] for k in middle)
        return np.where((n > 0) & np.isfinite(own), (lower + upper) / 2, np.nan)


def _warmup(lr: pd.Series[float]) -> int:
    """The step at which the learning rate first is at its highest."""
    return int(lr.index.to_numpy()[lr.to_numpy().argmax()])


def _count(residual: pd.Series[float], grad_ratio: pd.Series[float], *, grace: int) -> int:
    """Spikes that the detector's rule finds."""
    config = DetectorConfig()
    spikes = Spikes(DetectorConfig(grace_steps=max(grace, config.grace_steps)))
    for step, loss, ratio in zip(residual.index.tolist(), residual.tolist(), grad_ratio.tolist(), strict=True):
        if math.isfinite(loss):
            spikes.update(step, loss, ratio)
    return sum(event.kind == "spike" for event in spikes.events)

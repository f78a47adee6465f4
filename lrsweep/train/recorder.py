"""Collects the statistics of a trial and turns them into the columns of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lrsweep.model import ProbeLevel
from lrsweep.train.step import SCALARS, Interval

SMOOTHING = 20
"""Steps of the moving average whose lowest value is ``loss_best``."""


def lowest_smoothed(losses: NDArray[np.floating[Any]]) -> float:
    """Lowest mean of up to :data:`SMOOTHING` consecutive losses, in nats.

    Windows with a non-finite loss do not count; NaN if none is left.
    """
    width = min(SMOOTHING, len(losses))
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.lib.stride_tricks.sliding_window_view(losses.astype(np.float64), width).mean(axis=1)
    means = means[np.isfinite(means)]
    return float(means.min()) if len(means) else float("nan")


class Recorder:
    """Statistics of one trial, interval by interval.

    Args:
        stat_names: (site, stat) of each column of a layer's statistics.
        tokens_per_step: training tokens of one step.
    """

    def __init__(self, stat_names: Sequence[tuple[str, str]], *, tokens_per_step: int) -> None:
        self._stat_names = list(stat_names)
        self._tokens_per_step = tokens_per_step
        self._steps: list[int] = []
        self._lrs: list[float] = []
        self._logits_measured: list[bool] = []
        self._intervals: list[Interval] = []

    def add(self, steps: Sequence[int], lrs: Sequence[float], probes: Sequence[ProbeLevel], interval: Interval) -> None:
        """Take in the statistics of consecutive steps, of which ``probes`` tells what was measured."""
        self._steps.extend(steps)
        self._lrs.extend(lrs)
        self._logits_measured.extend(probe == ProbeLevel.ALL for probe in probes)
        self._intervals.append(interval)

    def _scalars(self) -> NDArray[np.float32]:
        return np.concatenate([i.scalars_RxS for i in self._intervals])

    def _layers(self) -> NDArray[np.float32]:
        return np.concatenate([i.layers_RxNxS for i in self._intervals])

    def losses(self) -> NDArray[np.float32]:
        """Training loss of every step, nats."""
        return self._scalars()[:, SCALARS.index("loss")]

    def _logit_maxima(self) -> NDArray[np.float32]:
        """Largest logit over layers at each step; NaN where not measured or not a number."""
        values: NDArray[np.float32] = self._layers()[:, :, self._stat_names.index(("attn", "logit_max"))].max(axis=1)
        return values

    def logit_max(self) -> float:
        """Largest attention logit over steps and layers, before a cap; NaN if no step has a number."""
        values = self._logit_maxima()
        values = values[~np.isnan(values)]
        return float(values.max()) if len(values) else float("nan")

    def columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Columns for ``ResultStore.write_trial``: per step, and per step and layer in long form."""
        steps = np.array(self._steps, dtype=np.int32)
        scalars, layers_RxNxS = self._scalars(), self._layers()
        measured = np.array(self._logits_measured)
        wide: dict[str, Any] = {
            "step": steps,
            "tokens": steps.astype(np.int64) * self._tokens_per_step,
            "lr": np.array(self._lrs),
        }
        for i, name in enumerate(SCALARS):
            wide[name] = scalars[:, i].astype(bool) if name == "skipped" else scalars[:, i]
        wide["logit_max"] = pa.array(self._logit_maxima(), mask=~measured)

        n_steps, n_layers, n_stats = layers_RxNxS.shape
        keep_RxNxS = np.ones(layers_RxNxS.shape, dtype=bool)
        keep_RxNxS[:, :, [site == "attn" for site, _ in self._stat_names]] = measured[:, None, None]
        keep = keep_RxNxS.ravel()
        sites, stats = (np.array([pair[i] for pair in self._stat_names] * (n_steps * n_layers))[keep] for i in range(2))
        long = {
            "step": np.repeat(steps, n_layers * n_stats)[keep],
            "layer": np.tile(np.repeat(np.arange(n_layers, dtype=np.int16), n_stats), n_steps)[keep],
            "site": pa.array(sites).dictionary_encode(),
            "stat": pa.array(stats).dictionary_encode(),
            "value": layers_RxNxS.ravel()[keep],
        }
        return wide, long

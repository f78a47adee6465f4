"""LR50: the learning rate with even odds of instability, by a dose-response fit over log LR.

The model is a probit, P(unstable | lr) = Φ((ln lr − μ)/σ), the trials independent of one another. Its
posterior is summed on a grid: deterministic, with no starting point and no iteration that could fail, and as
honest for one seed (where the data hold a bracket and nothing else) as for many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_CELLS = 24
_SIGMAS = 25
_LONE_STEP = math.log(10) / 2

_upper_tail = np.frompyfunc(lambda z: max(0.5 * math.erfc(z / math.sqrt(2)), 1e-300), 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LR50:
    """Posterior of exp(μ). Above the grid: median and ``hi`` NaN; below it: median and ``lo`` NaN."""

    median: float
    """Posterior median."""
    lo: float
    """2.5% quantile; the largest tested LR if all outcomes are stable."""
    hi: float
    """97.5% quantile; the smallest tested LR if all outcomes are unstable."""


def fit_lr50(lr: NDArray[np.float64], unstable: NDArray[np.bool_]) -> LR50:
    """LR50 with its 95% interval from the outcomes of trials, one entry a trial, in any order.

    Prior: μ flat in ln lr over the tested range, widened on either side by the grid's outermost step (half a
    decade if only one LR was tested); σ log-uniform from a tenth of the grid's smallest step, which is a
    sharp edge as far as the grid can tell, to twice its largest, which is no edge. On an even grid a clean
    edge gives an interval of 2.5 steps from one seed, 1.4 from two and 1.0 from three: one seed cannot tell
    how sharp the edge is. Where the seeds of a scheme each have a sharp edge of their own, far apart, trials
    are not independent and the interval is too narrow.

    No trials: all three NaN. All stable: ``lo`` is the largest tested LR and the rest NaN, because the
    frontier lies above the grid; all unstable: ``hi`` is the smallest tested LR and the rest NaN.
    """
    if len(lr) == 0:
        return LR50(median=np.nan, lo=np.nan, hi=np.nan)
    if not unstable.any():
        return LR50(median=np.nan, lo=float(lr.max()), hi=np.nan)
    if unstable.all():
        return LR50(median=np.nan, lo=np.nan, hi=float(lr.min()))

    tested, at = np.unique(np.log(lr), return_inverse=True)
    n_unstable = np.bincount(at, weights=unstable)
    n_stable = np.bincount(at) - n_unstable
    table = _probit_table(tuple(tested.tolist()))
    log_likelihood = table.log_p_stable @ n_stable + table.log_p_unstable @ n_unstable
    mass = np.exp(log_likelihood - log_likelihood.max()).sum(axis=1) * np.diff(table.mu_edges)
    cdf = np.concatenate(([0.0], np.cumsum(mass) / mass.sum()))
    lo, median, hi = np.exp(np.interp([0.025, 0.5, 0.975], cdf, table.mu_edges))
    return LR50(median=float(median), lo=float(lo), hi=float(hi))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProbitTable:
    mu_edges: NDArray[np.float64]
    """Edges of the cells of μ, in ln lr."""
    log_p_stable: NDArray[np.float64]
    """ln P(stable), μ × σ × LR."""
    log_p_unstable: NDArray[np.float64]
    """ln P(unstable), μ × σ × LR."""


@lru_cache(maxsize=16)
def _probit_table(tested: tuple[float, ...]) -> _ProbitTable:
    """What depends on the tested ln lr alone; the schemes of a sweep mostly share their grid."""
    grid = np.array(tested)
    steps = np.diff(grid) if len(grid) > 1 else np.array([_LONE_STEP])
    knots = np.concatenate(([grid[0] - steps[0]], grid, [grid[-1] + steps[-1]]))
    # As many cells between any two neighbouring LRs: a refined part of the grid is resolved as it was tested.
    edges = np.interp(np.arange(_CELLS * (len(knots) - 1) + 1) / _CELLS, np.arange(len(knots)), knots)
    mu = (edges[1:] + edges[:-1]) / 2
    sigma = np.geomspace(steps.min() / 10, 2 * steps.max(), _SIGMAS)
    z = (grid - mu[:, None, None]) / sigma[:, None]
    return _ProbitTable(
        mu_edges=edges,
        log_p_stable=np.log(_upper_tail(z).astype(float)),
        log_p_unstable=np.log(_upper_tail(-z).astype(float)),
    )

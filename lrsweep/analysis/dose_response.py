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


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What the outcomes say of μ, where some are stable and some unstable."""

    mu_edges: NDArray[np.float64]
    """Edges of the cells of μ, in ln lr, ascending."""
    cdf: NDArray[np.float64]
    """Probability that μ lies below each edge, 0 to 1."""

    def quantile(self, p: float) -> float:
        """The learning rate below which LR50 lies with probability ``p``."""
        return math.exp(float(np.interp(p, self.cdf, self.mu_edges)))

    def lr50(self) -> LR50:
        """Median and 95% interval."""
        return LR50(median=self.quantile(0.5), lo=self.quantile(0.025), hi=self.quantile(0.975))


def fit_lr50(lr: NDArray[np.float64], unstable: NDArray[np.bool_]) -> LR50:
    """LR50 with its 95% interval from the outcomes of trials, one entry a trial, in any order.

    By :func:`posterior`. No trials: all three NaN. All stable: ``lo`` is the largest tested LR and the rest NaN,
    because the frontier lies above the grid; all unstable: ``hi`` is the smallest tested LR and the rest NaN.
    """
    if len(lr) == 0:
        return LR50(median=np.nan, lo=np.nan, hi=np.nan)
    known = posterior(lr, unstable)
    if known is not None:
        return known.lr50()
    if unstable.all():
        return LR50(median=np.nan, lo=np.nan, hi=float(lr.min()))
    return LR50(median=np.nan, lo=float(lr.max()), hi=np.nan)


def posterior(lr: NDArray[np.float64], unstable: NDArray[np.bool_]) -> Posterior | None:
    """LR50's posterior; None where all outcomes are alike, which bound it on one side only.

    Prior: μ flat in ln lr over the tested range, widened on either side by the grid's outermost step (half a
    decade if only one LR was tested); σ log-uniform from a tenth of the grid's smallest step, which is a
    sharp edge as far as the grid can tell, to twice its largest, which is no edge. On an even grid a clean
    edge gives an interval of 2.5 steps from one seed, 1.4 from two and 1.0 from three: one seed cannot tell
    how sharp the edge is. Where the seeds of a scheme each have a sharp edge of their own, far apart, trials
    are not independent and the interval is too narrow.
    """
    if unstable.all() or not unstable.any():
        return None
    tested, at = np.unique(np.log(lr), return_inverse=True)
    n_unstable = np.bincount(at, weights=unstable)
    n_stable = np.bincount(at) - n_unstable
    table = _probit_table(tuple(tested.tolist()))
    log_likelihood = table.log_p_stable @ n_stable + table.log_p_unstable @ n_unstable
    mass = np.exp(log_likelihood - log_likelihood.max()).sum(axis=1) * np.diff(table.mu_edges)
    cdf = np.concatenate(([0.0], np.cumsum(mass) / mass.sum()))
    return Posterior(mu_edges=table.mu_edges, cdf=cdf)


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

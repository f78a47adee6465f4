"""Which trial tells most about one scheme's frontier: a grid trained only where its edge and its best loss lie.

The frontier of a grid needs few of its trials: those around the best loss, since ``degraded`` is judged against it, and
those around the edge. Where the seeds' edges are known on the grid, further trials go between its LRs, each at the
median of what is known of LR50: bisection, for answers that may contradict each other (probabilistic bisection,
Horstein 1963; Waeber, Frazier & Henderson 2013).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from lrsweep.analysis.bracket import walk
from lrsweep.analysis.dose_response import LR50, posterior
from lrsweep.analysis.grid import round_lr
from lrsweep.analysis.losses import final_losses
from lrsweep.analysis.outcomes import Epsilon, judge, telling

_STRIDE = 3
"""Of the grid's LRs the first seed tries every third, from the lowest up to the first unstable one."""
_LATTICE_STEPS = 5
"""Steps of the lattice in ``factor``, twice as many as LR50's interval spans where one seed has a clean edge."""

Point = tuple[float, int]
"""Learning rate and seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a scheme's frontier is searched with."""

    grid: tuple[float, ...]
    """Learning rates that a whole sweep would train, ascending."""
    seeds: int
    """Seeds 0 to ``seeds`` − 1."""
    factor: float
    """The search ends where ``hi``/``lo`` of LR50's 95% interval is at most this, above 1."""

    @property
    def budget(self) -> int:
        """Trials at most: those of the whole grid."""
        return len(self.grid) * self.seeds

    def lattice(self) -> tuple[float, ...]:
        """The grid, and between its LRs as many geometric ones, of three digits, as ``factor`` asks for; ascending."""
        fine = set(self.grid)
        for a, b in pairwise(self.grid):
            n = math.ceil(_LATTICE_STEPS * math.log(b / a) / math.log(self.factor))
            fine |= {lr for lr in map(round_lr, np.geomspace(a, b, n + 1)[1:-1]) if a < lr < b}
        return tuple(sorted(fine))

    def points(self) -> list[Point]:
        """Every trial that may be asked for: the lattice's LRs, each from all seeds."""
        return [(lr, seed) for lr in self.lattice() for seed in range(self.seeds)]

    def reached(self, lr50: LR50) -> bool:
        """Whether the interval is as narrow as was asked for; False where it has an open end."""
        return lr50.hi <= self.factor * lr50.lo


def next_point(search: Search, trials: pd.DataFrame, epsilon: Epsilon, pending: Collection[Point] = ()) -> Point | None:
    """The trial to run next; None if a pending one has to end first, or if none is pending, that the search is over.

    First seed 0 finds, on the grid, its bracket (two neighbours) and its best loss (with both neighbours tested); then
    each other seed its bracket, from the first one's on, and one trial at the first one's best LR. Then LRs of the
    lattice inside LR50's interval, nearest its median first (while others are pending, other quantiles), by the seed
    that has had the fewest there.

    It is over when the interval is narrow enough or the budget used up, when the frontier of seed 0 lies outside the
    grid, or when all inside the interval has been run.

    Args:
        search: grid, seeds and aim.
        trials: those of one scheme, body and size that have ended, with the columns of
            :data:`lrsweep.store.TRIAL_COLUMNS`; errors count as run.
        epsilon: ε in nats.
        pending: trials that are running.
    """
    run = set(zip(trials["lr"].tolist(), trials["seed"].tolist(), strict=True)) | set(pending)
    if len(run) >= search.budget:
        return None
    judged = judge(trials, epsilon)
    on_grid = judged[judged["lr"].isin(search.grid)]
    first = on_grid[on_grid["seed"] == 0]
    if wanted := _locate(search.grid, first, search.grid[::_STRIDE]) or _around_best(search.grid, first):
        return next(((lr, 0) for lr in wanted if (lr, 0) not in run), None)
    edge = walk(first)
    if math.isnan(edge.max_stable_lr) or math.isnan(edge.min_unstable_lr):
        return None
    waits = False
    for seed in range(1, search.seeds):
        start = (_best_lr(first), edge.max_stable_lr, edge.min_unstable_lr)
        wanted = _locate(search.grid, on_grid[on_grid["seed"] == seed], start)
        for lr in wanted:
            if (lr, seed) not in run:
                return lr, seed
        waits |= bool(wanted)
    return None if waits else _refine(search, judged, run, len(pending))


def _locate(grid: Sequence[float], own: pd.DataFrame, start: Sequence[float]) -> list[float]:
    """LRs of the grid that one seed has yet to finish before its bracket's ends are neighbours on it.

    ``start`` comes first, but for what lies above an unstable LR.
    """
    tested, bracket = set(own["lr"]), walk(own)
    low, high = bracket.max_stable_lr, bracket.min_unstable_lr
    if todo := [lr for lr in sorted({*start}) if lr not in tested and not lr > high]:
        return todo
    untested = [lr for lr in grid if lr not in tested]
    if math.isnan(high):
        return [lr for lr in untested if lr > max(tested)][:1]
    if math.isnan(low):
        return [lr for lr in untested if lr < high][-1:]
    between = [lr for lr in untested if low < lr < high]
    return between[len(between) // 2 :][:1]


def _best_lr(own: pd.DataFrame) -> float:
    """The LR of one seed's lowest final loss, of equals the lowest; NaN without any."""
    losses = final_losses(own)
    return float(own.loc[losses == losses.min(), "lr"].min())


def _around_best(grid: Sequence[float], own: pd.DataFrame) -> list[float]:
    """The neighbours of one seed's best LR that it has yet to finish."""
    best, tested = _best_lr(own), set(own["lr"])
    return [b for a, b in (*pairwise(grid), *pairwise(grid[::-1])) if a == best and b not in tested]


def _refine(search: Search, judged: pd.DataFrame, run: Collection[Point], n_pending: int) -> Point | None:
    known = posterior(*telling(judged))
    if known is None or search.reached(lr50 := known.lr50()):
        return None
    aim = math.log(known.quantile(_van_der_corput(n_pending + 1)))
    n_there = Counter(seed for lr, seed in run if lr50.lo < lr < lr50.hi)
    points = [point for point in search.points() if lr50.lo < point[0] < lr50.hi and point not in run]
    return min(points, key=lambda p: (abs(math.log(p[0]) - aim), n_there[p[1]], p[1]), default=None)


def _van_der_corput(n: int) -> float:
    """The n-th of 1/2, 1/4, 3/4, 1/8, 5/8, …, each new one far from those before."""
    value, part = 0.0, 0.5
    while n:
        value, part, n = value + part * (n & 1), part / 2, n >> 1
    return value

"""What a sweep's results say: pure functions from the trials table to small tables and records.

Nothing here needs torch or a model: the table of :meth:`lrsweep.store.ResultStore.trials` is all.
"""

from lrsweep.analysis.bracket import Bracket, brackets, walk
from lrsweep.analysis.dose_response import LR50, fit_lr50
from lrsweep.analysis.frontier import FRONTIER_COLUMNS, frontier
from lrsweep.analysis.grid import GridAdvice, outside_grid
from lrsweep.analysis.losses import (
    BestPoint,
    best_point,
    final_losses,
    lr_sensitivity,
    seed_mean_curve,
    spikes_per_1k,
)
from lrsweep.analysis.outcomes import UNSTABLE, Epsilon, epsilon_of, judge
from lrsweep.analysis.tolerance import tolerance, voted_tolerance

__all__ = [
    "FRONTIER_COLUMNS",
    "LR50",
    "UNSTABLE",
    "BestPoint",
    "Bracket",
    "Epsilon",
    "GridAdvice",
    "best_point",
    "brackets",
    "epsilon_of",
    "final_losses",
    "fit_lr50",
    "frontier",
    "judge",
    "lr_sensitivity",
    "outside_grid",
    "seed_mean_curve",
    "spikes_per_1k",
    "tolerance",
    "voted_tolerance",
    "walk",
]

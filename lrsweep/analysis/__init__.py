"""What a sweep's results say: pure functions from the trials table to small tables and records.

Nothing here needs torch or a model: the table of :meth:`lrsweep.store.ResultStore.trials` is all, and for spikes
against the same batch and for lead times the records of single trials.
"""

from lrsweep.analysis.bracket import Bracket, brackets, walk
from lrsweep.analysis.dose_response import LR50, fit_lr50
from lrsweep.analysis.frontier import FRONTIER_COLUMNS, frontier
from lrsweep.analysis.grid import GridAdvice, Where, grid_advice, worth_trying
from lrsweep.analysis.lead_time import (
    Band,
    Comparison,
    LeadTimes,
    compare,
    exits,
    false_alarms,
    lead_summary,
    lead_times,
    make_band,
)
from lrsweep.analysis.losses import (
    BestPoint,
    best_point,
    final_losses,
    lr_sensitivity,
    seed_mean_curve,
    spikes_per_1k,
)
from lrsweep.analysis.outcomes import UNSTABLE, Epsilon, epsilon_of, judge
from lrsweep.analysis.search import Point, Search, next_point
from lrsweep.analysis.signals import Signal, Trace, trace
from lrsweep.analysis.spike_scores import spike_scores, spikes_by_lr
from lrsweep.analysis.tolerance import tolerance, voted_tolerance

__all__ = [
    "FRONTIER_COLUMNS",
    "LR50",
    "UNSTABLE",
    "Band",
    "BestPoint",
    "Bracket",
    "Comparison",
    "Epsilon",
    "GridAdvice",
    "LeadTimes",
    "Point",
    "Search",
    "Signal",
    "Trace",
    "Where",
    "best_point",
    "brackets",
    "compare",
    "epsilon_of",
    "exits",
    "false_alarms",
    "final_losses",
    "fit_lr50",
    "frontier",
    "grid_advice",
    "judge",
    "lead_summary",
    "lead_times",
    "lr_sensitivity",
    "make_band",
    "next_point",
    "seed_mean_curve",
    "spike_scores",
    "spikes_by_lr",
    "spikes_per_1k",
    "tolerance",
    "trace",
    "voted_tolerance",
    "walk",
    "worth_trying",
]

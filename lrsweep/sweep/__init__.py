"""Plan a sweep, execute it on Ray Tune or in this process, keep its record."""

from lrsweep.sweep.plan import Plan, make_plan
from lrsweep.sweep.run import run_sweep

__all__ = ["Plan", "make_plan", "run_sweep"]

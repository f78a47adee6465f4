"""``lrsweep bench``: how fast a step is, what its probes cost, how soon it starts, and the same beside other trainers.

Every model is measured in a process of its own (``python -m lrsweep.bench``), one after the other.
"""

from lrsweep.bench.command import run_bench

__all__ = ["run_bench"]

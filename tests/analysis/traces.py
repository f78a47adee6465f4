"""Made-up traces of a few signals, and a small sweep of them."""

import math

import numpy as np

from lrsweep.analysis import Signal, Trace
from tests.analysis.tables import make_trials

T = 60
LOSS, NORM = Signal("loss"), Signal("fc2", 1, "l2_rms")


def make_trace(*columns, steps=None):
    """A trace of one column a signal: the loss, then others, all as logarithms."""
    logs = np.column_stack([np.broadcast_to(np.asarray(c, float), (steps or T,)) for c in columns])
    signals = (LOSS, NORM, *(Signal("qkv", i, "l2_rms") for i in range(len(columns) - 2)))[: len(columns)]
    return Trace(steps=np.arange(1, len(logs) + 1), signals=signals, logs=logs.astype(np.float32))


def level(low, high, at, until=T + 1):
    """``low``, and ``high`` from step ``at`` (counted from 1) up to ``until``."""
    steps = np.arange(1, T + 1)
    return np.where((steps >= at) & (steps < until), high, low)


FLAT = [make_trace(3.0 + c, c) for c in (0.0, 1.0, 1.5)]  # edge 1.5, margin 0.5: the highest above the second


def sweep():
    """Three stable trials and two unstable ones of ``preln``; two stable ones and an unstable one of ``qknorm``."""
    rows = [{"lr": lr} for lr in (0.1, 0.2, 0.3)]
    rows += [
        {"lr": 0.4, "loss_final": 4.0},
        {"lr": 0.8, "verdict": "diverged", "onset_step": 50, "loss_final": math.nan},
    ]
    rows += [{"scheme": "qknorm", "lr": lr} for lr in (0.1, 0.2)]
    rows += [{"scheme": "qknorm", "lr": 0.4, "loss_final": 4.0}]
    trials = make_trials(rows)
    outcome = ["stable"] * 3 + ["degraded", "diverged", "stable", "stable", "degraded"]
    traces = {
        **{str(i): sibling for i, sibling in enumerate(FLAT)},
        "3": make_trace(3, level(0, 9, at=20)),
        "4": make_trace(level(3, 9, at=35), level(0, 9, at=30)),
    }
    return trials.assign(outcome=outcome, unstable=[o not in ("stable",) for o in outcome]), traces

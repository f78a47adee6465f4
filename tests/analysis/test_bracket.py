"""Brackets by hand: the walk up the grid, the vote over seeds, and what has no bracket."""

import math

import numpy as np
import pandas as pd
import pytest

from lrsweep.analysis import brackets, judge, walk
from tests.analysis.tables import make_curve, make_trials

NAN = math.nan


def both(trials: pd.DataFrame, epsilon: float = 0.25) -> tuple[float, float]:
    bracket = walk(judge(trials, epsilon))
    return bracket.max_stable_lr, bracket.min_unstable_lr


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({0.01: 2.0, 0.1: 2.1, 1.0: 2.5}, (0.1, 1.0)),
        ({0.01: 2.0, 0.1: 2.1}, (0.1, NAN)),
        ({0.01: "diverged", 0.1: "nonfinite"}, (NAN, 0.01)),
        ({0.01: "diverged", 0.1: 2.0}, (NAN, 0.01)),  # stable above an unstable LR is not max stable
        ({0.01: 2.0, 0.1: 2.6, 1.0: 2.2, 3.0: 3.0}, (0.01, 0.1)),  # not monotone: the first edge counts
        ({1e-4: 5.0, 1e-3: 3.0, 0.01: 2.0, 0.1: 2.6}, (0.01, 0.1)),  # undertrained LRs do not stop the walk
        ({1e-4: "stalled", 0.01: 2.0}, (0.01, NAN)),
        ({0.1: 2.0}, (0.1, NAN)),
        ({0.1: "nonfinite"}, (NAN, 0.1)),
        ({0.1: "stalled"}, (NAN, NAN)),  # nothing learned, nothing above it: no evidence of either
        ({0.1: "error"}, (NAN, NAN)),
        ({0.01: 2.0, 0.1: "error", 1.0: 3.0}, (0.01, 1.0)),
    ],
)
def test_walk(curve, expected):
    np.testing.assert_equal(both(make_curve(curve)), expected)


def test_a_grid_that_only_stalls_above_its_best_has_no_stable_lr():
    rows = [{"lr": lr, "verdict": "stalled", "loss_final": loss} for lr, loss in ((1.0, 3.3), (3.0, 3.4))]
    np.testing.assert_equal(both(make_trials(rows)), (NAN, 3.0))


@pytest.mark.parametrize(
    ("unstable_seeds", "expected"), [(0, (1.0, NAN)), (1, (1.0, NAN)), (2, (0.1, 1.0)), (3, (0.1, 1.0))]
)
def test_half_of_the_seeds_make_an_lr_unstable(unstable_seeds, expected):
    seeds = [make_curve({0.1: 2.0, 1.0: 2.6 if s < unstable_seeds else 2.1}, seed=s) for s in range(3)]
    np.testing.assert_equal(both(pd.concat(seeds)), expected)


def test_one_of_two_seeds_is_half():
    seeds = [make_curve({0.1: 2.0, 1.0: 2.6}, seed=0), make_curve({0.1: 2.0, 1.0: 2.1}, seed=1)]
    assert both(pd.concat(seeds)) == (0.1, 1.0)


def test_an_error_has_no_vote():
    seeds = [make_curve({0.1: 2.0, 1.0: 2.6}, seed=0), make_curve({0.1: 2.0, 1.0: "error"}, seed=1)]
    assert both(pd.concat(seeds)) == (0.1, 1.0)


def test_brackets_has_a_row_a_seed():
    trials = pd.concat(
        [
            make_curve({0.1: 2.0, 1.0: 2.6}, seed=1),
            make_curve({0.1: 2.0, 1.0: 2.1, 3.0: "error"}, seed=0),
            make_curve({0.1: "nonfinite"}, seed=0, scheme="qknorm"),
        ]
    )
    expected = pd.DataFrame(
        [
            ("preln", "gpt", "0.2m", 0, 0.25, 1.0, NAN, 2, 1),
            ("preln", "gpt", "0.2m", 1, 0.25, 0.1, 1.0, 2, 0),
            ("qknorm", "gpt", "0.2m", 0, 0.25, NAN, 0.1, 1, 0),
        ],
        columns=[
            "scheme",
            "body",
            "size",
            "seed",
            "epsilon",
            "max_stable_lr",
            "min_unstable_lr",
            "trials",
            "errors",
        ],
    )
    pd.testing.assert_frame_equal(brackets(trials, 0.25), expected)

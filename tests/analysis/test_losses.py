"""Statistics of final losses against hand-worked tables."""

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import best_point, lr_sensitivity, spikes_per_1k
from lrsweep.analysis.losses import seed_mean_curve
from tests.analysis.tables import make_curve, make_trials


def test_sensitivity_by_hand():
    # min(ℓ, 5.5) − 2.0 over five LRs: 1.0, 0, 0.5, 3.5 (capped at ℓ0), 3.5 (non-finite)
    trials = make_curve({1e-3: 3.0, 1e-2: 2.0, 0.1: 2.5, 1.0: 9.0, 3.0: "nonfinite"})
    assert lr_sensitivity(trials) == pytest.approx((1.0 + 0 + 0.5 + 3.5 + 3.5) / 5)


def test_sensitivity_is_the_mean_over_seeds_each_with_its_own_minimum():
    trials = pd.concat([make_curve({0.1: 2.0, 1.0: 3.0}, seed=0), make_curve({0.1: 2.8, 1.0: 2.6}, seed=1)])
    assert lr_sensitivity(trials) == pytest.approx((0.5 + 0.1) / 2)


def test_sensitivity_without_a_minimum():
    assert math.isnan(lr_sensitivity(make_curve({0.1: "nonfinite", 1.0: "diverged"})))
    assert math.isnan(lr_sensitivity(make_curve({0.1: "error"})))
    one = pd.concat([make_curve({0.1: 2.0, 1.0: 3.0}, seed=0), make_curve({0.1: "nonfinite"}, seed=1)])
    assert lr_sensitivity(one) == pytest.approx(0.5)
    assert lr_sensitivity(make_curve({0.1: 2.0})) == 0.0


@settings(max_examples=40)
@given(losses=st.lists(st.integers(0, 640), min_size=1, max_size=8), shift=st.integers(-64, 64))
def test_sensitivity_ignores_a_constant_shift(losses, shift):
    # Multiples of 1/64 add without rounding, so equality is exact.
    before = make_curve({10.0**i: loss / 64 for i, loss in enumerate(losses)}, loss_init=5.5)
    after = make_curve({10.0**i: (loss + shift) / 64 for i, loss in enumerate(losses)}, loss_init=5.5 + shift / 64)
    assert lr_sensitivity(before) == lr_sensitivity(after)
    assert lr_sensitivity(before) >= 0


def test_best_is_of_the_seed_mean_curve():
    # The best single trial is 1.9 at LR 1; the best mean is 2.1 at LR 0.1.
    trials = pd.concat([make_curve({0.1: 2.2, 1.0: 1.9}, seed=0), make_curve({0.1: 2.0, 1.0: 2.9}, seed=1)])
    best = best_point(trials)
    assert (best.loss, best.lr) == (pytest.approx(2.1), 0.1)


def test_an_lr_at_which_a_seed_failed_is_not_the_best():
    trials = pd.concat([make_curve({0.1: 2.2, 1.0: 1.9}, seed=0), make_curve({0.1: 2.0, 1.0: "diverged"}, seed=1)])
    assert best_point(trials).lr == 0.1
    assert math.isnan(seed_mean_curve(trials)[1.0])


def test_an_error_does_not_count_as_a_failed_seed():
    trials = pd.concat([make_curve({0.1: 2.2, 1.0: 1.9}, seed=0), make_curve({0.1: 2.0, 1.0: "error"}, seed=1)])
    assert best_point(trials).lr == 1.0


def test_no_best():
    best = best_point(make_curve({0.1: "nonfinite"}))
    assert math.isnan(best.loss)
    assert math.isnan(best.lr)


def test_spikes_per_1k_steps():
    trials = make_trials(
        [
            {"steps": 300, "spikes": 2},
            {"steps": 100, "spikes": 1, "verdict": "diverged"},
            {"steps": 50, "spikes": 40, "verdict": "error"},
        ]
    )
    assert spikes_per_1k(trials) == pytest.approx(1000 * 3 / 400)
    assert math.isnan(spikes_per_1k(make_trials([{"verdict": "error"}])))
    assert math.isnan(spikes_per_1k(make_trials([{"steps": 0, "verdict": "nonfinite"}])))

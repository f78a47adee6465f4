"""Outcomes beside siblings: which high final loss is instability, and which is a learning rate too low."""

import math

import numpy as np
import pandas as pd
import pytest

from lrsweep.analysis import epsilon_of, judge
from tests.analysis.tables import make_curve, make_trials


def outcomes(judged: pd.DataFrame) -> dict[float, str]:
    return dict(zip(judged["lr"], judged["outcome"], strict=True))


def test_high_loss_is_degraded_above_the_best_lr_and_undertrained_below():
    judged = judge(make_curve({1e-3: 3.0, 1e-2: 2.0, 0.1: 2.25, 1.0: 2.26, 3.0: "diverged"}), 0.25)
    assert outcomes(judged) == {
        1e-3: "undertrained",
        1e-2: "stable",
        0.1: "stable",  # exactly ε above is not more than ε
        1.0: "degraded",
        3.0: "diverged",
    }
    assert judged["unstable"].tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(judged["excess"], [1.0, 0.0, 0.25, 0.26, np.nan])


def test_stalled_counts_only_above_the_best_lr():
    rows = [
        {"lr": 1e-4, "verdict": "stalled", "loss_final": 3.3},
        {"lr": 1e-2, "loss_final": 2.0},
        {"lr": 3.0, "verdict": "stalled", "loss_final": 3.3},
    ]
    judged = judge(make_trials(rows), 0.25)
    assert judged["outcome"].tolist() == ["undertrained", "stable", "stalled"]
    assert judged["unstable"].tolist() == [False, False, True]


def test_diverged_and_nonfinite_count_below_the_best_lr_too():
    judged = judge(make_curve({1e-4: "nonfinite", 1e-3: "diverged", 1e-2: 2.0}), 0.25)
    assert judged["unstable"].tolist() == [True, True, False]


def test_a_diverged_trial_is_no_best_sibling():
    rows = [{"lr": 0.01, "loss_final": 2.5}, {"lr": 0.1, "verdict": "diverged", "loss_final": 1.0}]
    assert judge(make_trials(rows), 0.25)["outcome"].tolist() == ["stable", "diverged"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_stable_trial_without_a_finite_final_loss_is_nonfinite(loss):
    judged = judge(make_curve({0.01: 2.0, 0.1: loss}), 0.25)
    assert judged["outcome"].tolist() == ["stable", "nonfinite"]
    assert judged["unstable"].tolist() == [False, True]


def test_errors_are_neither_and_no_siblings():
    rows = [{"lr": 0.01, "loss_final": 2.5}, {"lr": 0.1, "verdict": "error", "loss_final": 1.0}]
    judged = judge(make_trials(rows), 0.25)
    assert judged["outcome"].tolist() == ["stable", "error"]
    assert not judged["unstable"].any()


def test_siblings_share_scheme_body_size_and_seed():
    low, high = {"lr": 0.01, "loss_final": 1.0}, {"lr": 0.1, "loss_final": 2.0}
    for column, other in (("scheme", "qknorm"), ("body", "llama"), ("size", "10m"), ("seed", 1)):
        assert judge(make_trials([low, high]), 0.25)["outcome"].tolist() == ["stable", "degraded"]
        judged = judge(make_trials([{**low, column: other}, high]), 0.25)
        assert judged["outcome"].tolist() == ["stable", "stable"], column


def test_epsilon_of_each_size():
    rows = [
        {"size": size, "lr": lr, "loss_final": loss}
        for size in ("0.2m", "10m")
        for lr, loss in ((0.1, 2.0), (1.0, 2.4))
    ]
    judged = judge(make_trials(rows), {"0.2m": 0.25, "10m": 0.5})
    assert judged["outcome"].tolist() == ["stable", "degraded", "stable", "stable"]


def test_epsilon_errors_name_the_argument():
    with pytest.raises(ValueError, match="epsilon has no entry for size"):
        judge(make_trials([{}]), {"10m": 0.5})
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="epsilon must be at least 0"):
            epsilon_of(bad, "0.2m")


def test_rows_and_index_are_kept():
    trials = make_curve({3.0: 3.0, 1e-3: 2.1, 0.1: 2.0}).set_axis([7, 3, 5])
    judged = judge(trials, 0.25)
    assert judged.index.tolist() == [7, 3, 5]
    pd.testing.assert_frame_equal(judged[trials.columns], trials)
    assert judged["outcome"].tolist() == ["degraded", "stable", "stable"]


def test_no_trials():
    assert judge(make_trials([]), 0.25).empty

"""The frontier table: a sweep worked by hand, and what no change of the input may change."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import FRONTIER_COLUMNS, fit_lr50, frontier
from tests.analysis.tables import make_curve, make_trials

NAN = math.nan
LRS = (1e-3, 1e-2, 0.1, 1.0)


def trial_rows() -> st.SearchStrategy[list[dict[str, object]]]:
    """Sweeps of up to three seeds; losses are multiples of 1/64, so that sums are exact."""
    row = st.fixed_dictionaries(
        {
            "lr": st.sampled_from(LRS),
            "seed": st.integers(0, 2),
            "scheme": st.sampled_from(("preln", "qknorm")),
            "verdict": st.sampled_from(("stable", "stable", "stable", "stalled", "diverged", "nonfinite", "error")),
            "loss_final": st.one_of(st.integers(64, 384).map(lambda n: n / 64), st.just(NAN)),
        }
    )
    return st.lists(row, min_size=1, max_size=24, unique_by=lambda r: (r["lr"], r["seed"], r["scheme"]))


def test_by_hand():
    trials = pd.concat(
        [
            make_curve({1e-3: 2.5, 1e-2: 2.0, 0.1: 2.2, 1.0: 2.5}, seed=0, spikes=1),
            make_curve({1e-3: 2.6, 1e-2: 2.1, 0.1: 2.1, 1.0: "diverged"}, seed=1),
        ]
    )
    (row,) = frontier(trials, 0.25).to_dict("records")
    lr50 = row.pop("lr50"), row.pop("lr50_lo"), row.pop("lr50_hi")
    assert math.isnan(row.pop("same_batch_spikes_per_1k"))  # not scored
    assert row == {
        "scheme": "preln",
        "body": "gpt",
        "size": "0.2m",
        "epsilon": 0.25,
        "seeds": 2,
        "max_stable_lr": 0.1,
        "min_unstable_lr": 1.0,
        "max_stable_lr_2eps": 0.1,
        "min_unstable_lr_2eps": 1.0,  # seed 0 is 0.5 above its best there, seed 1 has diverged all the same
        "best_loss": pytest.approx(2.05),
        "best_lr": 1e-2,
        # seed 0: 0.5 + 0 + 0.2 + 0.5; seed 1: 0.5 + 0 + 0 + (5.5 − 2.1); each over four LRs
        "lr_sensitivity": pytest.approx((1.2 / 4 + 3.9 / 4) / 2),
        "spikes_per_1k": pytest.approx(1000 * 4 / 2400),
    }
    # The undertrained LR 1e-3 tells nothing; the rest is two seeds of stable, stable, unstable.
    fit = fit_lr50(np.array([1e-2, 0.1, 1.0] * 2), np.array([False, False, True] * 2))
    assert lr50 == (fit.median, fit.lo, fit.hi)


def test_all_stable_all_unstable_all_errors():
    trials = pd.concat(
        [
            make_curve({0.1: 2.0, 1.0: 2.1}, scheme="a"),
            make_curve({0.1: "nonfinite", 1.0: "diverged"}, scheme="b"),
            make_curve({0.1: "error"}, scheme="c"),
        ]
    )
    table = frontier(trials, 0.25).set_index("scheme")
    bounds = table[["seeds", "max_stable_lr", "min_unstable_lr", "lr50", "lr50_lo", "lr50_hi"]]
    at_2eps = table[["max_stable_lr_2eps", "min_unstable_lr_2eps"]]
    np.testing.assert_equal(at_2eps.to_numpy(), table[["max_stable_lr", "min_unstable_lr"]].to_numpy())
    np.testing.assert_equal(bounds.loc["a"].to_list(), [1, 1.0, NAN, NAN, 1.0, NAN])
    np.testing.assert_equal(bounds.loc["b"].to_list(), [1, NAN, 0.1, NAN, NAN, 0.1])
    np.testing.assert_equal(bounds.loc["c"].to_list(), [0, NAN, NAN, NAN, NAN, NAN])


def test_no_trials_is_an_empty_table():
    table = frontier(make_trials([]), 0.25)
    assert table.empty
    assert tuple(table.columns) == FRONTIER_COLUMNS


def test_epsilon_of_each_size_is_in_its_row():
    table = frontier(make_trials([{"size": "0.2m"}, {"size": "10m"}]), {"0.2m": 0.25, "10m": 0.5})
    assert dict(zip(table["size"], table["epsilon"], strict=True)) == {"0.2m": 0.25, "10m": 0.5}


@settings(max_examples=40)
@given(rows=trial_rows(), random=st.randoms())
def test_row_order_is_irrelevant(rows, random):
    trials = make_trials(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(frontier(trials.iloc[order], 0.25), frontier(trials, 0.25), rtol=1e-12)


@settings(max_examples=40)
@given(rows=trial_rows(), shift=st.integers(-32, 64))
def test_a_constant_added_to_every_loss_changes_nothing_but_best_loss(rows, shift):
    trials = make_trials(rows)
    by = shift / 64
    shifted = trials.assign(loss_final=trials["loss_final"] + by, loss_init=trials["loss_init"] + by)
    before, after = frontier(trials, 0.25), frontier(shifted, 0.25)
    pd.testing.assert_frame_equal(before.drop(columns="best_loss"), after.drop(columns="best_loss"))
    np.testing.assert_allclose(after["best_loss"], before["best_loss"] + by)


@settings(max_examples=40)
@given(rows=trial_rows())
def test_the_bracket_at_twice_the_epsilon_is_the_bracket_of_twice_the_epsilon(rows):
    trials, ends = make_trials(rows), ["max_stable_lr", "min_unstable_lr"]
    at_2eps = frontier(trials, 0.25)[[f"{end}_2eps" for end in ends]]
    np.testing.assert_array_equal(at_2eps.to_numpy(), frontier(trials, 0.5)[ends].to_numpy())


@settings(max_examples=40)
@given(rows=trial_rows())
def test_the_bracket_is_a_bracket_of_tested_lrs(rows):
    for row in frontier(make_trials(rows), 0.25).itertuples():
        tested = {r["lr"] for r in rows if r["scheme"] == row.scheme}
        ends = [x for x in (row.max_stable_lr, row.min_unstable_lr) if not math.isnan(x)]
        assert set(ends) <= tested
        assert ends == sorted(set(ends))

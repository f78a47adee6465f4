"""max LR(ε): its steps by hand, and agreement with brackets at every ε."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import brackets, frontier, tolerance, voted_tolerance
from tests.analysis.tables import make_curve, make_trials

NAN = math.nan


def steps(table: pd.DataFrame) -> list[tuple[float, float]]:
    return list(zip(table["epsilon"], table["max_lr"], strict=True))


def test_steps_by_hand():
    trials = make_curve({1e-3: 2.75, 1e-2: 2.0, 0.1: 2.25, 0.3: 2.125, 1.0: 2.5, 3.0: "diverged"})
    table = tolerance(trials)
    assert tuple(table.columns) == ("scheme", "body", "size", "seed", "epsilon", "max_lr")
    # 0.3 is better than 0.1, so both come in together; the undertrained 1e-3 never matters.
    assert steps(table) == [(0.0, 1e-2), (0.25, 0.3), (0.5, 1.0)]


def test_nothing_stable():
    np.testing.assert_equal(steps(tolerance(make_curve({0.1: "nonfinite"}))), [(0.0, NAN)])


def test_the_vote_of_the_seeds():
    trials = pd.concat([make_curve({0.1: 2.0, 1.0: 2.0 + e}, seed=i) for i, e in enumerate((0.125, 0.25, 0.5))])
    assert steps(voted_tolerance(trials)) == [(0.0, 0.1), (0.25, 1.0)]


_rows = st.lists(
    st.fixed_dictionaries(
        {
            "lr": st.sampled_from((1e-3, 1e-2, 0.1, 1.0, 3.0)),
            "seed": st.integers(0, 2),
            "verdict": st.sampled_from(("stable", "stable", "stable", "stalled", "diverged", "error")),
            "loss_final": st.one_of(st.integers(64, 256).map(lambda n: n / 64), st.just(NAN)),
        }
    ),
    min_size=1,
    max_size=15,
    unique_by=lambda r: (r["lr"], r["seed"]),
)


@settings(max_examples=40)
@given(rows=_rows)
def test_more_epsilon_never_lowers_it(rows):
    for table in (tolerance(make_trials(rows)).query("seed == 0"), voted_tolerance(make_trials(rows))):
        assert table["epsilon"].is_monotonic_increasing
        max_lr = table["max_lr"].to_numpy()
        assert (np.diff(np.nan_to_num(max_lr)) > 0).all()


@settings(max_examples=40)
@given(rows=_rows, epsilon=st.integers(0, 256).map(lambda n: n / 100))
def test_it_is_the_bracket_at_every_epsilon(rows, epsilon):
    trials = make_trials(rows)

    def at(table: pd.DataFrame) -> float:
        return float(table[table["epsilon"] <= epsilon]["max_lr"].iloc[-1])

    by_seed = tolerance(trials)
    for row in brackets(trials, epsilon).itertuples():
        assert at(by_seed[by_seed["seed"] == row.seed]) == pytest.approx(row.max_stable_lr, nan_ok=True)
    voted = frontier(trials, epsilon)["max_stable_lr"].iloc[0]
    assert at(voted_tolerance(trials)) == pytest.approx(voted, nan_ok=True)

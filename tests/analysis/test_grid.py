"""Which learning rates to try next."""

from pathlib import Path

import pandas as pd
import pytest

from lrsweep.analysis import GridAdvice, frontier, grid_advice
from tests.analysis.tables import make_curve


def advise(trials: pd.DataFrame) -> GridAdvice:
    (advice,) = grid_advice(frontier(trials, 0.25), trials)
    return advice


@pytest.mark.parametrize(
    ("lrs", "more"),
    [
        ((0.1, 0.2, 0.4), (0.8, 1.6, 3.2)),
        ((0.1, 0.3, 1.0, 3.0), (10.0, 30.0, 100.0)),
        ((0.3, 1.0), (3.33, 11.1, 37.0)),
        ((0.1,), (0.316, 1.0, 3.16)),
    ],
)
def test_above_the_grid_its_spacing_goes_on(lrs, more):
    advice = advise(make_curve(dict.fromkeys(lrs, 2.0)))
    assert advice.where == "above"
    assert advice.lrs == pytest.approx(more)


@pytest.mark.parametrize(
    ("lrs", "more"),
    [
        ((1e-3, 3e-3, 1e-2), (3e-5, 1e-4, 3e-4)),
        ((0.1, 0.2), (0.0125, 0.025, 0.05)),
        ((0.1,), (3.16e-3, 0.01, 0.0316)),
    ],
)
def test_below_the_grid_too(lrs, more):
    advice = advise(make_curve(dict.fromkeys(lrs, "diverged")))
    assert advice.where == "below"
    assert advice.lrs == pytest.approx(more)


def test_a_bracket_is_refined_inside():
    advice = advise(make_curve({0.05: 2.1, 0.1: 2.0, 0.8: 3.0}))
    assert advice.where == "inside"
    assert advice.lrs == pytest.approx((0.2, 0.4))


def test_a_bracket_tighter_than_three_digits_has_nothing_inside():
    assert advise(make_curve({0.05: 2.1, 0.1: 2.0, 0.1001: 3.0})).lrs == ()


def test_a_bracket_above_a_best_loss_at_the_lowest_lr_may_lie_too_high():
    """And does, where a lower LR has a loss from which the same trials are further than ε."""
    found = {1e-3: 2.0, 2e-3: 2.2, 4e-3: 3.0}
    advice = advise(make_curve(found))
    assert advice.where == "edge"
    assert advice.lrs == pytest.approx((1.25e-4, 2.5e-4, 5e-4))
    trials = make_curve({5e-4: 1.9} | found)
    assert (
        frontier(trials, 0.25)["max_stable_lr"].item()
        == 1e-3
        < frontier(make_curve(found), 0.25)["max_stable_lr"].item()
    )
    assert advise(trials).where == "edge"
    assert advise(make_curve({2.5e-4: 2.5, 5e-4: 1.9} | found)).where == "inside"


@pytest.mark.parametrize(
    ("found", "where", "lrs"),
    [
        # Losses ε to 2ε above the best, over a factor of 8, 4 and 10 in the LR; the last with no LR between.
        ({0.05: 2.1, 0.1: 2.0, 0.2: 2.4, 0.4: 2.4, 0.8: 2.3, 1.6: 3.0}, "plateau", (0.1, 0.2, 0.4, 0.8)),
        ({0.05: 2.1, 0.1: 2.0, 0.2: 2.4, 0.4: 2.4, 0.8: 3.0}, "inside", (0.126, 0.159)),
        ({0.01: 2.1, 0.1: 2.0, 1.0: 2.4, 10.0: 3.0}, "inside", (0.215, 0.464)),
        # Beyond 2ε, or diverged on the way, it is no plateau.
        ({0.05: 2.1, 0.1: 2.0, 0.2: 2.4, 0.4: 2.6, 0.8: 2.3}, "inside", (0.126, 0.159)),
        ({0.05: 2.1, 0.1: 2.0, 0.2: 2.4, 0.4: "diverged", 0.8: 2.3}, "inside", (0.126, 0.159)),
        # Off the grid, that comes first; at its edge, it comes after.
        ({0.1: 2.0, 0.2: 2.4, 0.4: 2.4, 0.8: 2.3}, "plateau", (0.1, 0.2, 0.4, 0.8)),
        ({0.1: 2.1, 0.2: 2.0, 0.4: 2.2, 0.8: 2.1}, "above", (1.6, 3.2, 6.4)),
    ],
)
def test_a_bracket_that_cuts_a_plateau_asks_for_longer_training(found, where, lrs):
    advice = advise(make_curve(found))
    assert advice.where == where
    assert advice.lrs == pytest.approx(lrs)


def test_of_the_reference_sweeps_those_that_flatten_out(root: Path) -> None:
    """As their entries in results/LOG.md say of the figures; three at 30M had not settled after 400 steps."""
    found = {}
    for name in ("rybakov-ten-10m", "rybakov-ten-30m-400", "rybakov-ten-30m"):
        trials = pd.read_parquet(root / "results" / "reference" / name / "trials.parquet")
        advice = grid_advice(frontier(trials, 0.5), trials)
        found[name] = {a.scheme for a in advice if a.where == "plateau"}
    assert found == {
        "rybakov-ten-10m": {"qkv_norm"},
        "rybakov-ten-30m-400": {"qknorm", "qknorm_cap", "qkv_norm"},
        "rybakov-ten-30m": {"qk_fc_norm", "qkv_norm"},
    }


def test_an_lr_that_failed_is_not_of_the_grid():
    assert advise(make_curve({0.1: 2.0, 0.2: 2.0, 3.0: "error"})).lrs == pytest.approx((0.4, 0.8, 1.6))


def test_nothing_ran():
    advice = advise(make_curve({0.1: "error"}))
    assert (advice.where, advice.lrs) == ("inside", ())


def test_nothing_learned_asks_for_higher_lrs():
    # One LR that stalled, and none above it: too low as far as the sweep can tell.
    assert advise(make_curve({1e-5: "stalled", 1e-4: "stalled"})).where == "above"

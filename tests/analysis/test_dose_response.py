"""LR50 against a posterior written out independently, in its limits, and by its coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import LR50, fit_lr50

GRID = np.array([1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0])
X = np.log(GRID)
STEP = float(np.diff(X).mean())


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def clean(edge: int, seeds: int) -> LR50:
    """All seeds stable below grid point ``edge`` and unstable from it on."""
    return fit_lr50(np.tile(GRID, seeds), np.tile(np.arange(len(GRID)) >= edge, seeds))


def width(fit: LR50) -> float:
    """In steps of the grid."""
    return math.log(fit.hi / fit.lo) / STEP


def test_against_the_posterior_written_out():
    lr = np.array([0.01, 0.03, 0.03, 0.1, 0.1, 0.3])
    unstable = np.array([False, False, True, False, True, True])
    steps = np.diff(np.log([0.01, 0.03, 0.1, 0.3]))
    sigmas = np.exp(np.linspace(math.log(steps.min() / 10), math.log(2 * steps.max()), 25))
    mus = np.linspace(math.log(0.01) - steps[0], math.log(0.3) + steps[-1], 1501)
    posterior = np.zeros_like(mus)
    for i, mu in enumerate(mus):
        for sigma in sigmas:
            p = [phi((math.log(x) - mu) / sigma) for x in lr]
            posterior[i] += math.prod(q if u else 1 - q for q, u in zip(p, unstable, strict=True))
    cdf = np.cumsum(posterior) / posterior.sum()
    expected = np.exp([mus[np.searchsorted(cdf, q)] for q in (0.025, 0.5, 0.975)])
    fit = fit_lr50(lr, unstable)
    # Both grids resolve μ to about a twentieth of a step at worst.
    np.testing.assert_allclose([fit.lo, fit.median, fit.hi], expected, rtol=0.02)


@pytest.mark.parametrize("edge", range(2, 7))
def test_a_clean_edge_is_found_inside_its_bracket(edge):
    fit = clean(edge, seeds=1)
    assert GRID[edge - 1] < fit.median < GRID[edge]
    assert fit.lo < GRID[edge - 1]  # one seed cannot tell how sharp the edge is
    assert fit.hi > GRID[edge]


def test_a_mirrored_grid_mirrors_the_fit():
    even = np.exp(np.arange(6.0))
    unstable = np.array([False, False, True, False, True, True])
    fit, mirrored = fit_lr50(even, unstable), fit_lr50(even, ~unstable[::-1])
    np.testing.assert_allclose(
        np.log([mirrored.lo, mirrored.median, mirrored.hi]),
        5 - np.log([fit.hi, fit.median, fit.lo]),
        atol=1e-9,
    )


def test_seeds_narrow_the_interval():
    widths = [width(clean(4, seeds)) for seeds in (1, 2, 3, 10)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] < 2.6
    assert widths[2] < 1.1


def test_outcomes_that_are_not_monotone_widen_it():
    mixed = np.array([0, 0, 0, 1, 0, 1, 1, 1], dtype=bool)
    assert width(fit_lr50(GRID, mixed)) > width(clean(4, seeds=1))


def test_outside_the_grid_and_without_trials():
    none, every = np.zeros(8, dtype=bool), np.ones(8, dtype=bool)
    nan = math.nan
    cases = [
        (GRID, none, (nan, 3.0, nan)),
        (GRID, every, (nan, nan, 1e-3)),
        (GRID[:0], none[:0], (nan, nan, nan)),
    ]
    for lr, unstable, expected in cases:
        fit = fit_lr50(lr, unstable)
        np.testing.assert_equal((fit.median, fit.lo, fit.hi), expected)


def test_one_lr_on_which_seeds_disagree():
    fit = fit_lr50(np.array([0.1, 0.1]), np.array([True, False]))
    assert fit.median == pytest.approx(0.1)
    assert math.sqrt(0.01 / 10) * 0.1**0.5 < fit.hi < 0.1 * math.sqrt(10)
    assert fit.lo > 0.1 / math.sqrt(10)


@settings(max_examples=40)
@given(order=st.permutations(range(12)), unstable=st.lists(st.booleans(), min_size=12, max_size=12))
def test_order_of_trials_is_irrelevant(order, unstable):
    lr, flags = np.tile(GRID[2:6], 3), np.array(unstable)
    assert repr(fit_lr50(lr, flags)) == repr(fit_lr50(lr[list(order)], flags[list(order)]))


@settings(max_examples=40)
@given(factor=st.floats(1e-3, 1e3), unstable=st.lists(st.booleans(), min_size=8, max_size=8))
def test_the_unit_of_lr_is_irrelevant(factor, unstable):
    flags = np.array(unstable)
    fit, scaled = fit_lr50(GRID, flags), fit_lr50(GRID * factor, flags)
    np.testing.assert_allclose(
        [scaled.lo, scaled.median, scaled.hi], np.array([fit.lo, fit.median, fit.hi]) * factor, rtol=1e-6
    )


def coverage(rng: np.random.Generator, *, seeds: int, sigmas: list[float]) -> float:
    """Share of simulated experiments whose interval holds the true LR50; σ in steps, μ amid the grid."""
    covered = []
    for sigma in sigmas:
        mu = rng.uniform(X[2], X[5])
        p = np.array([phi((x - mu) / (sigma * STEP)) for x in X])
        unstable = rng.random((seeds, len(X))) < p
        fit = fit_lr50(np.tile(GRID, seeds), unstable.ravel())
        covered.append(np.nan_to_num(fit.lo, nan=0) <= math.exp(mu) <= np.nan_to_num(fit.hi, nan=math.inf))
    return float(np.mean(covered))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_the_interval_covers_the_truth_when_sigma_is_as_assumed(seeds):
    rng = np.random.default_rng(seeds)
    sigmas = np.exp(rng.uniform(math.log(0.1), math.log(2), 400)).tolist()
    assert 0.90 <= coverage(rng, seeds=seeds, sigmas=sigmas) <= 0.99


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_covers_the_truth_of_a_known_curve(seeds):
    assert 0.90 <= coverage(np.random.default_rng(seeds), seeds=seeds, sigmas=[0.5] * 400) <= 0.99

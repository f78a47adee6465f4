"""Closed forms of the robust statistics."""

import random

import pytest

from lrsweep.detect.robust import median, noise, spread


def test_median_is_the_upper_one():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 3.0, 2.0]) == 3.0


def test_spread_of_evenly_spaced_values():
    # |x - 0| over -3..3 is 0, 1, 1, 2, 2, 3, 3.
    assert spread([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]) == pytest.approx(1.4826 * 2)


def test_noise_of_an_alternating_curve():
    # Every second difference of ±1 is 4.
    assert noise([1.0, -1.0] * 8) == pytest.approx(1.4826 * 4 / 6**0.5)


@pytest.mark.parametrize("slope", [0.0, -0.5, 3.0])
def test_noise_is_blind_to_level_and_slope(slope):
    assert noise([1000.0 + slope * t for t in range(20)]) == 0.0


def test_noise_needs_three_points():
    assert noise([]) == noise([1.0]) == noise([1.0, 5.0]) == 0.0


@pytest.mark.parametrize("statistic", [spread, noise])
def test_both_estimate_the_standard_deviation_of_white_noise(statistic):
    draw = random.Random(0)
    sample = [draw.gauss(3.0, 0.2) for _ in range(20_000)]
    # The standard error of either over 20,000 points is below 2%.
    assert statistic(sample) == pytest.approx(0.2, rel=0.06)


def test_noise_ignores_a_tenth_of_wild_points():
    draw = random.Random(0)
    clean = [draw.gauss(0.0, 0.1) for _ in range(2_000)]
    wild = [1e30 if t % 10 == 0 else value for t, value in enumerate(clean)]
    # Three of ten second differences are spoiled: the median of the clean ones moves to their 0.5 / 0.7 quantile.
    assert noise(clean) < noise(wild) < 2 * noise(clean)

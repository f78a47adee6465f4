"""Closed forms of the robust statistics."""

import math
import random

import pytest

from lrsweep.detect.robust import median, memory, noise, spread


def test_median_is_the_upper_one():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 3.0, 2.0]) == 3.0


def test_spread_of_evenly_spaced_values():
    # |x - 0| over -3..3 is 0, 1, 1, 2, 2, 3, 3; the upper decile is 3, and 3 / 1.2816 is less.
    assert spread([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]) == pytest.approx(1.4826 * 2)


def test_spread_sees_a_tenth_of_high_values_and_no_fewer():
    assert spread([0.0] * 91 + [1.0] * 9) == 0.0
    assert spread([0.0] * 90 + [1.0] * 10) == pytest.approx(1 / 1.2816)


def test_spread_of_a_falling_curves_rises_is_blind_to_their_lag():
    # Every point lies 0.5 below the median of those before it: none of that is spread.
    assert spread([-0.5] * 64) == 0.0
    assert spread([-0.5 + (0.1 if t % 2 else -0.1) for t in range(64)]) == pytest.approx(1.4826 * 0.2)


def test_noise_of_an_alternating_curve():
    # Every second difference of ±1 is 4.
    assert noise([1.0, -1.0] * 8) == pytest.approx(1.4826 * 4 / 6**0.5)


@pytest.mark.parametrize("slope", [0.0, -0.5, 3.0])
def test_noise_is_blind_to_level_and_slope(slope):
    assert noise([1000.0 + slope * t for t in range(20)]) == 0.0


def test_noise_needs_three_points():
    assert noise([]) == noise([1.0]) == noise([1.0, 5.0]) == 0.0


def white(n, deviation=0.2, mean=0.0):
    draw = random.Random(0)
    return [draw.gauss(mean, deviation) for _ in range(n)]


@pytest.mark.parametrize("statistic", [spread, noise])
def test_both_estimate_the_standard_deviation_of_white_noise(statistic):
    # The standard error of either over 20,000 points is below 2%.
    assert statistic(white(20_000)) == pytest.approx(0.2, rel=0.06)


def test_noise_ignores_a_tenth_of_wild_points():
    clean = white(2_000)
    wild = [1e30 if t % 10 == 0 else value for t, value in enumerate(clean)]
    # Three of ten second differences are spoiled: the median of the clean ones moves to their 0.5 / 0.7 quantile.
    assert noise(clean) < noise(wild) < 2 * noise(clean)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.9])
def test_memory_of_an_autoregression_is_its_coefficient_from_below(kept):
    value, values = 0.0, []
    for fresh in white(40_000, (1 - kept**2) ** 0.5):
        value = kept * value + fresh
        values.append(value)
    assert kept - 0.04 < memory(values) <= kept


def test_memory_is_the_closed_form_less_two_standard_errors():
    # 15 crossings in 63 pairs; the standard error of a fair coin's frequency in n throws is 1 / (2 √n).
    blocks = [1.0 if (t // 4) % 2 else -1.0 for t in range(64)]
    assert memory(blocks) == pytest.approx(math.cos(math.pi * (15 / 63 + 1 / 63**0.5)))


def test_memory_of_white_noise_is_seldom_proven():
    sample = white(64 * 1_000)
    proven = [memory(sample[start : start + 64]) > 0 for start in range(0, len(sample), 64)]
    assert sum(proven) < 50  # two standard errors: 23 in 1,000 by the normal law


def test_no_outlier_moves_memory():
    values = white(64)
    spoiled = [1e30 if value == max(values) else value for value in values]
    assert memory(spoiled) == memory(values)


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [3.0] * 64, [3.0] * 63 + [4.0]])
def test_two_values_and_values_with_none_below_the_median_prove_nothing(values):
    assert memory(values) == 0.0

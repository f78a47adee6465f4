"""Runs that are lost from their first steps on: the noise that would excuse their level is their own."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrsweep.detect import DetectorConfig, DivergenceDetector, scan

CONFIG = DetectorConfig()
GRACE, WINDOW, PATIENCE = CONFIG.grace_steps, CONFIG.window, CONFIG.patience


def judge(losses, config=None, every=1, start=0):
    return scan(range(start, start + every * len(losses), every), losses, config=config).verdict


def saw(points):
    """50, 300, 50, …: deviation 1.4826 * 500 / √6 = 303, so that the line is 908 and no median ever passes it."""
    return [300.0 if t % 2 else 50.0 for t in range(points)]


@pytest.mark.parametrize("every", [1, 30, 200])
def test_a_run_lost_in_noise_is_told_once_a_window_has_passed(every):
    grace = -(-GRACE // every)  # points of the grace steps
    verdict = judge([9.0, *saw(400)], every=every)
    assert (verdict.kind, verdict.onset) == ("diverged", 0)
    # The median turns with the saw: its first fall from 300 to 50 looks like a recovery, up to two points in.
    late = verdict.step // every - (grace + WINDOW)
    assert late in (0, 1, 2)
    assert "9 of step 0" in verdict.reason


def test_the_same_noise_from_the_first_loss_on_is_no_divergence():
    assert judge([50.0, *saw(2_000)]).kind == "stable"


def test_the_same_noise_is_judged_by_its_own_size_where_the_start_is_not_known():
    assert judge([9.0, *saw(2_000)], start=GRACE).kind == "stable"


@pytest.mark.parametrize(("dips", "kind"), [(WINDOW - 4, "stable"), (WINDOW + 4, "diverged")])
def test_a_run_that_comes_back_to_its_start_once_in_a_window_is_judged_by_its_noise(dips, kind):
    losses = [9.0, *saw(2_000)]
    losses[GRACE + 1 :: dips] = [9.5] * len(losses[GRACE + 1 :: dips])
    assert judge(losses).kind == kind


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("points", [400, 4_000])
@pytest.mark.parametrize("law", ["uniform", "lognormal", "exponential"])
def test_noise_of_any_law_above_the_start_is_told(law, points, seed):
    draw = random.Random(seed)
    laws = {
        "uniform": lambda: draw.uniform(50, 300),
        "lognormal": lambda: draw.lognormvariate(math.log(100), 0.7),
        "exponential": lambda: 10 + draw.expovariate(1 / 100),
    }
    verdict = judge([9.0] + [laws[law]() for _ in range(points)])
    assert verdict.kind == "diverged"
    assert verdict.step < 250


def test_a_short_run_is_told_at_its_end():
    lost = [9.0, *saw(92)]
    assert judge(lost[:80]).kind == "stable"
    detector = DivergenceDetector()
    assert {detector.update(step, loss).kind for step, loss in enumerate(lost)} == {"stable"}
    told = detector.finish()
    assert (told.kind, told.onset, told.step) == ("diverged", 0, 92)


def test_a_best_that_is_later_than_the_grace_is_no_start():
    # Five of the first nine losses are 9, so that their median is, and none of the thousand that follow.
    losses = [9.0 if t % 2 == 0 else 300.0 for t in range(9)] + saw(1_000)
    assert judge(losses, start=5_000).kind == "stable"
    assert judge(losses).kind == "diverged"


@given(st.lists(st.integers(100, 400), min_size=40, max_size=300), st.integers(1, 4))
def test_it_speaks_only_where_fewer_than_one_in_a_window_came_back(later, spaced):
    """With no other rule left, against the count written out."""
    config = replace(CONFIG, margin_sigmas=1e9)
    losses = [100.0, *map(float, later)]
    # A curve without noise is judged by the margin, whatever its line in deviations.
    assume(all(a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)))
    verdict = judge(losses, config, every=spaced)
    judged = [loss <= 100.5 for step, loss in enumerate(losses) if step * spaced >= GRACE]
    counts = [(sum(judged[:end]), end) for end in range(1, len(judged) + 1)]
    possible = any(end > WINDOW - PATIENCE and near * WINDOW < end for near, end in counts)
    assert possible or verdict.kind == "stable"


@pytest.mark.parametrize("deviation", [0.05, 0.2, 0.55])
def test_noise_of_half_a_nat_or_less_is_judged_as_ever(deviation):
    """One Gaussian loss in 64 lies 2.15 σ below the level: up to σ = 0.59, 0.5 + 2.15 σ is no less than 3 σ."""
    draw = random.Random(0)
    # Above the margin, below the line; the first loss is a level by itself.
    gap = max(0.45, 2.6 * deviation)
    assert judge([9.0] + [9.0 + gap + draw.gauss(0, deviation) for _ in range(120)]).kind == "stable"


@pytest.mark.parametrize("seed", range(10))
def test_a_noisy_bump_of_a_warm_up_comes_back_in_its_time(seed):
    draw = random.Random(seed)
    bump = [9.0 + 0.6 * math.exp(-(((t - 200) / 100) ** 2)) + draw.gauss(0, 1.0) for t in range(1_000)]
    assert judge([9.0, *bump]).kind == "stable"


def test_a_first_loss_of_zero_is_none_yet():
    draw = random.Random(0)
    falling = [3.0 + 6.0 * math.exp(-t / 300) + draw.gauss(0, 0.04) for t in range(1_000)]
    for placeholders in (1, 2, 3):
        for start, every in ((0, 1), (1, 1), (10, 10)):
            assert judge([*[0.0] * placeholders, *falling], start=start, every=every).kind == "stable"
    assert judge([0.25, *falling]).kind == "diverged"  # any other loss is believed


def test_a_loss_that_is_zero_for_long_is_a_level():
    assert judge([0.0] * 100 + [1.0] * 100).kind == "diverged"

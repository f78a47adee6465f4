"""Divergence by level, on curves whose answer is known in closed form."""

import math

import pytest

from lrsweep.detect import DetectorConfig, DivergenceDetector, scan

LAG = 4  # of a median of 9: it follows the fifth high point
PATIENCE = DetectorConfig().patience


def judge(losses, config=None, start=0, every=1):
    return scan(range(start, start + every * len(losses), every), losses, config=config)


def test_a_step_up_is_told_after_lag_and_patience():
    verdict = judge([3.0] * 100 + [4.0] * 40).verdict
    assert (verdict.kind, verdict.onset, verdict.step) == ("diverged", 100, 100 + LAG + PATIENCE - 1)


@pytest.mark.parametrize("smooth", [1, 3, 9, 15])
@pytest.mark.parametrize("patience", [1, 7, 30])
def test_patience_is_an_exact_count_of_points(smooth, patience):
    config = DetectorConfig(smooth=smooth, patience=patience, patience_share=0.0)
    needed = smooth // 2 + patience
    told = judge([3.0] * 100 + [4.0] * needed, config).verdict
    assert (told.kind, told.step) == ("diverged", 100 + needed - 1)
    detector = DivergenceDetector(config)
    for step, loss in enumerate([3.0] * 100 + [4.0] * (needed - 1)):
        detector.update(step, loss)
    assert detector.verdict.kind == "stable"


@pytest.mark.parametrize("watched", [1_000, 5_000, 20_000])
@pytest.mark.parametrize("start", [0, 90_000])
def test_patience_is_also_a_fiftieth_of_the_steps_watched(watched, start):
    # The excursion opens LAG points after the step up; t points later it has lasted t of watched + LAG + t steps.
    losses = [3.0] * watched + [4.0] * 500
    verdict = judge(losses, start=start).verdict
    waited = max(PATIENCE - 1, math.ceil((watched + LAG) / 49))
    assert (verdict.kind, verdict.onset) == ("diverged", start + watched)
    assert verdict.step == start + watched + LAG + waited


def test_a_hill_shorter_than_that_is_passed_over():
    # 60 hard batches in a row: a divergence of a run of 300 steps, an episode of one of 10,000.
    for watched, kind in ((300, "diverged"), (10_000, "stable")):
        assert judge([3.0] * watched + [4.0] * 60 + [3.0] * 100).verdict.kind == kind


@pytest.mark.parametrize("every", [1, 7, 200])
def test_the_interval_scales_steps_and_nothing_else(every):
    verdict = judge([3.0] * 100 + [4.0] * 40, start=1000, every=every).verdict
    assert verdict.onset == 1000 + every * 100
    assert verdict.step == 1000 + every * (100 + LAG + PATIENCE - 1)


@pytest.mark.parametrize(("rise", "kind"), [(0.5, "stable"), (0.5078125, "diverged")])
def test_the_margin_must_be_passed(rise, kind):
    assert judge([3.0] * 100 + [3.0 + rise] * 100).verdict.kind == kind


def test_a_slow_climb_without_any_outlier():
    slope = 1 / 64
    losses = [3.0 + slope * max(0, t - 100) for t in range(300)]
    # The median runs LAG steps behind: its gap is slope * (t - 104), above 1/2 from t = 137.
    verdict = judge(losses).verdict
    assert (verdict.kind, verdict.step) == ("diverged", 137 + PATIENCE - 1)
    assert verdict.onset == 133  # first point above 3.5


def test_a_plateau_below_the_margin_is_stable_forever():
    assert judge([3.0] * 100 + [3.4] * 2_000).verdict.kind == "stable"


@pytest.mark.parametrize("height", [1.0, 30.0, 1e6])
@pytest.mark.parametrize(("half_life", "kind"), [(10, "stable"), (36, "stable"), (37, "diverged"), (500, "diverged")])
def test_a_decay_is_waited_for_by_its_pace_and_not_by_its_height(height, half_life, kind):
    # The median holds the height of point 4 from point 4 to 8 and then runs 4 behind. Patience ends at point 23:
    # 15 points for a quarter of the way back, half-life 15 ln 2 / ln(4/3) = 36.1.
    losses = [3.0] * 100 + [3.0 + height * 0.5 ** (t / half_life) for t in range(2_000)]
    assert judge(losses).verdict.kind == kind


def test_a_decay_that_stops_above_the_margin_is_told():
    losses = [3.0] * 100 + [3.0 + max(1.0, 10 * 0.5 ** (t / 10)) for t in range(200)]
    verdict = judge(losses).verdict
    assert verdict.kind == "diverged"
    assert verdict.onset == 100


def test_a_rise_at_the_very_start_may_come_back():
    # Up to step 2, back by step 20: what Muon-like optimizers do.
    losses = [6.9, 9.0, 15.0] + [15.0 - 0.5 * t for t in range(20)] + [5.0] * 100
    scanned = judge(losses)
    assert scanned.verdict.kind == "stable"
    assert scanned.events == ()


def test_a_run_that_stays_above_its_first_loss_is_told_after_the_grace():
    verdict = judge([6.9] + [20.0] * 100).verdict
    assert (verdict.kind, verdict.step) == ("diverged", 30 + PATIENCE - 1)


def test_grace_is_as_long_as_the_warm_up_says():
    hill = [5.0] * 20 + [8.0] * 70 + [4.0] * 100
    assert judge(hill).verdict.kind == "diverged"
    assert judge(hill, DetectorConfig(grace_steps=100)).verdict.kind == "stable"


def test_grace_counts_from_step_0_and_not_from_the_first_point():
    fragment = [3.0] * 12 + [6.0] * 30
    verdict = judge(fragment, start=50_000).verdict
    assert (verdict.kind, verdict.onset) == ("diverged", 50_012)


def test_a_run_picked_up_at_low_points_does_not_take_them_for_its_best():
    low = [1.6, 1.75, 2.6, 2.5]
    assert judge([*low, *[2.8] * 60], start=5_000).verdict.kind == "stable"
    detector = DivergenceDetector()
    for step, loss in enumerate([*low, *[2.8] * 20], 5_000):
        detector.update(step, loss)
    assert detector.finish().kind == "stable"


def test_a_median_longer_than_half_the_window_keeps_its_best():
    config = DetectorConfig(smooth=41, window=64)
    verdict = judge([3.0] * 200 + [4.0] * 100, config).verdict
    assert (verdict.kind, verdict.onset) == ("diverged", 200)


def test_a_short_past_is_remembered_if_it_was_a_level():
    verdict = judge([3.0] * 9 + [6.0] * 60, start=5_000).verdict
    assert (verdict.kind, verdict.onset) == ("diverged", 5_009)


def test_noise_widens_the_margin():
    # Alternating by ±2: one point has a deviation of 1.4826 * 8 / √6 = 4.84, three of them 14.5.
    def noisy(rise):
        return [100.0 + (rise if t >= 200 else 0.0) + (2.0 if t % 2 else -2.0) for t in range(400)]

    assert judge(noisy(9.0)).verdict.kind == "stable"
    assert judge(noisy(20.0)).verdict.kind == "diverged"


def test_a_broken_run_that_gets_noisy_does_not_widen_its_own_margin():
    # Its own deviation is 1.4826 * 48 / √6 = 29, three of which would hide the rise of 27.
    losses = [3.0] * 12 + [30.0 + (12.0 if t % 2 else -12.0) for t in range(60)]
    verdict = judge(losses, start=1000).verdict
    assert (verdict.kind, verdict.onset) == ("diverged", 1012)


@pytest.mark.parametrize("losses", [[6.4, 6.6, 7.3, 9.1, 10.2], [6.4, 6.5, 6.4, 6.5, 7.5, 9.0, 10.0]])
def test_a_short_fragment_that_ends_high_is_told_at_the_end_only(losses):
    detector = DivergenceDetector()
    assert {detector.update(6900 + 10 * t, loss).kind for t, loss in enumerate(losses)} == {"stable"}
    assert detector.finish().kind == "diverged"
    assert detector.verdict.kind == "stable"  # and the run may go on


@pytest.mark.parametrize("losses", [[3.0] * 4 + [9.0] * 4 + [3.0], [3.0] * 4 + [9.0, 9.0, 3.0, 3.0, 9.0]])
def test_a_short_fragment_that_ends_low_or_on_one_high_point_is_stable(losses):
    assert judge(losses, start=1000).verdict.kind == "stable"


@pytest.mark.parametrize(("high", "kind"), [(1, "stable"), (19, "stable"), (20, "diverged")])
def test_at_the_end_patience_is_a_quarter_of_the_window(high, kind):
    assert judge([3.0] * 100 + [9.0] * high).verdict.kind == kind  # 64 / 4 = 16 points after the lag of 4


def test_a_run_that_ends_on_its_way_down_is_stable_wherever_it_ends():
    decay = [3.0 + 8 * 0.5 ** (t / 36) for t in range(80)]
    assert decay[-1] > 4
    for length in range(24, 80):  # 24: the first quarter of the way
        assert judge([3.0] * 15 + decay[:length], start=1000).verdict.kind == "stable"


def test_the_reason_holds_the_numbers():
    verdict = judge([3.0] * 100 + [4.25] * 40).verdict
    assert "4.25" in verdict.reason
    assert "1.25 nats above" in verdict.reason
    assert str(verdict) == f"diverged: {verdict.reason}"
    assert "\n" not in verdict.reason


def test_stalled_is_known_at_the_end_and_only_with_a_level():
    config = DetectorConfig(stall_level=3.25)
    flat = [5.5] + [3.3] * 200
    assert judge(flat, config).verdict.kind == "stalled"
    assert judge(flat).verdict.kind == "stable"
    assert judge([*flat, *[3.2] * 5], config).verdict.kind == "stable"
    assert judge([5.5] + [3.25] * 200, config).verdict.kind == "stalled"  # to reach it is not to get below it
    detector = DivergenceDetector(config)
    assert {detector.update(step, loss).kind for step, loss in enumerate(flat)} == {"stable"}


def test_one_lucky_batch_does_not_save_a_stalled_run():
    assert judge([3.3] * 100 + [1.0] + [3.3] * 100, DetectorConfig(stall_level=3.25)).verdict.kind == "stalled"


def test_a_diverged_run_is_not_called_stalled():
    assert judge([3.3] * 100 + [9.0] * 100, DetectorConfig(stall_level=1.0)).verdict.kind == "diverged"


def test_empty_and_single_point_runs_are_stable():
    for losses in ([], [3.0], [math.pi, None]):
        assert judge(losses, DetectorConfig(stall_level=4.0), start=100).verdict.kind == "stable"

"""Outliers and spikes with known onset, peak and end."""

import pytest

from lrsweep.detect import DetectorConfig, DivergenceDetector, Event, scan

# A quiet curve: the threshold is the floor of 0.1 nats, and a point gives its full half of the evidence from
# 0.1 * e^1.25 = 0.349 nats on.
QUIET = [3.0] * 100


def events(losses, grad_norms=None, config=None, start=0, every=1):
    scanned = scan(range(start, start + every * len(losses), every), losses, grad_norms, config)
    assert scanned.verdict.kind == "stable"
    return scanned.events


def test_one_high_point_is_an_outlier_however_high():
    for height in (0.25, 2.0, 1e6, 1e38):
        assert events([*QUIET, 3.0 + height, *QUIET]) == (Event("outlier", 100, 100, 101, 3.0 + height - 3.0),)


def test_a_point_within_the_floor_is_nothing():
    assert events([*QUIET, 3.09, *QUIET]) == ()


def test_a_low_point_is_nothing():
    assert events([*QUIET, 0.5, 0.5, *QUIET]) == ()


@pytest.mark.parametrize("every", [1, 5, 200])
def test_a_triangle_has_its_onset_peak_and_end(every):
    triangle = [3.5, 4.0, 4.5, 4.0, 3.5]
    found = events([*QUIET, *triangle, *QUIET], start=1000, every=every)
    assert found == (Event("spike", 1000 + 100 * every, 1000 + 102 * every, 1000 + 105 * every, 1.5),)


@pytest.mark.parametrize(("second", "kind"), [(0.3, "outlier"), (0.36, "spike")])
def test_two_points_must_each_give_their_half(second, kind):
    assert [event.kind for event in events([*QUIET, 5.0, 3.0 + second, *QUIET])] == [kind]


def test_a_low_bump_is_a_spike_if_it_lasts():
    # 0.2 nats is twice the floor: ln 2 a point, and 4 ln 2 = 2.77 is enough where 3 ln 2 = 2.08 is not.
    assert [event.kind for event in events([*QUIET, *[3.2] * 3, *QUIET])] == ["outlier"]
    assert [event.kind for event in events([*QUIET, *[3.2] * 4, *QUIET])] == ["spike"]


def test_the_threshold_rises_with_the_noise():
    # Alternating by ±0.1. By its second differences of 0.4 a point deviates by 1.4826 * 0.4 / √6 = 0.242, by its
    # distances of 0 and 0.2 from the upper median 3.1 by 1.4826 * 0.2 = 0.297; 4.5 of the larger are 1.334 nats.
    noisy = [3.0 + (0.1 if t % 2 else -0.1) for t in range(100)]
    assert events([*noisy, 3.1 + 1.32, *noisy]) == ()
    assert [event.kind for event in events([*noisy, 3.1 + 1.35, *noisy])] == ["outlier"]


def test_two_events_are_kept_apart_and_the_first_does_not_hide_the_second():
    found = events([*QUIET, 6.0, 6.0, 3.0, 3.0, 6.0, 6.0, *QUIET])
    assert [(event.kind, event.onset, event.end) for event in found] == [("spike", 100, 102), ("spike", 104, 106)]


def test_a_spike_of_40_points_is_measured_against_the_level_before_it():
    decay = [3.0 + 4 * 0.9**t for t in range(60)]
    (spike,) = events([*QUIET, *decay, *QUIET])
    # 4 * 0.9^t falls to 0.1 nats at t = 35.01: point 35 is above the floor by a hair, 36 is back.
    assert (spike.onset, spike.peak, spike.end, spike.size) == (100, 100, 136, 4.0)


def test_a_new_level_is_one_spike_and_then_the_level():
    # After 64 points (the window) the old level is given up.
    found = events([*QUIET, *[3.4] * 500])
    assert [(event.kind, event.onset, event.end) for event in found] == [("spike", 100, 163)]


def test_a_spike_that_still_lasts_has_no_end():
    assert events([*QUIET, 4.0, 4.0]) == (Event("spike", 100, 100, None, 1.0),)


def test_an_undecided_last_point_is_no_event_yet():
    assert events([*QUIET, 4.0]) == ()


def test_nothing_is_judged_in_the_grace_steps():
    start = [7.0] * 12 + [15.0, 15.0, 15.0] + [7.0] * 12
    assert events(start) == ()
    assert [event.kind for event in events(start, start=5_000)] == ["spike"]


def test_no_event_before_there_is_a_history():
    assert events([3.0] * 7 + [6.0, 6.0] + [3.0] * 8, start=500) == ()
    assert len(events([3.0] * 9 + [6.0, 6.0] + [3.0] * 8, start=500)) == 1


def test_the_gradient_norm_makes_a_high_point_a_spike():
    losses = [*QUIET, 5.0, *QUIET]
    quiet = [1.0] * 201
    led = [1.0] * 100 + [20.0] + [1.0] * 100
    assert [event.kind for event in events(losses, quiet)] == ["outlier"]
    assert [event.kind for event in events(losses, led)] == ["spike"]


def test_the_gradient_norm_is_told_before_the_loss_moves():
    detector = DivergenceDetector()
    for step in range(31_200, 31_214):
        detector.update(step, 2.2, 0.24)
    rising = [(2.22, 0.95), (2.25, 2.39), (2.24, 15.9), (2.23, 145.0)]
    for step, (loss, norm) in enumerate(rising, 31_214):
        detector.update(step, loss, norm)
    (told,) = detector.events
    assert told.kind == "spike"
    assert told.onset == 31_214  # 0.95 is above 3.5 * 0.24 = 0.84
    assert told.end is None
    for step, loss in enumerate([5.1, 3.5, 3.2, 2.2], 31_218):
        detector.update(step, loss, 0.24)
    (spike,) = detector.events
    assert (spike.peak, spike.end) == (31_218, 31_221)
    assert spike.size == pytest.approx(2.9)


def test_a_burst_of_the_gradient_norm_alone_for_one_point_is_nothing():
    assert events([3.0] * 200, [1.0] * 100 + [1e9] + [1.0] * 99) == ()


def test_the_gradient_norm_needs_three_points_of_history():
    rising = [1.0, 100.0, 1e4]
    assert events([3.0] * 50, rising + [1e4] * 47, start=500) == ()
    assert [event.kind for event in events([3.0] * 50, [1.0, 1.0, *rising] + [1e4] * 45, start=500)] == ["spike"]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 0.0, -1.0])
def test_a_gradient_norm_that_says_nothing_is_as_good_as_none(bad):
    losses = [*QUIET, 5.0, 5.0, *QUIET]
    norms = [1.0 + 0.01 * (t % 3) for t in range(202)]
    spoiled = [bad if t in (98, 101, 150) else norm for t, norm in enumerate(norms)]
    assert events(losses, spoiled) == events(losses, norms)


def test_outliers_and_spikes_count_against_nobody():
    losses = [*QUIET]
    for _ in range(20):
        losses += [30.0, *[3.0] * 10, 30.0, 20.0, 10.0, *[3.0] * 10]
    scanned = scan(range(len(losses)), losses)
    assert scanned.verdict.kind == "stable"
    assert [event.kind for event in scanned.events] == ["outlier", "spike"] * 20
    assert len(scanned.spikes) == 20


def test_thresholds_are_the_configs():
    bump = [*QUIET, *[3.2] * 4, *QUIET]
    assert [event.kind for event in events(bump, config=DetectorConfig(spike_evidence=2.8))] == ["outlier"]
    assert events(bump, config=DetectorConfig(spike_floor=0.25)) == ()

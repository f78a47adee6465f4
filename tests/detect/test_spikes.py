"""Outliers and spikes with known onset, peak and end."""

import math
import random

import pytest

from lrsweep.detect import DetectorConfig, DivergenceDetector, Event, scan

# A curve without noise: the line is 0.1 * e^-1.8 = 0.0165 nats, so that any two points of an event give its evidence.
QUIET = [3.0] * 100


def ripple(n, deviation=0.1):
    """A loss of 3 whose rises above the upper median 3.1 spread by 1.4826 * 0.2 = 0.297; 4.5 times that is 1.334.

    Its neighbours never agree, so nothing of a rise is expected to be left at the next point.
    """
    return [3.0 + (deviation if t % 2 else -deviation) for t in range(n)]


LINE = 4.5 * 1.4826 * 0.2


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


@pytest.mark.parametrize(("second", "kind"), [(0.99, "outlier"), (1.01, "spike")])
def test_the_evidence_is_the_sum_of_the_logarithms(second, kind):
    # Twice over the line gives ln 2; the second point must give the rest of 1.8, e^1.8 / 2 = 3.02 times over.
    losses = [*ripple(100), 3.1 + 2 * LINE, 3.1 + second * math.exp(1.8) / 2 * LINE, *ripple(100)]
    assert [event.kind for event in events(losses)] == [kind]


def test_a_low_bump_is_a_spike_if_it_lasts():
    # ln 2 a point: 3 ln 2 = 2.08 is enough, 2 ln 2 = 1.39 is not.
    for points, kind in ((2, "outlier"), (3, "spike")):
        assert [event.kind for event in events([*ripple(100), *[3.1 + 2 * LINE] * points, *ripple(100)])] == [kind]


def test_the_line_is_that_of_the_spread_of_the_rises():
    assert events([*ripple(100), 3.1 + LINE - 0.01, *ripple(100)]) == ()
    assert [event.kind for event in events([*ripple(100), 3.1 + LINE + 0.01, *ripple(100)])] == ["outlier"]


@pytest.mark.parametrize(("high_points", "found"), [(6, True), (7, False)])
def test_what_a_tenth_of_the_points_do_is_no_event(high_points, found):
    # In every 64 points, as many as the window holds, so many lie at 4 and the others at 3.
    curve = [4.0 if t % 64 < 2 * high_points and t % 2 else 3.0 for t in range(640)]
    later = [event for event in events(curve) if event.onset >= 128]
    assert bool(later) == found


def test_a_loss_with_two_levels_raises_no_spike():
    # As where batches come from two corpora, two or three steps from each in turn, and the two grow apart.
    draw = random.Random(0)
    losses, high = [], False
    for t in range(4_000):
        high = high != (draw.random() < 0.4)
        losses.append(3.0 + draw.gauss(0, 0.03) + (min(0.4, t / 4_000) if high else 0.0))
    assert not any(event.kind == "spike" for event in events(losses))


def test_an_average_that_forgets_slowly_makes_no_spike_of_one_outlier():
    # Trainers that print 0.9 * average + 0.1 * loss: one jump decays over 20 points.
    draw = random.Random(0)
    average, raw, averaged = 3.0, [], []
    for t in range(600):
        raw.append(3.0 + draw.gauss(0, 0.05) + (1.0 if t == 300 else 0.0))
        average = 0.9 * average + 0.1 * raw[-1]
        averaged.append(average)
    assert averaged[305] - 3.0 > 0.05
    assert [event.kind for event in events(raw)] == ["outlier"]
    assert [event.kind for event in events(averaged)] == ["outlier"]


def test_the_same_average_of_a_jump_that_lasts_is_a_spike():
    draw = random.Random(0)
    average, averaged = 3.0, []
    for t in range(600):
        average = 0.9 * average + 0.1 * (3.0 + draw.gauss(0, 0.05) + (1.5 if 300 <= t < 306 else 0.0))
        averaged.append(average)
    (spike,) = events(averaged)
    assert (spike.kind, spike.onset, spike.peak) == ("spike", 300, 305)


def test_two_events_are_kept_apart_and_the_first_does_not_hide_the_second():
    found = events([*QUIET, 6.0, 6.0, 3.0, 3.0, 6.0, 6.0, *QUIET])
    assert [(event.kind, event.onset, event.end) for event in found] == [("spike", 100, 102), ("spike", 104, 106)]


def test_a_spike_of_40_points_is_measured_against_the_level_before_it():
    decay = [3.0 + 4 * 0.9**t for t in range(60)]
    (spike,) = events([*QUIET, *decay, *QUIET])
    # 4 * 0.9^t falls to the line of 0.0165 nats at t = 52.1.
    assert (spike.onset, spike.peak, spike.end, spike.size) == (100, 100, 153, 4.0)


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


def test_two_norms_20_times_as_high_as_the_only_one_before_are_a_spike():
    # A fragment of the log of a 104B run.
    fragment = [(11446, 3.063, 12952.6), (11447, 3.114, 262623.3), (11448, 7.712, 254699.3)]
    detector = DivergenceDetector()
    for point in fragment:
        detector.update(*point)
    assert [(event.kind, event.onset) for event in detector.events] == [("spike", 11447)]


def test_a_norm_that_stays_up_is_the_usual_one_after_half_the_baseline():
    # ln(4 / 3.5) = 0.134 a point, for 10 points: not enough.
    assert events([3.0] * 200, [1.0] * 100 + [4.0] * 100) == ()


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 0.0, -1.0])
def test_a_gradient_norm_that_says_nothing_is_as_good_as_none(bad):
    losses = [*QUIET, 5.0, 5.0, *QUIET]
    norms = [1.0 + 0.01 * (t % 3) for t in range(202)]
    spoiled = [bad if t in (98, 101, 150) else norm for t, norm in enumerate(norms)]
    assert events(losses, spoiled) == events(losses, norms)


def test_outliers_and_spikes_count_against_nobody():
    losses = [*QUIET]
    for _ in range(20):
        losses += [30.0, *[3.0] * 70, 30.0, 20.0, 10.0, *[3.0] * 70]
    scanned = scan(range(len(losses)), losses)
    assert scanned.verdict.kind == "stable"
    assert [event.kind for event in scanned.events] == ["outlier", "spike"] * 20
    assert len(scanned.spikes) == 20


def test_thresholds_are_the_configs():
    bump = [*ripple(100), *[3.1 + 2 * LINE] * 3, *ripple(100)]
    assert [event.kind for event in events(bump)] == ["spike"]
    assert [event.kind for event in events(bump, config=DetectorConfig(spike_evidence=2.1))] == ["outlier"]
    assert events(bump, config=DetectorConfig(spike_floor=2.1 * LINE)) == ()
    assert events(bump, config=DetectorConfig(spike_sigmas=9.1)) == ()

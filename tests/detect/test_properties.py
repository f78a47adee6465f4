"""What holds for every sequence."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lrsweep.detect import DetectorConfig, DivergenceDetector, scan

# Small numbers, so that short sequences meet every branch.
SMALL = DetectorConfig(
    patience=4, smooth=3, grace_steps=3, window=12, baseline=6, margin=0.5, spike_evidence=1.5, stall_level=2.0
)
BAD = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, None])

# Multiples of 1/64 of modest size: sums and differences of them are exact, so that equality may be asked for.
WIGGLES = st.lists(st.integers(-6, 6), min_size=1, max_size=14)
SEGMENTS = st.lists(st.tuples(st.sampled_from([0, 8, 48, 64, 128, 640]), WIGGLES), min_size=1, max_size=6)
CURVES = SEGMENTS.map(
    lambda segments: [(128 + level + wiggle) / 64 for level, wiggles in segments for wiggle in wiggles]
)
NORMS = st.one_of(BAD, st.sampled_from([0.0, -1.0, 5e-324, 0.5, 1.0, 1.5, 4.0, 20.0, 1e300]))


def outcome(scanned):
    """All decisions, without the sentence that holds the losses themselves."""
    verdict = scanned.verdict
    return verdict.kind, verdict.onset, verdict.step, scanned.events


def with_norms(data, losses):
    return data.draw(st.one_of(st.none(), st.lists(NORMS, min_size=len(losses), max_size=len(losses))))


@given(st.data(), CURVES)
def test_bad_points_in_short_rows_leave_no_trace(data, losses):
    """Fewer than ``nonfinite_points`` in a row, none at the very end: all later decisions are the ones without them."""
    norms = [data.draw(st.sampled_from([None, 1.0, 1.5, 20.0])) for _ in losses]
    clean, spoiled = DivergenceDetector(SMALL), DivergenceDetector(SMALL)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        for bad in data.draw(st.lists(BAD, max_size=2)):
            spoiled.update(step, bad, data.draw(NORMS))
        assert clean.update(step, loss, norm) == spoiled.update(step, loss, norm)
        assert clean.events == spoiled.events
    assert clean.finish() == spoiled.finish()


@given(st.lists(st.tuples(st.floats() | st.none(), st.floats() | st.none()), max_size=60))
def test_no_float_raises_and_the_state_stays_json(points):
    detector = DivergenceDetector(SMALL)
    for step, (loss, norm) in enumerate(points):
        detector.update(step, loss, norm)
        json.dumps(detector.state_dict(), allow_nan=False)
    detector.finish()


@given(st.data(), CURVES)
@settings(max_examples=50)
def test_resumed_is_continuous_at_every_cut(data, losses):
    losses = [data.draw(BAD) if data.draw(st.integers(0, 9)) == 0 else loss for loss in losses]
    norms = with_norms(data, losses) or [None] * len(losses)
    points = list(zip(range(len(losses)), losses, norms, strict=True))
    whole = DivergenceDetector(SMALL)
    saved = [json.dumps(whole.state_dict(), allow_nan=False)]
    for point in points:
        whole.update(*point)
        saved.append(json.dumps(whole.state_dict(), allow_nan=False))
    for cut, state in enumerate(saved):
        resumed = DivergenceDetector(SMALL)
        resumed.load_state_dict(json.loads(state))
        for point in points[cut:]:
            resumed.update(*point)
        assert resumed.state_dict() == whole.state_dict()
        assert resumed.finish() == whole.finish()
        assert resumed.events == whole.events


@given(st.data(), CURVES)
def test_scan_is_the_same_as_update_by_update(data, losses):
    norms = with_norms(data, losses)
    detector = DivergenceDetector(SMALL)
    for step, loss in enumerate(losses):
        detector.update(step, loss, None if norms is None else norms[step])
    scanned = scan(range(len(losses)), losses, norms, SMALL)
    assert (scanned.verdict, scanned.events) == (detector.finish(), detector.events)


@given(st.data(), CURVES, st.integers(-1000, 1000))
def test_a_constant_added_to_all_losses_changes_no_decision(data, losses, constant):
    norms = with_norms(data, losses)
    no_stall = replace(SMALL, stall_level=None)
    steps = range(len(losses))
    moved = [loss + constant for loss in losses]
    assume(moved[0] != 0)  # which is no loss yet
    assert outcome(scan(steps, losses, norms, no_stall)) == outcome(scan(steps, moved, norms, no_stall))


@given(st.data(), CURVES)
def test_an_unstable_verdict_is_final(data, losses):
    losses = [data.draw(BAD) if data.draw(st.integers(0, 4)) == 0 else loss for loss in losses]
    detector = DivergenceDetector(SMALL)
    verdicts = [detector.update(step, loss) for step, loss in enumerate(losses)]
    assert all(later == earlier for earlier, later in pairwise(verdicts) if earlier.unstable)
    if detector.verdict.unstable:
        assert detector.finish() == detector.verdict


@given(st.data(), CURVES, st.integers(2, 200))
def test_the_interval_between_points_scales_the_steps_of_all_decisions(data, losses, every):
    norms = with_norms(data, losses)
    first = 1_000  # past the grace, which is the one thing counted in steps
    dense = scan([first + t for t in range(len(losses))], losses, norms, SMALL)
    sparse = scan([first + every * t for t in range(len(losses))], losses, norms, SMALL)

    def scaled(step):
        return None if step is None else first + every * (step - first)

    assert sparse.verdict.kind == dense.verdict.kind
    assert (sparse.verdict.onset, sparse.verdict.step) == (scaled(dense.verdict.onset), scaled(dense.verdict.step))
    times = [(event.kind, scaled(event.onset), scaled(event.peak), scaled(event.end)) for event in dense.events]
    assert times == [(event.kind, event.onset, event.peak, event.end) for event in sparse.events]


@given(st.data(), CURVES, st.integers(20, 40))
def test_a_run_put_back_to_its_start_is_judged_as_a_new_one(data, losses, before):
    norms = with_norms(data, losses) or [None] * len(losses)
    again, fresh = DivergenceDetector(SMALL), DivergenceDetector(SMALL)
    for step in range(before):
        again.update(step, 20.0 - step / 64)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        assert again.update(step, loss, norm) == fresh.update(step, loss, norm)
    assert (again.finish(), again.events) == (fresh.finish(), fresh.events)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 200)), max_size=80))
def test_steps_in_any_order_raise_nothing(points):
    detector = DivergenceDetector(SMALL)
    for step, loss in points:
        detector.update(step, loss / 64)
        json.dumps(detector.state_dict(), allow_nan=False)
    detector.finish()


@given(CURVES)
def test_events_are_in_order_and_apart(losses):
    found = scan(range(len(losses)), losses, config=SMALL).events
    for event in found:
        assert event.onset <= event.peak
        assert event.end is None or event.peak < event.end or event.end - event.onset == SMALL.window - 1
        assert event.size > 0
    assert all(earlier.end is not None and earlier.end <= later.onset for earlier, later in pairwise(found))


@given(st.lists(st.integers(0, 31), min_size=30, max_size=120))
def test_a_curve_that_stays_within_the_margin_of_its_best_is_stable(wiggles):
    scanned = scan(range(len(wiggles)), [3.0 + wiggle / 64 for wiggle in wiggles])
    assert scanned.verdict.kind == "stable"


@pytest.mark.parametrize("wanted", ["stable", "diverged", "nonfinite", "stalled", "outlier", "spike"])
def test_the_strategies_reach_every_outcome(wanted):
    """The properties above are worth something only if their curves meet every branch."""
    seen = set()

    @given(CURVES, st.booleans())
    @settings(max_examples=400, database=None, derandomize=True)
    def look(losses, broken):
        losses = [*losses, math.nan] if broken else losses
        scanned = scan(range(len(losses)), losses, config=SMALL)
        seen.add(scanned.verdict.kind)
        seen.update(event.kind for event in scanned.events)

    look()
    assert wanted in seen

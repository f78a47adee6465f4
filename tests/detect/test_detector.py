"""Non-finite losses, the interface, and the hygiene of the import."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from lrsweep.detect import DetectorConfig, DivergenceDetector, scan

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e308, -1e308])
def test_the_third_non_finite_loss_in_a_row_is_told(bad):
    detector = DivergenceDetector()
    kinds = [detector.update(step, loss).kind for step, loss in enumerate([3.0] * 5 + [bad] * 4)]
    assert kinds == ["stable"] * 7 + ["nonfinite"] * 2
    assert (detector.verdict.onset, detector.verdict.step) == (5, 7)
    assert detector.verdict.unstable


def test_the_count_is_the_configs():
    losses = [3.0, NAN, 3.0, NAN, NAN, 3.0]
    assert scan(range(6), losses).verdict.kind == "stable"
    assert scan(range(6), losses, config=DetectorConfig(nonfinite_points=2)).verdict.kind == "nonfinite"
    assert scan(range(6), losses, config=DetectorConfig(nonfinite_points=1)).verdict.onset == 1


def test_a_loss_that_was_not_logged_neither_breaks_nor_lengthens_the_row():
    verdict = scan(range(7), [3.0, NAN, None, NAN, None, None, NAN]).verdict
    assert (verdict.kind, verdict.onset, verdict.step) == ("nonfinite", 1, 6)
    assert scan(range(5), [3.0, NAN, None, NAN, 3.0]).verdict.kind == "stable"


def test_a_run_that_ends_on_one_is_nonfinite():
    verdict = scan(range(10), [3.0] * 9 + [NAN]).verdict
    assert (verdict.kind, verdict.onset) == ("nonfinite", 9)


def test_a_run_of_nothing_else():
    assert scan(range(10), [NAN] * 10).verdict.step == 2
    assert scan(range(10), [None] * 10).verdict.kind == "stable"


def test_non_finite_counts_in_the_grace_steps_too():
    assert DivergenceDetector(DetectorConfig(grace_steps=1000)).update(0, NAN).kind == "stable"
    assert scan(range(3), [NAN] * 3, config=DetectorConfig(grace_steps=1000)).verdict.kind == "nonfinite"


def test_a_non_finite_gradient_norm_is_no_verdict():
    assert scan(range(50), [3.0] * 50, [NAN] * 50).verdict.kind == "stable"


def test_the_largest_float32_is_a_loss_and_the_next_is_none():
    assert scan(range(3), [3.4028234663852886e38] * 3).verdict.kind == "stable"
    assert scan(range(3), [3.41e38] * 3).verdict.kind == "nonfinite"


def test_signals_take_part_in_no_decision():
    plain, signalled = DivergenceDetector(), DivergenceDetector()
    for step in range(200):
        loss = 3.0 if step < 100 else 5.0
        assert plain.update(step, loss) == signalled.update(step, loss, signals={"logit_max": NAN, "x": 1e308})
    assert plain.state_dict() == signalled.state_dict()


def test_verdict_and_event_are_immutable_values():
    verdict = scan(range(3), [3.0] * 3).verdict
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.kind = "diverged"  # type: ignore[misc]
    assert not verdict.unstable


def test_state_is_strict_json_even_after_everything():
    detector = DivergenceDetector()
    assert json.loads(json.dumps(detector.state_dict(), allow_nan=False)) == detector.state_dict()
    for step, loss in enumerate([3.0] * 60 + [NAN, INF, None, 3.4e38, -3.4e38, 1e308] + [9.0] * 4):
        detector.update(step, loss, grad_norm=INF if step % 2 else 5e-324)
    assert json.loads(json.dumps(detector.state_dict(), allow_nan=False)) == detector.state_dict()


def test_the_state_does_not_change_behind_its_owner():
    detector = DivergenceDetector()
    for step in range(50):
        detector.update(step, 3.0, 1.0)
    state = detector.state_dict()
    before = json.dumps(state)
    for step in range(50, 90):
        detector.update(step, 9.0, 50.0)
    assert json.dumps(state) == before


def test_scan_says_when_lengths_differ():
    with pytest.raises(ValueError, match="shorter"):
        scan(range(5), [3.0] * 4)
    with pytest.raises(ValueError, match="shorter"):
        scan(range(5), [3.0] * 5, [1.0] * 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("margin", 0.0),
        ("patience", 0),
        ("smooth", -1),
        ("window", NAN),
        ("recovery", 1.0),
        ("grad_factor", 0.5),
        ("patience_share", 1.0),
        ("patience_share", -0.1),
    ],
)
def test_the_config_names_the_field_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=field):
        DetectorConfig(**{field: value})


def test_a_grace_of_none_and_a_negative_stall_level_are_fine():
    assert DetectorConfig(grace_steps=0, stall_level=-1.0).grace_steps == 0


def test_the_import_brings_the_standard_library_and_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import lrsweep.detect; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "lrsweep" in loaded
    assert loaded - {"lrsweep"} <= sys.stdlib_module_names

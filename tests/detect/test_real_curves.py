"""The defaults on labelled curves of public training runs; the curves themselves are not part of the project."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from lrsweep.detect import DivergenceDetector, scan

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "curves"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the labelled curves are not at {FOLDER}")


def labels():
    if not FOLDER.is_dir():
        return []
    with (FOLDER / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def rows(*wanted):
    return [pytest.param(row, id=row["file"]) for row in labels() if row["label"] in wanted]


def load(row):
    """Steps, losses and gradient norms; an empty cell is a value that was not logged."""
    with (FOLDER / row["file"]).open() as file:
        points = list(csv.DictReader(file))

    def column(name):
        return [float(point[name]) if point.get(name) else None for point in points]

    return [int(float(point["step"])) for point in points], column("loss"), column("grad_norm")


@pytest.mark.parametrize("row", rows("nonfinite"))
def test_non_finite_runs_are_told(row):
    verdict = scan(*load(row)).verdict
    assert verdict.kind == "nonfinite"
    if row["event_first_step"]:
        assert verdict.onset == int(row["event_first_step"])


@pytest.mark.parametrize("row", rows("divergence", "divergence_slow"))
def test_diverged_runs_are_told(row):
    verdict = scan(*load(row)).verdict
    assert verdict.kind == "diverged"
    assert int(row["event_first_step"]) <= verdict.onset <= int(row["event_last_step"])


@pytest.mark.parametrize("row", rows("spike_recovered"))
def test_spikes_that_recovered_are_events_and_no_verdict(row):
    scanned = scan(*load(row))
    first, last = int(row["event_first_step"]), int(row["event_last_step"])
    near = [event for event in scanned.spikes if event.onset <= last and (event.end is None or event.end >= first)]
    assert near
    assert scanned.verdict.kind == "stable"


@pytest.mark.parametrize("row", rows("spikes_repeated"))
def test_repeated_spikes_are_events_or_a_verdict(row):
    scanned = scan(*load(row))
    assert scanned.spikes or scanned.verdict.unstable


@pytest.mark.parametrize("row", rows("healthy"))
def test_healthy_runs_raise_no_alarm(row):
    scanned = scan(*load(row))
    assert scanned.verdict.kind == "stable"
    assert scanned.spikes == ()


def test_jumps_of_the_data_raise_one_alarm_at_most():
    alarms = Counter()
    found = rows("data_outliers")
    for param in found:
        row = param.values[0]
        scanned = scan(*load(row))
        alarms[row["file"]] += scanned.verdict.unstable + len(scanned.spikes)
    assert len(alarms) == len(found) > 0
    assert alarms.total() <= 1, +alarms


def test_the_gradient_norm_of_the_176b_run_is_told_before_its_loss_jumps():
    (row,) = [row for row in labels() if "176B" in row["file"]]
    detector = DivergenceDetector()
    for step, loss, norm in zip(*load(row), strict=True):
        if loss > 5:  # the jump
            break
        detector.update(step, loss, norm)
    assert [event.kind for event in detector.events] == ["spike"]

"""The learning rate of a step: closed forms and properties."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.config import TrainConfig
from lrsweep.train.schedule import learning_rate

SCHEDULES = ("cosine", "linear", "constant")


def config(schedule: str, *, steps: int = 110, warmup: int = 10, ratio: float = 0.1) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=1,
        warmup_steps=warmup,
        schedule=schedule,  # type: ignore[arg-type]
        final_lr_ratio=ratio,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_a_line_from_0_that_reaches_the_peak_at_its_last_step(schedule: str) -> None:
    for step in range(11):
        assert learning_rate(step, 3e-3, config(schedule)) == pytest.approx(3e-3 * step / 10, rel=1e-15)
    assert learning_rate(10, 3e-3, config(schedule)) == 3e-3


@pytest.mark.parametrize(
    ("schedule", "quarter", "half", "end"),
    [
        ("cosine", 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55, 0.1),
        ("linear", 0.775, 0.55, 0.1),
        ("constant", 1.0, 1.0, 1.0),
    ],
)
def test_decay_at_a_quarter_half_and_the_end(schedule: str, quarter: float, half: float, end: float) -> None:
    """Of the 100 steps after the warm-up; the last step has exactly peak · final_lr_ratio."""
    for step, expected in ((35, quarter), (60, half), (110, end)):
        assert learning_rate(step, 0.5, config(schedule)) == pytest.approx(0.5 * expected, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warmup_the_decay_starts_at_once_from_a_peak_at_step_0(schedule: str) -> None:
    bare = config(schedule, steps=100, warmup=0)
    assert learning_rate(0, 2.0, bare) == 2.0
    for step in range(1, 101):
        assert learning_rate(step, 2.0, bare) == learning_rate(step + 10, 2.0, config(schedule))


@settings(max_examples=200)
@given(data=st.data(), schedule=st.sampled_from(SCHEDULES), peak=st.floats(1e-6, 10), ratio=st.floats(0, 1))
def test_never_above_the_peak_nor_below_its_floor_and_monotone(
    data: st.DataObject, schedule: str, peak: float, ratio: float
) -> None:
    """Rising up to the warm-up, falling after it, within peak·[ratio, 1] there; positive at step 1; no NaN."""
    steps = data.draw(st.integers(1, 300), label="steps")
    warmup = data.draw(st.integers(0, steps - 1), label="warmup")
    train = config(schedule, steps=steps, warmup=warmup, ratio=ratio)
    lrs = [learning_rate(step, peak, train) for step in range(1, steps + 1)]
    slack = 1e-12 * peak
    assert all(0 <= lr <= peak for lr in lrs)
    rise, after = lrs[:warmup], lrs[max(warmup - 1, 0) :]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert all(a >= b - slack for a, b in itertools.pairwise(after))
    assert all(lr >= peak * ratio - slack for lr in after)
    if warmup:
        assert max(lrs) == lrs[warmup - 1] == peak
    if schedule != "constant":
        assert lrs[-1] == pytest.approx(peak * ratio, rel=1e-9, abs=slack)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_proportional_to_the_peak(schedule: str) -> None:
    """So that one schedule serves a whole grid of learning rates."""
    for step in (1, 7, 10, 40, 110):
        one = learning_rate(step, 1.0, config(schedule))
        assert learning_rate(step, 0.03, config(schedule)) == pytest.approx(0.03 * one, rel=1e-14)

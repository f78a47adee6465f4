"""What other people's logs hold besides a loss that falls: each with the verdict it gets, and why it should."""

import math
import random

import pytest

from lrsweep.detect import DetectorConfig, scan


def falling(points, *, start=10.0, end=3.0, deviation=0.04, seed=0):
    """Half of the way in 200 steps, Gaussian noise."""
    draw = random.Random(seed)
    return [end + (start - end) * math.exp(-t / 300) + draw.gauss(0, deviation) for t in range(points)]


def flat(points, level, deviation=0.04, seed=1):
    draw = random.Random(seed)
    return [level + draw.gauss(0, deviation) for _ in range(points)]


def judge(losses, norms=None, steps=None, config=None):
    """Kind of the verdict, and number of spikes."""
    scanned = scan(range(len(losses)) if steps is None else steps, losses, norms, config)
    return scanned.verdict.kind, len(scanned.spikes)


def test_every_step_logged_twice():
    losses = falling(1_000)
    assert judge([x for x in losses for _ in "12"], steps=[t for t in range(1_000) for _ in "12"]) == ("stable", 0)


@pytest.mark.parametrize("back_to", [0, 20, 100, 700])
def test_a_run_put_back_to_an_earlier_step_is_judged_anew(back_to):
    losses = falling(1_000)
    steps = [*range(800), *range(back_to, 1_000)]
    assert judge([losses[step] for step in steps], steps=steps) == ("stable", 0)
    # What diverges after that is told as ever, and from the level that the run was put back to.
    broken = scan([*steps, *range(1_000, 1_100)], [*(losses[step] for step in steps), *flat(100, 9.0)]).verdict
    assert (broken.kind, broken.onset) == ("diverged", 1_000)


def test_a_run_put_back_while_it_is_high_has_to_come_down():
    losses = [*falling(1_000), *flat(10, 9.0), *flat(100, 9.0)]
    assert judge(losses, steps=[*range(1_010), *range(900, 1_000)])[0] == "diverged"
    losses[1_010:] = flat(100, 3.3)
    assert judge(losses, steps=[*range(1_010), *range(900, 1_000)])[0] == "stable"


def test_points_logged_out_of_order_are_no_return():
    steps = [t + (3 if t % 4 == 0 else 0) for t in range(1_000)]
    losses = [20.0 - t / 64 for t in range(1_000)]
    broken = scan([*steps, *range(1_004, 1_064)], [*losses, *flat(60, 20.0)]).verdict
    assert (broken.kind, broken.onset) == ("diverged", 1_004)


def test_a_spike_that_a_return_cuts_off_ends_where_it_was_left():
    losses = [*[3.0] * 100, *[2.9] * 200, 3.3, 3.3, *[3.0] * 100]
    (spike,) = scan([*range(302), *range(50, 150)], losses).events
    assert (spike.kind, spike.onset, spike.end) == ("spike", 300, 301)


@pytest.mark.parametrize("level", [0.0, 3.0, -2.0])
def test_a_constant_loss(level):
    assert judge([level] * 1_000, [1.0] * 1_000) == ("stable", 0)


@pytest.mark.parametrize("deviation", [0.001, 0.004, 0.02])
def test_two_decimals(deviation):
    assert judge([round(x, 2) for x in falling(3_000, deviation=deviation)]) == ("stable", 0)
    assert judge([3.0 + 0.01 * (t % 7 == 0) + 0.02 * (t % 11 == 0) for t in range(3_000)]) == ("stable", 0)


@pytest.mark.parametrize("accumulated", [8, 64])
def test_a_sum_over_accumulation_steps(accumulated):
    assert judge([accumulated * x for x in falling(3_000)]) == ("stable", 0)
    broken = [accumulated * x for x in falling(3_000) + flat(100, 9.0)]
    assert judge(broken)[0] == "diverged"


@pytest.mark.parametrize("norm", [math.nan, 0.0, math.inf])
def test_a_gradient_norm_that_never_says_anything(norm):
    assert judge(falling(1_000), [norm] * 1_000) == ("stable", 0)


@pytest.mark.parametrize("last", [[1e4], [9.0, 3.2, 9.0]])
def test_a_last_point_that_is_high_alone_is_nothing(last):
    assert judge([*falling(1_000), *last]) == ("stable", 0)


def test_a_spike_cut_off_by_the_end_of_the_log():
    for points, kind in ((2, "stable"), (19, "stable"), (20, "diverged")):  # 16 after the lag of 4
        assert judge([*falling(1_000), *flat(points, 9.0)]) == (kind, 1)
    assert judge([*falling(1_000), *[3.3 + 6 * 0.95**t for t in range(30)]]) == ("stable", 1)


def test_a_plateau_after_the_learning_rate_fell():
    annealed = [x - 0.3 * t / 500 for t, x in enumerate(flat(500, 3.1))]
    assert judge([*falling(2_000), *annealed, *flat(3_000, 2.8, deviation=0.01)]) == ("stable", 0)


def test_a_loss_that_falls_to_nothing():
    draw = random.Random(0)
    learnt = [9 * math.exp(-t / 200) + 1e-4 * draw.lognormvariate(0, 0.5) for t in range(4_000)]
    assert judge(learnt) == ("stable", 0)
    assert judge([x + 0.05 * (draw.random() < 0.005) for x in learnt]) == ("stable", 0)


BITS_PER_BYTE = DetectorConfig(margin=0.17, spike_floor=0.034)
"""A token of 4.2 bytes: one nat a token is 1 / (4.2 ln 2) = 0.34 bits a byte."""


def test_bits_per_byte_need_their_own_margin():
    healthy = [x / (4.2 * math.log(2)) for x in falling(3_000)]
    broken = [*healthy, *flat(200, healthy[-1] + 0.4, 0.015)]
    assert judge(healthy) == judge(healthy, config=BITS_PER_BYTE) == ("stable", 0)
    assert judge(broken) == ("stable", 1)  # 0.4 bits are 1.2 nats, which half a bit of margin passes over
    assert judge(broken, config=BITS_PER_BYTE)[0] == "diverged"


@pytest.mark.parametrize(
    ("step_up", "kind", "spikes"), [(0.1, "stable", 0), (0.3, "stable", 1), (0.4, "stable", 1), (0.8, "diverged", 1)]
)
def test_another_data_mix_is_judged_by_its_level(step_up, kind, spikes):
    # Nothing in the loss tells worse weights from harder text; one event marks the change, which is a new level then.
    assert judge([*falling(3_000), *flat(2_000, 3.0 + step_up)]) == (kind, spikes)


def test_a_bump_that_is_learnt_away_is_waited_for():
    for half_life in (10, 30):
        bump = [x + 1.0 * 0.5 ** (t / half_life) for t, x in enumerate(flat(1_000, 2.9))]
        assert judge([*falling(3_000), *bump])[0] == "stable"


def test_a_longer_context_lowers_the_level():
    assert judge([*falling(3_000), *flat(1_000, 2.7)]) == ("stable", 0)


def test_negative_losses_of_any_scale():
    draw = random.Random(0)
    assert judge([-100 - 0.025 * t + draw.gauss(0, 30) for t in range(2_000)]) == ("stable", 0)


def test_an_auxiliary_loss_on_top():
    losses = [x + 0.5 * math.exp(-t / 100) + 0.01 * math.sin(t / 50) for t, x in enumerate(falling(3_000))]
    assert judge(losses) == ("stable", 0)

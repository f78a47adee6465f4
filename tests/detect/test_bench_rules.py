"""Other tools' rules against closed forms, and against their own code where it is installed."""

import math
import random
import sys

import pytest

from lrsweep.detector_bench.rules import (
    RULES,
    KillLossSpike,
    LightningSpikeDetection,
    MegatronSpikyLoss,
    SigmaRule,
    TwoOfThree,
    UpwardAdwin,
)

NAN = math.nan


def alarms(rule, losses, norms=None):
    return [t for t, loss in enumerate(losses) if rule(loss, None if norms is None else norms[t])]


def test_lightning_alarms_at_three_times_the_mean_of_the_last_ten():
    assert alarms(LightningSpikeDetection(), [9.0, *[2.0] * 10, 5.99, 2.0]) == []
    assert alarms(LightningSpikeDetection(), [9.0, *[2.0] * 10, 6.0, 2.0]) == [11]


def test_lightning_keeps_what_alarms_out_of_its_mean():
    assert alarms(LightningSpikeDetection(), [2.0, *[6.0] * 3, NAN, 2.0]) == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")
def test_lightning_is_told_as_lightning_tells_it():
    torch = pytest.importorskip("torch")
    original = pytest.importorskip("lightning.fabric.utilities.spike").SpikeDetection()
    ours, draw = LightningSpikeDetection(), random.Random(0)
    theirs, told = [], []
    for t in range(150):
        loss = 2.0 + draw.random() + (draw.choice([6.0, 12.0, -9.0, NAN, math.inf]) if draw.random() < 0.1 else 0.0)
        # 32 bits, as the original computes: a sum in another order must not decide.
        value = torch.tensor(loss)
        spike = t >= 1 and original._is_spike(value)
        if not spike:
            original._update_stats(value)
        theirs.append(bool(spike))
        told.append(ours(value.item(), None))
    assert any(theirs)
    assert not all(theirs)
    assert told == theirs


def test_llm_foundry_wants_five_outliers_in_a_row():
    rule = [*[2.0] * 150, *[5.0] * 4, 2.0, *[5.0] * 5, *[2.0] * 40]
    # The mean of the last 100 rises with each: 5 is twice as much and more all along.
    assert alarms(KillLossSpike(points=200), rule) == [159]


def test_llm_foundry_counts_half_a_window_above_the_first_ones_largest():
    # From its 200th loss on; 50 of the last 100 are above 3 when the 251st comes.
    losses = [*[3.0] * 200, *[3.5] * 60]
    assert alarms(KillLossSpike(points=260), losses)[0] == 250
    assert alarms(KillLossSpike(points=10_000), losses) == []  # a window of 500 is never full


def test_megatron_compares_with_the_largest_of_the_first_hundred():
    first = [*[2.0] * 99, 3.0]
    assert alarms(MegatronSpikyLoss(), [*first, 29.9, 30.0, NAN]) == [101, 102]
    assert alarms(MegatronSpikyLoss(), [2.0] * 99 + [500.0, 30.0]) == []


@pytest.mark.parametrize(("sigmas", "window"), [(6.0, 128), (7.0, 1000)])
def test_sigma_rules_against_the_formula(sigmas, window):
    draw = random.Random(0)
    losses = [3.0 + draw.gauss(0, 0.1) + (draw.random() < 0.02) for _ in range(window + 400)]
    norms = [math.exp(draw.gauss(0, 0.5)) + 50 * (draw.random() < 0.01) for _ in range(window + 400)]

    def high(values, t):
        past = values[t - window : t]
        mean = math.fsum(past) / window
        return values[t] > mean + sigmas * math.sqrt(math.fsum((v - mean) ** 2 for v in past) / window)

    expected = [t for t in range(window, window + 400) if high(losses, t) or high(norms, t)]
    assert len(expected) > 1
    assert alarms(SigmaRule(sigmas=sigmas, window=window), losses, norms) == expected


def test_nan_silences_a_sigma_rule_for_a_window():
    draw = random.Random(0)
    losses = [draw.gauss(3.0, 0.1) for _ in range(400)]
    losses[150], losses[200], losses[350] = NAN, 30.0, 30.0
    assert alarms(SigmaRule(sigmas=6.0, window=128), losses) == [350]


def test_two_of_three():
    draw = random.Random(0)
    quiet = [3.0 * math.exp(draw.gauss(0, 0.01)) for _ in range(200)]
    assert alarms(TwoOfThree(), [*quiet, 9.0, *quiet]) == []
    assert alarms(TwoOfThree(), [*quiet, 9.0, 3.0, 9.0, *quiet]) == [202]
    assert alarms(TwoOfThree(), [*quiet, NAN, 0.0, -1.0]) == [200]


def test_adwin_tells_a_rise_and_not_a_fall():
    pytest.importorskip("river")
    draw = random.Random(0)
    low, high = ([level + draw.gauss(0, 0.05) for _ in range(500)] for level in (3.0, 4.0))
    assert alarms(UpwardAdwin(), [*high, *low]) == []
    (told,) = alarms(UpwardAdwin(), [*low, *high])
    assert 500 <= told < 600
    assert alarms(UpwardAdwin(), [3.0, NAN, 3.0]) == [1]


def test_without_river_its_rules_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "river.drift", None)
    for name in RULES:
        if "ADWIN" in name:
            with pytest.raises(ImportError):
                RULES[name](100)
        else:
            RULES[name](100)

"""The band of stable siblings, and what leaves it: worked by hand, against the formula, and how often by chance."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import Signal, compare, exits, false_alarms, lead_summary, lead_times, make_band, trace
from lrsweep.analysis.lead_time import BAND_COLUMNS, EXIT_COLUMNS, HOLD, LEAD_COLUMNS
from tests.analysis.traces import FLAT, T, level, make_trace, sweep

NAN = math.nan


# ---- the band ----


def test_by_hand():
    band = make_band(FLAT)
    assert band.siblings == 3
    np.testing.assert_array_equal(band.edge[:, 1], np.full(T, 1.5))
    np.testing.assert_array_equal(band.margin, [0.5, 0.5])
    left = exits(make_trace(level(3, 5.25, at=31), level(0, 2.5, at=21)), band, onset=40)
    assert tuple(left.columns) == EXIT_COLUMNS
    assert left.drop(columns="layer").to_numpy().tolist() == [
        [1, "fc2", "l2_rms", 21, 10.0, 19.0, 1.0],
        [2, "loss", "", 31, 0.0, 9.0, 0.75],
    ]
    assert left["layer"][0] == 1
    assert pd.isna(left["layer"][1])


@pytest.mark.parametrize(("high", "leaves"), [(2.0, False), (2.001, True), (-99.0, False)])
def test_the_margin_has_to_be_passed(high, leaves):
    assert len(exits(make_trace(3, level(0, high, at=10)), make_band(FLAT))) == leaves


@pytest.mark.parametrize(("length", "leaves"), [(HOLD - 1, False), (HOLD, True)])
def test_it_has_to_last(length, leaves):
    assert len(exits(make_trace(3, level(0, 9, at=10, until=10 + length)), make_band(FLAT))) == leaves


def test_going_through_the_same_growth_faster_is_no_exit():
    """Four times as fast, and no further than the siblings come in the end."""
    ramp = np.linspace(0, 5, T)
    siblings = [make_trace(3 - ramp, ramp * pace) for pace in (0.8, 0.9, 1.0)]
    fast = make_trace(3 - np.minimum(4 * ramp, 5), np.minimum(4 * ramp, 5))
    assert exits(fast, make_band(siblings)).empty
    further = make_trace(3 - ramp, np.minimum(4 * ramp, 6))
    (row,) = exits(further, make_band(siblings)).to_dict("records")
    # No sibling is above the end of the others' growth for 20 steps; 4 · 5 (t − 1)/(T − 1) first passes 5 here.
    assert row["step"] == 1 + math.ceil(5 / 20 * (T - 1))


def test_signals_that_left_at_the_same_step_are_ranked_by_how_far():
    siblings = [make_trace(3, c, c, c) for c in (0.0, 1.0, 1.5)]
    left = exits(make_trace(3, level(0, 4, at=5), level(0, 6, at=5), level(0, 5, at=5)), make_band(siblings))
    assert left["excess"].tolist() == [4.5, 3.5, 2.5]
    assert left["before_loss"].isna().all()


def test_a_trial_that_was_stopped_is_out_after_its_end():
    high = level(0, 9, at=38)[:40]
    assert exits(make_trace(np.full(40, 3.0), high, steps=40), make_band(FLAT))["step"].tolist() == [38]
    assert exits(make_trace(3, level(0, 9, at=T - 2)), make_band(FLAT)).empty


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 4), scale=st.sampled_from([0.01, 1.0]))
def test_against_the_formula(seed, n, scale):
    rng = np.random.default_rng(seed)
    walks = np.cumsum(rng.normal(0, scale, (n + 1, T, 2)), axis=1).astype(np.float32)
    walks[rng.random(walks.shape) < 0.01] = np.inf
    traces = [make_trace(*walk.T) for walk in walks]
    band = make_band(traces[:n])

    @functools.cache
    def edge(without, t, s):
        ahead = [walks[i, u, s] for i in range(n) if i != without for u in range(t, T)]
        return max([x for x in ahead if np.isfinite(x)], default=-np.inf)

    def held(i, without, t, s):
        return min(walks[i, u, s] - edge(without, u, s) for u in range(t, t + HOLD))

    left = exits(traces[n], band)
    for s, site in enumerate(("loss", "fc2")):
        margin = max([0, *(held(j, j, t, s) for j in range(n) for t in range(T - HOLD + 1))])
        assert band.margin[s] == margin
        out = [t for t in range(T - HOLD + 1) if held(n, None, t, s) > margin]
        assert left.loc[left["site"] == site, "step"].tolist() == [t + 1 for t in out[:1]]


def test_what_is_not_finite_is_above_every_band_and_never_makes_one():
    left = exits(make_trace(3, level(0, math.inf, at=20)), make_band(FLAT))
    assert left[["step", "excess"]].to_numpy().tolist() == [[20, math.inf]]
    blip = make_trace(3, level(0.5, math.inf, at=30, until=33))
    np.testing.assert_array_equal(make_band([*FLAT, blip]).margin, make_band(FLAT).margin)
    broken = make_trace(3, level(0.5, math.inf, at=30))  # a stable trial that stays so: no one leaves
    assert exits(make_trace(3, level(0, math.inf, at=20)), make_band([*FLAT, broken])).empty


def test_runs_shorter_than_the_hold_have_no_exits():
    short = [make_trace(3.0, c, steps=5) for c in (0.0, 1.0, 2.0)]
    assert exits(make_trace(9.0, 9.0, steps=5), make_band(short)).empty


# ---- false alarms ----


def test_false_alarms_by_hand():
    """Left out, only the highest can leave: 1.5 is 0.5 above the rest, of which the highest is 1 above its own."""
    assert false_alarms(FLAT).tolist() == [0, 0, 0]
    siblings = [make_trace(c, c) for c in (0.0, 0.25, 1.5)]
    assert false_alarms(siblings).tolist() == [0, 0, 2]


def test_false_alarms_of_exponential_levels():
    """The two highest spacings of exponential levels are exponential with rates 1 and 2: the first is larger in 2 of 3.

    So of independent signals two thirds raise an alarm, in one of the n siblings each.
    """
    n, n_signals = 5, 4000
    levels = np.random.default_rng(0).exponential(size=(n, n_signals))
    alarms = false_alarms([make_trace(*row, steps=HOLD) for row in levels])
    deviation = math.sqrt(2 / 9 * n_signals)
    assert abs(alarms.sum() - 2 / 3 * n_signals) < 4 * deviation


def test_a_further_stable_trial_leaves_in_about_one_of_n_plus_1():
    """As the module says; the same levels as above, against the band of all."""
    n, n_signals = 9, 4000
    levels = np.random.default_rng(1).exponential(size=(n + 1, n_signals))
    traces = [make_trace(*row, steps=HOLD) for row in levels]
    rate = len(exits(traces[n], make_band(traces[:n]))) / n_signals
    assert rate < 1 / (n + 1)
    assert rate > 0.5 / (n + 1)


# ---- from the records ----


def records(n=4, **steps):
    table = pd.DataFrame({"step": range(1, n + 1), "lr": 0.1, "loss": 2.0, "grad_norm": 1.0, "update_norm": 0.1})
    layers = [
        {"step": t, "layer": layer, "site": "fc2", "stat": "l2_rms", "value": math.e * (layer + 1)}
        for t in range(1, n + 1)
        for layer in range(2)
    ]
    return table.assign(**{"log_z": 7.0, **steps}), pd.DataFrame(layers).astype(
        {"site": "category", "stat": "category"}
    )


def column(result, *signal):
    return result.logs[:, result.signals.index(Signal(*signal))].tolist()


def test_a_trace_is_logarithms():
    steps, layers = records(
        lr=[0.1, 0.2, 0.0, 0.1], update_norm=[0.1 * math.e, 0.2, 0.0, 0.1], loss=[2.0, NAN, -1.0, 0]
    )
    result = trace(steps, layers)
    assert result.signals[:4] == tuple(map(Signal, ("loss", "log_z", "grad_norm", "update_norm")))
    assert column(result, "loss") == [2, math.inf, -1, 0]
    assert column(result, "log_z") == [7] * 4
    assert column(result, "update_norm") == pytest.approx([1, 0, 0, 0])  # no learning rate: nothing measured
    assert column(result, "fc2", 1, "l2_rms") == pytest.approx([1 + math.log(2)] * 4)
    assert [s.name for s in result.signals[3:5]] == ["update_norm/lr", "layer 0 fc2 l2_rms"]


def test_a_trace_keeps_what_is_measured_now_and_then():
    steps, layers = records()
    logits = pd.DataFrame({"step": [2, 4], "layer": 0, "site": "attn", "stat": "logit_max", "value": [1.0, -3.0]})
    result = trace(steps, pd.concat([layers, logits]))
    assert column(result, "attn", 0, "logit_max") == [-math.inf, 0, 0, -math.inf]


def test_a_trace_without_layers():
    steps, layers = records(log_z=None)
    result = trace(steps, layers.head(0))
    assert result.logs.shape == (4, 4)
    assert column(result, "log_z") == [math.inf] * 4


# ---- a sweep ----


def test_lead_times_of_a_sweep():
    judged, traces = sweep()
    lead = lead_times(judged, traces.__getitem__)
    assert tuple(lead.exits.columns) == LEAD_COLUMNS
    assert tuple(lead.bands.columns) == BAND_COLUMNS
    shown = lead.exits[["trial", "rank", "site", "step", "before_loss", "before_onset"]]
    np.testing.assert_equal(
        shown.to_numpy(object).tolist(),
        [["3", 1, "fc2", 20, NAN, NAN], ["4", 1, "fc2", 30, 5.0, 20.0], ["4", 2, "loss", 35, 0.0, 15.0]],
    )
    preln, qknorm = lead.bands.to_dict("records")
    assert (preln["siblings"], preln["signals"], preln["unstable"], preln["siblings_alarmed"]) == (3, 2, 2, 0)
    assert preln["false_alarms"] == 0
    assert (qknorm["siblings"], qknorm["unstable"]) == (2, 1)  # too few: nothing is read, nothing claimed
    assert math.isnan(qknorm["false_alarms"])

    preln, qknorm = lead_summary(lead).to_dict("records")
    assert (preln["left"], preln["first_site"], preln["first_layer"], preln["first_trials"]) == (2, "fc2", 1, 2)
    assert (preln["near_lr"], preln["near_left"], preln["near_site"], preln["near_trials"]) == (0.4, 1, "fc2", 1)
    assert (preln["before_loss"], preln["before_onset"]) == (5, 20)
    assert (qknorm["left"], qknorm["first_site"], qknorm["first_trials"]) == (0, "", 0)
    assert pd.isna(qknorm["first_layer"])


def test_a_sweep_without_unstable_trials():
    judged, traces = sweep()
    lead = lead_times(judged[~judged["unstable"]], traces.__getitem__)
    assert tuple(lead.exits.columns) == LEAD_COLUMNS
    assert lead.exits.empty
    assert lead_summary(lead)["unstable"].tolist() == [0, 0]


def test_a_trial_is_compared_with_the_others_only():
    judged, traces = sweep()
    assert len(compare(judged, "4", traces.__getitem__).siblings) == 3
    assert compare(judged, "4", traces.__getitem__).onset == 50
    stable = compare(judged, "1", traces.__getitem__)
    assert len(stable.siblings) == 2
    assert stable.band is None
    assert stable.exits.empty

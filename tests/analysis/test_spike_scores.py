"""Spike scores: what all trials share is no spike, what one trial does is, and OLMo's rules as written."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrsweep.analysis import frontier, judge, spike_scores, spikes_by_lr
from lrsweep.analysis.spike_scores import SPIKE_COLUMNS, OthersMedian, olmo_code_score, olmo_paper_score
from lrsweep.detect import DetectorConfig, scan
from tests.analysis.tables import make_trials

NAN = math.nan
STEPS = 200
HARD = slice(120, 124)  # four steps are a spike where two are not enough


def curves(n, seed=0):
    """Losses of ``n`` trials: a slow fall, each at a level of its own, with noise of 0.01 nats."""
    rng = np.random.default_rng(seed)
    fall = 3 + 2 * np.exp(-np.arange(STEPS) / 40)
    return fall + 0.1 * np.arange(n)[:, None] + rng.normal(0, 0.01, (n, STEPS))


def score(losses, norms=None, outcomes=None, *, warmup=20, **same):
    """Scores of trials with these losses, of different LRs, stable unless ``outcomes`` says otherwise."""
    norms = np.ones_like(losses) if norms is None else norms
    rows = [{"lr": 0.1 * (i + 1), "steps": STEPS, **same} for i in range(len(losses))]
    trials = make_trials(rows).assign(outcome=outcomes or ["stable"] * len(losses))
    step = np.arange(1, STEPS + 1)
    records = {
        str(i): pd.DataFrame({"step": step, "lr": np.minimum(1, step / warmup), "loss": loss, "grad_norm": norm})
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    }
    return spike_scores(trials, records.__getitem__)


def plain(loss):
    return len(scan(range(1, STEPS + 1), loss, None, DetectorConfig(grace_steps=30)).spikes)


def test_a_hard_batch_in_all_is_a_spike_of_none():
    losses = curves(5)
    losses[:, HARD] += 2
    norms = np.ones_like(losses)
    norms[:, HARD] = 30
    assert all(plain(loss) == 1 for loss in losses)
    assert score(losses, norms)["same_batch_spikes"].tolist() == [0] * 5


@pytest.mark.parametrize("siblings", [2, 3, 8])
def test_an_instability_of_one_is_a_spike_of_that_one(siblings):
    losses = curves(1 + siblings)
    losses[0, HARD] += 2
    assert plain(losses[0]) == 1
    assert score(losses)["same_batch_spikes"].tolist() == [1] + [0] * siblings


def test_it_is_found_under_a_hard_batch():
    losses = curves(5)
    losses[:, HARD] += 2
    losses[0, HARD] += 1
    assert score(losses)["same_batch_spikes"].tolist() == [1, 0, 0, 0, 0]


def test_a_gradient_norm_counts_as_the_ratio_to_its_siblings():
    norms = np.ones((5, STEPS))
    norms[:, 100:104] *= 100
    norms[0, 150:154] *= 100
    assert score(curves(5), norms)["same_batch_spikes"].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(("at", "warmup", "spikes"), [(10, 1, 0), (60, 80, 0), (60, 50, 1)])
def test_the_warm_up_and_the_first_30_steps_are_passed_over(at, warmup, spikes):
    losses = curves(4)
    losses[0, at : at + 4] += 2
    assert score(losses, warmup=warmup)["same_batch_spikes"].tolist() == [spikes, 0, 0, 0]


def test_unstable_trials_are_scored_but_are_no_reference():
    losses = curves(5)
    losses[2:, HARD] += 2
    scores = score(losses, outcomes=["stable"] * 2 + ["degraded"] * 3)
    assert scores["siblings"].tolist() == [1, 1, 2, 2, 2]
    np.testing.assert_equal(scores["same_batch_spikes"].to_numpy(float), [NAN, NAN, 1, 1, 1])
    assert np.isnan(scores["same_batch_spikes_per_1k"][0])
    assert scores["same_batch_spikes_per_1k"][2] == 1000 / STEPS


def test_schemes_share_a_reference_and_sizes_do_not():
    trials = make_trials([{"scheme": s} for s in "abc"] + [{"size": "2m"}] * 3).assign(outcome="stable")
    record = pd.DataFrame({"step": [1, 2], "lr": 1.0, "loss": 3.0, "grad_norm": 1.0})
    scores = spike_scores(trials, lambda _: record)
    assert scores["siblings"].tolist() == [2] * 6
    assert tuple(scores.columns) == SPIKE_COLUMNS


def test_what_is_not_finite_is_passed_over():
    losses = curves(4)
    losses[0, HARD] += 2
    losses[0, 125], losses[1, 121], losses[2, 60:], losses[3, 5] = NAN, math.inf, NAN, NAN
    losses[1:, 80] = NAN
    norms = np.ones_like(losses)
    norms[1:, 90:92] = NAN
    assert score(losses, norms)["same_batch_spikes"].tolist() == [1, 0, 0, 0]


def test_trials_that_ended_early_have_a_reference_up_to_there():
    trials = make_trials([{}] * 4).assign(outcome=["stable"] * 3 + ["diverged"])
    losses = curves(4)
    losses[3, HARD] += 2
    step = np.arange(STEPS)
    whole = [pd.DataFrame({"step": step, "lr": 1.0, "loss": loss, "grad_norm": 1.0}) for loss in losses]
    scores = spike_scores(trials, lambda t: whole[int(t)].head(130 if t == "3" else STEPS))
    assert scores["same_batch_spikes"].tolist() == [0, 0, 0, 1]


@settings(max_examples=25)
@given(
    shared=arrays(float, STEPS, elements=st.floats(-3, 3)),
    factor=arrays(float, STEPS, elements=st.floats(0.01, 100)),
    level=st.floats(-5, 5),
)
def test_what_a_step_adds_to_all_changes_nothing(shared, factor, level):
    losses = curves(4)
    losses[0, HARD] += 2
    norms = np.random.default_rng(1).lognormal(0, 0.1, losses.shape)
    norms[1, 60:64] *= 50
    moved = losses + shared
    moved[2] += level
    expected = [1, 1, 0, 0]
    assert score(losses, norms)["same_batch_spikes"].tolist() == expected
    assert score(moved, norms * factor)["same_batch_spikes"].tolist() == expected


@given(arrays(float, (3, 6), elements=st.floats(-9, 9) | st.just(NAN)))
def test_the_median_of_the_others(values):
    table = pd.DataFrame(values, columns=list("abcdef"))
    stable = list("abcde")
    median = OthersMedian(table, stable)
    for trial in table:
        others = table[[s for s in stable if s != trial]]
        expected = others.median(axis=1).where(table[trial].notna())
        np.testing.assert_allclose(median.of(trial), expected)


# ---- OLMo's scores ----


def alternating(n):
    """0, 1, 0, 1, …: any even window has mean 1/2 and standard deviation 1/2."""
    return np.arange(n) % 2 * 1.0


@pytest.mark.parametrize(("value", "counted"), [(4.0, 1), (3.99, 0), (-3.0, 1), (-2.99, 0)])
def test_olmo_paper_is_seven_deviations_on_either_side(value, counted):
    values = np.append(alternating(1000), value)
    assert olmo_paper_score(values) == pytest.approx(100 * counted / 1001)


@pytest.mark.parametrize(("value", "counted"), [(3.5, 0), (3.51, 1), (-9.0, 0)])
def test_olmo_code_is_more_than_six_above(value, counted):
    values, quiet = np.append(alternating(128), value), np.ones(129)
    assert olmo_code_score(values, quiet) == pytest.approx(100 * counted / 129)
    assert olmo_code_score(quiet, values) == pytest.approx(100 * counted / 129)
    assert olmo_code_score(values, values) == pytest.approx(100 * counted / 129)  # one step, however many reasons


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_olmo_code_step_by_step(seed):
    losses, norms = np.random.default_rng(seed).standard_t(2, (2, 220))
    spikes = 0
    for t in range(128, 220):
        windows = [values[t - 128 : t] for values in (losses, norms)]
        limits = [w.mean() + 6 * math.sqrt(np.mean((w - w.mean()) ** 2)) for w in windows]
        spikes += losses[t] > limits[0] or norms[t] > limits[1]
    assert olmo_code_score(losses, norms) == pytest.approx(100 * spikes / 220)


def test_a_run_no_longer_than_the_window_has_no_score():
    assert math.isnan(olmo_paper_score(alternating(1000)))
    assert olmo_paper_score(alternating(1002)) == 0
    assert math.isnan(olmo_code_score(alternating(128), alternating(128)))
    assert olmo_code_score(alternating(130), alternating(130)) == 0


def test_olmo_leaves_out_what_is_not_finite():
    values = np.insert(np.append(alternating(128), 9.0), 50, [NAN, math.inf])
    assert olmo_code_score(values, np.ones(131)) == pytest.approx(100 / 129)
    assert math.isnan(olmo_paper_score(np.full(2000, NAN)))


# ---- over trials ----


def test_rates_are_spikes_over_steps():
    scores = score(curves(4), outcomes=["stable", "stable", "stable", "degraded"], lr=0.1)
    scores = scores.assign(spikes=[1, 0, 2, 0], same_batch_spikes=[1, NAN, 0, 0], steps=[100, 50, 200, 100])
    scores = scores.assign(olmo_code=[0.5, NAN, 1.5, 1.0])
    (row,) = spikes_by_lr(scores).to_dict("records")
    assert row["trials"] == 4
    assert row["spikes_per_1k"] == pytest.approx(1000 * 3 / 450)
    assert row["same_batch_spikes_per_1k"] == pytest.approx(1000 * 1 / 400)
    assert row["olmo_code"] == pytest.approx(1.0)
    assert math.isnan(row["olmo_paper"])


def test_the_frontier_has_them_where_they_were_scored():
    losses = curves(4)
    losses[3, HARD] += 2
    rows = [{"lr": 0.1 * (i + 1), "steps": STEPS, "loss_final": 2 + i / 100} for i in range(4)]
    trials = make_trials(rows)
    records = [pd.DataFrame({"step": range(STEPS), "lr": 1.0, "loss": loss, "grad_norm": 1.0}) for loss in losses]
    spikes = spike_scores(judge(trials, 0.25), lambda t: records[int(t)])
    assert frontier(trials, 0.25, spikes)["same_batch_spikes_per_1k"].tolist() == [1000 / (4 * STEPS)]
    assert frontier(trials, 0.25)["same_batch_spikes_per_1k"].isna().all()
    assert frontier(trials, 0.25, spikes.head(0))["same_batch_spikes_per_1k"].isna().all()


def test_no_trials_is_an_empty_table():
    scores = spike_scores(make_trials([]).assign(outcome=[]), lambda _: pd.DataFrame())
    assert tuple(scores.columns) == SPIKE_COLUMNS
    assert spikes_by_lr(scores).empty

"""One trial against its siblings, as record, drawing and tables."""

import math

import numpy as np
import pandas as pd
import pytest

from lrsweep.analysis import Signal, compare, lead_times, spikes_by_lr
from lrsweep.analysis.spike_scores import SPIKE_COLUMNS
from lrsweep.report.canvas import save_as, style
from lrsweep.report.lead_figures import draw_lead
from lrsweep.report.lead_info import MOST_SIGNALS, choose_trial, get_lead_info
from lrsweep.report.sibling_tables import excess_text, exits_text, leads_text, spikes_text
from tests.analysis.traces import FLAT, LOSS, NORM, T, level, make_trace, sweep

LEAD = lead_times(sweep()[0], sweep()[1].__getitem__)


def info_of(trial):
    judged, traces = sweep()
    comparison = compare(judged, trial, traces.__getitem__)
    return get_lead_info(comparison, comparison.band)


def test_the_loss_comes_first_and_all_is_in_the_units_of_the_record():
    info = info_of("4")
    assert [(p.signal, p.exit_step) for p in info.panels] == [(LOSS, 35), (NORM, 30)]
    assert info.onset == 50
    assert info.steps.tolist() == list(range(1, T + 1))
    loss, norm = info.panels
    np.testing.assert_allclose([loss.low[0], loss.high[0], loss.limit[0], loss.trial[0], loss.trial[-1]],
                               [3, 4.5, 5, 3, 9])  # fmt: skip
    np.testing.assert_allclose([norm.low[0], norm.high[0], norm.limit[0], norm.trial[-1]],
                               np.exp([0, 1.5, 2, 9]))  # fmt: skip


def test_the_steps_end_at_twice_the_last_exit():
    assert info_of("3").steps[-1] == 2 * 20
    judged, traces = sweep()
    traces["3"] = make_trace(3, level(0, 9, at=2))
    comparison = compare(judged, "3", traces.__getitem__)
    assert get_lead_info(comparison, comparison.band).steps[-1] == 40  # and no sooner than 40


def test_a_site_of_a_layer_is_shown_once_and_only_so_many():
    signals = [LOSS, *(Signal("qkv", i // 2, stat) for i, stat in enumerate(["l2_rms", "l2_max"] * 8))]
    judged, traces = sweep()

    def wide(base, *values):
        columns = make_trace(base, *values)
        return type(columns)(steps=columns.steps, signals=tuple(signals), logs=columns.logs)

    for i in range(3):
        traces[str(i)] = wide(3, *[0.1 * i] * 16)
    traces["4"] = wide(3, *(level(0, 9, at=40 - i) for i in range(16)))
    comparison = compare(judged, "4", traces.__getitem__)
    shown = [p.signal for p in get_lead_info(comparison, comparison.band).panels]
    assert shown == [LOSS, *(Signal("qkv", layer, "l2_max") for layer in (7, 6, 5, 4, 3))]
    assert len(shown) == 1 + MOST_SIGNALS


def test_what_is_not_finite_is_a_gap():
    judged, traces = sweep()
    traces["3"] = make_trace(3, level(0, math.inf, at=20)[:50], steps=50)
    comparison = compare(judged, "3", traces.__getitem__)
    trial = get_lead_info(comparison, comparison.band).panels[1].trial
    assert np.flatnonzero(np.isfinite(trial)).tolist() == list(range(19))


@pytest.mark.parametrize("own", [make_trace(3, 0.5), make_trace(3, level(0, math.inf, at=2)), make_trace(math.inf, 9)])
def test_whatever_happened_can_be_drawn(tmp_path, own):
    judged, traces = sweep()
    comparison = compare(judged, "3", {**traces, "3": own}.__getitem__)
    with style():
        save_as(draw_lead(get_lead_info(comparison, comparison.band), "a trial"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_the_chosen_trial_is_the_nearest_to_the_frontier():
    assert choose_trial(LEAD.exits) == "3"
    other = LEAD.exits.assign(scheme="qknorm", lr=0.01, trial="q")
    assert choose_trial(pd.concat([other, LEAD.exits])) == "3"
    assert choose_trial(LEAD.exits.head(0)) is None


def test_lead_cells():
    preln, qknorm = [dict(zip(leads_text(LEAD).header, row, strict=True)) for row in leads_text(LEAD).rows]
    assert preln["first to leave"] == "fc2 (2 of 2), mostly layer 1"
    assert preln["at the lowest LR"] == "0.4: fc2 (1 of 1), mostly layer 1"
    assert (preln["before loss"], preln["before onset"]) == ("5", "20")
    assert preln["false alarms"] == "0.0% of 2, 0 of 3"
    assert qknorm["first to leave"] == "no band: under 3 stable siblings"
    assert qknorm["false alarms"] == qknorm["before loss"] == qknorm["at the lowest LR"] == "—"


def test_nothing_that_left():
    judged, traces = sweep()
    inside = lead_times(judged, lambda trial: traces.get(trial, FLAT[0]) if trial in "012" else FLAT[0])
    assert [row[4] for row in leads_text(inside).rows] == ["nothing left", "no band: under 3 stable siblings"]
    assert exits_text(inside.exits).rows == ()


def test_exit_cells():
    rows = [dict(zip(exits_text(LEAD.exits).header, row, strict=True)) for row in exits_text(LEAD.exits).rows]
    assert [(r["outcome"], r["LR"], r["first"], r["loss"], r["onset"], r["left"]) for r in rows] == [
        ("degraded", "0.4", "layer 1 fc2 l2_rms @ 20", "—", "—", "1"),
        ("diverged", "0.8", "layer 1 fc2 l2_rms @ 30", "35", "50", "2"),
    ]
    assert exits_text(LEAD.exits).rows[1][6:9] == ("layer 1 fc2 l2_rms @ 30", "loss @ 35", "—")


@pytest.mark.parametrize(
    ("signal", "excess", "text"),
    [
        (LOSS, 0.523, "+0.52 nats"),
        (NORM, math.log(3.25), "×3.25"),
        (NORM, 1e4, "×1.01e304"),
        (NORM, math.inf, "not finite"),
    ],
)
def test_how_far(signal, excess, text):
    assert excess_text(signal, excess) == text


def test_spike_cells():
    row = dict.fromkeys(SPIKE_COLUMNS, 1) | {
        "scheme": "preln",
        "body": "gpt",
        "size": "2m",
        "lr": 0.01,
        "olmo_paper": math.nan,
    }
    row |= {"spikes": 2, "steps": 400, "same_batch_spikes": math.nan, "olmo_code": 0.125}
    table = spikes_text(spikes_by_lr(pd.DataFrame([row])))
    assert table.rows == (("preln", "gpt", "2m", "0.01", "1", "5.00", "—", "0.125", "—"),)

"""What the figures of single trials are given to draw."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsweep.report.run_info import get_norm_info, get_runs_info, thin
from lrsweep.report.section import sections
from lrsweep.store import ResultStore
from tests.analysis.tables import make_curve
from tests.report.synthetic import Sweep, write_sweep


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf]), max_size=300), st.integers(2, 60))
def test_thinning_keeps_extremes_and_order(values, most):
    y = np.array(values, dtype=float)
    curve = thin(np.arange(len(y), dtype=float), y, most)
    finite = y[np.isfinite(y)]
    assert len(curve.steps) <= most or len(finite) <= most
    assert np.isfinite(curve.values).all()
    assert (np.diff(curve.steps) > 0).all()
    np.testing.assert_array_equal(y[curve.steps.astype(int)], curve.values)
    if len(finite):
        assert curve.values.min() == finite.min()
        assert curve.values.max() == finite.max()


def test_a_short_curve_is_left_whole():
    curve = thin(np.arange(5.0), np.array([3.0, np.nan, 1.0, np.inf, 2.0]))
    assert curve.steps.tolist() == [0, 2, 4]
    assert curve.values.tolist() == [3, 1, 2]


def test_runs_skip_what_was_not_measured():
    trials = pd.concat([make_curve({0.1: 2.0, 1.0: 3.0}), make_curve({0.1: 2.0}, scheme="dark")], ignore_index=True)
    trials["trial"] = ["a", "b", "c"]
    (section,) = sections(trials, 0.25)
    records = {
        "a": pd.DataFrame({"step": [0, 1, 2], "logit_max": [5.0, None, 7.0]}),
        "b": pd.DataFrame({"step": [0, 1], "logit_max": [6.0, np.inf]}),
        "c": pd.DataFrame({"step": [0, 1], "logit_max": [None, None]}),
    }
    info = get_runs_info(section, records.__getitem__, "logit_max")
    (panel,) = info.panels
    assert panel.scheme == "preln"
    assert [(r.lr, r.outcome, r.curve.steps.tolist(), r.curve.values.tolist()) for r in panel.runs] == [
        (0.1, "stable", [0, 2], [5, 7]),
        (1.0, "degraded", [0], [6]),
    ]
    assert info.lrs == (0.1, 1.0)


def layers_of(sites: dict[str, float]) -> pd.DataFrame:
    rows = [
        {"step": step, "layer": layer, "site": site, "stat": stat, "value": value * (layer + 1) + step}
        for site, value in sites.items()
        for stat in ("l2_rms", "l2_max")
        for layer in range(2)
        for step in range(3)
    ]
    return pd.DataFrame(rows).astype({"site": "category", "stat": "category"})


def test_norms_stand_for_both_sides_of_the_frontier():
    trials = pd.concat(
        [
            make_curve({0.01: 2.0, 0.1: 2.1, 1.0: 2.2}, seed=0),
            make_curve({0.01: 2.0, 0.1: 2.1, 1.0: 2.6}, seed=1),
        ]
    )
    trials["trial"] = [f"{lr}-{seed}" for lr, seed in zip(trials["lr"], trials["seed"], strict=True)]
    (section,) = sections(trials, 0.25)
    read: list[str] = []

    def layers(trial: str) -> pd.DataFrame:
        read.append(trial)
        return layers_of({"qkv": 10.0, "fc1": 1.0})

    info = get_norm_info(section, layers, "preln")
    # At LR 1 one of two seeds is unstable, so the LR is, and the seed that shows it is drawn.
    assert read == ["0.01-0", "0.1-0", "1.0-1"]
    assert [c.title for c in info.columns] == ["best LR: 0.01", "largest stable LR: 0.1", "smallest unstable LR: 1"]
    assert set(info.columns[0].curves) == {"qkv"}
    assert info.columns[0].curves["qkv"][1].values.tolist() == [20, 21, 22]


def test_one_trial_can_be_best_and_largest_stable():
    (section,) = sections(make_curve({0.1: 2.0}), 0.25)
    info = get_norm_info(section, lambda _: layers_of({"proj": 1.0}), "preln")
    assert [c.title for c in info.columns] == ["best and largest stable LR: 0.1"]


@pytest.mark.parametrize("sites", [("fc1", "attn"), ()])
def test_no_norms_of_the_sites_that_tell(tmp_path, sites):
    store = ResultStore(tmp_path)
    write_sweep(store, Sweep(schemes=("preln",), lrs=(0.01,), seeds=(0,), steps=5, sites=sites))
    (section,) = sections(store.write_trials(), 0.25)
    assert get_norm_info(section, store.layers, "preln").columns == ()


def test_a_scheme_of_which_nothing_is_known_has_no_columns():
    (section,) = sections(make_curve({0.1: "stalled"}), 0.25)
    assert get_norm_info(section, lambda _: layers_of({"qkv": 1.0}), "preln").columns == ()

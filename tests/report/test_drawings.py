"""Every figure can be drawn from anything a sweep may have left behind."""

import math
from dataclasses import replace

import pytest

from lrsweep.analysis import lead_times
from lrsweep.report.canvas import save, style
from lrsweep.report.figures import drawings
from lrsweep.report.section import sections
from lrsweep.store import ResultStore
from tests.analysis.tables import make_trials
from tests.report.synthetic import Sweep, make_trial, write_sweep

SMALL = Sweep(schemes=("preln", "qknorm"), lrs=(0.01, 0.1, 1.0), seeds=(0, 1), steps=30, layers=2)
NO_EXITS = lead_times(make_trials([]).assign(outcome="", unstable=False), lambda _: None).exits
FIGURES = ["frontier", "tolerance", "loss_vs_lr", "loss_curves", "logits"]


def names(store: ResultStore, folder) -> list[str]:
    """Draw and save all there is to draw."""
    found = []
    with style():
        for section in sections(store.write_trials(), 0.25):
            for drawing in drawings(section, store, store.steps, NO_EXITS):
                paths = save(drawing.figure, folder, drawing.name)
                assert all(path.stat().st_size > 0 for path in paths.values())
                found.append(drawing.name)
    return found


@pytest.mark.parametrize(
    "sweep",
    [
        SMALL,
        replace(SMALL, schemes=("preln",), lrs=(0.01,), seeds=(0,)),
        replace(SMALL, schemes=("preln",), lrs=(0.01,), seeds=(0,), steps=1),
        replace(SMALL, schemes=("preln",), lrs=(30.0, 100.0)),  # none stable
        replace(SMALL, lrs=(1e-3, 3e-3)),  # none unstable
        replace(SMALL, sites=("qkv",), probe_every=7),
    ],
)
def test_all_figures(tmp_path, sweep):
    store = ResultStore(tmp_path)
    write_sweep(store, sweep)
    assert names(store, tmp_path / "report") == FIGURES + [f"norms-{scheme}" for scheme in sweep.schemes]


def test_nan_everywhere(tmp_path):
    store = ResultStore(tmp_path)
    for lr in (0.1, 1.0):
        row, steps, layers = make_trial(SMALL, "preln", lr, 0)
        row = replace(row, verdict="nonfinite", loss_init=math.nan, loss_final=math.nan, logit_max=math.nan)
        steps = {name: values if name == "step" else [math.nan] * len(values) for name, values in steps.items()}
        store.write_trial(row, steps, {**layers, "value": [math.nan] * len(layers["value"])})
    assert names(store, tmp_path / "report") == ["frontier", "tolerance", "loss_vs_lr"]


def test_nothing_logged_but_the_loss(tmp_path):
    store = ResultStore(tmp_path)
    row, steps, layers = make_trial(SMALL, "preln", 0.1, 0)
    steps = {name: values if name in ("step", "loss") else [None] * len(values) for name, values in steps.items()}
    store.write_trial(replace(row, loss_init=math.nan), steps, {name: [] for name in layers})
    assert names(store, tmp_path / "report") == ["frontier", "tolerance", "loss_vs_lr", "loss_curves"]


def test_trials_whose_records_are_gone_are_left_out_of_their_figures(tmp_path):
    store = ResultStore(tmp_path)
    write_sweep(store, SMALL)
    trials = store.write_trials()
    for path in tmp_path.glob("layers/*"):
        path.unlink()
    for path in tmp_path.glob("steps/qknorm*"):
        path.unlink()
    (section,) = sections(trials, 0.25)
    with style():
        drawn = {drawing.name: drawing for drawing in drawings(section, store, store.steps, NO_EXITS)}
    assert list(drawn) == FIGURES
    assert [axes.get_title() for axes in drawn["logits"].figure.axes][:-1] == ["preln"]


def test_file_names_are_safe(tmp_path):
    store = ResultStore(tmp_path)
    row, steps, layers = make_trial(SMALL, "a b/../ç", 0.1, 0)
    store.write_trial(replace(row, trial="t"), steps, layers)
    assert names(store, tmp_path / "report")[-1] == "norms-a_b_..__"

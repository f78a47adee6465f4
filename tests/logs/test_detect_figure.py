"""What the figure of a run shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrsweep.detect import Event, Scan, Verdict
from lrsweep.detect_figure import draw_runs, get_run_picture
from lrsweep.logs import Curve
from lrsweep.report.canvas import save_as, style

STABLE = Verdict("stable", "nothing found")


def curve(losses: list[float], *, name: str = "runs/one/train.log", first: int = 0) -> Curve:
    return Curve(
        name=name,
        format="text",
        steps=tuple(range(first, first + len(losses))),
        losses=tuple(losses),
        grad_norms=None,
        step_key="step",
        loss_key="loss",
        grad_norm_key=None,
        notes=(),
    )


def test_the_baseline_is_the_median_of_the_last_finite_points() -> None:
    losses = [9.0, 1.0, math.nan, 5.0, 3.0, math.inf, 4.0]
    picture = get_run_picture(curve(losses, first=10), Scan(STABLE, ()), window=3)
    assert picture.baseline_steps.tolist() == [10, 11, 13, 14, 16]
    assert picture.baseline.tolist() == [9.0, 5.0, 5.0, 3.0, 4.0]
    assert picture.losses.tolist() == [9.0, 1.0, 5.0, 3.0, 4.0]
    assert picture.nonfinite == (12, 15)


def test_events_and_verdict() -> None:
    losses = [3.0] * 100
    losses[40], losses[70] = 8.0, 6.0
    events = (Event("outlier", 40, 40, 41, 5.0), Event("spike", 70, 70, None, 3.0))
    verdict = Verdict("diverged", "left its best", onset=70, step=90)
    picture = get_run_picture(curve(losses), Scan(verdict, events), window=20)
    assert picture.title == "one/train.log\ndiverged from step 70"
    assert picture.spikes == ((70, 99),)
    assert (picture.outliers, picture.outlier_losses) == ((40,), (8.0,))
    assert picture.onset == 70
    assert picture.limits is not None
    low, high = picture.limits
    assert low < 3.0
    assert 6.0 < high < 8.0  # a spike is in sight; a lone outlier may lie beyond


def test_a_long_run_is_thinned_and_loses_no_peak() -> None:
    losses = (3.0 + np.sin(np.arange(50_000.0))).tolist()
    losses[12_345] = 99.0
    picture = get_run_picture(curve(losses), Scan(STABLE, ()), window=20)
    assert len(picture.losses) <= 4000
    assert 12_345 in picture.steps
    assert len(picture.baseline) <= 4000


def test_a_long_name_keeps_its_end() -> None:
    long = get_run_picture(
        curve([3.0], name="a/" + "x" * 60 + "-seed7.log"), Scan(STABLE, ()), window=20, title_length=20
    )
    name = long.title.split("\n")[0]
    assert len(name) == 20
    assert name.endswith("-seed7.log")


@pytest.mark.parametrize("losses", [[math.nan] * 5, [3.0], [3.0] * 50, [3.0, 1e30, math.inf, 2.5]])
@pytest.mark.parametrize("runs", [1, 6])
def test_anything_can_be_drawn(losses: list[float], runs: int, tmp_path) -> None:
    with style():
        figure = draw_runs([(curve(losses), Scan(STABLE, ()))] * runs, window=20)
        save_as(figure, tmp_path / "out.png")
    assert sum(axes.get_visible() for axes in figure.axes) == runs

"""What the figures of the frontier are given to draw."""

import math

import numpy as np
import pandas as pd
import pytest

from lrsweep.report.frontier_info import get_frontier_info, get_loss_info, get_tolerance_info
from lrsweep.report.section import Section, sections
from tests.analysis.tables import make_curve, make_trials

NAN = math.nan


def section(*parts: pd.DataFrame) -> Section:
    (only,) = sections(pd.concat(parts), 0.25)
    return only


def test_sections_by_body_and_size_without_errors():
    parts = sections(
        make_trials(
            [
                {"size": "10m", "lr": 0.1},
                {"size": "2m", "lr": 0.1},
                {"size": "2m", "lr": 0.3, "seed": 1},
                {"size": "2m", "lr": 1.0, "verdict": "error"},
                {"size": "30m", "verdict": "error"},
                {"body": "llama"},
            ]
        ),
        {"0.2m": 0.25, "2m": 0.5, "10m": 0.5, "30m": 0.5},
    )
    assert [(p.body, p.size, p.epsilon) for p in parts] == [
        ("gpt", "2m", 0.5),
        ("gpt", "10m", 0.5),
        ("llama", "0.2m", 0.25),
    ]
    assert parts[0].lrs == (0.1, 0.3)
    assert parts[0].title == "gpt 2m, ε = 0.5 nats, 2 seeds"
    assert parts[1].title == "gpt 10m, ε = 0.5 nats, 1 seed"


def test_tolerance_lines_are_the_vote():
    seeds = [make_curve({0.1: 2.0, 1.0: 2.0 + e}, seed=i) for i, e in enumerate((0.125, 0.25, 0.5))]
    info = get_tolerance_info(section(*seeds, make_curve({0.1: "diverged"}, scheme="alone")))
    assert [line.scheme for line in info.lines] == ["preln", "alone"]
    assert info.lines[0].epsilon == (0.0, 0.25)
    assert info.lines[0].max_lr == (0.1, 1.0)
    np.testing.assert_equal(info.lines[1].max_lr, (NAN,))


def test_no_trial_is_dropped_from_the_losses():
    info = get_loss_info(
        section(
            make_curve({0.1: 2.0, 1.0: 2.5, 3.0: "diverged"}, seed=0),
            make_curve({0.1: 2.2, 1.0: "nonfinite", 3.0: 7.0}, seed=1),  # 7.0 is above the untrained 5.5
        )
    )
    (line,) = info.lines
    assert [(p.lr, p.seed) for p in line.points] == [(lr, s) for lr in (0.1, 1.0, 3.0) for s in (0, 1)]
    np.testing.assert_equal([p.loss for p in line.points], [2.0, 2.2, 2.5, NAN, NAN, NAN])
    assert [p.outcome for p in line.points] == ["stable", "stable", "degraded", "nonfinite", "diverged", "degraded"]
    assert line.lrs == (0.1, 1.0, 3.0)
    np.testing.assert_allclose(line.mean, (2.1, NAN, NAN))
    assert info.loss_init == 5.5


def test_losses_without_a_known_initial_loss():
    info = get_loss_info(section(make_curve({0.1: 2.0, 1.0: "nonfinite"}, loss_init=NAN)))
    assert math.isnan(info.loss_init)
    np.testing.assert_equal([p.loss for p in info.lines[0].points], [2.0, NAN])


def test_frontier_rows_rise():
    info = get_frontier_info(
        section(
            make_curve({0.1: 2.0, 1.0: 2.0}, scheme="above"),
            make_curve({0.1: "diverged", 1.0: "diverged"}, scheme="below"),
            make_curve({0.1: 2.0, 1.0: 3.0}, scheme="inside"),
            make_curve({0.1: "stalled"}, scheme="unknown"),
        )
    )
    assert [row.scheme for row in info.rows] == ["below", "unknown", "inside", "above"]
    inside = info.rows[2]
    assert (inside.max_stable_lr, inside.min_unstable_lr) == (0.1, 1.0)
    assert inside.lr50_lo < inside.lr50 < inside.lr50_hi
    assert inside.lr50 == pytest.approx(math.sqrt(0.1))

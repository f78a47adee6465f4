"""The analysis held against a real LR sweep over about 20 optimizers that others ran."""

import math
from pathlib import Path

import pandas as pd
import pytest

from lrsweep.analysis import brackets, frontier, grid_advice, judge, tolerance
from tests.analysis.tables import make_trials

CSV = Path(__file__).resolve().parents[3] / "shared" / "curves" / "lr_sweep" / "optimizer_lr_scales.csv"
pytestmark = pytest.mark.skipif(not CSV.exists(), reason=f"the public curves are not at {CSV}")


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    """The tuning phase, an optimizer as a scheme; no run of it diverged by its own account."""
    raw = pd.read_csv(CSV).query("phase == 'tune'")
    rows = [
        {"scheme": r.optimizer, "lr": r.lr, "seed": r.seed, "loss_final": r.final_val_loss, "loss_init": 11.0}
        for r in raw.itertuples()
    ]
    return make_trials(rows)


def test_low_lrs_of_a_u_shape_are_undertrained_not_unstable(trials):
    lamb = judge(trials, 0.5).query("scheme == 'lamb'").sort_values("lr")
    # 9.87, 9.24, 7.94, 6.31, 5.97, 6.55 from 3e-4 to 8.1e-2
    assert lamb["outcome"].tolist() == ["undertrained"] * 3 + ["stable"] * 2 + ["degraded"]
    row = brackets(trials, 0.5).set_index("scheme").loc["lamb"]
    assert (row["max_stable_lr"], row["min_unstable_lr"]) == (0.027, 0.081)


def test_a_curve_that_only_falls_has_its_frontier_above_the_grid(trials):
    only = trials.query("scheme == 'sf-sgd'")
    table = frontier(only, 0.05)
    assert table["best_lr"].item() == 7.29
    assert math.isnan(table["min_unstable_lr"].item())
    (advice,) = grid_advice(table, only)
    assert (advice.where, advice.lrs) == ("above", pytest.approx((21.9, 65.6, 197.0)))


def test_epsilon_decides_for_a_flat_right_flank(trials):
    muon = trials.query("scheme == 'muon'")  # 5.157 at 3e-3, 5.522 at 9e-3
    assert frontier(muon, 0.25)[["max_stable_lr", "min_unstable_lr"]].to_numpy().tolist() == [[0.003, 0.009]]
    assert math.isnan(frontier(muon, 0.5)["min_unstable_lr"].item())
    steps = tolerance(muon)
    assert steps["max_lr"].tolist() == [0.003, 0.009]
    assert steps["epsilon"].tolist() == pytest.approx([0, 5.522243 - 5.157479], abs=1e-6)


def test_every_optimizer_has_a_stable_lr_at_its_best(trials):
    table = frontier(trials, 0.25)
    assert len(table) == 20
    assert (table["max_stable_lr"] >= table["best_lr"]).all()
    assert (table["lr_sensitivity"] > 0).all()

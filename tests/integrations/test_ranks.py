"""Two real processes decide alike, whatever only one of them sees: over gloo, and over NCCL given two GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsweep.detect import scan
from tests.commands import two_ranks
from tests.integrations.two_ranks import QUIET


@pytest.fixture(scope="module", params=["gloo", "nccl"] if torch.cuda.device_count() >= 2 else ["gloo"])
def both(root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    errors = two_ranks("tests.integrations.two_ranks", str(folder), request.param, root=root, timeout=200)
    assert "lrsweep:" in errors[0]
    assert "lrsweep:" not in errors[1]  # one rank speaks
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_the_ranks_agree_on_everything(both):
    same = [{name: seen for name, seen in rank.items() if name != "apart"} for rank in both]
    assert same[0] == same[1]


@pytest.mark.parametrize("scenario", ["nan", "nan, saved", "restored"])
def test_a_nan_on_one_rank_is_one_on_all(both, scenario):
    for rank in both:
        # The third in a row, of step 42, is read in the update of step 43.
        assert (rank[scenario]["kind"], rank[scenario]["onset"], rank[scenario]["stopped"]) == ("nonfinite", 40, 43)


def test_the_error_is_raised_at_the_same_step(both):
    assert [rank["raised"] for rank in both] == [13, 13]


@pytest.mark.parametrize(("scenario", "high"), [("rise", 5.0), ("pipeline", 7.0)])
def test_the_mean_over_the_ranks_that_have_a_loss_is_what_diverges(both, scenario, high):
    verdict = scan(range(100), [3.0] * 40 + [high] * 60, config=QUIET).verdict
    seen = both[0][scenario]
    assert (seen["kind"], seen["onset"], seen["reason"]) == ("diverged", 40, verdict.reason)
    assert seen["stopped"] == verdict.step + 1


def test_ranks_that_differ_but_stay_are_stable(both):
    assert both[0]["stable"]["kind"] == "stable"


def test_ranks_without_a_loss_do_not_count(both):
    assert both[0]["means"] == ["2.0", "3.0", "None", "nan"]


@pytest.mark.parametrize(
    ("scenario", "kind"), [("diverging", "diverged"), ("non-finite", "nonfinite"), ("sharded", "nonfinite")]
)
def test_a_data_parallel_training_stops_on_both(both, scenario, kind):
    run = both[0][scenario]
    assert run["kind"] == kind
    assert run["stopped"] - run["onset"] < 30


def test_a_weight_on_one_rank_is_enough(both):
    assert both[0]["weights"] == both[0]["sharded"]["allowed"] == [True, False]


def test_ranks_that_are_already_synchronized_do_not_meet(both):
    assert [rank["apart"] for rank in both] == [0.0, 1.0]

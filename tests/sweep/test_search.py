"""A search from the command line: what it trains, on Ray as in one process, resumed, and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lrsweep.config import SweepConfig
from lrsweep.errors import UserError
from lrsweep.store import ResultStore
from lrsweep.sweep.plan import make_plan
from lrsweep.sweep.ray_executor import Workers
from lrsweep.sweep.run import command_for
from lrsweep.sweep.search import FrontierSearch
from lrsweep.train import error_row
from tests.commands import lrsweep, whole_trials
from tests.sweep.test_run import UNTIMED

ray = pytest.mark.xdist_group("ray")
"""One after the other: they share a sweep, and one starts a Ray."""
GRID = ("1e-4", "1e-3", "1e-2", "0.1", "1", "10", "100")
ARGUMENTS = ("--arch", "preln", "--lrs", *GRID, "--seeds", "2", "--search", "40", "--steps", "40", "--batch-size", "2")
CONFIG = SweepConfig(arch=("preln", "qknorm"), lrs=(1e-3, 1e-2, 0.1, 1.0), search=2.0, device="cpu")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a search in one process."""
    folder = tmp_path_factory.mktemp("searched")
    result = lrsweep("sweep", *ARGUMENTS, "--device", "cpu", "--out", "out", "--local", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "out", result.stdout


@ray
def test_it_trains_less_than_the_grid_and_says_so(searched: tuple[Path, str]) -> None:
    folder, output = searched
    trials = ResultStore(folder).trials()
    assert "at most 14 trials" in output
    assert "until each LR50 is known within a factor of 40" in output
    assert f"[{len(trials)}/≤14]" in output
    assert 7 < len(trials) < 14
    assert not trials.duplicated(["lr", "seed"]).any()
    row = pd.read_csv(folder / "frontier.csv").iloc[0]
    assert row["lr50_hi"] / row["lr50_lo"] <= 40
    assert "narrow the bracket" not in output


@ray
def test_the_manifest_keeps_what_was_asked_for(searched: tuple[Path, str]) -> None:
    manifest = json.loads((searched[0] / "manifest.json").read_text())
    assert manifest["config"]["search"] == 40
    assert manifest["sizes"]["0.2m"]["lrs"] == [float(lr) for lr in GRID]
    assert "--search 40" in manifest["command"]


@ray
def test_ray_searches_the_same_trials(searched: tuple[Path, str], tmp_path: Path) -> None:
    result = lrsweep("sweep", *ARGUMENTS, "--device", "cpu", "--out", "out", "--jobs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = ResultStore(tmp_path / "out").trials()[UNTIMED], ResultStore(searched[0]).trials()[UNTIMED]
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@ray
def test_it_goes_on_where_it_stopped(searched: tuple[Path, str], tmp_path: Path) -> None:
    """From the first half of its records, and at its end from all of them: nothing is run then."""
    shutil.copytree(searched[0], tmp_path / "out")
    kept = whole_trials(tmp_path / "out")
    for trial in sorted(kept, key=lambda trial: kept[trial])[len(kept) // 2 :]:
        (tmp_path / "out" / "steps" / f"{trial}.parquet").unlink()
        del kept[trial]
    flags = (*ARGUMENTS, "--device", "cpu", "--out", "out", "--local")
    result = lrsweep("sweep", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(kept)} trials are finished" in result.stdout
    after = whole_trials(tmp_path / "out")
    assert {t: after[t] for t in kept} == kept
    assert set(after) == set(whole_trials(searched[0]))
    again = lrsweep("sweep", *flags, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert whole_trials(tmp_path / "out") == after


def searching(config: SweepConfig = CONFIG) -> FrontierSearch:
    plan = make_plan(config)
    assert config.search is not None
    return FrontierSearch(plan.specs, config.search, plan.epsilon, {})


def test_schemes_are_searched_one_after_the_other_and_another_only_where_a_worker_would_wait() -> None:
    search = searching()
    given = [search.next() for _ in range(4)]
    assert [(s.scheme.name, s.lr) for s in given if s] == [
        ("preln", 1e-3),
        ("preln", 1.0),
        ("qknorm", 1e-3),
        ("qknorm", 1.0),
    ]
    assert search.next() is None
    assert search.n_pending == 4


def test_a_trial_that_ends_in_an_error_is_not_asked_for_again() -> None:
    search, asked = searching(replace(CONFIG, arch=("preln",))), []
    for spec in search:
        asked.append((spec.lr, spec.seed))
        search.record(spec, error_row(spec, "a fault"))
    assert [lr for lr, _ in asked] == [1e-3, 1.0]
    assert search.n_pending == 0


def test_an_error_of_an_earlier_run_is_run_again() -> None:
    plan = make_plan(CONFIG)
    first = plan.specs[0]
    search = FrontierSearch(plan.specs, 2.0, plan.epsilon, {first.trial: error_row(first, "a fault")})
    assert search.next() == first


def test_trials_at_once() -> None:
    assert Workers(device="cpu", jobs=3).at_once({"CPU": 3.0}) == 3
    assert Workers(device="cpu", jobs=2, together=2).at_once({"CPU": 4.0}) == 2
    assert Workers(device="cuda", jobs=2).at_once({"CPU": 64.0, "GPU": 4.0}) == 8
    assert Workers(device="cuda", together=4).at_once({"CPU": 64.0, "GPU": 8.0}) == 2
    assert Workers(device="cuda").at_once({"CPU": 64.0}) == 1


@pytest.mark.parametrize("factor", [1.0, 0.5, -2.0, float("nan")])
def test_a_factor_must_be_above_1(factor: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--search must be above 1.* got"):
        make_plan(replace(CONFIG, search=factor, out=str(tmp_path / "o")))
    assert not (tmp_path / "o").exists()


def test_one_learning_rate_leaves_nothing_to_search() -> None:
    with pytest.raises(UserError, match="--lrs a lowest and a highest"):
        make_plan(replace(CONFIG, lrs=(1e-3,)))


def test_train_refers_to_sweep(tmp_path: Path) -> None:
    result = lrsweep("train", "--arch", "preln", "--lr", "1e-3", "--search", "2", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: train runs one trial, --search chooses many; use sweep\n"


def test_a_command_says_it() -> None:
    assert "--search 2" in command_for(CONFIG)

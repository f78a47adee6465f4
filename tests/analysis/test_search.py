"""The search against whole grids of worlds whose frontier is known, and what it must never do in any world."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsweep.analysis import Point, Search, fit_lr50, frontier, judge, next_point, walk
from lrsweep.analysis.outcomes import SCHEME_KEYS, telling
from tests.analysis.tables import make_trials

GRID = tuple(1e-3 * 2**i for i in range(11))
OCTAVE = math.log(2)
Outcome = tuple[str, float]
"""Verdict and final loss."""
World = Callable[[float, int], Outcome]


@dataclass(frozen=True)
class Edge:
    """Trials fail above an edge, each seed's own, and the loss below it is a parabola of ln lr."""

    at: tuple[float, ...]
    """Of each seed."""
    best: float
    by: str = "diverged"
    """How they fail: a verdict, or ``degraded``."""

    def __call__(self, lr: float, seed: int) -> Outcome:
        loss = 3 + 0.05 * (math.log(lr / self.best) / OCTAVE) ** 2
        if lr <= self.at[seed]:
            return "stable", loss
        return ("stable", loss + 2) if self.by == "degraded" else (self.by, math.nan)


def table(outcomes: dict[Point, Outcome]) -> pd.DataFrame:
    return make_trials(
        [{"lr": lr, "seed": s, "verdict": v, "loss_final": loss} for (lr, s), (v, loss) in outcomes.items()]
    )


def run(search: Search, world: World, at_once: int = 1) -> dict[Point, Outcome]:
    """The search to its end, in a world where of several trials at once any may end first."""
    outcomes: dict[Point, Outcome] = {}
    pending: list[Point] = []
    order = random.Random(0)
    while True:
        while len(pending) < at_once and (point := next_point(search, table(outcomes), 0.5, pending)) is not None:
            assert point not in pending
            assert point not in outcomes
            assert point[0] in search.lattice()
            assert 0 <= point[1] < search.seeds
            pending.append(point)
        if not pending:
            return outcomes
        point = pending.pop(order.randrange(len(pending)))
        outcomes[point] = world(*point)


def whole_grid(search: Search, world: World) -> dict[Point, Outcome]:
    return {(lr, seed): world(lr, seed) for seed in range(search.seeds) for lr in search.grid}


def test_one_seed_asks_in_this_order() -> None:
    """Every third LR up to the first failure, halves between them, around the best, then between the grid's LRs."""
    search = Search(grid=GRID, seeds=1, factor=2.0)
    asked = [round(1e3 * lr, 1) for lr, _ in run(search, Edge(at=(0.045,), best=7e-3))]
    assert asked[:6] == [1, 8, 64, 32, 16, 4]
    assert asked[6:]
    assert all(32 < lr < 64 for lr in asked[6:])


def test_other_seeds_begin_at_the_bracket_of_the_first() -> None:
    search = Search(grid=GRID, seeds=3, factor=1.5)
    outcomes = run(search, Edge(at=(0.045, 0.045, 0.2), best=0.02))
    on_grid = {s: [lr for lr, seed in outcomes if seed == s and lr in GRID] for s in (1, 2)}
    assert on_grid[1][:3] == [0.016, 0.032, 0.064]
    assert on_grid[2][:5] == [0.016, 0.032, 0.064, 0.128, 0.256]


@settings(deadline=None, max_examples=25)
@given(
    edge=st.floats(1.1e-3, 1.0),
    below=st.floats(0, 2.5),
    seeds=st.integers(1, 3),
    by=st.sampled_from(["diverged", "nonfinite", "degraded"]),
    at_once=st.sampled_from([1, 4]),
)
def test_a_clean_edge_is_where_the_whole_grid_has_it(
    edge: float, below: float, seeds: int, by: str, at_once: int
) -> None:
    """Its bracket is the grid's or lies inside, LR50's interval holds the edge, and the best LR is the grid's."""
    search = Search(grid=GRID, seeds=seeds, factor=2.6)
    world = Edge(at=(edge,) * seeds, best=edge / 2**below, by=by)
    searched, whole = table(run(search, world, at_once)), table(whole_grid(search, world))
    assert len(searched) <= search.budget
    found, known = walk(judge(searched, 0.5)), walk(judge(whole, 0.5))
    assert known.max_stable_lr <= found.max_stable_lr <= edge < found.min_unstable_lr <= known.min_unstable_lr
    ours, theirs = frontier(searched, 0.5).iloc[0], frontier(whole, 0.5).iloc[0]
    assert ours.lr50_lo <= edge <= ours.lr50_hi
    first = searched[(searched["seed"] == 0) & searched["lr"].isin(GRID) & (searched["verdict"] == "stable")]
    assert first.loc[first["loss_final"].idxmin(), "lr"] == theirs.best_lr


@pytest.mark.parametrize("edge", [0.003, 0.011, 0.045, 0.18, 0.7])
@pytest.mark.parametrize(("seeds", "factor", "most"), [(2, 2.6, 12), (2, 1.5, 17), (4, 1.5, 22)])
def test_it_takes_a_part_of_the_grid(edge: float, seeds: int, factor: float, most: int) -> None:
    search = Search(grid=GRID, seeds=seeds, factor=factor)
    outcomes = run(search, Edge(at=(edge,) * seeds, best=edge / 3))
    assert len(outcomes) <= most < search.budget
    fit = frontier(table(outcomes), 0.5).iloc[0]
    assert fit.lr50_hi / fit.lr50_lo <= factor


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1.2, 2.0, 5.0]), st.sampled_from([1, 3]))
def test_in_any_world_it_ends_within_the_whole_grids_trials(salt: int, seeds: int, factor: float, at_once: int) -> None:
    def world(lr: float, seed: int) -> Outcome:
        draw = random.Random(f"{salt} {lr} {seed}")
        verdict = draw.choice(["stable", "stable", "diverged", "nonfinite", "stalled", "error"])
        return verdict, draw.uniform(2, 4) if verdict in ("stable", "stalled") else math.nan

    search = Search(grid=GRID[::2], seeds=seeds, factor=factor)
    assert len(run(search, world, at_once)) <= search.budget


@pytest.mark.parametrize(("edge", "end"), [(1e-9, GRID[0]), (9.0, GRID[-1])])
def test_a_frontier_outside_the_grid_is_searched_up_to_its_end_by_one_seed(edge: float, end: float) -> None:
    search = Search(grid=GRID, seeds=2, factor=1.5)
    outcomes = run(search, Edge(at=(edge, edge), best=0.3))
    assert end in {lr for lr, _ in outcomes}
    assert {seed for _, seed in outcomes} == {0}
    assert len(outcomes) < len(GRID)


def test_it_goes_on_from_any_of_its_own_states() -> None:
    search = Search(grid=GRID, seeds=2, factor=1.5)
    world = Edge(at=(0.045, 0.1), best=7e-3)
    whole = run(search, world)
    for n in range(len(whole)):
        begun = dict(list(whole.items())[:n])
        while (point := next_point(search, table(begun), 0.5)) is not None:
            begun[point] = world(*point)
        assert begun == whole


def test_the_lattice_holds_the_grid_and_is_as_fine_as_the_aim() -> None:
    search = Search(grid=(1e-3, 3e-3, 0.01), seeds=1, factor=1.5)
    lattice = search.lattice()
    assert set(search.grid) < set(lattice)
    assert list(lattice) == sorted(set(lattice))
    assert all(lr == float(f"{lr:.3g}") for lr in lattice)
    steps = np.diff(np.log(lattice))
    assert steps.max() <= math.log(1.5) / 5 * 1.05  # but for the rounding
    assert Search(grid=(1.0, 1.001), seeds=1, factor=9.0).lattice() == (1.0, 1.001)


REFERENCE = Path(__file__).parents[2] / "results" / "reference"
SWEEPS = (
    "rybakov-ten-10m",
    "rybakov-ten-30m",
    "rybakov-ten-30m-400",
    "rybakov-three-10m",
    "simplegpt-angpt-10m",
    "spike-no-more-10m",
)


def replayed(whole: pd.DataFrame) -> pd.DataFrame:
    """Of one scheme's trials on a whole grid those that a search for nothing but the grid's own bracket asks for."""
    search = Search(grid=tuple(sorted(set(whole["lr"]))), seeds=whole["seed"].nunique(), factor=1e9)
    at = pd.MultiIndex.from_frame(whole[["lr", "seed"]])
    asked: list[Point] = []
    while (point := next_point(search, whole[at.isin(asked)], 0.5)) is not None:
        asked.append(point)
    return whole[at.isin(asked)]


def test_real_sweeps_have_the_same_brackets_for_less_than_half_of_their_trials() -> None:
    """All but two of 44, whose losses leave the band of ε and come back: a grid sees that, a search steps over it."""
    n_trials, n_asked, differ, apart = 0, 0, [], []
    for sweep in SWEEPS:
        for (scheme, *_), whole in pd.read_parquet(REFERENCE / sweep / "trials.parquet").groupby(SCHEME_KEYS):
            searched = replayed(whole)
            n_trials, n_asked = n_trials + len(whole), n_asked + len(searched)
            of_grid, ours = frontier(whole, 0.5).iloc[0], frontier(searched, 0.5).iloc[0]
            apart.append(abs(math.log(ours.lr50 / of_grid.lr50)) / OCTAVE)
            bracket = ["max_stable_lr", "min_unstable_lr"]
            if not ours[bracket].equals(of_grid[bracket]):
                differ.append(f"{scheme} in {sweep}")
    assert len(apart) == 44
    assert differ == ["qkv_norm in rybakov-ten-10m", "qk_fc_norm in rybakov-ten-30m"]
    assert n_asked < 0.46 * n_trials
    assert np.nanmedian(apart) < 0.05


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("noise", "seeds", "factor"), [(0.05, 2, 2.6), (0.5, 2, 2.6), (0.05, 4, 1.5), (0.5, 4, 1.5)])
def test_its_interval_covers_the_truth_as_often_as_it_says(noise: float, seeds: int, factor: float) -> None:
    """Trials that are independent, with an edge of ``noise`` octaves: 100 worlds."""
    search, rng, covered = Search(grid=GRID, seeds=seeds, factor=factor), np.random.default_rng(0), []
    for _ in range(100):
        mu = rng.uniform(math.log(4e-3), math.log(0.256))

        def world(lr: float, seed: int, mu: float = mu) -> Outcome:
            failed = math.log(lr) + noise * OCTAVE * rng.standard_normal() > mu
            return ("diverged", math.nan) if failed else ("stable", 3 + (math.log(lr) - mu) ** 2 / 50)

        fit = fit_lr50(*telling(judge(table(run(search, world)), 0.5)))
        covered.append(math.log(fit.lo) <= mu <= math.log(fit.hi))
    assert np.mean(covered) >= 0.9  # 95% less twice the error of 100 worlds

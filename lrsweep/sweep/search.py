"""Chooses the trials of a sweep one after another, for every scheme, body and size the one that tells most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lrsweep.analysis import Point, Search, next_point
from lrsweep.config import TrialSpec
from lrsweep.store import TrialRow, as_table


@dataclass(slots=True)
class _Frontier:
    """How far one frontier is known."""

    search: Search
    any_spec: TrialSpec
    epsilon: float
    ended: dict[Point, TrialRow] = field(default_factory=dict)
    pending: set[Point] = field(default_factory=set)

    def next(self) -> Point | None:
        return next_point(self.search, as_table(self.ended.values()), self.epsilon, self.pending)

    def spec(self, point: Point) -> TrialSpec:
        lr, seed = point
        return replace(self.any_spec, lr=lr, seed=seed)


class FrontierSearch:
    """The trials of a search, in an order that depends on how they end.

    A scheme is searched to its end before the next, whose turn comes earlier only where a worker would wait: so workers
    build few steps anew.

    Args:
        grid: the trials of the whole grid.
        factor: how narrow LR50's intervals shall become, as in :class:`~lrsweep.analysis.search.Search`.
        epsilon: ε of each size in nats.
        rows: trials that have ended before, by name; errors count as not run.
    """

    def __init__(
        self, grid: Sequence[TrialSpec], factor: float, epsilon: dict[str, float], rows: Mapping[str, TrialRow]
    ) -> None:
        self._frontiers: dict[tuple[str, str, str], _Frontier] = {}
        for model in dict.fromkeys(spec.model for spec in grid):
            own = [spec for spec in grid if spec.model == model]
            lrs, seeds = sorted({s.lr for s in own}), len({s.seed for s in own})
            search = Search(grid=tuple(lrs), seeds=seeds, factor=factor)
            self._frontiers[model] = frontier = _Frontier(search, own[0], epsilon[own[0].size])
            for point in search.points():
                row = rows.get(frontier.spec(point).trial)
                if row is not None and row.verdict != "error":
                    frontier.ended[point] = row

    def candidates(self) -> list[TrialSpec]:
        """Every trial that may be asked for."""
        return [frontier.spec(point) for frontier in self._frontiers.values() for point in frontier.search.points()]

    @property
    def n_ended(self) -> int:
        """Trials that count and have ended."""
        return sum(len(frontier.ended) for frontier in self._frontiers.values())

    def at_most(self) -> list[TrialSpec]:
        """As many trials of each model as may still run; empty once it is over."""
        return [
            frontier.any_spec
            for frontier in self._frontiers.values()
            if frontier.next() is not None
            for _ in range(frontier.search.budget - len(frontier.ended))
        ]

    @property
    def n_pending(self) -> int:
        """Trials that were given out and have not ended."""
        return sum(len(frontier.pending) for frontier in self._frontiers.values())

    def next(self) -> TrialSpec | None:
        """The trial to run now; None if one has to end first or, with none pending, if the search is over."""
        for frontier in self._frontiers.values():
            if (point := frontier.next()) is not None:
                frontier.pending.add(point)
                return frontier.spec(point)
        return None

    def __iter__(self) -> Iterator[TrialSpec]:
        """One trial after the other, each to be recorded before the next is asked for."""
        return iter(self.next, None)

    def record(self, spec: TrialSpec, row: TrialRow) -> None:
        """Take in how a trial has ended, an error too."""
        frontier, point = self._frontiers[spec.model], (spec.lr, spec.seed)
        frontier.pending.discard(point)
        frontier.ended[point] = row

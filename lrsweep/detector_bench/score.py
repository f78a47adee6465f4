"""Runs a rule over every curve and counts what it caught and where it was wrong."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from lrsweep.detect import DivergenceDetector
from lrsweep.detector_bench.curves import Curve, Group
from lrsweep.detector_bench.rules import RULES

Update = Callable[[int, float, float | None], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One line of the table."""

    rule: str
    alarmed: dict[Group, int]
    """Runs that the rule alarmed on. Of a run with a labelled event, only alarms from its first step on count."""
    early: int
    """Runs with a labelled event that it alarmed on before the event, and not from it on."""
    points_late: float
    """Median points from the event's first to the alarm, over the runs that it caught; NaN if none."""
    steps_late: float
    """The same in steps."""
    us_per_update: float
    """Microseconds a point, over all curves."""
    files: dict[str, bool]
    """File → whether it alarmed."""


def score_own(curves: Sequence[Curve]) -> Score:
    """lrsweep's line, with the default configuration: a new spike or an unstable verdict is an alarm."""
    return _score("lrsweep", curves, _own_alarms, lambda curve: DivergenceDetector().update)


def score_peer(name: str, curves: Sequence[Curve]) -> Score:
    """The line of a rule of :data:`~lrsweep.detector_bench.rules.RULES`; ImportError where its library is missing."""

    def update(curve: Curve) -> Update:
        rule = RULES[name](len(curve.steps))
        return lambda step, loss, norm: rule(loss, norm)

    def alarms(curve: Curve) -> list[int]:
        watch = update(curve)
        return [index for index, point in _points(curve) if watch(*point)]

    return _score(name, curves, alarms, update)


def _own_alarms(curve: Curve) -> list[int]:
    detector = DivergenceDetector()
    found: list[int] = []
    told = 0
    for index, point in _points(curve):
        if detector.update(*point).unstable:
            return [*found, index]
        spikes = sum(event.kind == "spike" for event in detector.events)
        if spikes > told:
            found.append(index)
        told = spikes
    return [*found, len(curve.steps) - 1] if detector.finish().unstable else found


def _points(curve: Curve) -> list[tuple[int, tuple[int, float, float | None]]]:
    """Index and values of the points whose loss was logged."""
    columns = zip(curve.steps, curve.losses, curve.grad_norms, strict=True)
    return [(index, (step, loss, norm)) for index, (step, loss, norm) in enumerate(columns) if loss is not None]


def _score(
    name: str, curves: Sequence[Curve], alarms: Callable[[Curve], list[int]], update: Callable[[Curve], Update]
) -> Score:
    early = 0
    alarmed: dict[Group, int] = dict.fromkeys(get_args(Group), 0)
    files: dict[str, bool] = {}
    late: list[tuple[int, int]] = []
    for curve in curves:
        found = alarms(curve)
        first = 0 if curve.event_step is None else next(i for i, s in enumerate(curve.steps) if s >= curve.event_step)
        in_time = [index for index in found if index >= first]
        files[curve.file] = bool(in_time)
        alarmed[curve.group] += bool(in_time)
        early += bool(found) and not in_time
        if in_time and curve.event_step is not None:
            late.append((in_time[0] - first, curve.steps[in_time[0]] - curve.event_step))
    return Score(
        rule=name,
        alarmed=alarmed,
        early=early,
        points_late=statistics.median(points for points, _ in late) if late else math.nan,
        steps_late=statistics.median(steps for _, steps in late) if late else math.nan,
        us_per_update=1e6 * _seconds(curves, update) / sum(len(curve.steps) for curve in curves),
        files=files,
    )


def _seconds(curves: Sequence[Curve], update: Callable[[Curve], Update]) -> float:
    """Processor time of the updates alone."""
    total = 0.0
    for curve in curves:
        watch, points = update(curve), _points(curve)
        started = time.process_time()
        for _, point in points:
            watch(*point)
        total += time.process_time() - started
    return total

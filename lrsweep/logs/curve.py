"""The curve of one run: from chosen columns to points in the order of training."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lrsweep.errors import UserError
from lrsweep.logs.columns import Column, Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one log says about one run."""

    name: str
    """Where it was read."""
    format: str
    """One of :data:`lrsweep.logs.FORMATS`."""
    steps: tuple[int, ...]
    """Ascending, each once."""
    losses: tuple[float, ...]
    """Training loss at each step, nats; NaN and infinity are values."""
    grad_norms: tuple[float | None, ...] | None
    """Gradient norm at each step, None where that step has none; None if the log has none at all."""
    step_key: str | None
    """Column of the steps; None where the points were numbered."""
    loss_key: str
    """Column of the losses."""
    grad_norm_key: str | None
    """Column of the gradient norms."""
    notes: tuple[str, ...]
    """What was decided in reading: restarts, other ranks, NaN in disguise, a file cut short."""


def make_curve(columns: Columns, *, name: str, format: str, notes: Iterable[str] = ()) -> Curve:
    """Puts the points in order.

    Of several ranks that logged the same steps, one is kept. Where the step goes back while the epoch goes up, steps
    are counted on from the last epoch. Any other step that goes back is a run that was resumed: from there on the
    later values count. A loss of exactly 0 beside a gradient norm that is not finite is NaN.

    Raises:
        UserError: a step is not a whole number, or no loss has one.
    """
    found = list(notes)
    rows, values, steps = _with_steps(columns)
    if not steps:
        raise UserError(f"no record holds both {columns.loss.name!r} and a step; choose with --loss-key, --step-key")
    order = list(range(len(steps)))
    if columns.rank is not None:
        order = _one_rank(steps, columns.rank.at(rows), found)
    counted = steps
    if columns.epoch is not None:
        counted = _across_epochs(order, steps, columns.epoch.at(rows), found)
    order = _last_values(order, counted, found)

    losses = [values[i] for i in order]
    grad_norms = None
    if columns.grad_norm is not None:
        norms = _norms(columns.grad_norm, columns, rows, steps)
        if any(norms[i] is not None for i in order):
            grad_norms = tuple(norms[i] for i in order)
            losses = _unhidden(losses, grad_norms, found)
    return Curve(
        name=name,
        format=format,
        steps=tuple(counted[i] for i in order),
        losses=tuple(losses),
        grad_norms=grad_norms,
        step_key=None if columns.step is None else columns.step.name,
        loss_key=columns.loss.name,
        grad_norm_key=columns.grad_norm.name if columns.grad_norm is not None and grad_norms is not None else None,
        notes=tuple(found),
    )


def _with_steps(columns: Columns) -> tuple[array[int], array[float], list[int]]:
    """Record, loss and step wherever both were logged."""
    loss, step = columns.loss, columns.step
    if step is None:
        return loss.rows, loss.values, list(range(1, len(loss.rows) + 1))
    steps = step.at(loss.rows)
    fraction = next((v for v in steps if v is not None and math.isfinite(v) and not v.is_integer()), None)
    if fraction is not None:
        raise UserError(f"column {step.name!r} holds {fraction:g}: steps are whole numbers; choose with --step-key")
    both = [
        (row, value, int(at))
        for row, value, at in zip(loss.rows, loss.values, steps, strict=True)
        if at is not None and math.isfinite(at)
    ]
    return array("q", [b[0] for b in both]), array("d", [b[1] for b in both]), [b[2] for b in both]


def _one_rank(steps: Sequence[int], ranks: Sequence[float | None], notes: list[str]) -> list[int]:
    """Indices left when the ranks that logged the steps which the most talkative one logged too are dropped."""
    of_rank: dict[float | None, list[int]] = {}
    for i, rank in enumerate(ranks):
        of_rank.setdefault(rank, []).append(i)
    main = max(of_rank, key=lambda rank: len(of_rank[rank]), default=None)
    own = {steps[i] for i in of_rank.get(main, [])}
    others = {
        rank
        for rank, indices in of_rank.items()
        if rank != main and 2 * sum(steps[i] in own for i in indices) > len(indices)
    }
    if others:
        kept = "the one without a number" if main is None else f"rank {main:g}"
        notes.append(f"{len(others) + 1} ranks logged the same steps: {kept} is read")
    return [i for i, rank in enumerate(ranks) if rank not in others]


def _across_epochs(
    order: Sequence[int], steps: Sequence[int], epochs: Sequence[float | None], notes: list[str]
) -> list[int]:
    """Steps counted on where they start anew in each epoch; the others stay as they are."""
    counted = list(steps)
    start: dict[float, int] = {}
    base, last, last_epoch = 0, -1, math.inf
    for i in order:
        step, epoch = steps[i], epochs[i]
        if epoch is not None:
            if step <= last and epoch > last_epoch:
                base += last + (step == 0)
                start[epoch] = base
            elif epoch < last_epoch:
                base = start.get(epoch, 0)
            last_epoch = epoch
        last = step
        counted[i] = base + step
    if start:
        notes.append(f"steps start anew in each epoch: counted on over {len(start) + 1} epochs")
    return counted


def _last_values(order: Sequence[int], steps: Sequence[int], notes: list[str]) -> list[int]:
    """Indices left when every point is dropped that a later one with the same or an earlier step stands in for."""
    kept: list[int] = []
    repeated = 0
    returns: list[tuple[int, int]] = []
    for i in order:
        if kept:
            last = steps[kept[-1]]
            repeated += steps[i] == last
            if steps[i] < last:
                returns.append((last, steps[i]))
            while kept and steps[kept[-1]] >= steps[i]:
                kept.pop()
        kept.append(i)
    if returns:
        times = "" if len(returns) == 1 else f" {len(returns)} times, first"
        notes.append(
            f"step went back{times} from {returns[0][0]} to {returns[0][1]}: taken for a resumed run, "
            f"the later values count ({len(order) - len(kept)} of {len(order)} points are left out)"
        )
    elif repeated:
        notes.append(f"{repeated} times a step was logged again: the last value of each counts")
    return kept


def _norms(norm: Column, columns: Columns, rows: array[int], steps: Sequence[int]) -> Sequence[float | None]:
    """The gradient norm beside each loss; by the step where the two never stand in one record."""
    beside = norm.at(rows)
    if columns.step is None or any(value is not None for value in beside):
        return beside
    of_step = dict(zip(columns.step.at(norm.rows), norm.values, strict=True))
    return [of_step.get(step) for step in steps]


def _unhidden(losses: list[float], grad_norms: Sequence[float | None], notes: list[str]) -> list[float]:
    """NaN for every 0 that stands for one: ``logging_nan_inf_filter`` of transformers logs NaN so."""
    hidden = [
        loss == 0 and norm is not None and not math.isfinite(norm)
        for loss, norm in zip(losses, grad_norms, strict=True)
    ]
    if not any(hidden):
        return losses
    notes.append(f"{sum(hidden)} losses of exactly 0 beside a gradient norm that is not finite are read as NaN")
    return [math.nan if nan else loss for loss, nan in zip(losses, hidden, strict=True)]

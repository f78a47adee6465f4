"""What the three figures of the frontier show, as records: final losses, max LR(ε), and the brackets."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from lrsweep.analysis import seed_mean_curve, voted_tolerance
from lrsweep.report.section import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """max LR(ε) of one scheme by the vote of its seeds."""

    scheme: str
    """Label."""
    epsilon: tuple[float, ...]
    """Where the steps begin, in nats, from 0 on."""
    max_lr: tuple[float, ...]
    """Value from each ``epsilon`` on; NaN as long as no LR is stable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToleranceInfo:
    """One line a scheme."""

    lines: tuple[StepLine, ...]
    """In the order of the palette."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """One trial."""

    lr: float
    """Peak learning rate."""
    seed: int
    """Seed."""
    loss: float
    """Held-out final loss in nats; NaN if the trial came to none, or to more than the untrained model's."""
    outcome: str
    """As in :func:`lrsweep.analysis.judge`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLine:
    """The trials of one scheme, and their mean curve."""

    scheme: str
    """Label."""
    lrs: tuple[float, ...]
    """Ascending."""
    mean: tuple[float, ...]
    """Mean over seeds at each LR; NaN where a seed came to no final loss."""
    points: tuple[LossPoint, ...]
    """Every trial, by LR and seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInfo:
    """One line a scheme."""

    lines: tuple[LossLine, ...]
    """In the order of the palette."""
    loss_init: float
    """Highest held-out loss of an untrained model, in nats; NaN if none is finite."""

    @property
    def without_loss(self) -> bool:
        """Whether any trial has no final loss to be drawn at."""
        return any(math.isnan(p.loss) for line in self.lines for p in line.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierRow:
    """One scheme's bracket and LR50; NaN as in the frontier table."""

    scheme: str
    """Label."""
    max_stable_lr: float
    """Lower end of the bracket."""
    min_unstable_lr: float
    """Upper end."""
    max_stable_lr_2eps: float
    """Lower end at twice the ε."""
    min_unstable_lr_2eps: float
    """Upper end at twice the ε."""
    lr50: float
    """LR of even odds."""
    lr50_lo: float
    """2.5% end of its interval."""
    lr50_hi: float
    """97.5% end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierInfo:
    """One row a scheme."""

    rows: tuple[FrontierRow, ...]
    """From the lowest frontier to the highest; schemes of which nothing is known come first."""


def get_tolerance_info(section: Section) -> ToleranceInfo:
    """max LR(ε) of every scheme."""
    table = voted_tolerance(section.trials)
    lines = []
    for scheme in section.schemes:
        own = table[table["scheme"] == scheme]
        lines.append(
            StepLine(scheme=scheme, epsilon=tuple(own["epsilon"].tolist()), max_lr=tuple(own["max_lr"].tolist()))
        )
    return ToleranceInfo(lines=tuple(lines))


def get_loss_info(section: Section) -> LossInfo:
    """Final losses of every trial, none left out."""
    initial = section.trials["loss_init"]
    highest = max(initial[np.isfinite(initial)], default=np.nan)
    lines = []
    for scheme in section.schemes:
        own = section.trials[section.trials["scheme"] == scheme].sort_values(["lr", "seed"])
        drawable = own["loss_final"].where(np.isfinite(own["loss_final"]) & ~(own["loss_final"] > highest))
        points = zip(own["lr"], own["seed"], drawable, own["outcome"], strict=True)
        mean = seed_mean_curve(own)
        lines.append(
            LossLine(
                scheme=scheme,
                lrs=tuple(mean.index.tolist()),
                mean=tuple(mean.tolist()),
                points=tuple(LossPoint(lr=lr, seed=s, loss=loss, outcome=o) for lr, s, loss, o in points),
            )
        )
    return LossInfo(lines=tuple(lines), loss_init=float(highest))


def get_frontier_info(section: Section) -> FrontierInfo:
    """Brackets and LR50, sorted by how high they stand."""
    rows = [
        FrontierRow(
            scheme=scheme,
            **{f.name: float(own[f.name]) for f in fields(FrontierRow) if f.name != "scheme"},
        )
        for scheme in section.schemes
        for own in section.frontier[section.frontier["scheme"] == scheme].to_dict("records")
    ]
    return FrontierInfo(rows=tuple(sorted(rows, key=_height)))


def _height(row: FrontierRow) -> tuple[float, float]:
    """Max stable LR, with none below all; ties by LR50, above the grid above all."""
    lr50 = row.lr50 if math.isfinite(row.lr50) else math.inf if math.isfinite(row.lr50_lo) else 0.0
    return (0.0 if math.isnan(row.max_stable_lr) else row.max_stable_lr, lr50)

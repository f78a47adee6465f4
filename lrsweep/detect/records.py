"""What the detector says: a verdict on the run, and the events in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VerdictKind = Literal["stable", "diverged", "nonfinite", "stalled"]
EventKind = Literal["outlier", "spike"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of one run by itself, without comparison to its siblings."""

    kind: VerdictKind
    """``stable``, ``diverged``, ``nonfinite``, or (only at the end) ``stalled``."""
    reason: str
    """One line with the numbers behind it."""
    onset: int | None = None
    """Step at which the trouble began; None where there is none."""
    step: int | None = None
    """Step at which it was told; None where there is none."""

    @property
    def unstable(self) -> bool:
        """Whether the run diverged or went non-finite, and may be stopped."""
        return self.kind in ("diverged", "nonfinite")

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Event:
    """A stretch of losses well above the level before it; all times are logged steps."""

    kind: EventKind
    """``outlier``: counts against nobody. ``spike``: lasted, or was led by the gradient norm."""
    onset: int
    """First step at which the loss or the gradient norm was high."""
    peak: int
    """Step of the highest loss."""
    end: int | None
    """First step back at the old level, or the one at which waiting for it was given up; None while it lasts."""
    size: float
    """Height of the peak above the level before it, in nats; may be negative where only the gradient norm rose."""

"""The same detector over a curve that is already whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lrsweep.detect.config import DetectorConfig
from lrsweep.detect.detector import DivergenceDetector
from lrsweep.detect.records import Event, Verdict


@dataclass(frozen=True, slots=True)
class Scan:
    """What a whole curve holds."""

    verdict: Verdict
    """The final verdict."""
    events: tuple[Event, ...]
    """Outliers and spikes up to the verdict, in the order in which they came."""

    @property
    def spikes(self) -> tuple[Event, ...]:
        """The spikes alone."""
        return tuple(event for event in self.events if event.kind == "spike")


def scan(
    steps: Iterable[int],
    losses: Iterable[float | None],
    grad_norms: Iterable[float | None] | None = None,
    config: DetectorConfig | None = None,
) -> Scan:
    """Judges a logged curve as :class:`DivergenceDetector` would have, point by point, and at its end.

    Raises ValueError where ``steps``, ``losses`` and ``grad_norms`` (if given) differ in length.
    """
    detector = DivergenceDetector(config)
    if grad_norms is None:
        for step, loss in zip(steps, losses, strict=True):
            detector.update(step, loss)
    else:
        for step, loss, grad_norm in zip(steps, losses, grad_norms, strict=True):
            detector.update(step, loss, grad_norm)
    return Scan(detector.finish(), detector.events)

"""The detector: one point in, the verdict so far out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lrsweep.detect.config import DetectorConfig
from lrsweep.detect.level import Level
from lrsweep.detect.records import Event, Verdict
from lrsweep.detect.spikes import Spikes

LARGEST_LOSS = 3.4028234663852886e38
"""The largest float32. A training loss beyond it has overflowed somewhere, whatever float it was handed over in."""

_STABLE = Verdict("stable", "nothing found so far")


class DivergenceDetector:
    """Judges one training run from its loss, point by point, in plain Python.

    Points may be any number of steps apart. Losses in nats; adding a constant to all of them changes no decision, so
    negative ones are as good as others; but a first loss of exactly 0 is no level, as trainers print it before there
    is one. A loss of None was not logged and changes nothing. A loss that is NaN, infinite or beyond float32 is
    non-finite: ``nonfinite_points`` of them in a row are the verdict ``nonfinite``, and fewer, once a finite loss
    follows, leave no trace: every later decision is the one made without them. A gradient norm that is not positive
    and finite was not logged. A step that goes back to before the run's best is a run put back to an earlier state:
    level and noise are found anew from there. Verdicts ``diverged`` and ``nonfinite`` are final, and what comes after
    them is not looked at.
    """

    def __init__(self, config: DetectorConfig | None = None) -> None:
        self.config = config or DetectorConfig()
        self._level = Level(self.config)
        self._spikes = Spikes(self.config)
        self._verdict = _STABLE
        self._nonfinite = 0
        self._nonfinite_onset = 0
        self._last_step = 0

    @property
    def verdict(self) -> Verdict:
        """The verdict so far; never ``stalled``, which only :meth:`finish` can tell."""
        return self._verdict

    @property
    def events(self) -> tuple[Event, ...]:
        """Outliers and spikes so far, in the order in which they came; a spike that still lasts has no end."""
        return self._spikes.events

    def update(
        self,
        step: int,
        loss: float | None,
        grad_norm: float | None = None,
        signals: Mapping[str, float] | None = None,
    ) -> Verdict:
        """Takes one logged point and gives the verdict so far. Never raises on any float.

        ``signals`` (update norms, logit maxima, …) take part in no decision and are not kept: the step records hold
        them. They are taken so that a caller may pass whatever it logs.
        """
        if loss is None or self._verdict.unstable:
            return self._verdict
        step, loss = int(step), float(loss)
        before, self._last_step = self._last_step, step
        if not abs(loss) <= LARGEST_LOSS:
            self._nonfinite_onset = self._nonfinite_onset if self._nonfinite else step
            self._nonfinite += 1
            if self._nonfinite >= self.config.nonfinite_points:
                self._verdict = self._nonfinite_verdict()
            return self._verdict
        self._nonfinite = 0
        if self._level.undone_by(step):
            self._level = Level(self.config)
            self._spikes.begin_anew(before)
        self._spikes.update(step, loss, None if grad_norm is None else float(grad_norm))
        self._verdict = self._level.update(step, loss) or self._verdict
        return self._verdict

    def finish(self) -> Verdict:
        """The verdict if the run ends here; changes nothing, so a run may go on after it.

        Beyond what :meth:`update` told: a run whose last points are non-finite is ``nonfinite``; one that ends above
        its margin and not on its way down is ``diverged``; one that never got below ``stall_level`` is ``stalled``.
        """
        if self._verdict.unstable:
            return self._verdict
        if self._nonfinite:
            return self._nonfinite_verdict()
        departed = self._level.at_end()
        if departed is not None:
            return departed
        best, floor = self._level.best, self.config.stall_level
        if best is not None and floor is not None and best >= floor:
            return Verdict(
                "stalled", f"{self._level.summary()}: never below {floor:.4g}", onset=None, step=self._last_step
            )
        return Verdict("stable", self._level.summary())

    def _nonfinite_verdict(self) -> Verdict:
        reason = f"loss non-finite at {self._nonfinite} points in a row from step {self._nonfinite_onset}"
        return Verdict("nonfinite", reason, self._nonfinite_onset, self._last_step)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the config, as strict JSON (no NaN); a detector that loads it goes on as this one would."""
        return {
            "verdict": asdict(self._verdict),
            "nonfinite": self._nonfinite,
            "nonfinite_onset": self._nonfinite_onset,
            "last_step": self._last_step,
            "level": self._level.state_dict(),
            "spikes": self._spikes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave; the config must be the same."""
        self._verdict = Verdict(**state["verdict"])
        self._nonfinite = state["nonfinite"]
        self._nonfinite_onset = state["nonfinite_onset"]
        self._last_step = state["last_step"]
        self._level.load_state_dict(state["level"])
        self._spikes.load_state_dict(state["spikes"])

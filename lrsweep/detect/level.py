"""Divergence is a statement about level: the smoothed loss left its best, and did not set out to come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrsweep.detect.config import MIN_HISTORY, DetectorConfig
from lrsweep.detect.records import Verdict
from lrsweep.detect.robust import median, noise

SHORTEST = 3
"""Points of the shortest median: the fewest that outvote one outlier."""
NOT_YET = 0.0
"""What trainers print as the first loss where there was none yet; a model that knows nothing has another."""


class Level:
    """Follows the smoothed loss, its best, and the current excursion above that best.

    An excursion is open while the gap between the two is above its line: ``margin``, or ``margin_sigmas`` of the
    noise. Whenever the gap has come down to ``recovery`` of the height at which patience began, patience begins anew
    from there: a decay of any size is waited for as long as it keeps that pace; a rise, a plateau or a decay that
    stops is not. Patience ends when it has lasted ``patience`` points and ``patience_share`` of the steps watched.

    Of a run that is lost from its first steps on, all the noise that is known is the lost run's own, and no excuse. So
    where the best dates from the grace steps, and of the losses after them fewer than one in ``window`` came back to
    it, the line is the margin. Were the best a draw like all the others, it would lie below all n of them with
    probability 1/(n + 1), whatever their law.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._first_step: int | None = None
        self._level = 0.0
        self._best: float | None = None
        self._best_step = 0
        self._line: float | None = None  # None while the gap is within the margin
        self._onset = 0
        self._peak = 0.0  # largest gap of this excursion
        self._rung = 0.0  # gap from which recovery is measured; below the peak once the excursion recovers
        self._rung_step = 0  # step of that rung
        self._points = 0  # points since that rung; 0 while no excursion is open
        self._later = 0  # losses after the grace steps
        self._near = 0  # of these, the ones no more than the margin above the best

    @property
    def best(self) -> float | None:
        """Lowest smoothed loss so far; None before there is one."""
        return self._best

    def undone_by(self, step: int) -> bool:
        """Whether a point at ``step`` takes the run back to before its best, by more than points logged out of order.

        Not while a gap is open: a run that broke and was put back has to show that it is well again.
        """
        behind = self._best is not None and step < self._best_step
        return behind and self._line is None and step < min(self._steps[-self._config.smooth :])

    def update(self, step: int, loss: float) -> Verdict | None:
        """Takes one finite loss; a verdict once the run has diverged."""
        config = self._config
        self._first_step = step if self._first_step is None else self._first_step
        self._steps.append(step)
        self._losses.append(loss)
        if len(self._losses) > config.window:
            del self._steps[0], self._losses[0]
        # The loss at initialization is a level by itself; one point in mid-run may be an outlier.
        if len(self._losses) < SHORTEST and step >= config.grace_steps:
            return None
        points = self._smoothed_points()
        self._level = median(self._losses[-points:])
        if len(self._losses) < min(2 * config.smooth, config.window):
            self._best, self._best_step = self._best_of_all(points)
        elif self._best is None or self._level < self._best:
            self._best, self._best_step = self._level, step
        if step >= config.grace_steps:
            self._later += 1
            self._near += loss - self._best <= config.margin
        gap = self._level - self._best
        if gap <= config.margin:
            self._line, self._points = None, 0
            return None
        self._line = self._lowered_line()
        if gap <= self._line_now() or step < config.grace_steps:
            self._points = 0
            return None
        if not self._points:
            self._peak = 0.0
            self._onset = self._best_step if self._lost_from_start() else self._first_above(self._best)
        if gap > self._peak:
            self._peak = self._rung = gap
        elif gap <= config.recovery * self._rung:
            self._rung, self._points = gap, 0
        self._rung_step = self._rung_step if self._points else step
        self._points += 1
        waited = step - self._rung_step >= config.patience_share * (step - self._first_step)
        return self._diverged("") if waited and self._points >= config.patience else None

    def at_end(self) -> Verdict | None:
        """A verdict if the run, ending here, ends up there and not on its way down.

        Patience is a quarter of the points known: a fragment of five cannot be asked for twenty.
        """
        if self._points < max(1, len(self._losses) // 4):
            return None
        assert self._best is not None
        coming_back = self._level - self._best < self._rung < self._peak
        if coming_back or self._losses[-1] - self._best <= self._line_now():
            return None
        return self._diverged(", where the run ended")

    def summary(self) -> str:
        """Where the smoothed loss stands, for people."""
        if self._best is None:
            return "too few points to judge"
        return f"smoothed loss {self._level:.4g}, best {self._best:.4g} at step {self._best_step}"

    def _smoothed_points(self) -> int:
        """An odd number, so that as many lie below the median as above; in a short fragment, half of it is the past."""
        points = min(self._config.smooth, max(SHORTEST, len(self._losses) // 2))
        return points - (points % 2 == 0)

    def _best_of_all(self, points: int) -> tuple[float, int]:
        """The lowest median of that many points, and its step, while the run is short.

        Each is found anew as the medians grow: a run picked up in the middle may begin with a few low points, and a
        median of three of them would be its best for good.
        """
        ends = range(min(points, len(self._losses)), len(self._losses) + 1)
        levels = [(median(self._losses[max(0, end - points) : end]), self._steps[end - 1]) for end in ends]
        if self._steps[0] < self._config.grace_steps and self._losses[0] != NOT_YET:
            levels.append((self._losses[0], self._steps[0]))
        return min(levels)

    def _lowered_line(self) -> float:
        """The line of the open excursion: falls as the curve quietens, but does not rise as a broken run gets noisy."""
        enough = len(self._losses) >= MIN_HISTORY
        line = max(self._config.margin, self._config.margin_sigmas * noise(self._losses) if enough else 0.0)
        return line if self._line is None or len(self._losses) <= MIN_HISTORY else min(line, self._line)

    def _line_now(self) -> float:
        """The line, or the margin where the run was lost from its start."""
        assert self._line is not None
        return self._config.margin if self._lost_from_start() else self._line

    def _lost_from_start(self) -> bool:
        config = self._config
        # The first patience is waited for as the excursion that this opens, so a window has passed when it is told.
        long = self._later > config.window - config.patience
        return long and self._best_step < config.grace_steps and self._near * config.window < self._later

    def _first_above(self, best: float) -> int:
        assert self._line is not None
        line = self._line
        recent = zip(self._steps[-self._config.smooth :], self._losses[-self._config.smooth :], strict=True)
        return next(step for step, loss in recent if loss - best > line)  # the smoothed loss is one of them

    def _diverged(self, ending: str) -> Verdict:
        assert self._best is not None
        step = self._steps[-1]
        reason = (
            f"smoothed loss {self._level:.4g} at step {step} is {self._level - self._best:.3g} nats above its best "
            f"{self._best:.4g} of step {self._best_step}, without recovery for {self._points} points{ending}"
        )
        return Verdict("diverged", reason, self._onset, step)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`update` remembers, as JSON values."""
        return {
            "steps": list(self._steps),
            "losses": list(self._losses),
            "first_step": self._first_step,
            "level": self._level,
            "best": self._best,
            "best_step": self._best_step,
            "line": self._line,
            "onset": self._onset,
            "peak": self._peak,
            "rung": self._rung,
            "rung_step": self._rung_step,
            "points": self._points,
            "later": self._later,
            "near": self._near,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        for name, value in state.items():
            setattr(self, f"_{name}", list(value) if isinstance(value, list) else value)

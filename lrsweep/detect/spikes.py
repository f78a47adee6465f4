"""Events: a high point alone is an outlier; high points in a row, or led by the gradient norm, are a spike."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lrsweep.detect.config import MIN_HISTORY, DetectorConfig
from lrsweep.detect.records import Event
from lrsweep.detect.robust import median, memory, spread

NO_LINE = sys.float_info.max
"""The line where too few points before it can say: no loss passes it."""
WITNESSES = 2
"""Points, or channels of one point, that must each give evidence: one high loss may be a bad batch, however high."""


@dataclass(slots=True)
class _Episode:
    """A stretch in which loss or gradient norm is high, measured against the level before it."""

    onset: int
    base: float
    line: float  # rise from which the loss is high
    memory: float  # part of a rise that is expected to be left at the next point
    peak: int
    size: float
    last: float = 0.0  # rise of the point before
    evidence: float = 0.0
    points: int = 0
    witnesses: int = 0  # how often a point of either channel gave evidence
    loss_was_high: bool = False
    norm_was_high: bool = False


class Spikes:
    """Finds events and weighs them.

    The rise of a point is what its loss lies above the median of the points before it. It is high where it passes
    ``spike_sigmas`` deviations of the last rises, or where the gradient norm passes its median by ``grad_factor``.
    High losses are kept out of the median, so they cannot raise the level that they are measured against, but not
    out of the rises: what happens all the time is no event. Each channel of each point adds the logarithm of how many
    times over it passed, and what a loss owes to the point before it (see :func:`~lrsweep.detect.robust.memory`) is
    taken off first. ``spike_evidence`` from two points, or from both channels of one, makes a spike.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._losses: list[float] = []
        self._rises: list[float] = []
        self._log_norms: list[float] = []
        self._episode: _Episode | None = None
        self._closed: list[Event] = []

    @property
    def events(self) -> tuple[Event, ...]:
        """Events in the order in which they came; the last may be a spike that still lasts."""
        episode = self._episode
        if episode is None or not self._is_spike(episode):
            return tuple(self._closed)
        return (*self._closed, Event("spike", episode.onset, episode.peak, None, episode.size))

    def update(self, step: int, loss: float, grad_norm: float | None) -> None:
        """Takes one finite loss, and the gradient norm if it was logged; a norm not positive and finite was not."""
        gradient = self._gradient_evidence(grad_norm)
        episode = self._episode
        base = episode.base if episode else median(self._losses) if self._losses else loss
        rise = loss - base
        if step >= self._config.grace_steps and episode is None and (rise > 0 or gradient > 0):
            episode = self._candidate(step, base, rise, certain=gradient > 0)
        self._rises.append(rise)
        if len(self._rises) > self._config.window:
            del self._rises[0]
        if episode is None or (rise <= episode.line and gradient <= 0):
            self._close(step)
            self._admit(loss)
            return
        self._episode = episode
        news = _log_ratio(rise - episode.memory * episode.last, episode.line)
        episode.last = rise
        episode.points += 1
        episode.evidence += news + gradient
        episode.witnesses += (news > 0) + (gradient > 0)
        episode.loss_was_high |= rise > episode.line
        episode.norm_was_high |= gradient > 0
        if rise > episode.size:
            episode.peak, episode.size = step, rise
        if episode.points >= self._config.window:  # this is the level now
            self._close(step)
            self._losses.clear()
            self._rises.clear()

    def begin_anew(self, step: int) -> None:
        """Forgets all losses and norms, as of a run put back after ``step`` to an earlier state, but not the events."""
        self._close(step)
        for past in (self._losses, self._rises, self._log_norms):
            past.clear()

    def _candidate(self, step: int, base: float, rise: float, *, certain: bool) -> _Episode | None:
        """The episode that this point opens; ``certain`` if the gradient norm alone says so."""
        config, line, share = self._config, NO_LINE, 0.0
        if len(self._rises) >= MIN_HISTORY:
            # On a curve without noise, one point of the floor's height gives the evidence of a spike and no more.
            least = config.spike_floor * math.exp(-config.spike_evidence)
            line = max(least, config.spike_sigmas * spread(self._rises))
            share = memory(self._rises) if rise > line or certain else 0.0
        return _Episode(step, base, line, share, step, rise) if rise > line or certain else None

    def _gradient_evidence(self, grad_norm: float | None) -> float:
        if grad_norm is None or not 0 < grad_norm < math.inf:
            return 0.0
        value, history = math.log(grad_norm), self._log_norms
        # The lower median: of two norms, the first high one must not be the usual one.
        usual = sorted(history)[(len(history) - 1) // 2] if history else value
        history.append(value)
        if len(history) > self._config.baseline:
            del history[0]
        return max(0.0, value - usual - math.log(self._config.grad_factor))

    def _is_spike(self, episode: _Episode) -> bool:
        large = episode.size >= self._config.spike_floor or episode.norm_was_high
        return large and episode.witnesses >= WITNESSES and episode.evidence >= self._config.spike_evidence

    def _admit(self, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) > self._config.baseline:
            del self._losses[0]

    def _close(self, step: int) -> None:
        episode, self._episode = self._episode, None
        if episode is None:
            return
        if self._is_spike(episode):
            self._closed.append(Event("spike", episode.onset, episode.peak, step, episode.size))
        elif episode.loss_was_high and episode.size >= self._config.spike_floor:
            self._closed.append(Event("outlier", episode.onset, episode.peak, step, episode.size))

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`update` remembers, as JSON values."""
        return {
            "losses": list(self._losses),
            "rises": list(self._rises),
            "log_norms": list(self._log_norms),
            "episode": None if self._episode is None else asdict(self._episode),
            "closed": [asdict(event) for event in self._closed],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self._losses = list(state["losses"])
        self._rises = list(state["rises"])
        self._log_norms = list(state["log_norms"])
        self._episode = None if state["episode"] is None else _Episode(**state["episode"])
        self._closed = [Event(**event) for event in state["closed"]]


def _log_ratio(value: float, line: float) -> float:
    """Logarithm of how many times over ``value`` passes ``line``; 0 where it does not."""
    return math.log(value / line) if value > line else 0.0

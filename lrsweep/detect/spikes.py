"""Events: a high point alone is an outlier; high points in a row, or led by the gradient norm, are a spike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lrsweep.detect.config import MIN_HISTORY, DetectorConfig
from lrsweep.detect.records import Event
from lrsweep.detect.robust import median, noise, spread


@dataclass(slots=True)
class _Episode:
    """A stretch in which loss or gradient norm is high, measured against the level before it."""

    onset: int
    base: float
    line: float | None  # nats above base from which the loss is high; None: too few points before to say
    peak: int
    size: float
    evidence: float = 0.0
    points: int = 0
    loss_was_high: bool = False


class Spikes:
    """Finds events and weighs them.

    A point is high where the loss passes the median of the points before it by ``spike_sigmas`` robust deviations
    and ``spike_floor`` nats, or the gradient norm passes its median by ``grad_factor``. High points of an
    episode are kept out of the loss's history, so they cannot raise the level that they are measured against. Each
    channel of each point adds the logarithm of how many times over it passed; ``spike_evidence`` makes a spike.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._losses: list[float] = []
        self._log_norms: list[float] = []
        self._episode: _Episode | None = None
        self._closed: list[Event] = []

    @property
    def events(self) -> tuple[Event, ...]:
        """Events in the order of their onsets; the last may be a spike that still lasts."""
        episode = self._episode
        if episode is None or not self._is_spike(episode):
            return tuple(self._closed)
        return (*self._closed, Event("spike", episode.onset, episode.peak, None, episode.size))

    def update(self, step: int, loss: float, grad_norm: float | None) -> None:
        """Takes one finite loss, and the gradient norm if it was logged; a norm not positive and finite was not."""
        gradient = self._gradient_evidence(grad_norm)
        if step < self._config.grace_steps:
            self._admit(loss)
            return
        episode = self._episode or self._candidate(step, loss, certain=gradient > 0)
        if episode is None:
            self._admit(loss)
            return
        rise = loss - episode.base
        over = self._capped(rise / episode.line) if episode.line is not None else 0.0
        if over <= 0 and gradient <= 0:
            self._close(step)
            self._admit(loss)
            return
        episode.points += 1
        episode.evidence += over + gradient
        episode.loss_was_high |= over > 0
        if rise > episode.size:
            episode.peak, episode.size = step, rise
        self._episode = episode
        if episode.points >= self._config.window:  # this is the level now
            self._close(step)
            self._losses.clear()

    def _candidate(self, step: int, loss: float, *, certain: bool) -> _Episode | None:
        """An episode that this point opens; ``certain`` if the gradient norm alone says so."""
        history, config = self._losses, self._config
        base = median(history[-config.baseline :]) if history else loss
        line: float | None = None
        if len(history) >= MIN_HISTORY:
            line = config.spike_floor
            # The costly estimates only while they can change the answer: most points are not high.
            for deviation, points in ((spread, config.baseline), (noise, config.window)):
                if not certain and loss - base <= line:
                    return None
                line = max(line, config.spike_sigmas * deviation(history[-points:]))
        if certain or (line is not None and loss - base > line):
            return _Episode(step, base, line, step, loss - base)
        return None

    def _gradient_evidence(self, grad_norm: float | None) -> float:
        if grad_norm is None or not 0 < grad_norm < math.inf:
            return 0.0
        value, history = math.log(grad_norm), self._log_norms
        usual = median(history) if len(history) >= 3 else value
        history.append(value)
        if len(history) > self._config.baseline:
            del history[0]
        return self._capped(math.exp(min(value - usual, 700.0)) / self._config.grad_factor)

    def _capped(self, times_over: float) -> float:
        return min(math.log(times_over), self._config.spike_evidence / 2) if times_over > 1 else 0.0

    def _is_spike(self, episode: _Episode) -> bool:
        return episode.evidence >= self._config.spike_evidence

    def _admit(self, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) > self._config.window:
            del self._losses[0]

    def _close(self, step: int) -> None:
        episode, self._episode = self._episode, None
        assert episode is not None
        if self._is_spike(episode):
            self._closed.append(Event("spike", episode.onset, episode.peak, step, episode.size))
        elif episode.loss_was_high:
            self._closed.append(Event("outlier", episode.onset, episode.peak, step, episode.size))

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`update` remembers, as JSON values."""
        return {
            "losses": list(self._losses),
            "log_norms": list(self._log_norms),
            "episode": None if self._episode is None else asdict(self._episode),
            "closed": [asdict(event) for event in self._closed],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self._losses = list(state["losses"])
        self._log_norms = list(state["log_norms"])
        self._episode = None if state["episode"] is None else _Episode(**state["episode"])
        self._closed = [Event(**event) for event in state["closed"]]

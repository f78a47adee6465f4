"""Rules that other tools ship for loss spikes and divergence, with their defaults: one point in, whether it alarms."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from importlib import import_module

from lrsweep.detect.robust import MAD_TO_SIGMA, median

Rule = Callable[[float, float | None], bool]
"""Takes the loss and the gradient norm (None: not logged) of the next point; whether the rule alarms there."""


class LightningSpikeDetection:
    """Lightning's ``SpikeDetection``: a loss above the one before, and three times the mean of the last ten.

    Defaults of lightning 2.6 (``fabric/utilities/spike.py``): window 10, warm-up of one batch, relative tolerance 2; a
    loss that is not finite alarms; a loss that alarms does not enter the mean. In a trainer the first alarm raises.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=10)
        self._last = 0.0

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        if self._recent and self._alarms(loss):
            return True
        self._recent.append(loss)
        self._last = loss
        return False

    def _alarms(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        mean = sum(self._recent) / len(self._recent)
        return loss > self._last and abs(loss - mean) >= abs(2.0 * mean)


class KillLossSpike:
    """llm-foundry's ``KillLossSpike``: five losses in a row of twice the mean of the window, or half of it too high.

    Defaults of llm-foundry 0.22: a window of a twentieth of the run, at least 100; too high is above the largest loss
    of the first window, or above 10 where that is less. ``points``: how long the run will be, which the original knows.
    """

    def __init__(self, points: int) -> None:
        self._window = max(100, round(0.05 * points))
        self._recent: deque[float] = deque(maxlen=self._window)
        self._cap: float | None = None
        self._above_cap = 0
        self._seen = 0
        self._outliers = 0

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        self._seen += 1
        if len(self._recent) < self._window:
            self._recent.append(loss)
            return False
        if self._cap is None:
            self._cap = min(max(self._recent), 10.0)
            self._above_cap = sum(other > self._cap for other in self._recent)
        self._outliers = self._outliers + 1 if loss >= 2.0 * sum(self._recent) / self._window else 0
        alarm = self._outliers > 4 or (self._seen >= 2 * self._window and self._above_cap >= self._window / 2)
        self._above_cap += (loss > self._cap) - (self._recent[0] > self._cap)
        self._recent.append(loss)
        return alarm


class MegatronSpikyLoss:
    """Megatron-LM's ``--check-for-spiky-loss``: ten times the largest of the first 100 absolute losses.

    ``core/rerun_state_machine.py``, factor from ``pretrain_gpt.py``. Losses that are not finite are left to the check
    for NaN and infinity (``--check-for-nan-in-loss-and-grad``), which is on by default: they alarm here.
    """

    def __init__(self) -> None:
        self._largest = 0.0
        self._seen = 0

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        if not math.isfinite(loss):
            return True
        if self._seen < 100:
            self._seen += 1
            self._largest = max(self._largest, abs(loss))
            return False
        return abs(loss) >= 10.0 * self._largest


class SigmaRule:
    """A value above the mean of the last ``window`` by ``sigmas`` standard deviations, in loss or gradient norm.

    OLMo-core's ``StabilityMonitorCallback`` with 6 and 128; the spike score of OLMo 2 (arXiv 2501.00656) counts values
    7 deviations from the mean of the last 1,000. Upward only; nothing before the window is full; no guard against NaN,
    which alarms nobody for as long as it is in the window.
    """

    def __init__(self, *, sigmas: float, window: int) -> None:
        self._loss = _Window(sigmas, window)
        self._norm = _Window(sigmas, window)

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        high = self._loss.is_high(loss)
        return (grad_norm is not None and self._norm.is_high(grad_norm)) or high


class _Window:
    """Mean and deviation of the last values, by running sums."""

    def __init__(self, sigmas: float, size: int) -> None:
        self._sigmas = sigmas
        self._values: deque[float] = deque(maxlen=size)
        self._bad = 0
        self._sum = 0.0
        self._squares = 0.0

    def is_high(self, value: float) -> bool:
        size, high = len(self._values), False
        if size == self._values.maxlen:
            mean = self._sum / size
            deviation = math.sqrt(max(0.0, self._squares / size - mean * mean))
            high = not self._bad and deviation >= 1e-10 and value > mean + self._sigmas * deviation
            self._add(self._values[0], -1)
        self._values.append(value)
        self._add(value, 1)
        return high

    def _add(self, value: float, sign: int) -> None:
        if math.isfinite(value):
            self._sum += sign * value
            self._squares += sign * value * value
        else:
            self._bad += sign


class UpwardAdwin:
    """river's ADWIN drift detector (Bifet and Gavaldà 2007), where its mean went up; a non-finite loss alarms too.

    river's defaults: δ = 0.002, looked at every 32nd point. Raises ImportError where river is not installed.
    """

    def __init__(self) -> None:
        self._adwin = import_module("river.drift").ADWIN()

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        if not math.isfinite(loss):
            return True
        before = self._adwin.estimation
        self._adwin.update(loss)
        return bool(self._adwin.drift_detected and self._adwin.estimation > before)


class TwoOfThree:
    """Two of three points whose log loss is 6 robust deviations above the median of the 128 before, or non-finite.

    What is often written by hand; no tool ships it. A loss that is not positive is passed over.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=128)
        self._high: deque[bool] = deque(maxlen=3)

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        if not math.isfinite(loss):
            return True
        if loss <= 0:
            return False
        value = math.log(loss)
        self._high.append(len(self._recent) >= 16 and value > self._line())
        self._recent.append(value)
        return self._high[-1] and sum(self._high) >= 2

    def _line(self) -> float:
        middle = median(self._recent)
        return middle + 6 * MAD_TO_SIGMA * median([abs(other - middle) for other in self._recent])


class Either:
    """Alarms where any of ``rules`` does; each sees every point."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = list(rules)

    def __call__(self, loss: float, grad_norm: float | None) -> bool:
        alarms = [rule(loss, grad_norm) for rule in self._rules]
        return any(alarms)


RULES: dict[str, Callable[[int], Rule]] = {
    "Lightning SpikeDetection (mean of 10, 3×)": lambda points: LightningSpikeDetection(),
    "llm-foundry KillLossSpike": KillLossSpike,
    "Megatron spiky loss (10× first 100)": lambda points: MegatronSpikyLoss(),
    "OLMo-core (mean + 6σ, 128)": lambda points: SigmaRule(sigmas=6.0, window=128),
    "OLMo 2 spike score (7σ, 1,000)": lambda points: SigmaRule(sigmas=7.0, window=1000),
    "river ADWIN, upward (non-finite counted)": lambda points: UpwardAdwin(),
    "ADWIN, or median/MAD 2 of 3 on log loss, or non-finite": lambda points: Either([UpwardAdwin(), TwoOfThree()]),
}
"""Name in the table → a fresh rule for a run of that many points."""

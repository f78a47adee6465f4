"""What the detector may be told, and where each default comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIN_HISTORY = 9
"""Points below which no noise is estimated: of their seven second differences, one bad point spoils three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """Thresholds of :class:`~lrsweep.detect.DivergenceDetector`; losses in nats, times in steps or in logged points.

    The defaults were read off 55 public training curves, logged every 1 to 768 steps (23 plainly healthy, 142k
    points; 15 whose data gives one-step jumps, 135k points; 4 with spikes; 10 that diverged or went non-finite), and
    checked on tiny GPTs at learning rates from 3e-3 to 10. Any one may be moved by a tenth either way and each of
    those curves is judged the same.
    """

    margin: float = 0.5
    """Nats above its best at which the smoothed loss counts as having left it.
    Healthy curves wander by 0.32 at most, proxies below their edge by 0.4; the slightest real divergence passes 2."""
    margin_sigmas: float = 3.0
    """The same margin in standard deviations of one point, for noisy losses; the larger of the two holds.
    The median of 9 points has a deviation of 0.42 σ, and its extremes over 2,000 independent windows lie 6.6 of
    those apart: 2.8 σ. The noisiest public curves reach 3.0."""
    patience: int = 20
    """Points for which the gap to the best must stay above the margin without recovering. Points and not steps: each
    is one piece of evidence, whatever the interval. Healthy curves spend none there, those with jumps in their data 6
    at most. A run that steps up is told at its 24th high point: 4 of the median's lag, and these."""
    recovery: float = 0.75
    """Fraction of its height to which a gap must fall within ``patience`` to be waited for again. An exponential
    decay does so with a half-life up to 36 points; the slowest real recovery from a spike has about 20."""
    smooth: int = 9
    """Points in the median that is called the smoothed loss: four high points in a row are not yet a level."""
    grace_steps: int = 30
    """Steps after step 0 in which only non-finite values are judged; give the LR warm-up's length if it is longer.
    At the start, public runs rise by 2 to 36 nats and are back by step 30."""
    nonfinite_points: int = 3
    """Non-finite losses in a row that make a run ``nonfinite``. Where a guard skips such a step the weights stay, and
    the next batch is an independent draw: if one in 100 overflows, three in a row are one case in a million."""
    stall_level: float | None = None
    """Loss that a run must get below to have learned anything: the corpus's unigram entropy. None: not judged."""
    window: int = 64
    """Points that the noise is estimated from, and for which a spike waits for its old level before taking the new.
    The relative standard error of a median of 64 absolute values is 15%."""
    baseline: int = 20
    """Points in the median that a point is called high against: short, to follow a falling loss with a lag of 10."""
    spike_sigmas: float = 4.5
    """Robust deviations above the baseline from which a point is high.
    11 in 10,000 points of healthy curves are, and 69 where the data has jumps."""
    spike_floor: float = 0.1
    """Nats below which no point is high, however quiet the curve: a tenth more perplexity."""
    spike_evidence: float = 2.5
    """Sum, over points in a row, of the logarithm of how many times over each passes its threshold, at which they are
    a spike; no point gives more than half, so that none is one alone. Exceedances of a power tail have exponential
    logarithms, which makes the sum that tail's log-likelihood ratio up to a factor. Jumps of data reach 1.9, healthy
    curves 1.1, the weakest real spike 3.2; 2.5 is the geometric middle, and within the gap whichever source of curves
    is left out. In white noise, a jump of 12 deviations that decays over 8 points is a spike in 3 cases of 4."""
    grad_factor: float = 3.5
    """Multiple of its running median from which a gradient norm is high; it gives evidence in the same way. Two high
    ones in a row must both be 12 times the median to be a spike by themselves: runs without one reach 3.7, and the norm
    that led a spike of a 176B model 17 and 61."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("stall_level", "grace_steps") and not value > 0:
                raise ValueError(f"{field.name} must be positive, not {value}")
        if self.recovery >= 1:
            raise ValueError(f"recovery is a fraction below 1 of the gap, not {self.recovery}")
        if self.grad_factor < 1:
            raise ValueError(f"grad_factor is a multiple of the median and at least 1, not {self.grad_factor}")

"""What the detector may be told, and where each default comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIN_HISTORY = 9
"""Points below which no noise is estimated: of their seven second differences, one bad point spoils three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """Thresholds of :class:`~lrsweep.detect.DivergenceDetector`; losses in nats, times in steps or in logged points.

    Held against 55 labelled public training curves (284k points, logged every 1 to 768 steps) and 4,091 others of the
    same kind (1.25M points), whose alarms were all looked at; and against 780 runs of tiny GPTs at learning rates from
    1e-3 to 3. With any one value moved by a tenth either way, one judgement of the 55 changes (one of the data's jumps
    becomes a spike where ``window`` is 58), and 7 of 391 among the longest of the others.
    """

    margin: float = 0.5
    """Nats above its best at which the smoothed loss counts as having left it.
    Of 4,079 curves that are stable, 2 would not be at 0.45 and 10 at 0.3, nearly all of which change what they train
    on in mid-run. The slightest divergence passes 1.3, the drift of a run that spikes again and again 0.7."""
    margin_sigmas: float = 3.0
    """The same margin in standard deviations of one point, for noisy losses; the larger of the two holds.
    The median of 9 points has a deviation of 0.42 σ, and its extremes over 2,000 independent windows lie 6.6 of
    those apart: 2.8 σ. The noise of a run lost from its first steps on is no excuse: see ``window``."""
    patience: int = 20
    """Points for which the gap to the best must stay above the margin without recovering. Points and not steps: each
    is one piece of evidence, whatever the interval. Stable curves spend 16 there at most. A run that steps up is told
    at its 24th high point: 4 of the median's lag, and these."""
    patience_share: float = 0.02
    """Fraction of the steps watched so far that patience must last too. It counts from the thousandth point on, where
    20 points are less: what waiting costs is then a fiftieth of what the run has cost. The first spike of a 13B run,
    at iteration 29,050, took some 500 to come back, 1.7%."""
    recovery: float = 0.75
    """Fraction of its height to which a gap must fall within patience to be waited for again. An exponential
    decay does so with a half-life up to 36 points; the slowest real recovery from a spike has about 20."""
    smooth: int = 9
    """Points in the median that is called the smoothed loss: four high points in a row are not yet a level. A shorter
    run takes half of its points, an odd number and no fewer than 3."""
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
    A run was lost in its grace steps if fewer than one loss in as many has come back since, a chance of 1 in 65.
    The relative standard error of a median of 64 absolute values is 15%. With 32, false alarms come near the weakest
    spikes, and with 96 or more the spikes of the first hundred points are lost."""
    baseline: int = 20
    """Points in the median that a point is called high against: short, to follow a falling loss with a lag of 10. With
    9 or 32, spikes and jumps of the data lie closer together."""
    spike_sigmas: float = 4.5
    """Deviations of the last rises above the baseline from which a point is high.
    8 in 10,000 points of healthy curves are, and 70 where the data has jumps."""
    spike_floor: float = 0.1
    """Nats that the highest loss of an event must lie above the baseline, however quiet the curve: a tenth more
    perplexity. Where only the gradient norm says so, no rise is asked for."""
    spike_evidence: float = 1.8
    """Sum, over points in a row, of the logarithm of how many times over each passes its threshold, at which they are
    a spike; one witness alone, a loss or a norm, makes none. Exceedances of a power tail have exponential logarithms:
    the sum is that tail's log-likelihood ratio up to a factor. Curves without a spike reach 1.59, the weakest spike
    that was found has 2.09, and 1.8 is the geometric middle; without the repository that both are from, the gap is
    1.11 to 2.64. In white noise, a jump of 12 deviations that decays over 8 points is a spike in 99 cases of 100, one
    of 10 in 76, one of 8 in 20."""
    grad_factor: float = 3.5
    """Multiple of its running median from which a gradient norm is high; it gives evidence in the same way. Two high
    ones in a row must both be 8.6 times the median to be a spike by themselves; curves without one reach 3.4 and 6.2,
    and the norm that led a spike of a 176B model 10 and 17."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("stall_level", "grace_steps", "patience_share") and not value > 0:
                raise ValueError(f"{field.name} must be positive, not {value}")
        if not 0 <= self.patience_share < 1:
            raise ValueError(f"patience_share is a fraction below 1 of the steps watched, not {self.patience_share}")
        if self.recovery >= 1:
            raise ValueError(f"recovery is a fraction below 1 of the gap, not {self.recovery}")
        if self.grad_factor < 1:
            raise ValueError(f"grad_factor is a multiple of the median and at least 1, not {self.grad_factor}")

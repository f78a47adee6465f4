"""Robust statistics of a short list of float32-sized numbers; no minority of them moves the result far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal law over its median absolute deviation, 1/Φ⁻¹(3/4)."""
DECILE_TO_SIGMA = 1 / 1.2816
"""Standard deviation of a normal law over its upper decile, 1/Φ⁻¹(9/10)."""


def median(values: Sequence[float]) -> float:
    """The upper median: always one of the values, so that no arithmetic rounds it. ``values`` must not be empty."""
    return sorted(values)[len(values) // 2]


def spread(rises: Sequence[float]) -> float:
    """Standard deviation of ``rises``, of which a tenth or more may be high; they must not be empty.

    From the median absolute deviation; or from the upper decile, where that says more: of a loss that has two levels,
    or many jumps, the deviation about the median sees only the lower.
    """
    ordered = sorted(rises)
    centre = ordered[len(ordered) // 2]
    deviation = median([abs(rise - centre) for rise in rises])
    return max(MAD_TO_SIGMA * deviation, DECILE_TO_SIGMA * ordered[9 * len(ordered) // 10])


def memory(values: Sequence[float]) -> float:
    """The least correlation of one value with the next that ``values`` prove, 0 to 1; they must not be empty.

    Of a Gaussian sequence with lag-one correlation ρ, two neighbours lie on either side of the median with probability
    arccos(ρ)/π (Sheppard 1899). The crossings are counted, which no outlier moves, and taken two standard errors of
    a fair coin higher. Values of which none is below the median prove nothing.
    """
    centre = median(values)
    below = [value < centre for value in values]
    if not any(below):
        return 0.0
    pairs = len(values) - 1
    crossings = sum(a != b for a, b in pairwise(below))
    return max(0.0, math.cos(math.pi * min(1.0, crossings / pairs + pairs**-0.5)))


def noise(values: Sequence[float]) -> float:
    """Standard deviation of one point about the curve, blind to its level and its slope; 0 for fewer than 3 points.

    A second difference of white noise has variance 1 + 4 + 1 = 6, and that of a straight line is 0.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return MAD_TO_SIGMA / 6**0.5 * median(bends) if bends else 0.0

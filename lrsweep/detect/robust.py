"""Robust statistics of a short list of float32-sized numbers; no minority of them moves the result far."""

from __future__ import annotations

from collections.abc import Sequence

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal law over its median absolute deviation, 1/Φ⁻¹(3/4)."""


def median(values: Sequence[float]) -> float:
    """The upper median: always one of the values, so that no arithmetic rounds it. ``values`` must not be empty."""
    return sorted(values)[len(values) // 2]


def spread(values: Sequence[float]) -> float:
    """Standard deviation about the median, from the median absolute deviation. ``values`` must not be empty."""
    centre = median(values)
    return MAD_TO_SIGMA * median([abs(value - centre) for value in values])


def noise(values: Sequence[float]) -> float:
    """Standard deviation of one point about the curve, blind to its level and its slope; 0 for fewer than 3 points.

    A second difference of white noise has variance 1 + 4 + 1 = 6, and that of a straight line is 0.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return MAD_TO_SIGMA / 6**0.5 * median(bends) if bends else 0.0

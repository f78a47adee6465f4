"""Paired rounds: what is compared runs right after one another, so that whatever else the machine does hits all alike.

Absolute times on a shared machine say little. Within one round every variant runs once, in an order that turns from
round to round and then backwards, and a figure is the median over rounds of the ratio of two variants.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

INTERVAL = 20
"""Steps between two fetches of the statistics, as in a sweep; the most that a variant runs in a round."""
FEWEST = 5
"""The fewest."""
_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One variant's time over another's, over paired rounds."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Summary of the ratios round by round; at least two rounds."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(seconds, base, strict=True)], n=4)
    return Ratio(median=median, low=low, high=high)


def steps_a_round(step_s: float) -> int:
    """Steps that a variant runs in a round: a quarter of a second's, from 5 to 20 of them."""
    return min(INTERVAL, max(FEWEST, round(_SECONDS / step_s)))


def paired_rounds(variants: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one run of each that does not count.

    On a CPU they are this process's own: what others do with the core is not in them.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for run in variants.values():
        run()
    for i in range(rounds):
        first = i % len(names)
        order = names[first:] + names[:first]
        # Or each would always come after the same one, whose heat is still in the clocks.
        if i // len(names) % 2:
            order.reverse()
        for name in order:
            synchronize(device)
            began = clock()
            variants[name]()
            synchronize(device)
            seconds[name].append(clock() - began)
    return seconds


def synchronize(device: str) -> None:
    """Wait for the GPU, if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: str) -> tuple[float | None, float | None]:
    """GiB that tensors held at most so far, and that the process took from the GPU for them; None on a CPU."""
    if device == "cpu":
        return None, None
    return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30

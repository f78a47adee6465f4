"""lrsweep beside its peers at one size: what the runs, one after the other, say together."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lrsweep.bench.job import System, Timing
from lrsweep.bench.peers import PEERS

PEERS_ARCH, PEERS_BODY = "preln", "llama"
"""The scheme and the body that the peers' Llama is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One size. lrsweep counts with all its probes on and as the mean of its two runs, the peers with none."""

    size: str
    """Size preset."""
    runs: tuple[Timing, ...]
    """lrsweep, the peers, lrsweep again, in the order they ran."""
    step_over_peer: float
    """lrsweep's step over the fastest peer's."""
    first_step_over_peer: float
    """lrsweep's seconds to the first step over those of the peer that has the fewest."""
    drift: float
    """lrsweep's second step time over its first: what the machine did meanwhile."""


def compare(before: Timing, peers: Sequence[Timing], after: Timing) -> Comparison:
    """Put the runs together; at least one peer, all of one size and so of as many parameters."""
    assert all(timing.n_params == before.n_params for timing in (*peers, after))
    ours = before, after
    step_ms = [timing.full_step_ms for timing in ours]
    return Comparison(
        size=before.size,
        runs=(before, *peers, after),
        step_over_peer=statistics.mean(step_ms) / min(peer.full_step_ms for peer in peers),
        first_step_over_peer=statistics.mean(timing.first_step_s for timing in ours)
        / min(peer.first_step_s for peer in peers),
        drift=step_ms[1] / step_ms[0],
    )


def installed_peers() -> tuple[list[System], list[str]]:
    """Names of the peers that can be imported, and a line for each that cannot."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    lines = [f"{name} left out: it is not installed (pip install {name})" for name in missing]
    return [name for name in PEERS if name not in missing], lines

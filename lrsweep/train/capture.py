"""A step as CUDA graphs, one for each level of probing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from lrsweep.model import ProbeLevel

Step = Callable[[ProbeLevel, bool], None]
"""Launches one micro-batch; with True, the last of a step and its update."""


@functools.cache
def streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """What steps are captured from, and a branch that gives way to it.

    The same for all engines of a process: for every stream it sees, cuBLAS takes memory that it does not give back.
    """
    return torch.cuda.Stream(device, priority=-1), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Graphs:
    """What was captured of one step.

    Args:
        parts: what a step is called with in its course, (True,) where it is one micro-batch.
        stream: where to capture, and to run first.
    """

    def __init__(self, parts: Sequence[bool], stream: torch.cuda.Stream) -> None:
        self._parts, self._stream = parts, stream
        self._graphs: dict[tuple[ProbeLevel, bool], torch.cuda.CUDAGraph] = {}

    def missing(self, probes: Sequence[ProbeLevel]) -> set[ProbeLevel]:
        """Which of the levels have not been captured."""
        return {probe for probe in probes if (probe, True) not in self._graphs}

    def replay(self, probe: ProbeLevel, last: bool) -> None:
        """Run one part of a step that was captured."""
        self._graphs[probe, last].replay()

    def capture(
        self, step: Step, probes: set[ProbeLevel], before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        """Run a step at levels that are new, then capture it for them, and anew for those captured already.

        Args:
            step: what to capture; it asks nothing of the host. Not kept: whoever has the graphs would never go.
            probes: the new levels.
            before: called before each step that runs.
            after: called after each level that was captured.
        """
        levels = sorted(probes | {probe for probe, _ in self._graphs})
        torch.cuda.synchronize()  # One of them may be running.
        # A graph keeps the memory of its activations: with those of an older one there might be too little for a step.
        self._graphs.clear()
        torch.cuda.empty_cache()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for probe in probes:
                for _ in range(2):  # Compiles, and lets libraries take their working memory.
                    before()
                    for last in self._parts:
                        step(probe, last)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # The graphs take as much again from a pool of their own, which they share.
        pool = torch.cuda.graph_pool_handle()
        for probe in levels:
            for last in self._parts:
                graph = torch.cuda.CUDAGraph()
                # Threads of the communication library go on meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    step(probe, last)
                self._graphs[probe, last] = graph
            after()

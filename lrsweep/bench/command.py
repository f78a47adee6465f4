"""``lrsweep bench``: one process a model, tables of what they found, and all of it as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lrsweep.bench.comparison import PEERS_ARCH, PEERS_BODY, Comparison, compare, installed_peers
from lrsweep.bench.job import Job, JobError, System, Timing, run_job
from lrsweep.bench.table import (
    KERNEL_NOTE,
    RATIO_NOTE,
    kernel_table,
    peers_note,
    peers_table,
    ratio_table,
    speed_table,
)
from lrsweep.config import find_body, find_size
from lrsweep.errors import DONE, INTERRUPTED, TRIAL_ERRORS, UserError
from lrsweep.schemes import find
from lrsweep.store import write_text
from lrsweep.sweep.machine import provenance
from lrsweep.sweep.plan import DEFAULT_SIZE, Device, resolve_device

_ROUNDS: dict[Device, int] = {"cpu": 60, "cuda": 20}
"""A shared CPU's times scatter by some hundredths; on a GPU a round of a large model takes seconds."""


class Bench:
    """The jobs of one call and what came of them."""

    def __init__(self, device: Device, rounds: int, out: Path | None, console: Console) -> None:
        self.timings: list[Timing] = []
        """lrsweep's, by size and scheme."""
        self.comparisons: list[Comparison] = []
        """One a size."""
        self.left_out: list[str] = []
        """A line for each model that could not be measured."""
        self._device, self._rounds, self._out, self._console = device, rounds, out, console

    def measure(self, system: System, arch: str, body: str, size: str) -> Timing | None:
        """Measure one model; None and a line in ``left_out`` if it fails, as when it does not fit."""
        job = Job(system=system, arch=arch, body=body, size=size, device=self._device, rounds=self._rounds)
        name = f"{arch} {size}" if system == "lrsweep" else f"{system} {size}"
        try:
            with self._console.status(f"measuring {name}"):
                return run_job(job)
        except JobError as error:
            self.leave_out(f"{name} left out: {error}")
            return None

    def leave_out(self, line: str) -> None:
        """Keep and print why a model is missing."""
        self.left_out.append(line)
        self._console.print(line, highlight=False, markup=False)

    def add_scheme(self, arch: str, body: str, size: str) -> bool:
        """Measure lrsweep's step; whether that worked."""
        timing = self.measure("lrsweep", arch, body, size)
        if timing is not None:
            self.timings.append(timing)
        return timing is not None

    def add_comparison(self, peers: Sequence[System], size: str) -> None:
        """Measure the peers between two runs of lrsweep, the first of which may have been measured already."""
        llama = PEERS_ARCH, PEERS_BODY, size
        before = next((t for t in self.timings if (t.scheme, t.body, t.size) == llama), None)
        before = before or self.measure("lrsweep", *llama)
        if before is None:
            return
        found = [timing for peer in peers if (timing := self.measure(peer, *llama)) is not None]
        if found and (after := self.measure("lrsweep", *llama)) is not None:
            self.comparisons.append(compare(before, found, after))

    def print(self) -> None:
        """The tables."""
        if self.timings:
            self._console.print(speed_table(self.timings))
            self._console.print()
            self._console.print(ratio_table(self.timings))
            self._console.print(RATIO_NOTE)
            if any(timing.kernel_ms for timing in self.timings):
                self._console.print()
                self._console.print(kernel_table(self.timings))
                self._console.print(KERNEL_NOTE)
        for comparison in self.comparisons:
            self._console.print()
            self._console.print(peers_table(comparison))
            self._console.print(peers_note(comparison), highlight=False)

    def save(self) -> None:
        """Write what there is, and what it ran on, if there is a file to write."""
        if self._out is None:
            return
        found = {
            **provenance(),
            "rounds": self._rounds,
            "timings": [asdict(timing) for timing in self.timings],
            "peers": [asdict(comparison) for comparison in self.comparisons],
            "left_out": self.left_out,
        }
        write_text(self._out, json.dumps(found, indent=2) + "\n")


def run_bench(
    archs: Sequence[str], body: str, sizes: Sequence[str], *, rounds: int | None, peers: bool, out: Path | None
) -> int:
    """Measure every scheme at every size, print the tables, save them in ``out``; returns the exit code.

    Raises:
        UserError: a name that is not known, too few rounds, ``peers`` with a body that they do not have, or an
            ``out`` that cannot be written.
    """
    if not archs:
        raise UserError("--arch is empty; give at least one scheme, or leave the flag out")
    for arch in archs:
        find(arch)
    body = find_body(body)
    if rounds is not None and rounds < 2:
        raise UserError(f"--rounds must be at least 2, got {rounds}")
    if peers and body != PEERS_BODY:
        raise UserError(f"--peers compares Llama models, which --body {body} is not; add --body {PEERS_BODY}")
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    known_sizes = [find_size(size).name for size in sizes]
    device = resolve_device("auto")
    console = Console(width=None if sys.stdout.isatty() else 1000)  # a line of a file or a pipe is not folded
    bench = Bench(device, rounds or _ROUNDS[device], out, console)
    try:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            # Found out now, not after the first model; until then what an older run left there stays, or nothing.
            is_new = not out.exists()
            out.touch()
            if is_new:
                out.unlink()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a file that can be written") from None
    installed: list[System] = []
    if peers:
        installed, lines = installed_peers()
        for line in lines:
            bench.leave_out(line)
    code = DONE
    try:
        for size in dict.fromkeys(known_sizes or [DEFAULT_SIZE[device]]):
            for arch in dict.fromkeys(archs):
                if not bench.add_scheme(arch, body, size):
                    code = TRIAL_ERRORS
                bench.save()
            if installed:
                bench.add_comparison(installed, size)
                bench.save()
    except KeyboardInterrupt:
        code = INTERRUPTED
    bench.print()
    return code

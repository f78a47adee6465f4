"""What a running sweep shows: a live table in a terminal, one plain line per change elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lrsweep.config import TrialSpec
from lrsweep.store import TrialRow
from lrsweep.train import Progress

_BARS = "▁▂▃▄▅▆▇█"
_STYLE = {
    "running": "dim",
    "stable": "green",
    "degraded": "yellow",
    "stalled": "yellow",
    "diverged": "red",
    "nonfinite": "red",
    "error": "bold red",
}
_PLAIN_INTERVAL_S = 60.0


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The last ``width`` values as bars from their lowest to their highest; a non-finite one is ``×``."""
    values = values[-width:]
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1))] if math.isfinite(v) else "×" for v in values)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def eta(done_steps: float, total_steps: float, elapsed_s: float) -> float:
    """Seconds left at the rate so far; inf before anything is done."""
    return (total_steps - done_steps) * elapsed_s / done_steps if done_steps > 0 else math.inf


class Display:
    """Takes every report of every trial and shows where the sweep stands; use as a context manager.

    Args:
        specs: the trials to be run now.
        n_finished: trials of the plan that were finished before.
        epsilon: ε of each size in nats, to tell early what the table will call degraded.
        console: where to show it.
        at_most: whether fewer may be enough.
    """

    def __init__(
        self,
        specs: Sequence[TrialSpec],
        *,
        n_finished: int,
        epsilon: Mapping[str, float],
        console: Console,
        at_most: bool = False,
    ) -> None:
        self._console = console
        self._n_finished = n_finished
        self._n_trials = len(specs) + n_finished
        self._at_most = at_most
        self._total_steps = sum(spec.train.steps for spec in specs)
        self._running: dict[str, tuple[TrialSpec, list[float], Progress]] = {}
        self._ended: list[tuple[TrialSpec, list[float], Progress]] = []
        self._epsilon = epsilon
        self._best: dict[tuple[str, str, str, int], TrialRow] = {}
        self._first_report: tuple[float, int] | None = None
        self._last_line = time.perf_counter()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=True
        ) if console.is_terminal else None  # fmt: skip

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, spec: TrialSpec, progress: Progress) -> None:
        """Take in one report."""
        _, losses, _ = self._running.get(spec.trial, (spec, [], progress))
        # A trial that was started again begins anew.
        losses = [*losses, progress.loss] if progress.step > spec.train.report_every else [progress.loss]
        state = (spec, losses, progress)
        if self._first_report is None:
            self._first_report = (time.perf_counter(), progress.step)
        if progress.row is None:
            self._running[spec.trial] = state
        else:
            self._running.pop(spec.trial, None)
            self._ended.append(state)
            best = self._best.setdefault(_siblings(progress.row), progress.row)
            if progress.row.loss_final < best.loss_final or math.isnan(best.loss_final):
                self._best[_siblings(progress.row)] = progress.row
        if not self._live:
            self._print_plain(spec, progress)

    def _eta(self) -> float:
        if self._first_report is None:
            return math.inf
        # Counted from the first report on: workers that start and compile say nothing about the rate.
        since, steps = self._first_report
        running = sum(progress.step for _, _, progress in self._running.values())
        ended = sum(spec.train.steps for spec, _, _ in self._ended)
        return eta(running + ended - steps, self._total_steps - steps, time.perf_counter() - since)

    def _outcome(self, progress: Progress) -> str:
        """The verdict, or ``degraded`` where a trial ends well above a sibling of lower LR that has ended."""
        row = progress.row
        if row is None:
            return progress.verdict if progress.verdict != "stable" else "running"
        best = self._best[_siblings(row)]
        worse = row.loss_final > best.loss_final + self._epsilon[row.size]
        return "degraded" if row.verdict == "stable" and worse and row.lr > best.lr else row.verdict

    def _n_ended(self) -> int:
        return self._n_finished + len(self._ended)

    def _so_far(self, of: str) -> str:
        return f"{self._n_ended()}{of}{'≤' if self._at_most else ''}{self._n_trials}"

    def _left(self) -> str:
        return f"{'at most ' if self._at_most else ''}{duration(self._eta())} left"

    def _print_plain(self, spec: TrialSpec, progress: Progress) -> None:
        now = time.perf_counter()
        if progress.row is not None:
            text = f"[{self._so_far('/')}] {spec.label}: {_in_words(progress.row, self._outcome(progress))}"
        elif now - self._last_line > _PLAIN_INTERVAL_S:
            text = f"[{self._so_far('/')}] {len(self._running)} trials running"
        else:
            return
        self._last_line = now
        left = f"; {self._left()}" if self._n_ended() < self._n_trials else ""
        self._console.print(text + left, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name in ("scheme", "LR", "seed", "step", "loss", "", "verdict so far"):
            table.add_column(name, justify="right" if name in ("LR", "seed", "step", "loss") else "left")
        room = max(4, self._console.height - 6)
        running = list(self._running.values())
        for spec, losses, progress in [*self._ended[-max(0, room - len(running)) :], *running][-room:]:
            row = progress.row
            outcome = self._outcome(progress)
            verdict = Text(outcome, style=_STYLE[outcome])
            loss = row.loss_final if row is not None and math.isfinite(row.loss_final) else progress.loss
            table.add_row(
                spec.scheme.name,
                f"{spec.lr:g}",
                str(spec.seed),
                f"{progress.step}/{progress.steps}",
                f"{loss:.3f}",
                sparkline(losses),
                verdict,
            )
        left = f", {self._left()}" if self._ended or self._running else ", workers are starting"
        footer = f"{self._so_far(' of ')} trials done{left}"
        return Group(table, Text(footer, style="bold"))


def _siblings(row: TrialRow) -> tuple[str, str, str, int]:
    return row.scheme, row.body, row.size, row.seed


def _in_words(row: TrialRow, outcome: str) -> str:
    if outcome in ("stable", "degraded"):
        return f"{outcome}, held-out loss {row.loss_final:.3f} ({duration(row.wall_s)})"
    return f"{outcome} at step {row.steps}: {row.reason}"

"""The tables of ``lrsweep bench``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lrsweep.bench.comparison import Comparison
from lrsweep.bench.job import Timing
from lrsweep.bench.kernels import GROUPS, OTHER
from lrsweep.bench.rounds import Ratio

KERNEL_NOTE = "Where a step with all probes goes: parts of its kernels' time."
"""What stands under :func:`kernel_table`."""
RATIO_NOTE = "Ratios of step times: median (quartiles) of paired rounds."
"""What stands under :func:`ratio_table`."""


def speed_table(timings: Sequence[Timing]) -> Table:
    """A row a scheme and size: parameters, step, rate, MFU, first steps, memory; without what no row has."""
    columns = {
        "parameters": [f"{t.n_params / 1e6:,.2f}M" for t in timings],
        "bare step": [_ms(t.step_ms["bare"]) for t in timings],
        "all probes": [_ms(t.step_ms["all"]) for t in timings],
        "tokens/s": [f"{t.tokens_per_s:,.0f}" for t in timings],
        "MFU": ["" if t.mfu is None else f"{t.mfu:.3f}" for t in timings],
        "first step": [f"{t.first_step_s:.1f} s" for t in timings],
        "next trial": ["" if t.next_trial_s is None else f"{t.next_trial_s:.2f} s" for t in timings],
        "memory": [_gib(t) for t in timings],
    }
    return _table({"scheme": [t.scheme for t in timings], "size": [t.size for t in timings]}, columns)


def ratio_table(timings: Sequence[Timing]) -> Table:
    """A row a scheme and size: what the probes cost, and on a GPU what launching the kernels one by one would."""
    names = dict.fromkeys(name for t in timings for name in t.ratios)
    columns = {name: [_ratio(t.ratios[name]) if name in t.ratios else "" for t in timings] for name in names}
    return _table({"scheme": [t.scheme for t in timings], "size": [t.size for t in timings]}, columns)


def kernel_table(timings: Sequence[Timing]) -> Table:
    """A row a scheme and size: parts of the time of a step's kernels, all probes on."""
    names = [*GROUPS, OTHER]
    columns = {name: [_percent(t.kernel_ms.get(name, 0.0), t) for t in timings] for name in names}
    return _table({"scheme": [t.scheme for t in timings], "size": [t.size for t in timings]}, columns)


def peers_table(comparison: Comparison) -> Table:
    """A row a run, in the order they ran; lrsweep with all its probes on."""
    runs = comparison.runs
    columns = {
        "step": [_ms(t.full_step_ms) for t in runs],
        "tokens/s": [f"{t.tokens_per_s:,.0f}" for t in runs],
        "first step": [f"{t.first_step_s:.1f} s" for t in runs],
        "memory": [_gib(t) for t in runs],
    }
    return _table({"trainer": [f"{t.system} {t.version}" for t in runs], "size": [t.size for t in runs]}, columns)


def peers_note(comparison: Comparison) -> str:
    """The ratios of a comparison, in one line."""
    return (
        f"lrsweep with all probes over the best peer without: step {comparison.step_over_peer:.3f}, "
        f"first step {comparison.first_step_over_peer:.3f}; its second run over its first: {comparison.drift:.3f}."
    )


def _table(labels: dict[str, list[str]], columns: dict[str, list[str]]) -> Table:
    """Labels to the left; columns that hold nothing are left out."""
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in (*labels, *columns):
        table.add_column(name, justify="left" if name in labels else "right", no_wrap=True)
    for row in zip(*labels.values(), *columns.values(), strict=True):
        table.add_row(*row)
    return table


def _ms(value: float) -> str:
    return f"{value:.2f} ms"


def _ratio(value: Ratio) -> str:
    return f"{value.median:.3f} ({value.low:.3f} to {value.high:.3f})"


def _percent(ms: float, timing: Timing) -> str:
    return f"{100 * ms / sum(timing.kernel_ms.values()):.1f}%" if ms else ""


def _gib(timing: Timing) -> str:
    if timing.allocated_gib is None or timing.reserved_gib is None:
        return ""
    return f"{timing.allocated_gib:.1f} ({timing.reserved_gib:.1f}) GiB"

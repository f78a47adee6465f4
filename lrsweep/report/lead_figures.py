"""Draws one trial against the band of its siblings; what is shown is decided in :mod:`lrsweep.report.lead_info`."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy import isfinite

from lrsweep.report.canvas import new_figure, plain_log_axis
from lrsweep.report.lead_info import LeadInfo, LeadPanel

_TRIAL, _BAND, _LIMIT, _EXIT = "#b3261e", "#c9d3df", "#5c6370", "#b3261e"


def draw_lead(info: LeadInfo, title: str) -> Figure:
    """A panel a signal, the loss first: the trial, the siblings' range, and where it left."""
    n = len(info.panels)
    columns = min(n, 3)
    rows = -(-n // columns)
    figure = new_figure(max(2.6 * columns, 5.2), 1.05 + 2.0 * rows)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, sharex="all", squeeze=False)
    every = list(grid.flat)
    for axes, panel in zip(every, info.panels, strict=False):
        _draw_panel(axes, panel, info)
    for axes in every[n:]:
        axes.set_visible(False)
    for axes in every[max(n - columns, 0) : n]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    key = _KEY if info.onset is None else [*_KEY, _ONSET]
    figure.legend(handles=key, loc="outside lower center", ncols=4)
    return figure


def _draw_panel(axes: Axes, panel: LeadPanel, info: LeadInfo) -> None:
    left = "stays" if panel.exit_step is None else f"leaves at step {panel.exit_step}"
    unit = " (nats)" if panel.signal.in_nats else ""
    axes.set_title(f"{panel.signal.name}{unit}\n{left}", loc="left", fontsize=8)
    axes.fill_between(info.steps, panel.low, panel.high, color=_BAND, linewidth=0)
    axes.plot(info.steps, panel.limit, color=_LIMIT, linewidth=0.9, linestyle="--")
    axes.plot(info.steps, panel.trial, color=_TRIAL, linewidth=1.2)
    if panel.exit_step is not None:
        axes.axvline(panel.exit_step, color=_EXIT, linewidth=0.9, linestyle=":")
    if info.onset is not None:
        axes.axvline(info.onset, color="#000000", linewidth=0.9, linestyle="-.")
    if not panel.signal.in_nats and (isfinite(panel.trial).any() or isfinite(panel.high).any()):
        axes.set_yscale("log", nonpositive="mask")
        plain_log_axis(axes.yaxis)


_KEY = [
    Line2D([], [], color=_TRIAL, linewidth=1.2, label="the trial"),
    Patch(color=_BAND, label="stable siblings"),
    Line2D([], [], color=_LIMIT, linewidth=0.9, linestyle="--", label="limit of the band"),
]
_ONSET = Line2D([], [], color="#000000", linewidth=0.9, linestyle="-.", label="onset of the verdict")

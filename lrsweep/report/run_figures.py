"""Draws the figures of single trials; what they show is decided in :mod:`lrsweep.report.run_info`."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lrsweep.report.canvas import LR_COLORS, lr_norm, lr_ticks, new_panels, note, plain_log_axis
from lrsweep.report.run_info import NORM_SITES, NormInfo, Run, RunsInfo
from lrsweep.report.section import Section

_DENSE = 20_000
_END_MARKS = {"diverged": "x", "nonfinite": "+", "degraded": "o", "stalled": "s"}
_LAYER_COLORS = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.85, 256)), name="layer")
_SITE_NAMES = {"qkv": "QKV", "proj": "Proj", "fc2": "FC2"}


def draw_logits(info: RunsInfo, section: Section) -> Figure:
    """Largest attention logit against the step, a panel for each scheme, coloured by LR."""
    title = f"Largest attention logit during training ({section.body} {section.size})"
    figure, panels = _draw_runs(info, title=title, ylabel="max attention logit")
    panels[0].set_yscale("log", nonpositive="mask")
    plain_log_axis(panels[0].yaxis)
    return figure


def draw_loss_curves(info: RunsInfo, section: Section) -> Figure:
    """Training loss against the step, a panel for each scheme, coloured by LR, with the outcome at the end."""
    title = f"Training loss and outcome of every trial ({section.title})"
    figure, panels = _draw_runs(info, title=title, ylabel="training loss (nats per token)", below=0.25)
    figure.legend(handles=_END_KEY, loc="lower center", ncols=4)
    untrained = section.trials["loss_init"]
    top = max(untrained[np.isfinite(untrained)] * 1.08, default=math.inf)
    if math.isfinite(top):
        lowest = min(float(run.curve.values.min()) for panel in info.panels for run in panel.runs)
        bottom = min(lowest, 0.9 * top)
        panels[0].set_ylim(bottom - 0.04 * (top - bottom), top)
    for axes, panel in zip(panels, info.panels, strict=True):
        for run in panel.runs:
            _mark_end(axes, run, top, LR_COLORS(lr_norm(info.lrs)(run.lr)))
    return figure


def _draw_runs(info: RunsInfo, *, title: str, ylabel: str, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """The figure, and the axes of each panel."""
    n = len(info.panels)
    columns = n if n <= 3 else min(5, -(-n // 2))
    blank = new_panels(-(-n // columns), columns, title, share_y="all", below=below)
    every = [axes for row in blank.grid for axes in row]
    dense = sum(len(run.curve.steps) for panel in info.panels for run in panel.runs) > _DENSE
    norm = lr_norm(info.lrs)
    for axes, panel in zip(every, info.panels, strict=False):
        axes.set_title(panel.scheme)
        for run in panel.runs:
            color = LR_COLORS(norm(run.lr))
            axes.plot(run.curve.steps, run.curve.values, color=color, linewidth=0.8, rasterized=dense)
    for axes in every[n:]:
        axes.set_visible(False)
    for axes in every[max(n - columns, 0) : n]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    blank.figure.supylabel(ylabel, fontsize=9)
    blank.figure.colorbar(ScalarMappable(norm, LR_COLORS), cax=blank.bar, label="peak learning rate")
    lr_ticks(blank.bar.yaxis, info.lrs)
    return blank.figure, every[:n]


def _mark_end(axes: Axes, run: Run, top: float, color: tuple[float, ...]) -> None:
    """The outcome, if it is unstable; at the edge for a curve that left through the top."""
    if run.outcome in _END_MARKS:
        x, y = run.curve.steps[-1], min(float(run.curve.values[-1]), top)
        mark = _END_MARKS[run.outcome]
        axes.plot(x, y, marker=mark, color=color, markerfacecolor="white", markersize=5, clip_on=False, zorder=5)


_END_KEY = [
    Line2D([], [], color="#444444", marker=mark, markerfacecolor="white", linestyle="none", markersize=5, label=name)
    for name, mark in _END_MARKS.items()
]


def draw_norms(info: NormInfo, section: Section) -> Figure:
    """Norms against the step, a row for each site, a column for each side of the frontier, coloured by layer."""
    title = f"{info.scheme}: growth of layer-output norms ({section.body} {section.size})"
    blank = new_panels(len(NORM_SITES), len(info.columns), title, share_y="row")
    depth = max(layer for c in info.columns for by in c.curves.values() for layer in by)
    norm = BoundaryNorm(np.arange(depth + 2) - 0.5, _LAYER_COLORS.N)
    for site, row in zip(NORM_SITES, blank.grid, strict=True):
        for column, axes in zip(info.columns, row, strict=True):
            curves = column.curves.get(site, {})
            for layer, curve in curves.items():
                axes.plot(curve.steps, curve.values, color=_LAYER_COLORS(norm(layer)), linewidth=0.9)
            if not curves:
                note(axes, "not measured")
        row[0].set_yscale("log", nonpositive="mask")
        plain_log_axis(row[0].yaxis)
        row[0].set_ylabel(_SITE_NAMES[site])
    for column, top, bottom in zip(info.columns, blank.grid[0], blank.grid[-1], strict=True):
        top.set_title(column.title)
        bottom.set_xlabel("step")
    blank.figure.supylabel("RMS over tokens of the output's L2 norm", fontsize=9)
    ticks = range(0, depth + 1, -(-(depth + 1) // 8))
    blank.figure.colorbar(ScalarMappable(norm, _LAYER_COLORS), cax=blank.bar, label="layer", ticks=ticks)
    return blank.figure

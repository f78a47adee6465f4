"""Draws the figures of single trials; what they show is decided in :mod:`lrsweep.report.run_info`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lrsweep.report.canvas import LR_COLORS, lr_norm, lr_ticks, new_figure, note, plain_log_axis
from lrsweep.report.run_info import NORM_SITES, NormInfo, RunPanel, RunsInfo
from lrsweep.report.section import Section

_DENSE = 20_000
_END_MARKS = {"diverged": "x", "nonfinite": "+", "degraded": "o", "stalled": "s"}
_LAYER_COLORS = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.85, 256)), name="layer")
_SITE_NAMES = {"qkv": "QKV", "proj": "Proj", "fc2": "FC2"}


def draw_logits(info: RunsInfo, section: Section) -> Figure:
    """Largest attention logit against the step, a panel for each scheme, coloured by LR."""
    title = f"Largest attention logit during training ({section.body} {section.size})"
    return _draw_runs(info, title=title, ylabel="max attention logit", log=True, top=math.inf)


def draw_loss_curves(info: RunsInfo, section: Section) -> Figure:
    """Training loss against the step, a panel for each scheme, coloured by LR, with the outcome at the end."""
    title = f"Training loss and outcome of every trial ({section.title})"
    untrained = section.trials["loss_init"]
    top = float(untrained[np.isfinite(untrained)].max()) * 1.08
    return _draw_runs(info, title=title, ylabel="training loss (nats per token)", log=False, top=top)


def _draw_runs(info: RunsInfo, *, title: str, ylabel: str, log: bool, top: float) -> Figure:
    n = len(info.panels)
    columns = n if n <= 3 else min(5, -(-n // 2))
    rows = -(-n // columns)
    figure = new_figure(max(1.6 + 2.1 * columns, 6.2), 1.2 + 1.8 * rows)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    dense = sum(len(r.curve.steps) for p in info.panels for r in p.runs) > _DENSE
    norm = lr_norm(info.lrs)
    for axes, panel in zip(panels, info.panels, strict=False):
        axes.set_title(panel.scheme)
        if log:
            axes.set_yscale("log")
        for run in panel.runs:
            shown = run.curve.values > 0 if log else slice(None)
            color = LR_COLORS(norm(run.lr))
            axes.plot(run.curve.steps[shown], run.curve.values[shown], color=color, linewidth=0.8, rasterized=dense)
        if not log:
            _mark_ends(axes, panel, top, [LR_COLORS(norm(r.lr)) for r in panel.runs])
    if log:
        plain_log_axis(panels[0].yaxis)
    for axes in panels[n:]:
        axes.set_visible(False)
    for axes in panels[max(n - columns, 0) : n]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    if math.isfinite(top):
        lowest = min(float(r.curve.values.min()) for p in info.panels for r in p.runs)
        panels[0].set_ylim(lowest - 0.04 * (top - lowest), top)
    figure.supylabel(ylabel, fontsize=9)
    bar = figure.colorbar(ScalarMappable(norm, LR_COLORS), ax=grid, label="peak learning rate", aspect=30, pad=0.01)
    lr_ticks(bar.ax.yaxis, info.lrs)
    bar.outline.set_visible(False)
    if not log:
        figure.legend(handles=_END_KEY, loc="outside lower center", ncols=4)
    return figure


def _mark_ends(axes: Axes, panel: RunPanel, top: float, colors: Sequence[tuple[float, ...]]) -> None:
    for run, color in zip(panel.runs, colors, strict=True):
        if run.outcome in _END_MARKS:
            axes.plot(
                run.curve.steps[-1],
                min(run.curve.values[-1], top),
                marker=_END_MARKS[run.outcome],
                color=color,
                markerfacecolor="white",
                markersize=5,
                clip_on=False,
                zorder=5,
            )


_END_KEY = [
    Line2D(
        [],
        [],
        color="#444444",
        marker=mark,
        markerfacecolor="white",
        linestyle="none",
        markersize=5,
        label=name,
    )
    for name, mark in _END_MARKS.items()
]


def draw_norms(info: NormInfo, section: Section) -> Figure:
    """Norms against the step, a row for each site, a column for each side of the frontier, coloured by layer."""
    n = len(info.columns)
    figure = new_figure(max(1.9 + 2.2 * n, 6.2), 1.0 + 1.5 * len(NORM_SITES))
    figure.suptitle(f"{info.scheme}: growth of layer-output norms ({section.body} {section.size})")
    grid = figure.subplots(len(NORM_SITES), n, sharex=True, sharey="row", squeeze=False)
    depth = max(layer for c in info.columns for by in c.curves.values() for layer in by)
    norm = BoundaryNorm(np.arange(depth + 2) - 0.5, _LAYER_COLORS.N)
    for (i, j), axes in np.ndenumerate(grid):
        site = NORM_SITES[i]
        axes.set_yscale("log")
        curves = info.columns[j].curves.get(site, {})
        for layer, curve in curves.items():
            axes.plot(curve.steps, curve.values, color=_LAYER_COLORS(norm(layer)), linewidth=0.9)
        if not curves:
            note(axes, "not measured")
        if i == 0:
            axes.set_title(info.columns[j].title)
        if j == 0:
            axes.set_ylabel(_SITE_NAMES[site])
    for axes in grid[:, 0]:
        plain_log_axis(axes.yaxis)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    figure.supylabel("RMS over tokens of the output's L2 norm", fontsize=9)
    ticks = np.unique(np.linspace(0, depth, min(depth + 1, 8)).round().astype(int))
    figure.colorbar(ScalarMappable(norm, _LAYER_COLORS), ax=grid, label="layer", ticks=ticks, aspect=30, pad=0.01)
    return figure

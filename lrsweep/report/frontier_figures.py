"""Draws the figures of the frontier; what they show is decided in :mod:`lrsweep.report.frontier_info`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation

from lrsweep.analysis import UNSTABLE
from lrsweep.report.canvas import lr_limits, lr_ticks, new_figure, note
from lrsweep.report.frontier_info import FrontierInfo, FrontierRow, LossInfo, LossPoint, ToleranceInfo
from lrsweep.report.palette import Style, style_of
from lrsweep.report.section import Section

_GREY = "#555555"


def draw_tolerance(info: ToleranceInfo, section: Section) -> Figure:
    """Largest stable LR against ε, one step line a scheme, set apart where they coincide."""
    figure = new_figure(7.2, 4.0)
    axes = figure.add_subplot()
    right = 4 * section.epsilon or 1.0
    axes.set_title(f"Largest stable learning rate by tolerance ({section.body} {section.size})", loc="left")
    axes.set(yscale="log", ylim=lr_limits(section.lrs), xlim=(0, right))
    axes.set(xlabel="tolerance ε above the best final loss (nats)", ylabel="largest stable peak learning rate")
    lr_ticks(axes.yaxis, section.lrs)
    for i, line in enumerate(info.lines):
        style = style_of(line.scheme)
        apart = ScaledTranslation(0, (i - (len(info.lines) - 1) / 2) * 1.7 / 72, figure.dpi_scale_trans)
        axes.step(
            [*line.epsilon, max(right, line.epsilon[-1])],
            [*line.max_lr, line.max_lr[-1]],
            where="post",
            color=style.color,
            linestyle=style.linestyle,
            linewidth=1.6,
            label=line.scheme,
            transform=axes.transData + apart,
        )
    if all(math.isnan(lr) for line in info.lines for lr in line.max_lr):
        note(axes, "no stable learning rate")
    if section.epsilon:
        axes.axvline(section.epsilon, color=_GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        below = axes.get_xaxis_transform() + ScaledTranslation(4 / 72, 5 / 72, figure.dpi_scale_trans)
        axes.text(section.epsilon, 0, f"ε = {section.epsilon:g}", transform=below, fontsize=8, color=_GREY)
    _legend_beside(axes, [_key(line.scheme, marked=False) for line in info.lines])
    return figure


def draw_losses(info: LossInfo, section: Section) -> Figure:
    """Final loss against LR; trials without one stand in a band above, in a lane for each scheme."""
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    axes.set_title(f"Final held-out loss by learning rate ({section.title})", loc="left")
    axes.set(xscale="log", xlim=lr_limits(section.lrs), xlabel="peak learning rate")
    axes.set_ylabel("held-out loss after the last step (nats per token)")
    lr_ticks(axes.xaxis, section.lrs)
    for line in info.lines:
        style = style_of(line.scheme)
        axes.plot(line.lrs, line.mean, color=style.color, linestyle=style.linestyle, linewidth=1.5)
        for seed in sorted({p.seed for p in line.points}):
            own = [p for p in line.points if p.seed == seed]
            axes.plot([p.lr for p in own], [p.loss for p in own], color=style.color, linewidth=0.5, alpha=0.45)
        for point in line.points:
            if not math.isnan(point.loss):
                _mark(axes, point, style, point.loss)
    _draw_band(axes, info)
    _legend_beside(axes, [_key(line.scheme, marked=True) for line in info.lines] + _LOSS_KEY)
    return figure


def _draw_band(axes: Axes, info: LossInfo) -> None:
    """Every trial without a final loss, above all losses; seeds side by side."""
    if not any(math.isfinite(p.loss) for line in info.lines for p in line.points):
        axes.set_yticks([])
    lost = [(line.scheme, [p for p in line.points if math.isnan(p.loss)]) for line in info.lines]
    lost = [(scheme, points) for scheme, points in lost if points]
    if not lost:
        return
    low, high = axes.get_ylim()
    ticks = [t for t in axes.get_yticks() if low <= t <= high]
    labels = axes.yaxis.get_major_formatter().format_ticks(ticks)
    lane = 0.045 * (high - low)
    top = high + (max(len(lost), 2) + 0.4) * lane
    axes.axhspan(high, top, color="#f4eded", zorder=0)
    axes.set_ylim(low, top)
    axes.set_yticks([*ticks, (high + top) / 2], labels=[*labels, "no final\nloss"])
    for i, (scheme, points) in enumerate(lost):
        seeds = sorted({p.seed for p in points})
        for point in points:
            y, shift = high + (i + 0.7) * lane, seeds.index(point.seed) - (len(seeds) - 1) / 2
            _mark(axes, point, style_of(scheme), y, shift)


def _mark(axes: Axes, point: LossPoint, style: Style, y: float, shift: float = 0.0) -> None:
    """A filled marker if the trial was not unstable; ``shift`` in marker widths to the right."""
    scale = axes.figure.dpi_scale_trans
    axes.plot(
        point.lr,
        y,
        marker={"diverged": "x", "nonfinite": "+"}.get(point.outcome, style.marker),
        markersize=4.5,
        markerfacecolor="white" if point.outcome in UNSTABLE else style.color,
        markeredgecolor=style.color,
        linestyle="none",
        transform=axes.transData + ScaledTranslation(shift * 6 / 72, 0, scale),
    )


def draw_frontier(info: FrontierInfo, section: Section) -> Figure:
    """Bracket, that at twice the ε, LR50 and its interval of every scheme, the highest on top."""
    figure = new_figure(7.2, 1.3 + 0.28 * max(len(info.rows), 2))
    axes = figure.add_subplot()
    axes.set_title(f"Largest stable learning rate ({section.title})", loc="left")
    low, high = lr_limits(section.lrs, beyond=1.1)  # the intervals reach up to one step beyond the grid
    axes.set(xscale="log", xlim=(low, high), ylim=(-0.6, len(info.rows) - 0.4), xlabel="peak learning rate")
    lr_ticks(axes.xaxis, section.lrs)
    axes.set_yticks(range(len(info.rows)), labels=[row.scheme for row in info.rows])
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="y", visible=False)
    for y, row in enumerate(info.rows):
        _draw_row(axes, y, row, low, high)
    _legend_beside(axes, _FRONTIER_KEY)
    return figure


def _draw_row(axes: Axes, y: int, row: FrontierRow, low: float, high: float) -> None:
    color = style_of(row.scheme).color
    above, below = math.isnan(row.min_unstable_lr), math.isnan(row.max_stable_lr)
    if above and below:
        axes.text(math.sqrt(low * high), y, "unknown", ha="center", va="center", fontsize=8, color=_GREY)
        return
    bracket = [low if below else row.max_stable_lr, high if above else row.min_unstable_lr]
    axes.plot(bracket, [y, y], color=color, linewidth=8, alpha=0.3, solid_capstyle="butt")
    left, right = row.max_stable_lr_2eps, row.min_unstable_lr_2eps
    # Beyond the limits of the axes, so that a bracket without an end has no edge there.
    left, right = low / 2 if math.isnan(left) else left, 2 * high if math.isnan(right) else right
    outline = Rectangle((left, y - 0.2), right - left, 0.4, fill=False, edgecolor=color, linewidth=0.8)
    axes.add_patch(outline)
    if above:
        axes.plot(high, y, marker=">", color=color, markersize=6, clip_on=False)
    if below:
        axes.plot(low, y, marker="<", color=color, markersize=6, clip_on=False)
    if not math.isnan(row.lr50):
        axes.plot([row.lr50_lo, row.lr50_hi], [y, y], color=color, linewidth=1.3)
        axes.plot(row.lr50, y, marker="o", color=color, markersize=4.5)


def _key(scheme: str, *, marked: bool) -> Line2D:
    style = style_of(scheme)
    marker = style.marker if marked else ""
    return Line2D([], [], color=style.color, linestyle=style.linestyle, marker=marker, markersize=4.5, label=scheme)


def _sign(label: str, **look: object) -> Line2D:
    return Line2D([], [], color=_GREY, label=label, **look)  # type: ignore[arg-type]


_LOSS_KEY = [
    _sign("", linestyle="none"),
    _sign("stable", marker="o", linestyle="none", markersize=4.5),
    _sign("degraded, stalled", marker="o", linestyle="none", markersize=4.5, markerfacecolor="white"),
    _sign("diverged", marker="x", linestyle="none", markersize=4.5),
    _sign("non-finite", marker="+", linestyle="none", markersize=4.5),
    _sign("mean of seeds", linewidth=1.5),
    _sign("one seed", linewidth=0.5),
]
_FRONTIER_KEY: list[Artist] = [
    _sign("bracket", linewidth=8, alpha=0.3, solid_capstyle="butt"),
    Patch(fill=False, edgecolor=_GREY, linewidth=0.8, label="at 2ε"),
    _sign("LR50, 95%", marker="o", markersize=4.5, linewidth=1.3),
    _sign("off the grid", marker=">", markersize=6, linestyle="none"),
]


def _legend_beside(axes: Axes, handles: Sequence[Artist]) -> None:
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.03, 1.0), borderaxespad=0.0, handlelength=3.4)

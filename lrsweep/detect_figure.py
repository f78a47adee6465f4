"""The figure of ``lrsweep detect --plot``: the loss of each run, its baseline, its events and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lrsweep.detect import Scan
from lrsweep.logs import Curve
from lrsweep.report.canvas import new_figure, note
from lrsweep.report.run_info import thin

_POINTS = 4000
_COLUMNS = 4
_TITLE, _TITLE_ALONE = 36, 90
"""Characters of a log's name over one of several panels, and over one alone."""
_LOSS, _BASELINE, _SPIKE, _OUTLIER, _VERDICT = "#56B4E9", "#000000", "#E69F00", "#0072B2", "#D55E00"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunPicture:
    """What is drawn of one run; all arrays are of equal length pairwise, and finite."""

    title: str
    """End of the log's name, and the verdict."""
    steps: NDArray[np.float64]
    """Of the losses drawn."""
    losses: NDArray[np.float64]
    """Nats; of each stretch of a long run the lowest and the highest."""
    baseline_steps: NDArray[np.float64]
    """Of the baseline."""
    baseline: NDArray[np.float64]
    """Median of the last points up to each, as the detector takes it."""
    spikes: tuple[tuple[int, int], ...]
    """First and last step of each spike."""
    outliers: tuple[int, ...]
    """Step of each outlier's peak."""
    outlier_losses: tuple[float, ...]
    """Loss there."""
    nonfinite: tuple[int, ...]
    """Steps whose loss is NaN or infinite."""
    onset: int | None
    """Where the verdict's trouble began."""
    limits: tuple[float, float] | None
    """Of the loss axis: all spikes, and all but the highest few other points; None without a finite loss."""


def get_run_picture(curve: Curve, scan: Scan, *, window: int, title_length: int = _TITLE_ALONE) -> RunPicture:
    """What to draw of ``curve``.

    The baseline is the running median of ``window`` finite points; the title has at most ``title_length`` characters of
    the log's name, its last.
    """
    steps, losses = np.array(curve.steps, dtype=np.float64), np.array(curve.losses, dtype=np.float64)
    finite = np.isfinite(losses)
    shown = thin(steps, losses, _POINTS)
    steps, losses = steps[finite], losses[finite]
    chosen = np.unique(np.linspace(0, len(losses) - 1, min(_POINTS, len(losses))).astype(int))
    loss_of = dict(zip(curve.steps, curve.losses, strict=True))
    outliers = [event.peak for event in scan.events if event.kind == "outlier"]
    return RunPicture(
        title=_title(curve, scan, title_length),
        steps=shown.steps,
        losses=shown.values,
        baseline_steps=steps[chosen],
        baseline=np.array([np.median(losses[max(0, i + 1 - window) : i + 1]) for i in chosen]),
        spikes=tuple((event.onset, event.end or curve.steps[-1]) for event in scan.spikes),
        outliers=tuple(outliers),
        outlier_losses=tuple(loss_of[step] for step in outliers),
        nonfinite=tuple(step for step, loss in loss_of.items() if not math.isfinite(loss)),
        onset=scan.verdict.onset,
        limits=_limits(losses, [loss_of[event.peak] for event in scan.spikes]) if len(losses) else None,
    )


def _title(curve: Curve, scan: Scan, length: int) -> str:
    name = "/".join(PurePath(curve.name).parts[-2:])
    name = name if len(name) <= length else f"…{name[1 - length :]}"
    onset = "" if scan.verdict.onset is None else f" from step {scan.verdict.onset}"
    return f"{name}\n{scan.verdict.kind}{onset}"


def _limits(losses: NDArray[np.float64], peaks: Sequence[float]) -> tuple[float, float]:
    """The first losses and lone outliers may lie far above all that is of interest."""
    low = float(losses.min())
    high = max(float(np.quantile(losses, 0.995)), *peaks, low)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def draw_runs(runs: Sequence[tuple[Curve, Scan]], *, window: int) -> Figure:
    """One panel a run, each with its own axes; ``window`` as for :func:`get_run_picture`."""
    columns = min(_COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    length = _TITLE if columns > 1 else _TITLE_ALONE
    across, down = (7.2, 3.0) if len(runs) == 1 else (2.5, 1.3)
    left, gap, top, between, bottom = 0.7, 0.55, 0.5, 0.9, 0.85
    width = max(left + columns * (across + gap), 7.0)
    height = top + rows * down + (rows - 1) * between + bottom
    figure = new_figure(width, height)
    figure.set_layout_engine("none")  # it would take longer than all the drawing
    room = {"left": left / width, "right": 1 - gap / 2 / width, "top": 1 - top / height, "bottom": bottom / height}
    spacing = {"wspace": gap / across, "hspace": between / down}
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=room | spacing)
    for axes, (curve, scan) in zip(grid.flat, runs, strict=False):
        _draw_run(axes, get_run_picture(curve, scan, window=window, title_length=length))
    for axes in grid.flat[len(runs) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("loss (nats)")
    figure.legend(handles=_key(window), loc="lower center", ncols=6)
    return figure


def _draw_run(axes: Axes, picture: RunPicture) -> None:
    axes.set_title(picture.title, fontsize=8)
    axes.set_xlabel("step", labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if picture.limits is None:
        note(axes, "no finite loss")
        return
    axes.set_ylim(picture.limits)
    for first, last in picture.spikes:
        axes.axvspan(first, last, color=_SPIKE, alpha=0.35, linewidth=1.5)
    axes.plot(picture.steps, picture.losses, color=_LOSS, linewidth=0.7, rasterized=len(picture.steps) >= _POINTS)
    axes.plot(picture.baseline_steps, picture.baseline, color=_BASELINE, linewidth=0.8)
    high = np.minimum(picture.outlier_losses, picture.limits[1])
    axes.plot(picture.outliers, high, ".", color=_OUTLIER, markersize=4, clip_on=False)
    rim = axes.get_xaxis_transform()
    axes.plot(picture.nonfinite, [1.0] * len(picture.nonfinite), "|", color=_VERDICT, transform=rim, clip_on=False)
    if picture.onset is not None:
        axes.axvline(picture.onset, color=_VERDICT, linestyle="--", linewidth=1)


def _key(window: int) -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=_LOSS, linewidth=1, label="loss"),
        Line2D([], [], color=_BASELINE, linewidth=1, label=f"baseline (median of {window})"),
        Patch(color=_SPIKE, alpha=0.35, label="spike"),
        Line2D([], [], color=_OUTLIER, marker=".", linestyle="none", label="outlier"),
        Line2D([], [], color=_VERDICT, marker="|", linestyle="none", label="not finite"),
        Line2D([], [], color=_VERDICT, linestyle="--", linewidth=1, label="onset of the verdict"),
    ]

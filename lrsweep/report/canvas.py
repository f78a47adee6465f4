"""Blank figures, axes of learning rates, and saving: what every figure shares.

Figures are objects of their own; nothing here touches pyplot. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lrsweep.report.labels import format_lr
from lrsweep.store import write_bytes

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "lrsweep",
    "pdf.fonttype": 42,
}
_DPI = 160
_MOST_TICKS = 12

LR_COLORS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)), name="lr")
"""From the lowest LR, dark, to the highest; without the yellow that is lost on white."""


def style() -> AbstractContextManager[None]:
    """Within it figures are drawn and saved alike, whatever the user's own settings."""
    # A backend set in a context outlives it, so a notebook would lose its own.
    defaults: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    return matplotlib.rc_context({**defaults, **_STYLE})


def new_figure(width: float, height: float) -> Figure:
    """A blank figure in inches that lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """Equal axes in rows and columns, with an upright colour bar to the right."""

    figure: Figure
    """Holds the rest."""
    grid: list[list[Axes]]
    """Rows of axes."""
    bar: Axes
    """Where the colour bar goes."""


def new_panels(rows: int, columns: int, title: str, *, share_y: Literal["all", "row"], below: float = 0.0) -> Panels:
    """Blank panels with ``below`` inches left free at the bottom; x is shared by all.

    Margins are fixed in inches: laying out as many axes by their labels would take as long as drawing them.
    """
    left, right, top, bottom = 0.85, 0.95, 0.58, 0.5 + below
    width = max(left + 2.0 * columns + right, 6.2)
    height = top + 1.75 * rows - 0.35 + bottom
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, x=0.5, y=1 - 0.08 / height)
    room = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": bottom / height}
    spacing = {"wspace": 0.1, "hspace": 0.25 if share_y == "all" else 0.1}
    grid = figure.subplots(rows, columns, sharex="all", sharey=share_y, squeeze=False, gridspec_kw=room | spacing)
    box = ((width - right + 0.12) / width, room["bottom"], 0.12 / width, room["top"] - room["bottom"])
    return Panels(figure=figure, grid=grid.tolist(), bar=figure.add_axes(box))


def lr_ticks(axis: Axis, lrs: Sequence[float]) -> None:
    """Ticks at tested LRs: all of them, or evenly chosen ones if they are many."""
    every = -(-len(lrs) // _MOST_TICKS)
    shown = list(lrs)[::every]
    axis.set_ticks(shown, labels=[format_lr(lr) for lr in shown])
    axis.set_minor_locator(NullLocator())


def lr_norm(lrs: Sequence[float]) -> LogNorm:
    """From LR to the unit interval of :data:`LR_COLORS`."""
    low, high = min(lrs), max(lrs)
    return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)


def lr_limits(lrs: Sequence[float], *, beyond: float = 0.5) -> tuple[float, float]:
    """Limits of a log axis that leave ``beyond`` mean steps of the grid on either side of the tested LRs."""
    step = (max(lrs) / min(lrs)) ** (1 / (len(lrs) - 1)) if len(lrs) > 1 else 4.0
    return min(lrs) / step**beyond, max(lrs) * step**beyond


def plain_log_axis(axis: Axis) -> None:
    """A log axis whose data are in place, with a handful of plain numbers as ticks, however wide it is."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    many = LogLocator(subs=(1, 2, 5)) if decades > 0.7 else MaxNLocator(4)
    axis.set_major_locator(LogLocator() if decades > 2.5 else many)
    axis.set_major_formatter(FuncFormatter(lambda x, _: format_lr(x)))
    axis.set_minor_locator(NullLocator())


def note(axes: Axes, text: str) -> None:
    """A remark in the middle of axes that hold nothing."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#777777")


def save(figure: Figure, folder: Path, name: str) -> dict[str, Path]:
    """Write ``name`` as SVG, PDF and PNG; suffix → path.

    The layout is worked out once, and the canvases are asked directly: ``Figure.savefig`` would draw twice each time.
    """
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in _WRITERS}
    _write(figure, paths)
    return paths


def save_as(figure: Figure, path: Path) -> None:
    """Write one file, in the format that its suffix names: one of :data:`FORMATS`."""
    _write(figure, {path.suffix.removeprefix("."): path})


def _write(figure: Figure, paths: Mapping[str, Path]) -> None:
    figure.dpi = _DPI
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    for suffix, path in paths.items():
        buffer = io.BytesIO()
        figure.dpi = _DPI  # the vector canvases leave it at 72; it is the resolution of rasterised parts
        _WRITERS[suffix](figure, buffer)
        write_bytes(path, buffer.getvalue())


_WRITERS: dict[str, Callable[[Figure, io.BytesIO], None]] = {
    "svg": lambda figure, to: FigureCanvasSVG(figure).print_svg(to, metadata={"Date": None}),  # type: ignore[no-untyped-call]
    "pdf": lambda figure, to: FigureCanvasPdf(figure).print_pdf(to, metadata={"CreationDate": None}),  # type: ignore[no-untyped-call]
    "png": lambda figure, to: FigureCanvasAgg(figure).print_png(to),  # type: ignore[no-untyped-call]
}
FORMATS = tuple(_WRITERS)
"""Suffixes of what :func:`save_as` writes."""

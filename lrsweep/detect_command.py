"""``lrsweep detect``: reads training logs, judges each, and prints what was found."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrsweep.detect import DetectorConfig, Scan, scan
from lrsweep.errors import DONE, UNSTABLE, USAGE, UserError
from lrsweep.logs import Curve, Format, Keys, read_log
from lrsweep.logs.read import STDIN
from lrsweep.logs.tensorboard import run_folders

_SPIKES_SHOWN = 20
_COLORS = {"stable": "green", "stalled": "yellow"}


def run_detect(
    files: Sequence[str],
    *,
    format: Format | None,
    keys: Keys,
    config: DetectorConfig,
    as_json: bool,
    plot: Path | None,
    console: Console,
) -> int:
    """Judges every log and prints it; returns the exit code.

    A log that cannot be read is one line on standard error and does not keep the others from being judged.

    Args:
        files: logs, folders of TensorBoard runs, or ``-``.
        format: forced on every log; None: told by the content.
        keys: columns by name.
        config: thresholds.
        as_json: one JSON object a log and line instead of text.
        plot: figure to write; None: none.
        console: where to print.

    Raises:
        UserError: no file given, or ``plot`` cannot be written.
    """
    if not files:
        raise UserError("no log given; name files or folders of TensorBoard runs, or - for standard input")
    if plot is not None:
        _check_plot(plot)
    judged = []
    unreadable = 0
    for path in _runs(files):
        try:
            curve = read_log(path, format=format, keys=keys)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            unreadable += 1
            continue
        found = scan(curve.steps, curve.losses, curve.grad_norms, config)
        judged.append((curve, found))
        if as_json:
            console.out(json.dumps(as_strict_json(curve, found), allow_nan=False), highlight=False)
    if not as_json:
        _print(judged, console)
    if plot is not None and judged:
        from lrsweep.detect_figure import draw_runs
        from lrsweep.report.canvas import save_as, style

        with style():
            save_as(draw_runs(judged, window=config.baseline), plot)
    if unreadable:
        return USAGE
    return DONE if all(found.verdict.kind == "stable" for _, found in judged) else UNSTABLE


def as_strict_json(curve: Curve, found: Scan) -> dict[str, Any]:
    """The keys of the API, and where the curve came from; a number that is not finite is null."""
    return {
        "file": curve.name,
        "format": curve.format,
        "columns": {"step": curve.step_key, "loss": curve.loss_key, "grad_norm": curve.grad_norm_key},
        "points": len(curve.steps),
        "nonfinite_points": sum(not math.isfinite(loss) for loss in curve.losses),
        "first_step": curve.steps[0],
        "last_step": curve.steps[-1],
        "verdict": asdict(found.verdict),
        "events": [
            {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in asdict(event).items()}
            for event in found.events
        ],
        "notes": list(curve.notes),
    }


def _check_plot(plot: Path) -> None:
    from lrsweep.report.canvas import FORMATS

    if plot.suffix not in [f".{suffix}" for suffix in FORMATS]:
        raise UserError(f"--plot {plot} must end in .{', .'.join(FORMATS)}")
    if not plot.absolute().parent.is_dir():
        raise UserError(f"--plot {plot}: there is no folder {plot.parent}; make it first")


def _runs(files: Sequence[str]) -> Iterator[str]:
    """The files; in place of a folder, every folder in it that holds TensorBoard event files."""
    for file in files:
        folders = run_folders(Path(file)) if file != STDIN and Path(file).is_dir() else []
        yield from [str(folder) for folder in folders] or [file]


def _print(judged: Sequence[tuple[Curve, Scan]], console: Console) -> None:
    if len(judged) == 1:
        _print_one(*judged[0], console)
    elif judged:
        _print_table(judged, console)


def _print_one(curve: Curve, found: Scan, console: Console) -> None:
    columns = ", ".join(repr(key) for key in (curve.step_key, curve.loss_key, curve.grad_norm_key) if key is not None)
    spikes = found.spikes
    console.print(Text.assemble(f"{curve.name}: ", _verdict(found)))
    lines = [
        found.verdict.reason,
        f"{len(curve.steps)} points, steps {curve.steps[0]} to {curve.steps[-1]}, read from {columns} ({curve.format})",
        *(f"note: {note}" for note in curve.notes),
        f"{_count(len(spikes), 'spike')}, {_count(len(found.events) - len(spikes), 'outlier')}",
    ]
    for spike in spikes[:_SPIKES_SHOWN]:
        end = "still on at the end" if spike.end is None else f"over at {spike.end}"
        lines.append(f"  spike from step {spike.onset}, highest at {spike.peak} ({spike.size:+.3g} nats), {end}")
    if len(spikes) > _SPIKES_SHOWN:
        lines.append(f"  and {len(spikes) - _SPIKES_SHOWN} more; --json has all")
    for line in lines:
        console.print(Text(f"  {line}"))


def _print_table(judged: Sequence[tuple[Curve, Scan]], console: Console) -> None:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("verdict")
    for column in ("points", "last step", "spikes", "outliers"):
        table.add_column(column, justify="right")
    for curve, found in judged:
        counts = (len(curve.steps), curve.steps[-1], len(found.spikes), len(found.events) - len(found.spikes))
        table.add_row(Text(curve.name), _verdict(found), *map(str, counts))
    console.print(table)
    for curve, found in judged:
        reason = [] if found.verdict.kind == "stable" else [str(found.verdict)]
        for line in (*reason, *(f"note: {note}" for note in curve.notes)):
            console.print(Text(f"{curve.name}: {line}"))


def _verdict(found: Scan) -> Text:
    verdict = found.verdict
    onset = "" if verdict.onset is None else f" from step {verdict.onset}"
    return Text(verdict.kind + onset, style=f"bold {_COLORS.get(verdict.kind, 'red')}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

"""``lrsweep explain``: what one trial's signals did beside those of its stable siblings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from lrsweep.analysis import Comparison, Trace, compare, false_alarms, judge, trace
from lrsweep.analysis.lead_time import HOLD, MIN_SIBLINGS, siblings_of
from lrsweep.errors import DONE, UserError
from lrsweep.names import nearest_first
from lrsweep.report.canvas import FORMATS, save_as, style
from lrsweep.report.labels import format_lr, format_number
from lrsweep.report.lead_figures import draw_lead
from lrsweep.report.lead_info import get_lead_info
from lrsweep.report.sibling_tables import excess_text, signal_of
from lrsweep.report.tables import reason_of
from lrsweep.store import ResultStore, as_table

_NAMED = 4
_ROWS = 20


def print_explanation(name: str, out: Path | None, plot: Path | None, console: Console) -> int:
    """Print the verdict of the trial that ``name`` means, and what left its siblings' band; returns the exit code.

    Args:
        name: a trial's id, the beginning or a part of it that no other has, or its file in ``steps/``.
        out: the result folder; None: any in ``results/``.
        plot: where to draw it; None: nowhere.
        console: where to print.

    Raises:
        UserError: no such trial, or several; it ended in an error; there is no band to draw, or ``plot`` has no
            suffix of a figure.
    """
    if plot is not None and plot.suffix not in (f".{suffix}" for suffix in FORMATS):
        raise UserError(f"--plot {plot} must end in .{', .'.join(FORMATS)}")
    store, trial = find_trial(name, out)
    judged = _judged(store)
    row = judged[judged["trial"] == trial].iloc[0].to_dict()
    if row["outcome"] == "error":
        raise UserError(f"{trial} ended in an error and has nothing to explain: {row['reason']}")

    @cache
    def read(one: str) -> Trace:
        return trace(store.steps(one), store.layers(one))

    comparison = compare(judged, trial, read)
    if plot is not None and comparison.band is None:
        raise UserError(f"--plot: {trial} has {len(comparison.siblings)} stable siblings, a band needs {MIN_SIBLINGS}")
    for line in _verdict(row, siblings_of(judged, trial), comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(comparison.exits):
        console.print()
        console.print(_exits(comparison.exits))
        further = len(comparison.exits) - _ROWS
        if further > 0:
            console.print(f"and {further} more{', in lead_times.csv' if row['unstable'] else ''}", highlight=False)
    if plot is not None:
        assert comparison.band is not None
        with style():
            save_as(draw_lead(get_lead_info(comparison, comparison.band), f"{_label(row)}: {row['outcome']}"), plot)
    return DONE


def find_trial(name: str, out: Path | None) -> tuple[ResultStore, str]:
    """The folder and the id of the trial that ``name`` means.

    Raises:
        UserError: none, or several; the message names the nearest.
    """
    path = Path(name)
    if path.suffix == ".parquet":
        if not path.is_file():
            raise UserError(f"{name} does not exist; name a file of steps/, or a trial with --out FOLDER")
        return ResultStore(path.absolute().parent.parent), path.stem
    folders = [out] if out is not None else sorted(file.parent for file in Path("results").glob("*/manifest.json"))
    files = [file for folder in folders for file in sorted(folder.glob("steps/[!.]*.parquet"))]
    where = f"--out {out}" if out is not None else "results/"
    if not files:
        raise UserError(f"{where} holds no trial with its steps; name the folder of a sweep with --out")
    tests = (name.__eq__, lambda t: t.startswith(f"{name}-"), lambda t: t.startswith(name), lambda t: name in t)
    found = next((matches for test in tests if (matches := [file for file in files if test(file.stem)])), [])
    if len(found) == 1:
        return ResultStore(found[0].parent.parent), found[0].stem
    if not found:
        nearest = nearest_first(name, {file.stem for file in files})
        raise UserError(f"{where} has no trial {name!r}; nearest: {_some(nearest)}")
    ids = sorted({file.stem for file in found})
    if len(ids) == 1:
        raise UserError(f"{name!r} is in {_some([str(file.parent.parent) for file in found])}; name one with --out")
    raise UserError(f"{name!r} stands for {len(ids)} trials: {_some(ids)}; give more of it")


def _some(trials: list[str]) -> str:
    return ", ".join(trials[:_NAMED]) + (", …" if len(trials) > _NAMED else "")


def _judged(store: ResultStore) -> pd.DataFrame:
    """The trials that have both records, judged by the sweep's ε."""
    manifest = store.read_manifest()
    if manifest is None:
        raise UserError(f"{store.root} is not a result folder (no manifest.json); name one that `lrsweep sweep` wrote")
    epsilon = {size: entry["epsilon"] for size, entry in manifest["sizes"].items()}
    return judge(as_table(store.rows().values()), epsilon).sort_values(["lr", "seed"])


def _label(row: Mapping[Any, Any]) -> str:
    return f"{row['scheme']} ({row['body']} {row['size']}), LR {format_lr(row['lr'])}, seed {row['seed']}"


def _verdict(row: Mapping[Any, Any], stable: pd.DataFrame, comparison: Comparison) -> list[str]:
    """What was judged, against whom, and how much of it a stable trial would show."""
    lines = [f"{_label(row)}: {row['outcome']}", reason_of(row)]
    if comparison.onset is not None:
        lines.append(f"onset of the verdict: step {comparison.onset}")
    n = len(stable)
    if comparison.band is None:
        few = f"{n} stable sibling{'' if n == 1 else 's'}: a band needs {MIN_SIBLINGS}"
        return [*lines, f"{few}; sweep more seeds, or more learning rates below the frontier"]
    lrs, n_seeds = sorted(stable["lr"].unique()), stable["seed"].nunique()
    span = format_lr(lrs[0]) if len(lrs) == 1 else f"{format_lr(lrs[0])} … {format_lr(lrs[-1])}"
    alarms, n_signals = false_alarms(comparison.siblings), len(comparison.trial.signals)
    return [
        *lines,
        f"siblings: {n} stable trials, LR {span}, {n_seeds} seed{'' if n_seeds == 1 else 's'}",
        f"{len(comparison.exits) or 'none'} of {n_signals} signals left their band: for {HOLD} steps above every "
        "sibling at that step or later, by more than any sibling is above the others",
        f"false alarms: against the others, {alarms.mean():.1f} of a sibling's {n_signals} leave; in "
        f"{(alarms > 0).sum()} of {n} siblings any does",
    ]


def _exits(exits: pd.DataFrame) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("", "signal", "left at", "before loss", "before onset", "at most"):
        table.add_column(column, justify="left" if column == "signal" else "right", no_wrap=True)
    for row in exits.head(_ROWS).to_dict("records"):
        signal = signal_of(row)
        table.add_row(
            str(row["rank"]),
            signal.name,
            str(row["step"]),
            format_number(row["before_loss"], 0),
            format_number(row["before_onset"], 0),
            excess_text(signal, row["excess"]),
        )
    return table

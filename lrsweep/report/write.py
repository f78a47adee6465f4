"""From a result folder to its report: reads, computes, and writes every file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from lrsweep.analysis import (
    Epsilon,
    GridAdvice,
    brackets,
    frontier,
    grid_advice,
    judge,
    lead_times,
    spike_scores,
    spikes_by_lr,
    tolerance,
    trace,
)
from lrsweep.errors import UserError
from lrsweep.report.canvas import save, style
from lrsweep.report.figures import drawings, recorded
from lrsweep.report.page import Illustration, PageContent, render_page
from lrsweep.report.section import sections
from lrsweep.report.sibling_tables import exits_text, leads_text, spikes_text
from lrsweep.report.tables import (
    brackets_text,
    display_order,
    frontier_text,
    to_csv,
    to_latex,
    to_markdown,
    trials_text,
)
from lrsweep.store import ResultStore, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report found, and where it was written."""

    frontier: pd.DataFrame
    """As in ``frontier.csv``."""
    brackets: pd.DataFrame
    """As in ``brackets.csv``."""
    advice: tuple[GridAdvice, ...]
    """For every row of the frontier, the learning rates to try next."""
    errors: int
    """Trials that failed by a fault of the program or machine, and count in nothing."""
    index: Path
    """The page."""
    paths: tuple[Path, ...]
    """Every file written, the page included."""


def write_report(store: ResultStore, *, epsilon: Epsilon, out: Path | None = None) -> Report:
    """Write ``frontier.{csv,md,tex}``, ``brackets.csv``, ``tolerance.csv``, ``spikes.csv``, ``lead_times.csv`` and the
    folder ``report/`` of a sweep.

    All trials that have finished are in it, however few; ``trials.parquet`` is made anew from them. A folder
    that holds ``trials.parquet`` alone is reported without what needs the records of single trials. Each file is
    replaced in one step.

    Args:
        store: the result folder.
        epsilon: ε in nats, one number or one for each size.
        out: where to write; default: the result folder.

    Raises:
        UserError: no trial has finished, or a file is cut short.
        ValueError: ε is negative or NaN, or a size has none.
    """
    root = out or store.root
    trials = store.write_trials(root) if store.rows() else store.trials()
    if trials.empty:
        raise UserError(f"{store.root} holds no finished trial; run `lrsweep sweep` first, or name another folder")
    judged = judge(trials, epsilon)
    steps = cache(store.steps)
    ran = recorded(judged[judged["outcome"] != "error"], store, "steps")
    spikes = spike_scores(ran, steps)
    lead = lead_times(recorded(ran, store, "layers"), lambda trial: trace(steps(trial), store.layers(trial)))
    frontier_table = display_order(frontier(trials, epsilon, spikes))
    bracket_table = display_order(brackets(trials, epsilon))
    advice = grid_advice(frontier_table, trials)

    folder = root / "report"
    texts = {
        "frontier.csv": to_csv(frontier_table),
        "frontier.md": to_markdown(frontier_text(frontier_table)),
        "frontier.tex": to_latex(frontier_text(frontier_table)),
        "brackets.csv": to_csv(bracket_table),
        "tolerance.csv": to_csv(display_order(tolerance(trials))),
        "spikes.csv": to_csv(display_order(spikes)),
        "lead_times.csv": to_csv(display_order(lead.exits)),
    }
    for name, text in texts.items():
        write_text(root / name, text)
    paths = [root / name for name in texts]

    illustrations = []
    parts = sections(trials, epsilon)
    with style():
        for section in parts:
            suffix = f"-{section.body}-{section.size}" if len(parts) > 1 else ""
            for drawing in drawings(section, store, steps, lead.exits):
                files = save(drawing.figure, folder, drawing.name + suffix)
                paths += files.values()
                illustrations.append(
                    Illustration(
                        section=section.title,
                        heading=drawing.heading,
                        caption=drawing.caption,
                        folded=drawing.folded,
                        width=drawing.figure.get_figwidth(),
                        files=files,
                    )
                )
    page = render_page(
        PageContent(
            manifest=store.read_manifest() or {},
            frontier=frontier_text(frontier_table),
            brackets=brackets_text(bracket_table),
            trials=trials_text(judged),
            leads=leads_text(lead),
            exits=exits_text(lead.exits),
            spikes=spikes_text(spikes_by_lr(spikes)),
            advice=advice,
            illustrations=tuple(illustrations),
        )
    )
    index = folder / "index.html"
    write_text(index, page)
    return Report(
        frontier=frontier_table,
        brackets=bracket_table,
        advice=advice,
        errors=int((judged["outcome"] == "error").sum()),
        index=index,
        paths=(*paths, index),
    )

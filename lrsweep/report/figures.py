"""The figures of one section, in the order of the page, each with how to read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.figure import Figure

from lrsweep.analysis import Trace, compare, trace
from lrsweep.analysis.lead_time import HOLD
from lrsweep.report.frontier_figures import draw_frontier, draw_losses, draw_tolerance
from lrsweep.report.frontier_info import get_frontier_info, get_loss_info, get_tolerance_info
from lrsweep.report.labels import format_lr
from lrsweep.report.lead_figures import draw_lead
from lrsweep.report.lead_info import choose_trial, get_lead_info
from lrsweep.report.run_figures import draw_logits, draw_loss_curves, draw_norms
from lrsweep.report.run_info import Read, get_norm_info, get_runs_info
from lrsweep.report.section import Section
from lrsweep.store import ResultStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure as the report shows it."""

    name: str
    """File name without suffix."""
    heading: str
    """What it shows."""
    caption: str
    """How to read it."""
    folded: bool = False
    """Whether the page shows it on demand only."""
    figure: Figure
    """The drawing."""


def drawings(section: Section, store: ResultStore, steps: Read, exits: pd.DataFrame) -> Iterator[Drawing]:
    """Every figure of ``section``; those whose records are not in the folder, or hold nothing, are left out.

    Args:
        section: trials of one body and size.
        store: the result folder.
        steps: what reads a trial's steps from it.
        exits: of all unstable trials, from :func:`lrsweep.analysis.lead_times`.
    """
    yield Drawing(
        name="frontier",
        heading="Largest stable learning rate",
        caption="Bar: from the largest stable to the smallest unstable of the tested learning rates, by the vote of "
        "the seeds. Outline: the same at twice the ε; far from the bar, it shows a plateau, not an edge. "
        "Dot and line: LR50, the learning rate with even odds of instability, and its 95% interval. "
        "An arrow means that the frontier lies beyond the grid. Schemes whose intervals overlap are hardly "
        "told apart by this sweep.",
        figure=draw_frontier(get_frontier_info(section), section),
    )
    yield Drawing(
        name="tolerance",
        heading="Largest stable learning rate by tolerance",
        caption="How the result depends on the threshold: a line tells the largest stable learning rate when final "
        "losses up to ε above the scheme's best count as stable. A ranking that holds for every ε needs no "
        "threshold. Lines at the same learning rate are drawn a little apart.",
        figure=draw_tolerance(get_tolerance_info(section), section),
    )
    yield Drawing(
        name="loss_vs_lr",
        heading="Final held-out loss by learning rate",
        caption="Thick: mean over seeds; thin: each seed. Hollow markers are unstable trials; those in the band on "
        "top ended without a final loss, or above the untrained model's (one mark a seed). The flatter a curve on "
        "the right, the less it costs to miss the best learning rate.",
        figure=draw_losses(get_loss_info(section), section),
    )
    with_steps = _recorded(section, store, "steps")
    losses = get_runs_info(with_steps, steps, "loss")
    if losses.panels:
        yield Drawing(
            name="loss_curves",
            heading="Training loss of every trial",
            caption="Colour is the learning rate. A mark at the end names an unstable outcome; curves without one "
            "are stable or undertrained. Curves that leave through the top end in a mark at the edge.",
            figure=draw_loss_curves(losses, section),
        )
    logits = get_runs_info(with_steps, steps, "logit_max")
    if logits.panels:
        yield Drawing(
            name="logits",
            heading="Largest attention logit",
            caption="The largest logit of any layer and head, before a cap, where it was measured. Logits that keep "
            "growing at learning rates beyond the frontier point to attention as the seat of the trouble; logits that "
            "stay bounded there point elsewhere.",
            figure=draw_logits(logits, section),
        )
    with_layers = _recorded(section, store, "layers")
    chosen = choose_trial(exits[exits["trial"].isin(section.trials["trial"])])
    if chosen is not None:
        yield _lead_drawing(with_layers, chosen, lambda trial: trace(steps(trial), store.layers(trial)))
    for scheme in with_layers.schemes:
        norms = get_norm_info(with_layers, store.layers, scheme)
        if norms.columns:
            yield Drawing(
                name=f"norms-{re.sub(r'[^A-Za-z0-9_.+-]', '_', scheme)}",
                heading=f"Layer-output norms of {scheme}",
                caption="RMS over tokens of the L2 norm of each layer's output, one seed a column; a row shares its "
                "axis. A site whose norms outgrow those of the stable runs is where the instability shows, and the "
                "colours tell in which layers.",
                folded=True,
                figure=draw_norms(norms, section),
            )


def recorded(trials: pd.DataFrame, store: ResultStore, kind: str) -> pd.DataFrame:
    """The trials that have a file of that kind."""
    there = {path.stem for path in (store.root / kind).glob("*.parquet")}
    return trials[trials["trial"].isin(there)]


def _recorded(section: Section, store: ResultStore, kind: str) -> Section:
    return replace(section, trials=recorded(section.trials, store, kind))


def _lead_drawing(section: Section, trial: str, read: Callable[[str], Trace]) -> Drawing:
    row = section.trials[section.trials["trial"] == trial].iloc[0]
    comparison = compare(section.trials, trial, read)
    assert comparison.band is not None
    named = f"{row['scheme']}, LR {format_lr(row['lr'])}, seed {row['seed']}: {row['outcome']}"
    return Drawing(
        name="lead",
        heading="What moved first in one trial",
        caption=f"{named}. Grey: the range of its {len(comparison.siblings)} stable siblings at each step, all "
        f"learning rates and seeds. Dashed: what has to be passed for {HOLD} steps to leave their band: the highest "
        "that any of them is at that step or later, and on top of it the most by which one was above the rest. "
        "“lrsweep explain” draws any trial.",
        figure=draw_lead(get_lead_info(comparison, comparison.band), f"{named} ({section.body} {section.size})"),
    )

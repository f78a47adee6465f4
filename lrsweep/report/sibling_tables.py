"""Tables of what only siblings can tell: spikes against the same batches, and what left their band first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lrsweep.analysis import LeadTimes, Signal, lead_summary
from lrsweep.analysis.lead_time import MIN_SIBLINGS
from lrsweep.report.labels import NOTHING, format_lr, format_number
from lrsweep.report.tables import TextTable, display_order

_FIRST = 3


def spikes_text(by_lr: pd.DataFrame) -> TextTable:
    """The spike scores of each scheme and LR, from :func:`lrsweep.analysis.spikes_by_lr`; NaN a dash."""
    rows = [
        (
            row["scheme"],
            row["body"],
            row["size"],
            format_lr(row["lr"]),
            str(row["trials"]),
            format_number(row["spikes_per_1k"], 2),
            format_number(row["same_batch_spikes_per_1k"], 2),
            format_number(row["olmo_code"], 3),
            format_number(row["olmo_paper"], 3),
        )
        for row in display_order(by_lr).to_dict("records")
    ]
    header = (
        "scheme",
        "body",
        "size",
        "LR",
        "trials",
        "spikes/1k",
        "same-batch/1k",
        "OLMo score, 6σ of 128 (%)",
        "OLMo score, 7σ of 1,000 (%)",
    )
    return TextTable(header=header, rows=tuple(rows), labels=3)


def leads_text(lead: LeadTimes) -> TextTable:
    """What left the band first in most unstable trials of each scheme, and how far it may be trusted."""
    rows = [
        (
            row["scheme"],
            row["body"],
            row["size"],
            str(row["unstable"]),
            _first(row),
            _near(row),
            format_number(row["before_loss"], 0),
            format_number(row["before_onset"], 0),
            str(row["siblings"]),
            _alarms(row),
        )
        for row in display_order(lead_summary(lead)).to_dict("records")
    ]
    header = (
        "scheme",
        "body",
        "size",
        "unstable",
        "first to leave",
        "at the lowest LR",
        "before loss",
        "before onset",
        "siblings",
        "false alarms",
    )
    return TextTable(header=header, rows=tuple(rows), labels=3)


def _first(row: Mapping[Any, Any]) -> str:
    if row["unstable"] and row["siblings"] < MIN_SIBLINGS:
        return f"no band: under {MIN_SIBLINGS} stable siblings"
    if not row["left"]:
        return "nothing left" if row["unstable"] else NOTHING
    return _where(row["first_site"], row["first_layer"], f"{row['first_trials']} of {row['unstable']}")


def _near(row: Mapping[Any, Any]) -> str:
    if not row["left"]:
        return NOTHING
    count = f"{row['near_trials']} of {row['near_left']}"
    return f"{format_lr(row['near_lr'])}: {_where(row['near_site'], row['near_layer'], count)}"


def _where(site: str, layer: int | None, count: str) -> str:
    return f"{site} ({count})" if pd.isna(layer) else f"{site} ({count}), mostly layer {layer}"


def _alarms(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["false_alarms"]):
        return NOTHING
    return f"{100 * row['false_alarms']:.1f}% of {row['signals']}, {row['siblings_alarmed']:.0f} of {row['siblings']}"


def exits_text(exits: pd.DataFrame) -> TextTable:
    """The first signals of every unstable trial that left the band, and when the loss did."""
    rows = []
    for _, left in exits.groupby("trial", sort=False):
        first = left.iloc[0].to_dict()
        loss = left.loc[left["site"] == "loss", "step"]
        names = [f"{signal_of(row).name} @ {row['step']}" for row in left.head(_FIRST).to_dict("records")]
        rows.append(
            {
                **first,
                "names": names + [NOTHING] * (_FIRST - len(names)),
                "loss": str(loss.iloc[0]) if len(loss) else NOTHING,
                "onset": format_number(first["step"] + first["before_onset"], 0),
                "left": str(len(left)),
            }
        )
    columns = ["scheme", "body", "size", "outcome", "lr", "seed", "names", "loss", "onset", "left"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["lr", "seed"], kind="stable")
    cells = [
        (
            *(row[name] for name in columns[:4]),
            format_lr(row["lr"]),
            str(row["seed"]),
            *row["names"],
            *(row[name] for name in columns[7:]),
        )
        for row in display_order(table).to_dict("records")
    ]
    header = (
        "scheme",
        "body",
        "size",
        "outcome",
        "LR",
        "seed",
        "first",
        "then",
        "then",
        "loss",
        "onset",
        "left",
    )
    return TextTable(header=header, rows=tuple(cells), labels=4)


def signal_of(row: Mapping[Any, Any]) -> Signal:
    """The signal of a row of exits."""
    return Signal(row["site"], None if pd.isna(row["layer"]) else int(row["layer"]), row["stat"])


def excess_text(signal: Signal, excess: float) -> str:
    """``+0.52 nats`` for loss and log Z, ``×3.2`` for a ratio; ``not finite``."""
    if math.isinf(excess):
        return "not finite"
    if signal.in_nats:
        return f"+{excess:.2f} nats"
    return f"×{format_lr(math.exp(min(excess, 700.0)), 3)}"

"""The tables of a report as CSV, Markdown, LaTeX and for the terminal.

A :class:`TextTable` is made once from a table of :mod:`lrsweep.analysis`; the rest only lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lrsweep.report.labels import NOTHING, bracket_text, format_lr, format_number, lr50_text, size_order
from lrsweep.report.palette import in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """Cells as text; the first :attr:`labels` columns are names, the rest figures."""

    header: tuple[str, ...]
    """Column names with units."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, as many as the header has."""
    labels: int
    """How many leading columns are left-aligned."""


def display_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by body and size, then the baseline first; the given order breaks ties."""
    scheme_rank = {scheme: i for i, scheme in enumerate(in_order(table["scheme"]))}
    size_rank = {size: i for i, size in enumerate(sorted(table["size"].unique(), key=size_order))}
    keyed = table.assign(_size=table["size"].map(size_rank), _scheme=table["scheme"].map(scheme_rank))
    ordered = keyed.sort_values(["body", "_size", "_scheme"], kind="stable")
    return ordered.drop(columns=["_size", "_scheme"]).reset_index(drop=True)


def frontier_text(frontier: pd.DataFrame) -> TextTable:
    """The frontier with its ε in every row. LRs outside the grid read ``> 3`` or ``< 1e-3``, NaN a dash."""
    rows = [
        (
            row["scheme"],
            row["body"],
            row["size"],
            str(row["seeds"]),
            f"{row['epsilon']:g}",
            bracket_text(row["max_stable_lr"], row["min_unstable_lr"]),
            bracket_text(row["max_stable_lr_2eps"], row["min_unstable_lr_2eps"]),
            lr50_text(row["lr50"], row["lr50_lo"], row["lr50_hi"]),
            _at(row["best_loss"], row["best_lr"]),
            format_number(row["lr_sensitivity"], 3),
            format_number(row["spikes_per_1k"], 2),
            format_number(row["same_batch_spikes_per_1k"], 2),
        )
        for row in display_order(frontier).to_dict("records")
    ]
    header = (
        "scheme",
        "body",
        "size",
        "seeds",
        "ε (nats)",
        "max stable LR",
        "at 2ε",
        "LR50 [95%]",
        "best loss @ LR",
        "LR sensitivity",
        "spikes/1k",
        "same-batch/1k",
    )
    return TextTable(header=header, rows=tuple(rows), labels=3)


def brackets_text(brackets: pd.DataFrame) -> TextTable:
    """The bracket of every seed, and how many trials went into it or failed."""
    rows = [
        (
            row["scheme"],
            row["body"],
            row["size"],
            str(row["seed"]),
            f"{row['epsilon']:g}",
            bracket_text(row["max_stable_lr"], row["min_unstable_lr"]),
            str(row["trials"]),
            str(row["errors"]),
        )
        for row in display_order(brackets).to_dict("records")
    ]
    header = ("scheme", "body", "size", "seed", "ε (nats)", "max stable LR", "trials", "errors")
    return TextTable(header=header, rows=tuple(rows), labels=3)


def trials_text(judged: pd.DataFrame) -> TextTable:
    """Every trial of a table from :func:`lrsweep.analysis.judge`, with what was seen in it."""
    rows = [
        (
            row["scheme"],
            row["body"],
            row["size"],
            row["outcome"],
            format_lr(row["lr"]),
            str(row["seed"]),
            format_number(row["loss_final"], 3),
            format_number(row["excess"], 3),
            str(row["spikes"]),
            format_number(row["logit_max"], 1),
            str(row["steps"]),
            NOTHING if pd.isna(row["onset_step"]) else str(row["onset_step"]),
            reason_of(row),
        )
        for row in display_order(judged.sort_values(["lr", "seed"], kind="stable")).to_dict("records")
    ]
    header = (
        "scheme",
        "body",
        "size",
        "outcome",
        "LR",
        "seed",
        "final loss",
        "above best",
        "spikes",
        "max logit",
        "steps",
        "onset",
        "reason",
    )
    return TextTable(header=header, rows=tuple(rows), labels=4)


def reason_of(row: Mapping[Any, Any]) -> str:
    """The trial's own, unless its siblings are the reason."""
    if row["verdict"] == "stable" and row["outcome"] in ("degraded", "undertrained"):
        return f"ended {row['excess']:.3f} nats above its best sibling"
    return str(row["reason"])


def to_csv(table: pd.DataFrame) -> str:
    """Full precision. NaN is written ``nan``, so that a column without a value is numeric to every reader."""
    return table.to_csv(index=False, na_rep="nan", lineterminator="\n")


def to_markdown(table: TextTable) -> str:
    """A pipe table."""
    align = [":--" if i < table.labels else "--:" for i in range(len(table.header))]
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (table.header, *table.rows)]
    lines.insert(1, align)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(table: TextTable) -> str:
    """A ``tabular`` with booktabs rules."""
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (table.header, *table.rows)]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def to_rich(table: TextTable, *, title: str) -> Table:
    """For the terminal. A column with one value in all rows goes into the title, and the bracket at 2ε and the
    same-batch rate are left to the page and the files, so that 80 columns do.
    """
    columns = dict(zip(table.header, zip(*table.rows, strict=True), strict=True)) if table.rows else {}
    constant = [name for name in _TITLE_WORTHY if name in columns and len(set(columns[name])) == 1]
    facts = [title, *(_TITLE_WORTHY[name].format(columns[name][0]) for name in constant)]
    rich = Table(title=" · ".join(facts), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown = [i for i, name in enumerate(table.header) if name not in (*constant, *_FILES_ONLY)]
    for i in shown:
        name = _BROKEN.get(table.header[i], table.header[i])
        rich.add_column(name, justify="left" if i < table.labels else "right", overflow="fold")
    for row in table.rows:
        rich.add_row(*(Text(row[i]) for i in shown))
    return rich


_TITLE_WORTHY = {"body": "{}", "size": "{}", "seeds": "seeds {}", "ε (nats)": "ε {} nats"}
_FILES_ONLY = ("at 2ε", "same-batch/1k")
_BROKEN = {
    "max stable LR": "max stable\nLR",
    "best loss @ LR": "best loss\n@ LR",
    "LR sensitivity": "LR\nsens.",
    "spikes/1k": "spikes\n/1k",
}


def _at(loss: float, lr: float) -> str:
    return NOTHING if pd.isna(lr) else f"{format_number(loss, 3)} @ {format_lr(lr)}"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "ε": r"$\varepsilon$",
        "…": r"\ldots{}",
        "—": "--",
        **{c: f"\\{c}" for c in "&%$#_{}"},
    }
)


def _latex(text: str) -> str:
    return text.translate(_LATEX)

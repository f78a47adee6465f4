"""``lrsweep schemes``: the rows as a table, or one of them in full."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lrsweep.schemes import Scheme, all_schemes, find


def print_schemes(name: str | None) -> int:
    """Print all rows, or the one of that name; returns the exit code."""
    console = Console()
    if name is not None:
        _print_one(find(name), console)
        return 0
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for column in ("scheme", "change", "claim"):
        table.add_column(column, overflow="fold")
    for scheme in all_schemes():
        table.add_row(scheme.name, scheme.formula, scheme.claim)
    console.print(table)
    return 0


def _print_one(scheme: Scheme, console: Console) -> None:
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for field in ("name", "source", "formula", "claim", "ours"):
        if getattr(scheme, field):
            table.add_row(field, getattr(scheme, field))
    baseline = find("preln").build_fields()
    for field, value in scheme.build_fields().items():
        if value != baseline[field]:
            table.add_row(field, f"{value}  (preln: {baseline[field]})")
    console.print(table)

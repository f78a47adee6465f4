"""``lrsweep schemes``: the rows and modifiers as tables, or one scheme in full with its block drawn."""

from __future__ import annotations

import itertools

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lrsweep.schemes import MODIFIERS, Scheme, all_schemes, find
from lrsweep.schemes.drawing import draw_block


def print_schemes(name: str | None) -> int:
    """Print all rows, or the one of that name; returns the exit code."""
    console = Console()
    if name is None:
        _print_all(console)
    else:
        _print_one(find(name), console)
    return 0


def _print_all(console: Console) -> None:
    for source, rows in itertools.groupby(all_schemes(), key=lambda s: s.source.split(";")[0]):
        console.print(source, style="bold", highlight=False, markup=False)
        table = Table(box=None, padding=(0, 1), show_header=False)
        table.add_column(min_width=14)
        table.add_column(overflow="fold", ratio=3)
        table.add_column(overflow="fold", ratio=2, style="dim")
        for scheme in rows:
            table.add_row(scheme.name, escape(scheme.formula), escape(scheme.claim))
        console.print(table)
    console.print("Modifiers, behind any of them, as in qknorm+zloss", style="bold", highlight=False)
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(min_width=14)
    table.add_column(overflow="fold")
    for modifier in MODIFIERS.values():
        table.add_row(modifier.name, escape(modifier.formula))
    console.print(table)


def _print_one(scheme: Scheme, console: Console) -> None:
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for field in ("name", "source", "formula", "claim", "ours"):
        if getattr(scheme, field):
            table.add_row(field, escape(getattr(scheme, field)))
    baseline = find("preln").build_fields()
    for field, value in scheme.build_fields().items():
        if value != baseline[field]:
            is_training = field == "training"
            shown = ", ".join(f"{n} {v}" for n, v in value) if is_training else f"{value}  (preln: {baseline[field]})"
            table.add_row(field, shown)
    console.print(table)
    console.print()
    for line in draw_block(scheme):
        console.print(f"  {line}".rstrip(), highlight=False, markup=False, soft_wrap=True)

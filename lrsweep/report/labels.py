"""Numbers as short text, the same in every table and figure."""

from __future__ import annotations

import math
import re

NOTHING = "—"
"""Stands for NaN."""


def size_order(name: str) -> tuple[float, str]:
    """Sorting key of a size by the parameter count in its name: ``0.2m``, ``2m``, ``10m``, ``1.3b``; others last."""
    count = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", name.casefold())
    return (float(count[1]) * _UNITS[count[2]] if count else math.inf, name)


_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def format_lr(lr: float, digits: int = 4) -> str:
    """``1e-3``, ``0.03``, ``3``, ``1e3``: up to ``digits`` digits, no trailing zeros; NaN is a dash."""
    if not math.isfinite(lr):
        return NOTHING
    if 0.01 <= lr < 1000:
        return f"{lr:.{digits}g}"
    mantissa, exponent = f"{lr:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def format_number(value: float, decimals: int) -> str:
    """Fixed decimals; NaN is a dash."""
    return f"{value:.{decimals}f}" if math.isfinite(value) else NOTHING


def bracket_text(max_stable_lr: float, min_unstable_lr: float) -> str:
    """``0.1 … 0.3``; ``> 3`` if no LR was unstable, ``< 1e-3`` if none was stable."""
    if math.isnan(max_stable_lr):
        return NOTHING if math.isnan(min_unstable_lr) else f"< {format_lr(min_unstable_lr)}"
    if math.isnan(min_unstable_lr):
        return f"> {format_lr(max_stable_lr)}"
    return f"{format_lr(max_stable_lr)} … {format_lr(min_unstable_lr)}"


def lr50_text(median: float, lo: float, hi: float) -> str:
    """``0.17 [0.09, 0.31]``; ``> 3`` above the grid, ``< 1e-3`` below it."""
    if math.isnan(median):
        return bracket_text(lo, hi)
    return f"{format_lr(median, 2)} [{format_lr(lo, 2)}, {format_lr(hi, 2)}]"

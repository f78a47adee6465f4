"""Numbers as training logs write them."""

from __future__ import annotations

import math
import re

NUMBER = (
    r"[+-]?(?:(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d*+)?(?:[eE][+-]?\d+|\#\w+)?"  # 1.#QNAN is of older Windows
    r"|\.\d+(?:[eE][+-]?\d+)?"
    r"|(?:[nN][aA][nN]|[iI][nN][fF](?:inity)?)\b)"
)
"""Regular expression of one number: thousands may be parted by commas; NaN and infinity in every usual spelling."""

_SPELLED = re.compile(rf"tensor\(({NUMBER})[,)].*|({NUMBER})")


def number(value: object) -> float | None:
    """The number that a cell, a JSON value or a word stands for; None where it stands for none (empty, null, a name).

    ``nan``, ``-nan``, ``inf``, ``Infinity`` in any case, ``1.#QNAN``, ``1,234.5`` and ``tensor(2.3, device=…)`` are
    numbers.
    """
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        found = _SPELLED.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    written = (found[1] or found[2]).replace(",", "").lower()
    if "#" in written:
        infinity = -math.inf if written.startswith("-") else math.inf
        return infinity if "inf" in written else math.nan
    return float(written)

"""Writes a log and reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrsweep.logs import Curve, Keys, read_log


def read(folder: Path, content: str | bytes, *, name: str = "run.log", **settings: Any) -> Curve:
    """``content`` as a file, read; ``settings`` are ``format`` and the fields of ``Keys``."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_log(path, format=settings.pop("format", None), keys=Keys(**settings))


def same(found: Iterable[float | None], expected: Iterable[float | None]) -> bool:
    """Whether both hold the same values; NaN equals NaN."""

    def key(value: float | None) -> str | float | None:
        return "nan" if value is not None and math.isnan(value) else value

    return list(map(key, found)) == list(map(key, expected))

"""Matching of the names users type: without case, ``_`` and ``-``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lrsweep.errors import UserError

T = TypeVar("T")


def squash(name: str) -> str:
    """``QK_norm-cap`` → ``qknormcap``."""
    return name.casefold().replace("_", "").replace("-", "")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those most like ``name`` first."""
    return sorted(known, key=lambda k: -difflib.SequenceMatcher(None, squash(name), squash(k)).ratio())


def look_up(name: str, known: Mapping[str, T], *, flag: str, what: str) -> T:
    """``known[name]``, the name matched without case, ``_`` and ``-``.

    Raises:
        UserError: no such name; the message names ``flag`` and lists the known ones, nearest first.
    """
    by_squashed = {squash(k): v for k, v in known.items()}
    if squash(name) not in by_squashed:
        raise UserError(
            f"{flag}: unknown {what} {name!r}; known, nearest first: {', '.join(nearest_first(name, known))}"
        )
    return by_squashed[squash(name)]

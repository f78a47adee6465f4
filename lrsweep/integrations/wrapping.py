"""Methods of other people's objects, replaced for as long as a training lasts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Wrapping:
    """For trainers that offer no hook at the place where the number is."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def around(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Until :meth:`undo`, ``owner.name(...)`` is ``wrapper(original, ...)``; other instances keep theirs."""
        original, was_own = getattr(owner, name), name in vars(owner)
        setattr(owner, name, functools.wraps(original)(functools.partial(wrapper, original)))
        self._undo.append(lambda: setattr(owner, name, original) if was_own else delattr(owner, name))

    def undo(self) -> None:
        """Puts everything back, last first; harmless if done before."""
        while self._undo:
            self._undo.pop()()

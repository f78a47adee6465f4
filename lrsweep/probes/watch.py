"""Puts a pool's measurement into a module, and takes it out again.

A copy of a module that is watched, made to average its weights say, computes with its own weights and is not measured.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lrsweep.probes.logits import LogitWatch
from lrsweep.probes.pool import Pool

_WATCH = "lrsweep_watch"


class Switch:
    """On or off, for all that hold it."""

    def __init__(self, *, on: bool) -> None:
        self.on = on

    def __reduce__(self) -> Any:
        return _off, ()


def _off() -> Switch:
    return Switch(on=False)


def watch_output(module: nn.Module, pool: Pool, part: int) -> Callable[[], None]:
    """Give ``pool`` the outputs of a module, its number ``part``; returns what undoes it."""
    return module.register_forward_hook(_OutputHook(pool, part)).remove


class _OutputHook:
    def __init__(self, pool: Pool, part: int) -> None:
        self._pool, self._part = pool, part

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._pool.add_output(self._part, output)

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Callable[[nn.Module, Any, Any], None]:
    return _ignore


def _ignore(module: nn.Module, args: Any, output: Any) -> None: ...


def is_watched(module: nn.Module) -> bool:
    """Whether its logits are."""
    return _WATCH in module.__dict__


def watch_logits(module: nn.Module, pool: Pool, switch: Switch) -> Callable[[], None]:
    """Give ``pool`` the logits of an attention module while ``switch`` is on; returns what undoes it."""
    # A bound method whose function is one for all layers, and the rest in an attribute: a copy of the module gets them
    # bound to itself, and a compiler sees the same code in every layer.
    own = module.__dict__.get("forward")
    watched = types.MethodType(forward, module)
    setattr(module, _WATCH, _Watch(pool, switch, own))
    module.forward = watched

    def undo() -> None:
        # What somebody else has put around it since stays, and calls it still, with the switch off.
        if module.__dict__.get("forward") is watched:
            delattr(module, _WATCH)
            del module.forward
            if own is not None:
                module.forward = own

    return undo


class _Watch:
    def __init__(self, pool: Pool, switch: Switch, own: Callable[..., Any] | None) -> None:
        self.pool, self.switch, self.own = pool, switch, own


def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """A watched module's ``forward``; a pickled one finds its class's under the same name."""
    watch = module.lrsweep_watch
    if not (watch.switch.on and torch.is_grad_enabled()):
        return _inner(module, watch, args, kwargs)
    with LogitWatch(watch.pool.add):
        return _inner(module, watch, args, kwargs)


def _inner(module: Any, watch: _Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if watch.own is not None:
        return watch.own(*args, **kwargs)
    return type(module).forward(module, *args, **kwargs)

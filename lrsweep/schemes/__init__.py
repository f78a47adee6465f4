"""The registry of schemes: a file a paper, a row a method, and :func:`register` for the user's own."""

from __future__ import annotations

from lrsweep.errors import UserError
from lrsweep.names import look_up, squash
from lrsweep.schemes import rybakov
from lrsweep.schemes.scheme import NormScope, Scheme

__all__ = ["NormScope", "Scheme", "all_schemes", "find", "register"]

_REGISTRY: dict[str, Scheme] = {}


def register(scheme: Scheme) -> Scheme:
    """Make ``scheme`` known to every command, table and plot; returns it.

    Raises:
        UserError: another scheme has that name (without case, ``_`` and ``-``).
    """
    for known in _REGISTRY.values():
        if squash(known.name) == squash(scheme.name) and known != scheme:
            raise UserError(f"register: a scheme named {known.name!r} exists already; give yours another name")
    _REGISTRY[scheme.name] = scheme
    return scheme


def find(name: str) -> Scheme:
    """The scheme of that name; UserError with the known ones, nearest first."""
    return look_up(name, _REGISTRY, flag="--arch", what="scheme")


def all_schemes() -> tuple[Scheme, ...]:
    """Every registered scheme, in order of registration."""
    return tuple(_REGISTRY.values())


for _scheme in rybakov.SCHEMES:
    register(_scheme)

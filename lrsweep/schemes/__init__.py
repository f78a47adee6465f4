"""The registry of schemes: a file a paper, a row a method, and :func:`register` for the user's own."""

from __future__ import annotations

from lrsweep.errors import UserError
from lrsweep.names import look_up, squash
from lrsweep.schemes import angpt, neighbours, own, rybakov, simplegpt, spike_no_more
from lrsweep.schemes.modifiers import MODIFIERS, Modifier, modify
from lrsweep.schemes.scheme import NormScope, QKNorm, Scheme

__all__ = ["MODIFIERS", "Modifier", "NormScope", "QKNorm", "Scheme", "all_schemes", "find", "register"]

_REGISTRY: dict[str, Scheme] = {}
_entry_points_loaded = False


def register(scheme: Scheme) -> Scheme:
    """Make ``scheme`` known to every command, table and plot; returns it.

    Raises:
        UserError: another scheme has that name (without case, ``_`` and ``-``), or the name could not be typed.
    """
    if not squash(scheme.name) or any(c in scheme.name for c in "+:/ ,") or squash(scheme.name) == "all":
        raise UserError(f"register: a scheme cannot be named {scheme.name!r}; use letters, digits, _ and -")
    for known in _REGISTRY.values():
        if squash(known.name) == squash(scheme.name) and known != scheme:
            raise UserError(f"register: a scheme named {known.name!r} exists already; give yours another name")
    _REGISTRY[scheme.name] = scheme
    return scheme


def find(name: str) -> Scheme:
    """The scheme of that name, with the modifiers behind it: ``qknorm``, ``qknorm+zloss``, ``./mine.py:mine+muon``.

    Raises:
        UserError: no such scheme or modifier; the message lists the known ones, nearest first.
    """
    _load_entry_points()
    base, *modifiers = _split_modifiers(name)
    in_file = own.split_file(base)
    if in_file is not None:
        path, base = in_file
        own.run_file(path)
    row = look_up(base, _REGISTRY, flag="--arch", what="scheme")
    return modify(row, tuple(modifiers)) if modifiers else row


def all_schemes() -> tuple[Scheme, ...]:
    """Every registered scheme, in order of registration."""
    _load_entry_points()
    return tuple(_REGISTRY.values())


def _split_modifiers(name: str) -> list[str]:
    """``./a+b.py:mine+zloss`` → ``./a+b.py:mine``, ``zloss``: a path may hold a plus."""
    end_of_path = name.rfind(".py:") + 1
    base, *modifiers = name[end_of_path:].split("+")
    return [name[:end_of_path] + base, *modifiers]


def _load_entry_points() -> None:
    global _entry_points_loaded
    if not _entry_points_loaded:
        _entry_points_loaded = True  # Before: the modules that are imported may themselves call find.
        own.load_entry_points()


for _module in (rybakov, simplegpt, angpt, spike_no_more, neighbours):
    for _scheme in _module.SCHEMES:
        register(_scheme)

"""A user's own schemes: a Python file named on the command line, or a package's entry point."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from lrsweep.errors import UserError

ENTRY_POINTS = "lrsweep.schemes"
"""Group of entry points; each names a module that calls :func:`lrsweep.schemes.register`."""


def split_file(name: str) -> tuple[Path, str] | None:
    """``./mine.py:mine`` → the file and the scheme's name in it; None if ``name`` is not of that form."""
    path, colon, scheme = name.rpartition(":")
    return (Path(path), scheme) if colon and path.endswith(".py") else None


def run_file(path: Path) -> None:
    """Run a user's file, once in a process, so that it registers its schemes.

    Raises:
        UserError: the file is missing, or raises an error of its own; the message holds it.
    """
    path = path.expanduser().absolute()
    module_name = f"lrsweep_own_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return
    if not path.is_file():
        raise UserError(f"--arch: no file {path}; write FILE.py:NAME, the file that registers the scheme NAME")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        reason = " ".join(str(error).split())
        raise UserError(f"--arch: {path} could not be run: {type(error).__name__}: {reason}") from error


def load_entry_points() -> None:
    """Import what installed packages offer in the group ``lrsweep.schemes``.

    Raises:
        UserError: an entry point cannot be imported; the message names it and its package.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "a package"
            reason = " ".join(str(error).split())
            raise UserError(
                f"entry point {point.name!r} of {package} ({ENTRY_POINTS}) failed: {type(error).__name__}: {reason}; "
                "repair or uninstall it"
            ) from error

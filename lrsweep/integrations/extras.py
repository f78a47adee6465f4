"""The one error for a trainer that is not installed."""

from __future__ import annotations


def missing(package: str, *, extra: str | None = None) -> ImportError:
    """An ImportError that says how to install ``package``: as an extra of lrsweep, or by its own instructions."""
    remedy = f"pip install 'lrsweep[{extra}]'" if extra else "install it as its own documentation says"
    return ImportError(f"lrsweep.integrations needs {package} here: {remedy}")

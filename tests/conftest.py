"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens cached by the tests, and by the commands they start, stay out of the user's cache."""
    before = os.environ.get("LRSWEEP_CACHE")
    os.environ["LRSWEEP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LRSWEEP_CACHE"]
    else:
        os.environ["LRSWEEP_CACHE"] = before


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parent.parent

"""What all tests share."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from lrsweep import schemes

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where GPU kernels are tested: on a CPU, Triton's interpreter runs them."""
if KERNEL_DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # Read when a kernel is defined, at its module's first import.
KERNEL_HALF = torch.bfloat16 if KERNEL_DEVICE == "cuda" else torch.float16
"""Half precision of those tests: of bf16 the interpreter cuts off what a GPU rounds, and multiplies it as integers."""
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
# A shell's background ignores Ctrl-C, which the commands that tests start, and interrupt, would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's affair, and what else it does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


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


@pytest.fixture(autouse=True)
def _own_schemes() -> Iterator[None]:
    """Schemes that a test registers, and the modules of users' files, are gone with it."""
    schemes.all_schemes()  # Installed ones, which are looked for once, stay.
    before = dict(schemes._REGISTRY)
    yield
    schemes._REGISTRY.clear()
    schemes._REGISTRY.update(before)
    for name in [name for name in sys.modules if name.startswith("lrsweep_own_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parent.parent

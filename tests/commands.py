"""Runs the command line as a user does, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUICK = ("--steps", "6", "--batch-size", "2", "--warmup-steps", "1", "--device", "cpu")
"""Flags that make a trial a matter of a tenth of a second."""


def lrsweep(*arguments: object, cwd: Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """``lrsweep ARGUMENTS`` in ``cwd``, output captured."""
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def command(*arguments: object) -> list[str]:
    """The argument vector of ``lrsweep ARGUMENTS``."""
    return [sys.executable, "-m", "lrsweep", *map(str, arguments)]

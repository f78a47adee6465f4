"""Runs the command line as a user does, in a process of its own, and modules of tests as ranks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

QUICK = ("--steps", "6", "--batch-size", "2", "--warmup-steps", "1", "--device", "cpu")
"""Flags that make a trial a matter of a tenth of a second."""


def lrsweep(*arguments: object, cwd: Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """``lrsweep ARGUMENTS`` in ``cwd``, output captured."""
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def command(*arguments: object) -> list[str]:
    """The argument vector of ``lrsweep ARGUMENTS``."""
    return [sys.executable, "-m", "lrsweep", *map(str, arguments)]


def wait_for(condition: Callable[[], bool], *, seconds: float = 240) -> None:
    """Return once ``condition`` holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def whole_trials(out: Path) -> dict[str, int]:
    """Finished trials and when their files were last written."""
    return {p.stem: p.stat().st_mtime_ns for p in (out / "steps").glob("[!.]*.parquet")}


@contextlib.contextmanager
def sweep_under_way(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """``lrsweep sweep FLAGS`` into ``folder``/out, at least one trial finished; all that it started ends with it."""
    process = subprocess.Popen(
        command("sweep", *flags),
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(whole_trials(folder / "out")) >= 1)
    family = psutil.Process(process.pid).children(recursive=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
    # After kill -9 of the driver two of Ray's agents notice within half a minute that they are alone.
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive


def two_ranks(module: str, *arguments: str, root: Path, timeout: float) -> list[str]:
    """Run ``python -m MODULE RANK ARGUMENTS`` for ranks 0 and 1 side by side; what each wrote to standard error."""
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), *arguments],
            cwd=root,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return errors

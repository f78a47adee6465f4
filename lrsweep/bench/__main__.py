"""The process that measures one model: ``python -m lrsweep.bench JOB`` takes a :class:`Job` as JSON, prints a
:class:`Timing` as one line of it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict

import torch

from lrsweep.bench import ours, peers
from lrsweep.bench.job import Job
from lrsweep.train.trial import CPU_THREADS


def main(text: str) -> None:
    """Measure what ``text`` asks for."""
    job = Job(**json.loads(text))
    importlib.import_module("torch._inductor.compile_fx")  # Torch puts it off; imports are not part of a first step.
    if job.device == "cpu":
        torch.set_num_threads(CPU_THREADS)
    else:
        _await_compilers()
    timing = ours.measure(job) if job.system == "lrsweep" else peers.measure(job)
    print(json.dumps(asdict(timing)), flush=True)


def _await_compilers(at_most_s: float = 60.0) -> None:
    """The import has started the processes in which torch compiles; like it, their start is no part of a first step."""
    from torch._inductor.async_compile import AsyncCompile

    end = time.monotonic() + at_most_s
    while not AsyncCompile.use_process_pool() and time.monotonic() < end:  # type: ignore[no-untyped-call]
        time.sleep(0.05)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        traceback.print_exc()
        first_line = next(iter(str(error).splitlines()), "")
        sys.exit(f"{type(error).__name__}: {first_line}")

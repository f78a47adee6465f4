"""What one process measures, and what it found: both are JSON on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Literal

from lrsweep.bench.rounds import Ratio
from lrsweep.sweep.plan import Device

System = Literal["lrsweep", "litgpt", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model to measure."""

    system: System
    """Who trains it."""
    arch: str
    """Scheme; a peer has but the one of its Llama, ``preln``."""
    body: str
    """Body."""
    size: str
    """Size preset."""
    device: Device
    """Where."""
    rounds: int
    """Paired rounds, 2 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What was measured of one model."""

    system: str
    """Who trained it."""
    version: str
    """Of that package."""
    scheme: str
    """Scheme, modifiers included."""
    body: str
    """Body."""
    size: str
    """Size preset."""
    device: str
    """Name of the GPU, or the CPU and its threads."""
    n_params: int
    """Parameters, embeddings included."""
    step_ms: dict[str, float]
    """Median step time of each variant: ``bare`` and, for lrsweep, ``norms``, ``all``, and ``eager`` on a GPU."""
    tokens_per_s: float
    """At the step time with all probes on; of a peer, which has none, at its bare one."""
    flops_per_token: int
    """Model FLOPs of a token, forward and backward."""
    mfu: float | None
    """Share of the GPU's bf16 peak at that rate; None on a CPU or where the peak is not known."""
    first_step_s: float
    """Seconds from before the construction of the model to the end of the first step, with empty compile caches."""
    next_trial_s: float | None
    """Seconds from the reset for a second trial to the end of its first step; None for a peer."""
    allocated_gib: float | None
    """Most GiB that tensors held on the GPU; None on a CPU."""
    reserved_gib: float | None
    """Most GiB that the process took from the GPU for tensors; None on a CPU."""
    ratios: dict[str, Ratio]
    """``norms/bare``, ``all/bare``, and on a GPU ``eager/captured``; none for a peer."""

    @classmethod
    def from_json(cls, text: str) -> Timing:
        """What ``json.dumps(asdict(timing))`` wrote."""
        values = json.loads(text)
        return cls(**values | {"ratios": {name: Ratio(**found) for name, found in values["ratios"].items()}})


class JobError(RuntimeError):
    """The process that measured ended in an error; the message is the last line that it wrote."""


def run_job(job: Job) -> Timing:
    """Measure in a fresh process whose compile caches are empty.

    Raises:
        JobError: with the process's last words.
    """
    with tempfile.TemporaryDirectory(prefix="lrsweep-bench-", ignore_cleanup_errors=True) as folder:
        caches = {name: os.path.join(folder, name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        result = subprocess.run(
            [sys.executable, "-m", "lrsweep.bench", json.dumps(asdict(job))],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | caches,
        )
    if result.returncode:
        words = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise JobError(words[-1])
    return Timing.from_json(result.stdout.splitlines()[-1])

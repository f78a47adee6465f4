"""What one process measures, and what it found: both are JSON on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Literal

from lrsweep.bench.flops import flops_per_token, mfu
from lrsweep.bench.rounds import Ratio
from lrsweep.config import SizePreset, find_body, find_size
from lrsweep.schemes import find
from lrsweep.sweep.plan import Device
from lrsweep.train.trial import device_name

_MOST_TOKENS = 2**17
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
    kernel_ms: dict[str, float] = field(default_factory=dict)
    """On a GPU, where a step with all probes goes: :func:`lrsweep.bench.kernels.kernel_ms`; none for a peer."""

    @property
    def full_step_ms(self) -> float:
        """Step time with all that is measured in a step; a peer measures nothing."""
        return full_step_ms(self.step_ms)

    @classmethod
    def of(
        cls,
        job: Job,
        *,
        version: str,
        n_params: int,
        step_ms: dict[str, float],
        first_step_s: float,
        memory: tuple[float | None, float | None],
        next_trial_s: float | None = None,
        ratios: dict[str, Ratio] | None = None,
        kernel_ms: dict[str, float] | None = None,
    ) -> Timing:
        """What was measured, with the rates that follow from it; ``memory`` is allocated and reserved."""
        scheme, body, preset = find(job.arch), find_body(job.body), find_size(job.size)
        tokens_per_s = batch_of(preset)[0] * preset.shape.seq_len / (full_step_ms(step_ms) / 1e3)
        flops, device = flops_per_token(scheme, body, preset.shape), device_name(job.device)
        return cls(
            system=job.system,
            version=version,
            scheme=scheme.name,
            body=body,
            size=preset.name,
            device=device,
            n_params=n_params,
            step_ms=step_ms,
            tokens_per_s=tokens_per_s,
            flops_per_token=flops,
            mfu=mfu(tokens_per_s, flops, device),
            first_step_s=first_step_s,
            next_trial_s=next_trial_s,
            allocated_gib=memory[0],
            reserved_gib=memory[1],
            ratios=ratios or {},
            kernel_ms=kernel_ms or {},
        )

    @classmethod
    def from_json(cls, text: str) -> Timing:
        """What ``json.dumps(asdict(timing))`` wrote."""
        values = json.loads(text)
        return cls(**values | {"ratios": {name: Ratio(**found) for name, found in values["ratios"].items()}})


def full_step_ms(step_ms: dict[str, float]) -> float:
    """Of the variants' step times, the one that rates are made of."""
    return step_ms.get("all", step_ms["bare"])


def batch_of(preset: SizePreset) -> tuple[int, int]:
    """Sequences of a step as a bench runs it, everybody's alike, and of one of its micro-batches.

    The papers' batches are cut to 131,072 tokens in four micro-batches: such a step takes many seconds, of which all
    but the first micro-batch are alike.
    """
    batch = max(1, min(preset.batch_size, _MOST_TOKENS // preset.shape.seq_len))
    return batch, batch if batch == preset.batch_size else max(1, batch // 4)


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
        how = f"exit code {result.returncode}" if result.returncode > 0 else signal.Signals(-result.returncode).name
        raise JobError((result.stderr.strip().splitlines() or [how])[-1])
    return Timing.from_json(result.stdout.splitlines()[-1])

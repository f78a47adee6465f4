"""What a run ran on: command, commit, versions and hardware for its record, and whether a size fits."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

import lrsweep
from lrsweep.config import Body, ModelShape, TrialSpec
from lrsweep.errors import UserError
from lrsweep.schemes import Scheme


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version(), "lrsweep": lrsweep.__version__}
    for name in ("torch", "ray", "numpy", "pandas", "pyarrow", "tokenizers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Processor, memory and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "platform": f"{platform.system()}-{platform.machine()}",
    }


def gpu_names() -> str:
    """``NVIDIA H200``, ``2 × NVIDIA H200``."""
    import torch

    names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in names.items())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_sha() -> str | None:
    """Commit of the lrsweep checkout, with ``+`` where files differ from it.

    Where there is no history, as in a container, ``$LRSWEEP_COMMIT``; None without either.
    """
    git = ["git", "-C", str(Path(lrsweep.__file__).parent.parent)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LRSWEEP_COMMIT")
    return sha + ("+" if changed else "")


def program() -> str:
    """How to call lrsweep here: by its name, or by the path it was started with if the shell would not find it."""
    by_path = Path(sys.argv[0]).name == "lrsweep" and shutil.which("lrsweep") is None
    return sys.argv[0] if by_path else "lrsweep"


def command_line() -> str:
    """The command that started this process, as a user would type it."""
    return shlex.join(["lrsweep", *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """What every record of a run or a measurement says of itself: command, commit, versions and hardware."""
    return {"command": command_line(), "git_sha": git_sha(), "versions": versions(), "hardware": hardware()}


@functools.cache
def _n_params(scheme: Scheme, body: Body, shape: ModelShape) -> int:
    """Parameters of a model, which is built for it without its weights; once, though many micro-batches are tried."""
    import torch

    from lrsweep.model import GPT

    with torch.device("meta"):
        return GPT(scheme, body, shape).n_params()


def memory_needed(spec: TrialSpec, gpus_per_trial: int = 1) -> int:
    """Bytes that one process of a trial needs, roughly and rather too many.

    Parameters count 24 bytes: weight, gradient, two moments, the copy that gives the update norm, one to spare.
    Activations of a micro-batch count what autograd keeps of a block: of compiled ones in bf16, 31 bytes a token and
    channel were seen at 135M and 780M on an H200; and of the logits, of which a part is held at a time. Scores that
    need them in memory, their logits.
    """
    from lrsweep.model.attention import ROWS
    from lrsweep.train.chunks import MAX_LOGITS

    shape, train, on_gpu = spec.shape, spec.train, spec.device == "cuda"
    tokens = (train.micro_batch or train.batch_size // gpus_per_trial) * shape.seq_len
    materialised = spec.scheme.prob_clip is not None or (spec.scheme.logit_cap is not None and not on_gpu)
    # Four times in fp32: of all layers if they are kept for the backward, else of the one that is at work.
    scores = 16 * shape.n_heads * shape.seq_len if materialised else 0
    kept = shape.seq_len <= ROWS
    of_block = (36 if train.precision == "bf16" else 136) * shape.d_model + (scores if kept else 0)
    at_work = 0 if kept else tokens // shape.seq_len * ROWS * scores
    logits = min(tokens * shape.vocab_size, MAX_LOGITS) * (6 if train.precision == "bf16" else 12)
    return 24 * _n_params(spec.scheme, spec.body, shape) + tokens * shape.n_layers * of_block + at_work + logits


_PROCESS_BYTES = 1 << 29
"""What a worker takes before it holds a model."""


def fit_memory(spec: TrialSpec, jobs: int, gpus_per_trial: int = 1) -> TrialSpec:
    """The trial with the largest micro-batch of which ``jobs`` at a time fit into memory; the one it has is kept.

    Raises:
        UserError: none fits; on a GPU, each of the trial's GPUs counts.
    """
    import torch

    if spec.device == "cuda":
        free, where = min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), "the GPU"
    else:
        free, where = psutil.virtual_memory().available, "this machine"
    n_processes = jobs if spec.device == "cuda" else jobs * gpus_per_trial
    share = spec.train.batch_size // gpus_per_trial
    sizes = [spec.train.micro_batch] if spec.train.micro_batch else [n for n in range(share, 0, -1) if share % n == 0]
    for micro in sizes:
        # Whole shares stay unmarked: that is what a trial is when memory is no matter.
        fitted = spec if micro == share else replace(spec, train=replace(spec.train, micro_batch=micro))
        needed = n_processes * (memory_needed(fitted, gpus_per_trial) + _PROCESS_BYTES)
        if needed <= free:
            return fitted
    raise UserError(
        f"--size {spec.size}: {jobs} trial(s) at a time need about {needed / 2**30:.1f} GiB, {where} has "
        f"{free / 2**30:.1f} GiB free; lower --jobs or --micro-batch, or choose a smaller --size"
    )

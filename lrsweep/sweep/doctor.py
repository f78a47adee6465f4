"""``lrsweep doctor``: what this machine offers a sweep."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from lrsweep.corpus import default_cache_dir
from lrsweep.errors import UserError
from lrsweep.sweep.machine import versions
from lrsweep.sweep.plan import DEFAULT_SIZE, check_writable, resolve_device


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    text: str
    ok: bool = True


def findings() -> Iterator[Finding]:
    """Versions, cores, memory, GPUs, disk and permissions; ``ok`` is False where a sweep would fail."""
    found = versions()
    missing = [name for name, version in found.items() if version == "not installed"]
    yield Finding("versions", ", ".join(f"{k} {v}" for k, v in found.items()), not missing)
    memory = psutil.virtual_memory()
    yield Finding(
        "processor", f"{len(os.sched_getaffinity(0))} cores usable, {memory.available / 2**30:.1f} GiB memory free"
    )
    yield from _gpus()
    device = resolve_device("auto")
    yield Finding("default", f"--device {device} --size {DEFAULT_SIZE[device]}")
    for name, folder in (("results", Path("results").absolute()), ("cache", default_cache_dir())):
        try:
            check_writable(folder)
        except UserError:
            yield Finding(name, f"{folder} cannot be written", ok=False)
            continue
        parent = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(parent).free / 2**30
        yield Finding(name, f"{folder}, {free:.1f} GiB free", free > 1)
    shm = Path("/dev/shm")
    if shm.exists():
        free = shutil.disk_usage(shm).free / 2**30
        yield Finding("/dev/shm", f"{free:.1f} GiB free (Ray needs 0.3)", free > 0.3)


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Finding("GPU", f"none visible; {built}")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        note = "" if bf16 else ", no bf16: sweeps would be slow"
        yield Finding(f"GPU {i}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free{note}", bf16)


def print_diagnosis() -> int:
    """Print the findings; exit code 0 if a sweep can run here, else 2."""
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    everything = list(findings())
    for finding in everything:
        table.add_row("[green]ok[/]" if finding.ok else "[red]no[/]", finding.name, finding.text)
    Console().print(table)
    return 0 if all(finding.ok for finding in everything) else 2

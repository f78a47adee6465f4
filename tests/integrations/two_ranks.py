"""One of two ranks: ``python two_ranks.py RANK FOLDER BACKEND`` plays every scenario and writes what it saw as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lrsweep.detect import DetectorConfig
from lrsweep.integrations import DivergenceError, StabilityMonitor
from lrsweep.integrations.ranks import all_finite
from tests.integrations.tiny import DIVERGING_LR, NONFINITE_LR, batches, clip_at, loss_of, network, sgd

QUIET = DetectorConfig(grace_steps=0)


def device() -> torch.device:
    """Where this rank trains."""
    return torch.device("cuda", dist.get_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def told(monitor: StabilityMonitor, step: int) -> dict[str, Any]:
    """Where this rank stopped, and why."""
    verdict = monitor.verdict
    return {"stopped": step, "kind": verdict.kind, "onset": verdict.onset, "reason": verdict.reason}


def play(rank: int, loss_at: Callable[[int, int], float | None], *, saves: bool = False) -> dict[str, Any]:
    """A run of 100 steps at most, whose loss is ``loss_at(rank, step)``."""
    monitor = StabilityMonitor(action="stop", config=QUIET)
    for step in range(100):
        loss = loss_at(rank, step)
        monitor.update(step, None if loss is None else torch.tensor(loss, device=device()))
        if saves and rank == 0:
            monitor.state_dict()
        if monitor.should_stop:
            break
    monitor.finish()
    return told(monitor, step) | {"loss": str(monitor.metrics().get("lrsweep/loss"))}


def raising(rank: int) -> int:
    """The step at which the error reached this rank."""
    monitor = StabilityMonitor(action="raise", config=QUIET)
    for step in range(100):
        try:
            monitor.update(step, math.inf if rank == 1 and step >= 10 else 3.0)
        except DivergenceError:
            return step
    return -1


def restored(rank: int) -> dict[str, Any]:
    """As the first scenario, through a checkpoint that rank 0 alone wrote, at a step that was not yet judged."""
    monitor = StabilityMonitor(action="stop", config=QUIET)
    for step in range(100):
        if step == 41:
            states = [monitor.state_dict() if rank == 0 else None]
            dist.broadcast_object_list(states)
            monitor = StabilityMonitor(action="stop", config=QUIET)
            monitor.load_state_dict(json.loads(json.dumps(states[0], allow_nan=False)))
        monitor.update(step, math.nan if rank == 1 and step >= 40 else 3.0)
        if monitor.should_stop:
            break
    return told(monitor, step)


def parallel(rank: int, lr: float) -> dict[str, Any]:
    """A real data-parallel training that its learning rate breaks."""
    model = DistributedDataParallel(network().to(device()))
    optimizer, monitor = sgd(model, lr), StabilityMonitor(action="stop")
    for step, batch in enumerate(batches(100), 1):
        tokens, successors = (whole.chunk(2)[rank].to(device()) for whole in batch)
        loss = loss_of(model, (tokens, successors))
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip_at(lr))
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(step, loss, grad_norm)
        if monitor.should_stop:
            break
    return told(monitor, step)


def sharded(rank: int) -> dict[str, Any]:
    """As above, its weights sharded; whether it may save at first, and once one shard of rank 1 is not finite."""
    model = network().to(device())
    fully_shard(model, mesh=init_device_mesh(device().type, (2,)))
    optimizer, monitor, allowed = sgd(model, NONFINITE_LR), StabilityMonitor(action="stop"), []
    for step, batch in enumerate(batches(100), 1):
        tokens, successors = (whole.chunk(2)[rank].to(device()) for whole in batch)
        loss = loss_of(model, (tokens, successors))
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip_at(NONFINITE_LR))  # a DTensor
        if step == 1:
            allowed.append(monitor.may_save(model))
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(step, loss, grad_norm)
        if monitor.should_stop:
            break
    with torch.no_grad():
        for weight in model.parameters():
            weight.to_local().fill_(math.nan if rank == 1 else 0.0)
    allowed.append(all_finite(model))
    return told(monitor, step) | {"allowed": allowed}


def weights(rank: int) -> list[bool]:
    """Whether all is finite, before and after one weight of rank 1 alone is not."""
    model = network().to(device())
    before = all_finite(model)
    if rank == 1:
        with torch.no_grad():
            model[1].weight[0, 0] = math.nan
    return [before, all_finite(model)]


def means(rank: int) -> list[str]:
    """The loss judged where the ranks have 1 and 3, where rank 1 alone has one, and where none has."""
    seen = []
    for losses in ((1.0, 3.0), (None, 3.0), (None, None), (1.0, math.inf)):
        monitor = StabilityMonitor()
        monitor.update(1, losses[rank])
        monitor.finish()
        seen.append(str(monitor.metrics().get("lrsweep/loss")))
    return seen


def apart(rank: int) -> float:
    """With ``across_ranks=False`` ranks may update as often as they like: no collective."""
    monitor = StabilityMonitor(across_ranks=False)
    for step in range(1 + 5 * rank):
        monitor.update(step, float(rank))
    return monitor.metrics()["lrsweep/loss"]


def main(rank: int, folder: Path, backend: str) -> None:
    """Plays all of them."""
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen = {
        "nan": play(rank, lambda rank, step: math.nan if rank == 1 and step >= 40 else 3.0),
        "nan, saved": play(rank, lambda rank, step: math.nan if rank == 1 and step >= 40 else 3.0, saves=True),
        "rise": play(rank, lambda rank, step: 3.0 + (4.0 if rank == 1 and step >= 40 else 0.0)),
        "pipeline": play(rank, lambda rank, step: None if rank == 0 else 3.0 + (4.0 if step >= 40 else 0.0)),
        "stable": play(rank, lambda rank, step: 3.0 + rank),
        "restored": restored(rank),
        "raised": raising(rank),
        "diverging": parallel(rank, DIVERGING_LR),
        "non-finite": parallel(rank, NONFINITE_LR),
        "sharded": sharded(rank),
        "weights": weights(rank),
        "means": means(rank),
        "apart": apart(rank),
    }
    (folder / f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    dist.barrier()  # Neither takes its end of a connection away while the other still uses it.


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    # Not by the interpreter's end: DDP and FSDP2 keep their group, and a thread of gloo that lets go of its last tensor
    # meanwhile takes the process down (std::terminate).
    sys.stderr.flush()
    os._exit(0)

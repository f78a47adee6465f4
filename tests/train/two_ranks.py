"""One of two ranks: ``python -m tests.train.two_ranks RANK FOLDER PORT DEVICE`` writes what it saw to FOLDER."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrsweep.config import TrialSpec
from lrsweep.model import ProbeLevel
from lrsweep.train.ranks import Ranks
from lrsweep.train.step import Engine, EngineKey, Interval
from tests.train.test_engine import SHAPE, spec, warmup_and_fall

N_STEPS, BATCH = 10, 4
CASES = (("preln", {}), ("qknorm_cap+zloss", {}), ("preln+muon+qk_clip", {}), ("sigma_reparam", {"clip": 0.1}))
"""Schemes, with what their training changes, that together use every kind of statistic."""


def case(name: str, train: dict[str, Any], device: str) -> TrialSpec:
    """The trial that the engines of the tests run."""
    return spec(name, device=device, batch_size=BATCH, **train)


def run(engine: Engine, *, seed: int = 0, lr: float = 1e-2) -> Interval:
    """Ten steps from new weights; the logits are measured in every other."""
    engine.reset(seed)
    tokens = np.random.default_rng(seed).integers(0, SHAPE.vocab_size, (N_STEPS, BATCH, SHAPE.seq_len + 1))
    return engine.run(tokens, warmup_and_fall(N_STEPS, lr), [ProbeLevel.ALL, ProbeLevel.NORMS] * (N_STEPS // 2))


def state(engine: Engine) -> list[np.ndarray]:
    """Weights all in a row, and buffers."""
    kinds = engine.model.parameters(), engine.model.buffers()
    return [torch.cat([tensor.detach().flatten() for tensor in kind]).cpu().numpy() for kind in kinds]


def engines(ranks: Ranks, device: str) -> dict[str, list[np.ndarray]]:
    """What the engine of each case gives on two ranks, and again from a reset, then with NaN weights on one rank."""
    seen = {}
    for name, train in CASES:
        engine = Engine(EngineKey.of(case(name, train, device)), ranks=ranks)
        first, again = run(engine), run(engine)
        assert np.array_equal(first.scalars_RxS, again.scalars_RxS)
        seen[name] = [first.scalars_RxS, first.layers_RxNxS, *state(engine)]
    engine.reset(0)
    if ranks.rank == 1:
        with torch.no_grad():
            engine.model.embedding.fill_(math.nan)
    tokens = np.zeros((1, BATCH, SHAPE.seq_len + 1), dtype=np.int64)
    broken = engine.run(tokens, [0.1], [ProbeLevel.ALL])
    seen["nan"] = [broken.scalars_RxS, broken.layers_RxNxS]
    return seen


def network(device: torch.device) -> tuple[nn.Sequential, list[list[Tensor]], nn.Parameter]:
    """Three layers, a bucket for each of the first two, and a parameter that no loss reaches."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)).to(device)
    unused = nn.Parameter(torch.zeros(3, device=device))
    return layers, [list(layers[0].parameters()), [*layers[1].parameters(), unused]], unused


def gradients(ranks: Ranks, micro_batches: int, buckets: bool, capture: bool) -> list[np.ndarray]:
    """Gradients of a loss of this rank's own rows, summed over ranks; twice, to see that nothing is left over."""
    layers, blocks, unused = network(ranks.device)
    ranks.watch([*layers.parameters(), unused], blocks if buckets else [])
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(7))[ranks.share(8)].to(ranks.device)
    found: list[Tensor] = []

    def backward() -> None:
        for parameter in layers.parameters():
            parameter.grad = None
        for i, rows in enumerate(x.chunk(micro_batches), 1):
            ranks.armed = i == micro_batches
            layers(rows).square().sum().backward()
        # The first layer's can go before finish() asks; the second bucket, one of whose gradients never comes, cannot.
        assert [bucket.work is not None for bucket in ranks._buckets] == ([True, False, True] if buckets else [False])
        ranks.finish()

    # On a GPU as a capture wants it: a stream of its own, where nothing has run before.
    with torch.cuda.stream(torch.cuda.Stream()) if capture else contextlib.nullcontext():
        for _ in range(2):
            backward()
    if capture:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            backward()
            found = [p.grad for p in layers.parameters() if p.grad is not None]
        graph.replay()
    ranks.armed = True
    assert unused.grad is None
    return [g.cpu().numpy() for g in found or [p.grad for p in layers.parameters() if p.grad is not None]]


def statistics(ranks: Ranks) -> dict[str, np.ndarray]:
    """Sums and maxima of values that differ between the ranks, NaN on one of them, and both."""
    columns: Sequence[tuple[float, float]] = (
        (1.0, 2.0), (-3.0, -4.0), (math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan), (math.inf, 0.0),
        (-math.inf, -math.inf), (math.inf, math.nan),
    )  # fmt: skip
    values = torch.tensor(columns, device=ranks.device)[:, ranks.rank]
    largest, summed = values.clone(), values.clone()
    ranks.max_(largest)
    ranks.sum_(summed)
    return {"max": largest.cpu().numpy(), "sum": summed.cpu().numpy()}


def main(rank: int, folder: Path, port: int, device: str) -> None:
    """Plays all of it."""
    torch.set_num_threads(1)
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    ranks = Ranks.join(rank, 2, "127.0.0.1", port, place)
    on_gpu = device == "cuda"
    seen: dict[str, Any] = {"rank": ranks.rank, "size": ranks.size, "share": range(6)[ranks.share(6)]}
    seen["statistics"] = statistics(ranks)
    for micro_batches in (1, 2):
        for buckets in (True, False):
            seen[f"gradients {micro_batches} {buckets}"] = gradients(ranks, micro_batches, buckets, on_gpu)
    seen["engines"] = engines(ranks, device)
    ranks.leave()
    seen["threads"] = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

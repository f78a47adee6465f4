"""A probe on a GPU: CUDA graphs, no wait before the reading, and the model's move."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from lrsweep.errors import UserError
from lrsweep.probes import Probe
from tests.conftest import on_gpu
from tests.probes.foreign_models import PARTS, FusedAttention, TinyGPT, assert_close, batch, expected, train_step

pytestmark = on_gpu


@pytest.mark.parametrize("style", list(PARTS))
def test_in_cuda_graphs(style: type[FusedAttention]) -> None:
    """Five steps, so that the graph is recorded and replayed; logits at every second reading."""
    torch.compiler.reset()
    counters.clear()
    model = TinyGPT(style).cuda()
    tokens = [batch(seed=seed).cuda() for seed in range(5)]
    wanted = []
    with Probe(model, logits=True) as probe:
        for each in tokens:
            train_step(model, each)
            wanted.append(probe.read().values)
    with Probe(model, logits=2) as probe:
        compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        for step, each in enumerate(tokens):
            train_step(compiled, each)
            due = {key: v for key, v in wanted[step].items() if key[1] != "attn" or step % 2 == 0}
            assert_close(probe.read().values, due)
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_waits_before_the_reading(compiled: bool) -> None:
    torch.compiler.reset()
    model, tokens = TinyGPT().cuda(), batch().cuda()
    with Probe(model, logits=True) as probe:
        run = torch.compile(model) if compiled else model
        train_step(run, tokens)
        probe.read()
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(run, tokens, tokens)
            assert probe.read_late() is None
            train_step(run, tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        late = probe.read_late()
        assert late is not None
        assert_close(late.values, expected(model, tokens))  # of two alike micro-batches, that of one


def test_a_model_that_moves_after_its_probe() -> None:
    model = TinyGPT()
    with Probe(model):
        model.cuda()
        with pytest.raises(UserError, match=r"computes on cuda:0.*device='cuda:0'"):
            train_step(model, batch().cuda())
    with Probe(model.cpu(), device="cuda") as probe:
        train_step(model.cuda(), batch().cuda())
        assert probe.read().values

"""A probe in a compiled model: one graph, the values of the eager model, and what code compiled before does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from lrsweep.errors import UserError
from lrsweep.probes import Probe
from tests.probes.foreign_models import (
    MaterialisedAttention,
    SeparateAttention,
    TinyGPT,
    assert_close,
    batch,
    expected,
    train_step,
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_one_graph_with_and_one_without_logits() -> None:
    """No break, and no recompilation from step to step; two micro-batches a step."""
    model, parts = TinyGPT(SeparateAttention), [batch(seed=1), batch(seed=2)]
    wanted = expected(model, torch.cat(parts))
    graphs = CompileCounterWithBackend("aot_eager")
    with Probe(model, logits=2) as probe:
        compiled = torch.compile(model, backend=graphs, fullgraph=True)
        for step in range(5):
            train_step(compiled, *parts)
            due = {key: v for key, v in wanted.items() if key[1] != "attn" or step % 2 == 0}
            assert_close(probe.read().values, due)
    assert graphs.frame_count == 2


def test_a_softmax_written_out_in_one_graph() -> None:
    model, tokens = TinyGPT(MaterialisedAttention, layers=1), batch()
    wanted = expected(model, tokens)
    with Probe(model, logits=True) as probe:
        train_step(torch.compile(model, backend="aot_eager", fullgraph=True), tokens)
        assert_close(probe.read().values, wanted)


def test_blocks_compiled_one_by_one_share_a_graph_and_mix_nothing_up() -> None:
    model, tokens = TinyGPT(SeparateAttention, layers=9), batch()
    wanted = expected(model, tokens)
    graphs = CompileCounterWithBackend("aot_eager")
    with Probe(model, logits=True) as probe:
        for block in model.transformer["h"]:
            block.compile(backend=graphs, fullgraph=True)
        train_step(model, tokens)
        assert_close(probe.read().values, wanted)
    assert graphs.frame_count == 1


def test_compiled_and_checkpointed() -> None:
    """q, k and v are added up inside a checkpointed block, in one graph; two micro-batches."""
    model, parts = TinyGPT(SeparateAttention), [batch(size=2, seed=1), batch(size=2, seed=2)]
    wanted = expected(model, torch.cat(parts))
    model.checkpointing = False
    with Probe(model, logits=True) as probe:
        train_step(torch.compile(model, backend="aot_eager", fullgraph=True), *parts)
        assert_close(probe.read().values, wanted)


def test_through_inductor() -> None:
    model, tokens = TinyGPT(SeparateAttention, layers=1), batch()
    wanted = expected(model, tokens)
    with Probe(model, logits=True) as probe:
        train_step(torch.compile(model, fullgraph=True), tokens)
        assert_close(probe.read().values, wanted)


def test_outputs_and_gradients_of_the_traced_graph_are_bitwise_the_same() -> None:
    results = []
    for probed in (False, True):
        torch.compiler.reset()
        model = TinyGPT(layers=1)
        if probed:
            Probe(model, logits=True)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        output = compiled(batch())
        output.logsumexp(-1).mean().backward()
        results.append([output, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"compiled already.*Probe\(model\) first"):
        Probe(torch.compile(TinyGPT(), backend="aot_eager"))
    model = TinyGPT()
    model.transformer["h"][0].compile(backend="aot_eager")
    with pytest.raises(UserError, match="compiled already"):
        Probe(model)


def test_code_compiled_before_for_another_model_is_told_and_the_remedy_works() -> None:
    """Dynamo does not look for hooks when it decides whether compiled code fits another instance of the class."""
    train_step(torch.compile(TinyGPT(layers=1), backend="aot_eager"), batch())
    model = TinyGPT(layers=1)
    wanted = expected_by_eager(model)
    wanted = {key: value for key, value in wanted.items() if key[1] != "attn"}
    with Probe(model) as probe:
        compiled = torch.compile(model, backend="aot_eager")
        train_step(compiled, batch())
        with pytest.raises(UserError, match=r"compiled before the probe was attached.*torch\.compiler\.reset\(\)"):
            probe.read()
        torch.compiler.reset()
        train_step(compiled, batch())
        assert_close(probe.read().values, wanted)


def expected_by_eager(model: TinyGPT) -> dict[tuple[int, str, str], float]:
    with torch.compiler.set_stance("force_eager"):
        return expected(model, batch())

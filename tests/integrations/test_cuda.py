"""On a GPU: nothing waits for the device to finish the step it was just given."""

from __future__ import annotations

import math

import torch

from lrsweep.integrations import StabilityMonitor
from tests.conftest import on_gpu

pytestmark = on_gpu

LONG = 2_000_000_000
"""Clock cycles: a second or so, during which the host can do all that it has to do."""


def slow_step(value: float) -> tuple[torch.Tensor, torch.cuda.Event]:
    """A loss that takes a second to compute, and the event of its being done."""
    torch.cuda._sleep(LONG)
    loss, done = torch.full((), value, device="cuda"), torch.cuda.Event()
    done.record()
    return loss, done


def test_update_returns_before_the_step_is_done(judged):
    monitor = StabilityMonitor()
    for step in range(-3, 0):  # the first allocation of pinned memory, and each kernel's loading, wait for the device
        monitor.update(step, torch.ones((), device="cuda"), grad_norm=1.0)
    monitor.finish()
    monitor.update(0, torch.ones((), device="cuda"))
    monitor.finish()
    judged.clear()
    loss, first = slow_step(3.0)
    monitor.update(1, loss, grad_norm=2.0)
    loss.fill_(math.nan)  # the next step reuses the buffer, in the order of the stream
    assert not first.query()
    assert judged == []
    loss, second = slow_step(4.0)
    monitor.update(2, loss)
    assert first.query()
    assert not second.query()
    assert judged == [(1, 3.0, 2.0)]
    monitor.finish()
    assert second.query()
    assert judged == [(1, 3.0, 2.0), (2, 4.0, None)]


def test_a_verdict_comes_one_step_late_and_the_state_holds_what_is_not_yet_judged(judged):
    monitor, restored = StabilityMonitor(), StabilityMonitor()
    losses = [3.0] * 10 + [math.nan] * 4
    for step, loss in enumerate(losses):
        monitor.update(step, torch.tensor(loss, device="cuda"))
        if step == 11:
            restored.load_state_dict(monitor.state_dict())
        if step > 11:
            restored.update(step, torch.tensor(loss, device="cuda"))
    assert [step for step, _, _ in judged[:11]] == list(range(11))
    for watched in (monitor, restored):
        assert (watched.verdict.kind, watched.verdict.onset, watched.verdict.step) == ("nonfinite", 10, 12)


def test_weights_on_two_devices_are_all_looked_at():
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="cuda")])
    assert StabilityMonitor().may_save(model)
    with torch.no_grad():
        model[1].bias[0] = math.inf
    assert not StabilityMonitor().may_save(model)

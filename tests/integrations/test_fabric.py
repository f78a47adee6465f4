"""A real Fabric loop on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger

from lrsweep.integrations import StabilityMonitor
from lrsweep.integrations.fabric import stability_monitor
from tests.integrations.tiny import DIVERGING_LR, NONFINITE_LR, SANE_LR, batches, clip_at, loss_of, network, sgd


def train(
    lr: float, monitor: StabilityMonitor | None, fabric: Fabric, *, steps: range = range(1, 81), file: Any = None
) -> list[float]:
    """The losses of a loop, which saves its state to ``file`` at step 30, or begins from there if it begins at 31."""
    body, losses = network(), []
    model, optimizer = fabric.setup(body, sgd(body, lr))
    state = {"model": model, "monitor": monitor}
    if steps[0] == 31:
        fabric.load(file, state)
    for step, batch in enumerate(batches(steps[-1]), 1):
        if step not in steps:
            continue
        loss = loss_of(model, batch)
        fabric.backward(loss)
        grad_norm = fabric.clip_gradients(model, optimizer, max_norm=clip_at(lr), error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if monitor is not None:
            monitor.update(step, loss, grad_norm)
            if monitor.should_stop:
                break
        if step == 30 and file is not None:
            fabric.save(file, state)
    return losses


@pytest.mark.parametrize(("lr", "kind"), [(DIVERGING_LR, "diverged"), (NONFINITE_LR, "nonfinite")])
def test_it_stops_within_30_steps_of_the_onset(lr, kind):
    fabric = Fabric(accelerator="cpu", devices=1)
    monitor = stability_monitor(fabric, action="stop")
    losses = train(lr, monitor, fabric)
    assert monitor.verdict.kind == kind
    assert len(losses) - monitor.verdict.onset < 30


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(tmp_path))
    monitor = stability_monitor(fabric, action="raise", log_every=20)
    assert train(SANE_LR, monitor, fabric) == train(SANE_LR, None, fabric)
    fabric.logger.save()
    rows = next(tmp_path.glob("**/metrics.csv")).read_text().splitlines()
    assert set(rows[0].split(",")) == {"step", *monitor.metrics()}
    assert len(rows) == 5


def test_a_resumed_training_decides_as_the_unbroken_one(tmp_path: Path):
    fabric = Fabric(accelerator="cpu", devices=1)
    unbroken, resumed = (stability_monitor(fabric, action="stop") for _ in range(2))
    losses = train(DIVERGING_LR, unbroken, fabric, file=tmp_path / "checkpoint")
    again = train(DIVERGING_LR, resumed, fabric, steps=range(31, 81), file=tmp_path / "checkpoint")
    assert again == losses[30:]
    assert resumed.verdict == unbroken.verdict
    assert resumed.verdict.kind == "diverged"

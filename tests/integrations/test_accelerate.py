"""A real Accelerate loop on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from lrsweep.integrations.accelerate import AcceleratorMonitor
from tests.integrations.tiny import DIVERGING_LR, NONFINITE_LR, SANE_LR, batches, clip_at, loss_of, network, sgd


class LinesTracker(GeneralTracker):
    """Writes a line of JSON a log."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def tracker(self) -> Path:
        return self.file

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")


def train(
    lr: float, *, action: Any, accumulate: int = 1, steps: range = range(1, 81), folder: Path | None = None, **kw: Any
) -> tuple[list[float], AcceleratorMonitor | None]:
    """The losses of all micro-batches; saves its state at step 30, or begins from there if it begins at 31."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **kw)
    accelerator.init_trackers("tests")
    body, losses = network(), []
    model, optimizer = accelerator.prepare(body, sgd(body, lr))
    monitor = AcceleratorMonitor(accelerator, action=action) if action else None
    if steps[0] == 31:
        accelerator.load_state(str(folder))
    for index, batch in enumerate(batches(steps[-1] * accumulate)):
        if index // accumulate + 1 not in steps:
            continue
        grad_norm = None
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(model.parameters(), clip_at(lr))
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if monitor is not None:
            monitor.micro_batch(loss, grad_norm)
            if monitor.should_stop:
                break
            if monitor.step == 30 and folder is not None:
                accelerator.save_state(str(folder))
    return losses, monitor


@pytest.mark.parametrize(("lr", "kind"), [(DIVERGING_LR, "diverged"), (NONFINITE_LR, "nonfinite")])
def test_it_stops_within_30_steps_of_the_onset(lr, kind):
    losses, monitor = train(lr, action="stop")
    assert monitor.verdict.kind == kind
    assert len(losses) == monitor.step
    assert monitor.step - monitor.verdict.onset < 30


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(tmp_path):
    tracker = LinesTracker(tmp_path / "log")
    watched, monitor = train(SANE_LR, action="raise", log_with=tracker)
    assert watched == train(SANE_LR, action=None)[0]
    lines = [json.loads(line) for line in tracker.file.read_text().splitlines()]
    assert [line.pop("step") for line in lines] == list(range(10, 81, 10))
    assert lines[-1] == monitor.metrics()


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches(judged):
    losses, monitor = train(SANE_LR, action="log", accumulate=2, steps=range(1, 11))
    assert monitor.step == 10
    assert [step for step, _, _ in judged] == list(range(1, 11))
    means = [sum(losses[i : i + 2]) / 2 for i in range(0, 20, 2)]
    assert [loss for _, loss, _ in judged] == pytest.approx(means, rel=1e-6)
    assert all(norm > 0 for _, _, norm in judged)


def test_a_resumed_training_decides_as_the_unbroken_one(tmp_path):
    losses, unbroken = train(DIVERGING_LR, action="stop", folder=tmp_path)
    again, resumed = train(DIVERGING_LR, action="stop", folder=tmp_path, steps=range(31, 81))
    assert again == losses[30:]
    assert (resumed.verdict, resumed.step) == (unbroken.verdict, unbroken.step)

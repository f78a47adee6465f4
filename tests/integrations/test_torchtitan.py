"""torchtitan needs a GPU, so a trainer of its form stands in: names, signatures and order of calls are those of
``torchtitan/trainer.py`` 0.3.0. A ``loss`` mesh of 2 plays two data-parallel ranks with the same batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lrsweep.integrations import DivergenceError
from lrsweep.integrations.torchtitan import watch
from tests.integrations.tiny import NONFINITE_LR, SANE_LR, batches, clip_at, loss_of, network, sgd


class Trainer:
    """Two accumulated micro-batches a step; the loss it logs is the ranks' sum."""

    def __init__(self, lr: float, *, ranks: int = 1, pp_has_last_stage: bool = True, log_freq: int = 4) -> None:
        self.lr, self.ranks, self.step = lr, ranks, 0
        self.model_parts = [network()]
        self.optimizer = sgd(self.model_parts[0], lr)
        self.pp_has_last_stage = pp_has_last_stage
        mesh = None if ranks == 1 else SimpleNamespace(size=lambda: ranks)
        self.parallel_dims = SimpleNamespace(
            pp_enabled=not pp_has_last_stage, get_optional_mesh=lambda name: {"loss": mesh}[name]
        )
        self.config = SimpleNamespace(checkpoint=SimpleNamespace(enable=True, interval=1))
        self.metrics_processor, self.checkpointer = self, SimpleNamespace(save=self.save)
        self.log_freq, self.buffer = log_freq, torch.zeros(())
        self.losses: list[float] = []
        self.logged: list[dict[str, Any]] = []
        self.saved: list[int] = []

    def forward_backward_step(self, *, input_dict: Any, labels: Any, global_valid_tokens: Any) -> torch.Tensor:
        loss = loss_of(self.model_parts[0], (input_dict, labels)) / (2 * self.ranks)
        loss.backward()
        return self.buffer.copy_(loss.detach())  # as a replayed CUDA graph does

    def train_step(self, data_iterator: Any) -> None:
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(2):
            tokens, successors = next(data_iterator)
            loss = self.forward_backward_step(input_dict=tokens, labels=successors, global_valid_tokens=None)
            total += self.ranks * loss.item()
        grad_norm = nn.utils.clip_grad_norm_(self.model_parts[0].parameters(), clip_at(self.lr))
        self.optimizer.step()
        self.losses.append(total)
        if self.step % self.log_freq == 0:
            self.metrics_processor.log(self.step, total, total, float(grad_norm.item()), extra_metrics={"tokens": 1})

    def train(self) -> None:
        data_iterator = batches(80)
        while self.should_continue_training():
            self.step += 1
            self.train_step(data_iterator)
            self.checkpointer.save(self.step, last_step=self.step == 40)

    def should_continue_training(self) -> bool:
        return self.step < 40

    def log(self, step, global_avg_loss, global_max_loss, grad_norm, extra_metrics=None):
        self.logged.append({"step": step, "grad_norm": grad_norm, **extra_metrics})

    def save(self, curr_step: int, last_step: bool = False) -> bool:
        self.saved.append(curr_step)
        return True


def test_it_stops_and_saves_nothing_that_is_lost():
    trainer = Trainer(NONFINITE_LR)
    monitor = watch(trainer, action="stop")
    trainer.train()
    assert (monitor.verdict.kind, monitor.verdict.onset) == ("nonfinite", 2)
    assert (trainer.step, trainer.saved) == (4, [1])


def test_raise_comes_out_of_train():
    trainer = Trainer(NONFINITE_LR)
    watch(trainer, action="raise")
    with pytest.raises(DivergenceError, match="nonfinite at step 4"):
        trainer.train()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(judged, ranks):
    unwatched, watched = (Trainer(SANE_LR, ranks=ranks) for _ in range(2))
    monitor = watch(watched, action="stop")
    for trainer in (unwatched, watched):
        trainer.train()
    assert watched.losses == unwatched.losses
    assert [loss for _, loss, _ in judged] == pytest.approx(watched.losses, rel=1e-6)
    norms = {step: norm for step, _, norm in judged if norm is not None}
    assert norms == pytest.approx({entry["step"]: entry["grad_norm"] for entry in watched.logged}, rel=1e-6)
    assert set(watched.logged[-1]) == {"step", "grad_norm", "tokens", *monitor.metrics()}
    assert len(watched.saved) == 40
    assert "train_step" not in vars(watched)  # it leaves the trainer as it was


def test_an_early_pipeline_stage_has_no_loss(judged, caplog):
    trainer = Trainer(SANE_LR, pp_has_last_stage=False)
    monitor = watch(trainer)
    trainer.train()
    assert {loss for _, loss, _ in judged} == {None}
    assert "no loss" in caplog.text
    assert math.isnan(monitor.metrics().get("lrsweep/loss", math.nan))

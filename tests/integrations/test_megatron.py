"""Megatron-LM needs a GPU, so a loop of its form stands in: names, signatures and order of calls are those of
``megatron/training/training.py`` at commit d98e8a64 (core 0.20.0)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lrsweep.integrations import DivergenceError, StabilityMonitor
from lrsweep.integrations.megatron import watch
from tests.integrations.tiny import NONFINITE_LR, SANE_LR, batches, clip_at, loss_of, network, sgd


def build(lr: float) -> ModuleType:
    """The module ``megatron.training.training``, with a training of the tiny network in it."""
    training: Any = ModuleType("megatron.training.training")
    training.losses, training.saved, training.exited = [], [], False

    def training_log(
        loss_dict, total_loss_dict, learning_rate, iteration, loss_scale, report_memory_flag, skipped_iter, grad_norm,
        params_norm, num_zeros_in_grad, max_attention_logit, pg_collection=None, is_first_iteration=False,
        seqlen_squared_sum_in_batch=None, total_real_tokens_in_batch=None,
    ):  # fmt: skip
        training.losses.append(loss_dict["lm loss"].item())
        return report_memory_flag

    def save_checkpoint_and_time(
        iteration, model, optimizer, opt_param_scheduler, num_floating_point_operations_so_far, checkpointing_context,
        non_persistent_ckpt=False, train_data_iterator=None,
    ):  # fmt: skip
        training.saved.append((iteration, [tensor.clone() for tensor in model[0].parameters()]))

    def checkpoint_and_decide_exit(
        model, optimizer, opt_param_scheduler, iteration, num_floating_point_operations_so_far, checkpointing_context,
        train_data_iterator,
    ):  # fmt: skip
        training.save_checkpoint_and_time(
            iteration, model, optimizer, opt_param_scheduler, 0, checkpointing_context, train_data_iterator=None
        )
        return False

    def train(model: list[nn.Module]) -> tuple[int, int]:
        optimizer = sgd(model[0], lr)
        for iteration, batch in enumerate(batches(40), 1):
            loss = loss_of(model[0], batch)
            loss.backward()
            grad_norm = float(nn.utils.clip_grad_norm_(model[0].parameters(), clip_at(lr)))
            optimizer.step()
            optimizer.zero_grad()
            training.training_log(
                {"lm loss": loss.detach()}, {}, lr, iteration, 1.0, True, 0, grad_norm, None, None, None,
                pg_collection=None, is_first_iteration=iteration == 1,
            )  # fmt: skip
            if training.checkpoint_and_decide_exit(model, optimizer, None, iteration, 0, {}, None):
                sys.exit(0)
        return iteration, 0

    for function in (training_log, save_checkpoint_and_time, checkpoint_and_decide_exit, train):
        setattr(training, function.__name__, function)
    return training


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, StabilityMonitor | None]]:
    """Trains with an action, or unwatched."""

    def run(lr: float, action: Any = None) -> tuple[Any, StabilityMonitor | None]:
        training, packages = build(lr), {name: ModuleType(name) for name in ("megatron", "megatron.training")}
        packages["megatron.training"].training = training
        for name, module in {**packages, "megatron.training.training": training}.items():
            monkeypatch.setitem(sys.modules, name, module)
        monitor = watch(action=action) if action else None
        training.train([network()])
        return training, monitor

    return run


def test_it_leaves_the_loop_and_saves_nothing_that_is_lost(run, monkeypatch):
    with pytest.raises(SystemExit):
        run(NONFINITE_LR, "stop")
    training = sys.modules["megatron.training"].training
    assert len(training.losses) == 4
    assert [iteration for iteration, _ in training.saved] == [1]
    assert all(torch.isfinite(tensor).all() for tensor in training.saved[0][1])


def test_raise_comes_out_of_the_loop(run):
    with pytest.raises(DivergenceError, match="nonfinite at step 4, since step 2"):
        run(NONFINITE_LR, "raise")


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(run, judged):
    watched, monitor = run(SANE_LR, "stop")
    assert watched.losses == run(SANE_LR)[0].losses
    assert [(step, loss) for step, loss, _ in judged] == list(enumerate(watched.losses, 1))
    assert all(norm > 0 for _, _, norm in judged)
    assert monitor.verdict.kind == "stable"
    assert len(watched.saved) == 40

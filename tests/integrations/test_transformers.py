"""A real Hugging Face Trainer on the CPU, its model built from a config."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lrsweep.detect import scan
from lrsweep.integrations import DivergenceError
from lrsweep.integrations.transformers import StabilityCallback, watch

SANE, DIVERGING, NONFINITE = 1e-3, 3.0, 1e36
"""Learning rates: of AdamW, of AdamW on the head alone, of SGD without clipping.

All of the network at such a rate falls back to a few nats now and then, and whether it does so within 60 steps is a
matter of the last bit. The head by itself climbs on, whatever the seed.
"""
TOKENS = torch.randint(64, (400, 16), generator=torch.Generator().manual_seed(0))


def trainer(folder: Path, lr: float, *, action: Any = None, steps: int = 60, **arguments: Any) -> Trainer:
    """A trainer whose last callback is the tested one, unless ``action`` is None."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "use_cache": False}
    unclipped = {"optim": "sgd", "max_grad_norm": 0.0} if lr == NONFINITE else {}
    defaults = {"logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant_with_warmup", "report_to": []}
    result = Trainer(
        model=LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        args=TrainingArguments(
            output_dir=str(folder),
            learning_rate=lr,
            max_steps=steps,
            per_device_train_batch_size=4,
            disable_tqdm=True,
            use_cpu=True,
            **(defaults | unclipped | arguments),
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in TOKENS],
        eval_dataset=[{"input_ids": row, "labels": row} for row in TOKENS[:8]],
    )
    if lr == DIVERGING:
        result.model.model.requires_grad_(False)
    if action is not None:
        watch(result, action=action)
    return result


def callback(of: Trainer) -> StabilityCallback:
    """The tested callback."""
    return of.callback_handler.callbacks[-1]


def logged(of: Trainer, key: str) -> list[float]:
    """Every value under ``key`` in the log of the training loss."""
    return [entry[key] for entry in of.state.log_history if "loss" in entry]


def saved_weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights in each checkpoint folder."""
    return {path.name: load_file(path / "model.safetensors") for path in folder.glob("checkpoint-*")}


@pytest.mark.parametrize(("lr", "kind"), [(DIVERGING, "diverged"), (NONFINITE, "nonfinite")])
def test_it_stops_within_30_steps_of_the_onset(tmp_path, lr, kind):
    run = trainer(tmp_path, lr, action="stop", warmup_steps=20 if lr == DIVERGING else 0)
    run.train()
    verdict = callback(run).verdict
    assert verdict.kind == kind
    assert run.state.global_step == verdict.step
    assert verdict.step - verdict.onset < 30
    assert logged(run, "lrsweep/verdict")[-1] == {"diverged": 1.0, "nonfinite": 2.0}[kind]
    if kind == "nonfinite":
        assert math.isnan(logged(run, "loss")[-1])  # and not the 0.0 of logging_nan_inf_filter


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(tmp_path, judged):
    unwatched, watched = (trainer(tmp_path, SANE, steps=20, action=action) for action in (None, "raise"))
    unwatched.train()
    watched.train()
    assert logged(watched, "loss") == logged(unwatched, "loss")
    assert callback(watched).verdict.kind == "stable"
    assert [loss for _, loss, _ in judged] == logged(watched, "loss")
    assert [norm for _, _, norm in judged] == logged(watched, "grad_norm")
    assert "training_step" not in vars(watched)  # it leaves the trainer as it was


def test_the_loss_is_each_steps_own_and_the_mean_over_its_micro_batches(tmp_path, judged):
    run = trainer(tmp_path, SANE, steps=8, action="log", gradient_accumulation_steps=2, logging_steps=4)
    run.train()
    losses = [loss for _, loss, _ in judged]
    assert len(losses) == 8
    means = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    assert logged(run, "loss") == pytest.approx(means, rel=1e-6)
    assert logged(run, "lrsweep/loss") == [losses[3], losses[7]]


@pytest.mark.parametrize("action", ["log", "stop"])
def test_the_last_finite_checkpoint_stays(tmp_path, action):
    run = trainer(tmp_path, NONFINITE, action=action, steps=10, save_strategy="steps", save_steps=1, save_total_limit=1)
    run.train()
    weights = saved_weights(tmp_path)
    assert list(weights) == ["checkpoint-1"]
    assert all(tensor.isfinite().all() for tensor in weights["checkpoint-1"].values())
    assert run.state.global_step == {"log": 10, "stop": 4}[action]


def test_raise_comes_out_of_train_and_the_next_train_begins_anew(tmp_path, caplog):
    run = trainer(tmp_path, NONFINITE, action="raise", steps=10)
    for _ in range(2):
        run.model.load_state_dict(trainer(tmp_path, SANE).model.state_dict())
        with pytest.raises(DivergenceError, match="nonfinite at step 4, since step 2"):
            run.train()
    assert caplog.text.count("logging_nan_inf_filter is off") == 1


def test_a_resumed_training_decides_as_the_unbroken_one(tmp_path):
    settings = {"action": "stop", "save_strategy": "steps", "save_steps": 30, "warmup_steps": 20}
    unbroken = trainer(tmp_path, DIVERGING, **settings)
    unbroken.train()
    resumed = trainer(tmp_path, DIVERGING, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    # At this learning rate the last bit of one sum is soon a nat: what the resumed run did is judged, not whether it is
    # bitwise the other. The first 30 losses are the checkpoint's.
    losses = logged(resumed, "lrsweep/loss")
    assert losses[:30] == logged(unbroken, "lrsweep/loss")[:30]
    assert callback(resumed).verdict == scan(range(1, len(losses) + 1), losses).verdict
    assert callback(resumed).verdict.kind == "diverged"
    assert callback(resumed).verdict.onset < 30


def test_the_best_checkpoint_carries_the_state(tmp_path):
    best = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 5, "metric_for_best_model": "loss"}
    run = trainer(tmp_path, SANE, action="stop", steps=5, **best)
    run.train()
    resumed = trainer(tmp_path, SANE, action="stop", steps=6, **best)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert callback(resumed).monitor.detector.state_dict()["level"]["steps"] == [1, 2, 3, 4, 5, 6]

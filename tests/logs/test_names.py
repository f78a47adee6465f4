"""What a column is taken for by its name."""

from __future__ import annotations

import pytest

from lrsweep.logs.names import NAMES, role_of, words


@pytest.mark.parametrize("name", ["train/loss", "train_loss", "Train Loss", "train-loss", "trainLoss", "train.loss"])
def test_spellings_of_one_name(name: str) -> None:
    assert words(name) == "train loss"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("lm loss", "loss"),
        ("lm-loss", "loss"),
        ("reduced_train_loss", "loss"),
        ("loss_metrics/global_avg_loss", "loss"),
        ("train/CrossEntropyLoss", "loss"),
        ("run-1 - train/loss", "loss"),
        ("epoch_loss", "loss"),
        ("_step", "step"),
        ("trainer/global_step", "step"),
        ("Training step", "step"),
        ("INFO step", "step"),
        ("grad norm", "grad_norm"),
        ("train/grad_norm", "grad_norm"),
        ("optim/total_grad_norm", "grad_norm"),
        ("grad_2.0_norm_total", "grad_norm"),
        ("Epoch", "epoch"),
        ("Rank", "rank"),
    ],
)
def test_names_of_the_common_loggers(name: str, role: str) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize(
    "name",
    [
        "val_loss",
        "eval/loss",
        "validation loss",
        "loss scale",
        "validate step",
        "warmup_step",
        "validation loss at iteration",
        "run-1 - train/loss__MIN",
        "params norm",
        "tokens per step",
        "lr",
        "mfu",
        "time",
    ],
)
def test_validation_and_the_rest_are_taken_for_nothing(name: str) -> None:
    assert role_of(name) is None


def test_no_name_has_two_roles() -> None:
    every = [name for names in NAMES.values() for name in names]
    assert len(every) == len(set(every))
    assert all(name == words(name) for name in every)

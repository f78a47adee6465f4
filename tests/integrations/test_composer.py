"""A real Composer Trainer on the CPU, where Composer is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

composer = pytest.importorskip("composer")

from composer.loggers import LoggerDestination  # noqa: E402

from lrsweep.integrations import DivergenceError  # noqa: E402
from lrsweep.integrations.composer import StabilityCallback  # noqa: E402
from tests.integrations.tiny import NONFINITE_LR, SANE_LR, batches, loss_of, network, sgd  # noqa: E402


class Model(composer.ComposerModel):
    """The tiny network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, batch: Any) -> Any:
        return batch

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return loss_of(self.network, outputs)


class Losses(LoggerDestination):
    """Keeps all metrics."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.steps.setdefault(step or 0, {}).update(metrics)

    def values(self, key: str) -> list[float]:
        return [metrics[key] for metrics in self.steps.values() if key in metrics]


def fit(lr: float, callbacks: list[Any], folder: Path | None = None, *, steps: int = 40, **settings: Any) -> Losses:
    """One training; what it logged."""
    model, losses = Model(), Losses()
    tokens, successors = zip(*batches(steps), strict=True)
    trainer = composer.Trainer(
        model=model,
        optimizers=sgd(model, lr),
        train_dataloader=DataLoader(TensorDataset(torch.cat(tokens), torch.cat(successors)), batch_size=128),
        max_duration=f"{steps}ba",
        callbacks=callbacks,
        loggers=losses,
        save_folder=None if folder is None else str(folder),
        save_interval="1ba",
        save_num_checkpoints_to_keep=1,
        save_latest_filename=None,
        device="cpu",
        progress_bar=False,
        **settings,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    return losses


def test_it_stops_and_the_last_finite_checkpoint_stays(tmp_path):
    callback = StabilityCallback(action="stop")
    losses = fit(NONFINITE_LR, [callback], tmp_path)
    assert (callback.verdict.kind, callback.verdict.onset, callback.verdict.step) == ("nonfinite", 2, 4)
    assert len(losses.values("loss/train/total")) == 4
    assert [path.name for path in tmp_path.glob("*.pt")] == ["ep0-ba1-rank0.pt"]


def test_raise_comes_out_of_fit():
    with pytest.raises(DivergenceError, match="nonfinite at step 4"):
        fit(NONFINITE_LR, [StabilityCallback(action="raise")])


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(judged):
    micro = {"device_train_microbatch_size": 32}
    watched = fit(SANE_LR, [StabilityCallback(action="raise")], **micro)
    assert watched.values("loss/train/total") == fit(SANE_LR, [], **micro).values("loss/train/total")
    assert [(step, loss) for step, loss, _ in judged] == [*enumerate(watched.values("loss/train/total"), 1)]
    assert watched.values("lrsweep/verdict") == [0.0] * 40


def test_a_resumed_training_goes_on_with_the_state(tmp_path):
    fit(SANE_LR, [StabilityCallback()], tmp_path, steps=10)
    resumed = StabilityCallback()
    fit(SANE_LR, [resumed], steps=20, load_path=str(tmp_path / "ep0-ba10-rank0.pt"))
    assert len(resumed.monitor.detector.state_dict()["level"]["steps"]) == 20

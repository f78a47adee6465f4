"""A real Lightning Trainer on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lrsweep.integrations import DivergenceError
from lrsweep.integrations.lightning import StabilityCallback
from tests.integrations.tiny import DIVERGING_LR, NONFINITE_LR, SANE_LR, batches, clip_at, loss_of, network, sgd


class Module(pl.LightningModule):
    """The tiny network; ``losses`` keeps what each batch's was."""

    def __init__(self, lr: float, *, automatic: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.lr, self.network = lr, network()
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = loss_of(self.network, batch)
        self.losses.append(loss.item())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self, self.lr)


def fit(
    lr: float, callbacks: list[Any], *, steps: int = 80, resume: Any = None, logger: Any = False, **settings: Any
) -> tuple[pl.Trainer, Module]:
    """One training."""
    module = Module(lr, automatic=settings.pop("automatic", True))
    if module.automatic_optimization:
        settings["gradient_clip_val"] = clip_at(lr)
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=callbacks,
        logger=logger,
        accelerator="cpu",
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )
    trainer.fit(module, DataLoader(list(batches(160)), batch_size=None), ckpt_path=resume)
    return trainer, module


@pytest.mark.parametrize(("lr", "kind"), [(DIVERGING_LR, "diverged"), (NONFINITE_LR, "nonfinite")])
def test_it_stops_within_30_steps_of_the_onset(lr, kind):
    callback = StabilityCallback(action="stop")
    trainer, _ = fit(lr, [callback])
    assert callback.verdict.kind == kind
    assert trainer.global_step == callback.verdict.step
    assert callback.verdict.step - callback.verdict.onset < 30


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(judged, tmp_path):
    callback = StabilityCallback(action="raise")
    _, unwatched = fit(SANE_LR, [])
    _, watched = fit(SANE_LR, [callback], logger=CSVLogger(tmp_path))
    assert watched.losses == unwatched.losses
    assert judged == [(step, loss, None) for step, loss in enumerate(watched.losses, 1)]
    assert callback.verdict.kind == "stable"
    header = next(tmp_path.glob("**/metrics.csv")).read_text().splitlines()[0].split(",")
    assert set(callback.monitor.metrics()) <= set(header)


@pytest.mark.parametrize("automatic", [True, False])
def test_the_loss_of_a_step_is_the_mean_over_its_batches(judged, automatic):
    settings = {"accumulate_grad_batches": 2} if automatic else {}
    _, module = fit(SANE_LR, [StabilityCallback()], steps=10, automatic=automatic, **settings)
    share = 2 if automatic else 1
    means = [sum(module.losses[i : i + share]) / share for i in range(0, 10 * share, share)]
    assert [step for step, _, _ in judged] == list(range(1, 11))
    assert [loss for _, loss, _ in judged] == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("action", ["log", "stop", "raise"])
def test_the_last_finite_checkpoint_stays(tmp_path, action):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_on_exception=True)
    try:
        fit(NONFINITE_LR, [checkpoint, StabilityCallback(action=action)], steps=10)
    except DivergenceError:
        assert action == "raise"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch=0-step=1.ckpt", "last.ckpt"]
    for name in names:
        state = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_it_works_under_the_packages_older_name(tmp_path):
    import pytorch_lightning as old

    class OldModule(old.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return loss_of(self.network, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self, NONFINITE_LR)

    callback = StabilityCallback(action="stop")
    checkpoint = old.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1)
    old.Trainer(max_steps=10, callbacks=[checkpoint, callback], logger=False, accelerator="cpu").fit(
        OldModule(), DataLoader(list(batches(20)), batch_size=None)
    )
    assert callback.verdict.kind == "nonfinite"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=1.ckpt"]


def test_raise_comes_out_of_fit_and_the_next_fit_begins_anew():
    callback = StabilityCallback(action="raise")
    for _ in range(2):
        with pytest.raises(DivergenceError, match="nonfinite at step 4, since step 2"):
            fit(NONFINITE_LR, [callback])


def test_a_resumed_training_decides_as_the_unbroken_one(tmp_path: Path):
    unbroken, resumed = (StabilityCallback(action="stop") for _ in range(2))
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=40, save_top_k=-1)
    trainer, _ = fit(SANE_LR, [unbroken, checkpoint], steps=41)
    fit(SANE_LR, [resumed], steps=41, resume=tmp_path / "epoch=0-step=40.ckpt")
    fresh = StabilityCallback()
    fit(SANE_LR, [fresh], steps=1)
    best = [callback.monitor.detector.state_dict()["level"]["losses"] for callback in (unbroken, resumed, fresh)]
    assert len(best[1]) == 41
    assert best[1][:40] == best[0][:40]
    assert len(best[2]) == 1
    assert trainer.checkpoint_callback is checkpoint
    assert "_save_topk_checkpoint" not in vars(checkpoint)  # it leaves the other callbacks as they were

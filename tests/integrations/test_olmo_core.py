"""A real OLMo-core Trainer on the CPU, where OLMo-core is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("olmo_core")

from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, ConstantWithWarmup
from olmo_core.train import Duration, Trainer, TrainerConfig
from olmo_core.train.callbacks import Callback, CheckpointerCallback
from olmo_core.train.train_module import TransformerTrainModuleConfig
from olmo_core.utils import seed_all

from lrsweep.detect import DetectorConfig
from lrsweep.integrations import DivergenceError
from lrsweep.integrations.olmo_core import StabilityCallback

SANE, DIVERGING = 1e-3, 60.0
EARLY = DetectorConfig(nonfinite_points=1)
"""Before OLMo-core, which reads the losses of 20 steps at once here, raises by itself."""


class Metrics(Callback):
    """Keeps all metrics."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.setdefault(step, {}).update(metrics)

    def values(self, key: str) -> list[float]:
        return [metrics[key] for _, metrics in sorted(self.steps.items()) if key in metrics]


def build(folder: Path, lr: float, callback: Callback | None, steps: int) -> tuple[Trainer, Metrics]:
    """A trainer of a tiny transformer, two micro-batches a step."""
    seed_all(0)
    folder.mkdir(exist_ok=True)
    np.random.default_rng(0).integers(1, 63, size=256 * 100, dtype=np.uint16).tofile(folder / "tokens.npy")
    dataset = NumpyFSLDatasetConfig(
        paths=[str(folder / "tokens.npy")],
        sequence_length=32,
        tokenizer=TokenizerConfig(vocab_size=64, eos_token_id=0, pad_token_id=63),
        work_dir=str(folder),
    ).build()
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=128,
        max_sequence_length=32,
        optim=AdamWConfig(lr=lr),
        scheduler=ConstantWithWarmup(warmup=30),
        max_grad_norm=1.0,
    )
    model = TransformerConfig.llama_like(d_model=32, vocab_size=64, n_layers=2, n_heads=2).build(init_device="cpu")
    trainer = (
        TrainerConfig(save_folder=str(folder / "run"), max_duration=Duration.steps(steps), metrics_collect_interval=20)
        .with_callback("checkpointer", CheckpointerCallback(save_interval=1, save_async=False))
        .build(
            module.build(model, device=torch.device("cpu")),
            NumpyDataLoaderConfig(global_batch_size=256, seed=0).build(dataset),
        )
    )
    metrics = Metrics()
    trainer.add_callback("metrics", metrics)
    if callback is not None:
        trainer.add_callback("lrsweep", callback)
    return trainer, metrics


def saved(folder: Path) -> list[int]:
    """Steps that have a checkpoint."""
    return sorted(int(path.name.removeprefix("step")) for path in (folder / "run").glob("step*"))


def test_it_stops_and_saves_no_more_once_diverged(tmp_path):
    callback = StabilityCallback(action="stop")
    trainer, metrics = build(tmp_path, DIVERGING, callback, 100)
    trainer.fit()
    assert callback.verdict.kind == "diverged"
    assert trainer.global_step == callback.verdict.step
    assert saved(tmp_path)[-1] < callback.verdict.step
    assert metrics.values("lrsweep/verdict")[-1] == 1.0


def test_raise_comes_out_of_fit(tmp_path):
    trainer, _ = build(tmp_path, 1e38, StabilityCallback(action="raise", config=EARLY), 20)
    with pytest.raises(DivergenceError, match="nonfinite at step 3"):
        trainer.fit()
    assert saved(tmp_path) == [0, 1]  # the weights after step 2 are not finite


def test_a_watched_training_has_bitwise_the_losses_of_an_unwatched_one(tmp_path, judged):
    (unwatched, plain), (watched, seen) = (
        build(tmp_path / name, SANE, callback, 20)
        for name, callback in (("a", None), ("b", StabilityCallback(action="raise")))
    )
    unwatched.fit()
    watched.fit()
    assert seen.values("train/CE loss") == plain.values("train/CE loss")
    assert [loss for _, loss, _ in judged] == seen.values("train/CE loss")
    assert [norm for _, _, norm in judged] == seen.values("optim/total grad norm")


def test_a_resumed_training_goes_on_with_the_state(tmp_path):
    build(tmp_path, SANE, StabilityCallback(), 10)[0].fit()
    resumed = StabilityCallback()
    build(tmp_path, SANE, resumed, 15)[0].fit()
    assert resumed.monitor.detector.state_dict()["level"]["steps"] == list(range(1, 16))

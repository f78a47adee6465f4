"""An OLMo-core Trainer that ends when the run diverges, and keeps the last checkpoint from before.

python examples/olmo_core_trainer.py            # a learning rate of 10: ends early
python examples/olmo_core_trainer.py --lr 1e-3  # runs to the end
"""

import argparse
import os
import tempfile

import numpy as np
import torch
from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig, ConstantWithWarmup
from olmo_core.train import Duration, TrainerConfig, prepare_training_environment, teardown_training_environment
from olmo_core.train.callbacks import CheckpointerCallback
from olmo_core.train.train_module import TransformerTrainModuleConfig

from lrsweep.integrations.olmo_core import StabilityCallback

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=10.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

prepare_training_environment(backend=None, seed=0)
model = TransformerConfig.llama_like(d_model=32, vocab_size=64, n_layers=2, n_heads=2)
modules = TransformerTrainModuleConfig(
    rank_microbatch_size=128,
    max_sequence_length=32,
    optim=AdamWConfig(lr=options.lr),
    scheduler=ConstantWithWarmup(warmup=30),
    max_grad_norm=1.0,
)

with tempfile.TemporaryDirectory() as folder:
    tokens = np.random.default_rng(0).integers(1, 63, size=256 * options.steps, dtype=np.uint16)
    tokens[1::2] = tokens[::2]  # every other token repeats the one before
    tokens.tofile(os.path.join(folder, "tokens.npy"))
    dataset = NumpyFSLDatasetConfig(
        paths=[os.path.join(folder, "tokens.npy")],
        sequence_length=32,
        tokenizer=TokenizerConfig(vocab_size=64, eos_token_id=0, pad_token_id=63),
        work_dir=folder,
    ).build()
    loader = NumpyDataLoaderConfig(global_batch_size=256, seed=0).build(dataset)
    checkpointer = CheckpointerCallback(save_interval=20, save_async=False)
    trainer = (
        TrainerConfig(save_folder=os.path.join(folder, "run"), max_duration=Duration.steps(options.steps))
        .with_callback("checkpointer", checkpointer)
        .build(modules.build(model.build(init_device="cpu"), device=torch.device("cpu")), loader)
    )
    callback = StabilityCallback(action="stop")
    trainer.add_callback("lrsweep", callback)
    trainer.fit()
    print(f"after step {trainer.global_step}: {callback.verdict}")
    print("kept:", *sorted(os.listdir(os.path.join(folder, "run"))))
teardown_training_environment()

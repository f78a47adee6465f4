"""A MosaicML Composer Trainer that stops when the run diverges, and keeps the last checkpoint from before.

python examples/composer_trainer.py          # a learning rate of 1000: stops early
python examples/composer_trainer.py --lr 3  # runs to the end
"""

import argparse
import os
import tempfile

import torch
from composer import ComposerModel, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrsweep.integrations.composer import StabilityCallback

VOCABULARY = 64

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1000.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()


class Successor(ComposerModel):
    """Learns the successor of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY))

    def forward(self, batch: list[Tensor]) -> Tensor:
        return self.body(batch[0])

    def loss(self, outputs: Tensor, batch: list[Tensor]) -> Tensor:
        return cross_entropy(outputs, batch[1])


torch.manual_seed(0)
tokens = torch.randint(VOCABULARY, (128 * options.steps,))
dataset = TensorDataset(tokens, torch.randperm(VOCABULARY)[tokens])
model = Successor()
callback = StabilityCallback(action="stop")

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=options.lr),
        train_dataloader=DataLoader(dataset, batch_size=128),
        device_train_microbatch_size=64,
        max_duration=f"{options.steps}ba",
        callbacks=[callback],
        save_folder=folder,
        save_interval="2ba",
        save_num_checkpoints_to_keep=1,
        save_latest_filename=None,
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    print(f"after step {trainer.state.timestamp.batch.value}: {callback.verdict}")
    print("kept:", *(name for name in os.listdir(folder) if name.endswith(".pt")))
    trainer.close()

"""A Lightning Trainer that stops when the run diverges.

python examples/lightning_trainer.py          # a learning rate of 1000: stops early
python examples/lightning_trainer.py --lr 3  # runs to the end
"""

import argparse

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrsweep.integrations.lightning import StabilityCallback

VOCABULARY = 64

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1000.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()


class Successor(pl.LightningModule):
    """Learns the successor of each token."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.body = nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        tokens, targets = batch
        return cross_entropy(self.body(tokens), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


pl.seed_everything(0, verbose=False)
tokens = torch.randint(VOCABULARY, (128 * options.steps,))
dataset = TensorDataset(tokens, torch.randperm(VOCABULARY)[tokens])
callback = StabilityCallback(action="stop")
trainer = pl.Trainer(
    max_steps=options.steps,
    callbacks=[callback],
    gradient_clip_val=1.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Successor(options.lr), DataLoader(dataset, batch_size=128))
print(f"after step {trainer.global_step}: {callback.verdict}")

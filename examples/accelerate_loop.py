"""An Accelerate loop that ends when the run diverges; two micro-batches a step.

python examples/accelerate_loop.py          # a learning rate of 1000: ends early
python examples/accelerate_loop.py --lr 3  # runs to the end
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lrsweep.integrations.accelerate import AcceleratorMonitor

VOCABULARY = 64

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1000.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

set_seed(0)
tokens = torch.randint(VOCABULARY, (2 * 128 * options.steps,))
dataset = TensorDataset(tokens, torch.randperm(VOCABULARY)[tokens])  # to be learned: each token's successor
model = nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(dataset, batch_size=128))

with AcceleratorMonitor(accelerator, action="stop") as monitor:
    for inputs, targets in loader:
        grad_norm = None
        with accelerator.accumulate(model):
            loss = cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        monitor.micro_batch(loss, grad_norm)
        if monitor.should_stop:
            break

print(f"after step {monitor.step}: {monitor.verdict}")

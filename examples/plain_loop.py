"""A plain PyTorch loop that ends when the run diverges; two micro-batches a step.

python examples/plain_loop.py          # a learning rate of 1000: ends early
python examples/plain_loop.py --lr 3  # runs to the end
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lrsweep.integrations import StabilityMonitor

VOCABULARY = 64

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1000.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

torch.manual_seed(0)
successor = torch.randperm(VOCABULARY)  # what is to be learned: each token's successor
model = nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY))
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)

with StabilityMonitor(action="stop", log=lambda metrics, step: print(step, metrics), log_every=20) as monitor:
    for step in range(1, options.steps + 1):
        losses = []
        for _ in range(2):
            tokens = torch.randint(VOCABULARY, (128,))
            loss = cross_entropy(model(tokens), successor[tokens])
            (loss / 2).backward()
            losses.append(loss)
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(step, losses, grad_norm)
        if monitor.should_stop:
            break

print(f"after step {step}: {monitor.verdict}")

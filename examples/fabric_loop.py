"""A Lightning Fabric loop that ends when the run diverges, with the monitor in its checkpoint.

python examples/fabric_loop.py          # a learning rate of 1000: ends early
python examples/fabric_loop.py --lr 3  # runs to the end
"""

import argparse
import os
import tempfile

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn.functional import cross_entropy

from lrsweep.integrations.fabric import stability_monitor

VOCABULARY = 64

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1000.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

fabric = Fabric(accelerator="cpu", devices=1)
fabric.launch()
fabric.seed_everything(0)
successor = torch.randperm(VOCABULARY)  # what is to be learned: each token's successor
body = nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY))
model, optimizer = fabric.setup(body, torch.optim.SGD(body.parameters(), lr=options.lr))

monitor = stability_monitor(fabric, action="stop")
with tempfile.TemporaryDirectory() as folder:
    state = {"model": model, "optimizer": optimizer, "monitor": monitor}
    for step in range(1, options.steps + 1):
        tokens = torch.randint(VOCABULARY, (128,))
        loss = cross_entropy(model(tokens), successor[tokens])
        fabric.backward(loss)
        grad_norm = fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        monitor.update(step, loss, grad_norm)
        if monitor.should_stop:
            break
        if step % 40 == 0 and monitor.may_save(model):
            fabric.save(os.path.join(folder, "last.ckpt"), state)
    monitor.finish()

print(f"after step {step}: {monitor.verdict}")

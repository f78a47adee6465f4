"""A Hugging Face Trainer that stops when the run diverges, and keeps the last checkpoint from before.

python examples/transformers_trainer.py            # a learning rate of 30: stops early
python examples/transformers_trainer.py --lr 1e-3  # runs to the end
"""

import argparse
import os
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lrsweep.integrations.transformers import watch

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=30.0)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

torch.manual_seed(0)
tokens = torch.randint(64, (512, 32))
tokens[:, 1::2] = tokens[:, ::2]  # every other token repeats the one before
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, use_cache=False
)

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            output_dir=folder,
            learning_rate=options.lr,
            max_steps=options.steps,
            warmup_steps=20,
            per_device_train_batch_size=8,
            logging_steps=20,
            save_steps=20,
            save_total_limit=1,
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
    )
    callback = watch(trainer, action="stop")
    trainer.train()
    print(f"after step {trainer.state.global_step}: {callback.verdict}")
    print("kept:", *os.listdir(folder))

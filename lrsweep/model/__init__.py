"""The machine that a scheme's row is put into: norms, linears, attention, block, GPT."""

from lrsweep.model.block import ProbeLevel
from lrsweep.model.gpt import GPT, init_weights, next_token_loss

__all__ = ["GPT", "ProbeLevel", "init_weights", "next_token_loss"]

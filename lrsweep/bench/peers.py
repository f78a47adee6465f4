"""Measures the step of other trainers' Llama: the same shape, batch and optimizer as lrsweep's, and none of its probes.

Everything that helps them is on: model and loss are one compiled function, attention is the fused kernel, AdamW is
fused, the batch lies on the device, and nothing waits for it within a round.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.bench.job import Job, System, Timing, batch_of
from lrsweep.bench.rounds import FEWEST, paired_rounds, peak_memory, steps_a_round, synchronize
from lrsweep.config import ModelShape, SizePreset, find_size, mlp_width
from lrsweep.schemes import find

Logits = Callable[[Tensor], Tensor]
"""Token ids (B, T) to logits (B, T, V)."""
Build = Callable[[ModelShape, int], tuple[nn.Module, Logits]]
"""The model of a shape and MLP width on the current device, and its logits."""


def import_litgpt() -> Build:
    """litgpt's GPT as a Llama."""
    from litgpt.config import Config
    from litgpt.model import GPT

    def build(shape: ModelShape, hidden: int) -> tuple[nn.Module, Logits]:
        config = Config(
            name="llama",
            block_size=shape.seq_len,
            n_layer=shape.n_layers,
            n_embd=shape.d_model,
            n_head=shape.n_heads,
            vocab_size=shape.vocab_size,
            padded_vocab_size=shape.vocab_size,
            intermediate_size=hidden,
            mlp_class_name="LLaMAMLP",
            norm_class_name="RMSNorm",
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
        )
        model = GPT(config)
        return model, model

    return build


def import_transformers() -> Build:
    """Transformers' Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(shape: ModelShape, hidden: int) -> tuple[nn.Module, Logits]:
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=hidden,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            max_position_embeddings=shape.seq_len,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
        model = LlamaForCausalLM(config)

        def logits(tokens_BxT: Tensor) -> Tensor:
            logits_BxTxV: Tensor = model(input_ids=tokens_BxT).logits
            return logits_BxTxV

        return model, logits

    return build


PEERS: dict[System, Callable[[], Build]] = {"litgpt": import_litgpt, "transformers": import_transformers}
"""What imports a peer, by the name of its package."""


class Peer:
    """A peer's model, its optimizer, and its step on one batch of random tokens."""

    def __init__(self, build: Build, preset: SizePreset, device: str) -> None:
        shape, (batch, self._micro_batch) = preset.shape, batch_of(preset)
        with torch.device(device):
            self.model, logits = build(shape, mlp_width(find("preln"), "llama", shape.d_model))
            self._tokens_BxT = torch.randint(shape.vocab_size, (batch, shape.seq_len + 1))
        self.model.train()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self._device = device

        def loss(tokens_BxT: Tensor) -> Tensor:
            logits_BxTxV = logits(tokens_BxT[:, :-1])
            return F.cross_entropy(logits_BxTxV.flatten(0, 1).float(), tokens_BxT[:, 1:].flatten())

        self._loss: Logits = torch.compile(loss) if device == "cuda" else loss

    def step(self) -> Tensor:
        """Forward, backward, clip and update; the loss before it, in nats."""
        micro_batches = self._tokens_BxT.split(self._micro_batch)  # type: ignore[no-untyped-call]
        total = torch.zeros((), device=self._tokens_BxT.device)
        for tokens_BxT in micro_batches:
            with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
                loss = self._loss(tokens_BxT) / len(micro_batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


def measure(job: Job) -> Timing:
    """Time a peer's step on random tokens."""
    build, preset = PEERS[job.system](), find_size(job.size)
    torch.set_float32_matmul_precision("high")

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            peer.step()
        synchronize(job.device)
        return time.perf_counter() - began

    began = time.perf_counter()
    peer = Peer(build, preset, job.device)
    run(1)
    first_step_s = time.perf_counter() - began
    steps = steps_a_round(run(FEWEST) / FEWEST)
    memory = peak_memory(job.device)
    seconds = paired_rounds({"bare": lambda: run(steps)}, job.rounds, job.device)["bare"]
    return Timing.of(
        job,
        version=importlib.metadata.version(job.system),
        n_params=sum(p.numel() for p in peer.model.parameters()),
        step_ms={"bare": 1e3 * statistics.median(seconds) / steps},
        first_step_s=first_step_s,
        memory=memory,
    )

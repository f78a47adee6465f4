"""What a step compiles before it first runs, and in which order, so that it runs soon."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrsweep.model import GPT, gpu_activation, gpu_embedding, gpu_loss, gpu_norm
from lrsweep.model.block import Block
from lrsweep.model.residual import joins_by_kernel
from lrsweep.probes import gpu_logits, gpu_tokens
from lrsweep.train.optimizers import Optimizer

LossSums = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""As :meth:`lrsweep.model.GPT.loss_sums`."""


def wake_compilers() -> None:
    """Start the processes in which torch compiles kernels, some seconds before the first is wanted."""
    try:
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.wakeup()
    except (ImportError, AttributeError):
        pass  # They then start with the first kernel.


def compile_model(model: GPT, device: torch.device, backend: str = "inductor") -> LossSums:
    """Have each block compiled when it first runs; its loss sums, compiled too where no kernel of our own serves."""
    # A process that sweeps many schemes would pass dynamo's limit of compilations of one function; graphs
    # captured before stay valid.
    torch.compiler.reset()
    # What autocast leaves in fp32 (σReparam's power iteration, a clipped softmax) is left there on purpose.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    model.score.prepare(model.shape.seq_len, device)
    # Nothing in these graphs is what the patterns look for, and to look takes two seconds.
    options: dict[str, str | int | bool | Callable[..., Any]] | None
    options = {"pattern_matcher": False} if backend == "inductor" else None
    for block in model.blocks:
        block.compile(backend=backend, options=options)
    if model.plain_logits:
        return model.loss_sums
    return torch.compile(model.loss_sums, backend=backend, options=options)


class OwnKernels:
    """Compiles our own kernels in a thread: most of that is not Python, and goes on while Python compiles the blocks.

    Args:
        model: what they are for.
        optimizer: what moves its weights.
        dtype: type of its activations.
        device: a GPU.
    """

    def __init__(self, model: GPT, optimizer: Optimizer, dtype: torch.dtype, device: torch.device) -> None:
        self._model, self._optimizer, self._dtype, self._device = model, optimizer, dtype, device
        self._thread: threading.Thread | None = threading.Thread(target=self._compile)
        self._thread.start()

    def wait(self) -> None:
        """Until they are there; no step is captured before."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _compile(self) -> None:
        shape, score, device = self._model.shape, self._model.score, self._device
        with torch.cuda.device(device):
            gpu_embedding.warm_up(shape.d_model, device)
            if self._model.plain_logits:
                gpu_loss.warm_up(shape.vocab_size, self._dtype, device)
            q_BxTxHxK = torch.zeros(1, 1, shape.n_heads, shape.d_head, dtype=self._dtype, device=device)
            layer = q_BxTxHxK.transpose(1, 2), q_BxTxHxK.transpose(1, 2)
            gpu_logits.causal_logit_sums([layer], score.scale, score.cap)
            block = self._model.blocks[0]
            assert isinstance(block, Block)
            gpu_tokens.warm_up(block.groups(), device)
            if block.mlp.plain:
                hidden = block.mlp.fc2.weight.shape[1]
                gpu_activation.warm_up(hidden, self._dtype, gated=block.mlp.gated, device=device)
            norms = block.attn_norm, block.mlp_norm, self._model.final_norm
            for centred in {norm.centred for norm in norms if joins_by_kernel(norm, block.mlp_residual)}:
                gpu_norm.warm_up(shape.d_model, torch.float32, self._dtype, centred=centred, device=device)
            self._optimizer.warm_up()

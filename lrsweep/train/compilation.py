"""What a step compiles before it first runs, and in which order, so that it runs soon."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lrsweep.model import GPT, gpu_activation, gpu_embedding, gpu_heads, gpu_loss, gpu_norm
from lrsweep.model.block import Block
from lrsweep.model.residual import joins_by_kernel
from lrsweep.probes import gpu_logits, gpu_tokens
from lrsweep.train import gpu_step
from lrsweep.train.optimizers import Optimizer

LossSums = Callable[[Tensor, Tensor, Tensor, float, float, gpu_loss.Beside | None], Tensor]
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
    # Or a process would trace anew what another has left in the cache: values are handed on without a copy by a
    # function of autograd's own kind. Capped scores have one too, within flex attention, which is better traced.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = model.score.cap is None
    model.score.prepare(model.shape.seq_len, device)
    # Nothing in these graphs is what the patterns look for, and to look takes two seconds.
    options: dict[str, str | int | bool | Callable[..., Any]] | None
    options = {"pattern_matcher": False} if backend == "inductor" else None
    for block in model.blocks:
        block.compile(backend=backend, options=options)
    if model.plain_logits:
        return model.loss_sums
    return torch.compile(model.loss_sums, backend=backend, options=options)


def warm_ups(
    model: GPT, optimizer: Optimizer, dtype: torch.dtype, device: torch.device, *, beside_loss: bool
) -> list[Callable[[], None]]:
    """What compiles the kernels of our own that a step of ``model`` takes, by launching them on next to nothing."""
    shape, score, block, job = model.shape, model.score, model.blocks[0], functools.partial
    assert isinstance(block, Block)
    jobs: list[Callable[[], None]] = [
        job(gpu_embedding.warm_up, shape.d_model, device),
        job(gpu_logits.warm_up, shape.n_heads, shape.d_head, score.scale, score.cap, dtype, device),
        job(gpu_tokens.warm_up, block.groups(), device),
        job(gpu_step.warm_up, shape.n_layers, shape.n_heads, score.cap, device),
        optimizer.warm_up,
    ]
    if model.plain_logits:
        jobs.append(job(gpu_loss.warm_up, shape.vocab_size, dtype, device, beside=beside_loss))
    if block.attn.by_kernel:
        gains, centred = block.attn.head_norms()
        heads = job(gpu_heads.warm_up, shape.n_heads, shape.d_head, dtype, device)
        jobs.append(job(heads, normed=gains is not None, centred=centred))
    if block.mlp.plain:
        hidden = block.mlp.fc2.weight.shape[1]
        jobs.append(job(gpu_activation.warm_up, hidden, dtype, gated=block.mlp.gated, device=device))
    norms = block.attn_norm, block.mlp_norm, model.final_norm
    for centred in {norm.centred for norm in norms if joins_by_kernel(norm, block.mlp_residual)}:
        jobs.append(job(gpu_norm.warm_up, shape.d_model, torch.float32, dtype, centred=centred, device=device))
    return jobs


class OwnKernels:
    """Compiles our own kernels in threads: most of that is not Python, and goes on while Python compiles the blocks.

    Args:
        model: what they are for.
        optimizer: what moves its weights.
        dtype: type of its activations.
        device: a GPU.
        beside_loss: whether some work runs beside the loss.
    """

    def __init__(
        self, model: GPT, optimizer: Optimizer, dtype: torch.dtype, device: torch.device, *, beside_loss: bool
    ) -> None:
        self._device, self._jobs = device, warm_ups(model, optimizer, dtype, device, beside_loss=beside_loss)
        self._thread: threading.Thread | None = threading.Thread(target=self._compile)
        self._thread.start()

    def wait(self) -> None:
        """Until they are there; no step is captured before."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._jobs.clear()

    def _compile(self) -> None:
        def run(job: Callable[[], None]) -> None:
            with torch.cuda.device(self._device):
                job()

        first, *others = self._jobs
        run(first)  # Triton finds out about the GPU with its first kernel.
        with ThreadPoolExecutor() as pool:
            list(pool.map(run, others))

"""The modules that hold GPU kernels, for tests that take all of them or none."""

from __future__ import annotations

import pytest

from lrsweep.model import gpu_activation, gpu_embedding, gpu_heads, gpu_loss, gpu_norm
from lrsweep.probes import gpu_logits, gpu_parts, gpu_tokens
from lrsweep.train import gpu_adamw, gpu_step, optimizers

SERVING = gpu_activation, gpu_embedding, gpu_heads, gpu_loss, gpu_norm, gpu_logits, gpu_tokens, gpu_step
"""Those that say of a tensor whether they serve it."""
KERNEL_MODULES = *SERVING, gpu_adamw, gpu_parts
"""All."""


def let_kernels_serve(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor, or none, wherever it is."""
    for module in SERVING:
        monkeypatch.setattr(module, "serves", lambda _: always)
    monkeypatch.setattr(optimizers, "run_on", lambda _: always)

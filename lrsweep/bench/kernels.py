"""Where a step goes on a GPU: the time of its kernels by what they do."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

GROUPS = {
    "attention": r"sdpa|flash|fmha|cudnn::fusion|^triton_tem",
    "products": r"nvjet|gemm|gemv|cutlass|splitK|xmma",
    "norms": r"^_norm_|layer_norm|rms_norm",
    "activations": r"^_activation_",
    "rotation": r"^_rotation_",
    "embedding": r"^_embedding_|indexSelect|gather",
    "loss": r"^_loss_",
    "optimizer": r"^_adamw|multi_tensor_apply",
    "logits": r"^_logits",
    "token norms": r"^_token_moments",
    "bookkeeping": r"^_(step|parts)_",
    "compiled": r"^triton_",
}
"""What finds a kernel by its name, the first that does; ``compiled`` is what torch's compiler has made."""
OTHER = "other"
"""What none of them finds: small kernels, copies, zeros."""


def group_of(name: str) -> str:
    """The group of a kernel."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), OTHER)


def kernel_ms(run: Callable[[], object], steps: int) -> dict[str, float]:
    """Milliseconds of a step by group, of a ``run`` of so many steps; kernels that run side by side count in full."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    found = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            found[group_of(event.name)] += event.device_time / 1e3 / steps
    return {group: ms for group, ms in found.items() if ms > 0}

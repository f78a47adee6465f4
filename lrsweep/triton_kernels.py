"""Triton, where it is installed, for the modules that hold our GPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch built without CUDA comes without it
    triton = tl = None

__all__ = ["multiprocessors", "run_on", "tl", "triton"]


def run_on(tensor: Tensor) -> bool:
    """Whether kernels can run on the tensor; they compute in fp32, so none takes float64."""
    return triton is not None and tensor.is_cuda and tensor.dtype != torch.float64


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; Triton's interpreter, which runs programs one after the other, gets by with one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
